"""
Repositories: adding, removing and getting, and keys.
"""

from typing import Any

import pytest

from uow.errors import EntityNotFound, InvalidArgument
from uow.testing._harness import Harness
from uow.testing._model import Account, Document, Line, Transfer

from ._concurrency import ConcurrencyRules
from ._queries import QueryRules
from ._steps import balances, quiet, stored
from ._violations import ViolationRules

__all__ = ["RepositoryRules"]


class RepositoryRules(QueryRules, ViolationRules, ConcurrencyRules):
    """
    What an application may ask of a repository.
    """

    # ------------------------------------------------------------------------------------------ add, remove and get

    def test_repository_add_all(self, harness: Harness) -> None:
        """`add_all()` adds any iterable, in its order."""
        with harness.bank() as bank:
            bank.accounts.add_all(Account(number, "Ann") for number in "CAB")
            bank.transfers.add_all([])
            bank.commit()

        assert ["A", "B", "C"] == harness.numbers()

    def test_repository_add_all_adds_all_or_none(self, harness: Harness) -> None:
        """An entity of another class is refused, and then none of them is added."""
        with harness.bank() as bank:
            strangers: Any = [Account("A", "Ann"), Document(1, "one")]
            with pytest.raises(InvalidArgument, match=r"Cannot call Accounts.add\(\): Document\(.*\) is no Account"):
                bank.accounts.add_all(strangers)
            with pytest.raises(InvalidArgument, match=r"Cannot call Accounts.remove\(\)"):
                bank.accounts.remove(strangers[1])
            bank.commit()

        assert [] == harness.numbers()

    def test_repository_add_sends_nothing_yet(self, harness: Harness) -> None:
        """Adding asks the database nothing; an entity is written when something needs to see it."""
        with harness.bank() as bank:
            with quiet(harness):
                bank.accounts.add(Account("A", "Ann"))
            pending = bank.status().pending
            bank.flush()
            written = bank.status().written

        assert (1, 1) == (pending.added, written.added)

    def test_repository_add_then_get(self, harness: Harness) -> None:
        """What was added is found by its key without a flush being asked for, and is the same object."""
        account = Account("A", "Ann")
        with harness.bank() as bank:
            bank.accounts.add(account)
            found = bank.accounts.get("A")

        assert account is found

    def test_repository_adding_twice_is_adding_once(self, harness: Harness) -> None:
        """An entity that was added, or loaded, may be added again, which changes nothing."""
        stored(harness, Account("B", "Bob", 20))
        account = Account("A", "Ann", 10)
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.accounts.add(account)
            bank.flush()
            bank.accounts.add(account)
            bank.accounts.add(bank.accounts.get("B"))
            bank.commit()

        assert {"A": 10, "B": 20} == balances(harness)

    def test_repository_remove_then_get(self, harness: Harness) -> None:
        """What was removed is not found any more, by its key or otherwise."""
        stored(harness, Account("A", "Ann", 10), Account("B", "Bob", 20))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            bank.accounts.remove(account)
            found = (
                bank.accounts.get_or_none("A"),
                bank.accounts.first(lambda a: a.number == "A"),
                bank.accounts.count(),
                [found.number for found in bank.accounts.list()],
            )
            with pytest.raises(EntityNotFound):
                bank.accounts.get("A")
            bank.commit()

        assert (None, None, 1, ["B"]) == found
        assert {"B": 20} == balances(harness)

    def test_repository_removing_what_was_just_added(self, harness: Harness) -> None:
        """An entity that was added and not written is forgotten when it is removed, and can be added again."""
        account = Account("A", "Ann", 10)
        with harness.bank() as bank:
            bank.accounts.add(account)
            with quiet(harness):
                bank.accounts.remove(account)
            found = bank.accounts.get_or_none("A")
            bank.accounts.add(account)
            bank.accounts.add(Account("B", "Bob", 20))
            bank.commit()

        assert found is None
        assert {"A": 10, "B": 20} == balances(harness)

    def test_repository_removing_what_was_never_added(self, harness: Harness) -> None:
        """Removing an entity that no unit knows is EntityNotFound, with its class and key."""
        with harness.bank() as bank:
            with pytest.raises(EntityNotFound, match="Cannot remove Account 'A': there is none") as simple:
                bank.accounts.remove(Account("A", "Ann"))
            with pytest.raises(EntityNotFound, match=r"Cannot remove Line \('o', 1\): there is none") as composite:
                bank.lines.remove(Line("o", 1))

        assert (Account, "A") == (simple.value.entity, simple.value.key)
        assert (Line, ("o", 1)) == (composite.value.entity, composite.value.key)

    def test_repository_removing_twice(self, harness: Harness) -> None:
        """Removing what is removed already changes nothing, as long as it was not written."""
        stored(harness, Account("A", "Ann"))
        with harness.bank() as bank:
            account = bank.accounts.get("A")
            bank.accounts.remove(account)
            bank.accounts.remove(account)
            bank.commit()

        assert {} == balances(harness)

    def test_repository_a_missing_entity(self, harness: Harness) -> None:
        """`get()` raises EntityNotFound with the class and the key, `get_or_none()` returns None."""
        with harness.bank() as bank:
            missing = bank.accounts.get_or_none("Z")
            with pytest.raises(
                EntityNotFound, match=r"Cannot get Account 'Z': there is none\. Use get_or_none"
            ) as raised:
                bank.accounts.get("Z")

        assert missing is None
        assert (Account, "Z", False) == (raised.value.entity, raised.value.key, raised.value.transient)

    def test_repository_no_key_is_no_entity(self, harness: Harness) -> None:
        """The key None, whole or in part, is nobody's: nothing is asked, nothing is found."""
        with harness.bank() as bank:
            with quiet(harness):
                found = (bank.accounts.get_or_none(None), bank.lines.get_or_none(("o", None)))

        assert (None, None) == found

    # ----------------------------------------------------------------------------------------------------- keys

    def test_repository_composite_keys(self, harness: Harness) -> None:
        """A key of several parts is a tuple in the order of its attributes."""
        with harness.bank() as bank:
            bank.lines.add_all([Line("o", 1, "one"), Line("o", 2, "two"), Line("p", 1, "three")])
            bank.commit()
        with harness.bank() as bank:
            line = bank.lines.get(("o", 2))
            same = bank.lines.one(lambda x: (x.order == "o") & (x.line == 2))
            missing = bank.lines.get_or_none(("p", 2))
            line.text = "zwei"
            bank.commit()
        with harness.bank() as bank:
            texts = [found.text for found in bank.lines.list(order_by=lambda x: (x.order, x.line))]

        assert line is same
        assert missing is None
        assert ["one", "zwei", "three"] == texts

    def test_repository_a_key_of_the_wrong_shape(self, harness: Harness) -> None:
        """A key with too few or too many parts is refused with the names of its parts."""
        with harness.bank() as bank:
            with pytest.raises(InvalidArgument, match=r"'o' has 1 parts. The key is \(order, line\)."):
                bank.lines.get("o")
            with pytest.raises(InvalidArgument, match=r"\('A', 'B'\) has 2 parts. The key is \(number\)."):
                bank.accounts.get(("A", "B"))

    def test_repository_generated_identities(self, harness: Harness) -> None:
        """A key that is None when the entity is written is generated: there at once, and never twice."""
        stored(harness, Account("A", "Ann"))
        transfers = [Transfer("A", amount) for amount in (1, 2, 3)]
        with harness.bank() as bank:
            bank.transfers.add_all(transfers)
            bank.flush()
            keys = [transfer.id for transfer in transfers]
            found = [bank.transfers.get(key) for key in keys]
            bank.commit()
        with harness.bank() as bank:
            amounts = [bank.transfers.get(key).amount for key in keys]

        assert transfers == found
        assert [1, 2, 3] == amounts
        assert 3 == len(set(keys))
