"""
Rule 13: an entity that a rolled-back scope changed, added or removed is what it was outside.
"""

import pytest

from uow.errors import EntityNotFound, UniqueViolation
from uow.testing._harness import Harness
from uow.testing._model import Account, Document, Transfer

from ._base import Contract
from ._steps import Oops, balances, quiet, stored

__all__ = ["RollbackRules"]


class RollbackRules(Contract):
    """
    Rule 13, on entities.
    """

    # ------------------------------------------------------------------------------------ changed in a nested scope

    @pytest.mark.parametrize("flushed", [True, False], ids=["written", "not written"])
    def test_rule_13_a_changed_entity_reads_its_outer_value_again(self, harness: Harness, flushed: bool) -> None:
        """An entity changed in a nested scope that is rolled back reads its outer values again, without a statement."""
        stored(harness, Account("A", "Ann", 10, "old"))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            with pytest.raises(Oops), bank.nested():
                account.balance, account.note = 99, "new"
                if flushed:
                    bank.flush()
                raise Oops
            with quiet(harness):
                read = (account.number, account.owner, account.balance, account.note)
            bank.commit()

        assert ("A", "Ann", 10, "old") == read
        assert {"A": 10} == balances(harness)

    def test_rule_13_a_change_not_yet_written_is_kept(self, harness: Harness) -> None:
        """What an outer scope changed and had not written survives the rollback of a nested one, and is committed."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            account.balance = 20
            with bank.nested() as nested:
                account.balance = 99
                nested.rollback()
            with quiet(harness):
                read = account.balance
            bank.commit()

        assert 20 == read
        assert {"A": 20} == balances(harness)

    def test_rule_13_an_entity_changed_twice_reads_its_outer_value(self, harness: Harness) -> None:
        """However often a nested scope changed and wrote an entity, its rollback brings the outer value back."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            with bank.nested() as nested:
                account.balance = 97
                bank.flush()
                account.balance = 98
                bank.flush()
                account.balance = 99
                nested.rollback()
            with quiet(harness):
                read = account.balance

        assert 10 == read

    def test_rule_13_an_outer_rollback_undoes_a_released_scope(self, harness: Harness) -> None:
        """What a released scope changed is undone with the nested scope around it."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20))
        with harness.bank() as bank:
            first, second = bank.accounts.get("A"), bank.accounts.get("B")
            with bank.nested() as nested:
                first.balance = 98
                with bank.nested():
                    first.balance = 99
                    second.balance = 99
                    bank.accounts.add(Account("C", "Cem"))
                nested.rollback()
            with quiet(harness):
                read = (first.balance, second.balance)
            bank.commit()

        assert (10, 20) == read
        assert {"A": 10, "B": 20} == balances(harness)

    def test_rule_13_an_inner_rollback_leaves_what_the_scope_around_it_did(self, harness: Harness) -> None:
        """A rolled-back scope brings back the value of the nested scope around it, which may be released."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            with bank.nested():
                account.balance = 20
                with bank.nested() as inner:
                    account.balance = 99
                    inner.rollback()
                with quiet(harness):
                    read = account.balance
            bank.commit()

        assert 20 == read
        assert {"A": 20} == balances(harness)

    def test_rule_13_rollbacks_one_after_the_other(self, harness: Harness) -> None:
        """Each of several nested scopes that are rolled back in turn brings back the same outer value."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            read = []
            for balance in (97, 98, 99):
                with bank.nested() as nested:
                    account.balance = balance
                    bank.flush()
                    nested.rollback()
                with quiet(harness):
                    read.append(account.balance)
            account.balance += 1
            bank.commit()

        assert [10, 10, 10] == read
        assert {"A": 11} == balances(harness)

    def test_rule_13_an_entity_loaded_inside_reads_the_outer_value(self, harness: Harness) -> None:
        """An entity that a rolled-back scope loaded and changed has the value that the scope found."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            with bank.nested() as nested:
                account = bank.accounts.get("A")
                account.balance = 99
                bank.flush()
                nested.rollback()
            with quiet(harness):
                read = account.balance
            same = bank.accounts.get("A") is account

        assert (10, True) == (read, same)

    def test_rule_13_a_version_is_the_outer_one_again(self, harness: Harness) -> None:
        """A version counted up in a rolled-back scope is the outer one again, so that the next change is not stale."""
        with harness.bank() as bank:
            bank.documents.add(Document(1, "draft"))
            bank.commit()
        with harness.bank() as bank:
            document = bank.documents.get(1)
            with bank.nested() as nested:
                document.title = "lost"
                bank.flush()
                document.title = "lost again"
                bank.flush()
                nested.rollback()
            with quiet(harness):
                read = (document.title, document.version)
            document.title = "final"
            bank.commit()

        assert ("draft", 1) == read
        assert ("final", 2) == (document.title, document.version)

    def test_rule_13_a_failed_scope_reads_outer_values(self, harness: Harness) -> None:
        """The rule holds when it was a database error that ended the nested scope."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            with pytest.raises(UniqueViolation), bank.nested():
                account.balance = 99
                bank.accounts.add(Account("B", "Bea"))
            with quiet(harness):
                read = account.balance
            account.balance += 1
            bank.commit()

        assert 10 == read
        assert {"A": 11, "B": 20} == balances(harness)

    # --------------------------------------------------------------------------------------- added in a nested scope

    @pytest.mark.parametrize("released", [True, False], ids=["in a released scope", "directly"])
    def test_rule_13_an_added_entity_is_new_again(self, harness: Harness, released: bool) -> None:
        """An entity added in a rolled-back scope is new again: no generated key, no version; it can be added again."""
        stored(harness, Account("A", "Ann"))
        transfer, document = Transfer("A", 5), Document(1, "draft")
        with harness.bank() as bank:
            with bank.nested() as nested:
                if released:
                    with bank.nested():
                        bank.transfers.add(transfer)
                        bank.documents.add(document)
                else:
                    bank.transfers.add(transfer)
                    bank.documents.add(document)
                    bank.flush()
                generated: tuple[object, ...] = (transfer.id is None, document.version)
                nested.rollback()
            with quiet(harness):
                read = (transfer.id, document.version, transfer.amount, document.title)
            gone = (bank.transfers.count(), bank.documents.get_or_none(1))
            bank.transfers.add(transfer)
            bank.documents.add(document)
            bank.commit()
        with harness.bank() as bank:
            kept = (bank.transfers.get(transfer.id).amount, bank.documents.get(1).version)

        assert (False, 1) == generated
        assert (None, None, 5, "draft") == read
        assert (0, None) == gone
        assert (5, 1) == kept

    def test_rule_13_an_entity_added_and_changed_inside(self, harness: Harness) -> None:
        """An entity that was written in a rolled-back scope can be completed and added again."""
        account = Account("A", "Ann", 10)
        with harness.bank() as bank:
            with bank.nested() as nested:
                bank.accounts.add(account)
                bank.flush()
                account.balance = 99
                bank.flush()
                nested.rollback()
            with quiet(harness):
                read = (account.number, account.owner)
            with pytest.raises(EntityNotFound):
                bank.accounts.remove(account)
            account.balance = 20
            bank.accounts.add(account)
            bank.commit()

        assert ("A", "Ann") == read
        assert {"A": 20} == balances(harness)

    def test_rule_13_an_entity_added_outside_and_changed_inside(self, harness: Harness) -> None:
        """An entity that the outer scope added stays added when the scope that changed it is rolled back."""
        account = Account("A", "Ann", 10)
        with harness.bank() as bank:
            bank.accounts.add(account)
            with bank.nested() as nested:
                account.balance = 99
                nested.rollback()
            with quiet(harness):
                read = account.balance
            bank.commit()

        assert 10 == read
        assert {"A": 10} == balances(harness)

    # ------------------------------------------------------------------------------------- removed in a nested scope

    @pytest.mark.parametrize("flushed", [True, False], ids=["written", "not written"])
    def test_rule_13_a_removed_entity_is_back(self, harness: Harness, flushed: bool) -> None:
        """An entity removed in a rolled-back scope is back: the same object, with its values, and it can be changed."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            with bank.nested() as nested:
                account.balance = 99
                bank.accounts.remove(account)
                if flushed:
                    bank.flush()
                nested.rollback()
            with quiet(harness):
                read = account.balance
            same = bank.accounts.get("A") is account
            account.balance += 1
            bank.commit()

        assert (10, True) == (read, same)
        assert {"A": 11} == balances(harness)

    def test_rule_13_an_entity_added_outside_and_removed_inside(self, harness: Harness) -> None:
        """An entity that the outer scope added is back when the scope that removed it is rolled back."""
        account = Account("A", "Ann", 10)
        with harness.bank() as bank:
            bank.accounts.add(account)
            with bank.nested() as nested:
                bank.accounts.remove(account)
                nested.rollback()
            same = bank.accounts.get("A") is account
            bank.commit()

        assert same
        assert {"A": 10} == balances(harness)

    def test_rule_13_an_entity_replaced_inside(self, harness: Harness) -> None:
        """When a scope that gave a removed entity's key to another one is rolled back, the first has it again."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            with bank.nested() as nested:
                bank.accounts.remove(account)
                bank.flush()
                bank.accounts.add(Account("A", "Bob", 99))
                bank.flush()
                nested.rollback()
            with quiet(harness):
                read = account.owner
            same = bank.accounts.get("A") is account
            bank.commit()

        assert ("Ann", True) == (read, same)
        assert {"A": 10} == balances(harness)
