"""
One core, two faces: what may call a user's hook is written as steps, a coroutine that waits for nothing else.

A synchronous unit finishes the steps at once. An asynchronous one awaits them through its bridge.
"""

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from .errors import ConfigurationError

__all__ = ["Bridge", "Steps", "finish", "is_asynchronous", "shielded"]

R = TypeVar("R")
Steps: TypeAlias = Coroutine[Any, Any, R]


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
def shielded(steps: Steps[R], protected: Callable[[], bool]) -> Generator[Any, Any, R]:
    """
    Await *steps*; a cancellation that comes while they are *protected* is raised when they are over.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    late: asyncio.CancelledError | None = None
    problem: BaseException | None = None

    def is_due() -> bool:
        # A driver's own timeout cancels the task too, and takes it back.
        return task.cancelling() > cancelled_before

    try:
        while True:
            try:
                waiting = steps.send(None) if problem is None else steps.throw(problem)
            except StopIteration as stop:
                if late is not None and is_due():
                    raise late from None
                result: R = stop.value
                return result
            except Exception as error:
                if late is not None and is_due():
                    raise late from error
                raise
            problem = None
            if not protected():
                try:
                    yield waiting
                except BaseException as error:
                    problem = error
                continue
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
