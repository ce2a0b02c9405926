"""
Cancellation at every point where a unit waits, driven step by step and never by timing.

A program is run again and again in a task that is cancelled at its first suspension, at its second, and so on until it
runs to its end. Whatever was hit, the connection is back, nothing is open in the database, and `state` tells the truth.
"""

import asyncio
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from attrs import define, field
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from uow import AsyncRepository, AsyncUnitOfWork, Handlers, State
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork
from uow.errors import ScopeBroken, UnitOfWorkRolledBack
from uow.testing._model import Account, Bank, MoneyMoved
from uow.testing._sqlalchemy import metadata

DRIVERS = {"aiosqlite": "sqlite", "psycopg": "postgresql", "asyncpg": "postgresql", "aiomysql": "mysql"}
OPEN_TRANSACTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
)
# What an open transaction stands in the way of. innodb_trx is no help: it shows what was 0.1 s ago, or longer while it
# is read all the time. https://dev.mysql.com/doc/refman/8.0/en/innodb-information-schema-internal-data.html
LOCKS = {
    "sqlite": ("BEGIN IMMEDIATE", "ROLLBACK"),
    "mysql": ("LOCK TABLES accounts WRITE NOWAIT", "UNLOCK TABLES"),
}


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


class FakeBank(FakeUnitOfWork, Bank): ...


class Refused(Exception):
    """What a nested scope is rolled back with."""


# ---------------------------------------------------------------------------------------------------------- the places


class FakePlace:
    """A store, with what a second unit sees in it."""

    waits = False
    steady = True

    def __init__(self) -> None:
        self.store = Store()

    def bank(self, **options: Any) -> AsyncBank:
        return AsyncFakeBank(self.store, **options)

    async def clear(self) -> None:
        with FakeBank(self.store) as bank:
            for account in bank.accounts.list():
                bank.accounts.remove(account)
            bank.commit()

    def numbers(self) -> set[str]:
        with FakeBank(self.store) as bank:
            return {account.number for account in bank.accounts.list()}

    async def is_clean(self) -> bool:
        return self.store.idle()

    async def close(self) -> None: ...


class SqlPlace:
    """A database, with what a second connection of another driver sees in it."""

    waits = True

    def __init__(self, engine: Engine, driver: str) -> None:
        self.beside = engine
        self.steady = driver != "psycopg"  # which does not wait for an answer that it finds there already
        url = engine.url.set(drivername=f"{DRIVERS[driver]}+{driver}")
        self.engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=20)

    def bank(self, **options: Any) -> AsyncBank:
        return AsyncSqlBank(self.engine, **options)

    async def clear(self) -> None:
        """Empty the pool as well: every run has the same suspensions, those for a new connection among them."""
        await self.engine.dispose()
        with self.beside.connect() as connection:
            connection.execute(text("DELETE FROM accounts"))

    def numbers(self) -> set[str]:
        with self.beside.connect() as connection:
            return set(connection.execute(text("SELECT number FROM accounts")).scalars())

    async def is_clean(self) -> bool:
        """Wait for a server to notice that a connection was closed; the pool must have its own at once."""
        if self.engine.pool.checkedout():  # type: ignore[attr-defined]
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(30):
                while self._has_open_transactions():
                    await asyncio.sleep(0)
            return True
        return False

    def _has_open_transactions(self) -> bool:
        with self.beside.connect() as connection:
            if connection.dialect.name == "postgresql":
                return bool(connection.execute(text(OPEN_TRANSACTIONS)).scalar_one())
            lock, unlock = LOCKS[connection.dialect.name]
            with suppress(OperationalError):
                connection.execute(text(lock))
                connection.execute(text(unlock))
                return False
            return True

    async def close(self) -> None:
        await self.engine.dispose()


Place = FakePlace | SqlPlace


@pytest.fixture(params=["fake", *DRIVERS])
def make_place(request: pytest.FixtureRequest, polite_psycopg: None) -> Iterator[Callable[[], Place]]:
    """Makes the fake, or a database with each of its asynchronous drivers."""
    if request.param == "fake":
        yield FakePlace
        return
    name = {"mysql": "mariadb"}.get(DRIVERS[request.param], DRIVERS[request.param])
    url: URL = request.getfixturevalue(f"{name}_url")
    arguments = {"timeout": 0} if name == "sqlite" else {}
    engine = create_engine(url, isolation_level="AUTOCOMMIT", connect_args=arguments)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    yield lambda: SqlPlace(engine, request.param)
    metadata.drop_all(engine)
    engine.dispose()


# ---------------------------------------------------------------------------------------------------------- the driver


