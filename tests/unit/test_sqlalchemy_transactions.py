"""
What only a real database does to a unit: it deadlocks, ends transactions by itself, is interrupted.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, text

from uow import Lock, State
from uow.errors import (
    CommitOutcomeUnknown,
    DatabaseError,
    Deadlock,
    LockTimeout,
    NotNullViolation,
    ScopeBroken,
    SerializationFailure,
    UnitOfWorkError,
    UnitOfWorkRolledBack,
    WrongTask,
)
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank
from uow.testing.contract._interrupts import program, remove_all, works

LIMITS = {
    "sqlite": {},
    "postgresql": {"options": "-c lock_timeout=10s"},
    "mysql": {"init_command": "SET lock_wait_timeout = 10, innodb_lock_wait_timeout = 10"},
}


def opened(url: URL, **options: Any) -> Iterator[SqlAlchemyHarness]:
    """Make a harness whose locks do not wait for ever."""
    harness = SqlAlchemyHarness(create_engine(url, connect_args=LIMITS[url.get_backend_name()], **options))
    yield harness
    harness.close()


@pytest.fixture
def harness(database_url: URL) -> Iterator[SqlAlchemyHarness]:
    yield from opened(database_url)


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[SqlAlchemyHarness]:
    yield from opened(postgresql_url)


@pytest.fixture
def mariadb(mariadb_url: URL) -> Iterator[SqlAlchemyHarness]:
    yield from opened(mariadb_url)


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> SqlAlchemyHarness:
    """Each database that is a server."""
    harness: SqlAlchemyHarness = request.getfixturevalue(request.param)
    return harness


def seed(harness: SqlAlchemyHarness) -> None:
    with harness.bank() as bank:
        bank.accounts.add_all([Account("A-1", "Ann", 0), Account("B-2", "Bob", 0)])
        bank.commit()


def balances(harness: SqlAlchemyHarness) -> list[int]:
    with harness.bank() as bank:
        return [account.balance for account in bank.accounts.list(order_by=lambda a: a.number)]


def raw(bank: SqlBank) -> Any:
    """Return the driver's own connection, as somebody does who goes past everything."""
    return bank.session.connection().connection.dbapi_connection


# ------------------------------------------------------------------------------------------------- errors that doom


@pytest.mark.parametrize("lock", [Lock.UPDATE, None], ids=["at a lock", "in a flush"])
@pytest.mark.parametrize("swallow", [False, True])
def test_a_deadlock_dooms_the_whole_unit(server: SqlAlchemyHarness, lock: Lock | None, swallow: bool) -> None:
    """Of two units in a deadlock one fails with Deadlock as a whole, caught in a nested scope or not."""
    seed(server)
    meet = threading.Barrier(2, timeout=30)

    def move(first: str, second: str, amount: int) -> tuple[UnitOfWorkError | None, State]:
        try:
            with server.bank() as bank:
                bank.accounts.get(first).balance += amount
                bank.flush()
                meet.wait()
                with suppress(*([Deadlock] if swallow else [])), bank.nested() as nested:
                    nested.accounts.get(second, lock=lock).balance += amount
                bank.commit()
        except UnitOfWorkError as error:
            return error, bank.state
        return None, bank.state

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(move, "A-1", "B-2", 1), pool.submit(move, "B-2", "A-1", 10)]
        outcomes = [result.result() for result in results]

    won, lost = sorted(outcomes, key=lambda outcome: outcome[0] is not None)

    assert (None, State.COMMITTED) == won
    assert isinstance(lost[0], UnitOfWorkRolledBack if swallow else Deadlock)
    assert lost[0].transient
    assert State.ROLLED_BACK is lost[1]

    winner = 1 if outcomes[0] is won else 10

    assert [winner] * 2 == balances(server)
    assert server.idle()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_serialization_failure_dooms_the_whole_unit(postgresql_url: URL, level: str) -> None:
    """A serialization failure cannot be cured by a rollback to a savepoint, so nobody may go on after it."""
    for harness in opened(postgresql_url, isolation_level=level):
        seed(harness)
        with pytest.raises(UnitOfWorkRolledBack) as caught:
            with harness.bank() as bank:
                assert 2 == bank.accounts.count()
                with harness.bank() as other:
                    other.accounts.get("A-1").balance = 5
                    other.commit()
                with suppress(SerializationFailure), bank.nested() as nested:
                    nested.accounts.get("A-1").balance += 1
                    nested.flush()
                bank.commit()

        assert isinstance(caught.value.__cause__, SerializationFailure)
        assert caught.value.transient
        assert [5, 0] == balances(harness)
        assert harness.idle()


