"""
The databases that the tests run on; each starts with the first test that asks for it.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from uow.testing._databases import DATABASES, open_database, required_databases


def pytest_configure() -> None:
    """Refuse a misspelt ``UOW_TEST_REQUIRE`` before any test runs."""
    required_databases()


@pytest.fixture(scope="session")
def sqlite_url() -> Iterator[URL]:
    """An SQLite file."""
    with open_database("sqlite") as url:
        yield url


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[URL]:
    """A PostgreSQL database of this run."""
    with open_database("postgresql") as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[URL]:
    """A MariaDB database of this run."""
    with open_database("mariadb") as url:
        yield url


@pytest.fixture(scope="session", params=sorted(DATABASES))
def database_url(request: pytest.FixtureRequest) -> URL:
    """Each of the databases in turn."""
    url: URL = request.getfixturevalue(f"{request.param}_url")
    return url
