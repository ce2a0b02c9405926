"""
Rules 8, 9 and 12: what a failure breaks, and what the caller hears of it.
"""

from collections.abc import Callable
from contextlib import suppress

import pytest

from uow import State
from uow.errors import (
    CheckViolation,
    ConnectionLost,
    DatabaseError,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    ScopeBroken,
    UniqueViolation,
    UnitOfWorkError,
    UnitOfWorkRolledBack,
)
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, Transfer

from ._base import Contract
from ._interrupts import works

__all__ = ["FailureRules"]


class FailureRules(Contract):
    """
    What a failure costs.
    """

    # ----------------------------------------------------------------------------------- 8. an error breaks its scope

    @pytest.mark.parametrize(
        ("spoil", "error"),
        [
            (lambda bank: bank.accounts.add(Account("A-1", "Bob")), UniqueViolation),
            (lambda bank: bank.accounts.add(Account("X", None)), NotNullViolation),
            (lambda bank: bank.accounts.add(Account("X", "Bob", -2000)), CheckViolation),
            (lambda bank: bank.transfers.add(Transfer("nobody", 1)), ForeignKeyViolation),
        ],
    )
    def test_rule_08_an_error_breaks_the_scope_it_happened_in(
        self, harness: Harness, spoil: Callable[[Bank], None], error: type[IntegrityViolation]
    ) -> None:
        """After a database error everything in its scope is ScopeBroken, from that error, until the scope ends."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()
        with harness.bank() as bank:
            kept = bank.accounts
            spoil(bank)
            with pytest.raises(error) as first:
                bank.flush()

            assert State.BROKEN is bank.state

            for attempt in (
                lambda: bank.accounts,
                kept.list,
                lambda: kept.get("A-1"),
                lambda: kept.add(Account("B-2", "Bob")),
                bank.flush,
                bank.nested().__enter__,
                lambda: bank.after_commit(print),
            ):
                with pytest.raises(ScopeBroken, match=r"Put a step that may fail into a nested\(\) scope") as caught:
                    attempt()
                assert first.value is caught.value.__cause__
            bank.rollback()

        assert harness.idle()
        assert ["A-1"] == harness.numbers()

    def test_rule_08_the_outer_scope_goes_on(self, harness: Harness) -> None:
        """An error in a nested scope breaks that one; the outer one reads, writes, nests and commits."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann", 10))
            for number in range(3):
                with suppress(NotNullViolation), bank.nested() as nested:
                    nested.accounts.add(Account(f"B-{number}", "Bob" if number == 1 else None))
                    nested.flush()
                bank.accounts.get("A-1").balance += 1
            bank.commit()

        assert ["A-1", "B-1"] == harness.numbers()
        with harness.bank() as bank:
            assert 13 == bank.accounts.get("A-1").balance

    def test_rule_08_an_error_deep_inside_breaks_only_the_innermost_scope(self, harness: Harness) -> None:
        """The scopes around a broken one stay active."""
        states: list[State] = []
        with harness.bank() as bank:
            with bank.nested() as outer:
                with pytest.raises(NotNullViolation), outer.nested() as inner:
                    inner.accounts.add(Account("X", None))
                    try:
                        inner.flush()
                    finally:
                        states += [unit.state for unit in (bank, outer, inner)]
                outer.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert [State.ACTIVE, State.ACTIVE, State.BROKEN] == states
        assert ["A-1"] == harness.numbers()

    def test_rule_08_a_broken_scope_keeps_its_first_error(self, harness: Harness) -> None:
        """What a broken scope refuses never replaces the cause."""
        with pytest.raises(UnitOfWorkRolledBack) as caught:
            with harness.bank() as bank:
                bank.accounts.add(Account("X", None))
                with pytest.raises(NotNullViolation):
                    bank.flush()
                for _ in range(3):
                    with suppress(ScopeBroken):
                        bank.flush()

        assert isinstance(caught.value.__cause__, NotNullViolation)

    # ---------------------------------------------------------------------------------- 9. some errors doom the unit

    def test_rule_09_a_lost_connection_dooms_the_whole_unit(self, harness: Harness) -> None:
        """A database that disappears is ConnectionLost, transient, and dooms every open scope."""
        with pytest.raises(UnitOfWorkRolledBack, match="whole unit cannot survive") as caught:
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                with suppress(UnitOfWorkRolledBack), bank.nested() as nested:
                    harness.kill(bank)
                    with pytest.raises(ConnectionLost) as first:
                        nested.accounts.count()

                    assert first.value.transient
                    assert [State.DOOMED] * 2 == [unit.state for unit in (bank, nested)]

                    with pytest.raises(ScopeBroken, match="do the whole unit again"):
                        nested.accounts.count()
                bank.commit()

        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert caught.value.transient
        assert harness.idle()
        assert [] == harness.numbers()
        assert works(harness)

    def test_rule_09_a_doomed_unit_that_is_left_raises(self, harness: Harness) -> None:
        """A doomed unit whose error was swallowed in a nested scope is UnitOfWorkRolledBack at the end of its block."""
        with pytest.raises(UnitOfWorkRolledBack):
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                with suppress(ConnectionLost), bank.nested() as nested:
                    nested.accounts.count()
                    harness.kill(bank)
                    nested.accounts.count()
                with suppress(ScopeBroken):
                    bank.accounts.add(Account("B-2", "Bob"))

        assert harness.idle()
        assert works(harness)

    def test_rule_09_a_database_that_disappears_before_the_commit_keeps_nothing(self, harness: Harness) -> None:
        """commit() after the database disappeared raises, and nothing is durable."""
        with pytest.raises(DatabaseError):
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                harness.kill(bank)
                bank.accounts.add(Account("B-2", "Bob"))
                bank.commit()

        assert harness.idle()
        assert [] == harness.numbers()
        assert works(harness)

    def test_rule_09_a_database_that_disappears_under_the_commit_keeps_nothing(self, harness: Harness) -> None:
        """commit() with everything written and the database gone raises an error of the framework's own."""
        with pytest.raises(UnitOfWorkError):
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                harness.kill(bank)
                bank.commit()

        assert harness.idle()
        assert [] == harness.numbers()
        assert works(harness)

    # ----------------------------------------------------------------------------- 12. the original exception arrives

    def test_rule_12_a_failing_rollback_does_not_replace_the_exception(self, harness: Harness) -> None:
        """An exception leaves the block as it is although the database disappeared meanwhile."""
        error = ValueError("no")
        with pytest.raises(ValueError, match="no") as caught:
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                with bank.nested() as nested:
                    nested.accounts.add(Account("B-2", "Bob"))
                    nested.flush()
                    harness.kill(bank)
                    raise error

        assert error is caught.value
        assert any("while rolling back" in note for note in getattr(error, "__notes__", []))
        assert harness.idle()
        assert [] == harness.numbers()
        assert works(harness)

    def test_rule_12_a_failing_hook_does_not_replace_the_exception(self, harness: Harness) -> None:
        """What after_rollback hooks raise is attached to the exception that rolled back; all of them run."""
        ran: list[int] = []

        def fail() -> None:
            ran.append(1)
            raise LookupError("hook")

        error = ValueError("no")
        with pytest.raises(ValueError, match="no") as caught:
            with harness.bank() as bank:
                bank.after_rollback(fail)
                bank.after_rollback(lambda: ran.append(2))
                raise error

        assert error is caught.value
        assert [1, 2] == ran
        assert any("while rolling back" in note for note in error.__notes__)
        assert harness.idle()

    def test_rule_12_a_nested_rollback_that_fails_dooms_the_unit(self, harness: Harness) -> None:
        """When the rollback to a savepoint fails, the nested scope's exception goes on and the unit cannot commit."""
        with pytest.raises(UnitOfWorkRolledBack):
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                with pytest.raises(ValueError, match="no"):
                    with bank.nested() as nested:
                        nested.accounts.add(Account("B-2", "Bob"))
                        nested.flush()
                        harness.kill(bank)
                        raise ValueError("no")
                bank.commit()

        assert harness.idle()
        assert [] == harness.numbers()
        assert works(harness)
