"""
The primitives of a unit, in memory.
"""

import weakref
from typing import Any, TypeVar

from attrs import define, field

from uow import Changes, Options, Watcher
from uow.errors import ConnectionLost, SerializationFailure, StaleVersion, UniqueViolation

from ._constraints import check_references, check_row, check_uniques, taken
from ._gateway import FakeGateway
from ._graph import Graph
from ._store import Store
from ._tables import ForeignKey, Key, Row, Table, Values, pick
from ._tracking import Shape, Tracked, alike, attributes_in, tracked_as
from ._views import LEVELS, Layer, Name, View

__all__ = ["FakeTransaction"]

E = TypeVar("E")


@define(eq=False)
class Level:
    """
    What one scope did: enough to undo it.

    Args:
        nested: Whether it is a savepoint; the root undoes nothing but what was added or removed.

        added: The entities added, with their values before.

        touched: The entities written or removed, with their base and whether they were removed before.

        written: The rows written, with what this unit had written there before; `...` for nothing.

        related: The entities whose relationships were written, with what was in these before.
    """

    nested: bool = True
    # Weak: an entity that nobody holds need not be made new again, and a long import must not hold all of them.
    added: list[tuple["weakref.ref[Tracked]", Values]] = field(factory=list["tuple[weakref.ref[Tracked], Values]"])
    touched: dict[int, tuple[Tracked, Values | None, bool]] = field(
        factory=dict[int, "tuple[Tracked, Values | None, bool]"]
    )
    written: dict[Name, Any] = field(factory=dict[Name, Any])
    related: dict[int, tuple[Tracked, dict[str, list[Any]]]] = field(
        factory=dict[int, tuple[Tracked, dict[str, list[Any]]]]
    )

    def touch(self, tracked: Tracked) -> None:
        """Remember what *tracked* was like when this scope first touched it."""
        self.touched.setdefault(id(tracked), (tracked, tracked.base, tracked.removed))

    def merge_into(self, parent: "Level") -> None:
        """Hand over to the scope around this one; what that one remembers is older and stays."""
        parent.added += self.added
        for number, touched in self.touched.items():
            if parent.nested or touched[0].removed:
                parent.touched.setdefault(number, touched)
        if not parent.nested:
            return
        for name, before in self.written.items():
            parent.written.setdefault(name, before)
        for number, related in self.related.items():
            parent.related.setdefault(number, related)


