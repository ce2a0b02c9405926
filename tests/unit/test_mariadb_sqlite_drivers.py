"""
Units on the asynchronous drivers of MariaDB and SQLite, in SQLAlchemy's greenlet bridge, keep what the others promise.
"""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from uow import Lock, State
from uow.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    ConnectionUnavailable,
    DatabaseError,
    ForeignKeyViolation,
    IntegrityViolation,
    LockTimeout,
    ReadOnlyTransaction,
    ScopeBroken,
    StatementTimeout,
)
from uow.testing._model import Account, Transfer
from uow.testing._sqlalchemy import SqlBank, metadata

R = TypeVar("R")

DRIVERS = {"mariadb": "mysql+aiomysql", "sqlite": "sqlite+aiosqlite"}


@pytest.fixture(params=sorted(DRIVERS))
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine of another application on the same database, in which Ann has 10."""
    yield from started(
        make_url(f"sqlite:///{tmp_path / 'bank.db'}")
        if request.param == "sqlite"
        else request.getfixturevalue("mariadb_url")
    )


@pytest.fixture
def mariadb(mariadb_url: URL) -> Iterator[Engine]:
    """The same on MariaDB."""
    yield from started(mariadb_url)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    """The same on SQLite."""
    yield from started(make_url(f"sqlite:///{tmp_path / 'bank.db'}"))


def started(url: URL) -> Iterator[Engine]:
    limit = {"timeout": 0} if url.get_backend_name() == "sqlite" else {"init_command": "SET lock_wait_timeout = 20"}
    engine = create_engine(url, connect_args=limit)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with SqlBank(engine) as bank:
        bank.accounts.add(Account("A", "Ann", 10))
        bank.commit()
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


def bridged(plain: Engine | URL, work: Callable[[Engine], R], **options: Any) -> R:
    """Do *work* on the asynchronous driver, with one connection; no thread may be left."""
    url = plain if isinstance(plain, URL) else plain.url

    async def main() -> R:
        size = {} if url.database is None else {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
        driver = DRIVERS["sqlite" if url.get_backend_name() == "sqlite" else "mariadb"]
        engine = create_async_engine(url.set(drivername=driver), **size, **options)
        try:
            return await greenlet_spawn(work, engine.sync_engine)
        finally:
            await engine.dispose()

    threads = set(threading.enumerate())
    result = asyncio.run(main())
    gc.collect()

    assert threads >= set(threading.enumerate())

    return result


def balances(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {row.number: row.balance for row in connection.execute(text("SELECT number, balance FROM accounts"))}


def found(engine: Engine) -> tuple[object, ...]:
    """What the next user of the connection finds."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        if engine.dialect.name == "sqlite":
            pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("query_only", "busy_timeout")]
            return driver.isolation_level, getattr(driver._conn, "autocommit", None), driver.in_transaction, *pragmas
        row = connection.exec_driver_sql(
            "SELECT @@tx_isolation, @@tx_read_only, @@max_statement_time, @@innodb_lock_wait_timeout,"
            " @@lock_wait_timeout"
        ).one()
        return tuple(row)


# --------------------------------------------------------------------------------------------------------------- units


