"""
Whole units, done again after a transient error.
"""

import inspect
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, Self, TypeVar

from attrs import asdict, fields, frozen

from ._states import State
from .errors import ConfigurationError, InvalidArgument, Misuse, UnitOfWorkError

if TYPE_CHECKING:  # the core needs attrs alone
    import stamina

__all__ = ["AsyncAttempt", "AsyncAttempts", "Attempt", "Attempts", "Retry", "finished", "run", "run_async"]

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


@frozen
class Retry:
    """
    How often and how soon a unit is done again after a transient error.

    The pause before the next attempt is ``wait_initial * wait_exp_base ** (attempts made - 1)`` seconds and a random
    part up to *wait_jitter*, at most *wait_max*.

    Args:
        attempts: How many there are in all; None for any number.

        timeout: After how many seconds in all no further one begins; None for never.

        wait_initial: The first pause, in seconds.

        wait_max: The longest pause, in seconds.

        wait_jitter: The largest random part of a pause, in seconds.

        wait_exp_base: How much longer each pause is than the one before.

    Raises:
        uow.errors.ConfigurationError: A value that means nothing.
    """

    attempts: int | None = 10
    timeout: float | None = 45.0
    wait_initial: float = 0.02
    wait_max: float = 2.0
    wait_jitter: float = 0.05
    wait_exp_base: float = 2.0

    def __attrs_post_init__(self) -> None:
        for attribute in fields(Retry):
            value, (fits, hint) = getattr(self, attribute.name), _VALID.get(attribute.name, _SECONDS)
            if isinstance(value, bool) or not fits(value):
                raise ConfigurationError(f"{attribute.name} of Retry is {value!r}", hint)


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


_SECONDS: tuple[Callable[[Any], bool], str] = (
    lambda value: _number(value) and value >= 0,
    "Pass a number of seconds, 0 or more.",
)
_VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    "attempts": (
        lambda value: value is None or (isinstance(value, int) and value >= 1),
        "Pass a whole number, 1 or more, or None for no limit.",
    ),
    "timeout": (
        lambda value: value is None or (_number(value) and value > 0),
        "Pass a number of seconds above 0, or None for no limit.",
    ),
    "wait_exp_base": (lambda value: _number(value) and value >= 1, "Pass a number, 1 or more."),
}


# ---------------------------------------------------------------------------------------------------------- one attempt


class _Retried(Protocol):
    """
    A unit, or a group of units.
    """

    @property
    def state(self) -> State: ...

    def _demand_outermost(self, operation: str) -> None: ...


class _Unit(_Retried, Protocol[E_co]):
    """
    A synchronous one, and what ``with`` gives.
    """

    def __enter__(self) -> E_co: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def commit(self) -> None: ...


class _AsyncUnit(_Retried, Protocol[E_co]):
    """
    An asynchronous one, and what ``async with`` gives.
    """

    async def __aenter__(self) -> E_co: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def commit(self) -> None: ...


T = TypeVar("T", bound=_Retried)


class _Attempt(Generic[T]):
    """
    One attempt: the unit, entered once, and what it ended with.

    Args:
        unit: The unit.

        native: What stamina calls an attempt.
    """

    def __init__(self, unit: T, native: "stamina.Attempt") -> None:
        self.number = native.num
        """How many attempts there were, this one included."""
        self.unit = unit
        self.native = native
        self.entered = self.left = False
        self.failure: UnitOfWorkError | None = None

    def enter(self) -> T:
        """Return the unit to enter."""
        if self.entered:
            raise self.misuse(
                f"enter attempt {self.number}",
                "it was entered before",
                "Let the loop make the next one; a scope inside is opened with nested().",
            )
        self.entered = True
        return self.unit

    def settle(self, error: BaseException | None) -> bool:
        """Tell whether the unit is done again after *error*, which left the block; stamina then gets to know of it."""
        if not isinstance(error, UnitOfWorkError) or not error.transient:
            return False
        if self.unit.state is not State.ROLLED_BACK:  # it is another unit's error: this one's work is durable
            return False
        self.failure = error
        self.native.__exit__(type(error), error, error.__traceback__)
        return True

    def misuse(self, operation: str, reason: str, hint: str) -> Misuse:
        """Make the error for an attempt that is used wrongly."""
        return Misuse(operation, type(self.unit).__name__, reason, hint)


class Attempt(_Attempt[_Unit[E]]):
    """
    One attempt of ``for attempt in uow.attempts()``; ``with attempt as uow:`` enters the unit anew.
    """

    def __enter__(self) -> E:
        return self.enter().__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.left = True
        # What it raises by itself goes to the caller: after `return` in the block nobody asks for another attempt.
        self.unit.__exit__(exc_type, exc, traceback)
        return self.settle(exc)


class AsyncAttempt(_Attempt[_AsyncUnit[E]]):
    """
    One attempt of ``async for attempt in uow.attempts()``; ``async with attempt as uow:`` enters the unit anew.
    """

    async def __aenter__(self) -> E:
        return await self.enter().__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.left = True
        await self.unit.__aexit__(exc_type, exc, traceback)  # see Attempt.__exit__
        return self.settle(exc)


