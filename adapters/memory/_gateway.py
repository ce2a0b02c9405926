"""
The primitives of a repository, in memory.
"""

import heapq
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from uow.domain import Expression, Lock, Query, equalities, matches, ordered
from uow.errors import UnmappedEntity

from ._store import Key, Store, Values
from ._tracking import Shape
from ._views import Record, View

__all__ = ["FakeGateway"]

E = TypeVar("E")


class Unit(Protocol):
    """
    What a gateway needs of its unit.
    """

    store: Store

    @property
    def view(self) -> View:
        """What it sees of the store."""
        ...

    def load(self, entity: type, key: Key, *, anew: bool = False) -> Any | None:
        """Return the entity with that key."""
        ...

    def add(self, entity: Any) -> None:
        """Take a new entity in."""
        ...

    def remove(self, entity: Any) -> bool:
        """Remove an entity; False if this unit knows none such."""
        ...


class FakeGateway(Generic[E]):
    """
    What a repository of *entity* needs from a unit in memory.
    """

    def __init__(self, entity: type[E], shape: Shape, unit: Unit) -> None:
        self.entity = entity
        self.attributes: Collection[str] = shape.attributes
        self.key = shape.key
        self._unit = unit

    def add(self, entities: Sequence[E], /) -> None:
        """Take new entities in."""
        for entity in entities:
            if type(entity) is not self.entity:
                raise UnmappedEntity(
                    type(entity),
                    f"the fake would not find it among {self.entity.__name__} again, it knows no inheritance",
                    "Test it on SQLite.",
                )
            self._unit.add(entity)

    def remove(self, entity: E, /) -> bool:
        """Remove *entity*; forget it if it was not written yet."""
        return self._unit.remove(entity)

    def get(self, key: Key, lock: Lock | None, /) -> E | None:
        """Return the entity with that key, or None."""
        if not self._lock(key, lock):
            return None
        found: E | None = self._unit.load(self.entity, key, anew=lock is not None)
        return found

    def select(self, query: Query, /) -> Sequence[E]:
        """Return the entities that *query* describes."""
        found = [(key, Record(values)) for key, values in self._matching(query.where)]
        if query.order:
            by_row = {id(record): key for key, record in found}
            keys = [by_row[id(record)] for record in ordered([record for _, record in found], query.order)]
        else:
            keys = [key for key, _ in found]
        end = None if query.limit is None else query.offset + query.limit
        chosen = itertools.islice((key for key in keys if self._lock(key, query.lock)), query.offset, end)
        return self._load(chosen, anew=query.lock is not None)

    def pages(self, where: Expression | None, size: int, after: E | None, /) -> Sequence[E]:
        """Return a page of entities in key order."""
        last: Any = None if after is None else tuple(getattr(after, name) for name in self.key)
        keys: Any = (key for key, _ in self._matching(where) if last is None or key > last)
        return self._load(heapq.nsmallest(size, keys))

    def count(self, where: Expression | None, /) -> int:
        """Count the entities that match."""
        return sum(1 for _ in self._matching(where))

    def exists(self, where: Expression | None, /) -> bool:
        """Tell whether any entity matches."""
        return any(True for _ in self._matching(where))

    def _load(self, keys: Iterable[Key], *, anew: bool = False) -> Sequence[E]:
        entities = [self._unit.load(self.entity, key, anew=anew) for key in keys]
        return [entity for entity in entities if entity is not None]

    def _lock(self, key: Key, lock: Lock | None) -> bool:
        return lock is None or self._unit.store.lock(
            self.entity, key, self._unit, shared=lock.shared, skip=lock.skip_locked
        )

    def _matching(self, where: Expression | None) -> list[tuple[Key, Values]]:
        self._unit.view.looked_for(self.entity, where)
        if where is None:
            return list(self._unit.view.rows(self.entity).items())
        return [(key, values) for key, values in self._candidates(where) if matches(where, Record(values))]

    def _candidates(self, where: Expression) -> list[tuple[Key, Values]]:
        """Return the rows that can match: one or a few if *where* names a key or an indexed value, else all."""
        equal, view = equalities(where), self._unit.view
        for columns in (self.key, *self._unit.store.table(self.entity).indexes):
            if not equal.keys() >= set(columns):
                continue
            value = tuple(equal[column] for column in columns)
            try:
                keys = [value] if columns == self.key else list(view.find(self.entity, columns, value))
            except TypeError:  # a value that cannot be hashed is in no index
                continue
            return [(key, row) for key in keys if (row := view.row(self.entity, key)) is not None]
        return list(view.rows(self.entity).items())
