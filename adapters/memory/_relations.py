"""
Relationships of mapped classes: what they say, and what an entity has in them.

SQLAlchemy is not imported: its own instrumentation, which every mapped class has, keeps both sides of a relationship in
step; here it is only read and filled.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from attrs import frozen

from ._tables import Values

__all__ = ["Relation", "referring_attributes_of", "relations_of"]


@frozen
class Relation:
    """
    One side of a relationship that foreign keys alone describe.

    Args:
        name: The attribute.

        target: The class on the other side.

        here: The attributes that are compared on this side.

        there: Those on the other side.

        refers: Whether this side holds the foreign key.

        many: Whether it is a collection.

        saves: Whether what it holds is added with its owner.

        deletes: Whether what it holds is removed with its owner.

        orphans: Whether what is taken out of it is removed.

        passive: Whether what it holds is left to the database when its owner is removed.

        order: The attributes that sort the collection, and whether each descends.
    """

    name: str
    target: type
    here: tuple[str, ...]
    there: tuple[str, ...]
    refers: bool
    many: bool
    saves: bool
    deletes: bool
    orphans: bool
    passive: bool
    order: tuple[tuple[str, bool], ...]

    def members(self, attributes: Values) -> list[Any]:
        """Return the related entities among *attributes*."""
        value = attributes.get(self.name)
        if value is None:
            return []
        return list(value._sa_adapter) if self.many else [value]

    def fill(self, entity: Any, members: list[Any]) -> None:
        """Let *entity* have these related entities, as if they had been loaded."""
        value = members if self.many else next(iter(members), None)
        kind: Any = entity.__class__
        getattr(kind, self.name).impl.set_committed_value(entity._sa_instance_state, vars(entity), value)

    def sort(self, members: list[Any]) -> list[Any]:
        """Return *members* in the order that the relationship asks for."""
        for name, descending in reversed(self.order):
            members = sorted(members, key=partial(_sorted_by, name), reverse=descending)
        return members


def relations_of(entity: type) -> tuple[tuple[Relation, ...], tuple[str, ...]]:
    """Return the relationships of *entity* that the fake keeps, and the names of the others."""
    mapper = getattr(entity, "__mapper__", None)
    if mapper is None:
        return (), ()
    kept = [_read(prop) for prop in mapper.relationships if _is_plain(prop)]
    return tuple(kept), tuple(prop.key for prop in mapper.relationships if not _is_plain(prop))


def referring_attributes_of(entity: type) -> Iterator[tuple[str, ...]]:
    """Yield the attributes by which relationships of other classes find an *entity*."""
    mapper = getattr(entity, "__mapper__", None)
    for other in () if mapper is None else mapper.registry.mappers:
        for relation in relations_of(other.class_)[0]:
            if relation.target is entity:
                yield relation.there


def _is_plain(prop: Any) -> bool:
    """Tell whether the relationship says no more than that columns are equal, and is loaded and stored as a whole."""
    tables = {prop.parent.local_table, prop.mapper.local_table}
    order = prop.order_by or ()
    return (
        prop.secondary is None
        and not prop.viewonly
        and not (prop.direction.name == "MANYTOONE" and prop.cascade.delete_orphan)
        and prop.lazy not in ("dynamic", "write_only", "noload")
        and prop.mapper.inherits is None
        and all(
            getattr(side, "table", None) in tables
            for part in _equalities(prop.primaryjoin)
            for side in (part or [None])
        )
        and len(list(_equalities(prop.primaryjoin))) == len(prop.local_remote_pairs)
        and all(_column(clause) in prop.mapper.columns.values() for clause in order)
    )


def _equalities(clause: Any) -> Iterator[tuple[Any, ...] | None]:
    """Yield the two sides of each comparison; None for one that is no equality."""
    if hasattr(clause, "clauses") and clause.operator.__name__ == "and_":
        for part in clause.clauses:
            yield from _equalities(part)
    elif clause.__visit_name__ == "binary" and clause.operator.__name__ == "eq":
        yield clause.left, clause.right
    else:
        yield None


def _column(clause: Any) -> Any:
    return clause.element if _descends(clause) else clause


def _descends(clause: Any) -> bool:
    return getattr(getattr(clause, "modifier", None), "__name__", "") == "desc_op"


def _read(prop: Any) -> Relation:
    def name_in(mapper: Any, column: Any) -> str:
        name: str = mapper.get_property_by_column(column).key
        return name

    pairs: Any = prop.local_remote_pairs
    cascade = prop.cascade
    return Relation(
        name=prop.key,
        target=prop.mapper.class_,
        here=tuple(name_in(prop.parent, local) for local, _ in pairs),
        there=tuple(name_in(prop.mapper, remote) for _, remote in pairs),
        refers=prop.direction.name == "MANYTOONE",
        many=bool(prop.uselist),
        saves=cascade.save_update,
        deletes=cascade.delete,
        orphans=cascade.delete_orphan,
        passive=bool(prop.passive_deletes),
        order=tuple((name_in(prop.mapper, _column(part)), _descends(part)) for part in prop.order_by or ()),
    )


def _sorted_by(name: str, entity: object) -> tuple[bool, Any]:
    """Return what to sort by: a missing value is the smallest."""
    value = getattr(entity, name)
    return value is not None, value
