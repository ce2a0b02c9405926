"""
The constraints that a store declares, checked as a database would.
"""

from collections.abc import Iterable
from typing import Any

from uow.domain import evaluate
from uow.errors import CheckViolation, ForeignKeyViolation, NotNullViolation, SerializationFailure, UniqueViolation

from ._store import Key, Values, pick
from ._views import Name, Record, View

__all__ = ["check_references", "check_row"]


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


def check_references(now: View, seen: View, written: Iterable[Name]) -> None:
    """
    Raise if a reference of the rows *written*, or one to a row removed among them, points at nothing.

    As in a database, a row that the unit has *seen* must still be there *now*, and one that it has not does not count.
    """
    for entity, key in written:
        values = now.row(entity, key)
        if values is None:
            _check_not_needed(now, entity, key)
        else:
            _check_targets(now, seen, entity, key, values)


def _check_targets(now: View, seen: View, entity: type, key: Key, values: dict[str, Any]) -> None:
    for foreign in now.store.references_of(entity):
        value = values[foreign.attribute]
        if value is not None and seen.row(foreign.target, (value,)) is None:
            raise ForeignKeyViolation(
                f"{entity.__name__} {key} refers to {foreign.target.__name__} {value!r}, which does not exist",
                None,
                foreign.attribute,
                entity.__name__,
                (foreign.attribute,),
            )
        if value is not None and now.row(foreign.target, (value,)) is None:
            raise SerializationFailure(
                f"{foreign.target.__name__} {value!r}, which {entity.__name__} {key} refers to, "
                "was removed by another unit since this one's snapshot"
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
