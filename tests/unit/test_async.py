"""
What is asynchronous only: tasks, event loops, and how often the bridge to the synchronous core is crossed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import trio
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from uow import AsyncRepository, AsyncUnitOfWork, State
from uow.adapters import sqlalchemy as adapter
from uow.adapters.memory import AsyncFakeUnitOfWork
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork
from uow.errors import ConfigurationError
from uow.testing._model import Account, Bank
from uow.testing._sqlalchemy import metadata


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class SqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


class FakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


@pytest.fixture
def url(sqlite_url: URL) -> Iterator[URL]:
    engine = create_engine(sqlite_url)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    yield sqlite_url.set(drivername="sqlite+aiosqlite")
    metadata.drop_all(engine)
    engine.dispose()


async def on_sqlite(url: URL, work: Callable[[SqlBank], Awaitable[None]]) -> None:
    engine = create_async_engine(url)
    try:
        await work(SqlBank(engine))

        assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
    finally:
        await engine.dispose()


async def open_an_account(bank: AsyncBank) -> None:
    async with bank as uow:
        uow.accounts.add(Account("A-1", "Ann"))
        await uow.commit()


# ---------------------------------------------------------------------------------------------------------- event loops


def test_trio() -> None:
    """Under trio a unit is refused when it is entered, with the reason."""
    bank = FakeBank()
    with pytest.raises(ConfigurationError) as caught:
        trio.run(open_an_account, bank)

    assert str(caught.value) == (
        "Wrong configuration: FakeBank was entered where no asyncio task runs. "
        "Run it on asyncio, or on anyio's asyncio backend; SQLAlchemy's drivers know no other event loop."
    )
    assert State.NEW is bank.state


def test_anyio(url: URL) -> None:
    """Under anyio's asyncio backend a unit works, in a task group too."""

    async def main() -> None:
        async def work(bank: SqlBank) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(open_an_account, bank)

            assert State.COMMITTED is bank.state

        await on_sqlite(url, work)

    anyio.run(main)


def test_anyio_cancels_on_and_on(url: URL) -> None:
    """The cancellation of an anyio scope, which comes again at every await, rolls back and leaves nothing behind."""

    async def main() -> None:
        async def work(bank: SqlBank) -> None:
            with anyio.CancelScope() as scope:
                async with bank as uow:
                    uow.accounts.add(Account("A-1", "Ann"))
                    await uow.flush()
                    scope.cancel()
                    await uow.accounts.list()

            assert scope.cancelled_caught
            assert State.ROLLED_BACK is bank.state

            await open_an_account(bank)

            assert State.COMMITTED is bank.state

        await on_sqlite(url, work)

    anyio.run(main)


# ----------------------------------------------------------------------------------------------------------- the bridge


def test_one_crossing_for_each_operation(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the database crosses the bridge once, and what does not never does."""
    module = adapter._async  # type: ignore[attr-defined]
    spawn, crossings = module.greenlet_spawn, [0]

    async def counting(*args: Any, **kwargs: Any) -> Any:
        crossings[0] += 1
        return await spawn(*args, **kwargs)

    monkeypatch.setattr(module, "greenlet_spawn", counting)

    def crossed() -> int:
        count, crossings[0] = crossings[0], 0
        return count

    async def work(bank: SqlBank) -> None:
        counts: dict[str, int] = {}
        async with bank as uow:
            counts["enter"] = crossed()
            uow.accounts.add(Account("A-1", "Ann"))
            uow.after_commit(lambda: None)
            counts["add, register"] = crossed()
            await uow.flush()
            counts["flush"] = crossed()
            await uow.accounts.get("A-1")
            counts["get"] = crossed()
            await uow.accounts.list()
            counts["list"] = crossed()
            async with uow.nested():
                counts["enter nested"] = crossed()
            counts["leave nested"] = crossed()
            await uow.commit()
            counts["commit"] = crossed()
        counts["leave"] = crossed()
        async with bank as uow:
            await uow.accounts.count()
            crossed()
            await uow.rollback()
            counts["rollback"] = crossed()

        assert counts.pop("enter") == counts.pop("add, register") == 0
        assert set(counts.values()) <= {0, 1}, counts
        assert counts["get"] == counts["list"] == counts["flush"] == counts["commit"] == counts["rollback"] == 1

    asyncio.run(on_sqlite(url, work))
