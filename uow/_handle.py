"""
A unit object as a handle: on nothing yet, or on a scope of an entered unit.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, cast

from attrs import evolve

from uow.domain import Repository, open_units

from ._branches import Resource
from ._commit import commit
from ._context import Context
from ._declarations import RepositoryAttribute, declare
from ._gateways import CheckedGateway
from ._options import Options, OptionValues
from ._outcomes import Outcomes
from ._owner import here
from ._scope import Scope
from ._states import REFUSALS, State
from ._steps import Bridge, is_asynchronous
from ._transaction import Transaction
from ._work import OWN_UNIT, Settings
from .errors import ConfigurationError, ContradictoryOptions, Misuse, TransactionOwned, UnitOfWorkActive, WrongTask

__all__ = ["Handle"]

H = TypeVar("H", bound=Callable[[], object])


class Handle(ABC):
    """
    What is behind a unit's verbs. Each ``with`` binds the handle to a fresh scope.

    Args:
        settings: What the unit is made with.
    """

    _context: Context | None = None
    _scope: Scope | None = None
    _within: Context | None = None
    _beside: Context | None = None
    _borrower: tuple[int, object] | None = None
    _joins = False
    _label: str | None = None
    _bridge: Bridge | None = None
    _face: "weakref.ref[Any] | None" = None
    _make_face: Callable[[Any], Any] | None = None
    _explicit: frozenset[str] = frozenset()
    _name: str

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._name = cls.__name__
        declare(cls, adapter=not getattr(cls._begin, "__isabstractmethod__", False))

    # --------------------------------------------------------------------------------------------- what an adapter adds

    @abstractmethod
    def _begin(self) -> Transaction:
        """Make a fresh transaction for a root scope, with `_settings.options`; nothing is sent to the database yet."""

    def _check(self, options: Options) -> None:  # noqa: B027 - a database may be able to do everything
        """Raise ConfigurationError for what the database cannot do."""

    @abstractmethod
    def _database(self) -> object:
        """Return what tells one database from another: units on the same one can be joined."""

    @abstractmethod
    def _outcomes(self) -> Outcomes:
        """Return the database as one that can be asked from outside a unit."""

    @abstractmethod
    def _resource(self) -> Resource:
        """Return the database as one of a distributed transaction."""

    @abstractmethod
    def _place(self) -> object:
        """Return what is equal for units on the same database, whoever opened it."""

    def _demand_possible(self) -> None:
        """Raise what the database cannot do of what the unit is made with. An adapter calls it when that is known."""
        self._check(self._settings.options)
        outcome = self._settings.outcome
        if outcome != "none" and outcome not in (modes := self._outcomes().modes):
            raise ConfigurationError(
                f"outcome={outcome!r} is not to be had here", f"Use one of {', '.join(map(repr, modes))}."
            )

    # ------------------------------------------------------------------------------------------- entering and leaving

    def _enter(self) -> None:
        """Open the scope that this handle is for."""
        if self._demand_ours("enter the block") and self._scope is not None:
            refusal = REFUSALS[State.ACTIVE]
            raise refusal.error("enter the block", self._scope.title, refusal.reason, refusal.hint)
        context = self._around() if self._joins else self._within
        if context is None:
            context = Context(self, self._name, self._begin(), self._settings, self._bridge)
            self._context, self._scope = context, context.root
        else:
            if self._joins:
                self._demand_agreement(context)
            self._scope = context.open(self, self._label, joined=self._joins)
            self._context = context

    def _enters_at_once(self) -> bool:
        """Tell whether entering the block waits for nothing."""
        context = self._within
        return context is None or context.closed or context.transaction.at_rest

    def _leaves_at_once(self) -> bool:
        """Tell whether leaving the block in peace waits for nothing: it has ended, or did nothing."""
        context, scope = self._context, self._scope
        if context is None or scope is None or scope.left or context.innermost is not scope:
            return False
        nested = scope is not context.root
        if not scope.state.open:
            return context.closed or nested
        return (
            nested
            and not context.closed
            and scope.state is State.ACTIVE
            and context.transaction.at_rest
            and context.transaction.savepoint_name(scope.level) is None
        )

    async def _leave(self, exc: BaseException | None) -> None:
        context = self._require("leave the block")
        context.demand_inside("leave the block")
        with context.alone("leave the block", wait=True):
            await context.leave(self._entered, exc)

    async def _commit(self) -> None:
        context = self._require("commit()")
        with context.alone("commit()"):
            context.demand_end(self._entered, "commit()")
            self._demand_alone("commit()")
            if self._entered.parent is None:
                await commit(context, self)
            else:
                await context.release(self._entered)

    async def _rollback(self) -> None:
        context = self._require("rollback()")
        with context.alone("rollback()"):
            context.demand_end(self._entered, "rollback()")
            self._demand_alone("rollback()")
            await context.roll_back(self._entered, None)

    def _demand_alone(self, operation: str) -> None:
        """Raise if the scope ends together with those of other units."""
        scope = self._entered
        if scope.group is not None:
            reason = f"it ends together with the others of the group {scope.group}"
            raise TransactionOwned(operation, scope.title, reason, f"Call {operation} of the group.")

    # ------------------------------------------------------------------------------------------------- other handles

    def for_handler(self, handler: Callable[..., object]) -> Any:
        """Return what *handler* is given: a coroutine function the asynchronous face, where there is one."""
        return (is_asynchronous(handler) and self._other_side()) or self

    def _other_side(self) -> Any:
        """Return the asynchronous face of this unit, made again if nobody has kept it; None if it has none."""
        face = self._face and self._face()
        return self._make_face(self) if face is None and self._make_face is not None else face

    def _another(self, **changes: Any) -> Self:
        """Return a fresh handle that is made like this one."""
        unit = object.__new__(type(self))
        vars(unit).update(vars(self) | _FRESH | changes)
        return unit

    def _inside(self, context: Context, name: str, options: OptionValues) -> Self:
        """Return a nested unit in *context*, which another handle entered."""
        unit = self._another(_within=context, _label=name, _settings=self._with(options), _explicit=frozenset(options))
        unit._demand_agreement(context)
        return unit

    def _demand_ours(self, operation: str) -> bool:
        """Tell whether this handle is in a scope; raise if that scope belongs to somebody else."""
        context, scope = self._context, self._scope
        if context is None or scope is None or scope.left:
            return False
        if (stranger := context.owner.stranger()) is not None:
            raise WrongTask(operation, scope.title, stranger, OWN_UNIT)
        return True

    @contextmanager
    def _standing_for(self, other: Self) -> Generator[None]:
        """Let this handle be *other*, which was entered, for as long as a function runs that knows this one."""
        self._demand_ours("open a scope")
        borrower = here()
        if self._borrower not in (None, borrower):
            reason = "a function in another thread or task has it stand for its own scope"
            raise WrongTask("open a scope", repr(self), reason, OWN_UNIT)
        before = self._context, self._scope, self._borrower
        self._context, self._scope, self._borrower = other._context, other._scope, borrower
        try:
            yield
        finally:
            self._context, self._scope, self._borrower = before

    def _with(self, options: OptionValues) -> Settings:
        if not options:
            return self._settings
        settings = evolve(self._settings, options=Options(**options))
        self._check(settings.options)
        return settings

    def _around(self) -> Context | None:
        """Return the innermost open unit of this task that is of the same class and on the same database."""
        mine = [unit for unit in self._contexts() if unit.kind is type(self) and unit.database is self._database()]
        own = self._context or self._beside
        if own is not None and own.usable:  # perhaps handed over from a thread whose variables are not here
            mine.append(own)
        return max(mine, key=lambda unit: unit.root.entered, default=None)

    @staticmethod
    def _contexts() -> Iterator[Context]:
        """Yield the open units of this thread and task, innermost first."""
        return (unit for unit in open_units() if isinstance(unit, Context))

    def _demand_agreement(self, context: Context) -> None:
        """Raise if the unit to be joined was made with other options than this one asks for."""
        mine, given = self._settings.options, context.options
        asked = mine.asked() | {name: getattr(mine, name) for name in self._explicit}
        wrong = {name: value for name, value in asked.items() if value != getattr(given, name)}
        if wrong:
            raise ContradictoryOptions(
                "join the unit around it",
                context.innermost.title,
                f"it asks for {Options.words(wrong)}, and that one was made with {Options.words(given.asked())}",
                "Ask for the same, or open an independent() unit.",
            )
        for name in ("handlers", "observers", "strict", "handoff", "outcome"):
            mine = getattr(self._settings, name)
            if mine and mine != "none" and mine != getattr(context.settings, name):
                raise ContradictoryOptions(
                    "join the unit around it",
                    context.innermost.title,
                    f"it was made with {name}={mine!r}, which that one does not have, so it would have no effect",
                    "Make both with the same, or open an independent() unit.",
                )

    def _demand_outermost(self, operation: str) -> None:
        """Raise if a unit is open around this one."""
        around = next(self._contexts(), None) or self._around()
        if around is not None:
            raise UnitOfWorkActive(
                operation,
                self._name,
                f"{around.innermost.title} is open around it, and another attempt could not do that one's work again",
                "Retry the outermost unit.",
            )

    def _require(self, operation: str) -> Context:
        """Return the context that this handle was entered in."""
        if self._context is None:
            raise self._outside(operation)
        return self._context

    def _repository(self, attribute: RepositoryAttribute) -> Repository[Any]:
        """Return this unit's repository, made when first asked for."""
        context = self._usable(attribute.operation)
        repository: Repository[Any] | None = context.repositories.get(attribute)
        if repository is None:
            gateway = CheckedGateway(attribute.name, context, context.transaction.gateway(attribute.entity))
            repository = context.repositories[attribute] = cast("Repository[Any]", attribute.repository(gateway))
        return repository

    def _usable(self, operation: str, *, awaited: bool = False) -> Context:
        """Return the context if work may be done now through this handle, or if *awaited* through its other face."""
        context, scope = self._context, self._scope
        if context is None or scope is None or scope.left:
            raise self._outside(operation)
        context.check(operation, awaited=awaited)
        return context

    def _register(self, hook: H, kind: str) -> H:
        self._usable(f"register a hook with {kind}()").register(hook, kind)
        return hook

    @property
    def _entered(self) -> Scope:
        if self._scope is None:
            raise self._outside("use it")
        return self._scope

    def _outside(self, operation: str) -> Misuse:
        refusal = REFUSALS[State.NEW]
        return refusal.error(operation, self._name, refusal.reason, refusal.hint)


_FRESH = {
    name: getattr(Handle, name)
    for name in ("_context", "_scope", "_within", "_beside", "_label", "_face", "_joins", "_borrower", "_explicit")
}
"""What a fresh handle does not take over from the one that it is like."""
