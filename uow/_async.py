"""
The asynchronous face of the port: the same core, awaited.
"""

# pyright: reportPrivateUsage=false
# The face is the other half of the unit.

import asyncio
import inspect
import types
import weakref
from abc import ABC
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, Self, TypeVar, Unpack, cast, overload

from uow.domain import Event, Repository

from ._async_repositories import AsyncRepository
from ._bridges import DirectBridge, directly
from ._context import Context
from ._declarations import RepositoryAttribute, annotations_of, attribute_for, attributes_of_unit
from ._options import OptionValues
from ._retries import AsyncAttempts, Retry, finished, run_async
from ._scope import Status
from ._states import State
from ._steps import Bridge, Steps, finish, is_asynchronous, scope_ending, shielded
from ._unit import UnitOfWork
from .errors import ConfigurationError, DefinitionError, Misuse

__all__ = ["AsyncUnitOfWork"]

F = TypeVar("F", bound="AsyncUnitOfWork")
P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Callable[[], object])


class AsyncUnitOfWork(ABC):
    """
    A unit of work that is awaited: the asynchronous face of a `UnitOfWork`, with the same rules.

    Subclass it with annotations for the application's repositories, and with ``sync`` for the synchronous port that it
    is the face of, if there is one. An adapter is one line:
    ``class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...``.

    .. code-block:: python

        class AsyncBank(AsyncUnitOfWork):
            sync: Bank
            accounts: AsyncRepository[Account]

    Hooks and handlers may be coroutine functions. A handler that is one is given this unit, and a plain function the
    synchronous side of it.

    Args:
        arguments: What the adapter's synchronous unit takes.

        options: What every unit takes: see `UnitOfWork`.
    """

    _adapter: ClassVar[type[UnitOfWork] | None] = None
    _bridge: ClassVar[Bridge] = DirectBridge()
    _core_class: ClassVar[type[UnitOfWork]]
    _core: UnitOfWork

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._bind(self._core_class(*arguments, **options))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, annotation in annotations_of(cls):
            made = _side(cls, annotation) if name == "sync" else attribute_for(cls, name, annotation, AsyncRepository)
            setattr(cls, name, made)
        if cls._adapter is not None:
            cls._core_class = _core_class(cls, cls._adapter)

    def _bind(self, core: UnitOfWork) -> Self:
        values = {name: value for name, value in vars(self).items() if name != "_core"}
        self._core = core
        core._face, core._make_face = weakref.ref(self), partial(_face_of, type(self), values)
        return self

    # ------------------------------------------------------------------------------------------------------ scopes

    async def __aenter__(self) -> Self:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is None:
            raise ConfigurationError(
                f"{type(self).__name__} was entered where no asyncio task runs",
                "Run it on asyncio, or on anyio's asyncio backend; SQLAlchemy's drivers know no other event loop.",
            )
        if self._core._enters_at_once():
            directly(self._core.__enter__)
        else:
            await self._bridge.call(self._core.__enter__)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None and self._core._leaves_at_once():
            directly(finish, self._core._leave(None))
        else:
            await self._end(self._core._leave(exc))

    def nested(self, name: str | None = None) -> Self:
        """
        Return a unit inside this one, backed by a savepoint; see `UnitOfWork.nested`.
        """
        return self._another(self._core.nested(name))

    def joined(self, name: str | None = None, **options: Unpack[OptionValues]) -> Self:
        """
        Return a unit that joins the innermost open one of this task; see `UnitOfWork.joined`.
        """
        return self._another(self._core.joined(name, **options))

    def independent(self, **options: Unpack[OptionValues]) -> Self:
        """
        Return a unit like this one with a transaction of its own; see `UnitOfWork.independent`.
        """
        return self._another(self._core.independent(**options))

    async def commit(self) -> None:
        """
        Make the work durable; see `UnitOfWork.commit`.

        A cancellation that comes while COMMIT is on its way is raised when its answer is there: `state` tells it.
        """
        await self._end(self._core._commit())

    async def rollback(self) -> None:
        """
        Undo the work and end the scope; see `UnitOfWork.rollback`.
        """
        await self._end(self._core._rollback())

    async def flush(self) -> None:
        """
        Write what is pending now; see `UnitOfWork.flush`.
        """
        await self._bridge.call(self._core.flush)

    async def once(self, key: str) -> None:
        """
        Let the work of this scope be done at most once under *key*; see `UnitOfWork.once`.
        """
        await self._bridge.call(self._core.once, key)

    async def resolve(self, token: str, *, timeout: float = 10.0) -> State:
        """
        Find out what became of the unit whose commit was in doubt; see `UnitOfWork.resolve`.
        """
        return await self._bridge.call(self._core.resolve, token, timeout=timeout)

    def attempts(self, retry: Retry | None = None) -> AsyncAttempts[Self]:
        """
        Yield attempts at this unit until one is not ended by a transient error; see `UnitOfWork.attempts`.

        .. code-block:: python

            async for attempt in bank.attempts():
                async with attempt as uow:
                    ...
                    await uow.commit()
        """
        return AsyncAttempts(self, retry or self._core._retry)  # type: ignore[arg-type]  # mypy does not see what Self is there

    @overload
    async def run(self, work: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def run(self, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def run(self, work: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """
        Inside the block, call synchronous *work* in it; otherwise do *work* as one whole unit, like `UnitOfWork.run`.

        Synchronous work is a service or repository that was written once for both faces: it finds the unit as
        ``current(Bank)``, and what it does to the database is awaited.

        Args:
            work: What to call, with the other arguments; outside the block it may be a coroutine function.
        """
        asynchronous = is_asynchronous(work)
        if not self.state.open:
            whole = work if asynchronous else partial(self._call, work)
            return await run_async(self, self._core._retry, cast("Any", whole), *args, **kwargs)
        self._core._usable("run()", awaited=True)
        if asynchronous:
            raise Misuse("run()", repr(self), f"{work!r} is a coroutine function", "Await it: it is inside the unit.")
        return finished("run()", await self._call(work, *args, **kwargs))

    async def _call(self, work: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call synchronous work; the end of a unit that it opens must not be cut off."""
        return await shielded(self._bridge.call(work, *args, **kwargs), scope_ending, to_the_end=False)

    # ----------------------------------------------------------------------------------------------- hooks and events

    def before_commit(self, hook: H) -> H:
        """
        Run *hook* inside the transaction, right before the root commits; see `UnitOfWork.before_commit`.
        """
        return directly(self._core.before_commit, hook)

    def after_commit(self, hook: H) -> H:
        """
        Run *hook* once the root is durable and its connection is back in the pool.
        """
        return directly(self._core.after_commit, hook)

    def after_rollback(self, hook: H) -> H:
        """
        Run *hook* when the scope, or the one that it was released to, was rolled back.
        """
        return directly(self._core.after_rollback, hook)

    def record(self, event: Event) -> None:
        """
        Record an *event* that belongs to no aggregate.
        """
        directly(self._core.record, event)

    # -------------------------------------------------------------------------------------------------------- status

    @property
    def state(self) -> State:
        """
        The state of this unit's scope; of the last one when it was left.
        """
        return self._core.state

    def status(self) -> Status:
        """
        Return where this unit is; asks the database nothing.
        """
        return self._core.status()

    def __repr__(self) -> str:
        return repr(self._core)

    # --------------------------------------------------------------------------------------------------- for adapters

    def _repository(self, attribute: RepositoryAttribute) -> AsyncRepository[Any]:
        """Return this unit's repository."""
        made = self._core._usable(attribute.operation, awaited=True).repositories
        repository: AsyncRepository[Any] | None = made.get(attribute)
        if repository is None:
            sync = directly(getattr, self._core, attribute.name)
            repository = made[attribute] = cast("AsyncRepository[Any]", attribute.repository(sync, self._bridge))
        return repository

    def _another(self, core: UnitOfWork) -> Self:
        """Return a fresh handle over *core*."""
        return _face_of(type(self), vars(self), core)

    def _inside(self, context: Context, name: str, options: OptionValues) -> Self:
        """Return a nested unit in *context*, which another handle entered."""
        return self._another(self._core._inside(context, name, options))

    async def _end(self, steps: Steps[None]) -> None:
        """Take steps of which some must not be cut off."""
        try:
            await shielded(self._bridge.drive(steps), scope_ending)
        except asyncio.CancelledError as error:
            error.add_note(f"{self!r}")
            raise

    def _demand_outermost(self, operation: str) -> None:
        self._core._demand_outermost(operation)


def _face_of(kind: type[F], values: dict[str, Any], core: UnitOfWork) -> F:
    """Return a fresh handle over *core*."""
    unit = object.__new__(kind)
    vars(unit).update(values)
    return unit._bind(core)


class _Side:
    """
    The descriptor behind ``sync: Bank``.

    Args:
        port: The synchronous port, or one of its adapters.
    """

    def __init__(self, port: type[UnitOfWork]) -> None:
        self.port = port

    def __get__(self, unit: Any, owner: type | None = None) -> Any:
        return self if unit is None else unit._core


def _side(cls: type, annotation: object) -> _Side:
    if not isinstance(annotation, type) or not issubclass(annotation, UnitOfWork):
        raise DefinitionError(
            f"{cls.__name__}.sync",
            f"it is annotated with {annotation!r}, which is no UnitOfWork",
            "Annotate it with the synchronous port that this one is the face of, such as Bank.",
        )
    return _Side(annotation)


def _core_class(cls: type[AsyncUnitOfWork], adapter: type[UnitOfWork]) -> type[UnitOfWork]:
    """Return the synchronous unit behind *cls*: its ``sync`` port on *adapter*, and what that one does not declare."""
    side = inspect.getattr_static(cls, "sync", None)
    port = side.port if isinstance(side, _Side) else UnitOfWork
    declared = {attribute.name: attribute for attribute in attributes_of_unit(port)}
    missing: dict[str, Any] = {}
    for attribute in attributes_of_unit(cls):
        known = declared.get(attribute.name)
        if known is None and port is UnitOfWork:
            missing[attribute.name] = Repository[attribute.entity]  # type: ignore[name-defined]
        elif known is None or known.entity is not attribute.entity:
            raise DefinitionError(
                f"{cls.__name__}.{attribute.name}",
                f"{port.__name__}, its synchronous side, has no repository of {attribute.entity.__name__} of that name",
                f"Declare it in {port.__name__}, or annotate {cls.__name__}.sync with the port that has it.",
            )
    bases = (port,) if issubclass(port, adapter) else (adapter, port)
    namespace = {"__module__": cls.__module__, "__annotations__": missing, "_bridge": cls._bridge}
    return cast("type[UnitOfWork]", types.new_class(cls.__name__, bases, {}, lambda body: body.update(namespace)))
