"""
What a savepoint must put back in memory: SQLAlchemy only forgets, and would read it again behind the caller's back.
"""

import copy
import weakref
from collections.abc import Iterable
from typing import Any, TypeAlias

from attrs import define, field
from sqlalchemy import inspect
from sqlalchemy.ext.mutable import MutableBase
from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.base import LoaderCallableStatus

from uow import merged

from ._mappings import kept

__all__ = ["Added", "Level", "make_new"]

_UNLOADED = frozenset({"write_only", "dynamic", "noload"})
_IMMUTABLE = frozenset({str, int, float, bool, bytes, type(None), LoaderCallableStatus})
_Entry: TypeAlias = tuple[object, dict[str, Any]]
# Not the entities: one that nobody holds need not be made new again, and a long import must not hold all of them.
Added: TypeAlias = dict[InstanceState[Any], dict[str, Any]]


@define(eq=False)
class Level:
    """
    The entities that one scope touched, and what they were like outside it.

    Args:
        nested: Whether it is a savepoint's; the root needs only what was added.

        handle: SQLAlchemy's savepoint, begun with the first work in it.

        sent: Whether the savepoint is in the database.

        wrote: Whether anything was written in it.

        tainted: Whether statements were sent whose effect on what is loaded is not known.

        unsettled: Whether RELEASE was interrupted, so that nobody knows whether the savepoint exists.

        added: The entities added, with their values before.

        outer: The entities written or changed, with their outer values.

        removed: The entities removed.

        unsure: Entities whose outer values only the database knows.

        returned: Those of *outer* that were removed and then added again, so that SQLAlchemy takes them for new.
    """

    nested: bool = False
    handle: SessionTransaction | None = None
    sent: bool = False
    wrote: bool = False
    tainted: bool = False
    unsettled: bool = False
    added: Added = field(init=False)
    removed: list["weakref.ref[object]"] = field(init=False)
    outer: dict[int, _Entry] = field(init=False)
    unsure: list[object] = field(init=False)
    returned: set[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.removed, self.unsure = [], []  # five factories would take three times as long
        self.added, self.outer, self.returned = {}, {}, set()

    def note_added(self, state: InstanceState[Any], entity: object) -> None:
        """Remember what *entity* was like when it was first added."""
        if state in self.added:
            return
        if self.outer and id(entity) in self.outer:
            self.returned.add(id(entity))
        self.added[state] = vars(entity).copy()

    def note_outer(self, entities: Iterable[object]) -> None:
        """Remember the outer values of *entities* that are about to be written, or were changed and will not be."""
        for entity in entities:
            if id(entity) not in self.outer:
                self.outer[id(entity)] = (entity, _outer_values(inspect(entity)))

    def note_unsure(self, entity: object) -> None:
        """Remember an entity whose outer values only the database knows."""
        if id(entity) not in self.outer:
            self.unsure.append(entity)

    def touched(self) -> Iterable[object]:
        """Return the entities that were written, changed or removed in this scope, or may have been."""
        return [*(entity for entity, _ in self.outer.values()), *self.unsure]

    def merge_into(self, parent: "Level") -> None:
        """Hand over to the scope around this one; what that one remembers is older and stays."""
        parent.wrote |= self.wrote
        parent.tainted |= self.tainted
        if self.returned:
            parent.returned |= {
                number for number in self.returned if inspect(self.outer[number][0]) not in parent.added
            }
        if self.added:
            parent.added = merged(parent.added, self.added)
        parent.removed += self.removed
        if parent.nested:
            parent.outer = merged(parent.outer, self.outer)
            parent.unsure += self.unsure

    def restore(self, session: Session, plain: Any) -> None:
        """Put the outer values back after *session* rolled back to the savepoint; *plain* is it without the rules."""
        make_new(self.added)
        for entity, values in map(self.outer.__getitem__, self.returned):
            _attach_again(plain, entity, values)
        stale = [entity for entity in self.unsure if entity in session]
        for entity, values in self.outer.values():
            if entity in session and not _put_back(entity, values):
                stale.append(entity)
        if stale:
            _read_again(session, plain, stale)


def make_new(added: Added) -> None:
    """Make entities as new as when they were added: what the database gave them, such as a key, is gone."""
    for state, before in added.items():
        if state.obj() is None:
            continue
        mapper = state.mapper
        for key in _keys(mapper):
            if key not in before:
                state.dict.pop(key, None)
                state.committed_state.pop(key, None)
            elif key not in mapper.relationships:
                state.dict[key] = before[key]
            else:
                if not mapper.relationships[key].uselist:
                    state.dict[key] = before[key]
                # Related entities count as added, so that a flush will write the reference again.
                state.committed_state[key] = LoaderCallableStatus.NO_VALUE


def _attach_again(plain: Any, entity: object, values: dict[str, Any]) -> None:
    state: InstanceState[Any] = inspect(entity)
    state.dict.update({name: values[name] for name in _primary_key(state.mapper)})
    make_transient_to_detached(entity)
    plain.add(entity)


def _primary_key(mapper: Any) -> list[str]:
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def _outer_values(state: InstanceState[Any]) -> dict[str, Any]:
    """Return the loaded values of an entity as they were before it was changed, or a status where that is unknown."""
    mapper = state.mapper
    values: dict[str, Any] = {}
    for key in _keys(mapper):
        if key in state.committed_state and (
            key in state.dict or not isinstance(state.committed_state[key], LoaderCallableStatus)
        ):
            value = state.committed_state[key]
        elif key in state.dict:
            value = state.dict[key]
        else:
            continue
        collection = key in mapper.relationships and mapper.relationships[key].uselist
        unknown = isinstance(value, LoaderCallableStatus)
        values[key] = _members(value) if collection and not unknown else _frozen(value)
    return values


def _frozen(value: Any) -> Any:
    """Return *value* so that a change in place does not change it."""
    return value if type(value) in _IMMUTABLE or hasattr(value, "_sa_instance_state") else copy.deepcopy(value)


def _members(collection: Any) -> Any:
    """Return what is in a list, set or mapping of related entities."""
    members: Iterable[Any] = collection.values() if hasattr(collection, "values") else collection
    return list(members)


def _put_back(entity: object, values: dict[str, Any]) -> bool:
    """Set *values* as loaded ones; return whether all were known."""
    state: InstanceState[Any] = inspect(entity)
    surplus = [key for key in _keys(state.mapper) if key in state.dict and key not in values]
    if surplus:
        assert state.session is not None
        state.session.expire(entity, surplus)
    restored = [key for key, value in values.items() if not isinstance(value, LoaderCallableStatus)]
    for key in restored:
        set_committed_value(entity, key, values[key])
    if any(isinstance(values[key], MutableBase) for key in restored):
        state.manager.dispatch.refresh(state, None, restored)  # where such a value learns whose it is
    return len(restored) == len(values)


def _read_again(session: Session, plain: Any, entities: list[object]) -> None:
    """Read *entities* from the database now; forget those that are only there inside the savepoint."""
    for entity in entities:
        state: InstanceState[Any] = inspect(entity)
        found = plain.get(state.mapper.class_, state.identity, populate_existing=True)
        if found is None and entity in session:
            session.expunge(entity)


def _keys(mapper: Mapper[Any]) -> list[str]:
    """Return the names of what is stored."""
    return kept(mapper, _stored)


def _stored(mapper: Mapper[Any]) -> list[str]:
    relations = [key for key, relation in mapper.relationships.items() if relation.lazy not in _UNLOADED]
    return [*mapper.column_attrs.keys(), *relations]
