"""
What a unit takes for a replica.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from uow.errors import ConfigurationError
from uow.testing._async_sqlalchemy import AsyncSqlBank
from uow.testing._sqlalchemy import SqlBank

IN_AUTOCOMMIT = (
    "Wrong configuration: the engine is in AUTOCOMMIT, so there would be no transaction to roll back. "
    "Create the engine without isolation_level='AUTOCOMMIT'."
)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def async_engine(**options: Any) -> AsyncEngine:
    """Make an engine that never connects."""
    return create_async_engine("sqlite+aiosqlite://", **options)


@pytest.mark.parametrize("make", [lambda: "sqlite://", async_engine], ids=["text", "asynchronous"])
def test_a_replica_that_is_no_engine(engine: Engine, make: Callable[[], Any]) -> None:
    """What is no engine of the unit's own kind is refused when the unit is made."""
    replica = make()
    with pytest.raises(ConfigurationError) as caught:
        SqlBank(engine, replica=replica)

    assert f"Wrong configuration: the replica {replica!r} is no Engine. Pass create_engine(...)." == f"{caught.value}"


@pytest.mark.parametrize("make", [lambda: "", lambda: create_engine("sqlite://")], ids=["text", "synchronous"])
def test_a_replica_that_is_no_asynchronous_engine(make: Callable[[], Any]) -> None:
    """The same holds for the asynchronous face, which must not wait for a synchronous engine."""
    replica = make()
    with pytest.raises(ConfigurationError) as caught:
        AsyncSqlBank(async_engine(), replica=replica)

    assert (
        f"Wrong configuration: the replica {replica!r} is no AsyncEngine. Pass create_async_engine(...)."
    ) == f"{caught.value}"


def test_a_replica_in_autocommit(engine: Engine) -> None:
    """A replica must have transactions too, or a read-only unit would not read one state."""
    options = {"isolation_level": "AUTOCOMMIT"}
    with pytest.raises(ConfigurationError) as caught:
        SqlBank(engine, replica=create_engine("sqlite://", **options))
    with pytest.raises(ConfigurationError) as caught_too:
        AsyncSqlBank(async_engine(), replica=async_engine(**options))

    assert [IN_AUTOCOMMIT] * 2 == [f"{caught.value}", f"{caught_too.value}"]


def test_a_replica_that_serves(engine: Engine) -> None:
    """One of the right kind is taken, and None stands for none."""
    for bank in (
        SqlBank(engine, replica=create_engine("sqlite://")),
        SqlBank(engine, replica=None),
        AsyncSqlBank(async_engine(), replica=async_engine()),
        AsyncSqlBank(async_engine(), replica=None),
    ):
        assert bank.independent(read_only=True) is not None