def test_a_lock_that_is_not_free_costs_a_nested_scope_alone(server: SqlAlchemyHarness) -> None:
    """LockTimeout is transient, breaks its scope, and dooms nothing."""
    seed(server)
    with server.bank() as holder, server.bank() as bank:
        holder.accounts.get("A-1", lock=Lock.UPDATE)
        with pytest.raises(LockTimeout) as caught, bank.nested() as nested:
            nested.accounts.get("A-1", lock=Lock.UPDATE_NOWAIT)
        bank.accounts.get("B-2").balance = 1
        bank.commit()

    assert caught.value.transient
    assert [0, 1] == balances(server)


# ------------------------------------------------------------------------------------------- a commit that cannot lie


def test_an_error_past_the_session_is_found_before_the_commit(postgresql: SqlAlchemyHarness) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK; the unit looks, and raises."""
    with pytest.raises(DatabaseError, match="25P02"):
        with postgresql.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            cursor = raw(bank).cursor()
            with pytest.raises(Exception, match="division by zero"):
                cursor.execute("SELECT 1/0")
            bank.commit()

    assert [] == postgresql.numbers()
    assert postgresql.idle()


def test_an_error_past_the_session_is_found_before_a_release(postgresql: SqlAlchemyHarness) -> None:
    """A nested scope does not end as if nothing had happened either; the outer one goes on."""
    with postgresql.bank() as bank:
        bank.accounts.add(Account("A-1", "Ann"))
        with pytest.raises(DatabaseError, match="25P02"):
            with bank.nested() as nested:
                nested.accounts.add(Account("B-2", "Bob"))
                nested.flush()
                with pytest.raises(Exception, match="division by zero"):
                    raw(bank).cursor().execute("SELECT 1/0")
        bank.commit()

    assert ["A-1"] == postgresql.numbers()


@pytest.mark.parametrize(("statement", "kept"), [("COMMIT", ["A-1"]), ("ROLLBACK", [])])
def test_a_transaction_that_was_ended_as_text_is_found(
    harness: SqlAlchemyHarness, statement: str, kept: list[str]
) -> None:
    """Somebody who ends the transaction with a statement of his own is told by commit(), which cannot answer for it."""
    with pytest.raises((CommitOutcomeUnknown, DatabaseError, UnitOfWorkRolledBack)):
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            bank.session.execute(text(statement))
            bank.commit()

    assert kept == harness.numbers()
    assert harness.idle()
    assert works(harness)


def test_an_implicit_commit_is_found(mariadb: SqlAlchemyHarness) -> None:
    """MariaDB commits before CREATE TABLE; the unit's commit() says that it did not do that."""
    with pytest.raises(CommitOutcomeUnknown, match="CREATE TABLE"):
        with mariadb.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            bank.session.execute(text("CREATE OR REPLACE TABLE implied (id int)"))
            bank.commit()

    with mariadb.engine.begin() as connection:
        connection.execute(text("DROP TABLE implied"))

    assert mariadb.idle()


def test_an_implicit_commit_in_a_nested_scope_is_found(mariadb: SqlAlchemyHarness) -> None:
    """A savepoint that an implicit commit took away cannot be released in silence."""
    with pytest.raises((CommitOutcomeUnknown, DatabaseError, ScopeBroken, UnitOfWorkRolledBack)):
        with mariadb.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with bank.nested() as nested:
                nested.accounts.add(Account("B-2", "Bob"))
                nested.flush()
                nested.session.execute(text("CREATE OR REPLACE TABLE implied (id int)"))
                nested.accounts.add(Account("C-3", "Cleo"))
            bank.commit()

    with mariadb.engine.begin() as connection:
        connection.execute(text("DROP TABLE implied"))

    assert mariadb.idle()