@define
class Log:
    """What ran, and a nested scope."""

    ran: list[str] = field(factory=list)
    scope: AsyncBank | None = None

    def hook(self, name: str) -> Callable[[], Coroutine[Any, Any, None]]:
        """Return a hook that notes that it began, and waits twice."""

        async def hook() -> None:
            self.ran.append(name)
            await asyncio.sleep(0)
            woken = asyncio.Event()
            asyncio.get_running_loop().call_soon(woken.set)
            await woken.wait()

        return hook


Make = Callable[[], Place]
Options = dict[str, Any]
Program = Callable[[AsyncBank, Log], Coroutine[Any, Any, None]]
HANDLERS = Handlers()


@HANDLERS.before_commit(MoneyMoved)
async def keep_the_books(event: MoneyMoved, bank: AsyncBank) -> None:
    await asyncio.sleep(0)
    await bank.accounts.get(event.number)
    bank.accounts.add(Account("books", "Bank"))


async def transfer(bank: AsyncBank, log: Log) -> None:
    """A use case with everything in it that may wait."""
    async with bank as uow:
        uow.before_commit(log.hook("before commit"))
        uow.after_commit(log.hook("after commit"))
        uow.after_rollback(log.hook("after rollback"))
        account = Account("root", "Ann")
        uow.accounts.add(account)
        await uow.flush()
        async with uow.nested() as kept:
            account.withdraw(10)
            kept.accounts.add(Account("nested", "Bob"))
        with suppress(Refused):
            async with uow.nested() as refused:
                refused.after_rollback(log.hook("refused"))
                account.owner = None
                account.owner = "Cleo"
                refused.accounts.add(Account("refused", "Cleo"))
                await refused.flush()
                raise Refused
        await uow.accounts.list(lambda a: a.balance < 0)
        await uow.commit()


WHOLE = {"root", "nested", "books"}


@define
class Canceller:
    """
    Cancels the task that it runs in, at one of its suspensions and as many after it as *times* says.

    Args:
        first: The number of the suspension.

        times: How often; every time that the task waits again.

        late: When what the task waits for is there already, but the task does not have it yet.
    """

    first: int
    times: float = 1
    late: bool = False
    suspensions: int = 0

    @types.coroutine
    def run(self, awaitable: Awaitable[None]) -> Generator[Any, Any, None]:
        task: Any = asyncio.current_task()
        steps = awaitable.__await__()
        problem: BaseException | None = None
        while True:
            try:
                waiting = next(steps) if problem is None else steps.throw(problem)
            except StopIteration:
                return
            problem = None
            self.suspensions += 1
            if self.first <= self.suspensions < self.first + self.times:
                if self.late and waiting is not None:
                    waiting.add_done_callback(lambda _: task.cancel())
                else:  # the event loop cancels what the task waits for as soon as it is told
                    task.cancel()
            try:
                yield waiting
            except BaseException as error:
                problem = error


@define
class Run:
    """
    One run of a program, and how it ended.

    Args:
        state: The state that the unit says it is in.

        cancelled: Whether its task ended so.

        error: What it ended with otherwise.

        log: What ran.

        steady: Whether each run has the same suspensions, so that one of them was cut off at COMMIT.

        rows: What another connection sees.

        where: All of this in words, for a test that fails.
    """

    state: State
    cancelled: bool
    error: BaseException | None
    log: Log
    steady: bool
    rows: set[str]
    where: str


async def sweep(place: Place, program: Program, options: Options | None = None, **how: Any) -> AsyncIterator[Run]:
    """Run *program*, cancelled at each of its suspensions in turn, and check what must hold wherever that was."""
    bank = place.bank(handlers=HANDLERS, **options or {})
    for number in range(1, 1000):
        await place.clear()
        log, canceller = Log(), Canceller(number, **how)
        task = asyncio.ensure_future(canceller.run(program(bank, log)))
        await asyncio.wait([task])
        where = f"cancelled at suspension {number} of {canceller.suspensions} ({how}): {bank!r}, {log}, {task}"

        assert await place.is_clean(), where

        rows = place.numbers()

        assert bank.state in (State.COMMITTED, State.ROLLED_BACK), where
        assert (bank.state is State.ROLLED_BACK) == (rows == set()), where
        assert (bank.state is State.COMMITTED) == ("after commit" in log.ran), where
        assert (bank.state is State.ROLLED_BACK) == ("after rollback" in log.ran), where

        error = None if task.cancelled() else task.exception()
        struck = canceller.suspensions >= number
        yield Run(bank.state, task.cancelled(), error, log, place.steady, rows, where)
        await again(place, bank)
        if not struck:
            return
    raise AssertionError("the program never came to its end")


