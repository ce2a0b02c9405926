"""
Functions that run in a scope of their own.
"""

# pyright: reportPrivateUsage=false
# The decorator opens scopes as the unit's own verbs do.

import enum
import inspect
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar, Unpack, cast, overload

from uow.domain import wrapping

from ._async import AsyncUnitOfWork
from ._options import Options, OptionValues
from ._retries import Retry, finished
from ._steps import is_asynchronous
from ._unit import UnitOfWork
from .errors import DefinitionError, Misuse, OutsideUnitOfWork, UnitOfWorkActive

__all__ = ["Propagation", "transactional"]

F = TypeVar("F", bound=Callable[..., Any])
Unit = UnitOfWork | AsyncUnitOfWork


class Propagation(enum.Enum):
    """
    What a function does about a unit that is open around it; the words are those of Spring's transactions.
    """

    REQUIRED = "required"
    """Join it, or open one. A failure dooms the whole."""

    NESTED = "nested"
    """Open a nested scope in it, which may fail alone, or open a unit."""

    REQUIRES_NEW = "requires new"
    """Open an independent unit, with a connection of its own."""

    MANDATORY = "mandatory"
    """Join it; it is an error if there is none."""

    NEVER = "never"
    """Run without one; it is an error if there is one."""


@overload
def transactional(function: F, /) -> F: ...
@overload
def transactional(
    *,
    propagation: Propagation = ...,
    retry: Retry | None = ...,
    **options: Unpack[OptionValues],
) -> Callable[[F], F]: ...
def transactional(
    function: Any = None,
    /,
    *,
    propagation: Propagation = Propagation.REQUIRED,
    retry: Retry | None = None,
    **options: Unpack[OptionValues],
) -> Any:
    """
    Run a function in a scope: commit when it returns, roll back when it raises.

    The unit is the argument that is one, or else the attribute ``uow`` of the object that the method belongs
    to; while the function runs that very object stands for the scope. A coroutine function needs an `AsyncUnitOfWork`.

    .. code-block:: python

        @frozen
        class Transfers:
            uow: Bank

            @transactional
            def move(self, source: str, target: str, amount: int) -> None:
                self.uow.accounts.get(source).withdraw(amount)

            @transactional(propagation=Propagation.REQUIRES_NEW, retry=Retry(attempts=3), isolation="SERIALIZABLE")
            def audit(self) -> None: ...

    Args:
        function: A function, method, coroutine function or partial; no generator.

        propagation: What to do about a unit that is open around it.

        retry: Do it again after a transient error, so often; nothing may be open around it then.

        options: What it asks of its transaction, as when a unit is made.

    Raises:
        uow.errors.DefinitionError: The function cannot be run in a scope.

        uow.errors.ContradictoryOptions: When it is called: the unit around it was made with other options.
    """
    if function is None:
        return partial(_decorated, propagation=propagation, retry=retry, options=options)
    return _decorated(function, propagation, retry, options)


