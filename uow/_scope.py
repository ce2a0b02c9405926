"""
One scope: its state and everything that lives and dies with it.
"""

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar

from attrs import define, field, frozen

from uow.domain import Event, Journal

from ._states import REFUSALS, TRANSITIONS, State, Verb
from ._transaction import NOTHING, Changes
from .errors import DatabaseError, UnitOfWorkRolledBack

__all__ = ["Hook", "Observer", "Scope", "Status", "Transition", "merged"]

logger = logging.getLogger("uow")

K = TypeVar("K")
V = TypeVar("V")
Hook: TypeAlias = Callable[[], object]


@frozen
class Transition:
    """
    A step in a scope's life, as observers see it.

    Args:
        unit: The unit's class.

        scope: The scope's path, such as ``root > line 3``.

        depth: 0 at the root.

        verb: What happened.

        before: The state before.

        after: The state after.

        cause: The error that caused it, if one did.

        events: What was recorded in the unit, where its commit is confirmed.
    """

    unit: str
    scope: str
    depth: int
    verb: Verb
    before: State
    after: State
    cause: BaseException | None = None
    events: tuple[Event, ...] = ()


Observer: TypeAlias = Callable[[Transition], object]


@frozen
class Status:
    """
    What a unit is at, at one moment.

    Args:
        state: The scope's state.

        name: The scope's name, ``root`` or the one given to ``nested()``.

        depth: 0 at the root.

        savepoint: The savepoint's name in the database; None at the root, and before the first statement.

        begun: Whether a transaction has begun in the database.

        pending: How much is not written yet.

        written: How much was written in this scope, its released nested scopes included.

        isolation: The isolation level that was asked for, None for the database's default.

        age: Seconds since the scope was entered.
    """

    state: State
    name: str
    depth: int
    savepoint: str | None
    begun: bool
    pending: Changes
    written: Changes
    isolation: str | None
    age: float


def merged(older: dict[K, V], younger: dict[K, V]) -> dict[K, V]:
    """Put both in one of them, the larger: many scopes may be beside each other, or inside. The older value stays."""
    if len(older) < len(younger):
        younger.update(older)
        return younger
    for key, value in younger.items():
        older.setdefault(key, value)
    return older


@define(eq=False)
class Scope:
    """
    A ``with`` block of a unit, from its entry to its end.

    One that is *joined* has no savepoint: what it did is kept or lost with the scope that it joined. One that a *group*
    opened ends with it.
    """

    unit: str
    name: str
    parent: "Scope | None" = None
    observers: Sequence[Observer] = ()
    joined: bool = False
    spoiled_by: "Scope | None" = None
    handle: "weakref.ref[Any] | None" = None
    group: str | None = None
    state: State = State.NEW
    cause: BaseException | None = None
    lost: BaseException | None = None
    depth: int = field(init=False)
    level: int = field(init=False)
    left: bool = False
    written: Changes = NOTHING
    entered: float = field(factory=time.monotonic)
    events: list[Event] = field(init=False)
    before_commit: list[Hook] = field(init=False)
    after_commit: list[Hook] = field(init=False)
    after_rollback: list[Hook] = field(init=False)
    # Not the aggregates: one that nobody holds need not be made new again, and a long import must not hold all of them.
    added: dict[Journal, tuple[Event, ...]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.depth = 0 if self.parent is None else self.parent.depth + 1
        self.level = 0 if self.parent is None else self.parent.level + (not self.joined)
        self.events, self.added = [], {}  # a factory for each would take three times as long, and there are many scopes
        self.before_commit, self.after_commit, self.after_rollback = [], [], []

    @property
    def path(self) -> str:
        """The names of the scopes around this one, and its own."""
        names: list[str] = []
        scope: Scope | None = self
        while scope is not None:
            names.append(scope.name)
            scope = scope.parent
        return " > ".join(reversed(names))

    @property
    def title(self) -> str:
        """The unit and the path, as messages name the scope."""
        return f"{self.unit} ({self.path})"

    def demand(self, verb: Verb, operation: str) -> None:
        """Raise this state's refusal unless *verb* is legal in it."""
        if (self.state, verb) not in TRANSITIONS:
            self.refuse(operation)

    def refuse(self, operation: str) -> NoReturn:
        """Raise this state's refusal."""
        refusal = REFUSALS[self.state]
        reason = refusal.reason
        if self.state in (State.BROKEN, State.DOOMED):
            reason = self.trouble
        raise refusal.error(operation, self.title, reason, refusal.hint) from self.cause

    @property
    def trouble(self) -> str:
        """What broke or doomed the scope, in words."""
        if self.spoiled_by is not None:
            if isinstance(self.cause, UnitOfWorkRolledBack):
                return f"rollback() was called in the joined scope {self.spoiled_by.path!r}"
            return f"the joined scope {self.spoiled_by.path!r} failed"
        told = f" ({str(self.cause).partition(chr(10))[0]})" if isinstance(self.cause, DatabaseError) else ""
        return f"{REFUSALS[self.state].reason}{told}"

    def move(self, verb: Verb, cause: BaseException | None = None) -> None:
        """Make the transition that *verb* is; log it and tell the observers."""
        before, self.state = self.state, TRANSITIONS[self.state, verb].after
        if self.cause is None:
            self.cause = cause
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: %s -> %s (%s)", self.title, before.value, self.state.value, verb.value)
        if self.observers:
            events = tuple(self.events) if verb is Verb.DURABLE else ()
            transition = Transition(self.unit, self.path, self.depth, verb, before, self.state, cause, events)
            for observer in self.observers:
                try:
                    observer(transition)
                except Exception:
                    logger.exception("Observer %r failed at %s: %s", observer, self.title, verb.value)

    def mark(self, error: BaseException, *, doom: bool) -> None:
        """Mark an open scope as broken or doomed by *error*; the first error stays the cause."""
        verb = Verb.DOOM if doom else Verb.BREAK
        if (self.state, verb) in TRANSITIONS:
            self.move(verb, error)

    def hand_over(self) -> None:
        """Give what lives in this scope to its parent: it was released."""
        parent = self.parent
        assert parent is not None
        parent.written += self.written
        parent.events += self.events
        parent.before_commit += self.before_commit
        parent.after_commit += self.after_commit
        parent.after_rollback += self.after_rollback
        if self.added:
            parent.added = merged(parent.added, self.added)

    def discard(self) -> None:
        """Forget what lives in this scope: it was rolled back. What was added is in no unit again."""
        self.events.clear()
        for journal, events in self.added.items():
            journal.sink, journal.pending = None, events
        self.added.clear()