async def again(place: Place, bank: AsyncBank) -> None:
    """Use the same object once more."""
    async with bank as uow:
        uow.accounts.add(Account("again", "Zoe"))
        await uow.commit()

    assert "again" in place.numbers()


async def collect(make_place: Make, program: Program, options: Options | None = None, **how: Any) -> list[Run]:
    """Sweep over a place of its own."""
    place = make_place()
    try:
        return [run async for run in sweep(place, program, options, **how)]
    finally:
        await place.close()


def demand_both_ends(struck: list[Run]) -> None:
    """Demand that units were rolled back, those that were cut off early, and committed, those that were late."""
    states = {run.state for run in struck}
    assert State.ROLLED_BACK in states
    assert State.COMMITTED in states or not struck[0].steady


@pytest.mark.parametrize(
    ("times", "late"),
    [(1, False), (1, True), (2, False), (float("inf"), True)],
    ids=["once", "once late", "twice", "on and on"],
)
def test_cancelled_anywhere(make_place: Make, times: float, late: bool) -> None:
    """A unit that is cancelled anywhere, once or over and over, is committed or not, as it says."""
    *struck, last = asyncio.run(collect(make_place, transfer, times=times, late=late))

    for run in struck:
        assert run.cancelled, run.where
        assert run.rows in (set(), WHOLE), run.where
    demand_both_ends(struck)
    assert (State.COMMITTED, WHOLE, None) == (last.state, last.rows, last.error)


def test_cancelled_with_options(make_place: Make) -> None:
    """It is the same where the connection is set up for the unit and has to be put back."""
    options = {"isolation": "SERIALIZABLE", "lock_timeout": 10}
    *struck, last = asyncio.run(collect(make_place, transfer, options, times=2))

    demand_both_ends(struck)
    assert (State.COMMITTED, WHOLE, None) == (last.state, last.rows, last.error)


async def hidden_transfer(bank: AsyncBank, log: Log) -> None:
    """A synchronous service that opens a unit of its own, inside another one that it knows nothing of."""

    def service() -> None:
        with bank.sync as uow:
            uow.after_commit(lambda: log.ran.append("after commit"))
            uow.after_rollback(lambda: log.ran.append("after rollback"))
            uow.accounts.add(Account("root", "Ann"))
            uow.commit()

    async with bank.independent() as outer:
        try:
            await outer.run(service)
        except asyncio.CancelledError as error:
            log.ran += getattr(error, "__notes__", ())
            raise


@pytest.mark.parametrize(("times", "late"), [(1, False), (1, True), (2, False)], ids=["once", "once late", "twice"])
def test_cancelled_in_synchronous_code(make_place: Make, times: float, late: bool) -> None:
    """No COMMIT or ROLLBACK is cut off in `run()` either; a cancellation that had to wait tells what came of it."""
    *struck, last = asyncio.run(collect(make_place, hidden_transfer, times=times, late=late))

    for run in struck:
        assert run.cancelled, run.where
        assert (run.state is State.COMMITTED) == any("(root): committed" in line for line in run.log.ran), run.where
    if struck:  # nothing waits on the fake
        demand_both_ends(struck)
    assert (State.COMMITTED, {"root"}, None) == (last.state, last.rows, last.error)


def deaf(*also: type[BaseException]) -> suppress:
    return suppress(asyncio.CancelledError, *also)


async def deaf_transfer(bank: AsyncBank, log: Log) -> None:
    """A use case that goes on when it is cancelled, from its first statement up to its commit."""
    async with bank as uow:
        uow.after_commit(log.hook("after commit"))
        uow.after_rollback(log.hook("after rollback"))
        uow.accounts.add(Account("root", "Ann"))
        with deaf():
            await uow.flush()
        with deaf(ScopeBroken):
            async with uow.nested() as log.scope:
                with deaf():
                    await asyncio.sleep(0)
                log.scope.accounts.add(Account("nested", "Bob"))
                with deaf():
                    await log.scope.flush()
        with deaf(ScopeBroken):
            await uow.accounts.list()
        with deaf(ScopeBroken):
            uow.accounts.add(Account("late", "Zoe"))
        await uow.commit()


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_swallowed_anywhere(make_place: Make, late: bool) -> None:
    """A cancellation that is swallowed in the block costs the whole unit where it cut a statement off."""
    runs = asyncio.run(collect(make_place, deaf_transfer, late=late))

    for run in runs:
        kept = run.log.scope is not None and run.log.scope.state is State.RELEASED
        if run.state is State.COMMITTED:
            assert run.rows == {"root", "late"} | ({"nested"} if kept else set()), run.where
        elif not run.cancelled:  # it was hit before commit()
            assert isinstance(run.error, UnitOfWorkRolledBack), run.where
