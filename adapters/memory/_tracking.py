"""
The entities of one unit in memory, and what they were like when the fake last looked.
"""

import copy
import itertools
import weakref
from collections.abc import Collection
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import FunctionType
from typing import Any, cast
from uuid import UUID

from attrs import define, field

from uow.domain import attributes_of, key_names_of, version_name_of
from uow.errors import UnmappedEntity

from ._relations import relations_of
from ._tables import Key, Values

__all__ = ["Shape", "Tracked", "alike", "attributes_in", "tracked_as"]

_MARK = "_uow_tracked"
_WATCHES = "__uow_watches__"
_IMMUTABLE = frozenset(
    {str, int, float, bool, bytes, type(None), complex, date, datetime, time, timedelta, Decimal, UUID}
)
_ATOMS = (Enum, type, FunctionType)


def attributes_in(entity: object) -> Values:
    """Return the ``__dict__`` of *entity*, past whatever a mapper put in front of it."""
    return vars(entity)


def freeze(value: Any) -> Any:
    """Return *value* so that a change of the original does not change it."""
    return value if type(value) in _IMMUTABLE else copy.deepcopy(value)


def alike(left: Any, right: Any, _met: "set[tuple[int, int]] | None" = None) -> bool:
    """Tell whether two values are the same to a database; an entity inside an aggregate is what it holds."""
    kind: Any = left.__class__
    if kind in _IMMUTABLE or kind is not right.__class__ or isinstance(left, _ATOMS):
        return bool(left == right)
    met = set[tuple[int, int]]() if _met is None else _met
    if left is right or (id(left), id(right)) in met:  # a circle differs where it differs elsewhere
        return True
    met.add((id(left), id(right)))
    if issubclass(kind, (list, tuple)):
        return len(left) == len(right) and all(
            alike(value, other, met) for value, other in zip(left, right, strict=True)
        )
    if issubclass(kind, dict):
        return _alike_items(left, right, met)
    if kind.__eq__ is object.__eq__:
        return _alike_items(_held(left), _held(right), met)
    return bool(left == right)


def _alike_items(left: dict[Any, Any], right: dict[Any, Any], met: set[tuple[int, int]]) -> bool:
    return left.keys() == right.keys() and all(alike(value, right[key], met) for key, value in left.items())


def _held(entity: object) -> Values:
    """Return the attributes of *entity*, in its ``__dict__`` or in slots."""
    state: Any = object.__getstate__(entity)
    if isinstance(state, tuple):
        in_dict, in_slots = cast("tuple[Values | None, Values]", state)
        state = {**(in_dict or {}), **in_slots}
    held: Values = state or {}
    return {name: value for name, value in held.items() if not name.startswith(("_uow_", "_sa_"))}


def are_fixed(values: Collection[Any]) -> bool:
    """Tell whether none of *values* can be changed in place."""
    return _IMMUTABLE.issuperset(map(type, values)) or all(
        type(value) in _IMMUTABLE or isinstance(value, _ATOMS) for value in values
    )


def watch(entity: type) -> bool:
    """
    Let instances of *entity* tell their unit when an attribute is set or deleted, as a mapper does.

    False for a class that has a ``__setattr__`` of its own: those often set attributes past it.
    """
    methods = [vars(base).get(name) for base in entity.__mro__[:-1] for name in ("__setattr__", "__delattr__")]
    if not any(methods):
        _instrument(entity)
        return True
    return all(method is None or hasattr(method, _WATCHES) for method in methods)


def _instrument(entity: Any) -> None:
    def __setattr__(self: Any, name: str, value: Any) -> None:
        cast("Any", super(entity, self)).__setattr__(name, value)
        if (tracked := self.__dict__.get(_MARK)) is not None:
            tracked.suspect()

    def __delattr__(self: Any, name: str) -> None:
        cast("Any", super(entity, self)).__delattr__(name)
        if (tracked := self.__dict__.get(_MARK)) is not None:
            tracked.suspect()

    for method in (__setattr__, __delattr__):
        setattr(method, _WATCHES, True)
        type.__setattr__(entity, method.__name__, method)


