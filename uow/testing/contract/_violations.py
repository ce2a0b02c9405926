"""
What constraints refuse: which error, with which facts.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from uow.errors import (
    CheckViolation,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    ScopeBroken,
    UniqueViolation,
)
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, Document, Line, Transfer

from ._base import Contract
from ._steps import balances, stored

__all__ = ["ViolationRules"]


class Case(NamedTuple):
    """
    Work that a constraint refuses, and what the error may tell about it.
    """

    work: Callable[[Bank], object]
    error: type[IntegrityViolation]
    table: str
    columns: tuple[str, ...]
    constraint: str | None = None


def _duplicate_of_a_loaded_one(bank: Bank) -> None:
    account = bank.accounts.get("A")
    bank.accounts.add(Account(account.number, "Bea"))


def _second_title(bank: Bank) -> None:
    bank.documents.get(2).title = "one"


def _no_owner(bank: Bank) -> None:
    bank.accounts.get("A").owner = None


def _too_low(bank: Bank) -> None:
    bank.accounts.get("A").balance = -1001


def _nowhere(bank: Bank) -> None:
    transfer = bank.transfers.one(lambda t: t.source == "A")
    transfer.source = "Z"


CASES = {
    "a key twice": Case(lambda b: b.accounts.add(Account("A", "Bea")), UniqueViolation, "accounts", ("number",)),
    "the key of a loaded entity": Case(_duplicate_of_a_loaded_one, UniqueViolation, "accounts", ("number",)),
    "a key twice in one unit": Case(
        lambda b: b.accounts.add_all([Account("X", "Ann"), Account("X", "Bea")]),
        UniqueViolation,
        "accounts",
        ("number",),
    ),
    "a composite key twice": Case(lambda b: b.lines.add(Line("o", 1)), UniqueViolation, "lines", ("order", "line")),
    "a unique value twice": Case(
        lambda b: b.documents.add(Document(3, "one")), UniqueViolation, "documents", ("title",)
    ),
    "a unique value by a change": Case(_second_title, UniqueViolation, "documents", ("title",)),
    "a reference to nothing": Case(
        lambda b: b.transfers.add(Transfer("Z", 1)), ForeignKeyViolation, "transfers", ("source",), "transfer_source"
    ),
    "a reference changed to nothing": Case(_nowhere, ForeignKeyViolation, "transfers", ("source",), "transfer_source"),
    "what is referred to removed": Case(
        lambda b: b.accounts.remove(b.accounts.get("A")),
        ForeignKeyViolation,
        "transfers",
        ("source",),
        "transfer_source",
    ),
    "a missing value": Case(lambda b: b.accounts.add(Account("X", None)), NotNullViolation, "accounts", ("owner",)),
    "a value taken away": Case(_no_owner, NotNullViolation, "accounts", ("owner",)),
    "a check": Case(
        lambda b: b.accounts.add(Account("X", "Ann", -1001)), CheckViolation, "accounts", (), "balance_floor"
    ),
    "a check by a change": Case(_too_low, CheckViolation, "accounts", (), "balance_floor"),
}


def fill(harness: Harness) -> None:
    """Store something in every table."""
    with harness.bank() as bank:
        bank.accounts.add(Account("A", "Ann", 10))
        bank.flush()
        bank.transfers.add(Transfer("A", 5))
        bank.documents.add_all([Document(1, "one"), Document(2, "two")])
        bank.lines.add(Line("o", 1))
        bank.commit()


class ViolationRules(Contract):
    """
    What constraints refuse.
    """

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("verb", ["flush", "commit"])
    def test_repository_violations_come_at_the_flush(self, harness: Harness, case: str, verb: str) -> None:
        """A constraint refuses at the flush, at the latest at the commit, with the error of its kind and its facts."""
        fill(harness)
        work, kind, table, columns, constraint = CASES[case]
        with pytest.raises(IntegrityViolation) as raised, harness.bank() as bank:
            work(bank)
            getattr(bank, verb)()
        error = raised.value

        assert kind is type(error)
        assert error.table is None or error.table.lower() in (table, table[:-1])
        assert error.columns in ((), columns)
        assert constraint is None or error.constraint in (None, constraint, *columns)
        assert (False, False) == (error.transient, error.dooms)
        assert str(error).startswith(error.headline)
        assert harness.statements is None or error.__cause__ is not None
        assert {"A": 10} == balances(harness)

    @pytest.mark.parametrize("case", CASES)
    def test_repository_a_violation_breaks_its_scope_alone(self, harness: Harness, case: str) -> None:
        """A violation breaks the nested scope that it happened in, and the outer one goes on and commits."""
        fill(harness)
        work, kind, *_ = CASES[case]
        with harness.bank() as bank:
            bank.accounts.add(Account("B", "Bob", 20))
            with pytest.raises(kind), bank.nested():
                work(bank)
                with pytest.raises(kind) as raised:
                    bank.flush()
                with pytest.raises(ScopeBroken) as refused:
                    bank.accounts.count()

                assert refused.value.__cause__ is raised.value
                raise raised.value
            bank.accounts.add(Account("C", "Cem", 30))
            bank.commit()

        assert {"A": 10, "B": 20, "C": 30} == balances(harness)

    def test_repository_the_key_of_a_removed_entity(self, harness: Harness) -> None:
        """One new entity can take the key of an entity that is removed in the same flush; a second one is refused."""
        fill(harness)
        with harness.bank() as bank:
            bank.documents.remove(bank.documents.get(1))
            bank.documents.add(Document(1, "heir"))
            with pytest.raises(UniqueViolation) as raised, bank.nested():
                bank.documents.remove(bank.documents.get(1))
                bank.documents.add_all([Document(1, "second"), Document(1, "third"), Document(3, "other")])
            bank.commit()
        with harness.bank() as bank:
            titles = [document.title for document in bank.documents.list(order_by=lambda d: d.id)]

        assert ("documents", ("id",)) == (raised.value.table, raised.value.columns) or harness.statements is None
        assert ["heir", "two"] == titles

    def test_repository_unique_ignores_missing_values(self, harness: Harness) -> None:
        """A value that may be missing may be missing more than once, and an entity keeps its own unique value."""
        stored(harness, Account("A", "Ann"), Account("B", "Bob"))
        with harness.bank() as bank:
            bank.documents.add(Document(1, "one"))
            bank.commit()
        with harness.bank() as bank:
            document = bank.documents.get(1)
            document.title = "other"
            bank.flush()
            document.title = "one"
            bank.commit()

        assert {"A": 0, "B": 0} == balances(harness)

    def test_repository_a_freed_unique_value_can_be_taken(self, harness: Harness) -> None:
        """A unique value that was given up and written may be taken in the same unit."""
        fill(harness)
        with harness.bank() as bank:
            bank.documents.get(1).title = "free"
            bank.flush()
            bank.documents.get(2).title = "one"
            bank.commit()
        with harness.bank() as bank:
            titles = [document.title for document in bank.documents.list(order_by=lambda d: d.id)]

        assert ["free", "one"] == titles

    def test_repository_a_unique_value_changes_hands_in_one_flush(self, harness: Harness) -> None:
        """Changes are written in the order of the keys, and before what is new: each may take what the last gave up."""
        with harness.bank() as bank:
            bank.documents.add_all([Document(1, "One"), Document(2, "Two")])
            bank.commit()
        with harness.bank() as bank:
            two, one = bank.documents.get(2), bank.documents.get(1)
            two.title, one.title = "One", "First"
            bank.documents.add(Document(3, "Two"))
            bank.commit()

        with harness.bank() as bank:
            assert {1: "First", 2: "One", 3: "Two"} == {each.id: each.title for each in bank.documents.list()}

    def test_repository_a_reference_within_one_unit(self, harness: Harness) -> None:
        """A row that is added and written may be referred to before it is committed, and both can go together."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.flush()
            transfer = Transfer("A", 5)
            bank.transfers.add(transfer)
            bank.commit()
        with harness.bank() as bank:
            bank.transfers.remove(bank.transfers.get(transfer.id))
            bank.flush()
            bank.accounts.remove(bank.accounts.get("A"))
            bank.commit()

        assert {} == balances(harness)
