"""
Corners of groups of units, and of what they share with single ones.
"""

import asyncio
import socket
import threading
from typing import Any

import pytest
from sqlalchemy import URL, create_engine

from uow import AsyncRepository, AsyncUnitOfWork, Repository, State, UnitOfWork, _group, distributed, entity
from uow._branches import domain_of, new_id
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import uow_metadata
from uow.adapters.sqlalchemy._backend import Branch
from uow.adapters.sqlalchemy._backends import backend_of
from uow.errors import ConfigurationError, DatabaseError, SerializationFailure, WrongTask
from uow.testing import sandbox
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlBank, metadata


@entity(key="name")
class Thing:
    name: str


class Things(UnitOfWork):
    things: Repository[Thing]


class FakeThings(FakeUnitOfWork, Things): ...


class AsyncThings(AsyncUnitOfWork):
    sync: Things
    things: AsyncRepository[Thing]


class AsyncFakeThings(AsyncFakeUnitOfWork, AsyncThings): ...


def names(store: Store) -> list[str]:
    with FakeThings(store) as unit:
        return [thing.name for thing in unit.things.list()]


def test_the_first_member_cannot_be_released() -> None:
    """Nothing was released yet, so the nested group is lost and the group around it goes on."""
    stores = Store(), Store()
    both = distributed(FakeThings(stores[0]), FakeThings(stores[1]))
    with both as (bank, stock):
        bank.things.add(Thing("a"))
        stores[0].fail_next("release", DatabaseError)
        with pytest.raises(DatabaseError, match="made to fail"), both.nested() as (inner_bank, inner_stock):
            inner_bank.things.add(Thing("b"))
            inner_stock.things.add(Thing("b"))
        stock.things.add(Thing("c"))
        both.commit()

    assert (["a"], ["c"]) == (names(stores[0]), names(stores[1]))


def test_an_interrupt_before_the_decision_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last agent is asked, which rules the decision out, and all is rolled back."""

    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    stores = Store(), Store()
    both = distributed(FakeThings(stores[0]), FakeThings(stores[1]))
    monkeypatch.setattr(_group, "decide", interrupt)
    with pytest.raises(KeyboardInterrupt), both as (bank, stock):
        bank.things.add(Thing("a"))
        stock.things.add(Thing("a"))
        both.commit()

    assert State.ROLLED_BACK is both.state
    assert ([], []) == (names(stores[0]), names(stores[1]))
    assert {} == stores[0].prepared == stores[1].prepared


def test_attempts_at_an_asynchronous_group() -> None:
    """Whole groups are done again, as units are."""
    stores = Store(), Store()
    stores[1].fail_next("commit", SerializationFailure)
    stores[0].fail_next("flush", SerializationFailure)

    async def work() -> None:
        both = distributed(AsyncFakeThings(stores[0]), AsyncFakeThings(stores[1]))
        async for attempt in both.attempts():
            async with attempt as (bank, stock):
                bank.things.add(Thing("a"))
                stock.things.add(Thing("a"))
                await both.commit()

    asyncio.run(work())

    assert (["a"], ["a"]) == (names(stores[0]), names(stores[1]))


def test_a_commit_while_another_thread_is_at_work() -> None:
    """A unit that may be handed over is used by one thread at a time, to its end."""
    begun, over = threading.Event(), threading.Event()
    with FakeThings(handoff=True) as unit:
        context: Any = unit._context

        def work() -> None:
            context.run("work", lambda: (begun.set(), over.wait(30)))

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait(30)
        with pytest.raises(WrongTask, match="another thread or task is using it"):
            unit.commit()
        over.set()
        thread.join()
        unit.commit()


def test_sqlite_prepares_nothing(sqlite_url: URL) -> None:
    """A group never asks it to; who does it all the same is refused."""
    engine = create_engine(sqlite_url)
    connection: Any = None
    with pytest.raises(ConfigurationError, match="sqlite cannot prepare a transaction"):
        backend_of(engine).prepare_branch(connection, Branch("id", "name"), "")
    engine.dispose()


@pytest.mark.parametrize("part", ["it's", "a b", "", "é", "a\n"])
def test_the_parts_of_a_branch_can_be_quoted(part: str) -> None:
    """They stand in statements as text, so nothing else is let in."""
    for parts in ((part, "name"), ("id", part)):
        with pytest.raises(ValueError, match="must match regex"):
            Branch(*parts)


@pytest.mark.parametrize("host", ["'; --", "é", "", "host-1"])
def test_the_id_of_a_transaction_can_be_quoted(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Whatever the machine is called, its name goes into the id with what is safe of it."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    id = new_id("shop", "bank")

    assert id == Branch(id, "bank").id
    assert domain_of(id) == "shop"


def test_a_sandbox_takes_part_in_no_group(sqlite_url: URL, postgresql_url: URL) -> None:
    """What is undone at its end cannot be prepared."""
    engines = create_engine(sqlite_url), create_engine(postgresql_url)
    for engine in engines:
        metadata.create_all(engine)
        uow_metadata.create_all(engine)
    with sandbox(engines[1]) as inside:
        both = distributed(SqlBank(engines[0]), SqlBank(inside, resource="inside"))
        with pytest.raises(ConfigurationError, match="no two-phase commit in a sandbox"), both as (_, bank):
            bank.accounts.count()
    for engine in engines:
        uow_metadata.drop_all(engine)
        engine.dispose()


def test_what_came_back_in_a_scope_that_was_released(sqlite_url: URL) -> None:
    """An entity that an inner scope removed and added again is as before when the scope around is undone."""
    engine = create_engine(sqlite_url)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with SqlBank(engine) as bank:
        bank.accounts.add(Account("A", "Ann", 1))
        bank.commit()
    with SqlBank(engine) as bank:
        account = bank.accounts.get("A")
        with bank.nested() as outer:
            with outer.nested() as inner:
                inner.accounts.remove(account)
                inner.flush()
                inner.accounts.add(account)
                account.balance = 2
            outer.rollback()

        assert 1 == account.balance
        assert account is bank.accounts.get("A")
        bank.rollback()
    metadata.drop_all(engine)
    engine.dispose()
