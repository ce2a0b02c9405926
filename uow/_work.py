"""
The work in an entered unit: who may do it, which scope it belongs to, what an error breaks.
"""

import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from attrs import frozen

from uow.domain import Aggregate, Event, journal_of

from ._bridges import directly
from ._declarations import RepositoryAttribute
from ._hooks import Calls, Handlers
from ._options import Options
from ._outcomes import Outcome, Outcomes, demand_key, new_token
from ._owner import Owner
from ._scope import Hook, Observer, Scope, Status
from ._states import State, Verb
from ._steps import Bridge
from ._transaction import Changes, Transaction
from .errors import (
    AlreadyDone,
    CommitOutcomeUnknown,
    DatabaseError,
    OutsideUnitOfWork,
    ReadOnlyUnitOfWork,
    ScopeBroken,
    WrongTask,
)

__all__ = ["OWN_UNIT", "Settings", "Work"]

P = ParamSpec("P")
R = TypeVar("R")
U = TypeVar("U")
_ACTIVE = State.ACTIVE  # an enumeration looks its members up, and this is asked of each operation
OWN_UNIT = "Give each thread and task a unit of its own."


@frozen
class Settings:
    """
    What a unit was made with.
    """

    options: Options
    handlers: Handlers
    observers: tuple[Observer, ...]
    strict: bool
    handoff: bool
    outcome: Outcome = "none"