def test_a_unit_with_nested_scopes(plain: Engine) -> None:
    """What is committed is there, what is rolled back to a savepoint is not."""

    def work(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            bank.accounts.get("A").balance = 11
            with bank.nested():
                bank.accounts.add(Account("B", "Bob", 1))
            with bank.nested() as nested:
                nested.accounts.add(Account("C", "Cid", 1))
                nested.flush()
                nested.rollback()
            bank.commit()

    bridged(plain, work)

    assert {"A": 11, "B": 1} == balances(plain)


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_a_transaction_that_something_else_ended(plain: Engine, verb: str) -> None:
    """The unit neither commits nor rolls back in silence what a statement of its own committed."""

    def work(engine: Engine) -> State:
        end = "COMMIT" if engine.dialect.name == "sqlite" else "CREATE TABLE IF NOT EXISTS accounts (id INT)"
        bank = SqlBank(engine)
        with pytest.raises(CommitOutcomeUnknown), bank:
            bank.accounts.get("A").balance = 11
            bank.flush()
            bank.session.execute(text(end))
            getattr(bank, verb)()
        return bank.state

    assert (State.IN_DOUBT if verb == "commit" else State.ROLLED_BACK) is bridged(plain, work)
    assert {"A": 11} == balances(plain)


@pytest.mark.parametrize("bridge", [False, True])
@pytest.mark.parametrize("count", [1, 2])  # SQLAlchemy asks for the keys of several with RETURNING
def test_a_transaction_that_was_begun_again(mariadb: Engine, bridge: bool, count: int) -> None:
    """After a statement that commits implicitly there is no further work, which alone a rollback would undo."""

    def work(engine: Engine) -> None:
        with pytest.raises(ScopeBroken, match="ended the transaction") as raised, SqlBank(engine) as bank:
            bank.session.execute(text("SET @nothing = 'begun yet'"))
            bank.transfers.add_all(Transfer("A", amount) for amount in range(count))
            bank.flush()
            bank.session.execute(text("CREATE TABLE IF NOT EXISTS accounts (id INT)"))
            bank.transfers.count()

        assert isinstance(raised.value.__cause__, CommitOutcomeUnknown)

    if bridge:
        bridged(mariadb, work)
    else:
        work(mariadb)

    with SqlBank(mariadb) as bank:
        assert count == bank.transfers.count()


def test_the_status_behind_rows(mariadb: Engine) -> None:
    """Where the driver does not look at the server's status, the unit asks for it."""

    def work(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            bank.transfers.add_all([Transfer("A", 1), Transfer("A", 2)])
            bank.flush()
            bank.commit()

    bridged(mariadb, work)

    with SqlBank(mariadb) as bank:
        assert 2 == bank.transfers.count()


def test_an_engine_that_commits_by_itself(mariadb: Engine) -> None:
    """It is refused, as it is on the synchronous driver."""

    def work(engine: Engine) -> None:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"), SqlBank(engine) as bank:
            bank.accounts.count()

    bridged(mariadb, work, connect_args={"autocommit": True})


def test_sqlite_takes_the_write_lock_at_the_start(sqlite: Engine) -> None:
    """Nobody else begins to write while a unit is open, even if it only reads; one that is read-only takes no lock."""

    def work(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            bank.accounts.count()
            with pytest.raises(LockTimeout), SqlBank(sqlite) as other:
                other.accounts.count()
        with SqlBank(engine, read_only=True) as bank:
            bank.accounts.count()
            with SqlBank(sqlite) as other:
                other.accounts.count()

    bridged(sqlite, work)


def test_sqlite_in_memory(sqlite: Engine) -> None:
    """Its connection belongs to one thread and to one unit at a time."""

    def work(engine: Engine) -> None:
        metadata.create_all(engine)
        with SqlBank(engine) as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.flush()
            with pytest.raises(ConfigurationError, match="another unit is at work"), SqlBank(engine) as other:
                other.accounts.count()
            bank.commit()
        with SqlBank(engine, lock_timeout=1, read_only=True) as bank:
            assert 1 == bank.accounts.count()

    bridged(URL.create("sqlite"), work)


def test_a_connection_in_use_that_the_pool_gives_out(sqlite: Engine) -> None:
    """A unit leaves a transaction alone that something else has begun on its connection."""

    def work(engine: Engine) -> None:
        metadata.create_all(engine)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            with pytest.raises(ConfigurationError, match="another unit is at work"), SqlBank(engine) as bank:
                bank.accounts.count()

    bridged(URL.create("sqlite"), work)


# ------------------------------------------------------------------------------------------------------------- options


def ends_well(bank: SqlBank) -> None:
    bank.commit()


def is_left(bank: SqlBank) -> None:
    """Do no more."""


def fails(bank: SqlBank) -> None:
    with pytest.raises(ReadOnlyTransaction), bank.nested():
        bank.session.execute(text("UPDATE accounts SET balance = 0"))
    bank.session.execute(text("nonsense"))


@pytest.mark.parametrize("end", [ends_well, is_left, fails])
def test_the_next_user_finds_what_was_there(plain: Engine, end: Callable[[SqlBank], None]) -> None:
    """However a unit with options ends, the connection is afterwards what it was before."""

    def work(engine: Engine) -> None:
        options: dict[str, Any] = {"statement_timeout": 7} if engine.dialect.name == "mysql" else {}
        before = found(engine)
        with (
            suppress(DatabaseError),
            SqlBank(engine, isolation="SERIALIZABLE", read_only=True, lock_timeout=1, **options) as bank,
        ):
            assert 1 == bank.accounts.count()

            end(bank)

        assert before == found(engine)

    bridged(plain, work)


def test_a_statement_that_takes_too_long(mariadb: Engine) -> None:
    """The server ends it, and around a nested scope the unit goes on."""

    def work(engine: Engine) -> None:
        with SqlBank(engine, statement_timeout=0.05) as bank:
            with pytest.raises(StatementTimeout), bank.nested():
                bank.session.execute(text("SELECT SLEEP(60)"))

            assert 1 == bank.accounts.count()

    bridged(mariadb, work)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO accounts (number, owner, balance) VALUES ('A', 'Ann', 0)",
        "INSERT INTO accounts (number, owner, balance) VALUES ('B', NULL, 0)",
        "INSERT INTO accounts (number, owner, balance) VALUES ('B', 'Bob', -2000)",
        "INSERT INTO transfers (source, amount) VALUES ('nobody', 1)",
        "INSERT INTO documents (id, title, version) VALUES (1, 'x', 1), (2, 'x', 1)",
        "nonsense",
    ],
)
def test_errors_say_the_same(plain: Engine, statement: str) -> None:
    """An error has the class, the code and the facts that it has on the synchronous driver."""

    def told(engine: Engine) -> tuple[object, ...]:
        with pytest.raises(DatabaseError) as raised, SqlBank(engine) as bank:
            bank.session.execute(text(statement))
        error = raised.value
        facts = (error.constraint, error.table, error.columns) if isinstance(error, IntegrityViolation) else ()
        return type(error), error.code, error.detail, *facts

    assert told(plain) == bridged(plain, told)


def test_a_reference_to_nothing(plain: Engine) -> None:
    """Foreign keys are on."""

    def work(engine: Engine) -> None:
        with pytest.raises(ForeignKeyViolation), SqlBank(engine) as bank:
            bank.session.execute(text("INSERT INTO transfers (source, amount) VALUES ('nobody', 1)"))

    bridged(plain, work)


@pytest.mark.parametrize("then", ["go on", "commit", "leave"])
def test_a_connection_that_is_lost(plain: Engine, then: str) -> None:
    """It is told as such, nothing is kept, and the next unit has another connection."""

    def lose(bank: SqlBank) -> None:
        connection = bank.session.connection()
        if connection.dialect.name == "sqlite":
            raw: Any = connection.connection.dbapi_connection
            raw.close()
        else:
            number = connection.exec_driver_sql("SELECT connection_id()").scalar()
            with plain.connect() as other:
                other.exec_driver_sql(f"KILL {number}")

    def work(engine: Engine) -> None:
        with pytest.raises((ConnectionLost, CommitOutcomeUnknown)), SqlBank(engine) as bank:
            bank.accounts.get("A").balance = 11
            bank.flush()
            lose(bank)
            if then == "go on":
                bank.accounts.count()
            elif then == "commit":
                bank.commit()
        with SqlBank(engine) as bank:
            assert 10 == bank.accounts.get("A").balance

    bridged(plain, work)


def test_a_connection_that_is_thrown_away(plain: Engine) -> None:
    """What invalidates the connection of a unit ends its transaction, and the unit says so."""

    def work(engine: Engine) -> None:
        with pytest.raises(ConnectionLost), SqlBank(engine) as bank:
            bank.accounts.get("A").balance = 11
            bank.flush()
            bank.session.connection().invalidate()
            bank.commit()
        with SqlBank(engine) as bank:
            assert 10 == bank.accounts.get("A").balance

    bridged(plain, work)


def test_no_connection_to_be_had(plain: Engine) -> None:
    """A pool that is exhausted is told as such."""

    def work(engine: Engine) -> None:
        with engine.connect(), pytest.raises(ConnectionUnavailable), SqlBank(engine) as bank:
            bank.accounts.count()

    bridged(plain, work)


# -------------------------------------------------------------------------------------------------------- cancellation


class CancelAt(Awaitable[R]):
    """
    Awaits something, and cancels the task that does so at one of its waits.

    Args:
        awaitable: What to await.

        wait: The number of the wait; beyond the last one nothing is cancelled.
    """

    def __init__(self, awaitable: Awaitable[R], wait: int) -> None:
        self.awaitable = awaitable
        self.wait = wait
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, R]:
        steps = self.awaitable.__await__()
        step: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                future = step()
            except StopIteration as stop:
                result: R = stop.value
                return result
            task = asyncio.current_task()
            if self.waits == self.wait and task is not None:
                task.cancel()
            self.waits += 1
            try:
                yield future
                step = lambda: next(steps)  # noqa: E731
            except asyncio.CancelledError as error:
                step = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh connection", "pooled connection"])
