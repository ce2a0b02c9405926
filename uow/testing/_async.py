"""
The contract suite on the asynchronous face: its tests are synchronous text, run in one asyncio task.

A test runs in a greenlet; where it calls something that has to be awaited, the task awaits it. The greenlet is none of
SQLAlchemy's, so hidden I/O, such as an attribute that loads itself, is the same error there as in a coroutine.
"""

import asyncio
import functools
import inspect
import sys
import types
import weakref
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any, ClassVar, TypeVar, cast

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

from uow import AsyncRepository, AsyncUnitOfWork, Event, Handlers, awaited

from ._harness import Harness
from ._model import Account, Accounts, Bank, Document, Line, Transfer

__all__ = ["AsyncAccounts", "AsyncBank", "AsyncHarness", "lift", "lifted", "wait"]

R = TypeVar("R")

_TAKES_HOOKS = ("before_commit", "after_commit", "after_rollback")


class AsyncAccounts(AsyncRepository[Account]):
    """
    Accounts, with a named query.
    """

    overdrawn = awaited(Accounts.overdrawn)


class AsyncBank(AsyncUnitOfWork):
    """
    The port, awaited.
    """

    sync: Bank
    accounts: AsyncAccounts
    transfers: AsyncRepository[Transfer]
    documents: AsyncRepository[Document]
    lines: AsyncRepository[Line]


# ------------------------------------------------------------------------------------------------------- two worlds


async def lifted(call: Callable[..., R], /, *args: Any) -> R:
    """
    Call synchronous code, and await what it asks to `wait` for.
    """
    code: Any = greenlet(call)
    code.gr_context = getcurrent().gr_context
    result = code.switch(*args)
    while not code.dead:
        try:
            await result
        except BaseException:
            result = code.throw(*sys.exc_info())
        else:
            result = code.switch()
    return cast("R", result)


def wait(awaitable: Awaitable[R]) -> R:
    """
    Let the task that runs this code await something.
    """
    box: list[R] = []  # whoever switches would keep what it passes; entities are to be kept by the test alone

    async def fill() -> None:
        box.append(await awaitable)

    here: Any = getcurrent()
    here.parent.switch(fill())
    return box.pop()


def asynchronous(call: Callable[..., object]) -> Callable[..., Coroutine[Any, Any, object]]:
    """
    Return *call*, a hook or handler in a test, as a coroutine function.
    """

    @functools.wraps(call)
    async def hook(*args: Any) -> object:
        await asyncio.sleep(0)
        return await lifted(call, *(lift(arg) for arg in args))

    return hook


class _Lifted:
    """
    What stands for a unit, repository or session in a test: the same names, and nothing to await.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def __enter__(self) -> Any:
        return lift(wait(self._target.__aenter__()))

    def __exit__(self, *error: Any) -> Any:
        return wait(self._target.__aexit__(*error))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return functools.partial(_call, value) if inspect.isroutine(value) else lift(value)

    def __repr__(self) -> str:
        return repr(self._target)


class _LiftedIterator(Iterator[Any]):
    def __init__(self, target: AsyncIterator[Any]) -> None:
        self._target = aiter(target)

    def __next__(self) -> Any:
        try:
            return lift(wait(anext(self._target)))
        except StopAsyncIteration:
            raise StopIteration from None


_proxies: "weakref.WeakValueDictionary[int, _Lifted]" = weakref.WeakValueDictionary()


def lift(value: Any) -> Any:
    """
    Return what a test is given in place of *value*; the same one each time.
    """
    kind = type(value)
    if kind is tuple:  # what a group of units gives
        return tuple(map(lift, value))
    if isinstance(value, AsyncIterator):
        return _LiftedIterator(value)
    if not any(hasattr(kind, name) for name in ("__aenter__", "__aiter__")) and not isinstance(value, AsyncRepository):
        return value
    proxy = _proxies.get(id(value))
    if proxy is None:
        proxy = _proxies[id(value)] = _lifted_class(cast("Any", kind))(value)
    return proxy


@functools.cache
def _lifted_class(kind: type) -> type[_Lifted]:
    return type(kind.__name__, (_Lifted,), {"__doc__": kind.__doc__})


def _call(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if method.__name__ in _TAKES_HOOKS:
        method(*map(asynchronous, args))
        return args[0]
    result = method(*args, **kwargs)
    return lift(wait(result) if inspect.isawaitable(result) else result)


class _LiftedHandlers(Handlers):
    """
    The handlers of a test as coroutine functions, those that it registers later included.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    def __bool__(self) -> bool:
        return bool(self._handlers)

    def inside(self, event: Event) -> Iterator[Callable[..., object]]:
        """Yield the handlers of *event* that run before the commit."""
        return map(asynchronous, self._handlers.inside(event))

    def after(self, event: Event) -> Iterator[Callable[..., object]]:
        """Yield the handlers of *event* that run after the commit."""
        return map(asynchronous, self._handlers.after(event))


# ------------------------------------------------------------------------------------------------------ the harness


class AsyncHarness(Harness):
    """
    One asynchronous adapter with one empty database, made anew for each test of an ``AsyncContractSuite``.
    """

    asynchronous: ClassVar[bool] = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._handlers: dict[Handlers, Handlers] = {}

    @abstractmethod
    def unit(self, **options: Any) -> AsyncBank:
        """Return a new unit on the database, to be awaited."""

    def bank(self, **options: Any) -> Bank:
        """Return a new unit on the database, for code that does not await."""
        if "handlers" in options:
            handlers = options["handlers"]
            options["handlers"] = self._handlers.setdefault(handlers, _LiftedHandlers(handlers))
        return cast("Bank", lift(self.unit(**options)))

    async def dispose(self) -> None:
        """Close what belongs to the running event loop."""

    def run(self, call: Callable[[], R]) -> R:
        """Return what *call* does in an event loop of its own."""

        async def main() -> R:
            try:
                return await lifted(call)
            finally:
                await self.dispose()

        return asyncio.run(main())

    def complete(self, awaitable: Awaitable[R]) -> R:
        """Return the result of what has to be awaited."""
        return wait(awaitable)

    def elsewhere(self, call: Callable[[], R]) -> R:
        """Return what *call* does in the event loop of another thread."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.run, call).result()

    def handed(self, call: Callable[[], R]) -> R:
        """Return what *call* does in another task: a unit lives in one event loop."""
        return wait(asyncio.create_task(lifted(call)))

    def meanwhile(self, call: Callable[[], object]) -> Thread:
        """Begin *call* in the event loop of another thread."""
        return super().meanwhile(lambda: self.run(call))

    def define(self, name: str, **annotations: object) -> Any:
        """Make an adapter of the same kind, whose synchronous side has other repositories; return that side."""
        port = _class(name, Bank, annotations)
        return _class(name, type(self.unit()), {"sync": port})._core_class


def _class(name: str, base: type, annotations: dict[str, Any]) -> Any:
    body = {"__annotations__": annotations, "__module__": __name__}
    return types.new_class(name, (base,), {}, lambda namespace: namespace.update(body))
