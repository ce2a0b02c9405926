"""
What the contract suite needs of an adapter under test.
"""

from abc import ABC, abstractmethod
from typing import Any

from ._model import Bank

__all__ = ["Harness"]


class Harness(ABC):
    """
    One adapter with one empty database, made anew for each test.
    """

    name: str
    """How failures call the adapter."""

    @property
    def statements(self) -> list[str] | None:
        """What was sent to the database so far, transaction control included; None where there are no statements."""
        return None

    @abstractmethod
    def bank(self, **options: Any) -> Bank:
        """Return a new unit on the database; *options* are those of `uow.UnitOfWork`."""

    @abstractmethod
    def idle(self) -> bool:
        """Tell whether no connection is checked out and no transaction is open."""

    @abstractmethod
    def kill(self, bank: Bank) -> None:
        """Let the database of the open unit *bank* disappear, as a crash of the server would."""

    def close(self) -> None:  # noqa: B027 - a harness may have nothing to drop
        """Drop what the test left."""

    def numbers(self) -> list[str]:
        """Return the account numbers that a fresh unit sees, in order."""
        with self.bank() as bank:
            return [account.number for account in bank.accounts.list(order_by=lambda a: a.number)]
