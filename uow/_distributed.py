"""
Several units whose work is kept in all of their databases or in none.
"""

# pyright: reportPrivateUsage=false
# A group is the handle of several units, as a unit is of one.

import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, TypeVarTuple, cast, overload

from attrs import define, field, frozen

from ._async import AsyncUnitOfWork
from ._branches import Resource, demand_name, last_agent_of, new_id
from ._bridges import DirectBridge, directly
from ._commit import resolve
from ._group import Group, Member
from ._handle import Handle
from ._hooks import Calls
from ._retries import AsyncAttempts, Attempts, Retry, run, run_async
from ._scope import Status
from ._states import REFUSALS, State
from ._steps import Bridge, Steps, finish, scope_ending, shielded
from ._unit import UnitOfWork
from .errors import ConfigurationError, InvalidArgument

__all__ = ["AsyncDistributed", "Distributed", "DistributedStatus", "distributed"]

P = ParamSpec("P")
R = TypeVar("R")
U = TypeVar("U", bound=UnitOfWork)
A = TypeVar("A", bound=AsyncUnitOfWork)
Us = TypeVarTuple("Us")

# The state of a group is the first of these that one of its units is in.
_ORDER = (
    State.IN_DOUBT,
    State.DOOMED,
    State.BROKEN,
    State.COMMITTING,
    State.ACTIVE,
    State.ROLLED_BACK,
    State.RELEASED,
    State.COMMITTED,
    State.NEW,
)


@frozen
class DistributedStatus:
    """
    Where a group is.

    Args:
        state: Its state: that of the unit which is worst off.

        id: The distributed transaction.

        last_agent: The name of the database that decides, if more than one writes.

        units: Where each unit is.
    """

    state: State
    id: str
    last_agent: str
    units: tuple[Status, ...]


@overload
def distributed(first: U, /, *others: *Us, domain: str = ...) -> "Distributed[U, *Us]": ...
@overload
def distributed(first: A, /, *others: *Us, domain: str = ...) -> "AsyncDistributed[A, *Us]": ...
def distributed(
    first: U | A,  # pyright: ignore[reportInvalidTypeVarUse]  # the overloads relate them to the result
    /,
    *others: *Us,  # pyright: ignore[reportInvalidTypeVarUse]
    domain: str = "uow",
) -> Any:
    """
    Return a group of units whose work is kept in all of their databases or in none, by two-phase commit.

    .. code-block:: python

        both = distributed(bank, stock)
        with both as (bank, stock):
            bank.accounts.get("A-1").withdraw(30)
            stock.items.add(Item("I-1"))
            both.commit()

    One of the databases decides: the one that cannot prepare a transaction, or else PostgreSQL, or else MariaDB. Where
    only one was written to, there is a plain commit. What a crash leaves behind is ended by recovery.

    Args:
        first: A unit that is not active, on a database of its own.

        others: More of them; all synchronous, or all asynchronous.

        domain: What the ids of these transactions begin with; recovery looks after one domain. 1 to 12 letters, digits,
            ``-`` and ``_``.

    Raises:
        uow.errors.ConfigurationError: They cannot commit as one; it says which setting to change. What only the
            database can tell, a group of asynchronous units finds out when it is first entered.
    """
    units: tuple[Any, ...] = (first, *others)
    if all(isinstance(unit, AsyncUnitOfWork) for unit in units):
        return AsyncDistributed[Any]._of(units, domain)
    if all(isinstance(unit, UnitOfWork) for unit in units):
        return Distributed[Any]._of(units, domain)
    raise ConfigurationError(
        f"{', '.join(map(repr, units))} cannot be a group of units",
        "Pass units that are all synchronous, or all asynchronous.",
    )


# ------------------------------------------------------------------------------------------------ who can be in a group


