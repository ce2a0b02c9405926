"""
What people do to transactions that are distributed: swallow errors, and end branches by hand.
"""

import pytest
from sqlalchemy import create_engine, text

from uow import distributed
from uow.errors import UnitOfWorkError

from .transfers import DOMAIN, Forks, SqlBank, World, pay, transfer

MISTAKES = 200


def mistake(bank: SqlBank, number: int) -> None:
    """Let a statement fail, and go on as if it had not; the driver alone knows of some."""
    try:
        match number % 3:
            case 0:
                bank.session.execute(text("SELECT 1 / 0"))
            case 1:
                bank.session.connection().exec_driver_sql("SELECT 1 / 0")
            case 2:
                bank.session.connection().connection.cursor().execute("SELECT 1 / 0")
    except Exception:
        return
    pytest.fail("The statement did not fail.")


def test_a_swallowed_error_commits_nothing(world: World) -> None:
    """None of 200 is kept in one database only; all are refused."""
    engines = {place.name: create_engine(place.url) for place in world.places}
    both = distributed(*(SqlBank(engine, resource=name) for name, engine in engines.items()), domain=DOMAIN)
    refused = 0
    for number in range(MISTAKES):
        name = world.order()[2]
        try:
            with both as banks:
                pay(banks, name, account=number % 20)
                for bank in banks:
                    bank.flush()
                mistake(banks[number // 3 % 2], number)
                both.commit()
        except UnitOfWorkError:
            refused += 1
        assert not world.kept(name)
    for engine in engines.values():
        engine.dispose()

    assert MISTAKES == refused
    assert world.recover().clean


@pytest.mark.parametrize("world", ["postgresql+postgresql", "postgresql+mariadb"], indirect=True)
def test_a_branch_is_rolled_back_by_hand(world: World, forks: Forks) -> None:
    """After the decision that is reported, each time anew, and never repaired or forgotten."""
    order = world.order()
    bank, stock = world.places
    assert forks.killed(transfer, *order, at="decided")
    (gid,) = stock.prepared()
    stock.end_by_hand(gid)

    id = gid.partition("/")[0]
    for _ in range(3):
        found = world.recover()
        assert [(id, "stock")] == [(one.id, one.resource) for one in found.heuristics]
        assert not found.clean
        assert (True, False) == (bank.has(order[2]), stock.has(order[2]))
        assert 1 == bank.rows("uow_outcome", id) == bank.rows("uow_heuristic", id)
    for table in ("uow_outcome", "uow_heuristic"):
        bank.execute(f"DELETE FROM {table} WHERE id = '{id}'")


@pytest.mark.parametrize("world", ["postgresql+postgresql", "postgresql+mariadb"], indirect=True)
def test_a_branch_is_rolled_back_by_hand_before_the_decision(world: World, forks: Forks) -> None:
    """Nothing was decided, so nothing is wrong."""
    order = world.order()
    stock = world.place("stock")
    assert forks.killed(transfer, *order, at="deciding")
    (gid,) = stock.prepared()
    stock.end_by_hand(gid)

    assert not world.settled(order[2])


@pytest.mark.parametrize("world", ["postgresql+postgresql", "postgresql+mariadb"], indirect=True)
def test_a_branch_is_committed_by_hand(world: World, forks: Forks) -> None:
    """As was decided: that is what recovery would have done."""
    order = world.order()
    stock = world.place("stock")
    assert forks.killed(transfer, *order, at="decided")
    (gid,) = stock.prepared()
    stock.end_by_hand(gid, commit=True)

    assert world.settled(order[2])


@pytest.mark.parametrize("name", ["bank", "stock"])
@pytest.mark.parametrize("world", ["postgresql+mariadb"], indirect=True)
def test_what_others_prepared_stays(world: World, forks: Forks, name: str) -> None:
    """Names like ours, of another domain, and without a meaning."""
    place, order = world.place(name), world.order()
    foreign = [f"foreign-{DOMAIN}", f"u1.x{DOMAIN}.bank.n1.{'0' * 26}", f"u1.{DOMAIN}.bank.n1.nothing"]
    gids = [f"{gid}/{name}" if name == "bank" else gid for gid in foreign]
    for number, gid in enumerate(gids):
        write = f"INSERT INTO crash_payment VALUES ('foreign {number}', 0)"
        with place.engine.connect() as connection:
            if name == "bank":
                connection.exec_driver_sql(write)
                connection.exec_driver_sql(f"PREPARE TRANSACTION '{gid}'")
            else:
                for statement in (f"XA START '{gid}','{name}'", write, f"XA END '{gid}','{name}'"):
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql(f"XA PREPARE '{gid}','{name}'")
                connection.invalidate()
    try:
        assert forks.killed(transfer, *order, at="decided")
        assert world.recover().clean
        assert world.kept(order[2])
        assert sorted(gids) == sorted(set(gids) & set(place.prepared(of="")))
    finally:
        for gid in gids:
            place.end_by_hand(gid)
