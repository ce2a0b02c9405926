"""
Rules 3 and 4: nested units.
"""

from contextlib import ExitStack, suppress

import pytest

from uow import State
from uow.errors import (
    NestedScopeOpen,
    NotNullViolation,
    OutsideUnitOfWork,
    UnitOfWorkEnded,
    UnitOfWorkRolledBack,
)
from uow.testing._harness import Harness
from uow.testing._model import Account

from ._base import Contract

__all__ = ["NestedRules"]

DEPTH = 30


class NestedRules(Contract):
    """
    What a nested unit is, and how it ends.
    """

    def test_rule_03_a_nested_unit_releases_on_a_clean_exit(self, harness: Harness) -> None:
        """A nested unit's work is the outer one's once its block ended, and durable only with the root's commit()."""
        with harness.bank() as bank:
            with bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))

            assert State.RELEASED is nested.state
            assert ["A-1"] == [account.number for account in bank.accounts.list()]

            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_03_a_released_unit_is_lost_with_its_root(self, harness: Harness) -> None:
        """A release makes nothing durable."""
        with harness.bank() as bank:
            with bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))
                nested.commit()
            bank.rollback()

        assert [] == harness.numbers()

    def test_rule_03_a_released_unit_is_lost_with_the_nested_one_around_it(self, harness: Harness) -> None:
        """A release hands over to the scope around, whose rollback takes the work along."""
        with harness.bank() as bank:
            with bank.nested() as outer:
                with outer.nested() as inner:
                    inner.accounts.add(Account("A-1", "Ann"))
                outer.rollback()
            bank.accounts.add(Account("B-2", "Bob"))
            bank.commit()

        assert ["B-2"] == harness.numbers()

    @pytest.mark.parametrize("flush", [False, True])
    def test_rule_03_a_nested_unit_rolls_back_on_an_exception(self, harness: Harness, flush: bool) -> None:
        """An exception undoes the nested unit alone, goes on to the caller, and the outer one works on."""
        error = ValueError("no")
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann", 10))
            nested = bank.nested()
            with pytest.raises(ValueError, match="no") as caught:
                with nested:
                    nested.accounts.add(Account("B-2", "Bob"))
                    nested.accounts.get("A-1").balance = 11
                    if flush:
                        nested.flush()
                    raise error

            assert error is caught.value
            assert State.ROLLED_BACK is nested.state
            assert 10 == bank.accounts.get("A-1").balance
            assert not bank.accounts.exists(lambda a: a.number == "B-2")

            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_03_commit_ends_a_nested_unit_early(self, harness: Harness) -> None:
        """After nested.commit() the work is kept whatever leaves the block, and more work is UnitOfWorkEnded."""
        with harness.bank() as bank:
            with pytest.raises(ZeroDivisionError):
                with bank.nested() as nested:
                    nested.accounts.add(Account("A-1", "Ann"))
                    nested.commit()
                    for attempt in (lambda: nested.accounts, nested.flush, nested.commit, nested.rollback):
                        with pytest.raises(UnitOfWorkEnded, match="released"):
                            attempt()
                    raise ZeroDivisionError
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_03_rollback_ends_a_nested_unit_early(self, harness: Harness) -> None:
        """After nested.rollback() the block ends in peace without the work, and more work is UnitOfWorkEnded."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with bank.nested() as nested:
                nested.accounts.add(Account("B-2", "Bob"))
                nested.flush()
                nested.rollback()
                for attempt in (lambda: nested.accounts, nested.flush, nested.commit, nested.rollback):
                    with pytest.raises(UnitOfWorkEnded, match="rolled back"):
                        attempt()
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_03_a_broken_nested_unit_can_be_rolled_back(self, harness: Harness) -> None:
        """nested.rollback() after a database error is the caller's word: the block ends in peace."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with bank.nested() as nested:
                nested.accounts.add(Account("X", None))
                with suppress(NotNullViolation):
                    nested.flush()
                nested.rollback()
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_03_nested_units_follow_one_another(self, harness: Harness) -> None:
        """Kept and lost nested units one after the other do not touch each other."""
        with harness.bank() as bank:
            for line in range(10):
                with suppress(ValueError), bank.nested(f"line {line}") as nested:
                    nested.accounts.add(Account(f"A-{line}", "Ann"))
                    if line % 2:
                        nested.flush()
                    if line % 3 == 0:
                        raise ValueError
            bank.commit()

        assert [f"A-{line}" for line in range(10) if line % 3] == harness.numbers()

    # --------------------------------------------------------------------------------------- 4. a nested unit is a unit

    def test_rule_04_a_nested_unit_is_a_unit(self, harness: Harness) -> None:
        """A nested unit has the outer one's class and its very repositories."""
        with harness.bank() as bank, bank.nested() as nested, nested.nested() as inner:
            assert type(bank) is type(nested) is type(inner)
            assert bank.accounts is nested.accounts is inner.accounts
            assert [0, 1, 2] == [unit.status().depth for unit in (bank, nested, inner)]

    def test_rule_04_an_entity_is_the_same_object_in_a_nested_unit(self, harness: Harness) -> None:
        """An entity that the outer unit added or loaded is the nested one's too."""
        with harness.bank() as bank:
            account = Account("A-1", "Ann")
            bank.accounts.add(account)
            with bank.nested() as nested:
                assert account is nested.accounts.get("A-1")

            assert account is bank.accounts.get("A-1")

            bank.rollback()

    @pytest.mark.parametrize("lost", range(0, DEPTH + 1, 10))
    def test_rule_04_units_nest_to_any_depth(self, harness: Harness, lost: int) -> None:
        """A rollback at some depth takes along what is deeper and nothing else."""
        kept = [f"A-{depth:02}" for depth in range(1, lost or DEPTH + 1)]
        with harness.bank() as bank:
            with ExitStack() as stack:
                unit = bank
                for depth in range(1, DEPTH + 1):
                    if depth == lost:
                        stack.enter_context(pytest.raises(ZeroDivisionError))
                    unit = stack.enter_context(unit.nested())
                    unit.accounts.add(Account(f"A-{depth:02}", "Ann"))

                assert DEPTH == unit.status().depth

                if lost:
                    raise ZeroDivisionError
            bank.commit()

        assert kept == harness.numbers()

    def test_rule_04_work_belongs_to_the_innermost_scope_through_whichever_handle(self, harness: Harness) -> None:
        """Work done through the outer unit while a nested one is open is rolled back with the nested one."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann", 10))
            account = bank.accounts.get("A-1")
            with pytest.raises(ZeroDivisionError):
                with bank.nested():
                    bank.accounts.add(Account("B-2", "Bob"))
                    bank.flush()
                    bank.accounts.add(Account("C-3", "Cleo"))
                    account.balance = 11
                    raise ZeroDivisionError

            assert 10 == account.balance

            bank.commit()

        assert ["A-1"] == harness.numbers()

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_rule_04_an_outer_scope_does_not_end_while_an_inner_one_is_open(self, harness: Harness, end: str) -> None:
        """Ending an outer scope while an inner one is open is NestedScopeOpen and changes nothing."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with bank.nested("outer") as outer:
                outer.accounts.add(Account("B-2", "Bob"))
                with outer.nested("inner") as inner:
                    inner.accounts.add(Account("C-3", "Cleo"))
                    for unit in (bank, outer):
                        with pytest.raises(NestedScopeOpen, match=r"outer > inner.*Leave the nested block first"):
                            getattr(unit, end)()

                    assert [State.ACTIVE] * 3 == [unit.state for unit in (bank, outer, inner)]

                    inner.accounts.add(Account("D-4", "Dora"))
            bank.commit()

        assert ["A-1", "B-2", "C-3", "D-4"] == harness.numbers()

    def test_rule_04_an_ended_inner_scope_is_open_until_its_block_was_left(self, harness: Harness) -> None:
        """The outer scope waits for the end of the inner block, not only for its commit()."""
        with harness.bank() as bank:
            with bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))
                nested.commit()
                with pytest.raises(NestedScopeOpen, match="was not left yet"):
                    bank.commit()
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_04_nested_blocks_left_out_of_order_are_an_error(self, harness: Harness) -> None:
        """Leaving an outer nested block first rolls both back and says so; leaving the inner one then says so too."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            outer = bank.nested("outer").__enter__()
            outer.accounts.add(Account("B-2", "Bob"))
            inner = outer.nested("inner").__enter__()
            inner.accounts.add(Account("C-3", "Cleo"))
            with pytest.raises(NestedScopeOpen, match=r"outer > inner.*innermost first") as complaint:
                outer.__exit__(None, None, None)
            with pytest.raises(UnitOfWorkRolledBack) as caught:
                inner.__exit__(None, None, None)

            assert complaint.value is caught.value.__cause__
            assert [State.ROLLED_BACK] * 2 == [unit.state for unit in (outer, inner)]

            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_04_a_root_left_before_its_nested_block_is_an_error(self, harness: Harness) -> None:
        """Leaving the root while a nested scope is open rolls everything back and says so."""
        bank = harness.bank().__enter__()
        bank.accounts.add(Account("A-1", "Ann"))
        nested = bank.nested().__enter__()
        nested.accounts.add(Account("B-2", "Bob"))
        with pytest.raises(NestedScopeOpen, match="still open"):
            bank.__exit__(None, None, None)
        with pytest.raises(UnitOfWorkRolledBack):
            nested.__exit__(None, None, None)

        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_04_an_exception_through_a_forgotten_nested_scope_goes_on(self, harness: Harness) -> None:
        """An exception that leaves the root with a nested scope open is not replaced by the complaint about it."""
        units = []
        with pytest.raises(ZeroDivisionError):
            with harness.bank() as bank:
                nested = bank.nested().__enter__()
                units.append(nested)
                nested.accounts.add(Account("A-1", "Ann"))
                nested.flush()
                raise ZeroDivisionError

        assert [State.ROLLED_BACK] == [unit.state for unit in units]
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_04_a_nested_handle_ends_with_its_block(self, harness: Harness) -> None:
        """A nested unit used after its block is OutsideUnitOfWork, although the outer one is open."""
        with harness.bank() as bank:
            with bank.nested() as nested:
                pass
            for attempt in (lambda: nested.accounts, nested.flush, nested.commit, nested.rollback):
                with pytest.raises(OutsideUnitOfWork):
                    attempt()
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_04_a_nested_handle_may_be_entered_again(self, harness: Harness) -> None:
        """A nested unit is a handle too: entered again, it opens a fresh scope."""
        with harness.bank() as bank:
            nested = bank.nested()
            for number in ("A-1", "B-2"):
                with nested:
                    nested.accounts.add(Account(number, "Ann"))
            bank.commit()

        assert ["A-1", "B-2"] == harness.numbers()

    def test_rule_04_a_nested_handle_of_an_earlier_scope_is_no_part_of_the_next(self, harness: Harness) -> None:
        """A nested unit whose root ended cannot end the root's next scope or work in it."""
        bank = harness.bank()
        bank.__enter__()
        forgotten = bank.nested().__enter__()
        with suppress(NestedScopeOpen):
            bank.__exit__(None, None, None)
        with bank:
            bank.accounts.add(Account("A-1", "Ann"))
            for attempt in (lambda: forgotten.accounts, forgotten.flush, forgotten.commit, forgotten.rollback):
                with pytest.raises((OutsideUnitOfWork, UnitOfWorkEnded)):
                    attempt()
            bank.commit()

        assert ["A-1"] == harness.numbers()
