"""
Bad input: the error says what to do, and nothing is lost.
"""

import gc
from abc import abstractmethod
from collections.abc import Callable

import pytest

from uow import Repository, State
from uow.errors import (
    AfterCommitFailed,
    AfterRollbackFailed,
    DefinitionError,
    EntityNotFound,
    InvalidArgument,
    MultipleEntitiesFound,
    SpecificationError,
    UnitOfWorkRolledBack,
)
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, Document, Line, Transfer

from ._base import Contract
from ._steps import balances, stored

__all__ = ["Misuse"]


class Ledger(Repository[Account]):
    """
    A repository that leaves something to its adapters.
    """

    @abstractmethod
    def richest(self) -> Account | None:
        """Return the account with the most in it."""

    @abstractmethod
    def archive(self) -> None:
        """Put old ones away."""


class Misuse(Contract):
    """
    What is wrong is said, at once, and with what to write instead.
    """

    # -------------------------------------------------------------------------------------------------- definitions

    def test_misuse_an_abstract_repository_method_is_an_error_of_the_class(self, harness: Harness) -> None:
        """An adapter whose repository leaves a method abstract is no class: the error names all three."""
        with pytest.raises(DefinitionError, match=r"Ledgers\.ledger.*Ledger leaves archive\(\), richest\(\) abstract"):
            harness.define("Ledgers", ledger=Ledger)

    def test_misuse_a_concrete_repository_may_replace_it(self, harness: Harness) -> None:
        """What the error asks for is right: a subclass that implements the methods."""

        class Full(Ledger):
            def richest(self) -> Account | None:
                return None

            def archive(self) -> None:
                pass

        assert Full is harness.define("Ledgers", ledger=Full).ledger.repository

    @pytest.mark.parametrize("annotation", [int, "int", Account, list[Account], None])
    def test_misuse_an_annotation_that_is_no_repository(self, harness: Harness, annotation: object) -> None:
        """An annotation that is no repository is an error of the class, which says how to mean something else."""
        with pytest.raises(DefinitionError, match=r"Odd\.things.*no repository.*Repository\[Entity\].*ClassVar"):
            harness.define("Odd", things=annotation)

    def test_misuse_a_repository_without_an_entity(self, harness: Harness) -> None:
        """A repository that does not say what it holds is an error of the class."""
        with pytest.raises(DefinitionError, match=r"Odd\.things.*which entity.*Repository\[Account\]"):
            harness.define("Odd", things=Repository)

    def test_misuse_an_annotation_that_cannot_be_read(self, harness: Harness) -> None:
        """An annotation whose name is not there at run time is an error of the class."""
        with pytest.raises(DefinitionError, match=r"Odd\.things.*'Nowhere' cannot be read.*at run time too"):
            harness.define("Odd", things="Nowhere")

    # ------------------------------------------------------------------------------------------------------- arguments

    @pytest.mark.parametrize(
        ("use", "hint"),
        [
            (lambda bank: bank.accounts.list(lambda a: a.balance > 0 and a.owner == "Ann"), "&"),
            (lambda bank: bank.accounts.list(lambda a: a.balance > 0 or a.owner == "Ann"), r"\|"),
            (lambda bank: bank.accounts.list(lambda a: not a.balance), "not_"),
            (lambda bank: bank.accounts.list(lambda a: 0 < a.balance < 10), "between"),
            (lambda bank: bank.accounts.list(lambda a: a.colour == "red"), "number, owner, balance, note"),
            (lambda bank: bank.accounts.count(lambda a: True), "."),
            (lambda bank: bank.accounts.list(order_by=lambda a: 3), "."),
        ],
    )
    def test_misuse_a_specification_that_cannot_be_traced(
        self, harness: Harness, use: Callable[[Bank], object], hint: str
    ) -> None:
        """A specification that says what a symbol cannot is SpecificationError, and the unit goes on."""
        self.goes_on(harness, use, SpecificationError, hint)

    @pytest.mark.parametrize(
        ("use", "hint"),
        [
            (lambda bank: bank.accounts.add(Transfer("A-1", 1)), "is no Account. Use the repository of its class"),
            (lambda bank: bank.accounts.add(None), "is no Account"),
            (lambda bank: bank.accounts.add_all([Account("B-2", "Bob"), Transfer("A-1", 1)]), "is no Account"),
            (lambda bank: bank.accounts.remove(Transfer("A-1", 1)), "is no Account"),
            (lambda bank: bank.lines.get("o-1"), r"has 1 parts\. The key is \(order, line\)"),
            (lambda bank: bank.lines.get(("o-1", 1, 2)), r"has 3 parts\. The key is \(order, line\)"),
            (lambda bank: bank.accounts.get(("A-1", 1)), r"has 2 parts\. The key is \(number\)"),
            (lambda bank: bank.accounts.list(limit=-1), "limit is -1. Pass 0 or more"),
            (lambda bank: bank.accounts.list(offset=-1), "offset is -1. Pass 0 or more"),
            (lambda bank: bank.accounts.iterate(batch_size=0), "batch_size is 0. Pass 1 or more"),
        ],
    )
    def test_misuse_an_argument_that_cannot_be_used(
        self, harness: Harness, use: Callable[[Bank], object], hint: str
    ) -> None:
        """An argument that makes no sense is InvalidArgument, says what to pass, and the unit goes on."""
        self.goes_on(harness, use, InvalidArgument, hint)

    @pytest.mark.parametrize(
        ("use", "error", "hint"),
        [
            (lambda bank: bank.accounts.get("X"), EntityNotFound, r"get Account 'X'.*get_or_none\(\)"),
            (lambda bank: bank.documents.get(7), EntityNotFound, "get Document 7"),
            (lambda bank: bank.lines.get(("o-1", 1)), EntityNotFound, "get Line"),
            (lambda bank: bank.accounts.one(lambda a: a.balance > 500), EntityNotFound, "balance > 500"),
            (lambda bank: bank.accounts.one(lambda a: a.balance < 500), MultipleEntitiesFound, "Narrow the spec"),
            (lambda bank: bank.accounts.remove(Account("X", "Xi")), EntityNotFound, "loaded or added can be removed"),
        ],
    )
    def test_misuse_what_is_not_there(
        self, harness: Harness, use: Callable[[Bank], object], error: type[Exception], hint: str
    ) -> None:
        """A missing entity is no error of the database: the unit goes on."""
        self.goes_on(harness, use, error, hint)

    def goes_on(self, harness: Harness, use: Callable[[Bank], object], error: type[Exception], hint: str) -> None:
        """Check that *use* raises *error* with *hint*, and costs the unit nothing."""
        with harness.bank() as bank:
            bank.accounts.add_all([Account("A-1", "Ann"), Account("A-2", "Ann")])
            with pytest.raises(error, match=hint):
                use(bank)

            assert State.ACTIVE is bank.state

            with bank.nested() as nested, pytest.raises(error, match=hint):
                use(nested)
            bank.commit()

        assert ["A-1", "A-2"] == harness.numbers()
        assert harness.idle()

    # ----------------------------------------------------------------------------------------------- hooks that fail

    def test_misuse_a_hook_that_fails_before_the_commit(self, harness: Harness) -> None:
        """A before_commit hook's error reaches the caller as it is, and nothing is kept."""
        error = LookupError("hook")

        def fail() -> None:
            raise error

        bank = harness.bank()
        with pytest.raises(LookupError) as caught:
            with bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.before_commit(fail)
                bank.commit()

        assert error is caught.value
        assert State.ROLLED_BACK is bank.state
        assert harness.idle()
        assert [] == harness.numbers()

    def test_misuse_a_swallowed_failure_of_a_hook(self, harness: Harness) -> None:
        """A block that swallowed a before_commit hook's error is told at its end."""

        def fail() -> None:
            raise LookupError("hook")

        with pytest.raises(UnitOfWorkRolledBack) as caught:
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.before_commit(fail)
                with pytest.raises(LookupError):
                    bank.commit()

        assert isinstance(caught.value.__cause__, LookupError)
        assert [] == harness.numbers()

    def test_misuse_a_hook_that_fails_after_the_commit(self, harness: Harness) -> None:
        """An after_commit hook's error is AfterCommitFailed, which says that the commit stands."""

        def fail() -> None:
            raise LookupError("hook")

        bank = harness.bank()
        with pytest.raises(AfterCommitFailed, match="was committed and stays so") as caught:
            with bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.after_commit(fail)
                bank.commit()

        assert [LookupError] == [type(error) for error in caught.value.exceptions]
        assert not caught.value.transient
        assert State.COMMITTED is bank.state
        assert harness.idle()
        assert ["A-1"] == harness.numbers()

    def test_misuse_a_hook_that_fails_after_a_rollback(self, harness: Harness) -> None:
        """An after_rollback hook's error is AfterRollbackFailed where no other exception is on its way."""

        def fail() -> None:
            raise LookupError("hook")

        bank = harness.bank()
        with pytest.raises(AfterRollbackFailed) as caught:
            with bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.after_rollback(fail)
                bank.rollback()

        assert [LookupError] == [type(error) for error in caught.value.exceptions]
        assert State.ROLLED_BACK is bank.state
        assert harness.idle()
        assert [] == harness.numbers()

    def test_misuse_a_hook_that_ends_its_own_unit(self, harness: Harness) -> None:
        """A before_commit hook cannot end the unit whose commit() is under way; it is told, and nothing is kept."""
        for verb in ("commit", "rollback"):
            with pytest.raises(Exception, match=r"commit\(\) is under way"):
                with harness.bank() as bank:
                    bank.accounts.add(Account("A-1", "Ann"))
                    bank.before_commit(getattr(bank, verb))
                    bank.commit()

            assert harness.idle()
            assert [] == harness.numbers()

    # ---------------------------------------------------------------------------------------- two objects for one row

    @pytest.mark.parametrize("verb", ["add", "remove"])
    @pytest.mark.parametrize("held", ["loaded", "changed", "removed"])
    def test_misuse_a_second_object_for_a_row(self, harness: Harness, verb: str, held: str) -> None:
        """An entity of an earlier unit is refused where the unit holds another object for its row."""
        stored(harness, Account("A-1", "Ann", 1))
        with harness.bank() as bank:
            earlier = bank.accounts.get("A-1")
        with harness.bank() as bank:
            account = bank.accounts.get("A-1")
            if held == "changed":
                account.balance = 2
            if held == "removed":
                bank.accounts.remove(account)
            with pytest.raises(InvalidArgument) as caught:
                getattr(bank.accounts, verb)(earlier)

            assert str(caught.value) == (
                f"Cannot call accounts.{verb}(): this unit already holds another object for Account 'A-1'. "
                "Get this unit's own object from the repository, and change or remove that."
            )
            assert State.ACTIVE is bank.state
            bank.commit()

        assert {"loaded": {"A-1": 1}, "changed": {"A-1": 2}, "removed": {}}[held] == balances(harness)

    def test_misuse_a_second_object_for_a_row_with_a_key_of_two_parts(self, harness: Harness) -> None:
        """The error names all parts of the key."""
        with harness.bank() as bank:
            bank.lines.add(Line("o-1", 2))
            bank.commit()
        with harness.bank() as bank:
            earlier = bank.lines.get(("o-1", 2))
        with harness.bank() as bank:
            line = bank.lines.get(("o-1", 2))
            with pytest.raises(InvalidArgument, match=r"another object for Line \('o-1', 2\)\."):
                bank.lines.add(earlier)

            assert line.text is None

    def test_misuse_two_objects_for_a_row_at_once(self, harness: Harness) -> None:
        """Of two that earlier units loaded for one row, the second is refused."""
        stored(harness, Account("A-1", "Ann", 1))
        earlier = []
        for _ in range(2):
            with harness.bank() as bank:
                earlier.append(bank.accounts.get("A-1"))
        with harness.bank() as bank:
            with pytest.raises(InvalidArgument, match="another object for Account 'A-1'"):
                bank.accounts.add_all(earlier)

            assert bank.accounts.get("A-1") is earlier[0]

    @pytest.mark.parametrize("verb", ["add", "remove"])
    @pytest.mark.parametrize("new", [True, False])
    def test_misuse_an_entity_of_another_open_unit(self, harness: Harness, verb: str, new: bool) -> None:
        """An entity is in one open unit at a time."""
        stored(harness, Account("A-1", "Ann", 1))
        with harness.bank() as other:
            account = Account("B-2", "Bob") if new else other.accounts.get("A-1")
            if new:
                other.accounts.add(account)
            with harness.bank() as bank:
                with pytest.raises(InvalidArgument, match=r"another open unit holds Account '(A-1|B-2)'\."):
                    getattr(bank.accounts, verb)(account)

                assert State.ACTIVE is bank.state
            other.rollback()
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.commit()

        assert (["A-1", "B-2"] if new else ["A-1"]) == harness.numbers()

    @pytest.mark.parametrize("gone", ["forgotten", "removed"])
    def test_misuse_an_entity_of_an_earlier_unit_in_place_of_another(self, harness: Harness, gone: str) -> None:
        """Where nobody holds the other object any more, or its row was removed, an earlier unit's is taken."""
        stored(harness, Account("A-1", "Ann", 1))
        with harness.bank() as bank:
            earlier = bank.accounts.get("A-1")
        with harness.bank() as bank:
            account = bank.accounts.get("A-1")
            if gone == "removed":
                bank.accounts.remove(account)
                bank.flush()
            del account
            gc.collect()
            bank.accounts.add(earlier)
            if gone == "forgotten":
                earlier.balance = 2
            bank.commit()

        assert {"forgotten": {"A-1": 2}, "removed": {}}[gone] == balances(harness)

    # ------------------------------------------------------------------------------------------------- odd but legal

    def test_misuse_the_same_entity_twice(self, harness: Harness) -> None:
        """Adding an entity twice, or removing one that was not stored yet, is no error."""
        with harness.bank() as bank:
            account, line = Account("A-1", "Ann"), Line("o-1", 1)
            bank.accounts.add_all([account, account])
            bank.accounts.add(account)
            bank.lines.add(line)
            bank.lines.remove(line)
            bank.documents.add(Document(1, "One"))
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_misuse_a_key_that_is_none(self, harness: Harness) -> None:
        """No entity has the key None, so there is none to be found."""
        with harness.bank() as bank:
            assert bank.accounts.get_or_none(None) is None
            assert bank.lines.get_or_none(("o-1", None)) is None