def _decorated(function: F, propagation: Propagation, retry: Retry | None, options: OptionValues) -> F:
    name = _demand_function(function)
    if not isinstance(propagation, Propagation):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(name, f"{propagation!r} is no Propagation", "Pass one, such as Propagation.NESTED.")
    if not isinstance(retry, Retry | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(name, f"retry is {retry!r}", "Pass Retry(attempts=3), or leave it out.")
    if propagation is Propagation.NEVER and (options or retry):
        raise DefinitionError(name, "there is no unit to which its options could apply", "Leave them out, or NEVER.")

    if propagation is Propagation.MANDATORY and retry:
        raise DefinitionError(name, "what joins a unit cannot be retried without it", "Retry the outermost unit.")
    _ = Options(**options)  # what means nothing is an error here already
    __class__ = Propagation

    def call(*args: Any, **kwargs: Any) -> Any:
        _ = __class__
        unit: UnitOfWork = _unit_of(function, name, args, kwargs, UnitOfWork)
        scope = _scope_for(unit, unit, propagation, name, options)
        if scope is None:
            return function(*args, **kwargs)
        result: Any = None
        for attempt in (scope,) if retry is None else scope.attempts(retry):
            with attempt, unit._standing_for(scope):
                result = finished(f"call {name}", function(*args, **kwargs))
                if scope.state.open:
                    scope.commit()
        return result

    async def call_and_await(*args: Any, **kwargs: Any) -> Any:
        _ = __class__
        unit: AsyncUnitOfWork = _unit_of(function, name, args, kwargs, AsyncUnitOfWork)
        scope = _scope_for(unit, unit._core, propagation, name, options)
        if scope is None:
            return await function(*args, **kwargs)
        result: Any = None
        async for attempt in _once(scope) if retry is None else scope.attempts(retry):
            async with attempt:
                with unit._core._standing_for(scope._core):
                    result = finished(f"call {name}", await function(*args, **kwargs))
                    if scope.state.open:
                        await scope.commit()
        return result

    chosen = call_and_await if is_asynchronous(function) else call
    return cast("F", wrapping(chosen, function))


async def _once(scope: AsyncUnitOfWork) -> AsyncIterator[AsyncUnitOfWork]:
    yield scope


U = TypeVar("U", UnitOfWork, AsyncUnitOfWork)


def _scope_for(unit: U, core: UnitOfWork, propagation: Propagation, name: str, options: OptionValues) -> U | None:
    """Return the scope to enter, None for none."""
    around = core._around()
    if propagation is Propagation.NEVER:
        if around is not None:
            raise UnitOfWorkActive(
                f"call {name}", around.innermost.title, "it must never run inside a unit", "Call it outside."
            )
        return None
    if propagation is Propagation.MANDATORY and around is None:
        raise OutsideUnitOfWork(
            f"call {name}", core._name, "it joins a unit, and this task has none open", "Call it inside one."
        )
    if propagation is Propagation.NESTED and around is not None:
        return unit._inside(around, name, options)
    if propagation in (Propagation.REQUIRED, Propagation.MANDATORY):
        return unit.joined(name, **options)
    return unit.independent(**options)


def _demand_function(function: Any) -> str:
    """Return what to call *function*, if it can be run in a scope."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    name = str(getattr(inner, "__qualname__", repr(inner)))
    subject = f"@transactional {name}"
    kind: type[object] = cast("Any", type(inner))
    if kind in (staticmethod, classmethod):
        raise DefinitionError(subject, f"it is a {kind.__name__}", f"Put @{kind.__name__} above @transactional.")
    if not callable(inner) or isinstance(inner, type):
        raise DefinitionError(subject, f"{inner!r} is no function", "Decorate a function or a method.")
    if any(inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body) for body in (inner, inner.__call__)):
        raise DefinitionError(
            subject,
            "it is a generator, whose body would run after the scope has ended",
            "Return a list, or open the unit with `with` inside it.",
        )
    return name


def _unit_of(function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], kind: type[Any]) -> Any:
    """Return the unit that a call is about."""
    call = inspect.signature(function).bind_partial(*args, **kwargs)
    call.apply_defaults()
    given: list[Any] = [*call.args, *call.kwargs.values()]
    while isinstance(function, partial):
        given = [*function.args, *given]
        function = function.func
    receiver = next(iter(given), None) if inspect.isfunction(function) else getattr(function, "__self__", function)
    found = next((value for value in given if isinstance(value, Unit)), None)
    unit = getattr(receiver, "uow", None) if found is None else found
    if isinstance(unit, kind):
        return unit
    if isinstance(unit, Unit):
        asynchronous = kind is AsyncUnitOfWork
        raise Misuse(
            f"call {name}",
            repr(unit),
            f"it is {'a coroutine' if asynchronous else 'an ordinary'} function, and the unit is "
            f"{'synchronous' if asynchronous else 'asynchronous'}",
            "Make it an ordinary function." if asynchronous else "Make it a coroutine function, or pass uow.sync.",
        )
    raise DefinitionError(
        f"@transactional {name}",
        "no argument is a unit, and the first has no attribute `uow` that is one",
        "Pass the unit, or keep it in `self.uow`.",
    )
