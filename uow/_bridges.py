"""
The asynchronous face's way into the synchronous core where nothing has to be awaited there: the fake's.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from ._steps import Steps

__all__ = ["DirectBridge", "directly", "inside"]

P = ParamSpec("P")
R = TypeVar("R")

_inside: ContextVar[bool] = ContextVar("uow_inside", default=False)


@contextmanager
def _being(value: bool) -> Generator[None]:
    token = _inside.set(value)
    try:
        yield
    finally:
        _inside.reset(token)


def inside() -> bool:
    """Tell whether this code was called by the asynchronous face."""
    return _inside.get()


def directly(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what never waits for the database."""
    token = _inside.set(True)  # in full: what is called is often shorter than a context manager
    try:
        return call(*args, **kwargs)
    finally:
        _inside.reset(token)


class DirectBridge:
    """
    A bridge for a core that waits for nothing but hooks.
    """

    async def call(self, call: Callable[..., R], /, *args: Any, **kwargs: Any) -> R:
        """Call it."""
        return directly(call, *args, **kwargs)

    async def drive(self, steps: Steps[R], /) -> R:
        """Await the steps."""
        with _being(True):
            return await steps

    async def wait(self, awaitable: Awaitable[Any], /) -> object:
        """Await what a hook returned; it stands outside again."""
        with _being(False):
            return await awaitable

    def inside(self) -> bool:
        """Tell whether this code was called by the asynchronous face."""
        return inside()
