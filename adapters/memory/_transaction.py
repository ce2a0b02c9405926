"""
The primitives of a unit, in memory.
"""

import weakref
from typing import Any, TypeVar

from attrs import define, field

from uow import Changes, Options, Watcher
from uow.errors import ConnectionLost, SerializationFailure, StaleVersion, UniqueViolation

from ._constraints import check_references, check_row
from ._gateway import FakeGateway
from ._store import Key, Row, Store, Values
from ._tracking import Shape, Tracked, attributes_in, tracked_as
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
    """

    nested: bool = True
    # Weak: an entity that nobody holds need not be made new again, and a long import must not hold all of them.
    added: list[tuple["weakref.ref[Tracked]", Values]] = field(factory=list["tuple[weakref.ref[Tracked], Values]"])
    touched: dict[int, tuple[Tracked, Values | None, bool]] = field(
        factory=dict[int, "tuple[Tracked, Values | None, bool]"]
    )
    written: dict[Name, Any] = field(factory=dict[Name, Any])

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

    def watch(self, watcher: Watcher, /) -> None:
        """Remember whom to tell; from now on the store knows of this unit."""
        self.watcher = watcher
        self.store.transactions.add(self)

    def gateway(self, entity: type[E], /) -> FakeGateway[E]:
        """Return the primitives of the repository of *entity*."""
        self.store.table(entity)
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
            return made
        if anew:
            self._read(name, tracked, values)
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
                again.base, again.revision = known.base, known.revision
                self._seen[name] = known.revision
                self.watcher.loaded(entity)
        elif id(entity) not in self._new:
            before = shape.values_of(attributes_in(entity))
            tracked = self._new[id(entity)] = Tracked.of(shape, entity)
            tracked.keep = entity
            self.levels[-1].added.append((weakref.ref(tracked), before))
            self.watcher.added(entity)

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
        return True

    def flush(self) -> None:
        """Write what is pending, each row checked against the constraints."""
        self._answer("flush")
        self._tracked = {name: tracked for name, tracked in self._tracked.items() if not tracked.forgotten}
        for tracked in (*self._new.values(), *self._tracked.values()):
            tracked.shape.demand_storable(tracked.attributes)
        changes = self.pending()
        if not changes:
            return
        self.watcher.flushed(changes)
        try:
            check_references(self._now, self.view, self._write_all())
        except UniqueViolation:
            self.view.demand_valid()  # a unit that had looked before can try again, and will find what is there
            raise

    def _write_all(self) -> list[Name]:
        written: list[Name] = []
        added = {(new.shape.entity, new.shape.key_of(new.attributes)) for new in self._new.values()}
        for tracked in self._to_remove():
            if (tracked.shape.entity, tracked.key) in added:
                written.append(self._delete(tracked))
        for number, tracked in list(self._new.items()):
            written.append(self._insert(tracked))
            del self._new[number]
            tracked.keep = None
        for tracked in [tracked for tracked in self._tracked.values() if tracked.changed and not tracked.removed]:
            written += self._update(tracked)
        for tracked in self._to_remove():
            written.append(self._delete(tracked))
        return written

    def pending(self) -> Changes:
        """Count what is not written yet."""
        changed = sum(tracked.changed and not tracked.removed for tracked in self._tracked.values())
        return Changes(len(self._new), changed, len(self._to_remove()))

    def _to_remove(self) -> list[Tracked]:
        return [tracked for tracked in self._tracked.values() if tracked.removed and tracked.base is not None]

    def _insert(self, tracked: Tracked) -> Name:
        shape, attributes = tracked.shape, tracked.attributes
        if shape.generated and attributes.get(shape.key[0]) is None:
            attributes[shape.key[0]] = self.store.next_id(shape.entity)
        if shape.version is not None:
            attributes[shape.version] = 1
        values = shape.values_of(attributes)
        name = (shape.entity, shape.key_of(values))
        if self._now.row(*name) is not None:
            raise self._taken(name, "exists")
        check_row(self._now, *name, values, shape.key)
        self._seen.setdefault(name, None)
        return self._write(name, tracked, values)

    def _update(self, tracked: Tracked) -> list[Name]:
        shape, old = tracked.shape, (tracked.shape.entity, tracked.key)
        self._demand_fresh(tracked, old)
        if shape.version is not None:
            assert tracked.base is not None
            tracked.attributes[shape.version] = (tracked.base[shape.version] or 0) + 1
        values = shape.values_of(tracked.attributes)
        new = (shape.entity, shape.key_of(values))
        written = [new]
        if new != old:
            if self._now.row(*new) is not None:
                raise self._taken(new, "exists")
            self._seen.setdefault(new, None)
            written.append(self._write(old, tracked, None))
            del self._tracked[old]
        check_row(self._now, *new, values, shape.key)
        self._write(new, tracked, values)
        return written

    def _delete(self, tracked: Tracked) -> Name:
        name = (tracked.shape.entity, tracked.key)
        self._demand_fresh(tracked, name)
        return self._write(name, tracked, None)

    def _write(self, name: Name, tracked: Tracked, values: Values | None) -> Name:
        """Write a row, so that the scope can undo it."""
        level = self.levels[-1]
        if level.nested:
            level.touch(tracked)
            level.written.setdefault(name, self._own.rows.get(name, ...))
        self._own.rows[name] = tracked.base = values
        self._tracked[name] = tracked
        if values is not None:
            self._own.hint(self.store.table(name[0]), name[1], values)
        return name

    def _demand_fresh(self, tracked: Tracked, name: Name) -> None:
        """Raise if another unit was faster and the level, or a version, lets this one know it now."""
        self.view.demand_unchanged(*name)
        if tracked.shape.version is not None and self._revision(name) != self._seen.get(name):
            raise StaleVersion(f"{name[0].__name__} {name[1]} is not what this unit read any more")

    def _revision(self, name: Name) -> int | None:
        return _revision_of(self._now.committed(*name))

    def _taken(self, name: Name, how: str) -> UniqueViolation:
        entity, key = name
        return UniqueViolation(f"{entity.__name__} {key} {how}", None, "key", entity.__name__, self._shape(entity).key)

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
        self._answer("rollback")

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
                    check_row(self._now, *name, values, self._shape(name[0]).key)
            check_references(self._now, self._view, self._own.rows)
            for name, values in self._own.rows.items():
                self.store.put(*name, values)
            for name in self._own.rows:
                if name in self._tracked:
                    self._tracked[name].revision = self._revision(name)

    def rollback(self) -> None:
        """Forget everything; what was added is new again, the rest stays as it is in memory."""
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
            raise self._taken(name, "was added by another unit")
        raise SerializationFailure(f"{name[0].__name__} {name[1]} was changed by another unit that committed first")

    def _make_new(self, level: Level) -> None:
        """Make what was added as new as before."""
        for reference, before in reversed(level.added):  # the oldest has the last word
            if (tracked := reference()) is None:
                continue
            self._new.pop(id(tracked.reference()), None)
            tracked.base = None
            tracked.shape.fill(tracked.attributes, before)

    def _answer(self, operation: str) -> None:
        """Answer as a database does: not at all if it is gone, or with the failure that was ordered."""
        if self.lost:
            raise ConnectionLost("the store dropped its connections")
        self.store.fail_if_asked(operation)


def _revision_of(row: Row | None) -> int | None:
    return None if row is None else row.revision
