"""
The contract on MariaDB, awaited through aiomysql.
"""

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from uow.testing._async_sqlalchemy import AsyncSqlAlchemyHarness
from uow.testing.contract import AsyncContractSuite

LIMITS = "SET lock_wait_timeout = 10, innodb_lock_wait_timeout = 10"


class TestAsyncMariadb(AsyncContractSuite):
    """
    Every rule on a MariaDB database.
    """

    @pytest.fixture
    def harness(self, mariadb_url: URL) -> Iterator[AsyncSqlAlchemyHarness]:
        """The bank on MariaDB."""
        url = mariadb_url.set(drivername="mysql+aiomysql")
        make_engine = partial(create_async_engine, url, connect_args={"init_command": LIMITS})
        harness = AsyncSqlAlchemyHarness(create_engine(mariadb_url), make_engine)
        yield harness
        harness.close()