def test_cancelled_at_every_wait(plain: Engine, fresh: bool) -> None:
    """Whenever a unit is cancelled, all or nothing is kept, no lock stays, and the next unit can work."""
    kept: list[int] = []

    def move(engine: Engine, bank: SqlBank) -> None:
        with bank:
            bank.accounts.get("A").balance -= 1
            with bank.nested():
                bank.accounts.add(Account("B", "Bob", 1))
            bank.accounts.count()
            bank.commit()

    async def main(wait: int) -> bool:
        driver = DRIVERS["sqlite" if plain.dialect.name == "sqlite" else "mariadb"]
        engine = create_async_engine(plain.url.set(drivername=driver), pool_size=1, max_overflow=0, pool_timeout=2)
        if not fresh:
            async with engine.connect():
                pass
        bank = SqlBank(engine.sync_engine, lock_timeout=1)
        attempt = CancelAt(greenlet_spawn(move, engine.sync_engine, bank), wait)
        error: BaseException | None = None
        try:
            await attempt
        except asyncio.CancelledError as cancelled:
            error = cancelled  # with its traceback, which must not keep anything open

        assert 0 == engine.sync_engine.pool.checkedout()  # type: ignore[attr-defined]
        assert (error is None) is (attempt.waits <= wait)

        with SqlBank(plain) as other:
            other.accounts.get("A", lock=Lock.UPDATE)  # a server ends a transaction a little after its client
            accounts = {account.number: account.balance for account in other.accounts.list()}
            other.accounts.get("A").balance = 10
            for account in other.accounts.list(lambda a: a.number == "B"):
                other.accounts.remove(account)
            other.commit()

        assert accounts in ({"A": 10}, {"A": 9, "B": 1})
        assert (bank.state in (State.COMMITTED, State.IN_DOUBT)) or len(accounts) == 1

        kept.append(len(accounts))
        await greenlet_spawn(move, engine.sync_engine, SqlBank(engine.sync_engine))
        with SqlBank(plain) as other:
            other.accounts.get("A").balance = 10
            other.accounts.remove(other.accounts.get("B"))
            other.commit()
        await engine.dispose()
        return error is not None

    threads = set(threading.enumerate())
    wait = 0
    while asyncio.run(main(wait)):
        wait += 1
    gc.collect()

    assert threads >= set(threading.enumerate())
    assert kept == sorted(kept)
    assert {1, 2} == set(kept)


