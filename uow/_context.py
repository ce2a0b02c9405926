"""
One entered unit and its stack of scopes. The rules about how scopes end are here.
"""

import logging
import warnings
import weakref
from contextlib import nullcontext
from typing import Any

from uow.domain import opened

from ._scope import Scope
from ._states import State, Verb
from ._steps import Bridge, ending, finish
from ._transaction import Transaction
from ._work import OWN_UNIT, Settings, Work
from .errors import (
    AfterRollbackFailed,
    CommitOutcomeUnknown,
    DatabaseError,
    NestedScopeOpen,
    OutsideUnitOfWork,
    UnitOfWorkRolledBack,
    WrongTask,
)

__all__ = ["Context", "attach"]

logger = logging.getLogger("uow")
_OPENING = {kind: f"open a {kind}() scope" for kind in ("nested", "joined")}


class Context(Work):
    """
    The unit's scopes: how they are opened and how they end.
    """

    def __init__(
        self, unit: Any, name: str, transaction: Transaction, settings: Settings, bridge: Bridge | None
    ) -> None:
        super().__init__(unit, name, transaction, settings, bridge)
        self._enter(self.root)
        opened(self)

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(
                f"{self.root.title} was never left and is rolled back now. Enter a unit with `with`.",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
            self.root.left = True
            if self.bridge is None:
                finish(self.roll_back(self.root, RuntimeError()))
            else:  # nobody can await a rollback here
                self.close(broken=True)

    def open(self, handle: Any, name: str | None, *, joined: bool) -> Scope:
        """Begin a scope inside the innermost one: with a savepoint, or *joined* to it."""
        kind = "joined" if joined else "nested"
        scope = self.run(_OPENING[kind], self._opened, handle, name or f"{kind} {len(self.stack)}", joined)
        self._enter(scope)
        opened(self)  # handed over, it may be in a context that does not know it
        return scope

    def _opened(self, handle: Any, name: str, joined: bool) -> Scope:
        scope = Scope(self.unit, name, self.innermost, self.observers, joined, handle=weakref.ref(handle))
        if not joined:
            self.transaction.savepoint()
        self.stack.append(scope)
        return scope

    def _enter(self, scope: Scope) -> None:
        try:
            scope.move(Verb.ENTER)
        except BaseException as error:  # an interrupt: a block that was not entered will not be left
            finish(self.leave(scope, error))
            raise

    def demand_end(self, scope: Scope, operation: str) -> None:
        """Raise unless *operation* may end *scope* here and now."""
        self.demand_inside(operation)
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

    async def release(self, scope: Scope) -> None:
        """End an inner scope and hand what lives in it to its parent."""
        if scope.state in (State.BROKEN, State.DOOMED):
            raise await self.lose(scope)
        try:
            if not scope.joined:
                self.run("commit()", self.transaction.release)
        except BaseException as error:
            await self.give_up(scope, error)
            raise
        scope.hand_over()
        scope.move(Verb.RELEASE)

    async def lose(self, scope: Scope) -> UnitOfWorkRolledBack:
        """Roll back a scope that cannot be kept although nobody said so; return the error that says it."""
        doomed = isinstance(scope.cause, DatabaseError) and scope.cause.dooms
        if scope.spoiled_by is not None and not doomed:
            hint = "Let its error leave the block, or let the step fail alone in a nested() or independent() scope."
        elif scope.state is State.DOOMED:
            hint = "Do the whole unit again in a fresh one."
        else:
            hint = "Let the error leave a nested() block around the step that may fail, and catch it outside."
        swallowed = "" if isinstance(scope.cause, UnitOfWorkRolledBack) else ", and the error was swallowed"
        error = UnitOfWorkRolledBack(scope.title, f"{scope.trouble}{swallowed}", hint)
        error.__cause__ = scope.cause
        await self.give_up(scope, error)
        return error

    async def give_up(self, scope: Scope, error: BaseException) -> None:
        """Roll back *scope* because of *error*, which goes on to the caller; remember that its work was lost."""
        scope.lost = error
        if scope.state.open:
            await self.roll_back(scope, error)

    async def roll_back(self, scope: Scope, reason: BaseException | None) -> None:
        """
        Undo *scope*, then run its hooks.

        What fails meanwhile is attached to *reason*, the exception on its way to the caller, or raised without one.
        """
        if scope.joined:
            self._spoil(scope, reason)
            return
        doomed = scope.state is State.DOOMED
        nested = scope.parent is not None
        failures: list[Exception] = []
        clean = False
        try:
            with ending(scope):
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
        if scope.after_rollback and (hooks := await self.hooks.call_all(scope.after_rollback)):
            failures.append(AfterRollbackFailed(f"Hooks failed after {scope.title} was rolled back", hooks))
        if failures:
            attach(reason, failures, f"while rolling back {scope.title}")

    def _spoil(self, scope: Scope, reason: BaseException | None) -> None:
        """End a joined scope that failed: what it joined cannot be kept."""
        scope.move(Verb.ROLLBACK, reason)
        scope.hand_over()
        cause = reason or UnitOfWorkRolledBack(scope.title, "rollback() was called in it", "It shares what it joined.")
        outer = scope.parent
        assert outer is not None
        while outer.joined and outer.parent is not None:
            outer = outer.parent
        for spoiled in self.stack[self.stack.index(outer) : self.stack.index(scope)]:
            spoiled.mark(cause, doom=outer is self.root)
            if spoiled.cause in (cause, scope.cause) and spoiled.spoiled_by is None:
                spoiled.spoiled_by = scope

    async def leave(self, scope: Scope, error: BaseException | None) -> None:
        """End *scope* at the end of its block, with the exception that leaves it; raise what must not stay silent."""
        # A generator's block may be left by whichever thread or task collects the generator.
        if not isinstance(error, GeneratorExit) and (stranger := self.owner.stranger()) is not None:
            raise WrongTask("leave the block", scope.title, stranger, OWN_UNIT)
        complaint = None
        try:
            if not (self.stack and self.stack[-1] is scope):
                complaint = await self.end_inner(scope, error)
            if scope.state.open:
                if complaint is not None or error is not None:
                    await self.roll_back(scope, error or complaint)
                elif scope.parent is not None:
                    await self.release(scope)
                else:
                    await self._end_without_commit(scope)
            if error is None and (silent := complaint or _loss(scope)):
                raise silent
        finally:
            scope.left = True
            place = self._place(scope)
            for inner in self.stack[place:]:
                inner.left = True
            del self.stack[place:]
            if scope is self.root and not self.closed:
                self.close(broken=True)

    def _place(self, scope: Scope) -> int:
        """Return where *scope* is on the stack, behind its end if it is not there."""
        last = len(self.stack) - 1
        if last >= 0 and self.stack[last] is scope:  # as mostly
            return last
        return next((place for place in range(last, -1, -1) if self.stack[place] is scope), last + 1)

    async def end_inner(self, scope: Scope, error: BaseException | None) -> NestedScopeOpen | None:
        """Roll back what is still open inside *scope*, innermost first."""
        inner = self.stack[self._place(scope) + 1 :]
        if not inner:
            return None
        complaint = NestedScopeOpen(
            "leave the block",
            scope.title,
            f"the nested scope {inner[-1].path!r} inside it is still open, so both are rolled back",
            "Leave nested blocks first, innermost first.",
        )
        for nested in reversed(inner):
            await self.give_up(nested, error or complaint)
        return complaint

    async def _end_without_commit(self, root: Scope) -> None:
        if root.state in (State.BROKEN, State.DOOMED):
            raise await self.lose(root)
        lost = root.written + self.transaction.pending()
        if lost and self.settings.strict:
            error = UnitOfWorkRolledBack(
                root.title,
                f"its block ended without commit() and with work in it ({lost})",
                "Call commit() to keep the work, or rollback() to say that it is not wanted.",
            )
            await self.roll_back(root, error)
            raise error
        if lost:
            logger.warning("%s was left without commit(): rolled back %s", root.title, lost)
        await self.roll_back(root, None)

    def close(self, *, broken: bool = False) -> None:
        """Give the connection back; from now on the unit is only what was loaded in it."""
        self.closed = True
        self.repositories.clear()  # in a circle with this
        with (
            nullcontext() if broken else ending(self.root)
        ):  # SQLAlchemy throws a connection away in its own time anyway
            self.transaction.close(broken=broken)


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
