"""
The root's commit: what runs before it, the decision, what runs after it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ._context import Context, run_all
from ._hooks import Handlers
from ._states import State, Verb
from .errors import AfterCommitFailed, CommitOutcomeUnknown, ConnectionLost, EventCycle, NestedScopeOpen

__all__ = ["ROUNDS", "commit"]

ROUNDS = 100
"""How many rounds of handlers and hooks a commit waits for quiet."""


def commit(context: Context, handlers: Handlers, unit: Any) -> None:
    """
    Make the root's work durable, or roll it back and raise why.
    """
    root = context.root
    if root.state in (State.BROKEN, State.DOOMED):
        raise context.lose(root)
    root.move(Verb.COMMIT)
    if context.ended_by is not None:
        _leave_in_doubt(context, context.ended_by)
        raise context.ended_by
    try:
        _settle(context, handlers, unit)
    except BaseException as error:
        context.end_inner(root, error)
        context.give_up(root, error)
        raise
    try:
        context.run("commit()", context.transaction.confirm)
        failures = _decide(context)
    except CommitOutcomeUnknown as error:
        error.unit = root.title
        _leave_in_doubt(context, error)
        raise
    except BaseException as error:
        context.give_up(root, error)
        raise
    root.move(Verb.DURABLE)
    _announce(context, handlers, failures)


def _decide(context: Context) -> list[Exception]:
    """
    Send COMMIT, and return what failed after it was confirmed.

    What interrupts it, a lost connection or a signal, leaves open whether the work is durable.
    """
    context.deciding = True
    try:
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


def _settle(context: Context, handlers: Handlers, unit: Any) -> None:
    """Run the handlers and hooks that belong inside, and what they cause, until nothing new comes."""
    root = context.root
    handled = hooked = 0
    rounds: list[str] = []
    for _ in range(ROUNDS):
        if root.state is not State.COMMITTING:
            raise context.lose(root)
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
        for event in events:
            for handler in handlers.inside(event):
                handler(event, unit)
        for hook in hooks:
            hook()
    last = rounds.pop()
    raise EventCycle(context.unit, ROUNDS, [*rounds[rounds.index(last) if last in rounds else -10 :], last][-10:])


def _announce(context: Context, handlers: Handlers, failures: list[Exception]) -> None:
    """Give the connection back, then run what waited for the commit; all of it, whatever fails."""
    root = context.root
    hooks: list[Callable[[], object]] = [context.close, *root.after_commit]
    hooks += [partial(handler, event) for event in root.events for handler in handlers.after(event)]
    failures = [*failures, *run_all(hooks)]
    if failures:
        raise AfterCommitFailed(f"{root.title} was committed and stays so, but what ran after it failed", failures)


def _name(call: object) -> str:
    return getattr(call, "__qualname__", repr(call))
