"""
The contract on SQLite.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, create_engine

from uow.testing._sqlalchemy import SqlAlchemyHarness
from uow.testing.contract import ContractSuite


class TestSqlite(ContractSuite):
    """
    Every rule on an SQLite file.
    """

    @pytest.fixture
    def harness(self, sqlite_url: URL) -> Iterator[SqlAlchemyHarness]:
        """The bank on SQLite."""
        harness = SqlAlchemyHarness(create_engine(sqlite_url))
        yield harness
        harness.close()
