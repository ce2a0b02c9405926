"""
Engines, pools and classes that cannot serve a unit: the error says what to do, and nothing is lost.
"""

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import InvalidRequestError, SAWarning
from sqlalchemy.orm import sessionmaker

from uow import Repository, State
from uow.errors import (
    ConfigurationError,
    ConnectionUnavailable,
    DatabaseError,
    UnitOfWorkRolledBack,
    UnmappedEntity,
)
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank


@pytest.fixture
def harness(database_url: URL) -> Iterator[SqlAlchemyHarness]:
    harness = SqlAlchemyHarness(create_engine(database_url))
    yield harness
    harness.close()


def test_a_full_pool_says_what_to_do(database_url: URL) -> None:
    """A unit that gets no connection is ConnectionUnavailable, says why, and costs the others nothing."""
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with closing(SqlAlchemyHarness(engine)) as harness:
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            with pytest.raises(ConnectionUnavailable, match=r"pool is exhausted.*pool_size"):
                with harness.bank() as other:
                    other.accounts.count()

            assert State.ROLLED_BACK is other.state

            with pytest.raises(UnitOfWorkRolledBack) as caught:
                with harness.bank() as other:
                    with suppress(ConnectionUnavailable):
                        other.accounts.count()
            bank.commit()

        assert isinstance(caught.value.__cause__, ConnectionUnavailable)
        assert ["A-1"] == harness.numbers()
        assert harness.idle()


def test_an_engine_in_autocommit_is_refused(database_url: URL) -> None:
    """An engine in AUTOCOMMIT is a ConfigurationError when the unit is made, however it was said."""
    for engine in (
        create_engine(database_url, isolation_level="AUTOCOMMIT"),
        create_engine(database_url, execution_options={"isolation_level": "AUTOCOMMIT"}),
        create_engine(database_url).execution_options(isolation_level="AUTOCOMMIT"),
    ):
        for bind in (engine, sessionmaker(engine)):
            with pytest.raises(ConfigurationError, match=r"AUTOCOMMIT.*Create the engine without"):
                SqlBank(bind)
        engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_driver_in_autocommit_is_refused(request: pytest.FixtureRequest, name: str) -> None:
    """A driver that commits by itself is found with the first statement."""
    engine = create_engine(request.getfixturevalue(f"{name}_url"), connect_args={"autocommit": True})
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        with SqlBank(engine) as bank:
            bank.session.execute(text("SELECT 1"))

    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
    engine.dispose()


@pytest.mark.parametrize("begun", [False, True])
def test_a_unit_does_not_become_autocommit_later(harness: SqlAlchemyHarness, begun: bool) -> None:
    """A unit whose session is asked for an AUTOCOMMIT connection refuses, or ignores it with SQLAlchemy's warning."""
    with harness.bank() as bank:
        if begun:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
        with pytest.raises((SAWarning, ConfigurationError, InvalidRequestError)):
            bank.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with suppress(DatabaseError):
            bank.accounts.add(Account("B-2", "Bob"))
            bank.flush()
        bank.rollback()

    assert [] == harness.numbers()
    assert harness.idle()


@pytest.mark.parametrize("bind", ["sqlite://", None, sessionmaker()])
def test_a_bind_that_is_no_engine_is_refused(bind: Any) -> None:
    """Something else than an engine or a bound sessionmaker is a ConfigurationError that says what to pass."""
    with pytest.raises(ConfigurationError, match=r"sessionmaker\(engine\)"):
        SqlBank(bind)


def test_a_session_for_several_engines_is_refused(harness: SqlAlchemyHarness) -> None:
    """A sessionmaker with binds or two-phase commit is no single transaction."""
    for options in ({"binds": {Account: harness.engine}}, {"twophase": True}):
        with pytest.raises(ConfigurationError, match="one engine"):
            SqlBank(sessionmaker(harness.engine, **options))


class Stranger:
    """A class that no mapping knows."""


class WideBank(SqlBank):
    """A bank with something unmapped."""

    strangers: Repository[Stranger]


def test_an_unmapped_class_is_refused(harness: SqlAlchemyHarness) -> None:
    """A repository of an unmapped class is UnmappedEntity, says how to map it, and breaks nothing."""
    with WideBank(harness.engine) as bank:
        bank.accounts.add(Account("A-1", "Ann"))
        with pytest.raises(UnmappedEntity, match=r"Stranger.*map_imperatively"):
            _ = bank.strangers
        bank.commit()

    assert ["A-1"] == harness.numbers()