@define(eq=False)
class _Party:
    """
    The units of a group before it is entered, and the database that decides for them.

    Args:
        units: The units; the synchronous sides of asynchronous ones.

        domain: What the ids begin with.

        bridge: How asynchronous units are run; None for synchronous ones.
    """

    units: Sequence[Handle]
    domain: str
    bridge: Bridge | None
    resources: Sequence[Resource] = field(init=False)
    last: int | None = None

    def __attrs_post_init__(self) -> None:
        demand_name("domain", self.domain)
        self.resources = [unit._resource() for unit in self.units]
        for unit, resource in zip(self.units, self.resources, strict=True):
            demand_name(f"database of {unit._name}", resource.name)
        if len(self.units) < 2:
            raise ConfigurationError(f"{self.title} is alone in its group", "Enter the unit itself.")
        _demand_different(self.units, self.resources)
        for unit in self.units:
            _demand_member(unit)

    @property
    def title(self) -> str:
        """What errors call the group."""
        return " and ".join(unit._name for unit in self.units)

    def settle_roles(self) -> int:
        """Return which one is the last agent; the databases are asked once, whether they can do their parts."""
        if self.last is None:
            databases = [unit._database() for unit in self.units]
            last = _last_agent(self.resources, databases)
            for resource, database in zip(self.resources, databases, strict=True):
                _demand_ready(resource, database, prepares=resource is not self.resources[last])
            self.last = last
        return self.last


def _demand_different(units: Sequence[Handle], resources: Sequence[Resource]) -> None:
    for number, unit in enumerate(units):
        for other in range(number):
            if units[other]._place() == unit._place():
                raise ConfigurationError(
                    f"{units[other]._name} and {unit._name} are on the same database",
                    "Declare the repositories of both in one unit, whose commit needs no second phase.",
                )
            if resources[other].name == resources[number].name:
                raise ConfigurationError(
                    f"the databases of {units[other]._name} and {unit._name} are both called "
                    f"{resources[number].name!r}",
                    "Make one of the units with resource='another name'; it must stay the same for ever.",
                )


def _demand_member(unit: Handle) -> None:
    if unit._joins or unit._within is not None:
        raise ConfigurationError(f"{unit!r} is a part of another unit", "Pass the unit itself.")
    if unit._settings.options.read_only:
        raise ConfigurationError(f"{unit._name} is read-only, and has nothing to commit", "Enter it by itself.")


@define(eq=False)
class _Known:
    """
    What a database said of itself.
    """

    rank: int | None = None
    roles: set[bool] = field(factory=set[bool])


_mutex = threading.Lock()
_known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()


def _known_of(database: object) -> _Known:
    with _mutex:
        return _known.setdefault(database, _Known())


def _last_agent(resources: Sequence[Resource], databases: Sequence[object]) -> int:
    ranks: list[int] = []
    for resource, database in zip(resources, databases, strict=True):
        known = _known_of(database)
        known.rank = resource.rank if known.rank is None else known.rank
        ranks.append(known.rank)
    if ranks.count(0) > 1:
        _demand_one_that_cannot([resource for resource, rank in zip(resources, ranks, strict=True) if rank == 0])
    return ranks.index(min(ranks))


def _demand_one_that_cannot(resources: Sequence[Resource]) -> None:
    """Raise what all of them say who cannot prepare: to change one of them may be enough."""
    problems: list[ConfigurationError] = []
    for resource in resources:
        try:
            resource.demand_ready(prepares=True)
        except ConfigurationError as error:
            problems.append(error)
    told = "; ".join(f"{error.problem} ({error.hint})" for error in problems)
    raise ConfigurationError(
        f"{len(resources)} of the databases cannot prepare a transaction: {told}",
        "One such database can be in a group, the one that decides.",
    )


def _demand_ready(resource: Resource, database: object, *, prepares: bool) -> None:
    roles = _known_of(database).roles
    if prepares not in roles:
        resource.demand_ready(prepares=prepares)
        roles.add(prepares)


# ------------------------------------------------------------------------------------------------------ what both share


