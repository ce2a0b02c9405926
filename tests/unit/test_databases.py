"""
Databases for tests that cannot be had, and the annotations that declare no repository.
"""

import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
from sqlalchemy import URL, create_engine, text

from uow import Repository, entity
from uow.adapters.memory import FakeUnitOfWork
from uow.testing import Unavailable, open_database, require_or_skip
from uow.testing import _databases as databases


@entity
class Thing:
    id: int


class Things(FakeUnitOfWork):
    things: Repository[Thing]
    limit: int = 3
    names: ClassVar[tuple[str, ...]]
    _hidden: str


def test_what_is_no_repository_may_be_annotated_too() -> None:
    """A value, ClassVar or an underscore says that it is something else."""
    with Things() as unit:
        assert 0 == unit.things.count()
        assert 3 == unit.limit


def test_a_server_that_is_not_there_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without UOW_TEST_REQUIRE, what is missing is skipped, with the reason."""
    monkeypatch.delenv(databases.REQUIRE_VARIABLE, raising=False)
    monkeypatch.setenv(databases.MARIADB_VARIABLE, "mysql+pymysql://root:@127.0.0.1:1/")
    with pytest.raises(pytest.skip.Exception, match=r"mariadb: .*does not serve.*UOW_TEST_MARIADB_URL"):
        with open_database("mariadb"):
            pass


def test_a_server_that_is_required_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """UOW_TEST_REQUIRE turns the skip into a failure."""
    monkeypatch.setenv(databases.REQUIRE_VARIABLE, "mariadb, sqlite")
    with pytest.raises(pytest.fail.Exception, match="asks for mariadb, but it sleeps"):
        require_or_skip("mariadb", "it sleeps")


def test_a_requirement_that_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name would silently require nothing."""
    monkeypatch.setenv(databases.REQUIRE_VARIABLE, "mariabd")
    with pytest.raises(
        pytest.UsageError, match=r"names mariabd, which no test knows. Name some of mariadb, postgresql"
    ):
        databases.required_databases()


def test_a_library_that_is_missing_names_the_extra() -> None:
    """What is not installed can be, and the reason says how."""
    with pytest.raises(Unavailable, match=r"no_such_library is not installed. Install uow\[testing\]"):
        databases._library("no_such_library", extra="testing")


def test_sessions_that_were_left_open_do_not_keep_a_database(mariadb_url: URL) -> None:
    """A leak in a test ends with the database, and does not make the drop wait."""
    with open_database("mariadb") as url:
        engine = create_engine(url)
        connection = engine.connect()
        connection.execute(text("CREATE TABLE t (id INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (1)"))
    engine = create_engine(mariadb_url)
    with engine.connect() as other:
        names = other.execute(text("SELECT schema_name FROM information_schema.schemata")).scalars().all()
    engine.dispose()
    connection.invalidate()
    connection.close()

    assert url.database not in names


def test_an_embedded_server_that_does_not_start_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the variable for another server."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(databases, "_library", lambda name, extra: SimpleNamespace(get_server=refuse))
    with pytest.raises(Unavailable, match=r"does not start: no room. Name a server in UOW_TEST_POSTGRESQL_URL"):
        databases._embedded_postgresql.__wrapped__()


@pytest.mark.parametrize(
    ("missing", "text_"),
    [
        ("sqlalchemy", "needs SQLAlchemy, which is not installed. Install uow[sqlalchemy]"),
        ("uow.adapters.sqlalchemy._unit", "import of uow.adapters.sqlalchemy._unit halted"),
    ],
)
def test_an_adapter_whose_library_is_missing_names_the_extra(missing: str, text_: str) -> None:
    """Importing it says what to install; any other module that is missing is reported as it is."""
    program = f"import sys; sys.modules[{missing!r}] = None; import uow.adapters.sqlalchemy"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    assert text_ in done.stderr
