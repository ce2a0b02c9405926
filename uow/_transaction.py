"""
What an adapter provides: the primitives of one database transaction. Every rule is kept above them.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from attrs import frozen

from uow.domain import Gateway

from .errors import CommitOutcomeUnknown, DatabaseError

__all__ = ["Changes", "Transaction", "Watcher"]

E = TypeVar("E")


@frozen
class Changes:
    """
    How much work there is.

    Args:
        added: Entities that are new.

        changed: Entities that were changed.

        removed: Entities that were removed.

        statements: Statements that changed data past the repositories.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    statements: int = 0

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(
            self.added + other.added,
            self.changed + other.changed,
            self.removed + other.removed,
            self.statements + other.statements,
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.statements)

    def __str__(self) -> str:
        parts = [
            f"{count} {word}"
            for count, word in (
                (self.added, "added"),
                (self.changed, "changed"),
                (self.removed, "removed"),
                (self.statements, "by statement"),
            )
            if count
        ]
        return ", ".join(parts) or "nothing"


@frozen
class Watcher:
    """
    How a transaction tells its unit what happens outside the unit's own calls.

    Args:
        run: Do an operation of that name under the unit's rules.

        failed: The database reported an error.

        ended: Something ended the transaction that was not the unit.

        flushed: So much was written.

        loaded: An entity came from the database.

        added: An entity was taken in as new.
    """

    run: Callable[..., Any]
    failed: Callable[[DatabaseError], None]
    ended: Callable[[CommitOutcomeUnknown], None]
    flushed: Callable[[Changes], None]
    loaded: Callable[[object], None]
    added: Callable[[object], None]


class Transaction(Protocol):
    """
    One database transaction and what was loaded in it.

    The unit calls these in a legal order and translates nothing: an adapter raises the errors of `uow.errors`. A
    scope's savepoint may be sent as late as its first statement.
    """

    def watch(self, watcher: Watcher, /) -> None:
        """Remember whom to tell; called once, before everything else."""
        ...

    def gateway(self, entity: type[E], /) -> Gateway[E]:
        """Return the primitives of the repository of *entity*; UnmappedEntity if there can be none."""
        ...

    def flush(self) -> None:
        """Write what is pending."""
        ...

    def pending(self) -> Changes:
        """Count what is not written yet."""
        ...

    def savepoint(self) -> None:
        """Begin a nested scope; what is pending is written first."""
        ...

    def release(self) -> None:
        """End the innermost savepoint and keep its work; what is pending is written first."""
        ...

    def rollback_to_savepoint(self) -> None:
        """Undo the innermost savepoint's work, in the database and in every entity it touched, and end it."""
        ...

    def confirm(self) -> None:
        """Write what is pending and raise unless the database could commit now; nothing is durable yet."""
        ...

    def commit(self) -> None:
        """
        Make the work durable, or raise a DatabaseError; ConnectionLost is taken to say that nobody knows.

        AfterCommitFailed says that the work is durable and that something failed afterwards.
        """
        ...

    def rollback(self) -> None:
        """Undo everything; entities that were added are new again."""
        ...

    def close(self, *, broken: bool = False) -> None:
        """Give the connection back, or throw it away if it is *broken*; entities stay readable."""
        ...

    @property
    def begun(self) -> bool:
        """Whether the database has begun a transaction."""
        ...

    def savepoint_name(self, depth: int, /) -> str | None:
        """Return the name in the database of the savepoint at that depth, None before it was sent."""
        ...

    @property
    def isolation(self) -> str | None:
        """The isolation level, where the adapter knows it without asking the database."""
        ...
