"""
A group of asynchronous units, cancelled wherever it waits: both or none, and `state` tells which.
"""

import asyncio
import os
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Column, String, Table, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import registry

from uow import AsyncRepository, AsyncUnitOfWork, State, distributed, entity
from uow.adapters.memory import AsyncFakeUnitOfWork, Store
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlResource, uow_metadata
from uow.testing._databases import open_database

DOMAIN = f"c{os.getpid()}"


@entity(key="name")
class Thing:
    name: str


_registry = registry()
things = Table("cancelled_things", _registry.metadata, Column("name", String(40), primary_key=True))
_registry.map_imperatively(Thing, things)


class AsyncBank(AsyncUnitOfWork):
    things: AsyncRepository[Thing]


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


@types.coroutine
def cancelled_at(number: int, awaitable: Awaitable[None]) -> Generator[Any, Any, int]:
    """Await something, and cancel the task at its suspension of that number; return how many there were."""
    task: Any = asyncio.current_task()
    steps, problem, suspensions = awaitable.__await__(), None, 0
    while True:
        try:
            waiting = next(steps) if problem is None else steps.throw(problem)
        except StopIteration:
            return suspensions
        problem = None
        suspensions += 1
        if suspensions == number:
            task.cancel()
        try:
            yield waiting
        except BaseException as error:
            problem = error


class Side:
    """One database, with what another connection sees in it."""

    def __init__(self, url: URL, driver: str, name: str) -> None:
        self.beside, self.url, self.name = create_engine(url), url, name
        self.driver = f"{url.get_backend_name()}+{driver}"
        for metadata in (_registry.metadata, uow_metadata):
            metadata.drop_all(self.beside)
            metadata.create_all(self.beside)

    def open(self) -> AsyncBank:
        self.engine = create_async_engine(self.url.set(drivername=self.driver), pool_size=1, max_overflow=0)
        return AsyncSqlBank(self.engine, resource=self.name)

    def names(self) -> set[str]:
        with self.beside.connect() as connection:
            return set(connection.scalars(select(things.c.name)))

    def is_clean(self) -> bool:
        return not SqlResource(self.beside, self.name).prepared(DOMAIN) and self.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def another_postgresql_url() -> Iterator[URL]:
    """A second database on the same server."""
    with open_database("postgresql") as url:
        yield url


@pytest.fixture(params=["asyncpg+psycopg_async", "psycopg_async+asyncpg", "asyncpg+aiomysql", "aiomysql+aiosqlite"])
def sides(request: pytest.FixtureRequest) -> Iterator[list[Side]]:
    """Two databases."""
    databases = {"psycopg_async": "postgresql", "asyncpg": "postgresql", "aiomysql": "mariadb", "aiosqlite": "sqlite"}
    made: list[Side] = []
    for name, driver in zip(("bank", "stock"), request.param.split("+"), strict=True):
        fixture = f"{databases[driver]}_url"
        if any(side.url.get_backend_name() == "postgresql" for side in made) and fixture == "postgresql_url":
            fixture = "another_postgresql_url"
        made.append(Side(request.getfixturevalue(fixture), driver, name))
    yield made
    for side in made:
        side.beside.dispose()


def test_a_cancellation_leaves_both_or_none(sides: list[Side]) -> None:
    """Cancelled at any suspension, a group is kept in both databases or in none, and nothing is left prepared."""

    async def sweep() -> None:
        both: Any = distributed(*(side.open() for side in sides), domain=DOMAIN)

        async def program(name: str) -> None:
            async with both as (bank, stock):
                bank.things.add(Thing(name))
                stock.things.add(Thing(name))
                await both.commit()

        await program("first")
        outcomes: set[State] = set()
        for number in range(1, 500):
            task = asyncio.ensure_future(cancelled_at(number, program(f"{number}")))
            await asyncio.wait([task])
            kept = [f"{number}" in side.names() for side in sides]

            assert kept == [both.state is State.COMMITTED] * 2, f"{number}: {both!r}, {task}"
            assert all(side.is_clean() for side in sides), f"{number}: {both!r}, {task}"

            outcomes.add(both.state)
            if not task.cancelled() and task.result() < number:
                break
        for side in sides:
            await side.engine.dispose()

        assert outcomes == {State.COMMITTED, State.ROLLED_BACK}

    asyncio.run(sweep())


def test_fakes_are_awaited_too() -> None:
    """A group of fakes, or of a fake and a database, waits for its hooks."""
    ran: list[str] = []

    def hook(name: str) -> Callable[[], Awaitable[None]]:
        async def wait() -> None:
            await asyncio.sleep(0)
            ran.append(name)

        return wait

    async def main() -> None:
        both = distributed(AsyncFakeBank(Store()), AsyncFakeBank(Store()), domain=DOMAIN)
        async with both as (bank, stock):
            bank.before_commit(hook("before"))
            stock.after_commit(hook("after"))
            bank.things.add(Thing("a"))
            async with stock.nested() as nested:
                nested.after_rollback(hook("undone"))
                await nested.rollback()
            stock.things.add(Thing("a"))
            await both.commit()

    asyncio.run(main())

    assert ran == ["undone", "before", "after"]


def test_a_fake_and_a_database_wait_for_hooks(sides: list[Side]) -> None:
    """Hooks of a fake are awaited when a database is in its group: at the commit, and at the end of a nested scope."""
    ran: list[str] = []

    async def hook() -> None:
        await asyncio.sleep(0)
        ran.append("ran")

    async def main() -> None:
        both = distributed(sides[0].open(), AsyncFakeBank(Store()), domain=DOMAIN)
        async with both as (bank, fake):
            bank.things.add(Thing("a"))
            fake.before_commit(hook)
            fake.after_commit(hook)
            async with fake.nested() as nested:
                nested.after_rollback(hook)
                await nested.rollback()
            fake.things.add(Thing("a"))
            await both.commit()
        await sides[0].engine.dispose()

    asyncio.run(main())

    assert ran == ["ran"] * 3
