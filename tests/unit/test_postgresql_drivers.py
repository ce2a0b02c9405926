"""
That PostgreSQL's drivers, synchronous and asynchronous, keep the same promises: above all, a commit that cannot lie.
"""

import asyncio
import inspect
import socket
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

from uow import State
from uow.errors import (
    CheckViolation,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    ConnectionUnavailable,
    DatabaseError,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    ScopeBroken,
    UniqueViolation,
)
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank

Drive = Callable[..., Any]

ONE = {"pool_size": 1, "max_overflow": 0}
AT_COMMIT = """
    CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION at_commit()
"""


EACH_WAY = pytest.mark.parametrize(
    ("drive", "way"),
    [
        ("psycopg", "fresh"),
        ("psycopg async", "fresh"),
        ("asyncpg", "fresh"),
        ("asyncpg", "pooled before"),
        ("asyncpg", "class of the user's"),
    ],
    indirect=["drive"],
)
"""Each driver, with the ways in which a connection may come to it where they make a difference."""
ASYNCPG = pytest.mark.parametrize("drive", ["asyncpg"], indirect=True)


class OwnConnection(asyncpg.Connection):  # type: ignore[misc]
    """A class of connections that a user brings along."""


@pytest.fixture(autouse=True)
def harness(postgresql_url: URL) -> Iterator[SqlAlchemyHarness]:
    """The bank's tables, and somebody else to look at them."""
    harness = SqlAlchemyHarness(create_engine(postgresql_url, connect_args={"options": "-c lock_timeout=20s"}))
    yield harness
    with harness.engine.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION IF EXISTS at_commit CASCADE")
    harness.close()


def run(drive: Drive, way: str, work: Callable[[Engine], object]) -> None:
    """Do *work* on a connection that came that way."""

    def start(engine: Engine) -> None:
        if way == "pooled before":
            engine.connect().close()
        work(engine)

    drive(start, **({"connect_args": {"connection_class": OwnConnection}} if "class" in way else {}))


def past(bank: SqlBank, statement: str) -> None:
    """Send a statement on the driver's own connection, as somebody does who goes past everything."""
    own: Any = bank.session.connection().connection.driver_connection
    answer = own.execute(statement)
    if inspect.isawaitable(answer):
        await_only(answer)


def at_commit(harness: SqlAlchemyHarness, statements: str) -> None:
    """Let the database do something at the COMMIT of whoever adds an account."""
    with harness.engine.begin() as connection:
        connection.exec_driver_sql(AT_COMMIT.format(statements))


def checked_out(engine: Engine) -> int:
    number: int = engine.pool.checkedout()  # type: ignore[attr-defined]
    return number


# ------------------------------------------------------------------------------------------- a commit that cannot lie


@EACH_WAY
def test_a_transaction_that_failed_behind_the_session(drive: Drive, way: str, harness: SqlAlchemyHarness) -> None:
    """COMMIT of a failed transaction answers ROLLBACK without an error; the unit does not take it for a success."""

    def work(engine: Engine) -> None:
        bank = SqlBank(engine)
        with pytest.raises(DatabaseError) as caught, bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            with pytest.raises(Exception, match="division by zero"):
                past(bank, "SELECT 1/0")
            bank.commit()
        assert (DatabaseError, "25P02") == (type(caught.value), caught.value.code)
        assert State.ROLLED_BACK is bank.state
        assert 0 == checked_out(engine)
        with bank:
            bank.accounts.add(Account("B-2", "Bob"))
            bank.commit()

    run(drive, way, work)

    assert ["B-2"] == harness.numbers()


