"""
What a repository finds: specifications, order, pages, counts.
"""

import gc
import weakref
from collections.abc import Callable, Iterable

import pytest

from uow import between, desc, is_in, is_null, like, not_
from uow.errors import EntityNotFound, InvalidArgument, MultipleEntitiesFound, SpecificationError
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, Line

from ._base import Contract
from ._steps import stored

__all__ = ["QueryRules"]

SPECIFICATIONS: dict[str, tuple[Callable[[Account], object], str]] = {
    "==": (lambda a: a.balance == 10, "CD"),
    "!=": (lambda a: a.balance != 10, "ABE"),
    "<": (lambda a: a.balance < 0, "A"),
    "<=": (lambda a: a.balance <= 0, "AB"),
    ">": (lambda a: a.balance > 10, "E"),
    ">=": (lambda a: a.balance >= 10, "CDE"),
    "&": (lambda a: (a.balance == 10) & (a.owner == "Cem"), "C"),
    "|": (lambda a: (a.balance == 30) | (a.owner == "Cem"), "CE"),
    "~": (lambda a: ~((a.balance == 30) | (a.owner == "Cem")), "ABD"),
    "not_": (lambda a: not_(a.balance == 10), "ABE"),
    "is_in": (lambda a: is_in(a.number, ["A", "E", "Z"]), "AE"),
    "is_in nothing": (lambda a: is_in(a.number, []), ""),
    "not in nothing": (lambda a: not_(is_in(a.number, [])), "ABCDE"),
    "between": (lambda a: between(a.balance, 0, 10), "BCD"),
    "like": (lambda a: like(a.owner, "_a%"), "D"),
    "like tells cases apart": (lambda a: like(a.owner, "b%"), ""),
    "a sum": (lambda a: a.balance + 10 == 20, "CD"),
    "a product of attributes": (lambda a: a.balance * a.balance == 25, "A"),
    "two attributes": (lambda a: a.number == a.owner, ""),
    "NULL is equal to nothing": (lambda a: a.note == "x", "B"),
    "NULL is unequal to nothing": (lambda a: a.note != "x", "DE"),
    "NOT leaves NULL out": (lambda a: not_(a.note == "x"), "DE"),
    "NULL or true": (lambda a: (a.note == "x") | (a.balance == 10), "BCD"),
    "NULL and false, negated": (lambda a: not_((a.note == "x") & (a.balance == 99)), "ABCDE"),
    "is_null": (lambda a: is_null(a.note), "AC"),
    "== None": (lambda a: a.note == None, "AC"),  # noqa: E711
    "!= None": (lambda a: a.note != None, "BDE"),  # noqa: E711
    "None in a collection": (lambda a: is_in(a.note, ["x", None]), "B"),
    "not in a collection with None": (lambda a: not_(is_in(a.note, ["x", None])), ""),
}


def fill(harness: Harness) -> None:
    """Store five accounts, two of which have no note."""
    stored(
        harness,
        Account("A", "Ann", -5),
        Account("B", "Bob", 0, "x"),
        Account("C", "Cem", 10),
        Account("D", "Dan", 10, "y"),
        Account("E", "Eve", 30, "z"),
    )


def names(found: Iterable[Account]) -> str:
    """Return the numbers of the accounts found, as one word."""
    return "".join(account.number for account in found)


