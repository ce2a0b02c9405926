"""
The short ways of a flush: new entities of one plain class, or one that was changed, need one statement and no sorting.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from attrs import frozen
from sqlalchemy import Column, Insert, Table, Update, and_, bindparam, insert, update
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.sql import ClauseElement

from uow import Changes

from ._mappings import kept

__all__ = ["Shortcut", "shortcut_of"]

_SIMPLE = frozenset({str, int, float, bool, bytes, type(None)})
_OURS = 1
"""How many listeners of each kind a unit's session has."""
_ONE = Changes(changed=1)


class Shortcut(Protocol):
    """
    What is pending in a session, and a statement that writes all of it.
    """

    @property
    def changes(self) -> Changes:
        """How much there is."""
        ...

    @property
    def changed(self) -> Sequence[object]:
        """The entities that are not new."""
        ...

    def write(self, session: Any, connection: Any) -> None:
        """Write it, and let *session* know it as SQLAlchemy's flush does at its end."""
        ...


@frozen
class _Plain:
    """
    A mapper whose entities depend on nothing but their own columns. Its statements are always the same objects, which
    SQLAlchemy has compiled then.

    Args:
        table: The table.

        columns: By attribute, the key of its column, and whether a default stands for None.

        key: The attributes of the primary key.

        primary: Its columns.

        insert: The INSERT.

        updates: By the attributes that are set, the UPDATE of one row; None if an UPDATE sets more than it says.
    """

    table: Table
    columns: dict[str, tuple[str, bool]]
    key: tuple[str, ...]
    primary: tuple[Column[Any], ...]
    insert: Insert
    updates: dict[tuple[str, ...], Update] | None


@frozen
class _Added:
    """
    New entities that take one INSERT.
    """

    states: Sequence[InstanceState[Any]]
    rows: Sequence[dict[str, Any]]
    plain: _Plain
    changed: Sequence[object] = ()

    @property
    def changes(self) -> Changes:
        return Changes(len(self.rows))

    def write(self, session: Any, connection: Any) -> None:
        connection.execute(self.plain.insert, self.rows)
        session._register_persistent(set(self.states))


@frozen
class _Changed:
    """
    One entity that takes one UPDATE.
    """

    state: InstanceState[Any]
    statement: Update
    values: dict[str, Any]
    changed: Sequence[object]
    changes: Changes = _ONE

    def write(self, session: Any, connection: Any) -> None:
        rows = connection.execute(self.statement, self.values).rowcount
        if rows != 1 and connection.dialect.supports_sane_rowcount:
            table = self.state.mapper.local_table.description
            raise StaleDataError(f"UPDATE of {table!r} met {rows} rows instead of 1: another unit removed it")
        session._register_persistent({self.state})


def shortcut_of(session: Session) -> Shortcut | None:
    """Return what is pending in *session*; None if anything of it needs SQLAlchemy's flush, or nothing is."""
    dispatch = session.dispatch
    ours = len(dispatch.before_flush) == len(dispatch.after_flush) == _OURS and not dispatch.after_flush_postexec
    if session.deleted or not ours:
        return None
    changed = session.identity_map.check_modified()
    if session.new:
        return None if changed else _added(session)
    return _changed(session) if changed else None


def _added(session: Session) -> Shortcut | None:
    states = [instance_state(entity) for entity in session.new]
    mapper: Any = states[0].mapper
    plain = kept(mapper, _examined)
    if plain is None or mapper.dispatch.before_insert or mapper.dispatch.after_insert:
        return None
    held = session.identity_map
    owned = bool(mapper._delete_orphans)
    rows: list[dict[str, Any]] = []
    for state in states:
        fits = state.mapper is mapper and not (owned and mapper._is_orphan(state))
        row = _row(plain, state.dict) if fits else None
        if row is None:
            return None
        if len(held) and mapper.identity_key_from_primary_key([state.dict[name] for name in plain.key]) in held:
            return None
        rows.append(row)
    return _Added(states, rows, plain)


def _row(plain: _Plain, values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values to insert, or None if SQLAlchemy or the database have to find out some of them."""
    row: dict[str, Any] = {}
    for name, (column, has_default) in plain.columns.items():
        if name not in values:
            return None
        row[column] = value = values[name]
        if type(value) in _SIMPLE:
            if value is None and has_default:
                return None
        elif _is_expression(value):
            return None
    return row


def _changed(session: Session) -> Shortcut | None:
    changed = tuple(session.dirty)
    if len(changed) != 1:
        return None
    state: Any = instance_state(changed[0])
    mapper = state.mapper
    plain = kept(mapper, _examined)
    if plain is None or plain.updates is None or mapper._is_orphan(state):
        return None
    if mapper.dispatch.before_update or mapper.dispatch.after_update:
        return None
    values: dict[str, Any] = {}
    for name, before in state.committed_state.items():
        if name in plain.key or name not in plain.columns or name not in state.dict or _is_expression(state.dict[name]):
            return None
        if state.manager[name].impl.is_equal(state.dict[name], before) is not True:
            values[name] = state.dict[name]
    if not values:
        return None
    bound = {f"new_{name}": value for name, value in values.items()}
    bound.update(zip((f"key_{name}" for name in plain.key), state.key[1], strict=True))
    return _Changed(state, _update(plain, plain.updates, tuple(sorted(values))), bound, changed)


def _update(plain: _Plain, known: dict[tuple[str, ...], Update], names: tuple[str, ...]) -> Update:
    if names not in known:
        row = (column == bindparam(f"key_{name}") for name, column in zip(plain.key, plain.primary, strict=True))
        new: dict[str, Any] = {plain.columns[name][0]: bindparam(f"new_{name}") for name in names}
        known[names] = update(plain.table).where(and_(*row)).values(new)
    return known[names]


def _is_expression(value: object) -> bool:
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


def _examined(mapper: Mapper[Any]) -> _Plain | None:
    table: Any = mapper.local_table
    alone = mapper.inherits is None and mapper.polymorphic_on is None and mapper.version_id_col is None
    owned = alone and issubclass(type(table), Table)
    if not owned or mapper.relationships or mapper.composites:
        return None
    columns: dict[str, tuple[str, bool]] = {}
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        if len(attribute.columns) > 1 or not isinstance(column, Column) or column.table is not table:
            return None
        # A key that is missing is for the database to find.
        found_elsewhere = column.primary_key or column.default is not None or column.server_default is not None
        columns[attribute.key] = column.key, found_elsewhere
    primary: Any = tuple(mapper.primary_key)
    key = tuple(mapper.get_property_by_column(column).key for column in primary)
    sets_more = any(column.onupdate is not None or column.server_onupdate is not None for column in table.columns)
    known_by_it = set(primary) == set(table.primary_key)
    return _Plain(table, columns, key, primary, insert(table), {} if known_by_it and not sets_more else None)
