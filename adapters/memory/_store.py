"""
The fake's database: committed rows, constraints, locks.
"""

import itertools
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from attrs import define, field, frozen

from uow.domain import Expression, Specification, attributes_of, key_names_of, trace
from uow.errors import ConfigurationError, DatabaseError, LockTimeout, UnitOfWorkError, UnmappedEntity

__all__ = ["Check", "ForeignKey", "Key", "Row", "Store", "Table", "Values", "pick"]

E = TypeVar("E")
Key = tuple[object, ...]
Values = dict[str, Any]


@frozen
class Row:
    """
    A committed row; *revision* tells one state of it from the next.
    """

    values: Values
    revision: int


@frozen
class ForeignKey:
    """
    *attribute* of *entity* holds the key of a *target*.
    """

    entity: type
    attribute: str
    target: type


@frozen
class Check:
    """
    A criterion that no row of an entity may make false.
    """

    name: str
    criterion: Expression


@define(eq=False)
class Table:
    """
    The committed rows of one entity class and what is declared about them.
    """

    entity: type
    rows: dict[Key, Row] = field(factory=dict[Key, Row])
    last_id: int = 0
    uniques: list[tuple[str, ...]] = field(factory=list[tuple[str, ...]])
    indexes: dict[tuple[str, ...], dict[Key, set[Key]]] = field(factory=dict[tuple[str, ...], dict[Key, set[Key]]])
    not_null: set[str] = field(factory=set[str])
    checks: list[Check] = field(factory=list[Check])

    @property
    def name(self) -> str:
        """What errors call the table."""
        return self.entity.__name__

    def index(self, columns: tuple[str, ...]) -> None:
        """Keep an index on *columns*."""
        index = self.indexes[columns] = {}
        for key, row in self.rows.items():
            index.setdefault(pick(columns, row.values), set()).add(key)

    def put(self, key: Key, row: Row | None) -> None:
        """Replace, add or (None) remove a row, and keep the indexes."""
        old = self.rows.pop(key, None)
        for columns, index in self.indexes.items():
            if old is not None:
                value = pick(columns, old.values)
                index[value].discard(key)
                if not index[value]:
                    del index[value]
            if row is not None:
                index.setdefault(pick(columns, row.values), set()).add(key)
        if row is not None:
            self.rows[key] = row
            if len(key) == 1 and isinstance(key[0], int):
                self.last_id = max(self.last_id, key[0])


def pick(columns: tuple[str, ...], values: Mapping[str, Any]) -> Key:
    """Return the values of *columns*."""
    return tuple(values[column] for column in columns)


