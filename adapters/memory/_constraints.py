"""
The constraints that a store declares, checked as a database would.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from uow.domain import evaluate
from uow.errors import CheckViolation, ForeignKeyViolation, NotNullViolation, UniqueViolation

from ._store import Key, Store, Values, pick

__all__ = ["Record", "View", "check_references", "check_row"]


class Record:
    """
    A row whose values are attributes, for a specification to look at.
    """

    def __init__(self, values: Values) -> None:
        self.__dict__ = values


class View(Protocol):
    """
    What one unit sees of a store.
    """

    store: Store

    def row(self, entity: type, key: Key) -> Values | None:
        """Return a row, None if there is none."""
        ...

    def find(self, entity: type, columns: tuple[str, ...], value: Key) -> Iterator[Key]:
        """Yield the keys of the rows that have *value* in indexed *columns*."""
        ...


def check_row(view: View, entity: type, key: Key, values: Values, names: tuple[str, ...]) -> None:
    """
    Raise what a database would if it were given this row; *names* are those of the key's attributes.
    """
    table = view.store.table(entity)
    for name in (*names, *sorted(table.not_null)):
        if values[name] is None:
            raise NotNullViolation(f"{table.name}.{name} is missing", None, None, table.name, (name,))
    for check in table.checks:
        if evaluate(check.criterion, Record(values)) is False:
            raise CheckViolation(f"{table.name} {key} does not keep {check.criterion}", None, check.name, table.name)
    for columns in table.uniques:
        value = pick(columns, values)
        if None not in value and any(other != key for other in view.find(entity, columns, value)):
            raise UniqueViolation(f"{table.name} {value} exists", None, "_".join(columns), table.name, columns)


def check_references(view: View, written: Iterable[tuple[type, Key]]) -> None:
    """
    Raise if a reference of the rows *written*, or one to a row removed among them, points at nothing.
    """
    for entity, key in written:
        values = view.row(entity, key)
        if values is None:
            _check_not_needed(view, entity, key)
        else:
            _check_targets(view, entity, key, values)


def _check_targets(view: View, entity: type, key: Key, values: dict[str, Any]) -> None:
    for foreign in view.store.references_of(entity):
        value = values[foreign.attribute]
        if value is not None and view.row(foreign.target, (value,)) is None:
            raise ForeignKeyViolation(
                f"{entity.__name__} {key} refers to {foreign.target.__name__} {value!r}, which does not exist",
                None,
                foreign.attribute,
                entity.__name__,
                (foreign.attribute,),
            )


def _check_not_needed(view: View, entity: type, key: Key) -> None:
    for foreign in view.store.references_to(entity):
        for referring in view.find(foreign.entity, (foreign.attribute,), key):
            raise ForeignKeyViolation(
                f"{entity.__name__} {key} was removed, and {foreign.entity.__name__} {referring} refers to it",
                None,
                foreign.attribute,
                foreign.entity.__name__,
                (foreign.attribute,),
            )
