"""
The contract on MariaDB.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, create_engine

from uow.testing._sqlalchemy import SqlAlchemyHarness
from uow.testing.contract import ContractSuite


class TestMariadb(ContractSuite):
    """
    Every rule on a MariaDB database.
    """

    @pytest.fixture
    def harness(self, mariadb_url: URL) -> Iterator[SqlAlchemyHarness]:
        """The bank on MariaDB."""
        limits = "SET lock_wait_timeout = 10, innodb_lock_wait_timeout = 10"
        harness = SqlAlchemyHarness(create_engine(mariadb_url, connect_args={"init_command": limits}))
        yield harness
        harness.close()
