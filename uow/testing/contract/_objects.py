"""
Rules 13 and 14: what becomes of entities when their scope is rolled back, and when their unit ended.
"""

from contextlib import nullcontext
from typing import Any

import pytest

from uow import Event, Handlers
from uow.errors import NotNullViolation, UniqueViolation
from uow.testing._harness import Harness
from uow.testing._model import Account, Document, MoneyMoved, Overdrawn, Transfer

from ._rollbacks import RollbackRules
from ._steps import Oops, balances, execute, needs_sql, quiet, stored

__all__ = ["ObjectRules"]


class ObjectRules(RollbackRules):
    """
    Rules 13 and 14.
    """

    # -------------------------------------------------------------------------------------------- 13. events and SQL

    def test_rule_13_events_recorded_inside_are_gone(self, harness: Harness) -> None:
        """Events recorded in a rolled-back scope are gone; those recorded before and after it are there."""
        stored(harness, Account("A", "Ann", 100))
        handlers, seen = Handlers(), list[Event]()
        handlers.before_commit(MoneyMoved)(lambda event, _: seen.append(event))
        with harness.bank(handlers=handlers) as bank:
            account = bank.accounts.get("A")
            account.withdraw(1)
            with bank.nested() as nested:
                account.withdraw(2)
                nested.rollback()
            pending = account.pending_events
            account.withdraw(3)
            bank.commit()

        assert () == pending
        assert [MoneyMoved("A", 1), MoneyMoved("A", 3)] == seen

    def test_rule_13_events_of_a_new_aggregate_wait_in_it_again(self, harness: Harness) -> None:
        """Events that an aggregate recorded before its add wait in it again; those recorded after the add are gone."""
        account = Account("A", "Ann", 5)
        account.withdraw(10)
        with harness.bank() as bank:
            with bank.nested() as nested:
                bank.accounts.add(account)
                taken = account.pending_events
                account.withdraw(1)
                nested.rollback()
            before = account.pending_events
            account.withdraw(2)
            bank.commit()

        assert () == taken
        assert (MoneyMoved("A", 10), Overdrawn("A")) == before
        assert (*before, MoneyMoved("A", 2), Overdrawn("A")) == account.pending_events

    @pytest.mark.parametrize("how", ["text", "update"])
    @pytest.mark.parametrize("released", [True, False], ids=["in a released scope", "directly"])
    def test_rule_13_raw_sql_is_not_served_stale(self, harness: Harness, how: str, released: bool) -> None:
        """What SQL past the repositories changed in a rolled-back scope is not served: loaded before or in it."""
        needs_sql(harness)
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20), Account("C", "Cem", 30))
        with harness.bank() as bank:
            before = bank.accounts.get("A")
            with bank.nested() as nested:
                if released:
                    with bank.nested():
                        _set_all(bank, how, 99)
                else:
                    _set_all(bank, how, 99)
                inside = bank.accounts.get("B")
                read_inside = inside.balance
                nested.rollback()
            with quiet(harness):
                read = (before.balance, inside.balance)
            later = bank.accounts.get("C").balance
            listed = [account.balance for account in bank.accounts.list(order_by=lambda a: a.number)]

        assert 99 == read_inside
        assert (10, 20) == read
        assert 30 == later
        assert [10, 20, 30] == listed

    def test_rule_13_rows_that_raw_sql_inserted_are_gone(self, harness: Harness) -> None:
        """A row that SQL inserted in a rolled-back scope is not found afterwards, although an entity was made of it."""
        needs_sql(harness)
        with harness.bank() as bank:
            with bank.nested() as nested:
                execute(bank, "INSERT INTO accounts (number, owner, balance) VALUES ('A', 'Ann', 10)")
                loaded = bank.accounts.get("A")
                nested.rollback()
            found = bank.accounts.get_or_none("A")
            with quiet(harness):
                read = loaded.owner

        assert None is found
        assert "Ann" == read

    # -------------------------------------------------------------------------------------------- 14. after the unit

    def test_rule_14_entities_stay_readable_after_commit(self, harness: Harness) -> None:
        """After the commit what was loaded, changed and added stays readable, without a statement."""
        stored(harness, Account("A", "Ann", 10))
        transfer = Transfer("A", 5)
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            account.balance = 20
            bank.transfers.add(transfer)
            bank.commit()
            with quiet(harness):
                inside = (account.owner, account.balance, transfer.amount, transfer.id is None)
        with quiet(harness):
            after = (account.owner, account.balance, transfer.amount, transfer.id is None)

        assert ("Ann", 20, 5, False) == inside == after

    @pytest.mark.parametrize("how", ["rollback", "exception", "failed flush"])
    def test_rule_14_entities_stay_readable_after_a_rollback(self, harness: Harness, how: str) -> None:
        """After a rollback, asked for or not, what was loaded and added stays readable, without a statement."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20))
        new = Account("C", "Cem", 30)
        errors: dict[str, type[Exception]] = {"exception": Oops, "failed flush": UniqueViolation}

        def work() -> Account:
            with harness.bank() as bank:
                loaded.append(bank.accounts.get("A"))
                bank.accounts.add(new)
                if how == "rollback":
                    bank.rollback()
                elif how == "exception":
                    raise Oops
                else:
                    bank.accounts.add(Account("B", "Bea"))
                    bank.flush()
            return new

        loaded: list[Account] = []
        if how in errors:
            with pytest.raises(errors[how]):
                work()
        else:
            work()
        with quiet(harness):
            read = [(account.number, account.owner, account.balance) for account in (*loaded, new)]

        assert [("A", "Ann", 10), ("C", "Cem", 30)] == read

    def test_rule_14_a_failed_flush_leaves_entities_readable_at_once(self, harness: Harness) -> None:
        """Already in the block, behind a failed flush, loaded entities are readable."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20))
        read: list[object] = []
        with pytest.raises(UniqueViolation) as raised, harness.bank() as bank:
            account = bank.accounts.get("A")
            bank.accounts.add(Account("B", "Bea"))
            try:
                bank.flush()
            except UniqueViolation:
                with quiet(harness):
                    read += account.owner, account.balance
                raise

        assert ["Ann", 10] == read
        assert not raised.value.transient

    @pytest.mark.parametrize("how", ["removed", "given another key"])
    def test_rule_14_what_a_flush_before_the_failed_one_wrote_stays_readable(self, harness: Harness, how: str) -> None:
        """An entity that was removed, or got another key, before a flush failed can be read at once, and afterwards."""
        stored(harness, Account("A-1", "Ann", 10))
        with pytest.raises(NotNullViolation), harness.bank() as bank:
            account = bank.accounts.get("A-1")
            if how == "removed":
                bank.accounts.remove(account)
            else:
                account.number = "A-2"
            bank.flush()
            bank.accounts.add(Account("B-2", None))
            try:
                bank.flush()
            finally:
                at_once = (account.owner, account.balance)

        assert ("Ann", 10) == at_once == (account.owner, account.balance)
        assert {"A-1": 10} == balances(harness)

    def test_rule_14_an_entity_added_twice_is_as_new_as_before_the_first_time(self, harness: Harness) -> None:
        """Taken back and added again, it has the values that it had before the unit knew it."""
        account = Account("A-1", "Ann", 10)
        with harness.bank() as bank:
            bank.accounts.add(account)
            account.balance = 20
            bank.accounts.remove(account)
            account.balance = 30
            bank.accounts.add(account)
            bank.flush()
            bank.rollback()

        assert 10 == account.balance

    @pytest.mark.parametrize("known", ["loaded", "added"])
    @pytest.mark.parametrize("then", ["nothing", "flushed", "removed again"])
    def test_rule_13_removed_and_added_again(self, harness: Harness, known: str, then: str) -> None:
        """Undone, an entity that was removed and added again is the unit's own as before: its changes are written."""
        account = Account("A-1", "Ann", 10)
        if known == "loaded":
            stored(harness, account)
        with harness.bank() as bank:
            if known == "loaded":
                account = bank.accounts.get("A-1")
            else:
                bank.accounts.add(account)
                bank.flush()
            with bank.nested() as nested:
                nested.accounts.remove(account)
                nested.flush()
                account.balance = 20
                nested.accounts.add(account)
                if then != "nothing":
                    nested.flush()
                if then == "removed again":
                    nested.accounts.remove(account)
                    nested.flush()
                nested.rollback()

            assert 10 == account.balance
            assert account is bank.accounts.get("A-1")

            account.balance = 30
            bank.commit()

        assert {"A-1": 30} == balances(harness)

    def test_rule_13_added_and_removed_inside(self, harness: Harness) -> None:
        """Undone, an entity that a scope itself added, gave another key and removed is new, as it was before."""
        account = Account("A-1", "Ann", 10)
        with harness.bank() as bank:
            with bank.nested() as nested:
                with nested.nested() as inner:
                    inner.accounts.add(account)
                    inner.flush()
                    account.number = "A-2"
                    inner.flush()
                    inner.accounts.remove(account)
                    inner.flush()
                nested.rollback()

            assert ("A-1", 0) == (account.number, bank.accounts.count())

            bank.accounts.add(account)
            bank.commit()

        assert ["A-1"] == harness.numbers()

    @pytest.mark.parametrize("nested", [False, True])
    def test_rule_14_a_new_entity_has_no_version_again(self, harness: Harness, nested: bool) -> None:
        """However often it was written before the rollback."""
        document: Any = Document(1, "one")
        before = document.version
        with harness.bank() as bank:
            with bank.nested() if nested else nullcontext() as inner:
                bank.documents.add(document)
                for title in ("two", "three"):
                    bank.flush()
                    document.title = title
                bank.flush()
                if inner is not None:
                    inner.rollback()
            bank.rollback()

        assert before == document.version

    @pytest.mark.parametrize("flushed", [True, False], ids=["written", "not written"])
    def test_rule_14_added_entities_can_be_added_in_the_next_unit(self, harness: Harness, flushed: bool) -> None:
        """Entities added in a unit that was rolled back are new again, and the next unit takes the same objects."""
        stored(harness, Account("A", "Ann"))
        transfer, document = Transfer("A", 5), Document(1, "draft")
        read: list[Any] = []
        for attempt in (1, 2):
            with harness.bank() as bank:
                bank.transfers.add(transfer)
                bank.documents.add(document)
                if flushed:
                    bank.flush()
                if attempt == 1:
                    bank.rollback()
                else:
                    bank.commit()
            read.append((transfer.id is None, document.version))
        with harness.bank() as bank:
            kept = (bank.transfers.get(transfer.id).amount, bank.documents.get(1).title)

        assert [(True, None), (False, 1)] == read
        assert (5, "draft") == kept

    def test_rule_14_a_removed_entity_has_its_version_again(self, harness: Harness) -> None:
        """An entity that was changed and removed in a unit that rolled back has the version that it was read with."""
        with harness.bank() as bank:
            bank.documents.add(Document(1, "one"))
            bank.commit()
        with harness.bank() as bank:
            document = bank.documents.get(1)
            document.title = "two"
            with bank.nested():
                bank.documents.remove(document)
            bank.rollback()

        assert 1 == document.version

        with harness.bank() as bank:
            bank.documents.add(document)
            document.title = "three"
            bank.commit()

        assert 2 == document.version

    def test_rule_14_the_same_object_serves_a_retry(self, harness: Harness) -> None:
        """An entity that a constraint refused can be corrected and added in the next unit, with its events."""
        stored(harness, Account("A", "Ann", 10))
        account = Account("A", "Bea", 5)
        account.withdraw(1)
        with pytest.raises(UniqueViolation), harness.bank() as bank:
            bank.accounts.add(account)
            bank.commit()
        waiting = account.pending_events
        account.number = "B"
        stored(harness, account)

        assert (MoneyMoved("A", 1),) == waiting
        assert () == account.pending_events
        assert {"A": 10, "B": 4} == balances(harness)


def _set_all(bank: Any, how: str, balance: int) -> None:
    """Set every balance past the repositories."""
    if how == "text":
        execute(bank, f"UPDATE accounts SET balance = {balance}")
    else:
        from sqlalchemy import update

        bank.session.execute(update(Account).values(balance=balance))