def test_a_transaction_that_failed_behind_a_nested_scope(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """A nested scope whose work the database gave up does not end as if nothing had happened."""

    def work(engine: Engine) -> None:
        with pytest.raises(DatabaseError, match="25P02"), SqlBank(engine) as bank, bank.nested() as nested:
            nested.accounts.add(Account("A-1", "Ann"))
            nested.flush()
            with pytest.raises(Exception, match="division by zero"):
                past(bank, "SELECT 1/0")
        assert 0 == checked_out(engine)

    drive(work)

    assert [] == harness.numbers()


@pytest.mark.parametrize(("statement", "kept"), [("COMMIT", ["A-1"]), ("ROLLBACK", [])])
@pytest.mark.parametrize("way", ["session", "driver"])
def test_a_transaction_that_was_ended_behind_the_unit(
    drive: Drive, harness: SqlAlchemyHarness, way: str, statement: str, kept: list[str]
) -> None:
    """commit() of a unit whose transaction somebody else ended says that it cannot answer for it."""

    def work(engine: Engine) -> None:
        bank = SqlBank(engine)
        with pytest.raises(CommitOutcomeUnknown, match="no transaction any more"), bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            bank.session.execute(text(statement)) if way == "session" else past(bank, statement)
            bank.commit()
        assert 0 == checked_out(engine)
        with bank:
            bank.accounts.add(Account("B-2", "Bob"))
            bank.commit()

    drive(work, **ONE)

    assert [*kept, "B-2"] == harness.numbers()


def test_a_unit_that_only_read_and_was_ended(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """Nothing is lost of a unit that wrote nothing, so its commit() has nothing to say; the connection serves on."""

    def work(engine: Engine) -> None:
        bank = SqlBank(engine)
        with bank:
            assert 0 == bank.accounts.count()
            past(bank, "COMMIT")
            bank.commit()
        with bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

    drive(work, **ONE)

    assert ["A-1"] == harness.numbers()


def test_a_connection_lost_before_a_statement(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """ConnectionLost dooms the unit; the work may be done again."""

    def work(engine: Engine) -> None:
        bank = SqlBank(engine)
        with pytest.raises(ConnectionLost) as caught, bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            kill(harness, bank)
            bank.accounts.count()
        assert caught.value.transient
        assert State.ROLLED_BACK is bank.state
        assert 0 == checked_out(engine)

    drive(work)

    assert [] == harness.numbers()


def kill(harness: SqlAlchemyHarness, bank: SqlBank) -> None:
    """End the server's session of *bank*."""
    number = bank.session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with harness.engine.connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": number})


@pytest.mark.parametrize("moment", ["before", "during"])
@EACH_WAY
def test_a_connection_lost_at_commit(drive: Drive, way: str, harness: SqlAlchemyHarness, moment: str) -> None:
    """Nobody can tell what became of a unit whose connection is lost while COMMIT is on its way."""
    if moment == "during":
        at_commit(harness, "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60);")

    def work(engine: Engine) -> None:
        bank = SqlBank(engine)
        with pytest.raises(CommitOutcomeUnknown) as caught, bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            if moment == "before":
                kill(harness, bank)
            bank.commit()
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert State.IN_DOUBT is bank.state
        assert 0 == checked_out(engine)
        with bank:
            assert 0 == bank.accounts.count()

    run(drive, way, work)


@EACH_WAY
def test_a_constraint_that_fails_at_commit(drive: Drive, way: str, harness: SqlAlchemyHarness) -> None:
    """What a deferred constraint refuses is told by commit(), as what it is, and nothing is kept."""
    at_commit(harness, "RAISE unique_violation USING CONSTRAINT = 'late', TABLE = 'accounts', MESSAGE = 'too late';")

    def work(engine: Engine) -> None:
        bank = SqlBank(engine)
        with pytest.raises(UniqueViolation) as caught, bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()
        error = caught.value
        assert ("23505", "late", "accounts", "too late") == (error.code, error.constraint, error.table, error.detail)
        assert State.ROLLED_BACK is bank.state
        assert 0 == checked_out(engine)
        with bank:
            assert 0 == bank.accounts.count()

    run(drive, way, work)


# ------------------------------------------------------------------------------------------------- what errors mean

TOLD: list[tuple[str, type[DatabaseError], tuple[object, ...]]] = [
    (
        "INSERT INTO accounts VALUES ('A-1', 'Ann', 0)",
        UniqueViolation,
        ("23505", "accounts_pkey", "accounts", ("number",)),
    ),
    ("INSERT INTO accounts VALUES ('B-2', NULL, 0)", NotNullViolation, ("23502", None, "accounts", ("owner",))),
    ("UPDATE accounts SET balance = -9999", CheckViolation, ("23514", "balance_floor", "accounts", ())),
    (
        "INSERT INTO transfers (source, amount) VALUES ('Z', 1)",
        ForeignKeyViolation,
        ("23503", "transfer_source", "transfers", ("source",)),
    ),
    ("SELEKT 1", DatabaseError, ("42601",)),
    ("SELECT 1/0", DatabaseError, ("22012",)),
]


@pytest.mark.parametrize(("statement", "kind", "expected"), TOLD)
def test_errors_mean_the_same_with_every_driver(
    drive: Drive, statement: str, kind: type[DatabaseError], expected: tuple[object, ...]
) -> None:
    """Class, code, constraint, table, columns and words are those of the server, whichever driver brings them."""
    details = set[str]()

    def work(engine: Engine) -> None:
        with pytest.raises(kind) as caught, SqlBank(engine) as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            bank.session.execute(text(statement))
        error = caught.value
        facts: tuple[object, ...] = (error.code,)
        if isinstance(error, IntegrityViolation):
            facts += (error.constraint, error.table, error.columns)
        assert (kind, expected) == (type(error), facts)
        assert "<class" not in error.detail
        details.add(error.detail)

    drive(work)

    assert details <= {
        'duplicate key value violates unique constraint "accounts_pkey". Key (number)=(A-1) already exists.',
        'null value in column "owner" of relation "accounts" violates not-null constraint. '
        "Failing row contains (B-2, null, 0, null).",
        'new row for relation "accounts" violates check constraint "balance_floor". '
        "Failing row contains (A-1, Ann, -9999, null).",
        'insert or update on table "transfers" violates foreign key constraint "transfer_source". '
        'Key (source)=(Z) is not present in table "accounts".',
        'syntax error at or near "SELEKT"',
        "division by zero",
    }


def test_a_server_that_does_not_answer(drive: Any) -> None:
    """No connection is ConnectionUnavailable, with the server's code where there is one."""

    def unavailable(engine: Engine) -> ConnectionUnavailable:
        with pytest.raises(ConnectionUnavailable) as caught, SqlBank(engine) as bank:
            bank.accounts.count()
        return caught.value

    assert drive(unavailable, connect_args={"user": "nobody_of_that_name"}).code in ("28000", None)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        host, port = taken.getsockname()
        error = drive(unavailable, connect_args={"host": host, "port": port})

    assert "refused" in error.detail or "Connect call failed" in error.detail


def test_a_driver_that_cannot_serve() -> None:
    """A driver that shows too little is refused at once, with the ones that do."""
    engine = create_engine("postgresql+pg8000://", module=psycopg)
    with pytest.raises(ConfigurationError) as caught:
        SqlBank(engine)

    assert (
        "Wrong configuration: the answer to COMMIT cannot be looked at with the driver pg8000. "
        "Use postgresql+psycopg or postgresql+asyncpg."
    ) == str(caught.value)


# ----------------------------------------------------------------------------------------- asyncpg's own time limit


LIMITED = {"connect_args": {"command_timeout": 0.2}}


@ASYNCPG
def test_a_statement_that_asyncpg_gave_up(drive: Drive) -> None:
    """What asyncpg raises past SQLAlchemy's errors breaks the scope like any other."""

    def work(engine: Engine) -> None:
        with pytest.raises(ScopeBroken) as caught, SqlBank(engine) as bank:
            with pytest.raises(DatabaseError) as first:
                bank.session.execute(text("SELECT pg_sleep(60)"))
            bank.accounts.count()
        assert first.value is caught.value.__cause__
        assert isinstance(first.value.__cause__, TimeoutError)
        assert 0 == checked_out(engine)

    drive(work, **LIMITED)


@ASYNCPG
def test_a_commit_that_asyncpg_gave_up(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """Nobody can tell what became of a COMMIT whose answer was not waited for."""
    at_commit(harness, "PERFORM pg_sleep(60);")

    def work(engine: Engine) -> None:
        bank = SqlBank(engine)
        with pytest.raises(CommitOutcomeUnknown), bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()
        assert State.IN_DOUBT is bank.state
        assert 0 == checked_out(engine)

    drive(work, **LIMITED)


# ------------------------------------------------------------------------------------------------------ cancellation

ASYNCHRONOUS = pytest.mark.parametrize("driver", ["psycopg", "psycopg without pipeline", "asyncpg"])


def pool_of_one(url: URL, driver: str) -> AsyncEngine:
    name, _, without = driver.partition(" ")
    options = {"uow_pipeline": not without}
    return create_async_engine(url.set(drivername=f"postgresql+{name}"), execution_options=options, **ONE)


class CancelledAt:
    """Awaits a coroutine, and cancels the task around it when it waits for the time numbered *stop*."""

    def __init__(self, work: Coroutine[Any, Any, object], stop: int) -> None:
        self.work = work
        self.stop = stop
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, object]:
        throw: BaseException | None = None
        while True:
            try:
                waited = self.work.throw(throw) if throw else self.work.send(None)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self.stop:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            throw = None
            try:
                yield waited
            except BaseException as error:
                throw = error


async def quiet(harness: SqlAlchemyHarness) -> None:
    """Wait until the server has nothing open for others than the harness."""
    busy = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"""
    with harness.engine.connect() as other:
        async with asyncio.timeout(30):
            while other.execute(text(busy)).scalar_one():
                other.rollback()  # it would see the same again
                await asyncio.sleep(0)


@ASYNCHRONOUS
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_task_cancelled_wherever_it_waits(
    postgresql_url: URL, harness: SqlAlchemyHarness, driver: str, end: str, polite_psycopg: None
) -> None:
    """Wherever a unit is cancelled: nothing is left open, and all is durable that its state says, or nothing is."""

    def work(bank: SqlBank) -> None:
        with bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with bank.nested() as nested:
                nested.accounts.add(Account("B-2", "Bob"))
            bank.accounts.count()
            getattr(bank, end)()

    def look(engine: Engine) -> str:
        with engine.connect() as connection:
            found: str = connection.exec_driver_sql("SHOW transaction_isolation").scalar_one()
            return found

    async def cancelled(engine: Engine, stop: int) -> bool:
        bank = SqlBank(engine, isolation="SERIALIZABLE", statement_timeout=20)
        steps = CancelledAt(greenlet_spawn(work, bank), stop)

        async def task() -> None:
            await steps

        with suppress(asyncio.CancelledError):
            await asyncio.create_task(task())
        assert 0 == checked_out(engine), stop
        await quiet(harness)
        legal = {State.COMMITTED: [["A-1", "B-2"]], State.IN_DOUBT: [["A-1", "B-2"], []]}
        assert harness.numbers() in legal.get(bank.state, [[]]), (stop, bank.state)
        assert "read committed" == await greenlet_spawn(look, engine)
        with harness.engine.begin() as other:
            other.exec_driver_sql("TRUNCATE accounts CASCADE")
        return steps.waits >= stop

    async def main() -> int:
        engine = pool_of_one(postgresql_url, driver)
        await greenlet_spawn(look, engine.sync_engine)
        stop = 1
        while await cancelled(engine.sync_engine, stop):
            stop += 1
        await engine.dispose()
        return stop

    assert asyncio.run(main()) > 6


@ASYNCHRONOUS
@pytest.mark.parametrize("moment", ["statement", "commit"])
def test_a_task_cancelled_while_the_server_works(
    postgresql_url: URL, harness: SqlAlchemyHarness, driver: str, moment: str
) -> None:
    """A connection whose answer was not waited for is thrown away, and a COMMIT on its way leaves the unit in doubt."""
    at_commit(harness, "PERFORM FROM documents FOR UPDATE;")
    with harness.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO documents VALUES (1, 'gate', 1)")
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    def work(bank: SqlBank) -> None:
        with bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            if moment == "statement":
                bank.session.execute(text("SELECT FROM documents FOR UPDATE"))
            bank.commit()

    def look(engine: Engine) -> int:
        with engine.connect() as connection:
            number: int = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            return number

    async def main() -> None:
        engine = pool_of_one(postgresql_url, driver)
        bank = SqlBank(engine.sync_engine)
        with harness.engine.connect() as holder, harness.engine.connect() as other:
            holder.exec_driver_sql("SELECT FROM documents FOR UPDATE")
            task = asyncio.create_task(greenlet_spawn(work, bank))
            while not (pids := other.exec_driver_sql(waiting).scalars().all()):
                other.rollback()  # it would see the same again
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert {"statement": State.ROLLED_BACK, "commit": State.IN_DOUBT}[moment] is bank.state
        assert 0 == checked_out(engine.sync_engine)
        await quiet(harness)
        assert pids != [await greenlet_spawn(look, engine.sync_engine)]
        await engine.dispose()

    asyncio.run(main())

    assert [] == harness.numbers()
