"""
What one unit sees of a store, by its isolation level.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from attrs import define, field

from uow.domain import Expression, matches
from uow.errors import SerializationFailure

from ._store import Store
from ._tables import Key, Row, Table, Values, pick

__all__ = ["LEVELS", "Layer", "Name", "Record", "View"]

V = TypeVar("V")
Name = tuple[type, Key]


class Record:
    """
    A row whose values are attributes, for a specification to look at.
    """

    def __init__(self, values: Values) -> None:
        self.__dict__ = values


@define(eq=False)
class Layer(Generic[V]):
    """
    Rows that stand in front of a store's; None for one that is not there.
    """

    rows: dict[Name, V | None] = field(factory=dict[Name, V | None])
    _hints: dict[tuple[type, tuple[str, ...], Key], set[Key]] = field(
        factory=dict[tuple[type, tuple[str, ...], Key], set[Key]]
    )

    def hint(self, table: Table, key: Key, values: Values) -> None:
        """Let the row be found by its indexed values."""
        for columns in table.indexes:
            self._hints.setdefault((table.entity, columns, pick(columns, values)), set()).add(key)

    def hinted(self, entity: type, columns: tuple[str, ...], value: Key) -> set[Key]:
        """Return the keys of rows that had *value* at one time."""
        return self._hints.get((entity, columns, value), set())

    def cover(self, entity: type, rows: dict[Key, V]) -> None:
        """Put the rows of *entity* over *rows*."""
        for (kind, key), row in self.rows.items():
            if kind is entity:
                if row is None:
                    rows.pop(key, None)
                else:
                    rows[key] = row


class View:
    """
    READ COMMITTED: a unit's own writes over what is committed at the moment of the look.
    """

    def __init__(self, store: Store, own: Layer[Values]) -> None:
        self.store = store
        self.own = own

    def row(self, entity: type, key: Key) -> Values | None:
        """Return a row, None if there is none."""
        name = (entity, key)
        if name in self.own.rows:
            return self.own.rows[name]
        row = self.committed(entity, key)
        return None if row is None else row.values

    def rows(self, entity: type) -> dict[Key, Values]:
        """Return all rows of *entity*."""
        with self.store.mutex:
            found = {key: row.values for key, row in self._all(entity).items()}
        self.own.cover(entity, found)
        return found

    def keys_after(self, entity: type, last: Any, size: int) -> tuple[list[Key], bool]:
        """Return the next keys behind *last*, about *size* of them, in order; and whether there are more to come."""
        with self.store.mutex:
            keys: list[Any] = self.store.table(entity).keys_after(last, size)
            more = len(keys) == size
            end = keys[-1] if more else None
            for layer in self._layers:
                for kind, key in layer.rows:
                    behind: Any = key
                    if kind is entity and (last is None or behind > last) and not (more and behind > end):
                        keys.append(behind)
        return sorted(set(keys)), more

    @property
    def _layers(self) -> tuple[Layer[Any], ...]:
        return (self.own,)

    def find(self, entity: type, columns: tuple[str, ...], value: Key) -> Iterator[Key]:
        """Yield the keys of the rows that have *value* in indexed *columns*."""
        with self.store.mutex:
            keys = self._indexed(entity, columns, value) | self.own.hinted(entity, columns, value)
        for key in keys:
            row = self.row(entity, key)
            if row is not None and pick(columns, row) == value:
                yield key

    def committed(self, entity: type, key: Key) -> Row | None:
        """Return a row without what this unit wrote there."""
        with self.store.mutex:
            return self.store.table(entity).rows.get(key)

    def _all(self, entity: type) -> dict[Key, Row]:
        return self.store.table(entity).rows

    def _indexed(self, entity: type, columns: tuple[str, ...], value: Key) -> set[Key]:
        return self.store.table(entity).indexes[columns].get(value, set())

    def got(self, entity: type, key: Key) -> None:
        """Take note that the unit asked for that key."""

    def looked_for(self, entity: type, where: Expression | None) -> None:
        """Take note that the unit asked which rows match *where*."""

    def demand_unchanged(self, entity: type, key: Key) -> None:
        """Raise if this unit must not write or lock the row, because another one changed it."""

    def demand_valid(self) -> None:
        """Raise if what the unit read would be another now."""

    def close(self) -> None:
        """Stop looking."""


class Snapshot(View):
    """
    REPEATABLE READ: the rows as they were when the view was made.

    Nothing is copied then. A commit hands every open snapshot the rows that it is about to replace.
    """

    def __init__(self, store: Store, own: Layer[Values]) -> None:
        super().__init__(store, own)
        self._before: Layer[Row] = Layer()
        with store.mutex:
            store.snapshots.add(self)

    @property
    def _layers(self) -> tuple[Layer[Any], ...]:
        return (self.own, self._before)

    def keep(self, table: Table, key: Key) -> None:
        """Keep the row that is about to be replaced, unless an older one is kept."""
        name, row = (table.entity, key), table.rows.get(key)
        if name not in self._before.rows:
            self._before.rows[name] = row
            if row is not None:
                self._before.hint(table, key, row.values)

    def committed(self, entity: type, key: Key) -> Row | None:
        """Return a row without what this unit wrote there."""
        with self.store.mutex:
            name = (entity, key)
            return self._before.rows[name] if name in self._before.rows else super().committed(entity, key)

    def _all(self, entity: type) -> dict[Key, Row]:
        rows = dict(super()._all(entity))
        self._before.cover(entity, rows)
        return rows

    def _indexed(self, entity: type, columns: tuple[str, ...], value: Key) -> set[Key]:
        return super()._indexed(entity, columns, value) | self._before.hinted(entity, columns, value)

    def demand_unchanged(self, entity: type, key: Key) -> None:
        """Raise if another unit changed the row since the snapshot, so that writing would lose that change."""
        if self._before.rows.get((entity, key)) is not None:
            raise SerializationFailure(f"{entity.__name__} {key} was changed by another unit since this one's snapshot")

    def close(self) -> None:
        """Let go of the old rows."""
        with self.store.mutex:
            self.store.snapshots.discard(self)


class Serializable(Snapshot):
    """
    SERIALIZABLE: a snapshot, and what was read must still be so at the commit of a unit that writes.

    So those units are as good as run one after the other, in the order of their commits; one that only reads saw
    what was there between two of them.
    """

    def __init__(self, store: Store, own: Layer[Values]) -> None:
        super().__init__(store, own)
        self._keys: set[Name] = set()
        self._criteria: dict[type, list[Expression | None]] = {}

    def got(self, entity: type, key: Key) -> None:
        """Take note that the unit asked for that key."""
        self._keys.add((entity, key))

    def looked_for(self, entity: type, where: Expression | None) -> None:
        """Take note that the unit asked which rows match *where*."""
        self._criteria.setdefault(entity, []).append(where)

    def demand_valid(self) -> None:
        """Raise if another unit changed a row that was read, or one that matched or matches what was looked for."""
        with self.store.mutex:
            for (entity, key), before in self._before.rows.items():
                now = self.store.table(entity).rows.get(key)
                if (entity, key) in self._keys or self._matched(entity, before, now):
                    raise SerializationFailure(
                        f"{entity.__name__} {key}, which this unit read or looked for, was changed by another unit "
                        "that committed first"
                    )

    def _matched(self, entity: type, *rows: Row | None) -> bool:
        return any(
            where is None or matches(where, Record(row.values))
            for row in rows
            if row is not None
            for where in self._criteria.get(entity, ())
        )


LEVELS: dict[str, type[View]] = {
    "READ UNCOMMITTED": View,
    "READ COMMITTED": View,
    "REPEATABLE READ": Snapshot,
    "SERIALIZABLE": Serializable,
}
