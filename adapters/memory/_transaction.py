"""
The primitives of a unit, in memory.
"""

import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, TypeVar

from attrs import define, field

from uow import Changes, Claim, Conflict, Decision, Finished, Options, Outcome, Watcher, merged
from uow.errors import (
    ConnectionLost,
    DatabaseError,
    LockTimeout,
    SerializationFailure,
    StaleVersion,
    UniqueViolation,
)

from ._constraints import check_references, check_row, check_uniques, taken
from ._gateway import FakeGateway
from ._graph import Graph
from ._outcomes import Branch
from ._resource import FakeResource
from ._store import Store
from ._tables import ForeignKey, Key, Row, Table, Values, pick
from ._tracking import Shape, Tracked, alike, attributes_in, tracked_as
from ._views import LEVELS, Layer, Name, View

__all__ = ["FakeTransaction"]

E = TypeVar("E")
K = TypeVar("K")
V = TypeVar("V")


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

        claims: The keys taken.
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
    claims: dict[str, Claim] = field(factory=dict[str, Claim])

    def touch(self, tracked: Tracked) -> None:
        """Remember what *tracked* was like when this scope first touched it."""
        self.touched.setdefault(id(tracked), (tracked, tracked.base, tracked.removed))

    def merge_into(self, parent: "Level") -> None:
        """Hand over to the scope around this one; what that one remembers is older and stays."""
        parent.added += self.added
        parent.claims |= self.claims
        if parent.nested:
            parent.touched = merged(parent.touched, self.touched)
            parent.written = merged(parent.written, self.written)
            parent.related = merged(parent.related, self.related)
        else:
            removed = {number: touched for number, touched in self.touched.items() if touched[0].removed}
            parent.touched = merged(parent.touched, removed)


