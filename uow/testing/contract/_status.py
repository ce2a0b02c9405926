"""
Section 4 of the design: how to see where a scope is: status, observers, log.
"""

import logging

import pytest

from uow import Changes, State, Transition, Verb
from uow.errors import NotNullViolation, OutsideUnitOfWork
from uow.testing._harness import Harness
from uow.testing._model import Account

from ._base import Contract
from ._steps import fail, needs_sql, stored

__all__ = ["StatusRules"]


class StatusRules(Contract):
    """
    Status, observers, log.
    """

    # ------------------------------------------------------------------------------------------------------- status

    def test_lifecycle_a_unit_that_was_never_entered(self, harness: Harness) -> None:
        """Before its first scope a unit is NEW and has no status."""
        bank = harness.bank()
        name = type(bank).__name__

        assert State.NEW is bank.state
        assert f"<{name}: new>" == repr(bank)
        with pytest.raises(OutsideUnitOfWork):
            bank.status()

    def test_lifecycle_status_at_each_step(self, harness: Harness) -> None:
        """`status()` tells state, counts and whether a transaction has begun, and asks the database nothing."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20))
        seen: list[tuple[State, bool, Changes, Changes]] = []

        def look() -> None:
            before = len(harness.statements or ())
            status = bank.status()
            seen.append((status.state, status.begun, status.pending, status.written))

            assert before == len(harness.statements or ())
            assert status.age >= 0
            assert ("root", 0, None, None) == (status.name, status.depth, status.savepoint, status.isolation)

        bank = harness.bank()
        with bank:
            look()
            bank.accounts.add(Account("C", "Cem"))
            look()
            bank.accounts.get("A").balance = 11
            bank.accounts.remove(bank.accounts.get("B"))
            look()
            bank.flush()
            look()
            bank.before_commit(look)
            bank.commit()
            look()
        look()
        nothing, everything = Changes(), Changes(1, 1, 1)

        assert [
            (State.ACTIVE, False, nothing, nothing),
            (State.ACTIVE, False, Changes(1), nothing),
            (State.ACTIVE, True, Changes(0, 0, 1), Changes(1, 1)),
            (State.ACTIVE, True, nothing, everything),
            (State.COMMITTING, True, nothing, everything),
            (State.COMMITTED, False, nothing, everything),
            (State.COMMITTED, False, nothing, everything),
        ] == seen

    def test_lifecycle_status_of_nested_scopes(self, harness: Harness) -> None:
        """Each handle has the status of its own scope; a released scope's counts go to the one around it."""
        with harness.bank() as bank:
            with bank.nested("outer") as outer:
                outer.accounts.add(Account("A", "Ann"))
                with outer.nested() as inner:
                    inner.accounts.add(Account("B", "Bob"))
                    inner.flush()
                    statuses = [handle.status() for handle in (bank, outer, inner)]
                released = [handle.status() for handle in (bank, outer, inner)]
                outer.rollback()
            rolled_back = [handle.status() for handle in (bank, outer)]

        assert [("root", 0), ("outer", 1), ("nested 2", 2)] == [(status.name, status.depth) for status in statuses]
        assert [0, 1, 1] == [status.written.added for status in statuses]
        assert [0, 2, 1] == [status.written.added for status in released]
        assert [State.ACTIVE, State.ACTIVE, State.RELEASED] == [status.state for status in released]
        assert [State.ACTIVE, State.ROLLED_BACK] == [status.state for status in rolled_back]
        assert 0 == rolled_back[0].written.added

    def test_lifecycle_the_savepoint_has_the_name_in_the_database(self, harness: Harness) -> None:
        """`status().savepoint` is the savepoint's name in the statement log, None before it was sent and after it."""
        needs_sql(harness)
        with harness.bank() as bank:
            bank.accounts.add(Account("A", "Ann"))
            names = []
            with bank.nested() as outer:
                names.append(outer.status().savepoint)
                outer.accounts.count()
                names.append(outer.status().savepoint)
                with outer.nested() as inner:
                    names.append(inner.status().savepoint)
                    inner.accounts.count()
                    names.append(inner.status().savepoint)
                names.append(inner.status().savepoint)
            names.append(bank.status().savepoint)
        sent = [line.split()[-1] for line in harness.statements or () if line.startswith("SAVEPOINT")]

        assert 2 == len(sent)
        assert [None, sent[0], None, sent[1], None, None] == names

    def test_lifecycle_an_outer_scope_keeps_its_savepoint(self, harness: Harness) -> None:
        """While a nested scope inside it is open, a nested scope's status still names its own savepoint."""
        needs_sql(harness)
        with harness.bank() as bank, bank.nested() as outer:
            outer.accounts.count()
            before = outer.status().savepoint
            with outer.nested() as inner:
                inner.accounts.count()
                during = outer.status().savepoint

        assert before is not None
        assert before == during

    def test_lifecycle_status_of_a_broken_scope(self, harness: Harness) -> None:
        """A broken scope says so, the scope around it goes on."""
        states: list[State] = []
        with harness.bank() as bank:
            with pytest.raises(NotNullViolation), bank.nested() as nested:
                bank.accounts.add(Account("A", None))
                try:
                    bank.flush()
                finally:
                    states += nested.status().state, bank.status().state
            states.append(bank.status().state)

        assert [State.BROKEN, State.ACTIVE, State.ACTIVE] == states

    def test_lifecycle_repr(self, harness: Harness) -> None:
        """A unit shows its class, its scope and its state."""
        with harness.bank() as bank, bank.nested("line 3") as nested:
            shown = repr(nested)

        assert f"<{type(bank).__name__} (root > line 3): active>" == shown

    # -------------------------------------------------------------------------------------------- observers and log

    def test_lifecycle_observers_see_every_step_in_order(self, harness: Harness) -> None:
        """Observers are told each transition in order, with the scope's path, its depth and the cause."""
        seen: list[Transition] = []
        unit = harness.bank(observers=[seen.append])
        with unit as bank:
            with bank.nested("first"):
                pass
            with pytest.raises(NotNullViolation) as raised, bank.nested("second"):
                bank.accounts.add(Account("A", None))
            bank.commit()
        cause = raised.value

        assert [
            ("root", 0, Verb.ENTER, None),
            ("root > first", 1, Verb.ENTER, None),
            ("root > first", 1, Verb.RELEASE, None),
            ("root > second", 1, Verb.ENTER, None),
            ("root > second", 1, Verb.BREAK, cause),
            ("root > second", 1, Verb.ROLLBACK, cause),
            ("root", 0, Verb.COMMIT, None),
            ("root", 0, Verb.DURABLE, None),
        ] == [(step.scope, step.depth, step.verb, step.cause) for step in seen]
        assert {type(unit).__name__} == {step.unit for step in seen}

    def test_lifecycle_a_failing_observer_does_no_harm(
        self, harness: Harness, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An observer's error is logged; the others are told, and the work is kept."""
        seen: list[Transition] = []
        with harness.bank(observers=[lambda step: fail(), seen.append]) as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.commit()
        logged = [record for record in caplog.records if record.name == "uow"]

        assert ["A"] == harness.numbers()
        assert 3 == len(seen) == len(logged)
        assert {logging.ERROR} == {record.levelno for record in logged}
        assert logged[-1].getMessage().endswith(f"failed at {type(bank).__name__} (root): COMMIT confirmed")

    def test_lifecycle_every_step_is_logged(self, harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
        """The logger `uow` has a DEBUG line for each transition, and nothing above it when all is well."""
        with caplog.at_level(logging.DEBUG, logger="uow"):
            with harness.bank() as bank:
                with bank.nested("line 3"):
                    pass
                with bank.nested() as nested:
                    nested.rollback()
                bank.commit()
        name = type(bank).__name__

        assert [
            f"{name} (root): new -> active (enter the block)",
            f"{name} (root > line 3): new -> active (enter the block)",
            f"{name} (root > line 3): active -> released (release)",
            f"{name} (root > nested 1): new -> active (enter the block)",
            f"{name} (root > nested 1): active -> rolled back (roll back)",
            f"{name} (root): active -> committing (commit())",
            f"{name} (root): committing -> committed (COMMIT confirmed)",
        ] == [record.getMessage() for record in caplog.records if record.name == "uow"]
        assert {logging.DEBUG} == {record.levelno for record in caplog.records if record.name == "uow"}