# ----------------------------------------------------------------------------------------- interrupts, step by step

STEPS = (
    "before_cursor_execute",
    "after_cursor_execute",
    "begin",
    "commit",
    "rollback",
    "savepoint",
    "rollback_savepoint",
    "release_savepoint",
    "checkout",
    "reset",
)
"""What an engine tells of, but for "checkin": there the unit has let go, and the pool is at work on its own."""


class Interruption:
    """Raises KeyboardInterrupt at the step numbered *stop* of what an engine does, once."""

    def __init__(self, engine: Engine) -> None:
        self.steps: list[str] = []
        self.stop: int | None = None
        for name in STEPS:
            event.listen(engine, name, self._listener(name))

    def _listener(self, name: str) -> Callable[..., None]:
        def step(*args: Any) -> None:
            self.steps.append(f"{name} {args[2] if 'cursor' in name else ''}")
            if self.stop is not None and len(self.steps) > self.stop:
                self.stop = None
                raise KeyboardInterrupt

        return step


@pytest.mark.parametrize("forgive", [NotNullViolation, KeyboardInterrupt])
def test_an_interrupt_at_any_step_loses_nothing_silently(
    harness: SqlAlchemyHarness, forgive: type[BaseException]
) -> None:
    """
    Wherever between two statements an interrupt arrives: all is durable that the unit's state says, or nothing is.

    If it is caught around a nested scope and the unit commits, what raised is lost and the rest is kept.
    """
    interruption = Interruption(harness.engine)
    program(harness, [], lambda verb: None)
    steps = len(interruption.steps)
    remove_all(harness)
    found: list[str] = []

    assert steps > 50

    for stop in range(steps):
        kept: list[str] = []
        interruption.steps = []
        interruption.stop = stop
        verbs: list[str] = []
        raised = ""
        try:
            program(harness, kept, lambda verb, verbs=verbs: verbs.append(verb.name), forgive=forgive)  # type: ignore[misc]
        except (KeyboardInterrupt, Exception) as error:
            raised = repr(error)
        interruption.stop = None
        step = interruption.steps[stop] if stop < len(interruption.steps) else "after"
        gc.collect()
        numbers = harness.numbers()
        ended = verbs[-1]
        legal = {"DURABLE": [sorted(kept)], "DOUBT": [sorted(kept), []]}.get(ended, [[]])
        if not raised and forgive is NotNullViolation:
            found.append(f"{stop} {step}: nothing raised")
        if numbers not in legal:
            found.append(f"{stop} {step}: {numbers} instead of {legal} after {ended}, {raised}")
        if not harness.idle():
            found.append(f"{stop} {step}: not idle, {raised}")
            harness.engine.dispose()
        if not works(harness):
            found.append(f"{stop} {step}: does not work on")
        remove_all(harness)

    assert [] == found


@pytest.mark.parametrize("moment", ["commit", "rollback"])
def test_with_handoff_nobody_works_while_the_unit_ends(harness: SqlAlchemyHarness, moment: str) -> None:
    """An operation from another thread while COMMIT or ROLLBACK is under way is WrongTask: its work would be lost."""
    met: list[type[BaseException]] = []

    def on(connection: Any) -> None:
        def work() -> None:
            try:
                kept.add(Account("B-2", "Bob"))
            except Exception as error:
                met.append(type(error))

        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()

    with harness.bank(handoff=True) as bank:
        kept = bank.accounts
        kept.add(Account("A-1", "Ann"))
        bank.flush()
        event.listen(harness.engine, moment, on)
        getattr(bank, moment)()
        event.remove(harness.engine, moment, on)

    assert {WrongTask} == set(met)
    assert harness.idle()