class QueryRules(Contract):
    """
    Reading through a repository.
    """

    @pytest.mark.parametrize("specification", SPECIFICATIONS)
    def test_repository_specifications_mean_the_same_everywhere(self, harness: Harness, specification: str) -> None:
        """A specification finds the same entities on every adapter, NULL included; count() and exists() agree."""
        fill(harness)
        where, expected = SPECIFICATIONS[specification]
        with harness.bank() as bank:
            found = names(bank.accounts.list(where, order_by=lambda a: a.number))
            counted = bank.accounts.count(where)
            existing = bank.accounts.exists(where)
            iterated = names(bank.accounts.iterate(where, batch_size=2))

        assert expected == found == iterated
        assert (len(expected), bool(expected)) == (counted, existing)

    @pytest.mark.parametrize(
        ("order", "expected"),
        [
            (lambda a: a.number, "ABCDE"),
            (lambda a: desc(a.number), "EDCBA"),
            (lambda a: (desc(a.balance), a.number), "ECDBA"),
            (lambda a: (a.balance, desc(a.number)), "ABDCE"),
            (lambda a: (a.note, a.number), "ACBDE"),
            (lambda a: (desc(a.note), desc(a.number)), "EDBCA"),
            (lambda a: (a.balance * -1, a.number), "ECDBA"),
        ],
        ids=["up", "down", "down and up", "up and down", "NULL first", "NULL last when down", "computed"],
    )
    def test_repository_order(self, harness: Harness, order: Callable[[Account], object], expected: str) -> None:
        """An order has several keys, up or down, and a missing value is the smallest one."""
        fill(harness)
        with harness.bank() as bank:
            found = names(bank.accounts.list(order_by=order))
            first = bank.accounts.first(order_by=order)

        assert expected == found
        assert first is not None
        assert expected[0] == first.number

    @pytest.mark.parametrize(
        ("limit", "offset", "expected"),
        [(2, 0, "AB"), (2, 3, "DE"), (2, 4, "E"), (None, 3, "DE"), (0, 0, ""), (9, 9, ""), (None, 0, "ABCDE")],
    )
    def test_repository_limit_and_offset(self, harness: Harness, limit: int | None, offset: int, expected: str) -> None:
        """`limit` and `offset` cut a part out of what matches, either alone too."""
        fill(harness)
        with harness.bank() as bank:
            found = names(bank.accounts.list(order_by=lambda a: a.number, limit=limit, offset=offset))

        assert expected == found

    def test_repository_refuses_a_negative_limit(self, harness: Harness) -> None:
        """A negative limit or offset, or a batch of none, is an error before anything is asked."""
        with harness.bank() as bank:
            with pytest.raises(InvalidArgument, match=r"Accounts.list\(\): limit is -1. Pass 0 or more."):
                bank.accounts.list(limit=-1)
            with pytest.raises(InvalidArgument, match=r"offset is -2"):
                bank.accounts.list(offset=-2)
            with pytest.raises(InvalidArgument, match=r"Accounts.iterate\(\): batch_size is 0. Pass 1 or more."):
                bank.accounts.iterate(batch_size=0)
            begun = bank.status().begun

        assert not begun

    def test_repository_one(self, harness: Harness) -> None:
        """`one()` returns the only match; none is EntityNotFound, more than one MultipleEntitiesFound."""
        fill(harness)
        with harness.bank() as bank:
            found = bank.accounts.one(lambda a: a.balance == 30)
            with pytest.raises(EntityNotFound, match=r"Cannot get Account .*: there is none") as none:
                bank.accounts.one(lambda a: a.balance == 31)
            with pytest.raises(MultipleEntitiesFound, match=r"Cannot get one Account .* more than one matches") as many:
                bank.accounts.one(lambda a: a.balance == 10)

        assert "E" == found.number
        assert (Account, Account) == (none.value.entity, many.value.entity)

    def test_repository_first(self, harness: Harness) -> None:
        """`first()` returns the first match in order, or None."""
        fill(harness)
        with harness.bank() as bank:
            found = bank.accounts.first(lambda a: a.balance == 10, order_by=lambda a: desc(a.number))
            missing = bank.accounts.first(lambda a: a.balance == 31)

        assert found is not None
        assert ("D", None) == (found.number, missing)

    def test_repository_named_queries(self, harness: Harness) -> None:
        """A query written once in the port's repository works on every adapter, in a nested unit too."""
        fill(harness)
        with harness.bank() as bank:
            with bank.nested() as nested:
                bank.accounts.get("B").balance = -1
                inside = names(nested.accounts.overdrawn())
                nested.rollback()
            outside = names(bank.accounts.overdrawn())

        assert ("AB", "A") == (inside, outside)

    def test_repository_a_bad_specification_breaks_nothing(self, harness: Harness) -> None:
        """A specification that cannot be read is refused before the database is asked; the scope goes on."""
        fill(harness)
        with harness.bank() as bank:
            with pytest.raises(SpecificationError, match="Account stores no attribute 'balanse'"):
                bank.accounts.list(lambda a: a.balanse == 0)  # type: ignore[attr-defined]
            with pytest.raises(SpecificationError, match=r"Use &, \|"):
                bank.accounts.list(lambda a: a.balance == 0 and a.number == "B")
            bank.accounts.get("A").balance = 1
            bank.commit()

    # ---------------------------------------------------------------------------------- what is not committed yet

    def test_repository_changes_are_visible_before_the_commit(self, harness: Harness) -> None:
        """What a unit added, changed and removed is what its own queries see, and nobody else's."""
        fill(harness)
        with harness.bank() as bank:
            bank.accounts.add(Account("F", "Fay", 10))
            bank.accounts.get("C").balance = 11
            bank.accounts.remove(bank.accounts.get("D"))
            found = names(bank.accounts.list(lambda a: a.balance == 10))
            everything = names(bank.accounts.list(order_by=lambda a: a.number))
            counted = bank.accounts.count(lambda a: a.balance == 10)
            existing = bank.accounts.exists(lambda a: a.number == "D")
            iterated = names(bank.accounts.iterate())
        with harness.bank() as bank:
            untouched = names(bank.accounts.list(order_by=lambda a: a.number))

        assert ("F", "ABCEF", 1, False, "ABCEF") == (found, everything, counted, existing, iterated)
        assert "ABCDE" == untouched

    def test_repository_the_same_entity_is_the_same_object(self, harness: Harness) -> None:
        """Within a unit one key is one object, however it was found and in whichever scope; not across units."""
        fill(harness)
        with harness.bank() as bank:
            account = bank.accounts.get("B")
            with bank.nested() as nested:
                found = [
                    nested.accounts.get("B"),
                    bank.accounts.one(lambda a: a.number == "B"),
                    bank.accounts.first(lambda a: a.number == "B"),
                    *bank.accounts.list(lambda a: a.number == "B"),
                    *bank.accounts.iterate(lambda a: a.number == "B"),
                ]
        with harness.bank() as bank:
            other = bank.accounts.get("B")

        assert [account] * 5 == found
        assert account is not other

    def test_repository_a_query_keeps_what_was_changed_in_memory(self, harness: Harness) -> None:
        """An entity that a query finds again keeps the changes made to it."""
        fill(harness)
        with harness.bank() as bank:
            account = bank.accounts.get("B")
            account.balance = 77
            found = bank.accounts.list(lambda a: a.balance == 77)

        assert ([account], 77) == (list(found), account.balance)

    # ---------------------------------------------------------------------------------------------------- iterate()

    def test_repository_iterate_works_in_batches(self, harness: Harness) -> None:
        """`iterate()` goes through everything in key order, and the unit can do other work meanwhile."""
        fill(harness)
        with harness.bank() as bank:
            seen = []
            for account in bank.accounts.iterate(batch_size=2):
                seen.append(account.number)
                account.balance += 1
                with bank.nested() as nested:
                    nested.lines.add(Line("o", len(seen)))
            bank.commit()
        with harness.bank() as bank:
            changed = [account.balance for account in bank.accounts.list(order_by=lambda a: a.number)]
            lines = bank.lines.count()

        assert list("ABCDE") == seen
        assert [-4, 1, 11, 11, 31] == changed
        assert 5 == lines

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 100])
    def test_repository_iterate_over_a_composite_key(self, harness: Harness, size: int) -> None:
        """Batches meet without a gap, whatever their size, and with a key of several parts."""
        keys = [("a", 1), ("a", 2), ("a", 10), ("b", 1), ("b", 3), ("c", 2)]
        with harness.bank() as bank:
            bank.lines.add_all([Line(order, line) for order, line in reversed(keys)])
            bank.commit()
        with harness.bank() as bank:
            seen = [(line.order, line.line) for line in bank.lines.iterate(batch_size=size)]

        assert keys == seen

    def test_repository_iterate_holds_a_batch_at_a_time(self, harness: Harness) -> None:
        """However many entities match, no more than two batches of them are in memory."""
        stored(harness, *(Account(f"{number:03}", "Ann", number) for number in range(60)))
        live: weakref.WeakSet[Account] = weakref.WeakSet()
        most = count = 0
        with harness.bank() as bank:
            for account in bank.accounts.iterate(batch_size=5):
                live.add(account)
                count += 1
                gc.collect()
                most = max(most, len(live))

        assert 60 == count
        assert most <= 11

    def test_repository_iterate_obeys_the_scope(self, harness: Harness) -> None:
        """An iterator that outlives its unit stops with an error instead of reading on."""
        fill(harness)

        def begin(bank: Bank) -> list[str]:
            return [next(iterator).number for _ in range(2)]

        with harness.bank() as bank:
            iterator = bank.accounts.iterate(batch_size=2)
            seen = begin(bank)
        with pytest.raises(RuntimeError, match=r"Cannot call accounts.iterate\(\) on"):
            next(iterator)

        assert ["A", "B"] == seen
