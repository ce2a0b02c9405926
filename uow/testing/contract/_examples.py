"""
What articles on nested transactions want to show, done right and on every backend.
"""

import logging

import pytest

from uow import State
from uow.errors import ForeignKeyViolation, NotNullViolation
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, Transfer

from ._base import Contract
from ._steps import Oops, balances, execute, needs_sql, sent_since, stored

__all__ = ["SeedExamples"]


class SeedExamples(Contract):
    """
    Examples to copy.
    """

    def test_example_a_hierarchy_of_transactions(self, harness: Harness) -> None:
        """Of a hierarchy of transactions the inner one is rolled back and the outer one committed."""
        with harness.bank() as outer:
            outer.accounts.add(Account("1", "John"))
            with outer.nested() as inner:
                inner.accounts.add(Account("2", "Jane"))
                inner.accounts.add(Account("3", "Alice"))
                inner.rollback()
            outer.accounts.add(Account("4", "Mike"))
            outer.commit()
        with harness.bank() as bank:
            owners = [account.owner for account in bank.accounts.list(order_by=lambda a: a.number)]

        assert ["John", "Mike"] == owners

    def test_example_a_deeper_hierarchy(self, harness: Harness) -> None:
        """At any depth a scope is kept with the one around it, and lost with it."""
        with harness.bank() as bank:
            bank.accounts.add(Account("0", "John"))
            for number in "123":
                with bank.nested() as kept_or_not:
                    kept_or_not.accounts.add(Account(number, "Jane"))
                    with kept_or_not.nested() as inner:
                        inner.accounts.add(Account(number + number, "Alice"))
                        if number == "3":
                            inner.rollback()
                    if number == "2":
                        kept_or_not.rollback()
            bank.commit()

        assert ["0", "1", "11", "3"] == harness.numbers()

    def test_example_a_savepoint_around_raw_sql(self, harness: Harness) -> None:
        """A savepoint around raw SQL is rolled back, and the main transaction keeps its own row as it was."""
        needs_sql(harness)
        with harness.bank() as bank:
            execute(bank, "INSERT INTO accounts (number, owner, balance) VALUES ('1', 'John Doe', 0)")
            with bank.nested() as savepoint:
                execute(bank, "UPDATE accounts SET owner = 'Jane Doe' WHERE number = '1'")
                inside = bank.accounts.get("1").owner
                savepoint.rollback()
            outside = bank.accounts.get("1").owner
            bank.commit()
        with harness.bank() as bank:
            committed = bank.accounts.get("1").owner

        assert ("Jane Doe", "John Doe", "John Doe") == (inside, outside, committed)

    def test_example_the_lifecycle_and_its_sql(self, harness: Harness) -> None:
        """Each step of a unit's life sends just the SQL that the table of transitions says."""
        needs_sql(harness)
        stored(harness, Account("A", "Ann"))
        steps: list[tuple[str, State, list[str]]] = []
        mark = len(harness.statements or ())

        def step(what: str, unit: Bank) -> None:
            nonlocal mark
            sent = sent_since(harness, mark)
            mark += len(sent)
            lines = [line for text in sent for line in text.split("; ")]
            steps.append((what, unit.state, [shown for line in lines if (shown := _verb(line))]))

        bank = harness.bank()
        step("made", bank)
        with bank:
            step("entered", bank)
            bank.accounts.add(Account("B", "Bob"))
            step("added", bank)
            bank.flush()
            step("flushed", bank)
            with bank.nested() as nested:
                step("nested", nested)
                nested.accounts.add(Account("C", "Cem"))
                nested.flush()
                step("flushed inside", nested)
            step("released", nested)
            with bank.nested() as nested:
                nested.accounts.add(Account("D", "Dan"))
                nested.flush()
                step("flushed inside again", nested)
                nested.rollback()
                step("rolled back inside", nested)
            with bank.nested() as nested:
                pass
            step("nested for nothing", nested)
            bank.commit()
            step("committed", bank)
        step("left", bank)
        with bank:
            bank.accounts.add(Account("E", "Eve"))
            bank.flush()
            step("once more", bank)
            bank.rollback()
            step("rolled back", bank)
        with bank:
            bank.commit()
        step("for nothing", bank)

        assert [
            ("made", State.NEW, []),
            ("entered", State.ACTIVE, []),
            ("added", State.ACTIVE, []),
            ("flushed", State.ACTIVE, ["INSERT"]),
            ("nested", State.ACTIVE, []),
            ("flushed inside", State.ACTIVE, ["SAVEPOINT", "INSERT"]),
            ("released", State.RELEASED, []),
            ("flushed inside again", State.ACTIVE, ["SAVEPOINT", "INSERT"]),
            ("rolled back inside", State.ROLLED_BACK, ["ROLLBACK TO SAVEPOINT"]),
            ("nested for nothing", State.RELEASED, []),
            ("committed", State.COMMITTED, ["COMMIT"]),
            ("left", State.COMMITTED, []),
            ("once more", State.ACTIVE, ["INSERT"]),
            ("rolled back", State.ROLLED_BACK, ["ROLLBACK"]),
            ("for nothing", State.COMMITTED, []),
        ] == steps
        assert ["A", "B", "C"] == harness.numbers()

    def test_example_a_nested_scope_that_fails_on_a_foreign_key(self, harness: Harness) -> None:
        """One nested transaction is kept, the next fails on a foreign key, and the main one goes on and commits."""
        with harness.bank() as bank:
            user = Account("1", "Main User")
            bank.accounts.add(user)
            with bank.nested():
                bank.transfers.add(Transfer("1", 10))
            with pytest.raises(ForeignKeyViolation), bank.nested():
                bank.transfers.add(Transfer("999", 20))
            user.owner = "Updated Name"
            bank.commit()
        with harness.bank() as bank:
            owner = bank.accounts.get("1").owner
            amounts = [transfer.amount for transfer in bank.transfers.list()]

        assert ("Updated Name", [10]) == (owner, amounts)

    def test_example_state_detection(self, harness: Harness) -> None:
        """At every step a unit tells where it is."""
        bank = harness.bank()
        seen: list[tuple[str, State, int]] = [("made", bank.state, 0)]

        def look(what: str, unit: Bank) -> None:
            status = unit.status()
            seen.append((what, status.state, status.depth))

        with bank:
            look("begun", bank)
            with bank.nested() as nested:
                look("nested", nested)
                look("main, meanwhile", bank)
                nested.commit()
                look("nested, committed", nested)
            look("main, again", bank)
            with pytest.raises(NotNullViolation), bank.nested() as failing:
                failing.accounts.add(Account("A", None))
                try:
                    failing.flush()
                finally:
                    look("nested, after an error", failing)
            look("nested, rolled back", failing)
            bank.commit()
            look("main, committed", bank)

        assert [
            ("made", State.NEW, 0),
            ("begun", State.ACTIVE, 0),
            ("nested", State.ACTIVE, 1),
            ("main, meanwhile", State.ACTIVE, 0),
            ("nested, committed", State.RELEASED, 1),
            ("main, again", State.ACTIVE, 0),
            ("nested, after an error", State.BROKEN, 1),
            ("nested, rolled back", State.ROLLED_BACK, 1),
            ("main, committed", State.COMMITTED, 0),
        ] == seen

    @pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
    def test_example_a_managed_transaction_in_the_log(
        self, harness: Harness, caplog: pytest.LogCaptureFixture, fails: bool
    ) -> None:
        """The log tells how a managed transaction went, without a line of logging in the application."""
        name = type(harness.bank()).__name__
        with caplog.at_level(logging.DEBUG, logger="uow"):
            try:
                with harness.bank() as bank:
                    bank.accounts.add(Account("1", "Transaction User"))
                    if fails:
                        raise Oops
                    bank.commit()
            except Oops:
                pass
        ending = ["active -> rolled back (roll back)"]
        if not fails:
            ending = ["active -> committing (commit())", "committing -> committed (COMMIT confirmed)"]

        assert [f"{name} (root): {line}" for line in ("new -> active (enter the block)", *ending)] == caplog.messages
        assert ({} if fails else {"1": 0}) == balances(harness)


def _verb(statement: str) -> str:
    """
    Return the SQL command of *statement*; "" for what not every driver sends in its own step: BEGIN, and RELEASE, which
    may wait for the next statement.
    """
    if statement.startswith("ROLLBACK TO SAVEPOINT"):
        return "ROLLBACK TO SAVEPOINT"
    word = statement.split()[0]
    return "" if word in ("BEGIN", "RELEASE") else word
