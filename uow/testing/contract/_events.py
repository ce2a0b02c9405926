"""
Rules 15 to 17: hooks and events, which live and die with their scope.
"""

from typing import Any

import pytest
from attrs import frozen

from uow import Event, Handlers, State
from uow.errors import (
    EventCycle,
    NotNullViolation,
    OutsideUnitOfWork,
    UniqueViolation,
    UnitOfWorkEnded,
    UnitOfWorkRolledBack,
)
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, MoneyMoved, Overdrawn

from ._hooks import HookRules
from ._steps import Noted, Oops, balances, fail, stored, told

__all__ = ["EventRules"]


@frozen
class NotedTwice(Noted):
    """
    A more special event.
    """


class EventRules(HookRules):
    """
    Rules 15 to 17.
    """

    # ------------------------------------------------------------------------------------------------- 15. the events

    def test_rule_15_events_live_and_die_with_their_scope(self, harness: Harness) -> None:
        """Events of a released scope are handled with the others; those of a rolled-back one are not."""
        stored(harness, Account("A", "Ann", 100))
        handlers, seen = _listening(MoneyMoved)
        with harness.bank(handlers=handlers) as bank:
            account = bank.accounts.get("A")
            account.withdraw(1)
            with bank.nested():
                account.withdraw(2)
                with bank.nested() as inner:
                    account.withdraw(3)
                    inner.rollback()
            with bank.nested() as nested:
                with nested.nested():
                    account.withdraw(4)
                nested.rollback()
            account.withdraw(5)
            early = list(seen)
            bank.commit()

        assert [] == early
        assert [("inside", 1), ("inside", 2), ("inside", 5), ("after", 1), ("after", 2), ("after", 5)] == [
            (when, event.amount) for when, event in seen
        ]
        assert {"A": 92} == balances(harness)

    def test_rule_15_an_event_of_the_unit_itself(self, harness: Harness) -> None:
        """`record()` takes an event that belongs to no aggregate; it is an error outside and in an ended scope."""
        handlers, seen = _listening(Noted)
        bank = harness.bank(handlers=handlers)
        with pytest.raises(OutsideUnitOfWork, match=r"Cannot call record\(\)"):
            bank.record(Noted("early"))
        with bank:
            bank.record(Noted("one"))
            with bank.nested() as nested:
                bank.record(Noted("lost"))
                nested.rollback()
                with pytest.raises(UnitOfWorkEnded):
                    bank.record(Noted("late"))
            bank.commit()
            with pytest.raises(UnitOfWorkEnded):
                bank.record(Noted("late"))

        assert [("inside", Noted("one")), ("after", Noted("one"))] == seen

    def test_rule_15_events_that_waited_in_a_new_aggregate(self, harness: Harness) -> None:
        """Events recorded on an aggregate before its add are the unit's from then on, in their order."""
        handlers, seen = _listening(Event)
        account = Account("A", "Ann", 1)
        account.withdraw(2)
        with harness.bank(handlers=handlers) as bank:
            bank.record(Noted("first"))
            bank.accounts.add(account)
            bank.record(Noted("last"))
            bank.commit()

        expected = [Noted("first"), MoneyMoved("A", 2), Overdrawn("A"), Noted("last")]

        assert expected == [event for when, event in seen if when == "inside"]
        assert expected == [event for when, event in seen if when == "after"]
        assert () == account.pending_events

    def test_rule_15_an_event_after_the_unit_waits_in_its_aggregate(self, harness: Harness) -> None:
        """What an aggregate records when its unit has ended waits in it; adding it nowhere else loses nothing."""
        handlers, seen = _listening(MoneyMoved)
        account = Account("A", "Ann", 10)
        with harness.bank(handlers=handlers) as bank:
            bank.accounts.add(account)
            bank.commit()
        account.withdraw(1)

        assert [] == seen
        assert (MoneyMoved("A", 1),) == account.pending_events

    # ---------------------------------------------------------------------------------------- 16. handlers inside

    def test_rule_16_handlers_that_are_registered_late(self, harness: Harness) -> None:
        """A unit that was made before any handler was registered calls those that came later."""
        handlers, seen = Handlers(), list[object]()
        bank = harness.bank(handlers=handlers)
        handlers.after_commit(Noted)(seen.append)
        with bank:
            bank.record(Noted("heard"))
            bank.commit()

        assert [Noted("heard")] == seen

    def test_rule_16_handlers_run_in_the_same_transaction(self, harness: Harness) -> None:
        """A handler inside gets the unit; what it does is committed with the rest."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 0))
        handlers, states = Handlers(), list[State]()

        @handlers.before_commit(MoneyMoved)
        def book(event: MoneyMoved, bank: Bank) -> None:
            states.append(bank.state)
            bank.accounts.get("B").balance += event.amount

        with harness.bank(handlers=handlers) as bank:
            bank.accounts.get("A").withdraw(3)
            bank.commit()

        assert [State.COMMITTING] == states
        assert {"A": 7, "B": 3} == balances(harness)

    def test_rule_16_events_of_handlers_are_handled_until_quiet(self, harness: Harness) -> None:
        """What handlers and hooks record and register is handled too, round by round."""
        handlers, seen = Handlers(), list[str]()

        @handlers.before_commit(Noted)
        def go_on(event: Noted, bank: Bank) -> None:
            seen.append(event.text)
            if len(event.text) < 3:
                bank.record(Noted(event.text + "!"))
            else:
                bank.before_commit(told(seen, "hook of the handler"))

        with harness.bank(handlers=handlers) as bank:
            bank.record(Noted("a"))
            bank.record(Noted("b"))
            bank.before_commit(lambda: bank.record(Noted("xyz")))
            bank.commit()

        assert ["a", "b", "a!", "b!", "xyz", "a!!", "b!!", *["hook of the handler"] * 3] == _sorted_hooks(seen)

    def test_rule_16_a_cycle_is_shown_and_rolled_back(self, harness: Harness) -> None:
        """Handlers that never get quiet are stopped after 100 rounds by an error that shows the cycle."""
        handlers, rounds = Handlers(), list[Event]()

        @handlers.before_commit(Noted)
        def again(event: Noted, bank: Bank) -> None:
            rounds.append(event)
            bank.record(Overdrawn("A"))

        @handlers.before_commit(Overdrawn)
        def and_again(event: Overdrawn, bank: Bank) -> None:
            rounds.append(event)
            bank.record(Noted("again"))

        with pytest.raises(EventCycle) as raised, harness.bank(handlers=handlers) as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.record(Noted("first"))
            bank.commit()

        assert (100, 100) == (len(rounds), raised.value.rounds)
        assert {"Noted", "Overdrawn"} == set(raised.value.cycle)
        assert "there are still new events (" in str(raised.value)
        assert not raised.value.transient
        assert {} == balances(harness)

    def test_rule_16_one_hundred_rounds_are_allowed(self, harness: Harness) -> None:
        """A chain that is quiet after 99 events is no cycle."""
        handlers, seen = Handlers(), list[Event]()

        @handlers.before_commit(Noted)
        def go_on(event: Noted, bank: Bank) -> None:
            seen.append(event)
            if len(seen) < 99:
                bank.record(event)

        with harness.bank(handlers=handlers) as bank:
            bank.record(Noted("on"))
            bank.commit()

        assert 99 == len(seen)

    def test_rule_16_events_come_in_recording_order_across_aggregates(self, harness: Harness) -> None:
        """Handlers see events in the order of recording, whichever aggregate or scope recorded them."""
        stored(harness, Account("A", "Ann", 100), Account("B", "Bob", 100))
        handlers, seen = _listening(MoneyMoved)
        with harness.bank(handlers=handlers) as bank:
            first, second = bank.accounts.get("A"), bank.accounts.get("B")
            second.withdraw(1)
            first.withdraw(2)
            with bank.nested():
                second.withdraw(3)
                first.withdraw(4)
            second.withdraw(5)
            bank.commit()

        assert [1, 2, 3, 4, 5] == [event.amount for when, event in seen if when == "inside"]

    def test_rule_16_a_handler_of_a_class_handles_its_subclasses(self, harness: Harness) -> None:
        """An event reaches the handlers of its own class and of those above it, in registration order."""
        handlers, seen = Handlers(), list[str]()
        for kind in (NotedTwice, Noted, Event, MoneyMoved):
            handlers.before_commit(kind)(lambda event, _, kind=kind: seen.append(f"{kind.__name__} {event.text}"))
        with harness.bank(handlers=handlers) as bank:
            bank.record(NotedTwice("x"))
            bank.record(Noted("y"))
            bank.commit()

        assert ["NotedTwice x", "Noted x", "Event x", "Noted y", "Event y"] == seen

    @pytest.mark.parametrize("kind", ["hook", "handler"])
    def test_rule_16_afailure_before_the_commit_rolls_back(self, harness: Harness, kind: str) -> None:
        """When a hook or handler inside fails, its own error reaches the caller and nothing is kept."""
        handlers, seen = Handlers(), list[object]()

        @handlers.before_commit(Noted)
        def refuse(event: Noted, bank: Bank) -> None:
            raise Oops

        with pytest.raises(Oops), harness.bank(handlers=handlers) as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.after_commit(told(seen, "never"))
            bank.after_rollback(lambda: seen.append(bank.status().state))
            if kind == "hook":
                bank.before_commit(fail)
            else:
                bank.record(Noted("x"))
            bank.commit()

        assert [State.ROLLED_BACK] == seen
        assert {} == balances(harness)
        assert harness.idle()

    def test_rule_16_a_swallowedfailure_of_commit_is_not_silent(self, harness: Harness) -> None:
        """A block that goes on after a failed commit() ends with an error (rule 1)."""
        with pytest.raises(UnitOfWorkRolledBack) as raised, harness.bank() as bank:
            bank.before_commit(fail)
            with pytest.raises(Oops):
                bank.commit()

        assert isinstance(raised.value.__cause__, Oops)

    def test_rule_16_a_handler_that_swallows_a_database_error(self, harness: Harness) -> None:
        """A database error that a handler swallows loses the work, so commit() raises, with it as the cause."""
        stored(harness, Account("A", "Ann", 10))
        handlers = Handlers()

        @handlers.before_commit(Noted)
        def swallow(event: Noted, bank: Bank) -> None:
            bank.accounts.add(Account("A", "Bea"))
            with pytest.raises(UniqueViolation):
                bank.flush()

        with pytest.raises(UnitOfWorkRolledBack) as raised, harness.bank(handlers=handlers) as bank:
            bank.accounts.add(Account("B", "Bob"))
            bank.record(Noted("x"))
            bank.commit()

        assert isinstance(raised.value.__cause__, UniqueViolation)
        assert {"A": 10} == balances(harness)

    @pytest.mark.parametrize("verb", ["commit", "rollback"])
    def test_rule_16_a_handler_cannot_end_the_unit(self, harness: Harness, verb: str) -> None:
        """commit() and rollback() are refused in a handler, and change nothing."""
        handlers = Handlers()

        @handlers.before_commit(Noted)
        def end(event: Noted, bank: Bank) -> None:
            with pytest.raises(UnitOfWorkEnded, match=rf"Cannot call {verb}\(\) on .*: its commit\(\) is under way"):
                getattr(bank, verb)()

        with harness.bank(handlers=handlers) as bank:
            bank.accounts.add(Account("A", "Ann", 10))
            bank.record(Noted("x"))
            bank.commit()

        assert {"A": 10} == balances(harness)

    @pytest.mark.parametrize("fails", [False, True], ids=["released", "rolled back"])
    def test_rule_16_a_handler_may_open_a_nested_scope(self, harness: Harness, fails: bool) -> None:
        """A step of a handler that may fail goes into a nested scope, as everywhere."""
        handlers, seen = Handlers(), list[str]()

        @handlers.before_commit(Noted)
        def reward(event: Noted, bank: Bank) -> None:
            try:
                with bank.nested() as nested:
                    nested.accounts.add(Account("B", None if fails else "Bob", 20))
                    nested.record(Overdrawn("B"))
            except NotNullViolation:
                seen.append("refused")

        handlers.before_commit(Overdrawn)(lambda event, _: seen.append(event.number))
        with harness.bank(handlers=handlers) as bank:
            bank.accounts.add(Account("A", "Ann", 10))
            bank.record(Noted("x"))
            bank.commit()

        assert (["refused"] if fails else ["B"]) == seen
        assert ({"A": 10} if fails else {"A": 10, "B": 20}) == balances(harness)


def _listening(kind: type[Event]) -> tuple[Handlers, list[tuple[str, Any]]]:
    """Return handlers that note each event inside and after the commit."""
    handlers, seen = Handlers(), list[tuple[str, Any]]()
    handlers.before_commit(kind)(lambda event, _: seen.append(("inside", event)))
    handlers.after_commit(kind)(lambda event: seen.append(("after", event)))
    return handlers, seen


def _sorted_hooks(seen: list[str]) -> list[str]:
    """Return what was seen with the hooks at the end: rounds decide when they run."""
    return sorted(seen, key=lambda word: word == "hook of the handler")
