"""
The contract on PostgreSQL.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, create_engine

from uow.testing._sqlalchemy import SqlAlchemyHarness
from uow.testing.contract import ContractSuite


class TestPostgresql(ContractSuite):
    """
    Every rule on a PostgreSQL database.
    """

    @pytest.fixture
    def harness(self, postgresql_url: URL) -> Iterator[SqlAlchemyHarness]:
        """The bank on PostgreSQL."""
        harness = SqlAlchemyHarness(create_engine(postgresql_url, connect_args={"options": "-c lock_timeout=10s"}))
        yield harness
        harness.close()
