"""
The constraints that a store declares, checked as a database would.
"""

from collections.abc import Mapping
from typing import Any

from uow.domain import evaluate, matches
from uow.errors import CheckViolation, ForeignKeyViolation, NotNullViolation, SerializationFailure, UniqueViolation

from ._tables import ForeignKey, Key, Table, Unique, Values, pick
from ._views import Name, Record, View

__all__ = ["check_references", "check_row", "check_uniques", "taken"]


def check_row(table: Table, key: Key, values: Values) -> None:
    """
    Raise what a database would if it were given this row alone.
    """
    for name in (*table.key, *table.not_null):
        if values[name] is None:
            columns = table.column_names((name,))
            raise NotNullViolation(f"{table.name}.{columns[0]} is missing", None, None, table.name, columns)
    for check in sorted(table.checks, key=lambda check: check.name):  # as PostgreSQL goes through them
        if evaluate(check.criterion, Record(values)) is False:
            raise CheckViolation(f"{table.name} {key} does not keep {check.criterion}", None, check.name, table.name)


def taken(table: Table, key: Key, how: str) -> UniqueViolation:
    """
    Return what a database raises where the key is there already.
    """
    columns = table.column_names(table.key)
    return UniqueViolation(f"{table.name} {key} {how}", None, table.key_name, table.name, columns)


def check_uniques(view: View, entity: type, key: Key, values: Values, *, deferred: bool) -> None:
    """
    Raise if another row has a value that must be unique; with *deferred*, those that may wait count too.
    """
    table = view.store.table(entity)
    for unique in table.uniques:
        value = pick(unique.attributes, values)
        if (deferred or not unique.deferred) and None not in value and _concerns(unique, values):
            others = (other for other in view.find(entity, unique.attributes, value) if other != key)
            if any(_concerns(unique, view.row(entity, other)) for other in others):
                columns = table.column_names(unique.attributes)
                raise UniqueViolation(f"{table.name} {value} exists", None, unique.name, table.name, columns)


def _concerns(unique: Unique, values: Values | None) -> bool:
    return values is not None and (unique.where is None or matches(unique.where, Record(values)))


def check_references(now: View, seen: View, written: Mapping[Name, Values | None], *, deferred: bool) -> None:
    """
    Raise if a reference of the rows *written*, or one to what a row of them was before, points at nothing.

    As in a database, a row that the unit has *seen* must still be there *now*, and one that it has not does not count.
    With *deferred*, the references that may wait until the commit count too.
    """
    for (entity, key), before in written.items():
        values = now.row(entity, key)
        for foreign in now.store.references_of(entity):
            if values is not None and (deferred or not foreign.deferred):
                _check_target(now, seen, foreign, key, values)
        for foreign in now.store.references_to(entity):
            if before is not None and (deferred or not foreign.deferred):
                _check_not_needed(now, foreign, key, pick(foreign.target_attributes, before))


def _check_target(now: View, seen: View, foreign: ForeignKey, key: Key, values: dict[str, Any]) -> None:
    value = pick(foreign.attributes, values)
    if None in value:
        return
    if not _is_there(seen, foreign, value):
        table, target = now.store.table(foreign.entity), now.store.table(foreign.target)
        raise ForeignKeyViolation(
            f"{table.name} {key} refers to {target.name} {value}, which does not exist",
            None,
            foreign.name,
            table.name,
            table.column_names(foreign.attributes),
        )
    if not _is_there(now, foreign, value):
        raise SerializationFailure(
            f"{foreign.target.__name__} {value}, which {foreign.entity.__name__} {key} refers to, "
            "was removed by another unit since this one's snapshot"
        )


def _check_not_needed(view: View, foreign: ForeignKey, key: Key, value: Key) -> None:
    """Raise if a row refers to *value*, which the target *key* had, and nobody has it now."""
    if _is_there(view, foreign, value):
        return
    for referring in view.find(foreign.entity, foreign.attributes, value):
        table, target = view.store.table(foreign.entity), view.store.table(foreign.target)
        raise ForeignKeyViolation(
            f"{target.name} {key} is not {value} any more, and {table.name} {referring} refers to it",
            None,
            foreign.name,
            table.name,
        )


def _is_there(view: View, foreign: ForeignKey, value: Key) -> bool:
    """Tell whether a target has *value*."""
    if foreign.target_attributes == view.store.table(foreign.target).key:
        return view.row(foreign.target, value) is not None
    return any(True for _ in view.find(foreign.target, foreign.target_attributes, value))
