"""
The failures that a test ordered from a store.
"""

from collections.abc import Callable

from attrs import define, frozen

from uow.errors import (
    AfterCommitFailed,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    ConnectionUnavailable,
    DatabaseError,
    IntegrityViolation,
    ReadOnlyTransaction,
    StaleVersion,
    UnitOfWorkError,
)

__all__ = ["Failure", "Failures"]

_OPERATIONS = ("begin", "flush", "savepoint", "release", "commit", "rollback", "prepare", "finish")
_WHERE: tuple[tuple[type[UnitOfWorkError], tuple[str, ...], str], ...] = (
    (ConnectionUnavailable, ("begin",), "later a unit has its connection"),
    (IntegrityViolation, ("flush", "commit", "prepare"), "a constraint is checked there"),
    (StaleVersion, ("flush", "commit", "prepare"), "a version is compared there"),
    (ReadOnlyTransaction, ("flush", "commit", "prepare"), "that is where a unit writes"),
    (DatabaseError, _OPERATIONS, ""),
    (CommitOutcomeUnknown, ("commit",), "nothing else is in doubt"),
    (AfterCommitFailed, ("commit",), "it says that the commit stands"),
)
_KEEPING = ("commit", "prepare", "finish")
_AMBIGUOUS = (CommitOutcomeUnknown, ConnectionLost)


@frozen
class Failure:
    """
    A failure that was ordered and is not met yet.

    Args:
        operation: What is to fail.

        error: With what.

        nth: How many such operations there are until then, that one included.

        entity: The class that the operation has to write; None for any, or nothing.

        kept: Whether the work is kept all the same.
    """

    operation: str
    error: UnitOfWorkError
    nth: int = 1
    entity: type | None = None
    kept: bool = False


@define(eq=False)
class _Order:
    failure: Failure
    left: int


class Failures:
    """
    The orders of one store, oldest first. Every operation counts for all of them, and meets the first that is due.
    """

    def __init__(self) -> None:
        self._orders: list[_Order] = []

    def __bool__(self) -> bool:
        return bool(self._orders)

    @property
    def pending(self) -> tuple[Failure, ...]:
        """What was ordered and not met yet."""
        return tuple(order.failure for order in self._orders)

    def order(
        self,
        operation: str,
        error: UnitOfWorkError | type[UnitOfWorkError],
        nth: int,
        entity: type | None,
        kept: bool,
    ) -> None:
        """Take an order, or refuse one that means nothing."""
        kind = error if isinstance(error, type) else type(error)
        _demand_possible(operation, kind)
        if nth < 1:
            raise ConfigurationError(f"nth is {nth}", "The next one is nth=1, the one after it nth=2.")
        if entity is not None and operation != "flush":
            raise ConfigurationError(
                f"a {operation} is of no entity, so it cannot be one of {entity.__name__}",
                "Pass entity with flush, which is where entities are written.",
            )
        if kept and not issubclass(kind, (*_AMBIGUOUS, AfterCommitFailed)):
            raise ConfigurationError(
                f"{kind.__name__} says that nothing was kept, so kept=True would be a lie",
                f"Pass kept with {' or '.join(each.__name__ for each in _AMBIGUOUS)}, which leave that open.",
            )
        if kept and operation not in _KEEPING:
            raise ConfigurationError(f"a {operation} keeps nothing", f"Pass kept with {' or '.join(_KEEPING)}.")
        made = _made(error) if isinstance(error, type) else error
        kept = kept or isinstance(made, AfterCommitFailed)
        self._orders.append(_Order(Failure(operation, made, nth, entity, kept), nth))

    def meet(self, operation: str, writes: Callable[[type], bool], *, done: bool) -> None:
        """
        Raise what was ordered for *operation*.

        Args:
            operation: What the store was asked for.

            writes: Tells whether it writes any entity of a class.

            done: Whether it was done, so that those are met whose work is kept; otherwise it is about to begin.
        """
        of_it = [
            order
            for order in self._orders
            if order.failure.operation == operation and (order.failure.entity is None or writes(order.failure.entity))
        ]
        for order in of_it:
            order.left -= not done
        for order in of_it:
            if order.left <= 0 and order.failure.kept is done:
                self._orders.remove(order)
                raise order.failure.error


def _demand_possible(operation: str, kind: type[UnitOfWorkError]) -> None:
    if operation not in _OPERATIONS:
        raise ConfigurationError(f"{operation!r} cannot be made to fail", f"Choose one of {', '.join(_OPERATIONS)}.")
    for known, operations, why in _WHERE:
        if issubclass(kind, known):
            if operation not in operations:
                raise ConfigurationError(
                    f"a {operation} cannot fail with {kind.__name__}", f"Order it for {' or '.join(operations)}: {why}."
                )
            return
    raise ConfigurationError(
        f"{kind.__name__} is nothing that a database answers",
        "Order a DatabaseError, or for commit CommitOutcomeUnknown or AfterCommitFailed.",
    )


def _made(kind: type[UnitOfWorkError]) -> UnitOfWorkError:
    if issubclass(kind, AfterCommitFailed):
        return kind("made to fail", [RuntimeError("made to fail")])
    if issubclass(kind, CommitOutcomeUnknown):
        return kind("the unit", "the answer was lost")
    return kind("made to fail")