class _Handles(Generic[*Us]):
    """
    What is behind the verbs of a group, for both faces.
    """

    _party: _Party
    _units: tuple[*Us]
    _cores: Sequence[Handle]
    _group: Group | None = None
    _around: Group | None = None

    @classmethod
    def _make(cls, units: tuple[Any, ...], cores: Sequence[Handle], party: _Party) -> Self:
        group = object.__new__(cls)
        group._units = cast("Any", units)
        group._party = party
        group._cores = cores
        return group

    def _enter(self) -> None:
        """Open a scope in every unit; if one cannot be entered, leave the others."""
        last = self._party.settle_roles()
        around = self._around
        if around is None and self._group is not None and self._group.members[0].scope.state.open:
            refusal = REFUSALS[State.ACTIVE]
            raise refusal.error("enter the block", self._party.title, refusal.reason, "Use nested() inside it.")
        id = new_id(self._party.domain, self._party.resources[last].name) if around is None else around.id
        members: list[Member] = []
        try:
            for core, resource in zip(self._cores, self._party.resources, strict=True):
                members.append(self._enter_unit(core, resource))
            if around is None:
                for number, member in enumerate(members):
                    member.context.transaction.enlist(id, member.name, decides=number == last)
        except BaseException as error:
            for member in reversed(members):
                finish(member.context.leave(member.scope, error))
            raise
        self._group = Group(id, self._party.title, members, members[last])

    def _enter_unit(self, core: Handle, resource: Resource) -> Member:
        core._enter()
        context, scope = core._context, core._scope
        assert context is not None
        assert scope is not None
        scope.group = self._party.title
        if self._party.bridge is not None:
            context.bridge = self._party.bridge
            context.hooks = Calls(context.bridge, context.unit)
        return Member(core, context, scope, resource)

    async def _leave(self, error: BaseException | None) -> None:
        group = self._entered("leave the block")
        with self._alone(group, "leave the block", wait=True):
            await group.leave(error)

    async def _commit(self) -> None:
        group = self._ending("commit()")
        with self._alone(group, "commit()"):
            if self._around is None:
                await group.commit()
            else:
                await group.release()

    async def _rollback(self) -> None:
        group = self._ending("rollback()")
        with self._alone(group, "rollback()"):
            await group.roll_back(None)

    def _ending(self, operation: str) -> Group:
        group = self._entered(operation)
        for member in group.members:
            member.context.demand_end(member.scope, operation)
        return group

    @contextmanager
    def _alone(self, group: Group, operation: str, *, wait: bool = False) -> Generator[None]:
        with ExitStack() as stack:
            for member in group.members:
                stack.enter_context(member.context.alone(operation, wait=wait))
            yield

    def _entered(self, operation: str) -> Group:
        if self._group is None:
            refusal = REFUSALS[State.NEW]
            raise refusal.error(operation, self._party.title, refusal.reason, refusal.hint)
        return self._group

    def _nested(self, cores: Sequence[Handle], units: tuple[Any, ...]) -> Self:
        group = self._make(units, cores, self._party)
        group._around = self._entered("open a nested() scope")
        return group

    def _resolve(self, token: str, timeout: float) -> State:
        agents = {resource.name: resource for resource in self._party.resources}
        agent = agents.get(last_agent_of(token)) if token.count(".") == 4 else None
        if agent is None:
            raise InvalidArgument(
                "resolve()",
                f"{token!r} is no transaction that one of {', '.join(agents)} has decided",
                "Pass what CommitOutcomeUnknown.token is; the error names the unit to ask if it was only one.",
            )
        return resolve(agent, self._party.title, token, timeout)

    def _demand_outermost(self, operation: str) -> None:
        for core in self._cores:
            core._demand_outermost(operation)

    @property
    def state(self) -> State:
        """
        The state of the group: that of the unit which is worst off; of the last scope when it was left.
        """
        if self._group is None:
            return State.NEW
        return min((member.scope.state for member in self._group.members), key=_ORDER.index)

    def status(self) -> DistributedStatus:
        """
        Return where the group and its units are; asks the databases nothing.

        Raises:
            uow.errors.OutsideUnitOfWork: It was never entered.
        """
        group = self._entered("status()")
        units = tuple(member.unit.status() for member in group.members)
        return DistributedStatus(self.state, group.id, group.last.name, units)

    def __repr__(self) -> str:
        return f"<{self._party.title}: {self.state.value}>"


# -------------------------------------------------------------------------------------------------------- the two faces


