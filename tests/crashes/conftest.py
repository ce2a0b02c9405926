"""
The databases of the transfers that are crashed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from uow import _group
from uow.testing import DatabaseServer, MariaDbServer, PostgresServer, open_database

from .transfers import Forks, World

KINDS = {
    "postgresql+postgresql": {"bank": "postgresql", "stock": "postgresql"},
    "postgresql+mariadb": {"bank": "postgresql", "stock": "mariadb"},
    "sqlite+postgresql": {"bank": "sqlite", "stock": "postgresql"},
    "mariadb+mariadb": {"bank": "mariadb", "stock": "mariadb"},
    "postgresql+postgresql+mariadb": {"bank": "postgresql", "stock": "postgresql", "till": "mariadb"},
    "postgresql+mariadb+postgresql": {"bank": "postgresql", "stock": "mariadb", "till": "postgresql"},
}
"""The databases by their names; the first one is the last agent."""


@pytest.fixture(autouse=True)
def forget_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget each decision when it is done, not a hundred: that is a step, too."""
    monkeypatch.setattr(_group, "_BATCH", 1)


@pytest.fixture(scope="session")
def worlds() -> Iterator[Callable[[str], World]]:
    """The databases of each kind, made when they are first asked for."""
    made: dict[str, World] = {}
    with ExitStack() as stack:

        def world(kind: str) -> World:
            if kind not in made:
                urls = {name: stack.enter_context(open_database(driver)) for name, driver in KINDS[kind].items()}
                made[kind] = World.of(**urls)
            return made[kind]

        yield world


@pytest.fixture
def world(request: pytest.FixtureRequest, worlds: Callable[[str], World]) -> Iterator[World]:
    """The databases of one kind."""
    world = worlds(getattr(request, "param", "postgresql+postgresql"))
    yield world
    world.clean_up()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What kills processes."""
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], DatabaseServer]]:
    """Servers to kill, which wait for the disk; each is started when it is first asked for."""
    made: dict[str, DatabaseServer] = {}
    with ExitStack() as stack:

        def server(name: str) -> DatabaseServer:
            if name not in made:
                kind = MariaDbServer() if name == "mariadb" else PostgresServer(max_prepared_transactions=20)
                made[name] = stack.enter_context(kind)
            return made[name]

        yield server
