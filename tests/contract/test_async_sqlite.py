"""
The contract on SQLite, awaited through aiosqlite.
"""

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from uow.testing._async_sqlalchemy import AsyncSqlAlchemyHarness
from uow.testing.contract import AsyncContractSuite


class TestAsyncSqlite(AsyncContractSuite):
    """
    Every rule on an SQLite file.
    """

    @pytest.fixture
    def harness(self, sqlite_url: URL) -> Iterator[AsyncSqlAlchemyHarness]:
        """The bank on SQLite."""
        url = sqlite_url.set(drivername="sqlite+aiosqlite")
        make_engine = partial(create_async_engine, url)
        harness = AsyncSqlAlchemyHarness(create_engine(sqlite_url), make_engine)
        yield harness
        harness.close()
