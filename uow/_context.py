"""
One entered unit: its transaction, its owner and its stack of scopes. The rules about scopes and failures are here.
"""

import logging
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from uow.domain import Aggregate, Event, journal_of

from ._owner import Owner
from ._scope import Hook, Observer, Scope, Status
from ._states import State, Verb
from ._transaction import Changes, Transaction, Watcher
from .errors import (
    AfterRollbackFailed,
    CommitOutcomeUnknown,
    DatabaseError,
    NestedScopeOpen,
    OutsideUnitOfWork,
    ScopeBroken,
    UnitOfWorkRolledBack,
    WrongTask,
)

__all__ = ["OWN_UNIT", "Context", "attach"]

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("uow")
OWN_UNIT = "Give each thread and task a unit of its own."


class Context:
    """
    What the handles of one entered unit share.
    """

    closed = True
    deciding = False
    ended_by: CommitOutcomeUnknown | None = None

    def __init__(
        self, unit: str, transaction: Transaction, *, observers: tuple[Observer, ...], strict: bool, handoff: bool
    ) -> None:
        self.unit = unit
        self.transaction = transaction
        self.observers = observers
        self.strict = strict
        self.owner = Owner(handoff)
        self.repositories: dict[str, Any] = {}
        self.sink = _sink(weakref.ref(self))
        self.root = Scope(unit, "root", observers=observers)
        self.stack = [self.root]
        transaction.watch(Watcher(self.run, self.fail, self.ended, self.flushed, self.loaded, self.took_in))
        self.closed = False
        self._enter(self.root)

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(
                f"{self.root.title} was never left and is rolled back now. Enter a unit with `with`.",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
            self.root.left = True
            self.roll_back(self.root, RuntimeError())

    # ------------------------------------------------------------------------------------------------------- work

    @property
    def innermost(self) -> Scope:
        """The scope that work belongs to."""
        return self.stack[-1]

    def check(self, operation: str) -> Scope:
        """Return the scope that *operation* belongs to, or raise why there can be no work now."""
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
        if scope.state is not State.ACTIVE:
            scope.demand(Verb.WORK, operation)
        return scope

    def run(self, operation: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do one operation under the rules: by its owner, in a scope that can work, one at a time."""
        with self.alone(operation):
            self.check(operation)
            try:
                return call(*args, **kwargs)
            except DatabaseError as error:
                self.fail(error)
                raise

    @contextmanager
    def alone(self, operation: str, *, wait: bool = False) -> Generator[None]:
        """Keep other threads out while *operation* is under way."""
        if not self.owner.busy.acquire(blocking=wait):
            raise WrongTask(
                operation, self.root.title, "another thread is using it at this moment", "Use it from one at a time."
            )
        try:
            yield
        finally:
            self.owner.busy.release()

    def fail(self, error: DatabaseError) -> None:
        """Mark what *error* breaks: the scope it happened in, or every open one if it dooms the unit."""
        if self.deciding:  # commit() says what becomes of the unit
            return
        for scope in self.stack if error.dooms else self.stack[-1:]:
            scope.mark(error, doom=error.dooms)

    def ended(self, error: CommitOutcomeUnknown) -> None:
        """Remember that something ended the transaction behind the unit's back."""
        error.unit = self.root.title
        self.ended_by = self.ended_by or error

    def flushed(self, changes: Changes) -> None:
        """Count what was written."""
        self.innermost.written += changes

    def record(self, event: Event) -> None:
        """Take an event into the innermost scope."""
        self.check("record()").events.append(event)

    def loaded(self, entity: object) -> None:
        """Bind an aggregate that came from the database to this unit."""
        if isinstance(entity, Aggregate):
            if journal_of(entity).pending:  # recorded since an earlier unit
                self.took_in(entity)
            journal_of(entity).sink = self.sink

    def took_in(self, entity: object) -> None:
        """Bind an aggregate that was added, and take the events that waited in it."""
        if isinstance(entity, Aggregate):
            journal = journal_of(entity)
            scope = self.innermost
            scope.added.append((weakref.ref(entity), list(journal.pending)))
            scope.events.extend(journal.pending)
            journal.pending.clear()
            journal.sink = self.sink

    def register(self, hook: Hook, kind: str) -> None:
        """Keep *hook* in the innermost scope."""
        getattr(self.check(f"register a hook with {kind}()"), kind).append(hook)

    def status(self, scope: Scope, age: float) -> Status:
        """Say where *scope* is."""
        live = not self.closed
        sent = live and scope in self.stack[1:] and scope.state.open
        return Status(
            state=scope.state,
            name=scope.name,
            depth=scope.depth,
            savepoint=self.transaction.savepoint_name(scope.depth) if sent else None,
            begun=live and self.transaction.begun,
            pending=self.transaction.pending() if live and scope.state.open else Changes(),
            written=scope.written,
            isolation=self.transaction.isolation,
            age=age,
        )

    # ----------------------------------------------------------------------------------------------------- scopes

    def open_nested(self, name: str | None) -> Scope:
        """Begin a scope inside the innermost one."""
        parent = self.check("open a nested() scope")
        scope = Scope(self.unit, name or f"nested {len(self.stack)}", parent, self.observers)
        self.run("open a nested() scope", self.transaction.savepoint)
        self.stack.append(scope)
        self._enter(scope)
        return scope

    def _enter(self, scope: Scope) -> None:
        try:
            scope.move(Verb.ENTER)
        except BaseException as error:  # an interrupt: a block that was not entered will not be left
            self.leave(scope, error)
            raise

    def demand_end(self, scope: Scope, operation: str) -> None:
        """Raise unless *operation* may end *scope* here and now."""
        if (stranger := self.owner.stranger()) is not None:
            raise WrongTask(operation, scope.title, stranger, OWN_UNIT)
        if scope.left:
            raise OutsideUnitOfWork(operation, scope.title, "its block was left", "End a scope inside its own block.")
        if not scope.state.open or scope.state is State.COMMITTING:
            scope.refuse(operation)
        if self.innermost is not scope:
            raise NestedScopeOpen(
                operation,
                scope.title,
                f"the block of the nested scope {self.innermost.path!r} inside it was not left yet",
                "Leave the nested block first.",
            )

    def release(self, scope: Scope) -> None:
        """End a nested scope and hand what lives in it to its parent."""
        if scope.state in (State.BROKEN, State.DOOMED):
            raise self.lose(scope)
        try:
            self.run("commit()", self.transaction.release)
        except BaseException as error:
            self.give_up(scope, error)
            raise
        scope.hand_over()
        scope.move(Verb.RELEASE)

    def lose(self, scope: Scope) -> UnitOfWorkRolledBack:
        """Roll back a scope that cannot be kept although nobody said so; return the error that says it."""
        doomed = scope.state is State.DOOMED
        error = UnitOfWorkRolledBack(
            scope.title,
            f"the database reported an error {'that the whole unit cannot survive' if doomed else 'inside it'},"
            " which was swallowed",
            "Do the whole unit again in a fresh one."
            if doomed
            else "Let the error leave a nested() block around the step that may fail, and catch it outside.",
        )
        error.__cause__ = scope.cause
        self.give_up(scope, error)
        return error

    def give_up(self, scope: Scope, error: BaseException) -> None:
        """Roll back *scope* because of *error*, which goes on to the caller; remember that its work was lost."""
        scope.lost = error
        if scope.state.open:
            self.roll_back(scope, error)

    def roll_back(self, scope: Scope, reason: BaseException | None) -> None:
        """
        Undo *scope*, then run its hooks.

        What fails meanwhile is attached to *reason*, the exception on its way to the caller, or raised without one.
        """
        doomed = scope.state is State.DOOMED
        nested = scope.parent is not None
        failures: list[Exception] = []
        clean = False
        try:
            if not nested:
                self.transaction.rollback()
            elif not doomed:
                self.transaction.rollback_to_savepoint()
            clean = True
        except BaseException as failure:
            for outer in self.stack if nested else ():  # what was to be undone may still be in the transaction
                outer.mark(failure, doom=True)
            if not isinstance(failure, Exception):
                raise
            if isinstance(failure, CommitOutcomeUnknown):
                failure.unit = scope.title
            failures.append(failure)
        finally:
            scope.move(Verb.ROLLBACK, reason)
            scope.discard()
            if not nested:
                self.close(broken=not clean)
        if self.ended_by is not None and not failures and not nested:
            failures.append(self.ended_by)
        hooks = run_all(scope.after_rollback)
        if hooks:
            failures.append(AfterRollbackFailed(f"Hooks failed after {scope.title} was rolled back", hooks))
        if failures:
            attach(reason, failures, f"while rolling back {scope.title}")

    def leave(self, scope: Scope, error: BaseException | None) -> None:
        """End *scope* at the end of its block, with the exception that leaves it; raise what must not stay silent."""
        # A generator's block may be left by whichever thread or task collects the generator.
        if not isinstance(error, GeneratorExit) and (stranger := self.owner.stranger()) is not None:
            raise WrongTask("leave the block", scope.title, stranger, OWN_UNIT)
        try:
            complaint = self.end_inner(scope, error)
            if scope.state.open:
                if complaint is None and error is None:
                    self._end_in_peace(scope)
                else:
                    self.roll_back(scope, error or complaint)
            if error is None and (silent := complaint or _loss(scope)):
                raise silent
        finally:
            scope.left = True
            if scope in self.stack:
                for inner in self.stack[self.stack.index(scope) :]:
                    inner.left = True
                    self.stack.remove(inner)
            if scope is self.root and not self.closed:
                self.close(broken=True)

    def end_inner(self, scope: Scope, error: BaseException | None) -> NestedScopeOpen | None:
        """Roll back what is still open inside *scope*, innermost first."""
        inner = self.stack[self.stack.index(scope) + 1 :] if scope in self.stack else []
        if not inner:
            return None
        complaint = NestedScopeOpen(
            "leave the block",
            scope.title,
            f"the nested scope {inner[-1].path!r} inside it is still open, so both are rolled back",
            "Leave nested blocks first, innermost first.",
        )
        for nested in reversed(inner):
            self.give_up(nested, error or complaint)
        return complaint

    def _end_in_peace(self, scope: Scope) -> None:
        if scope.parent is not None:
            self.release(scope)
        elif scope.state in (State.BROKEN, State.DOOMED):
            raise self.lose(scope)
        else:
            lost = scope.written + self.transaction.pending()
            if lost and self.strict:
                error = UnitOfWorkRolledBack(
                    scope.title,
                    f"its block ended without commit() and with work in it ({lost})",
                    "Call commit() to keep the work, or rollback() to say that it is not wanted.",
                )
                self.roll_back(scope, error)
                raise error
            if lost:
                logger.warning("%s was left without commit(): rolled back %s", scope.title, lost)
            self.roll_back(scope, None)

    def close(self, *, broken: bool = False) -> None:
        """Give the connection back; from now on the unit is only what was loaded in it."""
        self.closed = True
        self.transaction.close(broken=broken)


def _sink(reference: "weakref.ref[Context]") -> Callable[[Event], bool]:
    """Return what takes events for a context; weak, so that an entity somebody keeps does not keep a unit open."""

    def take(event: Event) -> bool:
        context = reference()
        if context is None or context.closed:
            return False
        context.record(event)
        return True

    return take


def _loss(scope: Scope) -> BaseException | None:
    """Return what a block that ends as if nothing had happened must raise, if its work was lost."""
    if scope.lost is None or scope.state is State.IN_DOUBT:
        return scope.lost
    error = UnitOfWorkRolledBack(
        scope.title,
        "ending it failed, and the error was swallowed",
        "Let the error leave the block.",
    )
    error.__cause__ = scope.lost
    return error


def run_all(hooks: list[Hook]) -> list[Exception]:
    """Run every hook, whatever the others do; return the errors, or raise the first interrupt at the end."""
    errors: list[Exception] = []
    interrupt: BaseException | None = None
    for hook in hooks:
        try:
            hook()
        except Exception as error:
            errors.append(error)
        except BaseException as error:
            interrupt = interrupt or error
    if interrupt is not None:
        for failed in errors:
            interrupt.add_note(f"Another error in the hooks: {failed!r}")
        raise interrupt
    return errors


def attach(reason: BaseException | None, failures: list[Exception], when: str) -> None:
    """Attach *failures* to the exception that is on its way to the caller; raise the first if there is none."""
    if reason is None:
        for failure in failures[1:]:
            failures[0].add_note(f"Another error {when}: {failure!r}")
        raise failures[0]
    for failure in failures:
        reason.add_note(f"Another error {when}: {failure!r}")
        if reason.__context__ is None and reason is not failure:
            reason.__context__ = failure
