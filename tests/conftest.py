"""
The databases that the tests run on; each starts with the first test that asks for it.
"""

import os
from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from uow.testing._databases import DATABASES, MARIADB_VARIABLE, required_databases

pytest_plugins = ["pytester"]


def pytest_configure() -> None:
    """Refuse a misspelt ``UOW_TEST_REQUIRE`` before any test runs."""
    required_databases()


@pytest.fixture(scope="session", autouse=True)
def no_certificates() -> Iterator[None]:
    """
    Let PyMySQL read none, unless the server is somebody's own, which may want TLS.

    From 1.2 on it reads all of the machine for each connection, which may take longer than a test.
    """
    with pytest.MonkeyPatch.context() as patch:
        if MARIADB_VARIABLE not in os.environ:
            patch.setattr("pymysql.connections.SSL_ENABLED", False)
        yield


@pytest.fixture(scope="session")
def sqlite_url(uow_sqlite_url: URL) -> URL:
    """An SQLite file."""
    return uow_sqlite_url


@pytest.fixture(scope="session")
def postgresql_url(uow_postgresql_url: URL) -> URL:
    """A PostgreSQL database of this run."""
    return uow_postgresql_url


@pytest.fixture(scope="session")
def mariadb_url(uow_mariadb_url: URL) -> URL:
    """A MariaDB database of this run."""
    return uow_mariadb_url


@pytest.fixture(scope="session", params=sorted(DATABASES))
def database_url(request: pytest.FixtureRequest) -> URL:
    """Each of the databases in turn."""
    url: URL = request.getfixturevalue(f"{request.param}_url")
    return url
