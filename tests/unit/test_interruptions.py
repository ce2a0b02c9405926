"""
What interrupts an asynchronous unit in everyday life: timeouts, task groups, a crowded pool, Ctrl-C.

That any cancellation is survived is shown in ``test_cancellation.py``; here is who cancels, and what is told.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from uow import AsyncRepository, AsyncUnitOfWork, State
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork
from uow.errors import CommitOutcomeUnknown, ConnectionLost, ScopeBroken, UnitOfWorkRolledBack
from uow.testing._model import Account, Bank
from uow.testing._sqlalchemy import metadata

PAST = 0.0  # of the event loop's clock
SLOW_COMMIT = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.note = 'slow') EXECUTE FUNCTION dawdle()
"""


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class SqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


class Refused(Exception):
    """What a sibling fails with."""


@pytest.fixture
def sqlite(sqlite_url: URL) -> Iterator[Engine]:
    engine = create_engine(sqlite_url)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[Engine]:
    engine = create_engine(postgresql_url)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(SLOW_COMMIT)
    yield engine
    metadata.drop_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION dawdle")
    engine.dispose()


@asynccontextmanager
async def open_bank(beside: Engine, driver: str, **options: Any) -> AsyncIterator[tuple[SqlBank, AsyncEngine]]:
    """Give a bank with a pool of one connection, and see that it has it back."""
    options = {"pool_size": 1, "max_overflow": 0} | options
    engine = create_async_engine(beside.url.set(drivername=f"{beside.dialect.name}+{driver}"), **options)
    try:
        yield SqlBank(engine), engine

        assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
    finally:
        await engine.dispose()


def numbers(beside: Engine) -> set[str]:
    with beside.connect() as connection:
        return set(connection.execute(text("SELECT number FROM accounts")).scalars())


async def open_an_account(bank: SqlBank, number: str = "A-1") -> None:
    async with bank as uow:
        uow.accounts.add(Account(number, "Ann"))
        await uow.commit()


# ------------------------------------------------------------------------------------------------------------- timeouts


def test_timeout_around_the_unit(sqlite: Engine) -> None:
    """A timeout around a unit rolls it back, and the caller sees a TimeoutError."""

    async def main() -> None:
        async with open_bank(sqlite, "aiosqlite") as (bank, _):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(None) as deadline, bank as uow:
                    uow.accounts.add(Account("A-1", "Ann"))
                    await uow.flush()
                    deadline.reschedule(PAST)
                    await uow.accounts.list()

            assert State.ROLLED_BACK is bank.state

    asyncio.run(main())

    assert set() == numbers(sqlite)


def test_timeout_that_is_caught_inside(sqlite: Engine) -> None:
    """A timeout that cut a statement off dooms the unit, although its error was caught in the block."""

    async def main() -> None:
        async with open_bank(sqlite, "aiosqlite") as (bank, _):
            with pytest.raises(UnitOfWorkRolledBack) as caught:
                async with bank as uow:
                    uow.accounts.add(Account("A-1", "Ann"))
                    await uow.flush()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(None) as deadline:
                            deadline.reschedule(PAST)
                            await uow.accounts.list()
                    with pytest.raises(ScopeBroken):
                        await uow.accounts.list()
                    await uow.commit()

            assert "The connection to the database was lost: CancelledError cut a statement off" == str(
                caught.value.__cause__
            )

    asyncio.run(main())

    assert set() == numbers(sqlite)


def test_timeout_that_is_caught_between_statements(sqlite: Engine) -> None:
    """A timeout that cut no statement off costs the unit nothing."""

    async def main() -> None:
        async with open_bank(sqlite, "aiosqlite") as (bank, _):
            async with bank as uow:
                uow.accounts.add(Account("A-1", "Ann"))
                await uow.flush()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0):
                        await asyncio.Event().wait()
                await uow.commit()

    asyncio.run(main())

    assert {"A-1"} == numbers(sqlite)


def test_timeout_during_commit(sqlite: Engine) -> None:
    """A timeout that comes while COMMIT is on its way waits for the answer; the state tells it."""

    async def main() -> None:
        async with open_bank(sqlite, "aiosqlite") as (bank, _):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(None) as deadline, bank as uow:
                    uow.accounts.add(Account("A-1", "Ann"))
                    await uow.flush()
                    deadline.reschedule(PAST)
                    await uow.commit()

            assert State.COMMITTED is bank.state
            assert ["<SqlBank (root): committed>"] == caught.value.__context__.__notes__  # type: ignore[union-attr]

    asyncio.run(main())

    assert {"A-1"} == numbers(sqlite)


