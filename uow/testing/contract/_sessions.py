"""
Rule 7, and what rules 5 and 6 say about a session: for adapters whose units have one.
"""

from typing import Any

import pytest

from uow import State
from uow.errors import OutsideUnitOfWork, TransactionOwned, WrongTask
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank

from ._base import Contract

__all__ = ["SessionRules"]


def session_of(bank: Bank) -> Any:
    """Return the session of a unit that has one; skip the test otherwise."""
    session = getattr(bank, "session", None)
    if session is None:
        bank.rollback()
        pytest.skip(f"{type(bank).__name__} has no session")
    return session


class SessionRules(Contract):
    """
    The session inside a unit keeps the unit's rules.
    """

    def test_rule_05_a_session_that_was_kept_does_nothing(self, harness: Harness) -> None:
        """The session of a unit is OutsideUnitOfWork after the block."""
        with harness.bank() as bank:
            session = session_of(bank)
        for attempt in (
            lambda: bank.session,  # type: ignore[attr-defined]
            lambda: session.get(Account, "A-1"),
            lambda: session.add(Account("A-1", "Ann")),
            session.flush,
            session.connection,
        ):
            with pytest.raises(OutsideUnitOfWork):
                attempt()

        assert harness.idle()

    def test_rule_05_a_session_that_was_kept_lets_go_of_what_was_removed(self, harness: Harness) -> None:
        """What a unit removed can be added to another one while somebody still has the session of the first."""
        account = Account("A-1", "Ann")
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.commit()
        with harness.bank() as bank:
            session = session_of(bank)
            bank.accounts.remove(account)
            bank.commit()
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.commit()

        assert session is not None
        assert harness.idle()

    def test_rule_06_another_thread_cannot_use_the_session(self, harness: Harness) -> None:
        """The session of a unit belongs to its thread too."""
        with harness.bank() as bank:
            session = session_of(bank)
            for attempt in (session.connection, session.flush, lambda: session.get(Account, "A-1")):
                with pytest.raises(WrongTask):
                    harness.elsewhere(attempt)

        assert harness.idle()

    @pytest.mark.parametrize(
        ("verb", "instead"),
        [
            ("commit", r"uow\.commit\(\)"),
            ("rollback", r"uow\.rollback\(\)"),
            ("begin_nested", r"uow\.nested\(\)"),
            ("begin", "with uow:"),
            ("close", "[Ll]eave the unit's block"),
            ("reset", "[Ll]eave the unit's block"),
            ("invalidate", "the unit's block"),
            ("prepare", r"uow\.commit\(\)"),
        ],
    )
    def test_rule_07_the_session_does_not_end_the_transaction(self, harness: Harness, verb: str, instead: str) -> None:
        """What would begin or end the transaction on the session is TransactionOwned and names the unit's own verb."""
        with harness.bank() as bank:
            session = session_of(bank)
            if not hasattr(session, verb):
                pytest.skip(f"{type(session).__name__} has no {verb}()")
            bank.accounts.add(Account("A-1", "Ann"))
            with pytest.raises(TransactionOwned, match=instead):
                getattr(session, verb)()
            with bank.nested(), pytest.raises(TransactionOwned):
                getattr(session, verb)()

            assert State.ACTIVE is bank.state

            bank.commit()

        assert ["A-1"] == harness.numbers()
        assert harness.idle()
