"""
What an adapter provides: the primitives of one database transaction. Every rule is kept above them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from attrs import frozen

from uow.domain import Gateway

from ._outcomes import Claim, Outcome
from .errors import CommitOutcomeUnknown, DatabaseError

__all__ = ["NOTHING", "Changes", "Conflict", "NativeGateway", "Transaction", "Watcher"]

E = TypeVar("E")
R = TypeVar("R")
Conflict: TypeAlias = Literal["twin", "elsewhere"]


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
        if other is NOTHING or not other:
            return self
        if self is NOTHING:
            return other
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


NOTHING = Changes()
"""No work."""


class Watcher(Protocol):
    """
    How a transaction tells its unit what happens outside the unit's own calls.
    """

    def run(self, operation: str, call: Callable[..., R], /, *args: Any, **kwargs: Any) -> R:
        """Do an operation of that name under the unit's rules."""
        ...

    def failed(self, error: DatabaseError, /) -> None:
        """The database reported an error."""

    def ended(self, error: CommitOutcomeUnknown, /) -> None:
        """Something ended the transaction that was not the unit."""

    def flushed(self, changes: Changes, /) -> None:
        """So much was written."""

    def loaded(self, entity: object, /) -> None:
        """An entity came from the database."""

    def added(self, entity: object, /) -> None:
        """An entity was taken in as new."""


class NativeGateway(Gateway[E], Protocol[E]):
    """
    What an adapter provides for one entity class: the unit keeps its rules in front of it.
    """

    def conflict(self, entity: E, /) -> Conflict | None:
        """
        Tell what keeps *entity* out of the unit, if anything does.

        ``twin``: the unit holds another object for the row that it was read from or stored in. ``elsewhere``: another
        unit that is open holds it.
        """
        ...


class Transaction(Protocol):
    """
    One database transaction and what was loaded in it.

    The unit calls these in a legal order and translates nothing: an adapter raises the errors of `uow.errors`. A
    scope's savepoint may be sent as late as its first statement.
    """

    def watch(self, watcher: Watcher, /) -> None:
        """Remember whom to tell; called once, before everything else."""
        ...

    def gateway(self, entity: type[E], /) -> NativeGateway[E]:
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

    def claim(self, key: str, token: str, /) -> Claim | None:
        """Take *key* for this transaction; return who took it before, once that one is durable."""
        ...

    def mark(self, outcome: Outcome, token: str, /) -> str:
        """Leave in the database what tells later whether this transaction was committed; return the token for it."""
        ...

    def commit(self) -> None:
        """
        Make the work durable, or raise a DatabaseError; ConnectionLost is taken to say that nobody knows.

        AfterCommitFailed says that the work is durable and that something failed afterwards.
        """
        ...

    def abandon(self) -> None:
        """Throw the connection away, since nobody knows what became of COMMIT; entities stay as they are."""
        ...

    def rollback(self) -> None:
        """Undo everything; entities that were added are new again."""
        ...

    def close(self, *, broken: bool = False) -> None:
        """Give the connection back, or throw it away if it is *broken*; entities stay readable."""
        ...

    # ------------------------------------------------------------------------- as a branch of a distributed transaction

    def enlist(self, id: str, name: str, /, *, decides: bool) -> None:
        """
        Be the branch called *name* of the distributed transaction *id*, or its last agent; nothing was sent yet.

        Once it is prepared, `commit` and `rollback` are what end the branch.
        """
        ...

    def may_have_written(self) -> bool:
        """Tell whether anything may have been written; False is certain."""
        ...

    def give_time(self, seconds: float, /) -> None:
        """As the last agent, be able to `decide` for that long from now, or less, by the database's clock."""
        ...

    def prepare(self) -> None:
        """
        Write the witness row, and make the branch survive everything until it is told how to end.

        ConnectionLost is taken to say that nobody knows whether it did.
        """
        ...

    def decide(self, branches: Sequence[str], /) -> None:
        """As the last agent, write the outcome row: `commit` is the decision for all *branches*, by their names."""
        ...

    @property
    def begun(self) -> bool:
        """Whether the database has begun a transaction."""
        ...

    @property
    def at_rest(self) -> bool:
        """Whether a nested scope can begin, or end that has sent nothing, without anything to wait for."""
        ...

    def savepoint_name(self, depth: int, /) -> str | None:
        """Return the name in the database of the savepoint at that depth, None before it was sent."""
        ...

    @property
    def isolation(self) -> str | None:
        """The isolation level, where the adapter knows it without asking the database."""
        ...
