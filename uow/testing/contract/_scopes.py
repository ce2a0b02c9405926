"""
Rules 1 and 2: no silent loss, explicit commit.
"""

import logging
from contextlib import suppress

import pytest

from uow import State
from uow.errors import (
    DatabaseError,
    NotNullViolation,
    UnitOfWorkEnded,
    UnitOfWorkRolledBack,
)
from uow.testing._harness import Harness
from uow.testing._model import Account

from ._base import Contract

__all__ = ["ScopeRules"]

REFUSED = None
"""The owner of an account that every database refuses: it must have one."""


class ScopeRules(Contract):
    """
    How a unit ends, and what is kept of it.
    """

    # ------------------------------------------------------------------------------------------------ 1. no silent loss

    def test_rule_01_a_committed_unit_is_durable(self, harness: Harness) -> None:
        """After commit() returned, another unit sees the work."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

            assert ["A-1"] == harness.numbers()
            assert State.COMMITTED is bank.state

        assert ["A-1"] == harness.numbers()
        assert harness.idle()

    def test_rule_01_changes_and_removals_are_durable(self, harness: Harness) -> None:
        """A change of a loaded entity and a removal are work like an addition."""
        with harness.bank() as bank:
            bank.accounts.add_all([Account("A-1", "Ann", 10), Account("B-2", "Bob", 20)])
            bank.commit()
        with harness.bank() as bank:
            bank.accounts.get("A-1").balance = 11
            bank.accounts.remove(bank.accounts.get("B-2"))
            bank.commit()

        with harness.bank() as bank:
            assert [("A-1", 11)] == [(account.number, account.balance) for account in bank.accounts.list()]

    def test_rule_01_a_swallowed_error_is_raised_at_the_end_of_the_block(self, harness: Harness) -> None:
        """A block that swallowed a database error ends with UnitOfWorkRolledBack, from that error."""
        bank = harness.bank()
        with pytest.raises(UnitOfWorkRolledBack, match="swallowed") as caught:
            with bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                bank.accounts.add(Account("X", REFUSED))
                with pytest.raises(NotNullViolation):
                    bank.flush()

        assert isinstance(caught.value.__cause__, NotNullViolation)
        assert "nested()" in str(caught.value)
        assert State.ROLLED_BACK is bank.state
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_01_a_swallowed_error_is_raised_by_commit(self, harness: Harness) -> None:
        """commit() after a swallowed database error raises UnitOfWorkRolledBack, from that error."""
        with pytest.raises(UnitOfWorkRolledBack) as caught:
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                bank.accounts.add(Account("X", REFUSED))
                with pytest.raises(NotNullViolation):
                    bank.flush()
                bank.commit()

        assert isinstance(caught.value.__cause__, NotNullViolation)
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_01_an_error_swallowed_in_a_nested_scope_is_raised_at_its_end(self, harness: Harness) -> None:
        """A nested block that swallowed a database error ends with UnitOfWorkRolledBack; the outer one goes on."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with pytest.raises(UnitOfWorkRolledBack) as caught:
                with bank.nested() as nested:
                    nested.accounts.add(Account("B-2", "Bob"))
                    nested.flush()
                    nested.accounts.add(Account("X", REFUSED))
                    with pytest.raises(NotNullViolation):
                        nested.flush()
            bank.commit()

        assert isinstance(caught.value.__cause__, NotNullViolation)
        assert ["A-1"] == harness.numbers()

    def test_rule_01_an_error_swallowed_in_a_nested_scope_is_raised_by_its_commit(self, harness: Harness) -> None:
        """A nested commit() after a swallowed database error raises; swallowed too, the end of the block does."""
        with harness.bank() as bank:
            with pytest.raises(UnitOfWorkRolledBack) as caught:
                with bank.nested() as nested:
                    nested.accounts.add(Account("X", REFUSED))
                    with suppress(DatabaseError):
                        nested.flush()
                    with pytest.raises(UnitOfWorkRolledBack):
                        nested.commit()
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert isinstance(caught.value.__cause__, UnitOfWorkRolledBack)
        assert ["A-1"] == harness.numbers()

    def test_rule_01_an_error_that_left_a_nested_scope_costs_the_outer_one_nothing(self, harness: Harness) -> None:
        """A database error that leaves its nested block and is caught outside loses that block's work alone."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with pytest.raises(NotNullViolation):
                with bank.nested() as nested:
                    nested.accounts.add(Account("B-2", "Bob"))
                    nested.flush()
                    nested.accounts.add(Account("X", REFUSED))
                    nested.flush()
            bank.accounts.add(Account("C-3", "Cleo"))
            bank.commit()

        assert ["A-1", "C-3"] == harness.numbers()

    def test_rule_01_an_error_of_the_commit_is_raised_by_it(self, harness: Harness) -> None:
        """A constraint that refuses at commit() raises its error there, and nothing is kept."""
        bank = harness.bank()
        with pytest.raises(NotNullViolation):
            with bank:
                bank.accounts.add_all([Account("A-1", "Ann"), Account("X", REFUSED)])
                bank.commit()

        assert State.ROLLED_BACK is bank.state
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_01_a_swallowed_failure_of_commit_is_raised_at_the_end_of_the_block(self, harness: Harness) -> None:
        """A block that swallowed the failure of its commit() ends with UnitOfWorkRolledBack, from that failure."""
        with pytest.raises(UnitOfWorkRolledBack, match="swallowed") as caught:
            with harness.bank() as bank:
                bank.accounts.add(Account("X", REFUSED))
                with pytest.raises(NotNullViolation):
                    bank.commit()

        assert isinstance(caught.value.__cause__, NotNullViolation)
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_01_an_error_of_the_release_is_raised_by_it(self, harness: Harness) -> None:
        """A constraint that refuses at the clean end of a nested block raises there; the outer one goes on."""
        with harness.bank() as bank:
            with pytest.raises(NotNullViolation):
                with bank.nested() as nested:
                    nested.accounts.add_all([Account("B-2", "Bob"), Account("X", REFUSED)])
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_01_an_error_at_the_start_of_a_nested_scope_breaks_the_outer_one(self, harness: Harness) -> None:
        """What is pending is written before a nested scope begins, and its error belongs to the outer scope."""
        with pytest.raises(UnitOfWorkRolledBack) as caught:
            with harness.bank() as bank:
                bank.accounts.add(Account("X", REFUSED))
                with pytest.raises(NotNullViolation):
                    with bank.nested():
                        raise AssertionError
                assert State.BROKEN is bank.state

        assert isinstance(caught.value.__cause__, NotNullViolation)
        assert harness.idle()

    def test_rule_01_the_users_own_exception_goes_on_although_an_error_was_swallowed(self, harness: Harness) -> None:
        """An exception on its way out of the block is never replaced by UnitOfWorkRolledBack."""
        with pytest.raises(ZeroDivisionError):
            with harness.bank() as bank:
                bank.accounts.add(Account("X", REFUSED))
                with suppress(DatabaseError):
                    bank.flush()
                raise ZeroDivisionError

        assert harness.idle()
        assert [] == harness.numbers()

    # ----------------------------------------------------------------------------------------------- 2. explicit commit

    def test_rule_02_leaving_without_commit_rolls_back(
        self, harness: Harness, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Leaving without commit() rolls back, and the log says at WARNING what was lost, counted."""
        with harness.bank() as bank:
            bank.accounts.add_all([Account("A-1", "Ann"), Account("B-2", "Bob")])
            bank.commit()
        with caplog.at_level(logging.WARNING, "uow"), harness.bank() as bank:
            bank.accounts.get("A-1").balance = 1
            bank.accounts.remove(bank.accounts.get("B-2"))
            bank.flush()
            bank.accounts.add_all([Account("C-3", "Cleo"), Account("D-4", "Dora")])

        assert [(logging.WARNING, "2 added, 1 changed, 1 removed")] == [
            (record.levelno, record.getMessage().partition("rolled back ")[2]) for record in caplog.records
        ]
        assert "without commit()" in caplog.text
        assert type(bank).__name__ in caplog.text
        assert State.ROLLED_BACK is bank.state
        assert ["A-1", "B-2"] == harness.numbers()
        assert harness.idle()

    def test_rule_02_an_exception_rolls_back(self, harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
        """An exception rolls back and goes on as it is; it is loud enough without a warning."""
        error = ValueError("no")
        bank = harness.bank()
        with caplog.at_level(logging.WARNING, "uow"), pytest.raises(ValueError, match="no") as caught:
            with bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                raise error

        assert error is caught.value
        assert [] == caplog.records
        assert State.ROLLED_BACK is bank.state
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_02_leaving_without_work_is_silent(self, harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
        """A block that only read, or whose work was rolled back in a nested scope, has nothing to warn of."""
        with caplog.at_level(logging.WARNING, "uow"), harness.bank(strict=True) as bank:
            assert 0 == bank.accounts.count()
            with bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))
                nested.flush()
                nested.rollback()

        assert [] == caplog.records
        assert harness.idle()

    def test_rule_02_work_that_a_nested_scope_released_is_warned_of(
        self, harness: Harness, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Work that a nested scope handed over counts as the outer scope's."""
        with caplog.at_level(logging.WARNING, "uow"), harness.bank() as bank:
            with bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))

        assert "1 added" in caplog.text
        assert [] == harness.numbers()

    @pytest.mark.parametrize("flush", [False, True])
    def test_rule_02_strict_makes_leaving_without_commit_an_error(self, harness: Harness, flush: bool) -> None:
        """With strict=True, leaving without commit() and with work is UnitOfWorkRolledBack, which says what to call."""
        bank = harness.bank(strict=True)
        with pytest.raises(UnitOfWorkRolledBack, match=r"1 added.*commit\(\).*rollback\(\)"):
            with bank:
                bank.accounts.add(Account("A-1", "Ann"))
                if flush:
                    bank.flush()

        assert State.ROLLED_BACK is bank.state
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_02_an_explicit_rollback_is_silent(self, harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
        """rollback() is the caller's word: no warning, and no error from a strict unit."""
        with caplog.at_level(logging.WARNING, "uow"), harness.bank(strict=True) as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            bank.rollback()

            assert State.ROLLED_BACK is bank.state

        assert [] == caplog.records
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_02_an_explicit_rollback_of_a_broken_scope_is_silent(self, harness: Harness) -> None:
        """rollback() after a database error loses nothing against the caller's word."""
        with harness.bank() as bank:
            bank.accounts.add(Account("X", REFUSED))
            with suppress(DatabaseError):
                bank.flush()
            bank.rollback()

        assert State.ROLLED_BACK is bank.state
        assert harness.idle()

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_rule_02_nothing_begins_again_in_a_scope_that_ended(self, harness: Harness, end: str) -> None:
        """After commit() or rollback(), work and another end of the scope are UnitOfWorkEnded and change nothing."""
        with harness.bank() as bank:
            kept = bank.accounts
            bank.accounts.add(Account("A-1", "Ann"))
            getattr(bank, end)()
            for attempt in (
                lambda: bank.accounts,
                lambda: kept.add(Account("B-2", "Bob")),
                lambda: kept.count(),
                bank.flush,
                bank.commit,
                bank.rollback,
                bank.nested().__enter__,
                lambda: bank.after_commit(print),
            ):
                with pytest.raises(UnitOfWorkEnded, match=r"has ended\. Leave the block"):
                    attempt()

        assert (["A-1"] if end == "commit" else []) == harness.numbers()
        assert harness.idle()

    def test_rule_02_an_exception_after_commit_undoes_nothing(self, harness: Harness) -> None:
        """An exception after commit() goes on, and the work stays durable."""
        bank = harness.bank()
        with pytest.raises(ZeroDivisionError):
            with bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.commit()
                raise ZeroDivisionError

        assert ["A-1"] == harness.numbers()
        assert State.COMMITTED is bank.state

    def test_rule_02_a_unit_that_did_nothing_commits(self, harness: Harness) -> None:
        """commit() without any work is no error."""
        with harness.bank() as bank:
            bank.commit()

        assert State.COMMITTED is bank.state
        assert harness.idle()
