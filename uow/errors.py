"""
Every error of the framework, in one place.

The first group says that the unit was used wrongly, the second what became of its work, the third what the database
answered. Each class keeps the facts as attributes and builds its text from them: what could not be done, what is so,
and what to do instead.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from attrs import define

from uow.domain import (
    EntityNotFound,
    InvalidArgument,
    Misuse,
    MultipleEntitiesFound,
    OutsideUnitOfWork,
    SpecificationError,
    UnitOfWorkError,
)

__all__ = [
    "AfterCommitFailed",
    "AfterRollbackFailed",
    "AlreadyDone",
    "CheckViolation",
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "ConnectionLost",
    "ConnectionUnavailable",
    "ContradictoryOptions",
    "DatabaseError",
    "Deadlock",
    "DefinitionError",
    "EntityNotFound",
    "EventCycle",
    "ForeignKeyViolation",
    "IntegrityViolation",
    "InvalidArgument",
    "LockTimeout",
    "Misuse",
    "MultipleEntitiesFound",
    "NestedScopeOpen",
    "NotNullViolation",
    "OutsideUnitOfWork",
    "ReadOnlyTransaction",
    "ReadOnlyUnitOfWork",
    "ScopeBroken",
    "SerializationFailure",
    "SpecificationError",
    "StaleVersion",
    "StatementTimeout",
    "TransactionOwned",
    "UniqueViolation",
    "UnitOfWorkActive",
    "UnitOfWorkEnded",
    "UnitOfWorkError",
    "UnitOfWorkRolledBack",
    "UnmappedEntity",
    "WrongTask",
]


# ----------------------------------------------------------------------------------------------- the unit, used wrongly


class UnitOfWorkActive(Misuse):
    """
    A unit that is active was entered again; ``nested()`` is what opens a scope inside.
    """


class UnitOfWorkEnded(Misuse):
    """
    A scope was used, or ended once more, after its ``commit()`` or ``rollback()``.
    """


class NestedScopeOpen(Misuse):
    """
    An outer scope was ended while a nested one was still open.
    """


class WrongTask(Misuse):
    """
    A unit was used from another thread or asyncio task than the one that entered it.
    """


class TransactionOwned(Misuse):
    """
    The transaction was to be ended through the session or connection; the unit owns it.
    """


class ContradictoryOptions(Misuse):
    """
    A unit was to join another one that was made with other options.
    """


class ReadOnlyUnitOfWork(Misuse):
    """
    A read-only unit was asked to write.
    """


class ScopeBroken(Misuse):
    """
    A scope in which the database reported an error was used again; ``__cause__`` is that error.
    """

    @property
    def transient(self) -> bool:
        """Whether the error that broke the scope is."""
        return isinstance(self.__cause__, UnitOfWorkError) and self.__cause__.transient


@define(slots=False)
class DefinitionError(UnitOfWorkError, TypeError):
    """
    A unit, a repository or an entity is declared in a way that cannot work.

    Args:
        subject: The class or attribute, such as ``Bank.accounts``.

        problem: What is wrong with it.

        hint: What to write instead.
    """

    subject: str
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"Cannot define {self.subject}: {self.problem}. {self.hint}"


@define(slots=False)
class UnmappedEntity(UnitOfWorkError, TypeError):
    """
    A repository's entity is no class that the adapter knows how to store.

    Args:
        entity: The class.

        problem: What the adapter misses.

        hint: What to do.
    """

    entity: type
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"Cannot store {self.entity.__name__}: {self.problem}. {self.hint}"


@define(slots=False)
class ConfigurationError(UnitOfWorkError, ValueError):
    """
    An engine, a store or an option cannot serve a unit.

    Args:
        problem: What is wrong.

        hint: What to set instead.
    """

    problem: str
    hint: str

    def __str__(self) -> str:
        return f"Wrong configuration: {self.problem}. {self.hint}"


# -------------------------------------------------------------------------------------------- what became of the work


@define(slots=False)
class UnitOfWorkRolledBack(UnitOfWorkError):
    """
    Work was lost although the block went on as if nothing had happened.

    Raised by ``commit()`` and at the end of a block; ``__cause__`` is the error that the work was lost to.

    Args:
        unit: The unit and its scope.

        reason: Why it was rolled back.

        hint: What to do about it.
    """

    unit: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.unit} was rolled back: {self.reason}. {self.hint}"

    @property
    def transient(self) -> bool:
        """Whether the error that the work was lost to was."""
        return isinstance(self.__cause__, UnitOfWorkError) and self.__cause__.transient


@define(slots=False)
class CommitOutcomeUnknown(UnitOfWorkError):
    """
    Whether the work is durable cannot be told: the answer to COMMIT never came.

    It is never transient: doing the work again might do it twice.

    Args:
        unit: The unit.

        reason: What happened.

        token: What ``resolve()`` finds out with, now or later, here or in another process; None if nothing was left
            in the database to find out by.
    """

    unit: str
    reason: str
    token: str | None = None

    def __str__(self) -> str:
        hint = (
            "Read the data back before you do the work again, or make the unit with outcome='row', which finds out"
            if self.token is None
            else f"resolve({self.token!r}) finds out as soon as the database answers"
        )
        return f"Cannot tell whether {self.unit} was committed: {self.reason}. {hint}."


@define(slots=False)
class AlreadyDone(UnitOfWorkError):
    """
    A unit took a key with ``once()`` under which another one was committed before; its own work was not done again.

    Args:
        unit: The unit.

        key: The key.

        decided_at: When the first one took it, by the database's clock.
    """

    unit: str
    key: str
    decided_at: datetime

    def __str__(self) -> str:
        return (
            f"{self.unit} was not done: another one was committed under the key {self.key!r} at {self.decided_at}. "
            f"Leave the block with this error, and take the work for done."
        )


@define(slots=False)
class EventCycle(UnitOfWorkError, RecursionError):
    """
    Handlers and hooks kept causing new ones, round after round, and ``commit()`` gave up.

    Args:
        unit: The unit.

        rounds: How many rounds ran.

        cycle: What the last rounds handled, in order.
    """

    unit: str
    rounds: int
    cycle: Sequence[str]

    def __str__(self) -> str:
        return (
            f"Cannot commit {self.unit}: after {self.rounds} rounds of handlers there are still new events "
            f"({' -> '.join(self.cycle)}). Let a handler record an event only when something changed."
        )


class AfterCommitFailed(UnitOfWorkError, ExceptionGroup[Exception]):
    """
    The commit stands, but hooks or handlers that ran after it failed; ``exceptions`` holds their errors.

    All the others ran. It is never transient: the work is done.
    """

    def derive(self, excs: Sequence[Exception]) -> "AfterCommitFailed":  # type: ignore[override]
        """Make a part of this group, as ``ExceptionGroup.derive`` asks for."""
        return AfterCommitFailed(self.message, excs)


class AfterRollbackFailed(UnitOfWorkError, ExceptionGroup[Exception]):
    """
    The rollback stands, but hooks that ran after it failed; ``exceptions`` holds their errors.
    """

    def derive(self, excs: Sequence[Exception]) -> "AfterRollbackFailed":  # type: ignore[override]
        """Make a part of this group, as ``ExceptionGroup.derive`` asks for."""
        return AfterRollbackFailed(self.message, excs)


# ----------------------------------------------------------------------------------------- what the database answered


@define(slots=False)
class DatabaseError(UnitOfWorkError):
    """
    The database, or the fake in its place, refused an operation; ``__cause__`` is the driver's own error.

    Args:
        detail: What the database said.

        code: The backend's own code: an SQLSTATE, a MariaDB error number or SQLite's error name; None from the fake.
    """

    is_transient: ClassVar[bool] = False
    is_dooming: ClassVar[bool] = False
    headline: ClassVar[str] = "The database refused the statement"

    detail: str
    code: str | int | None = None

    def __str__(self) -> str:
        code = "" if self.code is None else f" [{self.code}]"
        return f"{self.headline}{code}: {self.detail}"

    @property
    def transient(self) -> bool:
        """Whether the same work, done again in a fresh unit, may succeed."""
        return self.is_transient

    @property
    def dooms(self) -> bool:
        """Whether the whole unit is lost, not only the scope that it happened in."""
        return self.is_dooming


@define(slots=False)
class IntegrityViolation(DatabaseError):
    """
    A constraint refused the data.

    Args:
        detail: What the database said.

        code: The backend's own code.

        constraint: The constraint's name, where the backend tells.

        table: The table, where the backend tells.

        columns: The columns, where the backend tells.
    """

    headline = "A constraint refused the data"

    constraint: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()


class UniqueViolation(IntegrityViolation):
    """
    A key or a unique value is taken.
    """

    headline = "A unique value is taken"


class ForeignKeyViolation(IntegrityViolation):
    """
    A reference points at nothing, or what it points at was to be removed.
    """

    headline = "A reference would point at nothing"


class NotNullViolation(IntegrityViolation):
    """
    A value is missing.
    """

    headline = "A value is missing"


class CheckViolation(IntegrityViolation):
    """
    A check constraint refused a value.
    """

    headline = "A check constraint refused a value"


class StaleVersion(DatabaseError):
    """
    An entity was changed or removed by another unit since this one read it.
    """

    is_transient = True
    headline = "An entity was changed by another unit"


class SerializationFailure(DatabaseError):
    """
    The database could not run this unit as if it were alone.
    """

    is_transient = True
    is_dooming = True
    headline = "The unit collided with another one"


class Deadlock(DatabaseError):
    """
    This unit and another waited for each other, and the database chose this one to end.
    """

    is_transient = True
    is_dooming = True
    headline = "The unit was chosen to end a deadlock"


class LockTimeout(DatabaseError):
    """
    A lock that another unit holds was not free in time.
    """

    is_transient = True
    headline = "A lock was not free in time"


class StatementTimeout(DatabaseError):
    """
    A statement took longer than ``statement_timeout`` allows, or somebody cancelled it in the database.
    """

    headline = "A statement was cancelled"


class ReadOnlyTransaction(DatabaseError):
    """
    A statement was to write in a read-only unit.
    """

    headline = "The transaction is read-only"


class ConnectionLost(DatabaseError):
    """
    The connection to the database is gone, and the transaction with it.
    """

    is_transient = True
    is_dooming = True
    headline = "The connection to the database was lost"


class ConnectionUnavailable(DatabaseError):
    """
    No connection could be had: the pool is exhausted, or the server does not answer.
    """

    is_dooming = True
    headline = "No connection could be had"


for _name in __all__:  # those of the domain too: tracebacks name the place where users find them
    globals()[_name].__module__ = __name__
