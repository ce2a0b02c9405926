"""
The root's commit: what runs before it, the decision, what runs after it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ._context import Context
from ._states import State, Verb
from ._steps import ending
from .errors import AfterCommitFailed, CommitOutcomeUnknown, ConnectionLost, EventCycle, NestedScopeOpen

__all__ = ["ROUNDS", "commit"]

ROUNDS = 100
"""How many rounds of handlers and hooks a commit waits for quiet."""


async def commit(context: Context, unit: Any) -> None:
    """
    Make the root's work durable, or roll it back and raise why; handlers are given *unit*.
    """
    root = context.root
    if root.state in (State.BROKEN, State.DOOMED):
        raise await context.lose(root)
    root.move(Verb.COMMIT)
    if context.ended_by is not None:
        _leave_in_doubt(context, context.ended_by)
        raise context.ended_by
    try:
        await _settle(context, unit)
    except BaseException as error:
        await context.end_inner(root, error)
        await context.give_up(root, error)
        raise
    try:
        context.run("commit()", context.transaction.confirm)
        failures = _decide(context)
    except CommitOutcomeUnknown as error:
        error.unit = root.title
        _leave_in_doubt(context, error)
        raise
    except BaseException as error:
        await context.give_up(root, error)
        raise
    root.move(Verb.DURABLE)
    await _announce(context, failures)


def _decide(context: Context) -> list[Exception]:
    """
    Send COMMIT, and return what failed after it was confirmed.

    What interrupts it, a lost connection or a signal, leaves open whether the work is durable.
    """
    context.deciding = True
    try:
        with ending(context.root):
            context.transaction.commit()
        return []
    except AfterCommitFailed as error:
        return list(error.exceptions)
    except ConnectionLost as error:
        reason = "the connection was lost while COMMIT was on its way"
        raise CommitOutcomeUnknown(context.root.title, reason) from error
    except Exception:
        raise
    except BaseException as error:
        _leave_in_doubt(context, error)
        raise
    finally:
        context.deciding = False


def _leave_in_doubt(context: Context, error: BaseException) -> None:
    context.root.lost = error
    context.root.move(Verb.DOUBT, error)
    context.close(broken=True)


async def _settle(context: Context, unit: Any) -> None:
    """Run the handlers and hooks that belong inside, and what they cause, until nothing new comes."""
    root, handlers = context.root, context.settings.handlers
    handled = hooked = 0
    rounds: list[str] = []
    for _ in range(ROUNDS):
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
        if handled == len(root.events) and hooked == len(root.before_commit):
            return
        events, handled = root.events[handled:], len(root.events)
        hooks, hooked = root.before_commit[hooked:], len(root.before_commit)
        rounds.append(", ".join([*(type(event).__name__ for event in events), *(_name(hook) for hook in hooks)]))
        for event in events:  # what would fail after the commit must not be found out then
            for later in handlers.after(event):
                context.hooks.demand(later)
        for event in events:
            for handler in handlers.inside(event):
                await context.hooks.call(handler, event, unit.for_handler(handler))
        for hook in hooks:
            await context.hooks.call(hook)
    last = rounds.pop()
    raise EventCycle(context.unit, ROUNDS, [*rounds[rounds.index(last) if last in rounds else -10 :], last][-10:])


async def _announce(context: Context, failures: list[Exception]) -> None:
    """Give the connection back, then run what waited for the commit; all of it, whatever fails."""
    root, handlers = context.root, context.settings.handlers
    hooks: list[Callable[[], object]] = [context.close, *root.after_commit]
    hooks += [partial(handler, event) for event in root.events for handler in handlers.after(event)]
    failures = [*failures, *await context.hooks.call_all(hooks)]
    if failures:
        raise AfterCommitFailed(f"{root.title} was committed and stays so, but what ran after it failed", failures)


def _name(call: object) -> str:
    return getattr(call, "__qualname__", repr(call))