class FakeTransaction:
    """
    One transaction on a `Store`: what it wrote is seen by nobody else until it commits.
    """

    watcher: Watcher
    branch: tuple[FakeResource, str]

    def __init__(self, store: Store, options: Options) -> None:
        self.store = store
        self.isolation = options.isolation
        self.levels = [Level(nested=False)]
        self.begun = False
        self.lost = False
        self.token: str | None = None
        self.decision: Decision | None = None
        self.prepared = False
        self._deadline = 0.0
        self._tracked: dict[Name, Tracked] = {}
        self._new: dict[int, Tracked] = {}
        self._suspects: dict[Tracked, None] = {}
        self._own: Layer[Values] = Layer()
        self._now = self._view = View(store, self._own)
        self._seen: dict[Name, int | None] = {}
        self._shapes: dict[type, Shape] = {}
        self._related = False
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
        shape = self._shapes.get(entity)
        if shape is None:
            shape = self._shapes[entity] = self.store.shape(entity)
            self._related = self._related or bool(shape.relations)
        return shape

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
        if tracked is not None and tracked.removed:
            return None
        if values is None:  # gone, though not to a unit that still holds it, if that was another one's work
            held = None if anew or name in self._own.rows else self._held(name)
            return None if held is None else held.entity
        if anew:
            view.demand_unchanged(entity, key)
        if tracked is None:
            made = self._shape(entity).make()
            tracked = self._tracked[name] = Tracked.of(self._shape(entity), made, self._suspects)
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
        tracked.settle()

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
                again = self._tracked[name] = Tracked.of(shape, entity, self._suspects)
                again.base, again.revision, again.related = known.base, known.revision, dict(known.related)
                again.keep = entity if shape.relations else None
                again.suspect()
                self._seen[name] = known.revision
                self.watcher.loaded(entity)
        elif id(entity) not in self._new:
            before = shape.values_of(attributes_in(entity))
            # Added again after it was removed, it is undone to what it was before the first time.
            tracked = self._new[id(entity)] = known or Tracked.of(shape, entity, self._suspects)
            tracked.keep, tracked.removed, tracked.suspects = entity, False, self._suspects
            self.levels[-1].added.append((weakref.ref(tracked), before))
            self.watcher.added(entity)

    def conflict(self, entity: Any) -> Conflict | None:
        """Tell whether this unit holds another object for its row, or another unit that is open tracks *entity*."""
        known = tracked_as(entity)
        if known is None:
            return None
        held = None if known.base is None else self._held((known.shape.entity, known.key))
        if held is not None and held is not known:
            return "twin"
        if known.suspects is self._suspects:
            return None
        return "elsewhere" if any(other._suspects is known.suspects for other in self.store.transactions) else None

    def _held(self, name: Name) -> Tracked | None:
        """Return the entity that stands for the row *name*, if somebody uses it or it is to be written."""
        held = self._tracked.get(name)
        if held is None or held.base is None:
            return None
        return held if held.reference() is not None or held.removed or held.changed else None

    def knows(self, entity: Any) -> bool:
        """Tell whether *entity* is in this unit, or was removed."""
        known = tracked_as(entity)
        if known is None or known.removed or id(entity) in self._new:
            return known is not None
        return self._has(known)

    def _has(self, tracked: Tracked) -> bool:
        """Tell whether *tracked* stands for a row in this unit."""
        return tracked.base is not None and self._tracked.get((tracked.shape.entity, tracked.key)) is tracked

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
        tracked.suspect()
        self._graph.remove(tracked)
        return True

    def flush(self) -> None:
        """Write what is pending, each row checked against the constraints."""
        self._answer("flush")
        if not self._new and not self._suspects:
            return
        for tracked in (*self._new.values(), *self._suspects):
            tracked.shape.demand_storable(tracked.attributes)
        self._gather()
        for tracked in self._new.values():
            self._prepare(tracked)
        self._point()
        changed, removed = self._dirty()
        if not (self._new or changed or removed):
            return
        self.watcher.flushed(Changes(len(self._new), len(changed), len(removed)))
        self._written = {}
        try:
            self._write_all(changed, removed)
            view = self.view
            if self.store.has_references:
                check_references(self._now, view, self._written, deferred=False)
        except UniqueViolation:
            self.view.demand_valid()  # a unit that had looked before can try again, and will find what is there
            raise
        self._settle()

    def _gather(self) -> None:
        if self._related:
            self._graph.gather(self._owners())

    def _point(self) -> None:
        if self._related:
            self._graph.point(self._owners())

    def _owners(self) -> list[Tracked]:
        """Return what has relationships."""
        if not self._related:
            return []
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
        self._gather()
        self._point()
        changed, removed = self._dirty()
        return Changes(len(self._new), len(changed), len(removed))

    def _dirty(self) -> tuple[list[Tracked], list[Tracked]]:
        """Return what was changed and what is to be removed; forget what nobody uses."""
        changed: list[Tracked] = []
        removed: list[Tracked] = []
        for tracked in sorted(self._suspects, key=attrgetter("number")):
            if not self._has(tracked):
                del self._suspects[tracked]
            elif tracked.removed:
                removed.append(tracked)
            elif tracked.changed:
                changed.append(tracked)
            elif tracked.reference() is None:
                del self._suspects[tracked], self._tracked[tracked.shape.entity, tracked.key]
            else:
                tracked.settle()
        return changed, removed

    def _write_all(self, changed: list[Tracked], removed: list[Tracked]) -> None:
        added = {(new.shape.entity, new.shape.key_of(new.attributes)) for new in self._new.values()}
        for tracked in removed:
            if (tracked.shape.entity, tracked.key) in added:
                self._delete(tracked)
        for tracked in _in_key_order(changed):  # as SQLAlchemy does: a unique value can change hands in one flush
            self._update(tracked)
        for number, tracked in list(self._new.items()):
            self._insert(tracked)
            del self._new[number]
            tracked.keep = tracked.entity if tracked.shape.relations else None
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
            if name not in self._own.rows:  # what this unit read there before is gone
                self._seen[name] = None
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
        tracked.settle()
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
        """
        Raise if another unit was faster and the level, or a version, lets this one know it now.

        A version tells also what this unit itself did to the row by another object, before this flush.
        """
        self.view.demand_unchanged(*name)
        version, base = tracked.shape.version, tracked.base
        if version is None:
            return
        assert base is not None
        row = self._written[name] if name in self._written else self._now.row(*name)
        if row is None or row[version] != base[version] or self._revision(name) != self._seen.get(name):
            raise StaleVersion(f"{name[0].__name__} {name[1]} is not what this unit read any more")

    def _revision(self, name: Name) -> int | None:
        return _revision_of(self._now.committed(*name))

    # ----------------------------------------------------------------------------------------------- the transaction

    @property
    def at_rest(self) -> bool:
        """Nothing waits for the store."""
        return True

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
            tracked.suspect()
            if base is not None:
                self._tracked[tracked.shape.entity, tracked.key] = tracked
        for tracked in tuple(self._suspects):
            if tracked.base is not None and self._has(tracked) and tracked.changed:
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
        """Write what is pending, and what was changed in a way that no class notices, such as ``vars(entity)``."""
        for tracked in self._tracked.values():
            if tracked.changed:
                tracked.suspect()
        self.flush()

    def claim(self, key: str, token: str, /) -> Claim | None:
        """Take a key; the fake does not wait for a unit that has it."""
        _ = self.view
        with self.store.mutex:
            if any(key in level.claims for level in self.levels):
                return self._claims()[key]
            if (claim := self.store.outcomes.claims.get(key)) is not None:
                return claim
            others = (*(other._claims() for other in self.store.transactions), *self._prepared_claims())
            if any(key in claims for claims in others):
                raise LockTimeout(f"another unit has the key {key!r}; the fake does not wait")
            self.levels[-1].claims[key] = Claim(token, datetime.now(UTC))
            return None

    def _prepared_claims(self) -> Iterable[Mapping[str, Claim]]:
        return (branch.claims for branch in self.store.prepared.values())

    def _claims(self) -> dict[str, Claim]:
        return {key: claim for level in self.levels for key, claim in level.claims.items()}

    def mark(self, outcome: Outcome, token: str, /) -> str:
        """Remember the token, which is the store's with the commit."""
        self.token = token
        return token

    def commit(self) -> None:
        """Make this unit's rows everybody's, if nobody was faster."""
        if self.prepared:
            self._finish(commit=True)
            return
        self._answer("commit")
        with self.store.mutex:
            self._demand_possible()
            if self.decision is not None:
                self.store.outcomes.decide(self.decision)
            self.store.outcomes.keep(self.token)
            self._apply()
        self._answer("commit", done=True)

    def _demand_possible(self) -> None:
        """Raise what stands in the way of a commit."""
        if self._own.rows:
            self.view.demand_valid()
        for name, values in self._own.rows.items():
            self._demand_first(name)
            if values is not None:
                check_uniques(self._now, *name, values, deferred=True)
        seen: dict[Name, Values | None] = {}
        if self.store.has_references:
            seen = {name: _values_of(self._view.committed(*name)) for name in self._own.rows}
            check_references(self._now, self._view, seen, deferred=True)
        if self.store.prepared:
            self._demand_room(seen)

    def _demand_room(self, seen: dict[Name, Values | None]) -> None:
        """Raise if the commit would stand in the way of one that is prepared: a database would wait for it."""
        both: Layer[Values] = Layer()
        for branch in self.store.prepared.values():
            if not self._own.rows.keys().isdisjoint(branch.rows):
                raise LockTimeout("a prepared transaction has written the same row; the fake does not wait")
            for rows in (branch.rows, self._own.rows):
                for name, values in rows.items():
                    both.rows[name] = values
                    if values is not None:
                        both.hint(self.store.table(name[0]), name[1], values)
        view = View(self.store, both)
        try:
            for name, values in self._own.rows.items():
                if values is not None:
                    check_uniques(view, *name, values, deferred=True)
            check_references(view, view, seen, deferred=True)
        except DatabaseError as error:
            raise LockTimeout(f"a prepared transaction is in the way; the fake does not wait: {error}") from error

    def _apply(self) -> None:
        """Make this unit's rows everybody's."""
        self.store.outcomes.claims.update(self._claims())
        for name, values in self._own.rows.items():
            self.store.put(*name, values)
        for name in self._own.rows:
            if name in self._tracked:
                self._tracked[name].revision = self._revision(name)

    # ------------------------------------------------------------------------- as a branch of a distributed transaction

    def enlist(self, id: str, name: str, /, *, decides: bool) -> None:
        """Remember what the transaction belongs to."""
        self.branch = FakeResource(self.store, name), id

    def may_have_written(self) -> bool:
        """Tell whether there are rows or keys."""
        return bool(self._own.rows or self._claims())

    def give_time(self, seconds: float, /) -> None:
        """Look at the clock."""
        _ = self.view
        self._deadline = time.time() + seconds

    def prepare(self) -> None:
        """Give the rows to the store, which keeps room for them until it is told what becomes of them."""
        _, id = self.branch
        self._answer("prepare")
        with self.store.mutex:
            self._demand_possible()
            branch = Branch(datetime.now(UTC), self._end, dict(self._own.rows), self._claims())
            self.store.prepared[id] = branch
            self.prepared = True
        self._answer("prepare", done=True)

    def decide(self, branches: Sequence[str], /) -> None:
        """Remember the decision, which is the store's with the commit."""
        _, id = self.branch
        if time.time() >= self._deadline:
            raise SerializationFailure("it took so long to prepare that recovery may have aborted it")
        self.decision = Decision(id, tuple(branches), datetime.now(UTC))

    def _finish(self, *, commit: bool) -> None:
        resource, id = self.branch
        self._answer("finish")
        self.prepared = False
        if resource.finish(id, commit=commit) is not Finished.DONE:
            raise DatabaseError("somebody else has ended the prepared transaction")
        self._answer("finish", done=True)

    def _end(self, commit: bool) -> None:
        """End what the store was given; called by whoever tells it."""
        if commit:
            self._apply()
        self.store.unlock(self)

    def abandon(self) -> None:
        """Leave everything as it is: there is no connection."""

    def rollback(self) -> None:
        """Forget everything; what was added is new again, the rest stays as it is in memory."""
        for level in self.levels:
            for tracked, base, removed in level.touched.values():
                if tracked.removed:
                    tracked.base, tracked.removed = base, removed
            self._make_new(level)
        for tracked, version in self._versions.values():  # another unit may give the row the very number it had here
            if tracked.base is not None:
                tracked.count(version)
        if self.prepared:
            self._finish(commit=False)
        self._answer("rollback")

    def close(self, *, broken: bool = False) -> None:
        """End the unit; what is prepared stays in the store."""
        if not self.prepared:
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
        written = [tracked for tracked in self._suspects if self._has(tracked) and (tracked.removed or tracked.changed)]
        return any(issubclass(tracked.shape.entity, entity) for tracked in (*self._new.values(), *written))


def _in_key_order(changed: list[Tracked]) -> list[Tracked]:
    classes: dict[type, list[Tracked]] = {}
    for tracked in changed:
        classes.setdefault(tracked.shape.entity, []).append(tracked)
    for several in classes.values():
        with suppress(TypeError):  # keys without an order
            several.sort(key=lambda tracked: tracked.key)
    return [tracked for several in classes.values() for tracked in several]


def _revision_of(row: Row | None) -> int | None:
    return None if row is None else row.revision


def _values_of(row: Row | None) -> Values | None:
    return None if row is None else row.values


def _same(left: dict[str, list[Any]], right: dict[str, list[Any]]) -> bool:
    return all(_same_members(members, right.get(name, [])) for name, members in left.items())


def _same_members(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(one is other for one, other in zip(left, right, strict=True))
