"""
The fake's database: committed rows, constraints, locks.
"""

import itertools
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from uow import Heuristic
from uow.domain import Specification, attributes_of, key_names_of, trace
from uow.errors import ConfigurationError, LockTimeout, UnitOfWorkError, UnmappedEntity

from ._failures import Failure, Failures
from ._outcomes import Branch, FakeOutcomes
from ._relations import referring_attributes_of
from ._schema import read_schema
from ._tables import Check, ForeignKey, Key, Row, Table, Unique, Values
from ._tracking import Shape

__all__ = ["Store"]

E = TypeVar("E")
_numbers = itertools.count(1)
OnDelete = Literal["cascade", "set null"]


class Store:
    """
    A database in memory, shared by the units that are made with it.

    Constraints are declared on it, as a database has them in its schema, or read from SQLAlchemy's ``MetaData``.

    Args:
        metadata: The ``MetaData`` that mapped classes have their tables in. Keys, constraints and defaults are read
            when a class is first used.

        unchecked: The names of rules in *metadata* that the fake cannot keep and the tests can do without.

    >>> from uow import entity
    >>> from uow.adapters.memory import Store
    >>> @entity(key="number")
    ... class Account:
    ...     number: str
    ...     balance: int = 0
    >>> store = Store()
    >>> store.check(Account, lambda a: a.balance >= 0, name="no_debts")
    """

    def __init__(self, *metadata: Any, unchecked: Collection[str] = ()) -> None:
        self.name = f"store{next(_numbers)}"
        self.mutex = threading.RLock()
        self._metadata = metadata
        self._unchecked = unchecked
        self._tables: dict[type, Table] = {}
        self._shapes: dict[type, Shape] = {}
        self._half_made: dict[type, Table] = {}
        self._references_of: defaultdict[type, list[ForeignKey]] = defaultdict(list)
        self._references_to: defaultdict[type, list[ForeignKey]] = defaultdict(list)
        self._locks: dict[tuple[type, Key], tuple[bool, set[object]]] = {}
        self._locked_by: defaultdict[object, set[tuple[type, Key]]] = defaultdict(set)
        self._failures = Failures()
        self.outcomes = FakeOutcomes(self.mutex)
        self.prepared: dict[str, Branch] = {}
        self.witnesses: dict[str, datetime] = {}
        self.heuristics: dict[tuple[str, str], Heuristic] = {}
        self._revisions = itertools.count(1)
        self.transactions: weakref.WeakSet[Any] = weakref.WeakSet()
        self.snapshots: weakref.WeakSet[Any] = weakref.WeakSet()

    # -------------------------------------------------------------------------------------------------- the schema

    def unique(self, entity: type, *attributes: str, name: str | None = None, deferred: bool = False) -> None:
        """
        Let no two *entity* have the same values in *attributes*; a missing value equals nothing.

        Args:
            entity: The class.

            attributes: The names of its attributes.

            name: What a violation calls it; by default the attributes.

            deferred: Whether it is checked at the commit instead of at the flush.
        """
        table = self._declared(entity, attributes, name)
        table.uniques.append(Unique(name or "_".join(attributes), attributes, deferred))
        table.index(attributes)

    def not_null(self, entity: type, *attributes: str) -> None:
        """
        Let no *entity* miss a value in *attributes*.
        """
        self._declared(entity, attributes, None).not_null.extend(attributes)

    def foreign_key(
        self,
        entity: type,
        attributes: str | tuple[str, ...],
        target: type,
        *,
        name: str | None = None,
        on_delete: OnDelete | None = None,
        deferred: bool = False,
    ) -> None:
        """
        Let *attributes* of *entity* be the key of a *target* that exists; a reference with a None refers to nothing.

        Args:
            entity: The class that refers.

            attributes: The attribute, or attributes in the order of the target's key.

            target: The class that is referred to.

            name: What a violation calls it; by default the attributes.

            on_delete: What becomes of *entity* when its target is removed: ``cascade`` removes it, ``set null`` takes
                the reference away. By default the removal is refused.

            deferred: Whether it is checked at the commit instead of at the flush.

        Raises:
            ConfigurationError: An attribute is not known, or the target's key has another number of them.
        """
        attributes = (attributes,) if isinstance(attributes, str) else attributes
        key = self.table(target).key
        if len(key) != len(attributes):
            raise ConfigurationError(
                f"{', '.join(attributes)} cannot refer to {target.__name__}, whose key is {', '.join(key)}",
                "Name an attribute for each of the target's key.",
            )
        if on_delete not in (None, "cascade", "set null"):
            raise ConfigurationError(f"on_delete={on_delete!r} is not known", "Use 'cascade', 'set null' or None.")
        self._declared(entity, attributes, name)
        called = name or "_".join(attributes)
        self._refer(ForeignKey(called, entity, attributes, target, key, on_delete, deferred))

    def check(self, entity: type[E], criterion: Specification[E], *, name: str) -> None:
        """
        Let *criterion* be false for no *entity*; *name* is what a violation calls it.
        """
        checked = Check(name, trace(criterion, entity, attributes_of(entity)))
        self._declared(entity, (), name).checks.append(checked)

    def _declared(self, entity: type, attributes: tuple[str, ...], name: str | None) -> Table:
        """Return the table that a rule is declared on; one of that *name* in the schema need not be read any more."""
        table, known = self.table(entity), attributes_of(entity)
        for attribute in attributes:
            if attribute not in known:
                raise ConfigurationError(
                    f"{entity.__name__} has no attribute {attribute!r}", f"Choose one of {', '.join(known)}."
                )
        if name is not None:
            table.unread.pop(name, None)
        return table

    def _refer(self, foreign: ForeignKey) -> None:
        target = self.table(foreign.target)
        if foreign.target_attributes != target.key:
            target.index(foreign.target_attributes)
        self.table(foreign.entity).index(foreign.attributes)
        self._references_of[foreign.entity].append(foreign)
        self._references_to[foreign.target].append(foreign)

    # ----------------------------------------------------------------------------------------------- failures on demand

    def fail_next(
        self,
        operation: str,
        error: UnitOfWorkError | type[UnitOfWorkError],
        *,
        nth: int = 1,
        entity: type | None = None,
        kept: bool = False,
    ) -> None:
        """
        Let the next *operation* of any unit fail with *error*, once.

        Every operation counts for all orders; where several are due, one is met after the other.

        Args:
            operation: ``begin``: the first look at the store. ``flush``: writing what is pending, as every read,
                ``nested()`` and ``commit()`` do first. ``savepoint``: the entry of ``nested()``. ``release``: its
                end. ``commit``. ``rollback``: of the unit, or of a nested scope. In a group of units also ``prepare``,
                and ``finish``: what follows it, when all is decided.

            error: An error of the database, or its class; for ``commit`` also `uow.errors.CommitOutcomeUnknown` and
                `uow.errors.AfterCommitFailed`.

            nth: The operation that fails: 1 for the next one, 2 for the one after it.

            entity: Count only the flushes that write an entity of this class.

            kept: With an outcome that is unknown: whether it was done all the same.

        Raises:
            uow.errors.ConfigurationError: The combination means nothing.
        """
        with self.mutex:
            self._failures.order(operation, error, nth, entity, kept)

    @property
    def pending_failures(self) -> tuple[Failure, ...]:
        """
        The failures that were ordered and not met yet.
        """
        with self.mutex:
            return self._failures.pending

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
        found = self._tables.get(entity)
        return self._made(entity) if found is None else found

    def shape(self, entity: type) -> Shape:
        """Return how instances of *entity* are read and filled."""
        shape = self._shapes.get(entity)
        if shape is None or shape.mapper is not getattr(entity, "__mapper__", None):
            shape = self._shapes[entity] = Shape(entity)
        return shape

    def _made(self, entity: type) -> Table:
        with self.mutex:
            for tables in (self._tables, self._half_made):  # one that refers to itself, or in a circle, is half made
                if entity in tables:
                    return tables[entity]
            if not key_names_of(entity):
                raise UnmappedEntity(
                    entity, "nothing says what its key is", "Decorate the class with @entity(key=...)."
                )
            if "__dict__" not in dir(entity):
                raise UnmappedEntity(entity, "it has slots, so it cannot be tracked", "Use @entity, or slots=False.")
            table = self._half_made[entity] = Table(entity)
            try:
                if self._metadata:
                    read_schema(table, self._metadata, self._unchecked, self._refer)
            finally:
                del self._half_made[entity]
            for attributes in referring_attributes_of(entity):
                table.index(attributes)
            self._tables[entity] = table
            return table

    @property
    def has_references(self) -> bool:
        """Whether there is any foreign key."""
        return bool(self._references_of)

    def references_of(self, entity: type) -> Sequence[ForeignKey]:
        """Return the foreign keys that *entity* has."""
        return self._references_of.get(entity, ())

    def references_to(self, entity: type) -> Sequence[ForeignKey]:
        """Return the foreign keys that point at *entity*."""
        return self._references_to.get(entity, ())

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

    def fail_if_asked(self, operation: str, writes: Callable[[type], bool], *, done: bool) -> None:
        """Raise what `fail_next` ordered for *operation*: before it, or once it is *done* if its work is to be kept."""
        if not self._failures:
            return
        with self.mutex:
            self._failures.meet(operation, writes, done=done)

    def lock(self, entity: type, key: Key, holder: object, *, shared: bool, skip: bool) -> bool:
        """Lock a row for *holder*; return False to *skip* it when another one holds it."""
        with self.mutex:
            held_shared, holders = self._locks.get((entity, key), (True, set()))
            if holders - {holder} and not (shared and held_shared):
                if skip:
                    return False
                raise LockTimeout(f"another unit holds a lock on {entity.__name__} {key}; the fake does not wait")
            self._locks[entity, key] = (shared and held_shared, holders | {holder})
            self._locked_by[holder].add((entity, key))
            return True

    def unlock(self, holder: object) -> None:
        """Give back every lock of *holder*."""
        with self.mutex:
            for name in self._locked_by.pop(holder, ()):
                holders = self._locks[name][1]
                holders.discard(holder)
                if not holders:
                    del self._locks[name]
