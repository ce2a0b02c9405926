"""
The contract suite's bank in memory.
"""

from collections.abc import Callable
from typing import Any

from uow.adapters.memory import FakeUnitOfWork, Store
from uow.errors import CommitOutcomeUnknown, ConnectionLost

from ._harness import Harness
from ._model import Account, Bank, Document, Transfer

__all__ = ["FakeBank", "FakeHarness"]


class FakeBank(FakeUnitOfWork, Bank):
    """
    The bank in memory.
    """


class FakeHarness(Harness):
    """
    A bank on a store of its own, with the constraints that the tables on a database have.
    """

    name = "fake"

    def __init__(self) -> None:
        self.store = Store()
        self.store.not_null(Account, "owner", "balance")
        self.store.check(Account, lambda account: account.balance >= -1000, name="balance_floor")
        self.store.foreign_key(Transfer, "source", Account)
        self.store.not_null(Transfer, "source", "amount")
        self.store.unique(Document, "title")
        self.store.not_null(Document, "title")

    def bank(self, **options: Any) -> Bank:
        """Return a new unit on the store."""
        return FakeBank(self.store, **options)

    def idle(self) -> bool:
        """Tell whether no unit is open."""
        return self.store.idle()

    def killer(self, bank: Bank) -> Callable[[], None]:
        """Return what lets the store disappear."""
        return self.store.drop_connections

    def lose_answer(self, bank: Bank) -> None:
        """Let the store fail so."""
        self.store.fail_next("commit", CommitOutcomeUnknown("the unit", "the answer was lost"))

    def cut_commit(self, bank: Bank, *, kept: bool, by: BaseException | None = None, unanswered: bool = False) -> None:
        """Let the store fail so; what is no failure of a database is raised around the store."""
        if by is None:
            self.store.fail_next("commit", CommitOutcomeUnknown if unanswered else ConnectionLost, kept=kept)
            return
        transaction: Any = getattr(bank, "_core", bank)._context.transaction  # type: ignore[union-attr]
        commit = transaction.commit

        def cut() -> None:
            if kept:
                commit()
            raise by

        transaction.commit = cut

    def outcome_rows(self) -> int:
        """Count what the store remembers."""
        return len(self.store.outcomes)
