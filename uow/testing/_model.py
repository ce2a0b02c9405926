"""
The small bank that the contract suite works with.
"""

from collections.abc import Sequence

from attrs import frozen

from uow import Aggregate, Event, Repository, UnitOfWork, entity

__all__ = ["Account", "Accounts", "Bank", "Document", "Line", "MoneyMoved", "Overdrawn", "Transfer"]


@frozen
class MoneyMoved(Event):
    """
    An amount went out of an account, or into it when negative.
    """

    number: str
    amount: int


@frozen
class Overdrawn(Event):
    """
    An account fell below zero.
    """

    number: str


@entity(key="number")
class Account(Aggregate):
    """
    An account; its balance is at least -1000 and its owner is not null in the database.
    """

    number: str
    owner: str | None
    balance: int = 0
    note: str | None = None

    def withdraw(self, amount: int) -> None:
        """Take *amount* out."""
        self.balance -= amount
        self.record(MoneyMoved(self.number, amount))
        if self.balance < 0:
            self.record(Overdrawn(self.number))


@entity
class Transfer:
    """
    A transfer; its key is generated, its source is an account.
    """

    source: str
    amount: int
    id: int | None = None


@entity(version="version")
class Document:
    """
    A document with a unique title and a counted version.
    """

    id: int
    title: str
    version: int | None = None


@entity(key=("order", "line"))
class Line:
    """
    A line of an order, known by both together.
    """

    order: str
    line: int
    text: str | None = None


class Accounts(Repository[Account]):
    """
    Accounts, with a named query.
    """

    def overdrawn(self) -> Sequence[Account]:
        """Return the accounts below zero."""
        return self.list(lambda a: a.balance < 0, order_by=lambda a: a.number)


class Bank(UnitOfWork):
    """
    The port.
    """

    accounts: Accounts
    transfers: Repository[Transfer]
    documents: Repository[Document]
    lines: Repository[Line]
