"""
The port: a unit of work, as applications and adapters see it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from uow.domain import Event, Repository

from ._commit import commit
from ._context import OWN_UNIT, Context
from ._declarations import RepositoryAttribute, declare
from ._gateways import CheckedGateway
from ._hooks import Handlers
from ._scope import Observer, Scope, Status
from ._states import REFUSALS, State
from ._transaction import Transaction
from .errors import Misuse, WrongTask

__all__ = ["UnitOfWork"]

H = TypeVar("H", bound=Callable[[], object])


class UnitOfWork(ABC):
    """
    Work that is kept as a whole or not at all.

    Subclass it with annotations for the application's repositories; that is the application's port. An adapter is one
    line: ``class SqlBank(SqlAlchemyUnitOfWork, Bank): ...``. A unit is a handle: each ``with`` opens a fresh scope.

    Args:
        handlers: What is to happen when an event was recorded.

        observers: Called with a `Transition` at every step of a scope's life; an observer's error is logged.

        strict: Make it an error to leave the block with work in it and without ``commit()``, instead of a warning in
            the log.

        handoff: Let the unit move between threads, one after the other. Two at once are an error all the same.
    """

    def __init__(
        self,
        *,
        handlers: Handlers | None = None,
        observers: Iterable[Observer] = (),
        strict: bool = False,
        handoff: bool = False,
    ) -> None:
        self._handlers = handlers or Handlers()
        self._observers = tuple(observers)
        self._strict = strict
        self._handoff = handoff
        self._root: UnitOfWork = self
        self._label: str | None = None
        self._context: Context | None = None
        self._scope: Scope | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declare(cls, adapter=not getattr(cls._begin, "__isabstractmethod__", False))

    @abstractmethod
    def _begin(self) -> Transaction:
        """Make a fresh transaction for a root scope; nothing is sent to the database yet."""

    # ------------------------------------------------------------------------------------------------------ scopes

    def __enter__(self) -> Self:
        if self._scope is not None and not self._scope.left:
            context = self._require("enter the block")
            if (stranger := context.owner.stranger()) is not None:
                raise WrongTask("enter the block", self._scope.title, stranger, OWN_UNIT)
            refusal = REFUSALS[State.ACTIVE]
            raise refusal.error("enter the block", self._scope.title, refusal.reason, refusal.hint)
        if self._root is self:
            self._context = Context(
                type(self).__name__,
                self._begin(),
                observers=self._observers,
                strict=self._strict,
                handoff=self._handoff,
            )
            self._scope = self._context.root
        else:
            self._scope = self._root._require("open a nested() scope").open_nested(self._label)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        context = self._require("leave the block")
        with context.alone("leave the block", wait=True):
            context.leave(self._entered, exc)

    def nested(self, name: str | None = None) -> Self:
        """
        Return a unit inside this one, backed by a savepoint: partial work that may fail alone.

        It is kept when its block ends, and rolled back when an exception leaves the block. It has the same repositories
        and nests again.

        Args:
            name: What the log, `status()` and errors call it.

        Raises:
            uow.errors.OutsideUnitOfWork: This unit is not active.
        """
        self._require("open a nested() scope")
        unit = object.__new__(type(self))
        vars(unit).update(vars(self), _context=None, _scope=None, _label=name)
        return unit

    def commit(self) -> None:
        """
        Make the work durable; at the root all of it, in a nested unit release it to the unit around.

        When it returned, the work is durable. Otherwise it raises: the original error and the work is rolled back.

        Raises:
            uow.errors.UnitOfWorkRolledBack: A database error was swallowed in the block.

            uow.errors.NestedScopeOpen: A nested unit inside is still open; nothing changed.

            uow.errors.UnitOfWorkEnded: It ended before.

            uow.errors.AfterCommitFailed: The work is durable, and a hook that ran afterwards failed.

            uow.errors.CommitOutcomeUnknown: The connection was lost while the database was committing.
        """
        with self._ending("commit()") as context:
            if self._root is self:
                commit(context, self._handlers, self)
            else:
                context.release(self._entered)

    def rollback(self) -> None:
        """
        Undo the work and end the scope; entities added in it are new again.

        Raises:
            uow.errors.NestedScopeOpen: A nested unit inside is still open; nothing changed.

            uow.errors.UnitOfWorkEnded: It ended before.
        """
        with self._ending("rollback()") as context:
            context.roll_back(self._entered, None)

    def flush(self) -> None:
        """
        Write what is pending now, so that a constraint that refuses it does so here.

        Raises:
            uow.errors.IntegrityViolation: A constraint refused the data.

            uow.errors.StaleVersion: Another unit changed an entity since this one read it.
        """
        context = self._usable("flush()")
        context.run("flush()", context.transaction.flush)

    # ----------------------------------------------------------------------------------------------- hooks and events

    def before_commit(self, hook: H) -> H:
        """
        Run *hook* inside the transaction, right before the root commits. Usable as a decorator.

        Like all hooks it belongs to the innermost scope: a rolled-back one discards it.
        """
        return self._register(hook, "before_commit")

    def after_commit(self, hook: H) -> H:
        """
        Run *hook* once the root is durable and its connection is back in the pool. Usable as a decorator.
        """
        return self._register(hook, "after_commit")

    def after_rollback(self, hook: H) -> H:
        """
        Run *hook* when the scope, or the one that it was released to, was rolled back. Usable as a decorator.
        """
        return self._register(hook, "after_rollback")

    def record(self, event: Event) -> None:
        """
        Record an *event* that belongs to no aggregate.
        """
        self._usable("record()").record(event)

    # -------------------------------------------------------------------------------------------------------- status

    @property
    def state(self) -> State:
        """
        The state of this unit's scope; of the last one when it was left.
        """
        return State.NEW if self._scope is None else self._scope.state

    def status(self) -> Status:
        """
        Return where this unit is; asks the database nothing.

        Raises:
            uow.errors.OutsideUnitOfWork: It was never entered.
        """
        scope = self._entered
        context = self._root._context
        assert context is not None
        return context.status(scope, time.monotonic() - scope.entered)

    def __repr__(self) -> str:
        where = type(self).__name__ if self._scope is None else self._scope.title
        return f"<{where}: {self.state.value}>"

    # --------------------------------------------------------------------------------------------------- for adapters

    def _require(self, operation: str) -> Context:
        """Return the context of the unit that is open around this handle."""
        context = self._root._context
        if context is None or (self._scope is None and self._root is self):
            raise self._outside(operation)
        return context

    def _repository(self, attribute: RepositoryAttribute) -> Repository[Any]:
        """Return this unit's repository, made when first asked for."""
        context = self._usable(f"use {attribute.name!r}")
        repository = context.repositories.get(attribute.name)
        if repository is None:
            transaction = context.transaction
            native = transaction.gateway(attribute.entity)
            gateway = CheckedGateway(attribute.name, context.run, transaction.flush, native)
            repository = context.repositories[attribute.name] = attribute.repository(gateway)
        return repository

    def _usable(self, operation: str) -> Context:
        """Return the context if work may be done through this handle now."""
        context = self._require(operation)
        scope = self._entered
        if scope.left:
            raise self._outside(operation)
        context.check(operation)
        return context

    @contextmanager
    def _ending(self, operation: str) -> Generator[Context]:
        context = self._require(operation)
        with context.alone(operation):
            context.demand_end(self._entered, operation)
            yield context

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
        return refusal.error(operation, type(self).__name__, refusal.reason, refusal.hint)