class Distributed(_Handles[*Us]):
    """
    Several units that commit as one; see `distributed`. Each ``with`` opens a fresh scope in all of them.
    """

    @classmethod
    def _of(cls, units: tuple[Any, ...], domain: str) -> Self:
        party = _Party(units, domain, None)
        party.settle_roles()
        return cls._make(units, units, party)

    def __enter__(self) -> tuple[*Us]:
        self._enter()
        return self._units

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        finish(self._leave(exc))

    def nested(self, name: str | None = None) -> Self:
        """
        Return a group of nested units, backed by a savepoint in every database: kept in all, or rolled back in all.

        Args:
            name: What the log, `status()` and errors call it.
        """
        group = self._entered("open a nested() scope")
        units = tuple(member.unit.nested(name) for member in group.members)
        return self._nested(units, units)

    def commit(self) -> None:
        """
        Make the work durable in all databases; in a nested group release it to the group around.

        When it returned, the work is durable: what a database could not be told yet, it has prepared, and recovery
        tells it. Otherwise it raises: the original error, and the work is rolled back in all of them.

        Raises:
            uow.errors.UnitOfWorkRolledBack: A database error was swallowed in the block.

            uow.errors.NestedScopeOpen: A nested unit inside is still open; nothing changed.

            uow.errors.UnitOfWorkEnded: It ended before.

            uow.errors.SerializationFailure: It took too long, and recovery may have given it up.

            uow.errors.AfterCommitFailed: The work is durable, and a hook that ran afterwards failed.

            uow.errors.CommitOutcomeUnknown: The connection to the deciding database was lost, and it does not answer.
        """
        finish(self._commit())

    def rollback(self) -> None:
        """
        Undo the work in all databases and end the scope.

        Raises:
            uow.errors.NestedScopeOpen: A nested unit inside is still open; nothing changed.

            uow.errors.UnitOfWorkEnded: It ended before.
        """
        finish(self._rollback())

    def attempts(self, retry: Retry | None = None) -> Attempts[tuple[*Us]]:
        """
        Yield attempts at this group until one is not ended by a transient error; see `UnitOfWork.attempts`.

        .. code-block:: python

            for attempt in both.attempts():
                with attempt as (bank, stock):
                    ...
                    both.commit()

        Args:
            retry: How often and how long.
        """
        return Attempts(self, retry or Retry())

    def run(self, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Do *work* as one whole: enter, call, commit; all of it again after a transient error.

        Args:
            work: What to call, with the other arguments.
        """
        return run(self, Retry(), work, *args, **kwargs)

    def resolve(self, token: str, *, timeout: float = 10.0) -> State:
        """
        Find out what became of a group whose commit raised `uow.errors.CommitOutcomeUnknown` with *token*.

        Any group with the deciding database can tell; see `UnitOfWork.resolve`.

        Args:
            token: What the error had.

            timeout: How long to try, in seconds.
        """
        return self._resolve(token, timeout)


class AsyncDistributed(_Handles[*Us]):
    """
    Several asynchronous units that commit as one; see `distributed`. The same core as `Distributed`, awaited.
    """

    @classmethod
    def _of(cls, units: tuple[Any, ...], domain: str) -> Self:
        bridges: list[Bridge] = [unit._bridge for unit in units]
        bridge = next((bridge for bridge in bridges if not isinstance(bridge, DirectBridge)), bridges[0])
        cores = [unit._core for unit in units]
        return cls._make(units, cores, _Party(cores, domain, bridge))

    @property
    def _bridge(self) -> Bridge:
        assert self._party.bridge is not None
        return self._party.bridge

    async def __aenter__(self) -> tuple[*Us]:
        await self._bridge.call(self._party.settle_roles)
        if self._around is None:
            directly(self._enter)
        else:
            await self._bridge.call(self._enter)
        return self._units

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end(self._leave(exc))

    def nested(self, name: str | None = None) -> Self:
        """
        Return a group of nested units; see `Distributed.nested`.
        """
        self._entered("open a nested() scope")
        units: tuple[Any, ...] = tuple(unit.nested(name) for unit in cast("tuple[Any, ...]", self._units))
        return self._nested([unit._core for unit in units], units)

    async def commit(self) -> None:
        """
        Make the work durable in all databases; see `Distributed.commit`.

        A cancellation that comes meanwhile is raised when all is over: `state` tells how.
        """
        await self._end(self._commit())

    async def rollback(self) -> None:
        """
        Undo the work in all databases and end the scope; see `Distributed.rollback`.
        """
        await self._end(self._rollback())

    def attempts(self, retry: Retry | None = None) -> AsyncAttempts[tuple[*Us]]:
        """
        Yield attempts at this group until one is not ended by a transient error; see `Distributed.attempts`.
        """
        return AsyncAttempts(self, retry or Retry())

    async def run(self, work: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Do *work*, a coroutine function, as one whole; see `Distributed.run`.
        """
        return await run_async(self, Retry(), work, *args, **kwargs)

    async def resolve(self, token: str, *, timeout: float = 10.0) -> State:
        """
        Find out what became of a group whose commit was in doubt; see `Distributed.resolve`.
        """
        return await self._bridge.call(self._resolve, token, timeout)

    async def _end(self, steps: Steps[None]) -> None:
        """Take steps of which some must not be cut off."""
        await shielded(self._bridge.drive(steps), scope_ending)