class Store:
    """
    A database in memory, shared by the units that are made with it.

    Constraints are declared on it, as a database has them in its schema.

    >>> from uow import entity
    >>> from uow.adapters.memory import Store
    >>> @entity(key="number")
    ... class Account:
    ...     number: str
    ...     balance: int = 0
    >>> store = Store()
    >>> store.check(Account, lambda a: a.balance >= 0, name="no_debts")
    """

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self._tables: dict[type, Table] = {}
        self._foreign_keys: list[ForeignKey] = []
        self._locks: dict[tuple[type, Key], tuple[bool, set[object]]] = {}
        self._failures: defaultdict[str, deque[UnitOfWorkError]] = defaultdict(deque)
        self._revisions = itertools.count(1)
        self.transactions: weakref.WeakSet[Any] = weakref.WeakSet()
        self.snapshots: weakref.WeakSet[Any] = weakref.WeakSet()

    # -------------------------------------------------------------------------------------------------- the schema

    def unique(self, entity: type, *attributes: str) -> None:
        """
        Let no two *entity* have the same values in *attributes*; a missing value equals nothing.
        """
        table = self.table(entity)
        _demand_known(entity, attributes)
        table.uniques.append(attributes)
        table.index(attributes)

    def not_null(self, entity: type, *attributes: str) -> None:
        """
        Let no *entity* miss a value in *attributes*.
        """
        _demand_known(entity, attributes)
        self.table(entity).not_null.update(attributes)

    def foreign_key(self, entity: type, attribute: str, target: type) -> None:
        """
        Let *attribute* of *entity* be the key of a *target* that exists, or None.
        """
        _demand_known(entity, (attribute,))
        self.table(target)
        self.table(entity).index((attribute,))
        self._foreign_keys.append(ForeignKey(entity, attribute, target))

    def check(self, entity: type[E], criterion: Specification[E], *, name: str) -> None:
        """
        Let *criterion* be false for no *entity*; *name* is what a violation calls it.
        """
        checked = Check(name, trace(criterion, entity, attributes_of(entity)))
        self.table(entity).checks.append(checked)

    # ----------------------------------------------------------------------------------------------- failures on demand

    def fail_next(self, operation: str, error: UnitOfWorkError | type[DatabaseError]) -> None:
        """
        Let the next *operation* of any unit fail with *error*.

        Args:
            operation: ``flush``, ``savepoint``, ``release``, ``commit`` or ``rollback``.

            error: An error, or its class.
        """
        known = ("flush", "savepoint", "release", "commit", "rollback")
        if operation not in known:
            raise ConfigurationError(f"{operation!r} cannot be made to fail", f"Choose one of {', '.join(known)}.")
        self._failures[operation].append(error("made to fail") if isinstance(error, type) else error)

    def drop_connections(self) -> None:
        """
        Let the database disappear under every unit that is open now, as a crash of a server would.
        """
        for transaction in list(self.transactions):
            transaction.lost = True

    def idle(self) -> bool:
        """
        Tell whether no unit is open.
        """
        return not self.transactions

    # ---------------------------------------------------------------------------------------------- for the fake itself

    def table(self, entity: type) -> Table:
        """Return the table of *entity*, made when first asked for."""
        table = self._tables.get(entity)
        if table is None:
            if not key_names_of(entity):
                raise UnmappedEntity(
                    entity, "nothing says what its key is", "Decorate the class with @entity(key=...)."
                )
            if "__dict__" not in dir(entity):
                raise UnmappedEntity(entity, "it has slots, so it cannot be tracked", "Use @entity, or slots=False.")
            table = self._tables.setdefault(entity, Table(entity))
        return table

    def references_of(self, entity: type) -> Iterator[ForeignKey]:
        """Yield the foreign keys that *entity* has."""
        return (foreign for foreign in self._foreign_keys if foreign.entity is entity)

    def references_to(self, entity: type) -> Iterator[ForeignKey]:
        """Yield the foreign keys that point at *entity*."""
        return (foreign for foreign in self._foreign_keys if foreign.target is entity)

    def next_id(self, entity: type) -> int:
        """Generate a key; one that a rollback discards is not used again, as in a database."""
        with self.mutex:
            table = self.table(entity)
            table.last_id += 1
            return table.last_id

    def put(self, entity: type, key: Key, values: Values | None) -> None:
        """Commit a row, or with None its removal."""
        table = self.table(entity)
        for snapshot in self.snapshots:
            snapshot.keep(table, key)
        table.put(key, None if values is None else Row(values, next(self._revisions)))

    def fail_if_asked(self, operation: str) -> None:
        """Raise what `fail_next` ordered for *operation*."""
        if self._failures[operation]:
            raise self._failures[operation].popleft()

    def lock(self, entity: type, key: Key, holder: object, *, shared: bool, skip: bool) -> bool:
        """Lock a row for *holder*; return False to *skip* it when another one holds it."""
        with self.mutex:
            held_shared, holders = self._locks.get((entity, key), (True, set()))
            if holders - {holder} and not (shared and held_shared):
                if skip:
                    return False
                raise LockTimeout(f"another unit holds a lock on {entity.__name__} {key}; the fake does not wait")
            self._locks[entity, key] = (shared and held_shared, holders | {holder})
            return True

    def unlock(self, holder: object) -> None:
        """Give back every lock of *holder*."""
        with self.mutex:
            for name, (_, holders) in list(self._locks.items()):
                holders.discard(holder)
                if not holders:
                    del self._locks[name]


def _demand_known(entity: type, attributes: tuple[str, ...]) -> None:
    known = attributes_of(entity)
    for name in attributes:
        if name not in known:
            raise ConfigurationError(
                f"{entity.__name__} has no attribute {name!r}", f"Choose one of {', '.join(known)}."
            )
