"""
Steps that many tests of the contract take.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from attrs import frozen

from uow import Event
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank

__all__ = ["Noted", "Oops", "balances", "execute", "fail", "needs_sql", "quiet", "sent_since", "stored", "told"]


class Oops(Exception):
    """
    What goes wrong in the application itself.
    """


@frozen
class Noted(Event):
    """
    Something worth a word, recorded on a unit itself.
    """

    text: str


def stored(harness: Harness, *accounts: Account) -> None:
    """Commit *accounts* in a unit of their own."""
    with harness.bank() as bank:
        bank.accounts.add_all(accounts)
        bank.commit()


def balances(harness: Harness) -> dict[str, int]:
    """Return what a fresh unit sees."""
    with harness.bank() as bank:
        return {account.number: account.balance for account in bank.accounts.list(order_by=lambda a: a.number)}


def sent_since(harness: Harness, mark: int) -> list[str]:
    """Return the statements after the first *mark*; none where the adapter has no statements."""
    return list((harness.statements or ())[mark:])


@contextmanager
def quiet(harness: Harness) -> Iterator[None]:
    """Fail if the block sends a statement."""
    mark = len(harness.statements or ())
    yield

    assert [] == sent_since(harness, mark)


def needs_sql(harness: Harness) -> None:
    """Skip a test that is about SQL where there is none."""
    if harness.statements is None:
        pytest.skip(f"{harness.name} has no SQL")


def execute(bank: Bank, sql: str) -> Any:
    """Execute *sql* past the repositories, in the transaction of the unit *bank*."""
    from sqlalchemy import text

    session: Any = bank.session  # type: ignore[attr-defined]
    return session.execute(text(sql))


def fail(error: Exception | None = None) -> None:
    """Raise *error*, as a hook or handler."""
    raise error or Oops()


def told(seen: list[Any], word: object) -> Callable[[], None]:
    """Return a hook that tells *seen* a word."""
    return lambda: seen.append(word)