def test_timeout_of_the_driver_in_a_statement(postgresql: Engine) -> None:
    """A timeout of the driver's own is a lost connection, so it dooms the unit."""

    async def main() -> None:
        async with open_bank(postgresql, "asyncpg", connect_args={"command_timeout": 0.3}) as (bank, _):
            with pytest.raises(UnitOfWorkRolledBack):
                async with bank as uow:
                    uow.accounts.add(Account("A-1", "Ann"))
                    with pytest.raises(ConnectionLost):
                        await uow.session.execute(text("SELECT pg_sleep(30)"))

                    assert State.DOOMED is uow.state

                    await uow.commit()

            assert State.ROLLED_BACK is bank.state

    asyncio.run(main())

    assert set() == numbers(postgresql)


def test_timeout_of_the_driver_in_commit(postgresql: Engine) -> None:
    """A timeout of the driver's own while COMMIT is on its way leaves the outcome unknown, and no hook runs."""
    ran: list[str] = []

    async def main() -> None:
        async with open_bank(postgresql, "asyncpg", connect_args={"command_timeout": 0.3}) as (bank, _):
            with pytest.raises(CommitOutcomeUnknown):
                async with bank as uow:
                    uow.accounts.add(Account("A-1", "Ann", note="slow"))
                    uow.after_commit(lambda: ran.append("after commit"))
                    uow.after_rollback(lambda: ran.append("after rollback"))
                    await uow.commit()

            assert State.IN_DOUBT is bank.state

    asyncio.run(main())

    assert [] == ran


# ---------------------------------------------------------------------------------------------------------- task groups


def test_sibling_that_fails(sqlite: Engine) -> None:
    """When another task of the group fails, the unit is rolled back and the group raises the other's error."""

    async def main() -> None:
        async with open_bank(sqlite, "aiosqlite") as (bank, _):
            written = asyncio.Event()

            async def work() -> None:
                async with bank as uow:
                    uow.accounts.add(Account("A-1", "Ann"))
                    await uow.flush()
                    written.set()
                    await asyncio.Event().wait()

            async def fail() -> None:
                await written.wait()
                raise Refused

            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    group.create_task(work())
                    group.create_task(fail())

            assert [Refused] == [type(error) for error in caught.value.exceptions]
            assert State.ROLLED_BACK is bank.state

    asyncio.run(main())

    assert set() == numbers(sqlite)


# ------------------------------------------------------------------------------------------------------- a crowded pool


@pytest.mark.parametrize("in_the_end", [False, True], ids=["while it waits", "when the connection comes"])
def test_waiting_for_a_connection(sqlite: Engine, in_the_end: bool) -> None:
    """A unit that is cancelled while it waits for a connection takes none from the pool."""

    async def main() -> None:
        async with open_bank(sqlite, "aiosqlite") as (bank, engine):
            async with SqlBank(engine) as first:
                first.accounts.add(Account("A-1", "Ann"))
                await first.flush()
                waiting = asyncio.create_task(open_an_account(bank, "A-2"))
                for _ in range(5):
                    await asyncio.sleep(0)
                if not in_the_end:
                    waiting.cancel()
                    await asyncio.wait([waiting])
                first.after_commit(waiting.cancel)  # the connection is back then
                await first.commit()
            await asyncio.wait([waiting])

            assert waiting.cancelled()
            assert State.ROLLED_BACK is bank.state
            assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]

            await open_an_account(bank, "A-3")

    asyncio.run(main())

    assert {"A-1", "A-3"} == numbers(sqlite)


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def pressed() -> None:
    raise KeyboardInterrupt


async def pressed_while_waiting() -> None:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


Hook = Callable[[], object]


def interrupted(sqlite: Engine, work: Callable[[SqlBank], Coroutine[Any, Any, None]]) -> State:
    """Do *work* and return the state that a KeyboardInterrupt left the unit in."""
    banks: list[SqlBank] = []

    async def main() -> None:
        async with open_bank(sqlite, "aiosqlite") as (bank, _):
            banks.append(bank)
            await work(bank)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    return banks[0].state


@pytest.mark.parametrize("hook", [pressed, pressed_while_waiting])
def test_keyboard_interrupt_before_the_commit(sqlite: Engine, hook: Hook) -> None:
    """Ctrl-C in a hook before the commit rolls back."""

    async def work(bank: SqlBank) -> None:
        async with bank as uow:
            uow.accounts.add(Account("A-1", "Ann"))
            uow.before_commit(hook)
            await uow.commit()

    assert State.ROLLED_BACK is interrupted(sqlite, work)
    assert set() == numbers(sqlite)


@pytest.mark.parametrize("hook", [pressed, pressed_while_waiting])
def test_keyboard_interrupt_after_the_commit(sqlite: Engine, hook: Hook) -> None:
    """Ctrl-C in a hook after the commit goes on to the caller when the other hooks ran; the commit stands."""
    ran: list[str] = []

    async def work(bank: SqlBank) -> None:
        async with bank as uow:
            uow.accounts.add(Account("A-1", "Ann"))
            uow.after_commit(hook)
            uow.after_commit(lambda: ran.append("another"))
            await uow.commit()

    assert State.COMMITTED is interrupted(sqlite, work)
    assert {"A-1"} == numbers(sqlite)
    assert ["another"] == ran
