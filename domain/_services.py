"""
Domain services, and the unit of work that is open around them.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from ._errors import OutsideUnitOfWork
from ._generics import type_argument
from ._wrapping import wrapping

__all__ = ["DomainService", "OpenUnit", "current", "open_units", "opened"]

U = TypeVar("U")


class OpenUnit(Protocol):
    """
    An entered unit, as those see it who look for one.
    """

    @property
    def usable(self) -> bool:
        """Whether it is open, and belongs to this thread and task."""
        ...

    def handle(self, kind: type[U], /) -> U | None:
        """Return the unit object of its innermost scope, if that is a *kind*."""
        ...


# Weak: a unit that nobody uses any more must be collected, and say so. A child task inherits what it may not use.
_open: ContextVar[tuple["weakref.ref[OpenUnit]", ...]] = ContextVar("uow_open", default=())


def opened(unit: OpenUnit) -> None:
    """Let *unit* be found here from now on, until it is no longer usable."""
    known = _open.get()
    if known and known[-1]() is unit:
        return
    if all(reference() is not unit for reference in known):
        still_open = (reference for reference in known if (other := reference()) is not None and other.usable)
        _open.set((*still_open, weakref.ref(unit)))


def open_units() -> Iterator[OpenUnit]:
    """Yield the open units of this thread and task, innermost first."""
    for reference in reversed(_open.get()):
        unit = reference()
        if unit is not None and unit.usable:
            yield unit


def current(kind: Callable[..., U]) -> U:
    """
    Return the innermost open unit of this task that is a *kind*.

    Args:
        kind: The application's port or one of its adapters, such as ``Bank``.

    Raises:
        OutsideUnitOfWork: There is none.
    """
    for unit in open_units():
        if (handle := unit.handle(cast("type[U]", kind))) is not None:
            return handle
    name = getattr(kind, "__name__", repr(kind))
    raise OutsideUnitOfWork(
        "find the current unit",
        name,
        f"no {name} is open in this task" + (", and it may not use those of others" if _open.get() else ""),
        "Do it inside `with uow:`, in the thread and task that entered it.",
    )


class DomainService(Generic[U]):
    """
    A stateless rule over several aggregates; its public methods work only inside an open unit.

    >>> from attrs import frozen
    >>> from uow import DomainService, UnitOfWork
    >>> class Bank(UnitOfWork): ...
    >>> @frozen
    ... class Fees(DomainService[Bank]):
    ...     rate: int
    ...     def charge(self, number):
    ...         account = self.uow.accounts.get(number)
    >>> Fees(3).charge("A-1")
    Traceback (most recent call last):
    uow.errors.OutsideUnitOfWork: Cannot call Fees.charge() on Bank: no Bank is open in this task...
    """

    __slots__ = ()
    _kind: ClassVar[type[Any] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._kind = type_argument(cls, DomainService) or cls._kind
        fields = inspect.get_annotations(cls)
        for name, method in list(vars(cls).items()):
            public = inspect.isfunction(method) and not name.startswith("_") and name not in fields
            if public and not hasattr(method, "__uow_guarded__"):
                setattr(cls, name, _guarded(name, method))

    @property
    def uow(self) -> U:
        """
        The innermost open unit of this task.

        Raises:
            OutsideUnitOfWork: There is none.
        """
        if self._kind is None:
            msg = f"{type(self).__name__} does not say which unit it works in: subclass DomainService[Bank]."
            raise TypeError(msg)
        unit: U = current(self._kind)
        return unit


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return *method* with a look for the unit before it, so that no half of it is done without one."""
    __class__ = DomainService

    def demand(service: DomainService[Any]) -> None:
        try:
            _ = service.uow
        except OutsideUnitOfWork as error:
            error.operation = f"call {type(service).__name__}.{name}()"
            raise

    def guard(self: DomainService[Any], *args: Any, **kwargs: Any) -> Any:
        _ = __class__
        demand(self)
        return method(self, *args, **kwargs)

    async def guard_coroutine(self: DomainService[Any], *args: Any, **kwargs: Any) -> Any:
        _ = __class__
        demand(self)
        return await method(self, *args, **kwargs)

    wrapped: Any = wrapping(guard_coroutine if inspect.iscoroutinefunction(method) else guard, method)
    wrapped.__uow_guarded__ = True
    guarded: Callable[..., Any] = wrapped
    return guarded
