"""
What the contract suite needs of an adapter under test.
"""

import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any, ClassVar, TypeVar

from ._model import Bank

__all__ = ["Harness"]

R = TypeVar("R")


class Harness(ABC):
    """
    One adapter with one empty database, made anew for each test.
    """

    asynchronous: ClassVar[bool] = False
    """Whether what the tests do is awaited."""

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
    def killer(self, bank: Bank) -> Callable[[], None]:
        """Return what lets the database of the open unit *bank* disappear, as a crash of the server would."""

    def kill(self, bank: Bank) -> None:
        """Let the database of *bank* disappear now."""
        self.killer(bank)()

    @abstractmethod
    def lose_answer(self, bank: Bank) -> None:
        """Let nobody know what becomes of the COMMIT of the open unit *bank*."""

    @abstractmethod
    def cut_commit(self, bank: Bank, *, kept: bool, by: BaseException | None = None, unanswered: bool = False) -> None:
        """
        Cut the next COMMIT of the open unit *bank* off.

        Args:
            bank: The unit.

            kept: Whether the database has committed by then; otherwise the transaction ends without.

            by: What the unit hears; by default that the connection was lost.

            unanswered: Whether the database says nothing afterwards, until `answer_again`.
        """

    def answer_again(self) -> None:  # noqa: B027 - the fake says nothing only once
        """Let the database answer as before a COMMIT that was cut off *unanswered*."""

    @abstractmethod
    def outcome_rows(self) -> int:
        """Count the units that have left behind what tells whether they were committed."""

    def define(self, name: str, **annotations: object) -> Any:
        """Make an adapter of the same kind, with other repositories."""
        body = {"__annotations__": annotations, "__module__": __name__}
        return types.new_class(name, (type(self.bank()),), {}, lambda namespace: namespace.update(body))

    def hurry(self) -> None:  # noqa: B027 - most databases do not wait
        """Let the database refuse a lock at once that it would wait for on its own account."""

    def elsewhere(self, call: Callable[[], R]) -> R:
        """Return what *call* does in a thread of its own."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    def handed(self, call: Callable[[], R]) -> R:
        """Return what *call* does where a unit may be handed to: another thread."""
        return self.elsewhere(call)

    def meanwhile(self, call: Callable[[], object]) -> Thread:
        """Begin *call* in a thread of its own."""
        thread = Thread(target=call)
        thread.start()
        return thread

    def close(self) -> None:  # noqa: B027 - a harness may have nothing to drop
        """Drop what the test left."""

    def numbers(self) -> list[str]:
        """Return the account numbers that a fresh unit sees, in order."""
        with self.bank() as bank:
            return [account.number for account in bank.accounts.list(order_by=lambda a: a.number)]
