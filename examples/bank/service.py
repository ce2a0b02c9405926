"""
The application's use cases. They know the domain and the port, and not what is behind it.
"""

import re
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

from uow import Lock
from uow.errors import EntityNotFound, UniqueViolation

from .domain import Account, BankError, Transfer
from .port import Bank

__all__ = ["Balances", "FileRefused", "Line", "MalformedLine", "Payment", "PaymentImport", "Refusal", "Report"]


@frozen
class Line:
    """
    A line of a payments file, as it was read: nobody has looked at its fields yet.
    """

    number: int
    fields: Sequence[str]


@frozen
class Refusal:
    """
    A line that was not imported, and why.
    """

    line: int
    reason: str


@define
class Report:
    """
    What became of a payments file.
    """

    imported: int = 0
    refused: list[Refusal] = field(factory=list[Refusal])


@define
class MalformedLine(BankError):
    """
    A line is no payment.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason


@define
class FileRefused(BankError):
    """
    A file was to be imported as a whole, and had lines that cannot be.
    """

    report: Report

    def __str__(self) -> str:
        return f"the file was refused; bad lines in it: {len(self.report.refused)}"


@frozen
class Payment:
    """
    What a line says. A payment without a *source* is money paid in, which opens the account if need be.
    """

    reference: str
    source: str
    target: str
    amount: int

    @classmethod
    def parse(cls, fields: Sequence[str]) -> "Payment":
        """Read the four fields of a line, or raise MalformedLine."""
        if len(fields) != 4:
            raise MalformedLine(f"{len(fields)} fields instead of 4")
        reference, source, target, amount = (text.strip() for text in fields)
        for name, text in (("reference", reference), ("target", target), ("source", source or "none")):
            if not 0 < len(text) <= 40 or not text.isprintable():
                raise MalformedLine(f"{name} {text!r} is not a name of 1 to 40 characters")
        match = re.fullmatch(r"([0-9]{1,12})(?:\.([0-9]{2}))?", amount)
        cents = int(match[1]) * 100 + int(match[2] or 0) if match else 0
        if cents == 0:
            raise MalformedLine(f"amount {amount!r} is not a sum of money such as 12.50")
        return cls(reference, source, target, cents)


@frozen
class PaymentImport:
    """
    Import a file of payments in one unit, in which each line has a nested scope: a bad line is rolled back alone.
    """

    uow: Bank

    def run(self, lines: Iterable[Line], *, atomic: bool = False) -> Report:
        """
        Import *lines* and report what became of them; with *atomic*, all of them or none.

        Raises:
            FileRefused: It was to be *atomic* and a line is bad; nothing was imported.
        """
        report = Report()
        with self.uow as uow:
            for line in lines:
                try:
                    with uow.nested(f"line {line.number}"):
                        self._pay(uow, Payment.parse(line.fields))
                except (BankError, EntityNotFound, UniqueViolation) as error:
                    report.refused.append(Refusal(line.number, _reason(error, line)))
                else:
                    report.imported += 1
            if atomic and report.refused:
                raise FileRefused(report)
            uow.commit()
        return report

    def _pay(self, uow: Bank, payment: Payment) -> None:
        # Locked, since another import may be at work on the same accounts.
        if payment.source:
            source = uow.accounts.get(payment.source, lock=Lock.UPDATE)
            target = uow.accounts.get(payment.target, lock=Lock.UPDATE)
        else:
            source = None
            target = uow.accounts.get_or_none(payment.target, lock=Lock.UPDATE) or self._open(uow, payment.target)
        # That the reference is taken is for the database to find out, when the nested scope ends.
        uow.transfers.add(Transfer.move(payment.reference, source, target, payment.amount))

    def _open(self, uow: Bank, number: str) -> Account:
        account = Account.open(number)
        uow.accounts.add(account)
        return account


def _reason(error: BankError | EntityNotFound | UniqueViolation, line: Line) -> str:
    match error:
        case EntityNotFound():
            return f"there is no account {error.key!r}"
        case UniqueViolation():
            return f"payment {line.fields[0].strip()!r} was made before"
        case _:
            return str(error)


@frozen
class Balances:
    """
    Show who has how much.
    """

    uow: Bank

    def richest(self, limit: int) -> Sequence[Account]:
        """Return the accounts that hold most; they can be read although the unit has ended."""
        with self.uow as uow:
            return uow.accounts.richest(limit)