class FakeTransaction:
    """
    One transaction on a `Store`: what it wrote is seen by nobody else until it commits.
    """

    watcher: Watcher

    def __init__(self, store: Store, options: Options) -> None:
        self.store = store
        self.isolation = options.isolation
        self.levels = [Level(nested=False)]
        self.begun = False
        self.lost = False
        self._tracked: dict[Name, Tracked] = {}
        self._new: dict[int, Tracked] = {}
        self._own: Layer[Values] = Layer()
        self._now = self._view = View(store, self._own)
        self._seen: dict[Name, int | None] = {}
        self._shapes: dict[type, Shape] = {}
        self._versions: dict[int, tuple[Tracked, int | None]] = {}
        self._written: dict[Name, Values | None] = {}
        self._graph = Graph(self)

    def watch(self, watcher: Watcher, /) -> None:
        """Remember whom to tell; from now on the store knows of this unit."""
        self.watcher = watcher
        self.store.transactions.add(self)

    def gateway(self, entity: type[E], /) -> FakeGateway[E]:
        """Return the primitives of the repository of *entity*."""
        self.store.table(entity).demand_read()
        return FakeGateway(entity, self._shape(entity), self)

    def _shape(self, entity: type) -> Shape:
        if entity not in self._shapes:
            self._shapes[entity] = Shape(entity)
        return self._shapes[entity]

    # ------------------------------------------------------------------------------------------------------- reading

    @property
    def view(self) -> View:
        """What this unit sees; the first look takes the snapshot, if its level has one."""
        if not self.begun:
            self._answer("begin")
            self.begun = True
            self._view = LEVELS[self.isolation or "READ COMMITTED"](self.store, self._own)
        return self._view

    def load(self, entity: type, key: Key, *, anew: bool = False) -> Any | None:
        """Return the entity with that key, the same object each time; *anew* reads its values again."""
        name, view = (entity, key), self.view
        tracked = self._tracked.get(name)
        view.got(entity, key)
        values = view.row(entity, key)
        if values is None or (tracked is not None and tracked.removed):
            return None
        if anew:
            view.demand_unchanged(entity, key)
        if tracked is None:
            made = self._shape(entity).make()
            tracked = self._tracked[name] = Tracked.of(self._shape(entity), made)
            self._read(name, tracked, values)
            self.watcher.loaded(made)
        elif anew:
            self._read(name, tracked, values)
        else:
            return tracked.entity
        if tracked.shape.relations:
            self._graph.fill(tracked)
        return tracked.entity

    def _read(self, name: Name, tracked: Tracked, values: Values) -> None:
        if name not in self._own.rows:  # what this unit wrote stands on the row that it read before
            self._seen[name] = _revision_of(self._view.committed(*name))
        tracked.revision = self._seen.get(name)
        tracked.shape.fill(tracked.attributes, values)
        tracked.base = tracked.shape.values_of(values)

    # ------------------------------------------------------------------------------------------------------- writing

    def add(self, entity: Any) -> None:
        """Take an entity in: a new one, or one that an earlier unit stored."""
        known = tracked_as(entity)
        shape = self._shape(entity.__class__)
        if known is not None and known.base is not None:
            name = (shape.entity, known.key)
            if self._tracked.get(name) is known:
                known.removed = False
            else:
                again = self._tracked[name] = Tracked.of(shape, entity)
                again.base, again.revision, again.related = known.base, known.revision, dict(known.related)
                again.keep = entity if shape.relations else None
                self._seen[name] = known.revision
                self.watcher.loaded(entity)
        elif id(entity) not in self._new:
            before = shape.values_of(attributes_in(entity))
            # Added again after it was removed, it is undone to what it was before the first time.
            tracked = self._new[id(entity)] = Tracked.of(shape, entity) if known is None else known
            tracked.keep, tracked.removed = entity, False
            self.levels[-1].added.append((weakref.ref(tracked), before))
            self.watcher.added(entity)

    def knows(self, entity: Any) -> bool:
        """Tell whether *entity* is in this unit, or was removed."""
        known = tracked_as(entity)
        if known is None or known.removed or id(entity) in self._new:
            return known is not None
        return known.base is not None and self._tracked.get((known.shape.entity, known.key)) is known

    def remove(self, entity: Any) -> bool:
        """Remove an entity; False if no unit knows it."""
        if self._new.pop(id(entity), None) is not None:
            return True
        known = tracked_as(entity)
        if known is None or known.base is None:
            return False
        self.add(entity)
        tracked = self._tracked[type(entity), known.key]
        self.levels[-1].touch(tracked)
        tracked.removed = True
        self._graph.remove(tracked)
        return True

    def flush(self) -> None:
        """Write what is pending, each row checked against the constraints."""
        self._answer("flush")
        for tracked in (*self._new.values(), *self._tracked.values()):
            tracked.shape.demand_storable(tracked.attributes)
        self._graph.gather(self._owners())
        for tracked in self._new.values():
            self._prepare(tracked)
        self._graph.point(self._owners())
        changed, removed = self._dirty()
        if not (self._new or changed or removed):
            return
        self.watcher.flushed(Changes(len(self._new), len(changed), len(removed)))
        self._written = {}
        try:
            self._write_all(changed, removed)
            check_references(self._now, self.view, self._written, deferred=False)
        except UniqueViolation:
            self.view.demand_valid()  # a unit that had looked before can try again, and will find what is there
            raise
        self._settle()

    def _owners(self) -> list[Tracked]:
        """Return what has relationships."""
        return [tracked for tracked in (*self._new.values(), *self._tracked.values()) if tracked.shape.relations]

    def _settle(self) -> None:
        """Take what is in the relationships now for written."""
        level = self.levels[-1]
        for tracked in self._owners():
            now = {relation.name: relation.members(tracked.attributes) for relation in tracked.shape.relations}
            if not _same(now, tracked.related):
                if level.nested:
                    level.related.setdefault(id(tracked), (tracked, tracked.related))
                tracked.related = now

    def pending(self) -> Changes:
        """Count what is not written yet."""
        self._graph.gather(self._owners())
        self._graph.point(self._owners())
        changed, removed = self._dirty()
        return Changes(len(self._new), len(changed), len(removed))

    def _dirty(self) -> tuple[list[Tracked], list[Tracked]]:
        """Return what was changed and what is to be removed; forget what nobody uses."""
        changed: list[Tracked] = []
        removed: list[Tracked] = []
        for name, tracked in list(self._tracked.items()):
            if tracked.removed:
                if tracked.base is not None:
                    removed.append(tracked)
            elif tracked.changed:
                changed.append(tracked)
            elif tracked.reference() is None:
                del self._tracked[name]
        return changed, removed

    def _write_all(self, changed: list[Tracked], removed: list[Tracked]) -> None:
        added = {(new.shape.entity, new.shape.key_of(new.attributes)) for new in self._new.values()}
        for tracked in removed:
            if (tracked.shape.entity, tracked.key) in added:
                self._delete(tracked)
        for number, tracked in list(self._new.items()):
            self._insert(tracked)
            del self._new[number]
            tracked.keep = tracked.entity if tracked.shape.relations else None
        for tracked in changed:
            self._update(tracked)
        for tracked in removed:
            if tracked.base is not None:
                self._delete(tracked)

    def _prepare(self, tracked: Tracked) -> None:
        """Give a new entity what its table gives it."""
        attributes, table = tracked.attributes, self.store.table(tracked.shape.entity)
        for attribute, default in table.defaults.items():
            if attributes.get(attribute) is None:
                attributes[attribute] = default(attributes)
        if table.generated is not None and attributes.get(table.generated) is None:
            attributes[table.generated] = self.store.next_id(table.entity)

    def _insert(self, tracked: Tracked) -> None:
        shape, attributes, table = tracked.shape, tracked.attributes, self.store.table(tracked.shape.entity)
        name = (shape.entity, shape.key_of(attributes))
        if shape.version is not None:  # one that takes the row of another counts on
            replaced = self._written.get(name)
            attributes[shape.version] = 1 if replaced is None else (replaced[shape.version] or 0) + 1
        values = shape.values_of(attributes)
        self._check(table, name, None, values)
        self._write(name, tracked, values)

    def _update(self, tracked: Tracked) -> None:
        shape, old, base = tracked.shape, (tracked.shape.entity, tracked.key), tracked.base
        assert base is not None
        if self._own.rows.get(old, ...) is None:
            raise StaleVersion(f"{old[0].__name__} {old[1]} went with what it referred to")
        self._demand_fresh(tracked, old)
        table = self.store.table(shape.entity)
        for attribute, update in table.updates.items():
            if alike(tracked.attributes.get(attribute), base[attribute]):
                tracked.attributes[attribute] = update(tracked.attributes)
        if shape.version is not None:
            self._versions.setdefault(id(tracked), (tracked, base[shape.version]))
            tracked.attributes[shape.version] = (base[shape.version] or 0) + 1
        values = shape.values_of(tracked.attributes)
        new = (shape.entity, shape.key_of(values))
        self._check(table, new, old, values)
        if new != old:
            self._write(old, tracked, None)
            del self._tracked[old]
        self._write(new, tracked, values)

    def _check(self, table: Table, name: Name, old: Name | None, values: Values) -> None:
        """Raise what a database would if the row *old*, or none, became *values*."""
        check_row(table, name[1], values)
        if name != old:
            if self._now.row(*name) is not None:
                raise taken(table, name[1], "exists")
            self._seen.setdefault(name, None)
        replaced = name[1] if old is None else old[1]
        check_uniques(self._now, name[0], replaced, values, deferred=False)

    def _delete(self, tracked: Tracked) -> None:
        name = (tracked.shape.entity, tracked.key)
        self._demand_fresh(tracked, name)
        self._write(name, tracked, None)
        self._cascade(name)

    def _cascade(self, name: Name) -> None:
        """Do what the removal of a row brings about where the foreign keys to it say so."""
        before = self._written[name]
        for foreign in self.store.references_to(name[0]):
            if before is not None and foreign.on_delete is not None:
                value = pick(foreign.target_attributes, before)
                for key in list(self._now.find(foreign.entity, foreign.attributes, value)):
                    self._refer_no_more(foreign, (foreign.entity, key))

    def _refer_no_more(self, foreign: ForeignKey, name: Name) -> None:
        """Remove the row *name*, or take its reference away; an entity that stands for it hears of the latter."""
        self.view.demand_unchanged(*name)
        self._seen.setdefault(name, self._revision(name))
        tracked, row = self._tracked.get(name), self._now.row(*name)
        if tracked is not None and self.levels[-1].nested:
            self.levels[-1].touch(tracked)
        if foreign.on_delete == "cascade" or row is None:
            self._write_row(name, None)
            self._cascade(name)
            return
        nothing: Values = dict.fromkeys(foreign.attributes)
        values = row | nothing
        check_row(self.store.table(name[0]), name[1], values)
        self._write_row(name, values)
        if tracked is not None:
            tracked.attributes.update(nothing)
            tracked.base = values

    def _write(self, name: Name, tracked: Tracked, values: Values | None) -> None:
        """Write the row of an entity."""
        if self.levels[-1].nested:
            self.levels[-1].touch(tracked)
        self._write_row(name, values)
        tracked.base = values
        self._tracked[name] = tracked

    def _write_row(self, name: Name, values: Values | None) -> None:
        """Write a row, so that the scope can undo it."""
        level = self.levels[-1]
        if level.nested:
            level.written.setdefault(name, self._own.rows.get(name, ...))
        self._written.setdefault(name, self._now.row(*name))
        self._own.rows[name] = values
        if values is not None:
            self._own.hint(self.store.table(name[0]), name[1], values)

    def _demand_fresh(self, tracked: Tracked, name: Name) -> None:
        """Raise if another unit was faster and the level, or a version, lets this one know it now."""
        self.view.demand_unchanged(*name)
        if tracked.shape.version is not None and self._revision(name) != self._seen.get(name):
            raise StaleVersion(f"{name[0].__name__} {name[1]} is not what this unit read any more")

    def _revision(self, name: Name) -> int | None:
        return _revision_of(self._now.committed(*name))

    # ----------------------------------------------------------------------------------------------- the transaction

    def savepoint_name(self, depth: int, /) -> str | None:
        """Return the name of the savepoint at that depth."""
        return f"savepoint_{depth}"

    def savepoint(self) -> None:
        """Begin a nested scope."""
        self.flush()
        self._answer("savepoint")
        self.levels.append(Level())

    def release(self) -> None:
        """Keep what the innermost scope did."""
        self.flush()
        self._answer("release")
        self.levels.pop().merge_into(self.levels[-1])

    def rollback_to_savepoint(self) -> None:
        """Undo what the innermost scope did, in the rows and in every entity."""
        level = self.levels.pop()
        for name, before in level.written.items():
            if before is ...:
                del self._own.rows[name]
            else:
                self._own.rows[name] = before
            self._tracked.pop(name, None)
        self._make_new(level)
        for tracked, base, removed in level.touched.values():
            tracked.base, tracked.removed = base, removed
            if base is not None:
                self._tracked[tracked.shape.entity, tracked.key] = tracked
        for tracked in self._tracked.values():
            if tracked.base is not None and tracked.changed:
                tracked.shape.fill(tracked.attributes, tracked.base)
        self._relate_as_before(level)
        self._answer("rollback")

    def _relate_as_before(self, level: Level) -> None:
        for tracked, related in level.related.values():
            tracked.related = related
        for tracked in self._owners():
            for relation in tracked.shape.relations:
                before = tracked.related.get(relation.name, [])
                if tracked.base is not None and not _same_members(relation.members(tracked.attributes), before):
                    relation.fill(tracked.entity, before)

    def confirm(self) -> None:
        """Write what is pending."""
        self.flush()

    def commit(self) -> None:
        """Make this unit's rows everybody's, if nobody was faster."""
        self._answer("commit")
        with self.store.mutex:
            if self._own.rows:
                self.view.demand_valid()
            for name, values in self._own.rows.items():
                self._demand_first(name)
                if values is not None:
                    check_uniques(self._now, *name, values, deferred=True)
            seen = {name: _values_of(self._view.committed(*name)) for name in self._own.rows}
            check_references(self._now, self._view, seen, deferred=True)
            for name, values in self._own.rows.items():
                self.store.put(*name, values)
            for name in self._own.rows:
                if name in self._tracked:
                    self._tracked[name].revision = self._revision(name)
        self._answer("commit", done=True)

    def rollback(self) -> None:
        """Forget everything; what was added is new again, the rest stays as it is in memory."""
        for tracked, version in self._versions.values():  # another unit may give the row the very number it had here
            if tracked.base is not None:
                tracked.count(version)
        for level in self.levels:
            for tracked, base, removed in level.touched.values():
                if tracked.removed:
                    tracked.base, tracked.removed = base, removed
            self._make_new(level)
        self._answer("rollback")

    def close(self, *, broken: bool = False) -> None:
        """End the unit."""
        self.store.unlock(self)
        self._view.close()
        self._view = self._now
        self.store.transactions.discard(self)

    def _demand_first(self, name: Name) -> None:
        """Raise if another unit committed this row since this one read it."""
        revision, seen = self._revision(name), self._seen.get(name)
        if revision == seen:
            return
        if seen is None:
            raise taken(self.store.table(name[0]), name[1], "was added by another unit")
        raise SerializationFailure(f"{name[0].__name__} {name[1]} was changed by another unit that committed first")

    def _make_new(self, level: Level) -> None:
        """Make what was added as new as before."""
        for reference, before in reversed(level.added):  # the oldest has the last word
            if (tracked := reference()) is None:
                continue
            self._new.pop(id(tracked.reference()), None)
            tracked.base = None
            tracked.shape.fill(tracked.attributes, before)

    def _answer(self, operation: str, *, done: bool = False) -> None:
        """Answer as a database does: not at all if it is gone, or with the failure that was ordered."""
        if self.lost:
            raise ConnectionLost("the store dropped its connections")
        self.store.fail_if_asked(operation, self._writes, done=done)

    def _writes(self, entity: type) -> bool:
        """Tell whether the next flush writes an entity of that class."""
        changed = (tracked for tracked in self._tracked.values() if tracked.changed)
        removed = (tracked for tracked in self._tracked.values() if tracked.removed and tracked.base is not None)
        written = (*self._new.values(), *removed, *changed)
        return any(issubclass(tracked.shape.entity, entity) for tracked in written)


def _revision_of(row: Row | None) -> int | None:
    return None if row is None else row.revision


def _values_of(row: Row | None) -> Values | None:
    return None if row is None else row.values


def _same(left: dict[str, list[Any]], right: dict[str, list[Any]]) -> bool:
    return all(_same_members(members, right.get(name, [])) for name, members in left.items())


def _same_members(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(one is other for one, other in zip(left, right, strict=True))
