"""
The root's commit: what runs before it, the decision, what runs after it.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from ._context import Context
from ._outcomes import KEPT, Outcomes, age, demand_token, new_token
from ._states import State, Verb
from ._steps import ending
from .errors import (
    AfterCommitFailed,
    CommitOutcomeUnknown,
    ConnectionLost,
    EventCycle,
    NestedScopeOpen,
    UnitOfWorkError,
)

__all__ = ["ROUNDS", "announce", "commit", "confirm", "decide", "leave_in_doubt", "resolve", "settle"]

ROUNDS = 100
"""How many rounds of handlers and hooks a commit waits for quiet."""

_PATIENCE = 10.0
"""How long a commit asks what became of it, in seconds."""


class Titled(Protocol):
    """
    What messages can name.
    """

    @property
    def title(self) -> str:
        """How they name it."""
        ...


async def commit(context: Context, unit: Any) -> None:
    """
    Make the root's work durable, or roll it back and raise why; handlers are given *unit*.
    """
    root = context.root
    if root.state in (State.BROKEN, State.DOOMED):
        raise await context.lose(root)
    root.move(Verb.COMMIT)
    if context.ended_by is not None:
        leave_in_doubt(context, context.ended_by)
        raise context.ended_by
    try:
        await settle((context, unit))
    except BaseException as error:
        await context.end_inner(root, error)
        await context.give_up(root, error)
        raise
    try:
        token = context.run("commit()", confirm, context)
        failures, interrupt = decide(context, token)
    except CommitOutcomeUnknown as error:
        error.unit = root.title
        leave_in_doubt(context, error)
        raise
    except BaseException as error:
        await context.give_up(root, error)
        raise
    root.move(Verb.DURABLE)
    try:
        await announce(root, (context,), failures, [context.close])
    except AfterCommitFailed as failed:
        if interrupt is None:
            raise
        raise interrupt from failed
    if interrupt is not None:
        raise interrupt


def resolve(outcomes: Outcomes, unit: str, token: str, timeout: float) -> State:
    """Find out what became of a transaction, and see to it that the answer never changes."""
    demand_token(token, outcomes.modes)
    if age(token) > KEPT - timedelta(days=1):  # a clock may be wrong by that much
        raise CommitOutcomeUnknown(unit, "its token is older than outcomes are kept")
    try:
        return State.COMMITTED if outcomes.settle(token, timeout) else State.ROLLED_BACK
    except CommitOutcomeUnknown as error:  # and it never will be known
        raise CommitOutcomeUnknown(unit, error.reason) from error
    except UnitOfWorkError as error:
        reason = f"asked what became of it, the database did not tell ({error})"
        raise CommitOutcomeUnknown(unit, reason, token) from error


def confirm(context: Context) -> str | None:
    """Find out that the database can commit now, and leave what tells later whether it did; return its token."""
    transaction, outcome = context.transaction, context.settings.outcome
    transaction.confirm()  # first: to leave something would begin another transaction where somebody ended this one
    if outcome == "none" or not transaction.begun or context.options.read_only:
        return None
    return transaction.mark(outcome, new_token())


def decide(context: Context, token: str | None) -> tuple[list[Exception], BaseException | None]:
    """
    Send COMMIT; return what failed after it was confirmed, and what interrupted it.

    An interrupt or a lost connection leaves open whether the work is durable: that is asked with *token*.
    """
    context.deciding = True
    try:
        with ending(context.root):
            try:
                context.transaction.commit()
            except AfterCommitFailed as error:
                return list(error.exceptions), None
            except CommitOutcomeUnknown as error:
                error.token = token
                raise
            except ConnectionLost as error:
                _find_out(context, token, error)
            except Exception:
                raise
            except BaseException as error:
                if token is None:
                    leave_in_doubt(context, error)
                    raise
                _find_out(context, token, error)
                return [], error
        return [], None
    finally:
        context.deciding = False


def _find_out(context: Context, token: str | None, error: BaseException) -> None:
    """Return if the work is durable although COMMIT was cut off by *error*; raise that if it was not committed."""
    title = context.root.title
    if token is None:
        raise CommitOutcomeUnknown(title, "the connection was lost while COMMIT was on its way") from error
    try:
        context.transaction.abandon()
        state = resolve(context.outcomes, title, token, _PATIENCE)
    except CommitOutcomeUnknown as unknown:
        if isinstance(error, Exception):
            raise unknown from error
        error.add_note(f"{unknown}")
        leave_in_doubt(context, error)
        raise error from unknown
    except BaseException as interrupt:
        interrupt.add_note(f"{CommitOutcomeUnknown(title, 'asking what became of it was cut off', token)}")
        leave_in_doubt(context, interrupt)
        raise
    error.add_note(f"COMMIT was cut off; the database was asked, and {title} is {state.value}.")
    if state is not State.COMMITTED:
        raise error


def leave_in_doubt(context: Context, error: BaseException) -> None:
    """End the unit without knowing how it ended."""
    context.root.lost = error
    context.root.move(Verb.DOUBT, error)
    context.close(broken=True)


async def settle(*members: tuple[Context, Any]) -> None:
    """
    Run the handlers and hooks that belong inside, and what they cause, until nothing new comes.

    Args:
        members: The units that commit together, each with the handle that its handlers are given.
    """
    causes = [_Causes(context, unit) for context, unit in members]
    rounds: list[str] = []
    for _ in range(ROUNDS):
        ran = [name for cause in causes for name in await cause.run()]
        if not ran:
            return
        rounds.append(", ".join(ran))
    last = rounds.pop()
    unit = " and ".join(context.unit for context, _ in members)
    raise EventCycle(unit, ROUNDS, [*rounds[rounds.index(last) if last in rounds else -10 :], last][-10:])


class _Causes:
    """
    What the handlers and hooks of one unit are to be called for, and how far that has come.
    """

    def __init__(self, context: Context, unit: Any) -> None:
        self.context = context
        self.unit = unit
        self.handled = self.hooked = 0

    async def run(self) -> list[str]:
        """Call them for what is new, and return the names of that."""
        context, root, handlers = self.context, self.context.root, self.context.settings.handlers
        if root.state is not State.COMMITTING:
            raise await context.lose(root)
        context.run("commit()", context.transaction.flush)
        if context.innermost is not root:
            raise NestedScopeOpen(
                "commit()",
                root.title,
                f"a handler or hook left the nested scope {context.innermost.path!r} open",
                "Open it with `with` there.",
            )
        events, self.handled = root.events[self.handled :], len(root.events)
        hooks, self.hooked = root.before_commit[self.hooked :], len(root.before_commit)
        for event in events:  # what would fail after the commit must not be found out then
            for later in handlers.after(event):
                context.hooks.demand(later)
        for event in events:
            for handler in handlers.inside(event):
                await context.hooks.call(handler, event, self.unit.for_handler(handler))
        for hook in hooks:
            await context.hooks.call(hook)
        return [*(type(event).__name__ for event in events), *map(_name, hooks)]


async def announce(
    committed: Titled,
    contexts: Sequence[Context],
    failures: Iterable[Exception],
    first: Iterable[Callable[[], object]],
) -> None:
    """
    Run what waited for the commit; all of it, whatever fails.

    Args:
        committed: What was committed.

        contexts: Its units.

        failures: What has failed since the commit.

        first: What gives the connections back.
    """
    hooks = [*first]
    for context in contexts:
        root, handlers = context.root, context.settings.handlers
        hooks += root.after_commit
        hooks += [partial(handler, event) for event in root.events for handler in handlers.after(event)]
    failures = [*failures, *await contexts[0].hooks.call_all(hooks)]
    if failures:
        raise AfterCommitFailed(f"{committed.title} was committed and stays so, but what ran after it failed", failures)


def _name(call: object) -> str:
    return getattr(call, "__qualname__", repr(call))
