"""
How related entities come, go and change with each other, in one unit.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from uow import Conflict
from uow.errors import UnmappedEntity

from ._relations import Relation
from ._store import Store
from ._tables import Key, Values, pick
from ._tracking import Tracked, tracked_as
from ._views import View

__all__ = ["Graph", "Unit"]


class Unit(Protocol):
    """
    What graphs and gateways need of their unit.
    """

    store: Store

    @property
    def view(self) -> View:
        """What it sees of the store."""
        ...

    def load(self, entity: type, key: Key, *, anew: bool = False) -> Any | None:
        """Return the entity with that key."""
        ...

    def add(self, entity: Any) -> None:
        """Take a new entity in."""
        ...

    def conflict(self, entity: Any) -> Conflict | None:
        """Tell whether the unit holds another object for its row, or another unit that is open tracks *entity*."""
        ...

    def remove(self, entity: Any) -> bool:
        """Remove an entity; False if this unit knows none such."""
        ...

    def knows(self, entity: Any) -> bool:
        """Tell whether the entity is in the unit, or was removed."""
        ...


class Graph:
    """
    The relationships between the entities of a unit.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._coming: deque[Tracked] = deque()
        self._going: deque[Tracked] = deque()

    def fill(self, tracked: Tracked) -> None:
        """Load what *tracked* is related to, and what that is related to."""
        _one_by_one(self._coming, tracked, self._fill)

    def remove(self, tracked: Tracked) -> None:
        """Remove what goes with *tracked*, and what goes with that."""
        _one_by_one(self._going, tracked, self._remove)

    def gather(self, owners: Iterable[Tracked]) -> None:
        """Add what is related to *owners*, and remove what was taken out of them or belongs to a removed one."""
        waiting = deque(owners)
        everything = list(waiting)
        while waiting:
            tracked = waiting.popleft()
            for relation, member in _related(tracked):
                if relation.saves and not tracked.removed and not self._unit.knows(member):
                    self._demand_kept(relation, member)
                    self._unit.add(member)
                    found = _known(member)
                    waiting.append(found)
                    everything.append(found)
        held = {_place(tracked, relation, member) for tracked in everything for relation, member in _related(tracked)}
        for tracked in everything:
            for relation in tracked.shape.relations:
                if not relation.refers:
                    self._let_go(tracked, relation, held)

    def _remove(self, tracked: Tracked) -> None:
        for relation, member in list(_related(tracked)):
            if relation.deletes and not _known(member).removed:
                self._unit.remove(member)

    def point(self, owners: Iterable[Tracked]) -> None:
        """Fill the foreign keys of what came to be related, or came to be so no more."""
        everything = [tracked for tracked in owners if not tracked.removed]
        while sum(_point(tracked, relation) for tracked in everything for relation in tracked.shape.relations):
            pass  # a key may be made of another one

    def _fill(self, tracked: Tracked) -> None:
        entity = tracked.keep = tracked.entity
        for relation in tracked.shape.relations:
            members = tracked.related[relation.name] = self._read(relation, tracked.base or {})
            relation.fill(entity, members)

    def _read(self, relation: Relation, values: Values) -> list[Any]:
        value = pick(relation.here, values)
        table = self._unit.store.table(relation.target)
        table.demand_read()
        if None in value:
            return []
        by_name = dict(zip(relation.there, value, strict=True))
        if by_name.keys() == set(table.key):
            keys: list[Any] = [pick(table.key, by_name)]
        else:
            found: list[Any] = list(self._unit.view.find(relation.target, relation.there, value))
            keys = sorted(found)
        loaded = (self._unit.load(relation.target, key) for key in keys)
        return relation.sort([entity for entity in loaded if entity is not None])

    def _demand_kept(self, relation: Relation, member: Any) -> None:
        kind: Any = member.__class__
        if kind is not relation.target:
            raise UnmappedEntity(
                kind,
                f"the fake would not find it among {relation.target.__name__} again, it knows no inheritance",
                "Test it on SQLite.",
            )
        self._unit.store.table(relation.target).demand_read()

    def _let_go(self, owner: Tracked, relation: Relation, held: set[Any]) -> None:
        """Remove the orphans of *owner*, or let them refer to nothing."""
        before = owner.related.get(relation.name, [])
        gone = owner.removed and not (relation.passive and not relation.deletes)
        for member in before:
            tracked = _known(member)
            if tracked.removed or not (gone or _place(owner, relation, member) not in held):
                continue
            if relation.deletes if owner.removed else relation.orphans:
                self._unit.remove(member)
            elif owner.base is not None and pick(relation.there, tracked.attributes) == pick(relation.here, owner.base):
                tracked.set(dict.fromkeys(relation.there))


def _one_by_one(waiting: deque[Tracked], tracked: Tracked, call: Callable[[Tracked], None]) -> None:
    """Let *tracked* wait for *call*, which may let others wait; no recursion, for chains are long."""
    waiting.append(tracked)
    if len(waiting) > 1:
        return
    try:
        while waiting:
            call(waiting[0])
            waiting.popleft()
    finally:
        waiting.clear()


def _known(entity: Any) -> Tracked:
    tracked = tracked_as(entity)
    assert tracked is not None
    return tracked


def _related(tracked: Tracked) -> Iterable[tuple[Relation, Any]]:
    """Yield what *tracked* is related to now."""
    for relation in tracked.shape.relations:
        for member in relation.members(tracked.attributes):
            yield relation, member


def _place(owner: Tracked, relation: Relation, member: Any) -> tuple[type, str, int]:
    return owner.shape.entity, relation.name, id(member)


def _point(owner: Tracked, relation: Relation) -> bool:
    """Fill the foreign keys of one relationship; tell whether any changed."""
    before, now = owner.related.get(relation.name, []), relation.members(owner.attributes)
    if relation.refers:
        if not now and before and owner.base is not None:
            untouched = pick(relation.here, owner.attributes) == pick(relation.here, owner.base)
            return untouched and _set(owner, relation.here, [None] * len(relation.here))
        if now and not any(now[0] is member for member in before):
            return _set(owner, relation.here, [_known(now[0]).attributes.get(name) for name in relation.there])
        return False
    values = [owner.attributes.get(name) for name in relation.here]
    old = {id(member) for member in before}
    new = [_known(member) for member in now if id(member) not in old]
    return None not in values and sum(_set(member, relation.there, values) for member in new) > 0


def _set(tracked: Tracked, names: tuple[str, ...], values: list[Any]) -> bool:
    changed = {name: value for name, value in zip(names, values, strict=True) if tracked.attributes.get(name) != value}
    if changed:
        tracked.set(changed)
    return bool(changed)
