"""
Repositories while other units work on the same entities: versions and locks.
"""

import gc

import pytest

from uow import Lock
from uow.errors import EntityNotFound, LockTimeout, StaleVersion
from uow.testing._harness import Harness
from uow.testing._model import Account, Document

from ._base import Contract
from ._steps import balances, stored

__all__ = ["ConcurrencyRules"]


class ConcurrencyRules(Contract):
    """
    Versions and locks.
    """

    # -------------------------------------------------------------------------------------------------- versions

    def test_repository_versions_count_changes(self, harness: Harness) -> None:
        """A version begins at 1 and goes up by one with each written change."""
        document = Document(1, "one")
        with harness.bank() as bank:
            bank.documents.add(document)
            bank.flush()
            versions = [document.version]
            for title in ("two", "three"):
                document.title = title
                bank.flush()
                versions.append(document.version)
            bank.flush()
            versions.append(document.version)
            bank.commit()

        assert [1, 2, 3, 3] == versions

    @pytest.mark.parametrize("how", ["change", "remove"])
    @pytest.mark.parametrize("other", ["changed", "removed"])
    def test_repository_a_stale_version(self, harness: Harness, how: str, other: str) -> None:
        """Writing an entity that another unit changed or removed since is StaleVersion, which is transient."""
        with harness.bank() as bank:
            bank.documents.add(Document(1, "one"))
            bank.commit()
        with harness.bank() as bank:
            document = bank.documents.get(1)
            bank.rollback()
        with harness.bank() as second:
            faster = second.documents.get(1)
            faster.title = "faster"
            if other == "removed":
                second.documents.remove(faster)
            second.commit()
        with pytest.raises(StaleVersion) as raised, harness.bank() as bank:
            bank.documents.add(document)
            if how == "change":
                document.title = "slower"
            else:
                bank.documents.remove(document)
            bank.commit()

        assert (True, False) == (raised.value.transient, raised.value.dooms)
        assert str(raised.value).startswith("An entity was changed by another unit")

    @pytest.mark.parametrize("how", ["change", "remove"])
    @pytest.mark.parametrize("before", ["changed", "removed"])
    def test_repository_a_version_that_its_own_unit_made_stale(self, harness: Harness, how: str, before: str) -> None:
        """Writing an entity of an earlier unit fails as well where this very unit wrote the row by another object."""
        with harness.bank() as bank:
            document = Document(1, "one")
            bank.documents.add(document)
            bank.commit()
        with pytest.raises(StaleVersion), harness.bank() as bank:
            if before == "changed":
                bank.documents.get(1).title = "changed"
            else:
                bank.documents.remove(bank.documents.get(1))
            bank.flush()
            gc.collect()  # nobody holds the other object now
            bank.documents.add(document)
            if how == "change":
                document.title = "late"
            else:
                bank.documents.remove(document)
            bank.commit()

    def test_repository_a_stale_version_is_the_only_trouble(self, harness: Harness) -> None:
        """Whoever rolls back after one has nothing else to hear of, and one that leaves the block has no notes."""
        with harness.bank() as bank:
            bank.documents.add(Document(1, "one"))
            bank.commit()
            with harness.bank() as reader:
                document = reader.documents.get(1)
                reader.rollback()
        with harness.bank() as second:
            second.documents.get(1).title = "faster"
            second.commit()
        with harness.bank() as bank:
            bank.documents.add(document)
            document.title = "slower"
            with pytest.raises(StaleVersion):
                bank.flush()
            bank.rollback()
        with pytest.raises(StaleVersion) as raised, harness.bank() as bank:
            bank.documents.add(document)
            document.title = "slowest"
            bank.flush()

        assert [] == getattr(raised.value, "__notes__", [])
        assert harness.idle()

    def test_repository_a_version_goes_on_where_a_row_is_replaced(self, harness: Harness) -> None:
        """An entity that takes the key of one removed in the same flush counts on: no stale one passes for it."""
        with harness.bank() as bank:
            bank.documents.add(Document(1, "old"))
            bank.commit()
        with harness.bank() as bank:
            stale = bank.documents.get(1)
            bank.rollback()
        with harness.bank() as bank:
            bank.documents.remove(bank.documents.get(1))
            new = Document(1, "new")
            bank.documents.add(new)
            bank.commit()

        assert 2 == new.version

        with pytest.raises(StaleVersion), harness.bank() as bank:
            bank.documents.add(stale)
            stale.title = "stale"
            bank.commit()

    def test_repository_a_version_that_was_never_committed(self, harness: Harness) -> None:
        """What a unit counted and rolled back is not taken for what another unit counted since."""
        with harness.bank() as bank:
            bank.documents.add(Document(1, "one"))
            bank.commit()
        with harness.bank() as bank:
            document = bank.documents.get(1)
            document.title = "lost"
            with bank.nested():
                document.title = "lost again"
            bank.rollback()

        assert 1 == document.version

        with harness.bank() as second:
            second.documents.get(1).title = "kept"
            second.commit()
        with pytest.raises(StaleVersion), harness.bank() as bank:
            bank.documents.add(document)
            document.title = "stale"
            bank.commit()

    # ------------------------------------------------------------------------------------------------------ locks

    @pytest.mark.parametrize("lock", Lock)
    def test_repository_a_lock_that_is_free(self, harness: Harness, lock: Lock) -> None:
        """Every kind of lock can be taken where nobody holds one, on one row, several or the first."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20))
        with harness.bank() as bank:
            one = bank.accounts.get("A", lock=lock)
            several = bank.accounts.list(order_by=lambda a: a.number, lock=lock)
            first = bank.accounts.first(order_by=lambda a: a.number, lock=lock)
            missing = bank.accounts.get_or_none("Z", lock=lock)
            one.balance += 1
            bank.commit()

        assert ["A", "B"] == [account.number for account in several]
        assert one is first is several[0]
        assert missing is None
        assert {"A": 11, "B": 20} == balances(harness)

    @pytest.mark.parametrize("held", [Lock.UPDATE, Lock.SHARE], ids=["held for update", "shared"])
    @pytest.mark.parametrize("lock", [Lock.UPDATE_NOWAIT, Lock.SHARE_NOWAIT])
    def test_repository_a_lock_that_is_not_free(self, harness: Harness, held: Lock, lock: Lock) -> None:
        """A read with NOWAIT does not wait for a lock that another unit holds: LockTimeout; two can share one."""
        stored(harness, Account("A", "Ann", 10))
        harness.hurry()
        with harness.bank() as holder:
            holder.accounts.get("A", lock=held)
            if held.shared and lock.shared and harness.name != "sqlite":
                with harness.bank() as second:
                    shared = second.accounts.get("A", lock=lock).balance

                assert 10 == shared
                return
            with pytest.raises(LockTimeout) as raised, harness.bank() as second:
                second.accounts.get("A", lock=lock)
            holder.accounts.get("A").balance = 11
            holder.commit()

        assert (True, False) == (raised.value.transient, raised.value.dooms)
        assert {"A": 11} == balances(harness)

    @pytest.mark.parametrize("lock", [Lock.UPDATE_SKIP_LOCKED, Lock.SHARE_SKIP_LOCKED])
    def test_repository_locked_rows_are_skipped(self, harness: Harness, lock: Lock) -> None:
        """A read that skips locked rows leaves out those of another unit; SQLite has locked everything at the BEGIN."""
        stored(harness, Account("A", "Ann"), Account("B", "Bob"), Account("C", "Cem"))
        harness.hurry()
        with harness.bank() as holder:
            holder.accounts.get("B", lock=Lock.UPDATE)
            if harness.name == "sqlite":
                with pytest.raises(LockTimeout), harness.bank() as second:
                    second.accounts.list(lock=lock)
                return
            with harness.bank() as second:
                found = [account.number for account in second.accounts.list(order_by=lambda a: a.number, lock=lock)]
                single = second.accounts.get_or_none("B", lock=lock)
                with pytest.raises(EntityNotFound):
                    second.accounts.get("B", lock=lock)
                plain = second.accounts.get("B").number

        assert (["A", "C"], None, "B") == (found, single, plain)

    def test_repository_skipping_goes_on_to_the_limit(self, harness: Harness) -> None:
        """A limit counts the rows that were not skipped, as workers on a queue need it."""
        stored(harness, Account("A", "Ann"), Account("B", "Bob"), Account("C", "Cem"))
        if harness.name == "sqlite":
            pytest.skip("SQLite locks the whole database")
        with harness.bank() as holder, harness.bank() as second:
            mine = holder.accounts.first(order_by=lambda a: a.number, lock=Lock.UPDATE_SKIP_LOCKED)
            yours = second.accounts.first(order_by=lambda a: a.number, lock=Lock.UPDATE_SKIP_LOCKED)

        assert mine is not None
        assert yours is not None
        assert ("A", "B") == (mine.number, yours.number)

    def test_repository_a_lock_is_given_back(self, harness: Harness) -> None:
        """A lock ends with its unit, however that ended."""
        stored(harness, Account("A", "Ann", 10))
        for end in ("commit", "rollback"):
            with harness.bank() as holder:
                holder.accounts.get("A", lock=Lock.UPDATE)
                getattr(holder, end)()
            with harness.bank() as second:
                found = second.accounts.get("A", lock=Lock.UPDATE_NOWAIT)

            assert "A" == found.number

    def test_repository_a_lock_reads_anew(self, harness: Harness) -> None:
        """A read with a lock takes the values of now, which another unit may have committed since the first read."""
        if harness.name == "sqlite":
            pytest.skip("SQLite lets nobody else write meanwhile")
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 10))
        with harness.bank() as bank:
            account, other = bank.accounts.list(order_by=lambda a: a.number)
            with harness.bank() as second:
                for changed in second.accounts.list():
                    changed.balance = 30
                second.commit()
            again = bank.accounts.get("A", lock=Lock.UPDATE)
            listed = bank.accounts.list(lambda a: a.number == "B", lock=Lock.UPDATE)
            read = (account.balance, other.balance)
            account.balance += 1
            bank.commit()

        assert (account, [other]) == (again, list(listed))
        assert (30, 30) == read
        assert {"A": 31, "B": 30} == balances(harness)

    def test_repository_a_lock_keeps_changes(self, harness: Harness) -> None:
        """A read with a lock writes this unit's changes first, so that they are not lost."""
        stored(harness, Account("A", "Ann", 10))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            account.balance = 20
            again = bank.accounts.get("A", lock=Lock.UPDATE)
            listed = bank.accounts.list(lock=Lock.UPDATE)

        assert account is again is listed[0]
        assert 20 == account.balance

    def test_repository_a_lock_is_waited_for(self, harness: Harness) -> None:
        """A second unit in another thread waits for the lock and then sees what was committed."""
        if harness.name == "fake":
            pytest.skip("the fake does not wait")
        stored(harness, Account("A", "Ann", 10))
        read: list[int] = []

        def second() -> None:
            with harness.bank() as bank:
                account = bank.accounts.get("A", lock=Lock.UPDATE)
                read.append(account.balance)
                account.balance += 1
                bank.commit()

        with harness.bank() as holder:
            holder.accounts.get("A", lock=Lock.UPDATE).balance = 20
            holder.flush()
            thread = harness.meanwhile(second)
            holder.commit()
        thread.join()

        assert [20] == read
        assert {"A": 21} == balances(harness)
