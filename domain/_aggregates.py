"""
Entities, aggregates and the events that aggregates record.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast, dataclass_transform, overload

import attrs

from ._errors import InvalidArgument

__all__ = ["Aggregate", "Event", "Journal", "attributes_of", "entity", "journal_of", "key_names_of", "version_name_of"]

T = TypeVar("T")
_JOURNAL = "_uow_journal"


class Event:
    """
    Base of the facts that aggregates record; subclass it with ``attrs.frozen``.
    """


class Journal:
    """
    Where an aggregate's events go: to the *sink*, a unit that tells whether it took one, or else to *pending*.
    """

    __slots__ = ("pending", "sink")

    def __init__(self, pending: tuple[Event, ...] = ()) -> None:
        self.pending = pending
        self.sink: Callable[[Event], bool] | None = None

    def __reduce__(self) -> tuple[type["Journal"], tuple[tuple[Event, ...]]]:
        """Copy and pickle the events only: a copy of an aggregate is in no unit."""
        return Journal, (self.pending,)


class Aggregate:
    """
    An entity that is loaded and saved as a whole and records what happened to it.

    >>> from uow import Aggregate, Event
    >>> class Order(Aggregate):
    ...     def pay(self) -> None:
    ...         self.record(Event())
    >>> order = Order()
    >>> order.pay()
    >>> len(order.pending_events)
    1
    """

    def record(self, event: Event) -> None:
        """
        Record that *event* happened.

        Inside a unit it belongs to the innermost scope, lives and dies with it, and is handled when the unit
        commits. While the aggregate is in no unit, the event waits in `pending_events`.

        Raises:
            uow.errors.InvalidArgument: It is no `Event`.
        """
        demand_event(event)
        journal = journal_of(self)
        if journal.sink is None or not journal.sink(event):
            journal.pending += (event,)

    @property
    def pending_events(self) -> tuple[Event, ...]:
        """The events recorded while the aggregate was in no unit, oldest first."""
        return journal_of(self).pending


def demand_event(event: object) -> None:
    """
    Raise unless *event* can be recorded.
    """
    if not isinstance(event, Event):
        raise InvalidArgument("record()", f"{event!r} is no Event", "Record an instance of a subclass of Event.")


def journal_of(aggregate: Aggregate) -> Journal:
    """
    Return the journal of *aggregate*, made when first asked for: a mapper may load one without calling ``__init__``.
    """
    attributes = vars(aggregate)
    if _JOURNAL not in attributes:
        attributes[_JOURNAL] = Journal()
    return cast("Journal", attributes[_JOURNAL])


@overload
def entity(cls: type[T], /) -> type[T]: ...
@overload
def entity(
    *, key: str | tuple[str, ...] = "id", version: str | None = None, kw_only: bool = False
) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(eq_default=False, field_specifiers=(attrs.field,))
def entity(
    cls: type[Any] | None = None,
    /,
    *,
    key: str | tuple[str, ...] = "id",
    version: str | None = None,
    kw_only: bool = False,
) -> Any:
    """
    Make a class an entity: an attrs class with identity instead of value, known by its *key*.

    Args:
        key: The attribute, or attributes, that tell one entity from another. An integer key that is None when the
            entity is added is generated.

        version: The attribute that counts an entity's changes, for optimistic locking. A mapper must name the same
            one as its ``version_id_col``.

        kw_only: Whether ``__init__`` takes keyword arguments only.

    Raises:
        TypeError: *key* or *version* names no attribute; or the class is a declarative one, which needs no @entity.

    >>> from uow import entity
    >>> @entity(key="number")
    ... class Account:
    ...     number: str
    ...     balance: int = 0
    >>> Account("A-1") == Account("A-1")
    False
    """

    def decorate(cls: type[Any]) -> type[Any]:
        if hasattr(cls, "__mapper__"):
            msg = f"Cannot make {cls.__name__} an entity: it is mapped already, and its key is its primary key."
            raise TypeError(f"{msg} Leave @entity away.")
        made = attrs.define(cls, eq=False, slots=False, kw_only=kw_only)
        made.__uow_key__ = (key,) if isinstance(key, str) else tuple(key)
        made.__uow_version__ = version
        known = attributes_of(made)
        for name in (*made.__uow_key__, *([version] if version else ())):
            if name not in known:
                msg = f"Cannot make {cls.__name__} an entity: it has no attribute {name!r}, only {', '.join(known)}."
                raise TypeError(msg)
        return made

    return decorate if cls is None else decorate(cls)


def attributes_of(cls: type) -> tuple[str, ...]:
    """
    Return the names of the stored attributes of *cls*: its mapped columns, its attrs fields, or its annotations.
    """
    if (mapper := getattr(cls, "__mapper__", None)) is not None:
        return tuple(prop.key for prop in mapper.column_attrs)
    if attrs.has(cls):
        return tuple(attribute.name for attribute in attrs.fields(cls))
    return tuple(
        dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base).get("__annotations__", {}))
    )


def key_names_of(cls: type) -> tuple[str, ...]:
    """
    Return the names of the attributes that identify a *cls*, or an empty tuple when nothing says so.
    """
    if (names := getattr(cls, "__uow_key__", None)) is not None:
        return cast("tuple[str, ...]", names)
    if (mapper := getattr(cls, "__mapper__", None)) is not None:
        return tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
    return ()


def version_name_of(cls: type) -> str | None:
    """
    Return the name of the attribute that counts the versions of a *cls*, or None when it has none.
    """
    mapper = getattr(cls, "__mapper__", None)
    if mapper is not None and mapper.version_id_col is not None:
        return cast("str", mapper.get_property_by_column(mapper.version_id_col).key)
    return cast("str | None", getattr(cls, "__uow_version__", None))
