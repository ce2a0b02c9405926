"""
The repository port: what an application may ask of a collection of entities, written once for every adapter.
"""

import enum
from abc import ABC
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar, cast

from attrs import frozen

from ._errors import EntityNotFound, InvalidArgument, MultipleEntitiesFound
from ._expressions import Expression, Order
from ._generics import type_argument
from ._specifications import trace, trace_order

__all__ = ["Gateway", "Lock", "Query", "Repository", "Specification"]

E = TypeVar("E")

Specification: TypeAlias = Callable[[E], object]
"""A lambda over a symbolic entity: ``lambda a: (a.balance < 0) & (a.owner == "Ann")``."""


class Lock(enum.Enum):
    """
    A row lock that a read takes and holds until the unit ends, and what to do when another unit holds one.

    Without a suffix the read waits; ``NOWAIT`` raises `uow.errors.LockTimeout` at once; ``SKIP_LOCKED`` leaves the
    row out. SQLite locks the whole database when a unit begins, so there the lock is already held.
    """

    UPDATE = "update"
    UPDATE_NOWAIT = "update nowait"
    UPDATE_SKIP_LOCKED = "update skip locked"
    SHARE = "share"
    SHARE_NOWAIT = "share nowait"
    SHARE_SKIP_LOCKED = "share skip locked"

    @property
    def shared(self) -> bool:
        """Whether others may hold the same lock."""
        return self.value.startswith("share")

    @property
    def nowait(self) -> bool:
        """Whether a row that another unit locked is an error at once."""
        return self.value.endswith("nowait")

    @property
    def skip_locked(self) -> bool:
        """Whether a row that another unit locked is left out."""
        return self.value.endswith("skip locked")


@frozen
class Query:
    """
    What a repository asks an adapter for.
    """

    where: Expression | None = None
    order: tuple[Order, ...] = ()
    limit: int | None = None
    offset: int = 0
    lock: Lock | None = None


