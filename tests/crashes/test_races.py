"""
Recovery beside coordinators that are alive, and beside other recoveries.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from uow.adapters.sqlalchemy._outcomes import ledger_of
from uow.testing import ChildProcess, pause_at

from .transfers import Forks, Urls, World, told, transfer, transfer_within

FENCED = ("prepared:{}", "decide", "deciding")
"""Where the branch is prepared and nothing decided: a recovery that does not wait gives it up."""
UNFENCED = ("prepare:{}",)
DECIDED = ("decided", "finish:{}", "finished:{}", "forgotten", "done")
PAIRS = ("postgresql+postgresql", "postgresql+mariadb", "sqlite+postgresql")


def met_by_recovery(world: World, order: tuple[Urls, str, str], at: str) -> object:
    """Let recovery come while the coordinator is at that point; return what its caller is told."""
    with pause_at(at) as pause, ThreadPoolExecutor(1) as pool:
        coordinator = pool.submit(told, lambda: transfer(*order))
        pause.wait_reached()
        world.recover()
        pause.release()
        return coordinator.result(60)


@pytest.mark.parametrize(
    ("at", "kept"),
    [(at.format("stock"), at not in FENCED) for at in (*UNFENCED, *FENCED, *DECIDED)],
)
@pytest.mark.parametrize("world", PAIRS[:2], indirect=True)
def test_recovery_meets_a_coordinator(world: World, at: str, kept: bool) -> None:
    """The coordinator tells its caller what recovery has made of its work."""
    order = world.order()
    assert kept == met_by_recovery(world, order, at)
    assert kept == world.settled(order[2])


@pytest.mark.parametrize("at", [at.format("stock") for at in (*UNFENCED, *FENCED, *DECIDED)])
@pytest.mark.parametrize("world", PAIRS[2:], indirect=True)
def test_recovery_cannot_disturb_a_coordinator_on_sqlite(world: World, at: str) -> None:
    """It has written there, so nobody else can: recovery leaves it alone, and the work is committed."""
    order = world.order()
    assert met_by_recovery(world, order, at)
    assert world.settled(order[2])


@pytest.mark.parametrize("world", ["postgresql+postgresql+mariadb"], indirect=True)
@pytest.mark.parametrize(
    ("at", "then"),
    [
        ("deciding", "recover:listed"),
        ("deciding", "recover:settled"),
        ("deciding", "recover:finished:stock"),
        ("deciding", "recover:finished:till"),
        ("decided", "recover:listed"),
        ("decided", "recover:settled"),
        ("decided", "recover:finished:stock"),
        ("decided", "recover:finished:till"),
        ("decided", "recover:completed"),
    ],
)
def test_recovery_meets_another_one(world: World, forks: Forks, at: str, then: str) -> None:
    """One that is held at each step goes on after another one has done all of it, and neither sees harm."""
    order = world.order()
    assert forks.killed(transfer, *order, at=at)
    with pause_at(then) as pause, ThreadPoolExecutor(1) as pool:
        held = pool.submit(world.recover)
        pause.wait_reached()
        between = world.recover()
        pause.release()

        assert between.clean
        assert held.result(60).clean
    assert (at == "decided") == world.settled(order[2])


@pytest.mark.parametrize("world", ["postgresql+postgresql+mariadb"], indirect=True)
@pytest.mark.parametrize("at", ["deciding", "decided"])
def test_recoveries_run_at_once(world: World, forks: Forks, at: str) -> None:
    """Four of them, of several transfers."""
    orders = [world.order() for _ in range(3)]
    for account, order in enumerate(orders):
        assert forks.killed(transfer, *order, account, at=at)
    with ThreadPoolExecutor(4) as pool:
        found = [future.result(60) for future in [pool.submit(world.recover) for _ in range(4)]]

    assert not [heuristic for one in found for heuristic in one.heuristics]
    assert [at == "decided"] * 3 == [world.settled(order[2]) for order in orders]


@pytest.mark.parametrize("world", PAIRS, indirect=True)
@pytest.mark.parametrize("at", ["prepared:stock", "decide"])
def test_a_coordinator_sleeps_past_its_deadline(world: World, at: str) -> None:
    """When it wakes up it aborts, although nobody remembers any more that recovery has given it up."""
    order, last = world.order(), world.places[0]
    with ChildProcess(transfer_within, 0.5, *order, at=at) as child:
        assert child.wait_reached()
        os.kill(child.pid, signal.SIGSTOP)
        child.release()
        with last.engine.connect() as connection:
            clock = partial(ledger_of(connection).clock, connection)
            past = clock() + 0.5  # the transfer was given no more, and earlier
            while clock() <= past:
                connection.rollback()
        if last.engine.dialect.name != "sqlite":  # where nobody else can write as long as it has the lock
            assert world.recover().clean
            last.execute(
                f"UPDATE uow_outcome SET expires_at = now() - interval '8 days' WHERE id LIKE 'u1.{order[1]}.%'"
            )
            assert world.recover().purged
            assert 0 == last.rows("uow_outcome")
        os.kill(child.pid, signal.SIGCONT)
        with pytest.raises(RuntimeError, match="it took so long to prepare that recovery may have aborted it"):
            child.wait()

    assert not world.settled(order[2])
