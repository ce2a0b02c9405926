"""
The port: a unit of work, as applications and adapters see it.
"""

import time
from collections.abc import Callable, Iterable
from operator import is_
from types import TracebackType
from typing import ParamSpec, Self, TypeVar, Unpack

from uow.domain import Event, demand_event

from ._commit import resolve
from ._handle import Handle
from ._hooks import Handlers
from ._options import Options, OptionValues
from ._outcomes import Outcome, demand_outcome
from ._retries import Attempts, Retry, run
from ._scope import Observer, Status
from ._states import State
from ._steps import finish
from ._work import Settings
from .errors import ConfigurationError

__all__ = ["UnitOfWork"]

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Callable[[], object])
# Most units are made with these, and one is made in every request.
_RETRY, _OPTIONS, _HANDLERS, _NOTHING_ASKED = Retry(), Options(), Handlers(), (None, False, False, None, None)


class UnitOfWork(Handle):
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

        retry: How `attempts()` and `run()` go about it.

        outcome: How to find out what became of the work when the connection is lost while COMMIT is on its way.
            ``row``: the unit leaves a row in the table ``uow_outcome``. ``xid``: PostgreSQL is asked what became of the
            transaction's number, which writes nothing, and cannot tell after the server was started anew. ``none``:
            nobody finds out.

        isolation: The isolation level, such as ``SERIALIZABLE``; the engine's own by default.

        read_only: Refuse every write, here and in the database.

        deferrable: Let a SERIALIZABLE read-only unit wait until it cannot fail.

        statement_timeout: How long one statement may take, in seconds.

        lock_timeout: How long a statement may wait for a lock, in seconds.

    Raises:
        uow.errors.ConfigurationError: The database cannot do what is asked for.
    """

    def __init__(
        self,
        *,
        handlers: Handlers | None = None,
        observers: Iterable[Observer] = (),
        strict: bool = False,
        handoff: bool = False,
        retry: Retry | None = None,
        outcome: Outcome = "none",
        isolation: str | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
    ) -> None:
        if not isinstance(retry, Retry | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"retry is {retry!r}", "Pass Retry(attempts=3), or leave it out.")
        demand_outcome(outcome)
        asked = (isolation, read_only, deferrable, statement_timeout, lock_timeout)
        options = _OPTIONS if all(map(is_, asked, _NOTHING_ASKED)) else Options(*asked)
        super().__init__(
            Settings(options, _HANDLERS if handlers is None else handlers, tuple(observers), strict, handoff, outcome)
        )
        self._retry = retry or _RETRY

    # ------------------------------------------------------------------------------------------------------ scopes

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        finish(self._leave(exc))

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
        return self._another(_within=self._require("open a nested() scope"), _label=name)

    def joined(self, name: str | None = None, **options: Unpack[OptionValues]) -> Self:
        """
        Return a unit that joins the innermost open one of this task, of the same class and database.

        What it does is kept or lost with that one, and a failure in it dooms what it joined: the root, or the nested
        unit around it. If none is open, it is a unit of its own, and its ``commit()`` commits.

        Args:
            name: What the log, `status()` and errors call it.

            options: What it asks of its transaction, as when a unit is made; here they replace those of this one.

        Raises:
            uow.errors.ContradictoryOptions: When it is entered: the unit that it joins was made with other options.
        """
        return self._another(
            _joins=True,
            _beside=self._context,
            _label=name,
            _settings=self._with(options),
            _explicit=frozenset(options),
        )

    def independent(self, **options: Unpack[OptionValues]) -> Self:
        """
        Return a unit like this one with a transaction, and so a connection, of its own, whatever is open around it.

        Args:
            options: What it asks of its transaction, as when a unit is made; here they replace those of this one.

        Raises:
            uow.errors.ConfigurationError: The database cannot do what is asked for.
        """
        return self._another(_settings=self._with(options))

    def attempts(self, retry: Retry | None = None) -> Attempts[Self]:
        """
        Yield attempts at this unit until one is not ended by a transient error.

        .. code-block:: python

            for attempt in bank.attempts():
                with attempt as uow:
                    ...
                    uow.commit()

        Args:
            retry: How often and how long; by default what the unit was made with.

        Raises:
            uow.errors.UnitOfWorkActive: A unit is open around it, whose work a new attempt could not do again.
        """
        return Attempts(self, retry or self._retry)  # type: ignore[arg-type]  # mypy does not see what Self is there

    def run(self, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Do *work* as one whole unit: enter, call, commit; all of it again after a transient error.

        Args:
            work: What to call inside the unit, with the other arguments.

        Raises:
            uow.errors.UnitOfWorkActive: A unit is open around it, whose work a new attempt could not do again.
        """
        return run(self, self._retry, work, *args, **kwargs)

    def commit(self) -> None:
        """
        Make the work durable; at the root all of it, in a nested unit release it to the unit around.

        When it returned, the work is durable. Otherwise it raises: the original error and the work is rolled back.

        Raises:
            uow.errors.UnitOfWorkRolledBack: A database error was swallowed in the block.

            uow.errors.NestedScopeOpen: A nested unit inside is still open; nothing changed.

            uow.errors.UnitOfWorkEnded: It ended before.

            uow.errors.AfterCommitFailed: The work is durable, and a hook that ran afterwards failed.

            uow.errors.CommitOutcomeUnknown: The connection was lost while the database was committing, and what the
                unit's *outcome* says found out nothing.

            uow.errors.ConnectionLost: The same, and it found out that nothing was committed.
        """
        finish(self._commit())

    def rollback(self) -> None:
        """
        Undo the work and end the scope; entities added in it are new again.

        Raises:
            uow.errors.NestedScopeOpen: A nested unit inside is still open; nothing changed.

            uow.errors.UnitOfWorkEnded: It ended before.
        """
        finish(self._rollback())

    def flush(self) -> None:
        """
        Write what is pending now, so that a constraint that refuses it does so here.

        Raises:
            uow.errors.IntegrityViolation: A constraint refused the data.

            uow.errors.StaleVersion: Another unit changed an entity since this one read it.
        """
        context = self._usable("flush()")
        context.run("flush()", context.transaction.flush)

    def once(self, key: str) -> None:
        """
        Let the work of this scope be done at most once under *key*, whoever else tries.

        Call it before the work. Until this unit has ended, another one with that key waits; once it is durable, that
        one gets `uow.errors.AlreadyDone`. A scope that is rolled back leaves the key free. A key is remembered for at
        least seven days.

        Args:
            key: 1 to 200 characters, such as ``consumer:message id``.

        Raises:
            uow.errors.AlreadyDone: The work was done before.

            uow.errors.LockTimeout: Another unit is at it, longer than ``lock_timeout`` allows; the fake never waits.
        """
        self._usable("once()").once(key)

    def resolve(self, token: str, *, timeout: float = 10.0) -> State:
        """
        Find out what became of the unit whose commit raised `uow.errors.CommitOutcomeUnknown` with *token*.

        Any unit on the same database can tell, open or not, in any process. One that was not committed until now
        cannot be any more, so the answer never changes.

        Args:
            token: What the error had.

            timeout: How long to try, in seconds.

        Returns:
            ``State.COMMITTED`` or ``State.ROLLED_BACK``.

        Raises:
            uow.errors.CommitOutcomeUnknown: The database cannot tell, or not in time.

            uow.errors.InvalidArgument: It is no token.
        """
        return resolve(self._outcomes(), self._name, token, timeout)

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

        Raises:
            uow.errors.InvalidArgument: It is no `Event`.
        """
        demand_event(event)
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
        context = self._require("status()")
        return context.status(scope, time.monotonic() - scope.entered)

    def __repr__(self) -> str:
        where = self._name if self._scope is None else self._scope.title
        return f"<{where}: {self.state.value}>"