class Work:
    """
    What the handles of one entered unit share.

    Args:
        unit: The handle that entered the root.

        name: What errors call it.

        transaction: The adapter's primitives.

        settings: What the unit was made with.

        bridge: How an asynchronous unit runs this; None for a synchronous one.
    """

    closed = True
    deciding = False
    ended_by: CommitOutcomeUnknown | None = None

    def __init__(
        self, unit: Any, name: str, transaction: Transaction, settings: Settings, bridge: Bridge | None
    ) -> None:
        self.unit = name
        self.kind: type[object] = type(unit)
        self.database = unit._database()
        self.transaction = transaction
        self.settings = settings
        self.options = settings.options
        self.observers = settings.observers
        self.bridge = bridge
        self.hooks = Calls(bridge, name)
        self.owner = Owner(settings.handoff)
        self.repositories: dict[RepositoryAttribute, Any] = {}
        self.sink = _sink(weakref.ref(self))
        self.root = Scope(name, unit._label or "root", observers=self.observers, handle=weakref.ref(unit))
        self.stack = [self.root]
        transaction.watch(self)
        self.closed = False

    @property
    def innermost(self) -> Scope:
        """The scope that work belongs to."""
        return self.stack[-1]

    @property
    def outcomes(self) -> Outcomes:
        """The database, to be asked from outside the unit; the unit itself, which asks, is there."""
        assert self.root.handle is not None
        unit: Any = self.root.handle()
        outcomes: Outcomes = unit._outcomes()
        return outcomes

    @property
    def usable(self) -> bool:
        """Whether the unit is open, and belongs to this thread and task."""
        return not self.closed and not self.root.left and self.owner.stranger() is None

    def handle(self, kind: type[U]) -> U | None:
        """Return the unit object of the innermost scope, or its asynchronous face, whichever is a *kind*."""
        reference = self.innermost.handle
        unit = None if reference is None else reference()
        sides = () if unit is None else (unit, unit._other_side())
        return next((side for side in sides if isinstance(side, kind)), None)

    def demand_inside(self, operation: str) -> None:
        """Raise if this is the synchronous side of an asynchronous unit, and nobody could await what it does."""
        if self.bridge is not None and not self.bridge.inside():
            raise OutsideUnitOfWork(
                operation,
                self.root.title,
                "the unit is asynchronous and this is its synchronous side",
                "Await the unit's own methods, or call synchronous code with `await uow.run(...)`.",
            )

    def check(self, operation: str, *, awaited: bool = False) -> Scope:
        """
        Return the scope that *operation* belongs to, or raise why there can be no work now.

        Args:
            operation: What errors call it.

            awaited: Whether it is the asynchronous face's, which need not have come through the bridge.
        """
        if self.bridge is not None and not awaited:
            self.demand_inside(operation)
        if self.root.left:
            raise OutsideUnitOfWork(
                operation, self.root.title, "the unit's block was left", "Do it inside the block, or in a new one."
            )
        if (stranger := self.owner.stranger()) is not None:
            raise WrongTask(operation, self.root.title, stranger, OWN_UNIT)
        if self.ended_by is not None and not self.closed:
            raise ScopeBroken(
                operation,
                self.root.title,
                "a statement of its own ended the transaction",
                "Leave that to the unit's commit() and rollback().",
            ) from self.ended_by
        scope = self.stack[-1]
        if scope.state is not _ACTIVE:
            scope.demand(Verb.WORK, operation)
        return scope

    def run(self, operation: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do one operation under the rules: by its owner, in a scope that can work, one at a time."""
        owner = self.owner
        if not owner.take(False):
            raise self._busy(operation)
        try:
            self.check(operation)
            return call(*args, **kwargs)
        except DatabaseError as error:
            self.failed(error)
            raise
        finally:
            owner.give()

    def alone(self, operation: str, *, wait: bool = False) -> Owner:
        """Keep other threads out, in a ``with`` block, while *operation* is under way."""
        if not self.owner.take(wait):
            raise self._busy(operation)
        return self.owner

    def _busy(self, operation: str) -> WrongTask:
        return WrongTask(
            operation,
            self.root.title,
            "another thread or task is using it at this moment",
            "Use it from one at a time.",
        )

    def failed(self, error: DatabaseError) -> None:
        """Mark what *error* breaks: the scope it happened in, or every open one if it dooms the unit."""
        if self.deciding:  # commit() says what becomes of the unit
            return
        for scope in reversed(self.stack):
            scope.mark(error, doom=error.dooms)
            if not scope.joined and not error.dooms:
                return

    def ended(self, error: CommitOutcomeUnknown) -> None:
        """Remember that something ended the transaction behind the unit's back."""
        error.unit = self.root.title
        self.ended_by = self.ended_by or error

    def demand_writable(self, operation: str) -> None:
        """Raise if the unit is read-only."""
        if self.options.read_only:
            raise ReadOnlyUnitOfWork(
                operation, self.root.title, "it is read-only", "Write in a unit that is made without read_only."
            )

    def flushed(self, changes: Changes) -> None:
        """Count what is written, or refuse it in a read-only unit."""
        if self.options.read_only:
            self.demand_writable(f"write what is pending ({changes})")
        self.innermost.written += changes

    def once(self, key: str) -> None:
        """Take *key* for the innermost scope, or raise who took it before."""
        operation = "once()"
        demand_key(key)
        self.check(operation)
        self.demand_writable(operation)
        first = self.run(operation, self.transaction.claim, key, new_token())
        if first is not None:
            raise AlreadyDone(self.innermost.title, key, first.decided_at)
        self.innermost.written += Changes(statements=1)

    def record(self, event: Event) -> None:
        """Take an event into the innermost scope."""
        self.check("record()").events.append(event)

    def loaded(self, entity: object) -> None:
        """Bind an aggregate that came from the database to this unit."""
        if isinstance(entity, Aggregate):
            journal = journal_of(entity)
            if journal.pending:  # recorded since an earlier unit
                self.added(entity)
            journal.sink = self.sink

    def added(self, entity: object) -> None:
        """Bind an aggregate that was added, and take the events that waited in it."""
        if isinstance(entity, Aggregate):
            journal = journal_of(entity)
            scope = self.stack[-1]
            scope.added.setdefault(journal, journal.pending)
            if journal.pending:
                scope.events += journal.pending
                journal.pending = ()
            journal.sink = self.sink

    def register(self, hook: Hook, kind: str) -> None:
        """Keep *hook* in the innermost scope."""
        scope = self.check(f"register a hook with {kind}()")
        self.hooks.demand(hook)
        getattr(scope, kind).append(hook)

    def status(self, scope: Scope, age: float) -> Status:
        """Say where *scope* is."""
        live = not self.closed
        sent = live and scope in self.stack and scope.level > 0 and scope.state.open
        return Status(
            state=scope.state,
            name=scope.name,
            depth=scope.depth,
            savepoint=self.transaction.savepoint_name(scope.level) if sent else None,
            begun=live and self.transaction.begun,
            pending=self.transaction.pending() if live and scope.state.open else Changes(),
            written=scope.written,
            isolation=self.transaction.isolation,
            age=age,
        )


def _sink(reference: "weakref.ref[Work]") -> Callable[[Event], bool]:
    """Return what takes events for a context; weak, so that an entity somebody keeps does not keep a unit open."""

    def take(event: Event) -> bool:
        context = reference()
        if context is None or context.closed:
            return False
        directly(context.record, event)  # an aggregate does not know which face its unit has
        return True

    return take
