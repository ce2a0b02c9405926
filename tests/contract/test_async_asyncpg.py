"""
The contract on PostgreSQL, awaited through asyncpg.
"""

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from uow.testing._async_sqlalchemy import AsyncSqlAlchemyHarness
from uow.testing.contract import AsyncContractSuite


class TestAsyncpg(AsyncContractSuite):
    """
    Every rule on a PostgreSQL database.
    """

    @pytest.fixture
    def harness(self, postgresql_url: URL) -> Iterator[AsyncSqlAlchemyHarness]:
        """The bank on PostgreSQL."""
        url = postgresql_url.set(drivername="postgresql+asyncpg")
        make_engine = partial(create_async_engine, url, connect_args={"server_settings": {"lock_timeout": "10s"}})
        harness = AsyncSqlAlchemyHarness(create_engine(postgresql_url), make_engine)
        yield harness
        harness.close()
