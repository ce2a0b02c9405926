"""
One core, two faces: what may call a user's hook is written as steps, a coroutine that waits for nothing else.

A synchronous unit finishes the steps at once. An asynchronous one awaits them through its bridge.
"""

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from ._scope import Scope
from .errors import ConfigurationError

__all__ = ["Bridge", "Steps", "ending", "finish", "is_asynchronous", "scope_ending", "shielded"]

R = TypeVar("R")
Steps: TypeAlias = Coroutine[Any, Any, R]

_ending: ContextVar[Scope | None] = ContextVar("uow_ending", default=None)


class ending:  # a class, where a generator would cost more than what it surrounds
    """
    Be at the end of *scope* that must not be cut off: a COMMIT, a ROLLBACK, the return of a connection.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._token = _ending.set(self._scope)

    def __exit__(self, *exc: object) -> None:
        _ending.reset(self._token)


def scope_ending() -> Scope | None:
    """Return the scope of this task that must not be cut off now."""
    return _ending.get()


class Bridge(Protocol):
    """
    How the synchronous core of an asynchronous unit is run.
    """

    def call(self, call: Callable[..., R], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]:
        """Call synchronous code so that what it does to the database is awaited."""
        ...

    def drive(self, steps: Steps[R], /) -> Coroutine[Any, Any, R]:
        """Take the core's steps in the same way."""
        ...

    def wait(self, awaitable: Awaitable[Any], /) -> Coroutine[Any, Any, object]:
        """Wait, within the steps, for what a hook returned."""
        ...

    def inside(self) -> bool:
        """Tell whether this code was called through the bridge."""
        ...


def finish(steps: Steps[R]) -> R:
    """Take all steps at once."""
    problem: BaseException | None = None
    while True:
        try:
            if problem is None:
                steps.send(None)
            else:
                steps.throw(problem)
        except StopIteration as stop:
            result: R = stop.value
            return result
        problem = ConfigurationError(
            "synchronous code reached a hook that has to be awaited",
            "Without a database nothing can wait there: make the hook a plain function, or end the scope with await.",
        )


def is_asynchronous(call: Callable[..., object]) -> bool:
    """Tell whether *call* is a coroutine function, a partial or an object of one."""
    while isinstance(call, partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


@types.coroutine
def shielded(steps: Steps[R], protected: Callable[[], object], *, to_the_end: bool = True) -> Generator[Any, Any, R]:
    """
    Await *steps*; a cancellation that comes while they are *protected* is raised when they are over.

    Without *to_the_end* it is raised as soon as they wait again and are not protected any more; a note says what
    came of the scope that *protected* them.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    late: asyncio.CancelledError | None = None
    problem: BaseException | None = None
    protector: Any = None

    def is_due() -> bool:
        # A driver's own timeout cancels the task too, and takes it back.
        return task.cancelling() > cancelled_before

    def noted(error: asyncio.CancelledError) -> asyncio.CancelledError:
        if not to_the_end:
            error.add_note(f"<{protector.title}: {protector.state.value}>")
        return error

    try:
        while True:
            try:
                waiting = steps.send(None) if problem is None else steps.throw(problem)
            except StopIteration as stop:
                if late is not None and is_due():
                    raise noted(late) from None
                result: R = stop.value
                return result
            except Exception as error:
                if late is not None and is_due():
                    raise noted(late) from error
                raise
            problem = None
            if not (now := protected()):
                if late is not None and is_due() and not to_the_end:
                    if waiting is not None:
                        waiting.cancel()
                    problem, late = noted(late), None
                    continue
                try:
                    yield waiting
                except BaseException as error:
                    problem = error
                continue
            protector = now
            late = (yield from _wait_out(waiting)) or late
    finally:
        steps.close()


def _wait_out(waiting: "asyncio.Future[Any] | None") -> Generator[Any, Any, asyncio.CancelledError | None]:
    """Wait for what the event loop is to wait for, whatever happens to the task; return its cancellation."""
    late: asyncio.CancelledError | None = None
    while True:
        try:
            if waiting is None:  # asyncio.sleep(0)
                yield
            else:
                yield from asyncio.shield(waiting).__await__()
        except asyncio.CancelledError as error:
            if waiting is None or not waiting.cancelled():
                late = error
            if waiting is not None and not waiting.done():
                continue
        except Exception:
            pass
        return late
