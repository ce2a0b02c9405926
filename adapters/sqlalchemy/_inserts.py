"""
The short way of a flush: new entities of one plain class need one INSERT, and nothing of what a flush sorts out.
"""

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from sqlalchemy import Column, Insert, Table, insert
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql import ClauseElement

from ._mappings import kept

__all__ = ["Batch", "batch_of"]

_SIMPLE = frozenset({str, int, float, bool, bytes, type(None)})
_OURS = 1
"""How many listeners of each kind a unit's session has."""


@frozen
class _Plain:
    """
    A mapper whose entities depend on nothing but their own columns.

    Args:
        statement: The INSERT; always the same object, which SQLAlchemy has compiled then.

        columns: Each attribute, the key of its column, and whether a default stands for None.

        key: The attributes of the primary key.
    """

    statement: Insert
    columns: tuple[tuple[str, str, bool], ...]
    key: tuple[str, ...]


@frozen
class Batch:
    """
    New entities that take one INSERT.
    """

    states: Sequence[InstanceState[Any]]
    rows: Sequence[dict[str, Any]]
    plain: _Plain

    def write(self, session: Any, connection: Any) -> None:
        """Insert them, and let *session* know them as SQLAlchemy's flush does at its end."""
        connection.execute(self.plain.statement, self.rows)
        session._register_persistent(set(self.states))


def batch_of(session: Session) -> Batch | None:
    """Return what is pending in *session*; None if anything of it needs SQLAlchemy's flush, or nothing is."""
    new = session.new
    if not new or session.deleted or session.identity_map.check_modified() or _is_listened_to(session):
        return None
    states = [instance_state(entity) for entity in new]
    mapper: Any = states[0].mapper
    plain = kept(mapper, _examined)
    if plain is None or mapper.dispatch.before_insert or mapper.dispatch.after_insert:
        return None
    rows: list[dict[str, Any]] = []
    for state in states:
        row = _row(plain, state.dict) if state.mapper is mapper and not mapper._is_orphan(state) else None
        if row is None:
            return None
        key = mapper.identity_key_from_primary_key(tuple(state.dict[name] for name in plain.key))
        if key in session.identity_map:
            return None
        rows.append(row)
    return Batch(states, rows, plain)


def _is_listened_to(session: Session) -> bool:
    dispatch = session.dispatch
    return (
        len(dispatch.before_flush) > _OURS or len(dispatch.after_flush) > _OURS or bool(dispatch.after_flush_postexec)
    )


def _row(plain: _Plain, values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values to insert, or None if SQLAlchemy or the database have to find out some of them."""
    row: dict[str, Any] = {}
    for name, column, has_default in plain.columns:
        if name not in values:
            return None
        row[column] = value = values[name]
        if (value is None and has_default) or (
            type(value) not in _SIMPLE and (isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"))
        ):
            return None
    return row


def _examined(mapper: Mapper[Any]) -> _Plain | None:
    table: Any = mapper.local_table
    alone = mapper.inherits is None and mapper.polymorphic_on is None and mapper.version_id_col is None
    owned = alone and issubclass(type(table), Table)
    if not owned or mapper.relationships or mapper.composites:
        return None
    columns: list[tuple[str, str, bool]] = []
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        if len(attribute.columns) > 1 or not isinstance(column, Column) or column.table is not table:
            return None
        # A key that is missing is for the database to find.
        found_elsewhere = column.primary_key or column.default is not None or column.server_default is not None
        columns.append((attribute.key, column.key, found_elsewhere))
    key = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
    return _Plain(insert(table), tuple(columns), key)
