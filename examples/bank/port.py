"""
The port: what the application asks of its store, whichever that is.
"""

from collections.abc import Sequence

from uow import AsyncRepository, AsyncUnitOfWork, Repository, UnitOfWork, desc

from .domain import Account, Transfer

__all__ = ["Accounts", "AsyncBank", "Bank"]


class Accounts(Repository[Account]):
    """
    All accounts. A query gets its name here, once for every adapter.
    """

    def richest(self, limit: int) -> Sequence[Account]:
        """Return the accounts that hold most, the first *limit* of them."""
        return self.list(order_by=lambda account: (desc(account.balance), account.number), limit=limit)


class Bank(UnitOfWork):
    """
    A unit of the bank's work.
    """

    accounts: Accounts
    transfers: Repository[Transfer]


class AsyncBank(AsyncUnitOfWork):
    """
    The same, awaited.
    """

    sync: Bank
    accounts: AsyncRepository[Account]
    transfers: AsyncRepository[Transfer]
