"""
The pytest plugin: fixtures for tests of applications; pytest finds it by itself where ``uow`` is installed.

What a fixture needs is imported when a test asks for it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from uow.adapters.memory import Store

    from ._recorder import Recorder

__all__ = ["uow_mariadb_url", "uow_postgresql_url", "uow_recorder", "uow_sandbox", "uow_sqlite_url", "uow_store"]


@pytest.fixture
def uow_store() -> "Iterator[Store]":
    """
    An empty `Store` for fakes: ``FakeBank(uow_store)``. The test fails if a failure was ordered with
    ``uow_store.fail_next(...)`` and never met.
    """
    from uow.adapters.memory import Store

    store = Store()
    yield store
    if store.pending_failures:
        pytest.fail(_not_met(store), pytrace=False)


def _not_met(store: "Store") -> str:
    orders = "\n".join(f"  {failure}" for failure in store.pending_failures)
    return f"The test ordered failures of the store that were never met:\n{orders}"


@pytest.fixture
def uow_recorder() -> "Recorder":
    """
    What became of the units that are made with it: ``FakeBank(store, observers=[uow_recorder])``. Assert on its
    ``committed``, ``rolled_back``, ``in_doubt`` and ``events``.
    """
    from ._recorder import Recorder

    return Recorder()


@pytest.fixture
def uow_sandbox() -> "Iterator[Callable[..., Engine]]":
    """
    Calling it with an engine gives another one, on which the code under test commits as usual; all of it is undone
    after the test: ``SqlBank(uow_sandbox(engine))``. For an AsyncEngine use ``async with uow.testing.sandbox(engine)``.
    """
    from ._sandbox import sandbox

    with ExitStack() as stack:

        def enter(engine: Any, **options: Any) -> "Engine":
            from sqlalchemy.ext.asyncio import AsyncEngine

            if isinstance(engine, AsyncEngine):
                raise pytest.UsageError(
                    "uow_sandbox cannot await an AsyncEngine: enter `async with uow.testing.sandbox(engine)` in the "
                    "test, or in an asynchronous fixture of its event loop."
                )
            inside: Engine = stack.enter_context(sandbox(engine, **options))
            return inside

        yield enter


@pytest.fixture(scope="session")
def uow_sqlite_url() -> "Iterator[URL]":
    """
    The URL of an empty SQLite file, removed when the session ends. With pytest-xdist each worker has its own.
    """
    yield from _database("sqlite")


@pytest.fixture(scope="session")
def uow_postgresql_url() -> "Iterator[URL]":
    """
    The URL of an empty database of this test session on an embedded PostgreSQL, which starts with the first test that
    asks for it, once in each process; with pytest-xdist each worker has its own. ``UOW_TEST_POSTGRESQL_URL`` names
    another server. If there is none, the test is skipped; ``UOW_TEST_REQUIRE=postgresql`` makes that a failure.
    """
    yield from _database("postgresql")


@pytest.fixture(scope="session")
def uow_mariadb_url() -> "Iterator[URL]":
    """
    The URL of an empty database of this test session on the MariaDB server of ``UOW_TEST_MARIADB_URL``, or else of
    127.0.0.1; with pytest-xdist each worker has its own. If there is none, the test is skipped;
    ``UOW_TEST_REQUIRE=mariadb`` makes that a failure.
    """
    yield from _database("mariadb")


def _database(name: str) -> "Iterator[URL]":
    from ._databases import open_database

    with open_database(name) as url:
        yield url
