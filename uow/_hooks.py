"""
Handlers of domain events, inside the transaction and after it.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

from attrs import define, field, frozen

from uow.domain import Event

from ._steps import Bridge, is_asynchronous
from .errors import DefinitionError

__all__ = ["Calls", "Handlers"]

F = TypeVar("F", bound=Callable[..., object])
_Entry: TypeAlias = tuple[type[Event], Callable[..., object]]


@define(eq=False)
class Handlers:
    """
    What is to happen when an event was recorded; a unit is made with it.

    A handler of a class handles its subclasses' events too. Handlers run in the order they were registered in.

    >>> from attrs import frozen
    >>> from uow import Event, Handlers
    >>> @frozen
    ... class MoneyMoved(Event):
    ...     amount: int
    >>> handlers = Handlers()
    >>> @handlers.after_commit(MoneyMoved)
    ... def publish(event):
    ...     print(event.amount)
    """

    _inside: list[_Entry] = field(factory=list[_Entry], init=False)
    _after: list[_Entry] = field(factory=list[_Entry], init=False)

    def __bool__(self) -> bool:
        return bool(self._inside or self._after)

    def before_commit(self, event: type[Event]) -> Callable[[F], F]:
        """
        Register a handler ``(event, uow)`` that runs inside the transaction, before it commits.

        What it does is committed or lost with the rest, and the events that it causes are handled too.

        Raises:
            uow.errors.DefinitionError: The handler cannot be called with these.
        """
        _demand_event(event, "before_commit")

        def register(handler: F) -> F:
            _demand_arguments(handler, "before_commit", "event", "uow")
            self._inside.append((event, handler))
            return handler

        return register

    def after_commit(self, event: type[Event]) -> Callable[[F], F]:
        """
        Register a handler ``(event)`` that runs once the unit is durable and its connection is free.

        If it fails, the commit stands and `uow.errors.AfterCommitFailed` reports it.
        """
        _demand_event(event, "after_commit")

        def register(handler: F) -> F:
            _demand_arguments(handler, "after_commit", "event")
            self._after.append((event, handler))
            return handler

        return register

    def inside(self, event: Event) -> Iterator[Callable[[Event, Any], object]]:
        """Yield the handlers of *event* that run before the commit."""
        return (handler for kind, handler in self._inside if isinstance(event, kind))

    def after(self, event: Event) -> Iterator[Callable[[Event], object]]:
        """Yield the handlers of *event* that run after the commit."""
        return (handler for kind, handler in self._after if isinstance(event, kind))


def _demand_event(event: object, kind: str) -> None:
    if not isinstance(event, type) or not issubclass(event, Event):
        raise DefinitionError(
            f"a {kind} handler",
            f"{event!r} is no subclass of Event",
            f"Name the event that it is for, as in @handlers.{kind}(OrderPlaced).",
        )


def _demand_arguments(handler: Callable[..., object], kind: str, *names: str) -> None:
    """Raise unless *handler* can be called with these arguments: after a commit would be too late to find out."""
    try:
        inspect.signature(handler).bind(*names)
    except TypeError as error:
        raise DefinitionError(
            f"the {kind} handler {handler!r}",
            f"it cannot be called with ({', '.join(names)}): {error}",
            "A before_commit handler takes (event, uow), an after_commit handler (event): the unit has ended then.",
        ) from error
    except ValueError:  # a callable without a signature, such as some builtins
        return


@frozen(eq=False)
class Calls:
    """
    How hooks and handlers of a unit are called.

    Args:
        bridge: How an asynchronous unit waits for those that are to be awaited; None in a synchronous one.

        unit: What errors call the unit.
    """

    bridge: Bridge | None
    unit: str

    def demand(self, hook: Callable[..., object]) -> None:
        """Raise if *hook* cannot be called: a coroutine function where nobody awaits it, or a generator function."""
        if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
            raise DefinitionError(
                f"the hook {hook!r} of {self.unit}",
                "it is a generator function, which does nothing when it is called",
                "Leave out `yield`.",
            )
        if self.bridge is None and is_asynchronous(hook):
            raise _not_awaited(hook, self.unit)

    async def call(self, hook: Callable[..., object], *args: object) -> None:
        """Call a hook or handler, and wait for it if it has to be awaited."""
        result = hook(*args)
        if result is None or not inspect.isawaitable(result):
            return
        if self.bridge is None:
            if inspect.iscoroutine(result):
                result.close()
            raise _not_awaited(hook, self.unit)
        await self.bridge.wait(result)

    async def call_all(self, hooks: Iterable[Callable[[], object]]) -> list[Exception]:
        """Run every hook, whatever the others do; return the errors, or raise the first interrupt at the end."""
        errors: list[Exception] = []
        interrupt: BaseException | None = None
        for hook in hooks:
            try:
                await self.call(hook)
            except Exception as error:
                errors.append(error)
            except BaseException as error:
                if interrupt is None:
                    interrupt = error
                else:
                    interrupt.add_note(f"Another interrupt in the hooks: {error!r}")
        if interrupt is not None:
            for failed in errors:
                interrupt.add_note(f"Another error in the hooks: {failed!r}")
            raise interrupt
        return errors


def _not_awaited(hook: Callable[..., object], unit: str) -> DefinitionError:
    return DefinitionError(
        f"the hook {hook!r} of {unit}",
        "it has to be awaited, and the unit is synchronous",
        "Use an AsyncUnitOfWork, or a plain function.",
    )
