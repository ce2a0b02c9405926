"""
The short way to one entity: SQLAlchemy makes its loaders anew for each query, and a plain mapping needs none.
"""

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from sqlalchemy import Column, Select, bindparam, select
from sqlalchemy.orm import Mapper, Session, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_state

from ._mappings import kept

__all__ = ["Reader", "reader_of"]

_LAZY = frozenset({"select", "raise", "raise_on_sql"})
_OURS = 1
"""How many listeners a unit's session has of its own to what comes from the database."""


@frozen
class Reader:
    """
    How entities are read whose mapper loads nothing but their own columns.

    Args:
        mapper: The mapper.

        names: The attributes.

        by_key: The query for their values; always the same object, which SQLAlchemy has compiled then.
    """

    mapper: Mapper[Any]
    names: tuple[str, ...]
    by_key: Select[Any]

    def read(self, session: Session, plain: Any, key: Mapping[str, object]) -> list[Any] | None:
        """
        Return the entities with that *key*, as if *session* had loaded them; None if only that knows which they are.
        """
        rows = plain.connection().execute(self.by_key, key).all()
        if not rows:
            return []
        entity = self.mapper.class_manager.new_instance()
        state = instance_state(entity)
        state.dict.update(zip(self.names, rows[0], strict=True))
        make_transient_to_detached(entity)
        held: Any = session.identity_map
        if len(rows) > 1 or state.key in held:
            return None  # the database takes several keys for equal
        plain.add(entity)
        return [entity]


def reader_of(mapper: Mapper[Any], session: Session) -> Reader | None:
    """Return how to read an entity of *mapper*; None if that takes more, or somebody listens to it."""
    reader = kept(mapper, _examined)
    told = session.dispatch
    if (
        reader is None
        or mapper.class_manager.dispatch.load
        or session.execution_options
        or told.do_orm_execute
        or told.before_attach
        or told.after_attach
        or not len(told.loaded_as_persistent) == len(told.detached_to_persistent) == _OURS
    ):
        return None
    return reader


def _examined(mapper: Mapper[Any]) -> Reader | None:
    if mapper.inherits is not None or mapper.polymorphic_on is not None or mapper.composites:
        return None
    if any(relation.lazy not in _LAZY for relation in mapper.relationships):
        return None
    columns: dict[str, Any] = {}
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        single = len(attribute.columns) == 1 and isinstance(column, Column) and column.table is mapper.local_table
        if attribute.deferred or not single:
            return None
        columns[attribute.key] = column
    key = (mapper.get_property_by_column(column).key for column in mapper.primary_key)
    every: Any = select(*columns.values())
    return Reader(mapper, tuple(columns), every.where(*(columns[name] == bindparam(name) for name in key)))
