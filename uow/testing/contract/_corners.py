"""
Corners where rules meet: what was once wrong, and must not be again.
"""

import pytest

from uow import Event, Handlers, State
from uow.errors import CommitOutcomeUnknown, EntityNotFound, NestedScopeOpen, WrongTask
from uow.testing._harness import Harness
from uow.testing._model import Account, MoneyMoved

from ._base import Contract

__all__ = ["Corners"]


class Corners(Contract):
    """
    Rules 1, 13, 15 and 17 where they meet each other.
    """

    def test_rule_04_a_hook_that_leaves_a_nested_scope_open_stops_the_commit(self, harness: Harness) -> None:
        """Nothing is kept, the inner scope's hooks do not run, and commit() says which scope it was."""
        seen: list[str] = []
        bank = harness.bank()
        with pytest.raises(NestedScopeOpen, match="left the nested scope 'root > forgotten' open"), bank:

            @bank.before_commit
            def forget() -> None:
                bank.nested("forgotten").__enter__()
                bank.accounts.add(Account("B-2", "Bob"))
                bank.after_commit(lambda: seen.append("ran"))

            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert State.ROLLED_BACK is bank.state
        assert [] == seen
        assert [] == harness.numbers()
        assert harness.idle()

    def test_rule_15_an_event_recorded_between_two_units_belongs_to_the_second(self, harness: Harness) -> None:
        """What an aggregate recorded while it was in no unit is handled by the one that it comes to."""
        handled: list[Event] = []
        handlers = Handlers()
        handlers.after_commit(MoneyMoved)(handled.append)
        with harness.bank(handlers=handlers) as bank:
            account = Account("A-1", "Ann", 10)
            bank.accounts.add(account)
            bank.commit()
        account.withdraw(4)
        with harness.bank(handlers=handlers) as bank:
            bank.accounts.add(account)
            bank.commit()
        with harness.bank() as bank:
            balance = bank.accounts.get("A-1").balance

        assert [MoneyMoved("A-1", 4)] == handled
        assert 6 == balance

    def test_rule_15_added_and_removed_and_added_again(self, harness: Harness) -> None:
        """However often it was added before the rollback, the events that waited in it wait again."""
        account = Account("A-1", "Ann", 10)
        account.withdraw(1)
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.accounts.remove(account)
            bank.accounts.add(account)
            bank.rollback()

        assert (MoneyMoved("A-1", 1),) == account.pending_events

    def test_rule_17_an_interrupt_in_a_hook_comes_after_the_others(self, harness: Harness) -> None:
        """All other hooks run, their errors are noted on the interrupt, and the commit stands."""
        seen: list[str] = []

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as raised, harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.after_commit(interrupt)
            bank.after_commit(lambda: 1 // 0)
            bank.after_commit(lambda: seen.append("ran"))
            bank.commit()

        assert ["ran"] == seen
        assert "ZeroDivisionError" in raised.value.__notes__[0]
        assert ["A-1"] == harness.numbers()

    def test_repository_removed_and_added_again(self, harness: Harness) -> None:
        """A removed entity is new: it can be added again, in the same unit or the next."""
        account = Account("A-1", "Ann", 10)
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.commit()
        with harness.bank() as bank:
            account = bank.accounts.get("A-1")
            bank.accounts.remove(account)
            bank.flush()
            with pytest.raises(EntityNotFound, match="Cannot remove Account 'A-1'"):
                bank.accounts.remove(account)
            bank.accounts.add(account)
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_repository_removed_in_a_unit_that_rolled_back(self, harness: Harness) -> None:
        """The entity is still the stored one, and can be changed in the next unit."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann", 10))
            bank.commit()
        with harness.bank() as bank:
            account = bank.accounts.get("A-1")
            bank.accounts.remove(account)
            bank.flush()
            bank.rollback()
        with harness.bank() as bank:
            bank.accounts.add(account)
            account.balance = 5
            bank.commit()
        with harness.bank() as bank:
            assert 5 == bank.accounts.get("A-1").balance

    def test_repository_one_entity_in_the_place_of_another(self, harness: Harness) -> None:
        """A key that is given up and taken in the same flush is free."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann", 10))
            bank.commit()
        with harness.bank() as bank:
            bank.accounts.remove(bank.accounts.get("A-1"))
            bank.accounts.add(Account("A-1", "Bob", 1))
            bank.commit()
        with harness.bank() as bank:
            assert "Bob" == bank.accounts.get("A-1").owner

    def test_rule_06_another_thread_cannot_enter_an_active_unit(self, harness: Harness) -> None:
        """It is told to take a unit of its own, not to nest."""
        with harness.bank() as bank:
            with pytest.raises(WrongTask, match="Give each thread and task a unit of its own"):
                harness.elsewhere(bank.__enter__)
            bank.commit()

    def test_rule_16_a_handler_whose_own_unit_is_in_doubt(self, harness: Harness) -> None:
        """What a handler does not know of another unit's commit says nothing about this one: it is rolled back."""
        doubt = CommitOutcomeUnknown("Other (root)", "its connection was lost")

        def fail() -> None:
            raise doubt

        bank = harness.bank()
        with pytest.raises(CommitOutcomeUnknown, match=r"Other \(root\)"), bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.before_commit(fail)
            bank.commit()

        assert State.ROLLED_BACK is bank.state
        assert [] == harness.numbers()
