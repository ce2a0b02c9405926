"""
The entities of one unit in memory, and what they were like when the fake last looked.
"""

import copy
import weakref
from typing import Any

from attrs import define

from uow.domain import attributes_of, key_names_of, version_name_of
from uow.errors import UnmappedEntity

from ._store import Key, Values

__all__ = ["Shape", "Tracked", "attributes_in", "tracked_as"]

_MARK = "_uow_tracked"
_IMMUTABLE = frozenset({str, int, float, bool, bytes, type(None), complex})


def attributes_in(entity: object) -> Values:
    """Return the ``__dict__`` of *entity*, past whatever a mapper put in front of it."""
    return vars(entity)


def freeze(value: Any) -> Any:
    """Return *value* so that a change of the original does not change it."""
    return value if type(value) in _IMMUTABLE else copy.deepcopy(value)


def alike(left: Any, right: Any) -> bool:
    """Tell whether two values are the same to a database; an entity inside an aggregate is what it holds."""
    kind: Any = left.__class__
    if kind in _IMMUTABLE or kind is not right.__class__:
        return bool(left == right)
    if issubclass(kind, (list, tuple)):
        return len(left) == len(right) and all(map(alike, left, right))
    if issubclass(kind, dict):
        return left.keys() == right.keys() and all(alike(value, right[key]) for key, value in left.items())
    if kind.__eq__ is object.__eq__ and hasattr(left, "__dict__"):
        return alike(_held(left), _held(right))
    return bool(left == right)


def _held(entity: object) -> Values:
    return {name: value for name, value in attributes_in(entity).items() if not name.startswith(("_uow_", "_sa_"))}


def _may_be_int(entity: type, name: str) -> bool:
    """Tell whether the attribute is declared as an integer, or not at all."""
    for base in entity.__mro__:
        annotation = vars(base).get("__annotations__", {}).get(name)
        if annotation is not None:
            return "int" in (annotation if isinstance(annotation, str) else repr(annotation))
    return True


class Shape:
    """
    How instances of an entity class are read, made and filled.
    """

    def __init__(self, entity: type) -> None:
        self.entity = entity
        self.attributes = attributes_of(entity)
        self.key = key_names_of(entity)
        self.version = version_name_of(entity)
        mapper = getattr(entity, "__mapper__", None)
        self.relationships: tuple[str, ...] = () if mapper is None else tuple(mapper.relationships.keys())
        self.generated = len(self.key) == 1 and _may_be_int(entity, self.key[0])

    def make(self) -> Any:
        """Return an instance without calling ``__init__``, as a mapper does."""
        mapper = getattr(self.entity, "__mapper__", None)
        if mapper is not None:
            return mapper.class_manager.new_instance()
        return object.__new__(self.entity)  # pyright: ignore[reportUnknownVariableType]

    def key_of(self, attributes: Values) -> Key:
        """Return the key among *attributes*."""
        return tuple(attributes.get(name) for name in self.key)

    def values_of(self, attributes: Values) -> Values:
        """Return a copy of the stored ones among *attributes*."""
        return {name: freeze(attributes.get(name)) for name in self.attributes}

    def demand_storable(self, attributes: Values) -> None:
        """Raise if *attributes* hold related entities, which a mapping would store and the fake would lose."""
        for name in self.relationships:
            if attributes.get(name):
                raise UnmappedEntity(
                    self.entity,
                    f"{name!r} is a relationship and is not empty, and the fake stores only columns of mapped classes",
                    "Test it on SQLite, or keep the mapping out of the tests that use the fake.",
                )

    def fill(self, attributes: Values, values: Values) -> None:
        """Set stored *attributes* to *values*."""
        for name in self.attributes:
            attributes[name] = freeze(values[name])


@define(eq=False)
class Tracked:
    """
    One entity in a unit.

    It holds the entity's attributes but not the entity, so that one that nobody uses any more can go, and a change
    that was made before it went is not lost.

    Args:
        shape: Of its class.

        reference: The entity, as long as somebody uses it.

        attributes: The entity's ``__dict__``.

        base: Its values when they were last read or written; None while it is not written.

        revision: Of the committed row that it stands for, None if there is none.

        removed: Whether it is to be removed, or was.

        keep: The entity while it is new: nobody else may.
    """

    shape: Shape
    reference: "weakref.ref[Any]"
    attributes: Values
    base: Values | None = None
    revision: int | None = None
    removed: bool = False
    keep: Any = None

    @classmethod
    def of(cls, shape: Shape, entity: Any) -> "Tracked":
        """Track *entity*, and let it be known when it comes to another unit."""
        tracked = cls(shape, weakref.ref(entity), attributes_in(entity))
        tracked.attributes[_MARK] = tracked
        return tracked

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
            self.reference = weakref.ref(entity)
        return entity

    @property
    def key(self) -> Key:
        """The key that it is stored under."""
        assert self.base is not None
        return self.shape.key_of(self.base)

    @property
    def changed(self) -> bool:
        """Whether the entity differs from its base."""
        base, attributes = self.base, self.attributes
        return base is not None and not all(alike(attributes.get(name), value) for name, value in base.items())

    @property
    def forgotten(self) -> bool:
        """Whether nobody uses the entity, and there is nothing to write."""
        return self.reference() is None and not self.removed and not self.changed


def tracked_as(entity: Any) -> Tracked | None:
    """Return what a unit, this one or an earlier one, knows of *entity*."""
    tracked: Tracked | None = attributes_in(entity).get(_MARK)
    return tracked
