"""
The primitives of a repository, in memory.
"""

import heapq
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Generic, TypeVar

from uow import Conflict
from uow.domain import Expression, Lock, Query, equalities, matches, ordered
from uow.errors import UnmappedEntity

from ._graph import Unit
from ._tables import Key, Values
from ._tracking import Shape
from ._views import Record

__all__ = ["FakeGateway"]

E = TypeVar("E")


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

    def conflict(self, entity: E, /) -> Conflict | None:
        """Tell whether the unit holds another object for its row, or another unit that is open holds *entity*."""
        return self._unit.conflict(entity)

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
        view = self._unit.view
        view.looked_for(self.entity, where)
        narrowed = None if where is None else self._narrowed(where)
        if narrowed is not None:
            behind: list[Any] = [key for key, _ in narrowed if last is None or key > last]
            return self._load(heapq.nsmallest(size, behind))
        found: list[Key] = []
        more = True
        while more and len(found) < size:
            keys, more = view.keys_after(self.entity, last, size)
            found += [key for key in keys if self._matches(where, view.row(self.entity, key))]
            last = keys[-1] if keys else last
        return self._load(found[:size])

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
        narrowed = None if where is None else self._narrowed(where)
        if narrowed is not None:
            return narrowed
        rows = self._unit.view.rows(self.entity).items()
        return [(key, values) for key, values in rows if self._matches(where, values)]

    def _matches(self, where: Expression | None, values: Values | None) -> bool:
        return values is not None and (where is None or matches(where, Record(values)))

    def _narrowed(self, where: Expression) -> list[tuple[Key, Values]] | None:
        """Return the rows that match, if *where* names a key or an indexed value; otherwise all must be looked at."""
        equal, view = equalities(where), self._unit.view
        for columns in (self.key, *self._unit.store.table(self.entity).indexes):
            if not equal.keys() >= set(columns):
                continue
            value = tuple(equal[column] for column in columns)
            try:
                keys = [value] if columns == self.key else list(view.find(self.entity, columns, value))
                rows = [(key, view.row(self.entity, key)) for key in keys]
            except TypeError:  # a value that cannot be hashed is in no index
                continue
            return [(key, row) for key, row in rows if row is not None and self._matches(where, row)]
        return None