class Gateway(Protocol[E]):
    """
    What an adapter provides for one entity class; repositories are written over it.
    """

    @property
    def entity(self) -> type[E]:
        """The entity's class."""
        ...

    @property
    def attributes(self) -> Collection[str]:
        """The names that a specification may use."""
        ...

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the attributes that are the key."""
        ...

    def add(self, entities: Sequence[E], /) -> None:
        """Take new entities into the unit."""
        ...

    def remove(self, entity: E, /) -> bool:
        """Remove *entity*, or forget it if it was not written yet; False if it is not there to be removed."""
        ...

    def get(self, key: tuple[object, ...], lock: Lock | None, /) -> E | None:
        """Return the entity with that key, or None."""
        ...

    def select(self, query: Query, /) -> Sequence[E]:
        """Return the entities that *query* describes."""
        ...

    def pages(self, where: Expression | None, size: int, after: E | None, /) -> Sequence[E]:
        """Return up to *size* entities in key order, beginning behind *after*."""
        ...

    def count(self, where: Expression | None, /) -> int:
        """Count the entities that match."""
        ...

    def exists(self, where: Expression | None, /) -> bool:
        """Tell whether any entity matches."""
        ...


class Repository(ABC, Generic[E]):
    """
    A collection of entities inside a unit of work.

    Subclass it to give queries a name; they then work on every adapter. A unit makes its repositories itself, from
    its annotations.
    """

    entity: ClassVar[type[Any] | None] = None
    """The entity's class, read from ``Repository[Account]``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.entity = type_argument(cls, Repository) or cls.entity

    def __init__(self, gateway: Gateway[E]) -> None:
        self._gateway = gateway

    def add(self, entity: E) -> None:
        """
        Add a new *entity*; it is stored when the unit flushes, at the latest when it commits.

        One that an earlier unit loaded or stored comes into this one, and is written if it is changed.

        Raises:
            uow.errors.InvalidArgument: This unit holds another object for its row, or another open unit holds it.

            uow.errors.UniqueViolation: At the flush, if the key is taken.
        """
        self._demand_ours("add()", entity)
        self._gateway.add((entity,))

    def add_all(self, entities: Iterable[E]) -> None:
        """
        Add several new *entities*, or none of them if one is of another class.
        """
        added = tuple(entities)
        for entity in added:
            self._demand_ours("add()", entity)
        self._gateway.add(added)

    def remove(self, entity: E) -> None:
        """
        Remove *entity*; one that was added and not yet stored is simply forgotten.

        Raises:
            EntityNotFound: It was never added.

            uow.errors.InvalidArgument: This unit holds another object for its row.
        """
        self._demand_ours("remove()", entity)
        if not self._gateway.remove(entity):
            key = tuple(getattr(entity, name) for name in self._gateway.key)
            raise EntityNotFound(self._gateway.entity, key[0] if len(key) == 1 else key, "remove")

    def get(self, key: object, *, lock: Lock | None = None) -> E:
        """
        Return the entity with that *key*; the same key is the same object within a unit.

        Args:
            key: The key, a tuple where it has several parts.

            lock: A row lock to take; the entity is then read anew.

        Raises:
            EntityNotFound: There is none, or another unit locked it and *lock* skips such ones.
        """
        found = self.get_or_none(key, lock=lock)
        if found is None:
            raise EntityNotFound(self._gateway.entity, key)
        return found

    def get_or_none(self, key: object, *, lock: Lock | None = None) -> E | None:
        """
        Return the entity with that *key*, or None.
        """
        parts = cast("tuple[object, ...]", key) if isinstance(key, tuple) else (key,)
        names = self._gateway.key
        if len(parts) != len(names):
            raise self._refuse("get()", f"{key!r} has {len(parts)} parts", f"The key is ({', '.join(names)}).")
        return None if None in parts else self._gateway.get(parts, lock)

    def one(self, specification: Specification[E]) -> E:
        """
        Return the only entity that matches.

        Raises:
            EntityNotFound: None does.

            MultipleEntitiesFound: More than one does.
        """
        where = self._trace(specification)
        found = self._gateway.select(Query(where, limit=2))
        if len(found) != 1:
            raise (MultipleEntitiesFound if found else EntityNotFound)(self._gateway.entity, str(where))
        return found[0]

    def first(
        self,
        specification: Specification[E] | None = None,
        *,
        order_by: Specification[E] | None = None,
        lock: Lock | None = None,
    ) -> E | None:
        """
        Return the first entity that matches, or None; see `list` for the arguments.
        """
        return next(iter(self.list(specification, order_by=order_by, limit=1, lock=lock)), None)

    def list(
        self,
        specification: Specification[E] | None = None,
        *,
        order_by: Specification[E] | None = None,
        limit: int | None = None,
        offset: int = 0,
        lock: Lock | None = None,
    ) -> Sequence[E]:
        """
        Return the entities that match.

        Args:
            specification: Which ones; all without it.

            order_by: One attribute or a tuple of them, ``desc(...)`` for descending. A missing value (NULL) counts
                as the smallest one on every backend. Without it the order is the backend's choice.

            limit: How many at most.

            offset: How many to pass over first.

            lock: A row lock to take on each of them.
        """
        for name, value in (("limit", limit or 0), ("offset", offset)):
            if value < 0:
                raise self._refuse("list()", f"{name} is {value}", "Pass 0 or more.")
        return self._gateway.select(Query(self._trace(specification), self._order(order_by), limit, offset, lock))

    def iterate(self, specification: Specification[E] | None = None, *, batch_size: int = 500) -> Iterator[E]:
        """
        Go through all entities that match, in key order, in constant memory.

        Each batch is a statement of its own, so the unit can do other work in between.

        Args:
            specification: Which ones; all without it.

            batch_size: How many to hold at a time.
        """
        if batch_size < 1:
            raise self._refuse("iterate()", f"batch_size is {batch_size}", "Pass 1 or more.")
        return self._pages(self._trace(specification), batch_size)

    def count(self, specification: Specification[E] | None = None) -> int:
        """
        Count the entities that match.
        """
        return self._gateway.count(self._trace(specification))

    def exists(self, specification: Specification[E] | None = None) -> bool:
        """
        Tell whether any entity matches.
        """
        return self._gateway.exists(self._trace(specification))

    def _demand_ours(self, operation: str, entity: object) -> None:
        kind = self._gateway.entity
        if not isinstance(entity, kind):
            raise self._refuse(operation, f"{entity!r} is no {kind.__name__}", "Use the repository of its class.")

    def _refuse(self, operation: str, problem: str, hint: str) -> InvalidArgument:
        return InvalidArgument(f"{type(self).__name__}.{operation}", problem, hint)

    def _pages(self, where: Expression | None, size: int) -> Iterator[E]:
        last: E | None = None
        while page := self._gateway.pages(where, size, last):
            last = page[-1]
            yield from page
            if len(page) < size:
                return

    def _trace(self, specification: Specification[E] | None) -> Expression | None:
        if specification is None:
            return None
        return trace(specification, self._gateway.entity, self._gateway.attributes)

    def _order(self, order_by: Specification[E] | None) -> tuple[Order, ...]:
        return () if order_by is None else trace_order(order_by, self._gateway.entity, self._gateway.attributes)
