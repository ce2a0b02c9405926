"""
The domain service behind the counter. It does its part in whatever unit is open around it.
"""

from uow import DomainService, Lock

from .domain import Account, Transfer
from .port import Bank

__all__ = ["Teller"]


class Teller(DomainService[Bank]):
    """
    Opens accounts and moves money between them.
    """

    def open_account(self, number: str) -> Account:
        """Open an account; that its number is taken is for the database to find out."""
        account = Account.open(number)
        self.uow.accounts.add(account)
        return account

    def transfer(self, reference: str, source: str | None, target: str, amount: int) -> Transfer:
        """
        Move *amount* from *source*, or from outside the bank if there is none, to *target*.

        Raises:
            Overdrawn: The source holds less.

            uow.errors.EntityNotFound: There is no such account.
        """
        # Locked in one order by everybody, so that two transfers between the same accounts do not wait for each other.
        numbers = sorted({target} if source is None else {source, target})
        accounts = {number: self.uow.accounts.get(number, lock=Lock.UPDATE) for number in numbers}
        transfer = Transfer.move(reference, None if source is None else accounts[source], accounts[target], amount)
        self.uow.transfers.add(transfer)
        return transfer

    def balance(self, number: str) -> int:
        """
        Tell what an account holds.

        Raises:
            uow.errors.EntityNotFound: There is no such account.
        """
        return self.uow.accounts.get(number).balance
