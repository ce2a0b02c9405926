"""
The domain: accounts, the transfers between them, and what the bank refuses. It knows no database.

Money is an integer number of cents.
"""

from attrs import define, frozen

from uow import Aggregate, Event, entity

__all__ = ["Account", "AccountOpened", "BankError", "MoneyMoved", "Overdrawn", "Transfer", "in_words"]


def in_words(cents: int) -> str:
    """
    Write an amount as people do.

    >>> from uow.examples.bank.domain import in_words
    >>> in_words(1250)
    '12.50'
    """
    return f"{cents // 100}.{cents % 100:02}"


class BankError(Exception):
    """
    The bank refuses: base of the errors of this domain.
    """


@define
class Overdrawn(BankError):
    """
    An account holds less than was to be taken from it.
    """

    number: str
    balance: int
    amount: int

    def __str__(self) -> str:
        return f"account {self.number!r} holds {in_words(self.balance)} and cannot pay {in_words(self.amount)}"


@frozen
class AccountOpened(Event):
    """
    The bank has a new account.
    """

    number: str


@frozen
class MoneyMoved(Event):
    """
    Money went from one account to another, or was paid in if there is no *source*.
    """

    reference: str
    source: str | None
    target: str
    amount: int


@entity(key="number")
class Account(Aggregate):
    """
    An account, which is never below zero.
    """

    number: str
    balance: int = 0

    @classmethod
    def open(cls, number: str) -> "Account":
        """Open an empty account."""
        account = cls(number)
        account.record(AccountOpened(number))
        return account

    def deposit(self, amount: int) -> None:
        """Put *amount* in."""
        self.balance += amount

    def withdraw(self, amount: int) -> None:
        """Take *amount* out; Overdrawn if there is less."""
        if amount > self.balance:
            raise Overdrawn(self.number, self.balance, amount)
        self.balance -= amount


@entity
class Transfer(Aggregate):
    """
    A payment that was made. No two have the same reference; the store's unique constraint sees to that.
    """

    reference: str
    source: str | None
    target: str
    amount: int
    id: int | None = None

    @classmethod
    def move(cls, reference: str, source: Account | None, target: Account, amount: int) -> "Transfer":
        """Move *amount* from *source*, or from outside the bank if there is none, to *target*."""
        if source is not None:
            source.withdraw(amount)
        target.deposit(amount)
        transfer = cls(reference, None if source is None else source.number, target.number, amount)
        transfer.record(MoneyMoved(reference, transfer.source, transfer.target, amount))
        return transfer
