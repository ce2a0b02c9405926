"""
What became of the units on a store.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any

from attrs import Factory, frozen

from uow import Claim, Decision, Outcome
from uow.errors import SerializationFailure

__all__ = ["Branch", "FakeOutcomes"]


@frozen
class Branch:
    """
    A prepared branch of a distributed transaction.

    Args:
        since: When it was prepared.

        end: Called with True to commit it, with False to roll it back; it cannot fail.

        rows: The rows that it has written; None for one that it removed.

        claims: The keys that it has taken.
    """

    since: datetime
    end: Callable[[bool], object]
    rows: Mapping[Any, Any] = Factory(dict[Any, Any])
    claims: Mapping[str, Claim] = Factory(dict[str, Claim])


class FakeOutcomes:
    """
    The tokens and keys of the units that were committed on a store, and the tokens of those that cannot be any more.

    Args:
        mutex: The store's.
    """

    modes: tuple[Outcome, ...] = ("row", "none")

    def __init__(self, mutex: Any) -> None:
        self._mutex = mutex
        self._committed: dict[str, bool] = {}
        self.claims: dict[str, Claim] = {}
        self.decisions: dict[str, Decision] = {}

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self._committed)

    def keep(self, token: str | None) -> None:
        """Remember a unit that is committed now, unless that was ruled out."""
        if token is not None and not self._committed.setdefault(token, True):
            raise SerializationFailure("what became of this unit was asked before, and it was told that nothing did")

    def decide(self, decision: Decision) -> None:
        """Remember that a distributed transaction is committed now, unless that was ruled out."""
        self.keep(decision.id)
        self.decisions[decision.id] = decision

    def complete(self, ids: Collection[str]) -> None:
        """Take decisions off the list."""
        for id in ids:
            self.decisions.pop(id, None)

    def forget(self, ids: Collection[str]) -> None:
        """Forget what became of these."""
        for id in ids:
            self._committed.pop(id, None)
            self.decisions.pop(id, None)

    def settle(self, token: str, timeout: float) -> bool:
        """Tell whether the unit with *token* was committed; from now on it cannot be any more."""
        with self._mutex:
            return self._committed.setdefault(token, False)
