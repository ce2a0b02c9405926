"""
Databases for tests that cannot be had, and the annotations that declare no repository.
"""

from typing import ClassVar

import pytest

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
