"""
An adapter's gateway behind the unit's rules.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, TypeVar

from attrs import define, field

from uow.domain import Expression, Lock, Query

from ._context import Context
from ._transaction import Conflict, NativeGateway
from .errors import InvalidArgument

__all__ = ["CheckedGateway"]

E = TypeVar("E")


@define(eq=False)
class CheckedGateway(Generic[E]):
    """
    The gateway that a unit's repositories see: every operation runs under the unit's rules.

    Args:
        name: The repository's name in the unit.

        context: The unit that it belongs to.

        native: The adapter's own gateway.
    """

    name: str
    context: Context
    native: NativeGateway[E]
    entity: type[E] = field(init=False)
    """The entity's class."""

    def __attrs_post_init__(self) -> None:
        self.entity = self.native.entity

    @property
    def attributes(self) -> Collection[str]:
        """The names that a specification may use."""
        return self.native.attributes

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the attributes that are the key."""
        return self.native.key

    def add(self, entities: Sequence[E], /) -> None:
        """Take new entities into the unit."""
        self._write("add()", self._add, entities)

    def remove(self, entity: E, /) -> bool:
        """Remove *entity*; False if it is not there."""
        removed: bool = self._write("remove()", self._remove, entity)
        return removed

    def get(self, key: tuple[object, ...], lock: Lock | None, /) -> E | None:
        """Return the entity with that key, or None."""
        found: E | None = self._read(f"{self.name}.get()", self.native.get, key, lock)
        return found

    def select(self, query: Query, /) -> Sequence[E]:
        """Return the entities that *query* describes."""
        found: Sequence[E] = self._read(f"{self.name}.list()", self.native.select, query)
        return found

    def pages(self, where: Expression | None, size: int, after: E | None, /) -> Sequence[E]:
        """Return a page of entities in key order."""
        found: Sequence[E] = self._read(f"{self.name}.iterate()", self.native.pages, where, size, after)
        return found

    def count(self, where: Expression | None, /) -> int:
        """Count the entities that match."""
        found: int = self._read(f"{self.name}.count()", self.native.count, where)
        return found

    def exists(self, where: Expression | None, /) -> bool:
        """Tell whether any entity matches."""
        found: bool = self._read(f"{self.name}.exists()", self.native.exists, where)
        return found

    def _add(self, entities: Sequence[E]) -> None:
        for entity in entities:
            if (conflict := self.native.conflict(entity)) is not None:
                raise self._refusal("add()", entity, conflict)
            self.native.add((entity,))

    def _remove(self, entity: E) -> bool:
        if (conflict := self.native.conflict(entity)) is not None:
            raise self._refusal("remove()", entity, conflict)
        return self.native.remove(entity)

    def _refusal(self, verb: str, entity: E, conflict: Conflict) -> InvalidArgument:
        """Return why the unit would hold two objects for one row, or two units one object."""
        twin = conflict == "twin"
        key = tuple(getattr(entity, name) for name in self.key)
        named = f"{self.entity.__name__} {key[0] if len(key) == 1 else key!r}"
        problem = f"this unit already holds another object for {named}" if twin else f"another open unit holds {named}"
        hint = "Get this unit's own object from the repository, and change or remove that."
        return InvalidArgument(f"{self.name}.{verb}", problem, hint)

    def _write(self, verb: str, call: Callable[..., Any], *args: object) -> Any:
        operation = f"{self.name}.{verb}"
        if self.context.options.read_only:
            self.context.check(operation)
            self.context.demand_writable(operation)
        return self.context.run(operation, call, *args)

    def _read(self, operation: str, call: Callable[..., Any], *args: object) -> Any:
        return self.context.run(operation, self._flushed, call, *args)

    def _flushed(self, call: Callable[..., Any], *args: object) -> Any:
        """Read after what is pending was written, so that a unit sees what it did."""
        self.context.transaction.flush()
        return call(*args)
