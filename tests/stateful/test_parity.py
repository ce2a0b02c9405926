"""
The parity machine: the fake and the databases do the same, and what it says where they do not.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Engine

from uow.testing._parity_bank import BankParity, hurried_engine


class Repeatable(BankParity):
    """
    Programs that are the same in each run, so that none fails by chance. ``--hypothesis-seed`` makes other ones.
    """

    @pytest.fixture(params=range(2))
    def seed(self, request: pytest.FixtureRequest) -> int:
        """Where the programs begin; each round of them takes the next number."""
        given = request.config.getoption("--hypothesis-seed")
        first = 1000 if given is None else int(given)
        return first + 1000 * int(request.param)


class TestSqlite(Repeatable):
    """
    The fake and an SQLite file.
    """

    @pytest.fixture
    def engine(self, sqlite_url: URL) -> Iterator[Engine]:
        """A file that waits for nothing."""
        engine = hurried_engine(sqlite_url)
        yield engine
        engine.dispose()


class TestPostgresql(Repeatable):
    """
    The fake and PostgreSQL, where units overlap.
    """

    @pytest.fixture
    def engine(self, postgresql_url: URL) -> Iterator[Engine]:
        """A database where nobody waits for long."""
        engine = hurried_engine(postgresql_url)
        yield engine
        engine.dispose()