def test_cancelled_while_it_waits_for_a_lock(sqlite: Engine) -> None:
    """The lock that the driver's thread may still get is given back."""

    async def main() -> None:
        engine = create_async_engine(sqlite.url.set(drivername=DRIVERS["sqlite"]))
        bank, waits, loop = SqlBank(engine.sync_engine), asyncio.Event(), asyncio.get_running_loop()

        def traced(statement: str) -> None:
            if statement == "BEGIN IMMEDIATE":
                loop.call_soon_threadsafe(waits.set)

        def watch(raw: Any, entry: object) -> None:
            raw.run_async(lambda driver: driver.set_trace_callback(traced))

        event.listen(engine.sync_engine, "connect", watch)
        with sqlite.connect() as holder:
            holder.exec_driver_sql("BEGIN IMMEDIATE")
            task = asyncio.create_task(greenlet_spawn(bank_count, bank))
            await asyncio.wait_for(waits.wait(), 30)
            task.cancel()
            await asyncio.sleep(0)  # which lets the task hear of it
            holder.rollback()
        with pytest.raises(asyncio.CancelledError):
            await task
        with closing(sqlite.raw_connection()) as connection:
            connection.cursor().execute("BEGIN IMMEDIATE")
        await engine.dispose()

    asyncio.run(main())


def bank_count(bank: SqlBank) -> int:
    with bank:
        return bank.accounts.count()
