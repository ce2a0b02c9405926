"""
The bank of the example on the fake and on each database.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache

import pytest
from dependency_injector import providers
from sqlalchemy import MetaData

from uow.examples.bank.adapters import FakeBank, make_store, make_tables
from uow.examples.bank.container import Container
from uow.examples.bank.service import Line
from uow.testing import DATABASES, open_database


@pytest.fixture
def fake() -> Iterator[Container]:
    """The application on the fake."""
    container = Container()
    with container.override_providers(bank=providers.Factory(FakeBank, make_store())):
        yield container


@pytest.fixture(scope="session")
def open_url() -> Iterator[Callable[[str], str]]:
    """Opens a database by its kind, once."""
    with ExitStack() as stack:

        @cache
        def open_once(kind: str) -> str:
            return stack.enter_context(open_database(kind)).render_as_string(hide_password=False)

        yield open_once


@pytest.fixture(params=sorted(DATABASES))
def database(request: pytest.FixtureRequest, open_url: Callable[[str], str]) -> Iterator[Container]:
    """The application on a database of each kind, which is empty at first."""
    container = Container()
    container.config.database_url.from_value(open_url(request.param))
    engine = container.engine()
    make_tables(engine)
    yield container
    tables = MetaData()
    tables.reflect(engine)
    tables.drop_all(engine)
    engine.dispose()


@pytest.fixture
def lines() -> Callable[..., Sequence[Line]]:
    """Makes the lines of a file: ``lines("D-1,,ann,10.00", ...)``. The first is line 2, behind the header."""
    return lambda *rows: [Line(number, row.split(",")) for number, row in enumerate(rows, 2)]