class Shape:
    """
    How instances of an entity class are read, made and filled.
    """

    def __init__(self, entity: type) -> None:
        self.entity = entity
        self.attributes = attributes_of(entity)
        self.key = key_names_of(entity)
        self.version = version_name_of(entity)
        self.mapper: Any = getattr(entity, "__mapper__", None)
        self.relations, self._unkept = relations_of(entity)
        # A mapper sets what is related past the class.
        self.watched = watch(entity) and not self.relations and not self._unkept

    def make(self) -> Any:
        """Return an instance without calling ``__init__``, as a mapper does."""
        if self.mapper is not None:
            return self.mapper.class_manager.new_instance()
        return object.__new__(self.entity)  # pyright: ignore[reportUnknownVariableType]

    def key_of(self, attributes: Values) -> Key:
        """Return the key among *attributes*."""
        return tuple(attributes.get(name) for name in self.key)

    def values_of(self, attributes: Values) -> Values:
        """Return a copy of the stored ones among *attributes*."""
        values = {name: attributes.get(name) for name in self.attributes}
        return values if are_fixed(values.values()) else {name: freeze(value) for name, value in values.items()}

    def demand_storable(self, attributes: Values) -> None:
        """Raise if *attributes* hold related entities, which a mapping would store and the fake would lose."""
        for name in self._unkept:
            if attributes.get(name):
                raise UnmappedEntity(
                    self.entity,
                    f"{name!r} is not empty, and the fake keeps only relationships by equal columns of two tables",
                    "Test it on SQLite, or keep the mapping out of the tests that use the fake.",
                )

    def fill(self, attributes: Values, values: Values) -> None:
        """Set stored *attributes* to *values*."""
        attributes.update(self.values_of(values))


@define(eq=False)
class Tracked:
    """
    One entity in a unit.

    It holds the entity's attributes but not the entity, so that one that nobody uses any more can go, and a change
    that was made before it went is not lost.

    Args:
        shape: Of its class.

        attributes: The entity's ``__dict__``.

        suspects: Those of its unit that may differ from their base.

        reference: The entity, as long as somebody uses it.

        base: Its values when they were last read or written; None while it is not written.

        revision: Of the committed row that it stands for, None if there is none.

        removed: Whether it is to be removed, or was.

        number: Its place among all, in the order of their coming.

        keep: The entity while it is new, or has relationships: nobody else may.

        related: The entities in its relationships when these were last read or written.
    """

    shape: Shape
    attributes: Values
    suspects: "dict[Tracked, None]"
    reference: "weakref.ref[Any]" = field(init=False)
    base: Values | None = None
    revision: int | None = None
    removed: bool = False
    number: int = field(factory=itertools.count().__next__, init=False)
    keep: Any = None
    related: dict[str, list[Any]] = field(factory=dict[str, list[Any]])

    @classmethod
    def of(cls, shape: Shape, entity: Any, suspects: "dict[Tracked, None]") -> "Tracked":
        """Track *entity*, and let it be known when it comes to another unit."""
        tracked = cls(shape, attributes_in(entity), suspects)
        tracked.reference = weakref.ref(entity, tracked.suspect)
        tracked.attributes[_MARK] = tracked
        return tracked

    def suspect(self, _: Any = None) -> None:
        """Let the next flush look at it: it may have been changed, or nobody uses it any more."""
        self.suspects[self] = None

    def settle(self) -> None:
        """Be equal to its base now, and no suspect any more if it will tell when that changes."""
        if self.quiet and self.reference() is not None:
            self.suspects.pop(self, None)
        else:
            self.suspect()

    def set(self, values: Values) -> None:
        """Set some attributes."""
        self.attributes.update(values)
        self.suspect()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave a copy of an entity untracked: it is new."""
        return type(None), ()

    @property
    def entity(self) -> Any:
        """The entity, made again if nobody had kept it."""
        entity = self.reference()
        if entity is None:
            entity = self.shape.make()
            attributes_in(entity).update({k: v for k, v in self.attributes.items() if k != "_sa_instance_state"})
            self.attributes = attributes_in(entity)
            self.reference = weakref.ref(entity, self.suspect)
        return entity

    @property
    def key(self) -> Key:
        """The key that it is stored under."""
        assert self.base is not None
        return self.shape.key_of(self.base)

    def count(self, version: int | None) -> None:
        """Let the entity have *version*, as if it had been read so."""
        name = self.shape.version
        assert name is not None
        self.attributes[name] = version
        assert self.base is not None
        self.base = {**self.base, name: version}

    @property
    def changed(self) -> bool:
        """Whether the entity differs from its base."""
        base, attributes = self.base, self.attributes
        if base is None or base.items() <= attributes.items():  # what is equal is alike, and this asks fast
            return False
        return not all(alike(attributes.get(name), value) for name, value in base.items())

    @property
    def quiet(self) -> bool:
        """Whether it will tell when it is changed: no value can be changed in place."""
        attributes = self.attributes
        return self.shape.watched and are_fixed([attributes.get(name) for name in self.shape.attributes])


def tracked_as(entity: Any) -> Tracked | None:
    """Return what a unit, this one or an earlier one, knows of *entity*."""
    tracked: Tracked | None = attributes_in(entity).get(_MARK)
    return tracked
