"""
Stores in memory that a unit adds one entity to: our fake, none at all, those of peers that are installed, and SQLite.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from attrs import define
from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from uow import Watcher
from uow.adapters.memory import FakeUnitOfWork, Store

from .databases import Database
from .model import Item, Shop, SqlShop, items, metadata, new, row

__all__ = ["FAKES", "MISSING", "FakeShop", "OurFake", "SessionOnSqlite", "UnitOnSqlite"]


class FakeShop(FakeUnitOfWork, Shop): ...


class InMemory:
    most = 1_000_000
    """How many entities it can be given in reasonable time."""


class OurFake(InMemory):
    name = "uow, fake"

    def ready(self, stored: int) -> None:
        """Hold so many items, with keys from 1."""
        self.store = Store()
        for key in range(1, stored + 1):
            self.store.put(Item, (key,), row(key))

    def unit(self) -> Any:
        return FakeShop(self.store)

    def add(self, key: int) -> None:
        with self.unit() as unit:
            unit.items.add(new(key))
            unit.commit()


class _Nothing:
    """
    A transaction that keeps nothing, and the gateway of its repositories.
    """

    entity = Item
    begun = True

    def watch(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def gateway(self, entity: type) -> Any:
        return self

    def conflict(self, entity: object) -> None: ...

    def add(self, entities: Sequence[object]) -> None:
        for entity in entities:
            self.watcher.added(entity)

    def flush(self) -> None: ...

    confirm = commit = flush

    def close(self, *, broken: bool = False) -> None: ...


class RulesShop(Shop):
    def _begin(self) -> Any:
        return _Nothing()

    def _database(self) -> Any:
        return self

    _outcomes = _resource = _place = _database


class RulesAlone(OurFake):
    """What the port does, without any adapter: what a unit costs at least."""

    name = "uow, the rules alone"

    def unit(self) -> Any:
        return RulesShop()


class UnitOnSqlite(InMemory):
    name = "uow, SQLite in memory"

    needs_recipe = False

    def __init__(self) -> None:
        self.engine = Database("sqlite-memory", "sqlite://").engine(recipe=self.needs_recipe)
        metadata.create_all(self.engine)

    def ready(self, stored: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(items))
            for first in range(1, stored + 1, 10_000):
                keys = range(first, min(first + 10_000, stored + 1))
                connection.execute(insert(items), [row(key) for key in keys])

    def unit(self) -> Any:
        return SqlShop(self.engine)

    def add(self, key: int) -> None:
        with self.unit() as unit:
            unit.items.add(new(key))
            unit.commit()


class SessionOnSqlite(UnitOnSqlite):
    name = "Session, SQLite in memory"
    needs_recipe = True

    def unit(self) -> Any:
        return Session(self.engine)

    def add(self, key: int) -> None:
        with self.unit() as session:
            session.add(new(key))
            session.commit()


@define(eq=False)
class Plain:
    id: int
    name: str
    quantity: int


def _plain(key: int) -> Plain:
    return Plain(key, f"item {key}", 1)


class UnitOfWorkFake(InMemory):
    """Its manual's repository in memory: a checkpoint is a deep copy of everything."""

    name = "unitofwork, deep copies"

    def __init__(self) -> None:
        from unitofwork import UnitOfWork  # type: ignore[import-not-found]

        logging.getLogger("unitofwork").setLevel(logging.CRITICAL)
        self._unit: Callable[..., Any] = UnitOfWork
        self._rows: dict[int, Plain] = {}

    def checkpoint(self) -> dict[int, Plain]:
        return copy.deepcopy(self._rows)

    def restore(self, snapshot: dict[int, Plain]) -> None:
        self._rows = snapshot

    def commit(self) -> None:
        """Everything is there already."""

    def ready(self, stored: int) -> None:
        self._rows = {key: _plain(key) for key in range(1, stored + 1)}

    def add(self, key: int) -> None:
        with self._unit(self) as unit:
            unit.register_operation(lambda: self._rows.setdefault(key, _plain(key)))


class ProteanFake(InMemory):
    """Its memory provider."""

    name = "Protean, memory provider"
    most = 10_000

    def __init__(self) -> None:
        import structlog  # type: ignore[import-not-found]
        from protean import UnitOfWork  # type: ignore[import-not-found]
        from protean.domain import Domain  # type: ignore[import-not-found]
        from protean.fields import Integer, String  # type: ignore[import-not-found]

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        logging.getLogger("protean").setLevel(logging.CRITICAL)
        self._domain = Domain(name="benchmark", config={"identity_type": "integer"})

        @self._domain.aggregate  # type: ignore[untyped-decorator]
        class Stored:
            id = Integer(identifier=True)
            name = String(max_length=80)
            quantity = Integer()

        self._unit, self._entity = UnitOfWork, Stored
        self._domain.init(traverse=False)
        self._domain.domain_context().push()

    def ready(self, stored: int) -> None:
        self._domain.providers["default"]._data_reset()
        with self._unit():
            repository = self._domain.repository_for(self._entity)
            for key in range(1, stored + 1):
                repository.add(self._entity(id=key, name=f"item {key}", quantity=1))

    def add(self, key: int) -> None:
        with self._unit():
            self._domain.repository_for(self._entity).add(self._entity(id=key, name=f"item {key}", quantity=1))


class AdvancedAlchemyFake(InMemory):
    """Its repository in memory, which has no unit: nothing is ever rolled back."""

    name = "advanced-alchemy, repository in memory"
    most = 100_000

    def __init__(self) -> None:
        from advanced_alchemy.repository.memory import (  # type: ignore[import-not-found]
            SQLAlchemySyncMockRepository,
        )

        class Items(SQLAlchemySyncMockRepository):  # type: ignore[misc]
            model_type = Item

        self._items: Any = Items(session=Session())

    def ready(self, stored: int) -> None:
        self._items.__database__.remove_all()
        self._items.add_many([new(key) for key in range(1, stored + 1)])

    def add(self, key: int) -> None:
        self._items.add(new(key))


_PEERS: dict[str, type[Any]] = {
    "protean": ProteanFake,
    "unitofwork": UnitOfWorkFake,
    "advanced_alchemy": AdvancedAlchemyFake,
}
MISSING = [package for package in _PEERS if find_spec(package) is None]
"""The peers that are not installed."""

FAKES: list[type[Any]] = [
    OurFake,
    RulesAlone,
    SessionOnSqlite,
    UnitOnSqlite,
    *(fake for package, fake in _PEERS.items() if package not in MISSING),
]
