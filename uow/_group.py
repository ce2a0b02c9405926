"""
Several entered units that end as one: two-phase commit with a last agent.

Every database that wrote is prepared but one. That one, the last agent, commits in one phase, and its transaction
carries the outcome row: its COMMIT is the decision.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import define, field

from ._branches import Finished, Resource
from ._commit import announce, confirm, decide, leave_in_doubt, resolve, settle
from ._context import Context
from ._points import reached
from ._scope import Scope
from ._states import State, Verb
from ._steps import Steps, ending
from .errors import AfterCommitFailed, CommitOutcomeUnknown, ConnectionLost, UnitOfWorkError, WrongTask

__all__ = ["WINDOW", "Group", "Member"]

logger = logging.getLogger("uow")

WINDOW = 60.0
"""How long it may take from before the first branch is prepared to the decision, in seconds."""

_PATIENCE = 10.0
_BATCH = 100


@define(eq=False)
class Member:
    """
    One unit of a group, with the scope that the group's block opened in it.

    Args:
        unit: The handle.

        context: The unit.

        scope: The scope.

        resource: Its database.

        unsure: Whether nobody knows if its branch is prepared.
    """

    unit: Any
    context: Context
    scope: Scope
    resource: Resource
    unsure: bool = False

    @property
    def name(self) -> str:
        """What the ids call its database."""
        return self.resource.name


@define(eq=False)
class Group:
    """
    The members of one entered block of a group.

    Args:
        id: The distributed transaction.

        title: What errors call it.

        members: The units; in a nested block, their nested scopes.

        last: The last agent.
    """

    id: str
    title: str
    members: Sequence[Member]
    last: Member
    sent: bool = field(default=False, init=False)
    """Whether the decision was on its way."""
    unfinished: list[Member] = field(factory=list[Member], init=False)
    """The branches that the decision was not told yet."""
    pending: list[Member] = field(factory=list[Member], init=False)
    """Those that could not be told."""
    failures: list[Exception] = field(factory=list[Exception], init=False)
    """What failed after the commit."""

    # ------------------------------------------------------------------------------------------------ how a block ends

    async def commit(self) -> None:
        """Make the work of all durable, or roll all back and raise why."""
        await self._demand_sound()
        for member in self.members:
            member.context.root.move(Verb.COMMIT)
        await self._or_nothing(self._demand_begun())
        await self._or_nothing(settle(*((member.context, member.unit) for member in self.members)))
        await self._or_nothing(self._confirm())
        try:
            interrupt = self._make_durable()
        except BaseException as error:
            if not await self._committed_all_the_same(error):
                raise
            interrupt = error
            self._finish_all()
        for member in self.members:
            member.context.root.move(Verb.DURABLE)
        contexts = [member.context for member in self.members]
        closes = [partial(member.context.close, broken=member in self.pending) for member in self.members]
        await announce(self, contexts, self.failures, [*closes, self._forget])
        reached("done")
        if interrupt is not None:
            raise interrupt

    async def release(self) -> None:
        """End nested scopes and keep their work in all units, or in none."""
        await self._demand_sound()
        await self._or_nothing(self._flush())
        released = False
        try:
            for member in self.members:
                await member.context.release(member.scope)
                released = True
        except BaseException as error:
            if released:
                self._doom(error)
            await self._give_up(error)
            raise

    async def roll_back(self, reason: BaseException | None) -> None:
        """Undo the work of all."""
        await self._each(lambda member, error: member.context.roll_back(member.scope, error), reason)

    async def leave(self, error: BaseException | None) -> None:
        """End the block, with the exception that leaves it; raise what must not stay silent."""
        self._demand_owner(error)
        raised = error
        if self.sent:  # an interrupt came after the decision, and before it was told to all
            self._leave_in_doubt(error or UnitOfWorkError())
        elif error is None and self.members[0].scope.parent is not None:
            try:
                await self._keep()
            except BaseException as failure:
                raised = failure
        await self._each(lambda member, reason: member.context.leave(member.scope, reason), raised)
        if raised is not None and raised is not error:
            raise raised

    def _demand_owner(self, error: BaseException | None) -> None:
        for member in self.members:
            if not isinstance(error, GeneratorExit) and (stranger := member.context.owner.stranger()) is not None:
                hint = "Give each thread and task a group of its own."
                raise WrongTask("leave the block", self.title, stranger, hint)

    async def _keep(self) -> None:
        """Release a nested block that is left in peace."""
        for member in self.members:
            if (complaint := await member.context.end_inner(member.scope, None)) is not None:
                raise complaint
        if all(member.scope.state.open for member in self.members):
            await self.release()

    async def _each(
        self, end: Callable[[Member, BaseException | None], Steps[None]], error: BaseException | None
    ) -> None:
        """End every member, whatever the others do, the last one first; raise what the first one that failed raised."""
        first: BaseException | None = None
        for member in reversed(self.members):
            try:
                await end(member, error or first)
            except BaseException as failure:
                first = first or failure
        if first is not None:
            raise first

    async def _demand_sound(self) -> None:
        """Roll all back and raise if a scope cannot be kept."""
        for member in self.members:
            if member.scope.state in (State.BROKEN, State.DOOMED):
                error = await member.context.lose(member.scope)
                await self._give_up(error)
                raise error

    async def _or_nothing(self, steps: Steps[None]) -> None:
        """Take steps before the end; if they fail, roll all back."""
        try:
            await steps
        except BaseException as error:
            for member in self.members:
                await member.context.end_inner(member.scope, error)
            await self._give_up(error)
            raise

    async def _give_up(self, error: BaseException) -> None:
        """Roll back all because of *error*, which goes on to the caller."""
        try:
            await self._each(lambda member, _: member.context.give_up(member.scope, error), error)
        finally:
            for member in self.members:
                if member.unsure:
                    self._roll_back_from_outside(member)

    def _roll_back_from_outside(self, member: Member) -> None:
        """Let a branch go whose PREPARE was not answered, if that can be: nothing was decided, and will not be."""
        try:
            member.resource.finish(self.id, commit=False)
        except UnitOfWorkError as error:
            text = "%s was rolled back, but its branch in %s may still be prepared; recovery ends it: %s"
            logger.warning(text, self.title, member.name, error)

    def _leave_in_doubt(self, error: BaseException) -> None:
        for member in self.members:
            if member.context.root.state.open:
                leave_in_doubt(member.context, error)

    def _doom(self, error: BaseException) -> None:
        """Let nobody commit: one member has kept what another one has lost."""
        for member in self.members:
            for scope in member.context.stack:
                scope.mark(error, doom=True)

    # ------------------------------------------------------------------------------------------------------ the commit

    async def _flush(self) -> None:
        for member in self.members:
            member.context.run("commit()", member.context.transaction.flush)

    async def _demand_begun(self) -> None:
        """Raise if a statement of its own has ended a unit's transaction: what became of that nobody knows."""
        for member in self.members:
            if (ended := member.context.ended_by) is not None:
                leave_in_doubt(member.context, ended)
                raise ended

    async def _confirm(self) -> None:
        for member in self.members:
            member.context.run("commit()", member.context.transaction.confirm)

    def _make_durable(self) -> BaseException | None:
        """Commit, as plainly as can be; return what interrupted it when that could not stop it any more."""
        writers = self._writers()
        distributed = len(writers) > 1
        for member in self.members:  # a database may refuse what was read, too
            if member not in writers and not (distributed and member is self.last):
                self._end_reading(member)
        if not distributed:
            return self._commit_plainly(writers[0].context) if writers else None
        last = self.last.context
        with ending(last.root):
            last.run("commit()", last.transaction.give_time, WINDOW)
            branches = [member for member in writers if member is not self.last]
            for member in branches:
                self._prepare(member)
            reached("decide")
            last.run("commit()", last.transaction.decide, [member.name for member in branches])
            reached("deciding")
            self.unfinished, self.sent = branches, True
            failures, interrupt = decide(last, self.id)
            reached("decided")
            self.failures += failures
            return self._finish_all() or interrupt

    def _writers(self) -> list[Member]:
        """Return the members that may have written; one that was alone to begin need not be asked."""
        begun = [member for member in self.members if member.context.transaction.begun]
        if len(begun) < 2:
            return begun
        return [
            member for member in begun if member.context.run("commit()", member.context.transaction.may_have_written)
        ]

    def _end_reading(self, member: Member) -> None:
        """End a transaction that wrote nothing."""
        try:
            with ending(member.context.root):
                member.context.transaction.commit()
        except AfterCommitFailed as error:
            self.failures += error.exceptions

    def _commit_plainly(self, context: Context) -> BaseException | None:
        """Commit the only database that wrote."""
        failures, interrupt = decide(context, context.run("commit()", confirm, context))
        self.failures += failures
        return interrupt

    def _prepare(self, member: Member) -> None:
        """Prepare a branch, and take note if nobody knows whether it is."""
        context = member.context
        reached(f"prepare:{member.name}")
        context.deciding = True
        try:
            context.transaction.prepare()
        except BaseException as error:
            if isinstance(error, ConnectionLost) or not isinstance(error, Exception):
                member.unsure = True
                context.transaction.abandon()
            raise
        finally:
            context.deciding = False
        reached(f"prepared:{member.name}")

    def _finish_all(self) -> BaseException | None:
        """Tell the branches the decision; return what interrupted it."""
        interrupt: BaseException | None = None
        while self.unfinished:
            try:
                self._finish(self.unfinished[0])
            except BaseException as error:
                interrupt = interrupt or error
                self._finish_from_outside(self.unfinished[0])
            del self.unfinished[0]
        return interrupt

    def _finish(self, member: Member) -> None:
        context = member.context
        reached(f"finish:{member.name}")
        context.deciding = True
        try:
            context.transaction.commit()
        except AfterCommitFailed as error:
            self.failures += error.exceptions
        except Exception as error:
            self._leave_to_recovery(member, error)
            return
        finally:
            context.deciding = False
        reached(f"finished:{member.name}")

    def _finish_from_outside(self, member: Member) -> None:
        """Commit a branch if that is not done yet: an interrupt may have come before or after."""
        try:
            member.context.transaction.abandon()
            if member.resource.finish(self.id, commit=True) is Finished.OWNED:
                self._leave_to_recovery(member, "its session has not ended yet")
        except Exception as error:
            self._leave_to_recovery(member, error)

    def _leave_to_recovery(self, member: Member, problem: object) -> None:
        self.pending.append(member)
        text = "%s is committed, but its branch in %s is still pending; recovery ends it: %s"
        logger.warning(text, self.title, member.name, problem)

    async def _committed_all_the_same(self, error: BaseException) -> bool:
        """Tell whether the decision stands although *error* cut it off; otherwise end all as far as is known."""
        in_doubt = any(member.context.root.state is State.IN_DOUBT for member in self.members)
        if isinstance(error, CommitOutcomeUnknown):
            error.unit = self.title
            in_doubt = True
        elif self.sent and not isinstance(error, Exception) and not in_doubt:
            try:
                if resolve(self.last.resource, self.title, self.id, _PATIENCE) is State.COMMITTED:
                    return True
            except CommitOutcomeUnknown as unknown:
                error.add_note(f"{unknown}")
                in_doubt = True
        if in_doubt:
            self._leave_in_doubt(error)
        else:
            await self._give_up(error)
        return False

    def _forget(self) -> None:
        """Let the last agent forget that it committed, once every branch has; a hundred at a time."""
        if not self.sent or self.pending:
            return
        done = _Done(self.id, [member.resource for member in self.members if member is not self.last])
        batch = _take_batch(self.last.context.database, done)
        ids = [each.id for each in batch]
        try:
            if ids:
                self.last.resource.forget(ids)
                reached("forgotten")
            for resource in {resource.name: resource for each in batch for resource in each.branches}.values():
                resource.forget_witnesses(ids)
        except UnitOfWorkError as error:
            logger.warning("Rows of uow_outcome and uow_branch were left, to be removed later: %s", error)


@define
class _Done:
    """
    A distributed transaction that nobody needs to remember.
    """

    id: str
    branches: Sequence[Resource]


_mutex = threading.Lock()
_done: weakref.WeakKeyDictionary[Any, list[_Done]] = weakref.WeakKeyDictionary()


def _take_batch(database: object, done: _Done) -> list[_Done]:
    """Add to what a last agent may forget, and take it all when there is enough."""
    with _mutex:
        waiting = _done.setdefault(database, [])
        waiting.append(done)
        if len(waiting) < _BATCH:
            return []
        del _done[database]
        return waiting