# ------------------------------------------------------------------------------------------------------------- the loop


class _Context(Protocol):
    """
    What ``stamina.retry_context()`` returns.
    """

    def __iter__(self) -> "Iterator[stamina.Attempt]": ...

    def __aiter__(self) -> "AsyncIterator[stamina.Attempt]": ...


class _Loop(Generic[T]):
    """
    A loop over attempts; what both faces have in common.

    Args:
        unit: The unit.

        retry: How often and how soon.
    """

    last: _Attempt[T] | None = None

    def __init__(self, unit: T, retry: Retry) -> None:
        self.unit = unit
        self.retry = retry

    def begin(self) -> _Context:
        """Begin the loop anew."""
        self.unit._demand_outermost("retry")  # pyright: ignore[reportPrivateUsage]
        try:
            from stamina import retry_context
        except ModuleNotFoundError as error:
            msg = "To do units again needs stamina, which is not installed. Install uow[retry]."
            raise ModuleNotFoundError(msg, name=error.name) from error
        self.last = None
        self.began = time.monotonic()
        # `settle` decides which errors stamina sees at all, so that the others leave the block at once and unchanged.
        return retry_context(on=UnitOfWorkError, **asdict(self.retry))

    def over(self) -> bool:
        """Tell whether the last attempt was the last one needed."""
        if self.last is None or self.last.failure is not None:
            return False
        if not self.last.left:
            raise self.last.misuse(
                "go on to the next attempt",
                f"attempt {self.last.number} was not {'left' if self.last.entered else 'entered'}",
                "Let `with attempt as uow:` be the body of the loop, `async with` in `async for`.",
            )
        return True

    def give_up(self, error: BaseException) -> None:
        """Say in *error* that there is no further attempt, if it is what the last one failed with."""
        last, self.last = self.last, None
        if last is not None and last.failure is error:
            seconds = time.monotonic() - self.began
            error.add_note(f"Gave up after {last.number} attempt{'s' * (last.number > 1)} in {seconds:.2f} s.")

    def __del__(self) -> None:
        if self.last is not None and self.last.failure is not None:
            warnings.warn(
                f"The loop over the attempts of {type(self.unit).__name__} was left after attempt {self.last.number} "
                f"failed, and its work is lost: {self.last.failure}. Put `break`, `return` and whatever needs the work "
                f"into the `with` block.",
                RuntimeWarning,
                source=self,
                stacklevel=2,
            )


class Attempts(_Loop[_Unit[E]]):
    """
    What ``uow.attempts()`` returns: ``for attempt in uow.attempts(): with attempt as uow: …; uow.commit()``.
    """

    source: "Iterator[stamina.Attempt]"

    def __iter__(self) -> Self:
        self.source = iter(self.begin())
        return self

    def __next__(self) -> Attempt[E]:
        if self.over():
            raise StopIteration
        try:
            native = next(self.source)
        except BaseException as error:
            self.give_up(error)
            raise
        attempt = self.last = Attempt(self.unit, native)
        return attempt


class AsyncAttempts(_Loop[_AsyncUnit[E]]):
    """
    What ``uow.attempts()`` returns: ``async for attempt in uow.attempts(): async with attempt as uow: …``.
    """

    source: "AsyncIterator[stamina.Attempt]"

    def __aiter__(self) -> Self:
        self.source = aiter(self.begin())
        return self

    async def __anext__(self) -> AsyncAttempt[E]:
        if self.over():
            raise StopAsyncIteration
        try:
            native = await anext(self.source)
        except BaseException as error:
            self.give_up(error)
            raise
        attempt = self.last = AsyncAttempt(self.unit, native)
        return attempt


# ----------------------------------------------------------------------------------------------------- work as one unit


def run(unit: _Unit[object], retry: Retry, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call *work* as one whole unit and commit; after a transient error, do both again."""
    results: list[R] = []
    for attempt in Attempts(unit, retry):
        with attempt:
            results.append(finished("run()", work(*args, **kwargs)))
            if unit.state.open:  # the work may have ended it by itself
                unit.commit()
    return results[-1]


async def run_async(
    unit: _AsyncUnit[object],
    retry: Retry,
    work: Callable[P, Coroutine[Any, Any, R]],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Await *work* as one whole unit and commit; after a transient error, do both again."""
    results: list[R] = []
    async for attempt in AsyncAttempts(unit, retry):
        async with attempt:
            results.append(finished("run()", await work(*args, **kwargs)))
            if unit.state.open:
                await unit.commit()
    return results[-1]


def finished(operation: str, result: R) -> R:
    """Return what the work returned, unless it would do the work only later, outside the unit."""
    if inspect.iscoroutine(result):
        result.close()
    elif not inspect.isgenerator(result) and not inspect.isasyncgen(result):
        return result
    raise InvalidArgument(
        operation,
        f"the work returned {result!r}, which has not done anything yet",
        "Pass a function that has done the work when it returns; a coroutine function to an asynchronous unit.",
    )
