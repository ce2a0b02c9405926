"""
Rule 18: what the port itself sees to of the options, whatever the database does with them.
"""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from uow import Changes, Handlers, State
from uow.errors import ConfigurationError, ContradictoryOptions, ReadOnlyUnitOfWork
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, MoneyMoved

from ._base import Contract
from ._steps import Noted, Oops, balances, stored, told

__all__ = ["OptionRules"]


def change(bank: Bank) -> None:
    """Change an account; nothing is sent yet."""
    bank.accounts.get("A-1").balance = 11


def nest(bank: Bank) -> None:
    """Open a nested scope, for which what is pending would be written first."""
    with bank.nested():
        pass


class OptionRules(Contract):
    """
    Read-only units, bad values, and options that contradict.
    """

    # --------------------------------------------------------------------------------------------------- read-only

    def test_rule_18_a_read_only_unit_reads(self, harness: Harness) -> None:
        """Everything that reads works, in nested and joined scopes too, and commit() ends it."""
        stored(harness, Account("A-1", "Ann", 10), Account("B-2", "Bob", -5))
        seen: list[object] = []
        with harness.bank(read_only=True) as bank:
            bank.after_commit(told(seen, "committed"))
            with bank.nested() as nested, nested.joined() as unit:
                assert "Ann" == unit.accounts.get("A-1").owner
                assert 2 == unit.accounts.count()
            assert ["B-2"] == [account.number for account in bank.accounts.overdrawn()]
            assert 2 == len(list(bank.accounts.iterate(batch_size=1)))

            bank.flush()
            bank.commit()

        assert ["committed"] == seen
        assert State.COMMITTED is bank.state
        assert harness.idle()

    def test_rule_18_a_read_only_unit_refuses_to_add_and_remove(self, harness: Harness) -> None:
        """Both are ReadOnlyUnitOfWork at once, change nothing, and reading goes on."""
        stored(harness, Account("A-1", "Ann", 10))
        with harness.bank(read_only=True) as bank:
            account = bank.accounts.get("A-1")
            calls: dict[str, Callable[[], object]] = {
                "add": lambda: bank.accounts.add(Account("B-2", "Bob")),
                "add again": lambda: bank.accounts.add(account),
                "remove": lambda: bank.accounts.remove(account),
            }
            for verb, call in calls.items():
                with pytest.raises(ReadOnlyUnitOfWork) as caught:
                    call()
                assert (
                    f"Cannot call accounts.{verb.split()[0]}() on {type(bank).__name__} (root): it is read-only. "
                    "Write in a unit that is made without read_only."
                ) == str(caught.value)

            assert (State.ACTIVE, Changes()) == (bank.state, bank.status().pending)
            assert 10 == bank.accounts.get("A-1").balance

            bank.commit()

        assert {"A-1": 10} == balances(harness)

    def test_rule_18_what_a_read_only_unit_did_not_take_in_is_free(self, harness: Harness) -> None:
        """A new entity that was refused is as new as before, and so are its events."""
        account = Account("A-1", "Ann", 10)
        account.withdraw(1)
        with harness.bank(read_only=True) as bank:
            with pytest.raises(ReadOnlyUnitOfWork):
                bank.accounts.add_all([account])
            bank.commit()

        assert (MoneyMoved("A-1", 1),) == account.pending_events
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.commit()
        assert {"A-1": 9} == balances(harness)

    @pytest.mark.parametrize(
        "write",
        [lambda bank: bank.flush(), lambda bank: bank.accounts.count(), nest, lambda bank: bank.commit()],
        ids=["flush", "read", "nested", "commit"],
    )
    def test_rule_18_a_read_only_unit_refuses_a_change(self, harness: Harness, write: Callable[[Bank], Any]) -> None:
        """A changed entity is ReadOnlyUnitOfWork where it would be written, and its error counts what."""
        stored(harness, Account("A-1", "Ann", 10))
        with pytest.raises(ReadOnlyUnitOfWork, match=r"write what is pending \(.*1 changed.*it is read-only"):
            with harness.bank(read_only=True) as bank:
                change(bank)
                write(bank)

        assert State.ROLLED_BACK is bank.state
        assert {"A-1": 10} == balances(harness)
        assert harness.idle()

    @pytest.mark.parametrize("attempts", [1, 2])
    def test_rule_18_a_refused_change_is_refused_again(self, harness: Harness, attempts: int) -> None:
        """Whoever swallows the refusal meets it at the commit: the unit never commits as if it had written."""
        stored(harness, Account("A-1", "Ann", 10))
        with pytest.raises(ReadOnlyUnitOfWork), harness.bank(read_only=True) as bank:
            change(bank)
            for _ in range(attempts):
                with pytest.raises(ReadOnlyUnitOfWork):
                    bank.flush()
            bank.commit()

        assert State.ROLLED_BACK is bank.state
        assert {"A-1": 10} == balances(harness)

    def test_rule_18_a_change_taken_back_is_none(self, harness: Harness) -> None:
        """An entity that has its stored values again does not stand in the way of the commit."""
        stored(harness, Account("A-1", "Ann", 10))
        with harness.bank(read_only=True) as bank:
            account = bank.accounts.get("A-1")
            change(bank)
            with pytest.raises(ReadOnlyUnitOfWork):
                bank.flush()
            account.balance = 10
            bank.flush()
            bank.commit()

        assert State.COMMITTED is bank.state

    def test_rule_18_a_change_in_a_nested_scope(self, harness: Harness) -> None:
        """The nested scope cannot be released and is undone; the read-only unit goes on."""
        stored(harness, Account("A-1", "Ann", 10))
        with harness.bank(read_only=True) as bank:
            with pytest.raises(ReadOnlyUnitOfWork), bank.nested() as nested:
                change(nested)

            assert State.ROLLED_BACK is nested.state
            assert 10 == bank.accounts.get("A-1").balance

            bank.commit()

        assert {"A-1": 10} == balances(harness)

    def test_rule_18_a_change_that_is_left_behind_is_logged(
        self, harness: Harness, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Leaving without commit() says what was lost, as in every unit."""
        stored(harness, Account("A-1", "Ann", 10))
        with caplog.at_level(logging.WARNING, logger="uow"), harness.bank(read_only=True) as bank:
            change(bank)

        assert [True] == ["was left without commit()" in message for message in caplog.messages]
        assert {"A-1": 10} == balances(harness)

    def test_rule_18_a_handler_of_a_read_only_unit_may_not_write(self, harness: Harness) -> None:
        """A handler that writes before the commit stops it."""
        handlers = Handlers()
        handlers.before_commit(Noted)(lambda event, uow: uow.accounts.add(Account("B-2", "Bob")))
        with pytest.raises(ReadOnlyUnitOfWork), harness.bank(read_only=True, handlers=handlers) as bank:
            bank.record(Noted("read"))
            bank.commit()

        assert State.ROLLED_BACK is bank.state
        assert [] == harness.numbers()

    def test_rule_18_the_next_unit_writes(self, harness: Harness) -> None:
        """Read-only is the one unit's, whichever way that ended."""
        stored(harness, Account("A-1", "Ann", 10))
        for end in ("commit", "rollback", "flush", "nothing"):
            with harness.bank(read_only=True) as bank:
                bank.accounts.get("A-1")
                getattr(bank, end, bank.flush)()
            with suppress(Oops), harness.bank(read_only=True) as bank:
                bank.accounts.get("A-1")
                raise Oops
            with harness.bank() as bank:
                bank.accounts.get("A-1").balance += 1
                bank.commit()

        assert {"A-1": 14} == balances(harness)

    # --------------------------------------------------------------------------------------------------- bad values

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"isolation": "CHAOS"}, "CHAOS"),
            ({"isolation": ""}, "isolation"),
            ({"isolation": 3}, "isolation is 3"),
            ({"statement_timeout": 0}, "statement_timeout is 0"),
            ({"statement_timeout": -1.5}, "statement_timeout is -1.5"),
            ({"lock_timeout": 0}, "lock_timeout is 0"),
            ({"lock_timeout": -1}, "lock_timeout is -1"),
            ({"lock_timeout": math.nan}, "lock_timeout is nan"),
            ({"lock_timeout": math.inf}, "lock_timeout is inf"),
            ({"lock_timeout": "5"}, "lock_timeout is '5'"),
            ({"statement_timeout": True}, "statement_timeout is True"),
            ({"read_only": "no"}, "read_only is 'no'"),
            ({"deferrable": True}, "deferrable has no effect"),
            ({"deferrable": True, "read_only": True}, "deferrable has no effect"),
            ({"deferrable": True, "isolation": "SERIALIZABLE"}, "deferrable has no effect"),
        ],
    )
    def test_rule_18_bad_values(self, harness: Harness, options: dict[str, Any], text: str) -> None:
        """A value that means nothing is a ConfigurationError where it is given, not where the unit is entered."""
        good = harness.bank()
        for give in (harness.bank, good.independent, good.joined):
            with pytest.raises(ConfigurationError, match=text):
                give(**options)
        with good:
            good.commit()

        assert harness.idle()

    def test_rule_18_an_unknown_level_lists_the_known_ones(self, harness: Harness) -> None:
        """Whoever misspells an isolation level reads how it is spelt."""
        with pytest.raises(ConfigurationError, match="SERIALIZABLE"):
            harness.bank(isolation="SERIALISABLE")

    def test_rule_18_the_level_is_in_the_status(self, harness: Harness) -> None:
        """`status().isolation` is the level that was asked for, however it was written, in every scope."""
        with harness.bank() as bank:
            assert bank.status().isolation is None
        for level in ("SERIALIZABLE", "serializable", "Serializable"):
            with harness.bank(isolation=level) as bank, bank.nested() as nested, nested.joined() as unit:
                assert ["SERIALIZABLE"] * 3 == [scope.status().isolation for scope in (bank, nested, unit)]

                unit.accounts.add(Account(level, "Ann"))
                unit.flush()

                assert "SERIALIZABLE" == unit.status().isolation

    def test_rule_18_a_limit_that_is_not_reached(self, harness: Harness) -> None:
        """A lock_timeout changes nothing for who need not wait."""
        with harness.bank(lock_timeout=30, isolation="SERIALIZABLE") as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with bank.nested():
                pass
            bank.commit()

        assert ["A-1"] == harness.numbers()

    # ------------------------------------------------------------------------------------------- joined, independent

    @pytest.mark.parametrize("asked", [{}, {"read_only": True}, {"isolation": "serializable"}])
    def test_rule_18_options_that_agree(self, harness: Harness, asked: dict[str, Any]) -> None:
        """Whoever asks for what the open unit has, or for less, joins it."""
        with harness.bank(read_only=True, isolation="SERIALIZABLE") as bank:
            with bank.joined(**asked) as unit:
                assert 1 == unit.status().depth
            with harness.bank(**asked).joined() as unit:
                assert 1 == unit.status().depth
                with pytest.raises(ReadOnlyUnitOfWork):
                    unit.accounts.add(Account("A-1", "Ann"))
            bank.commit()

    @pytest.mark.parametrize(
        ("made", "asked", "text"),
        [
            ({}, {"read_only": True}, "it asks for read_only=True, and that one was made with no options"),
            ({}, {"isolation": "serializable"}, "it asks for isolation='SERIALIZABLE', and"),
            ({}, {"lock_timeout": 3}, "it asks for lock_timeout=3, and that one was made with no options"),
            (
                {"lock_timeout": 2},
                {"lock_timeout": 1, "read_only": True},
                "it asks for read_only=True, lock_timeout=1, and that one was made with lock_timeout=2",
            ),
        ],
    )
    def test_rule_18_options_that_contradict(
        self, harness: Harness, made: dict[str, Any], asked: dict[str, Any], text: str
    ) -> None:
        """Whoever asks for more than the open unit has is refused when it enters, and nothing changes."""
        with harness.bank(**made) as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            for unit in (bank.joined("pay", **asked), harness.bank(**asked).joined()):
                with pytest.raises(ContradictoryOptions) as caught:
                    unit.__enter__()

                assert f"Cannot join the unit around it on {type(bank).__name__} (root): {text}" in str(caught.value)
                assert "Ask for the same, or open an independent() unit." in str(caught.value)
                assert (State.NEW, State.ACTIVE) == (unit.state, bank.state)
            with bank.joined() as joined:
                assert 1 == joined.status().depth
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_18_options_of_a_joined_unit_that_is_the_root(self, harness: Harness) -> None:
        """Where nothing is open, the joined unit has the options that it asked for, each time anew."""
        unit = harness.bank().joined(read_only=True, isolation="SERIALIZABLE")
        for _ in range(2):
            with unit:
                assert "SERIALIZABLE" == unit.status().isolation
                with pytest.raises(ReadOnlyUnitOfWork):
                    unit.accounts.add(Account("A-1", "Ann"))
            with harness.bank(), pytest.raises(ContradictoryOptions):
                unit.__enter__()

    def test_rule_18_other_handlers_contradict(self, harness: Harness) -> None:
        """A unit with handlers of its own cannot join one that would never call them."""
        handlers, seen = Handlers(), list[object]()
        handlers.after_commit(Noted)(seen.append)
        with harness.bank() as bank:
            with pytest.raises(ContradictoryOptions, match=r"made with handlers=.* that one does not have"):
                harness.bank(handlers=handlers).joined().__enter__()
            with harness.bank(handlers=Handlers()).joined() as unit:
                unit.record(Noted("nobody listens"))
            bank.commit()
        with harness.bank(handlers=handlers) as bank:
            with harness.bank().joined() as unit, bank.joined() as inner:
                inner.record(Noted("heard"))
            bank.commit()

        assert [Noted("heard")] == seen
        assert State.RELEASED is unit.state

    @pytest.mark.parametrize("setting", [{"strict": True}, {"handoff": True}, {"observers": [print]}], ids=str)
    def test_rule_18_other_settings_contradict(self, harness: Harness, setting: dict[str, Any]) -> None:
        """What a unit is made with besides cannot be had from one that is made without it."""
        with harness.bank() as bank:
            with pytest.raises(ContradictoryOptions, match=f"made with {next(iter(setting))}="):
                harness.bank(**setting).joined().__enter__()
            bank.commit()
        with harness.bank(**setting) as bank:
            with harness.bank().joined() as unit, harness.bank(**setting).joined() as same:
                same.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert State.RELEASED is unit.state
        assert ["A-1"] == harness.numbers()

    @pytest.mark.parametrize(
        ("around", "asked"),
        [({"read_only": True}, {"read_only": False}), ({"isolation": "SERIALIZABLE"}, {"isolation": None})],
        ids=str,
    )
    def test_rule_18_a_default_that_is_asked_for(
        self, harness: Harness, around: dict[str, Any], asked: dict[str, Any]
    ) -> None:
        """A joining unit that says the default in so many words does not put up with anything else."""
        with harness.bank(**around) as bank:
            with pytest.raises(ContradictoryOptions, match=f"it asks for {next(iter(asked))}="):
                bank.joined(**asked).__enter__()
            with bank.joined() as unit:
                unit.accounts.count()
            bank.commit()

    def test_rule_17_a_joined_unit_that_is_the_root_has_its_name(self, harness: Harness) -> None:
        """Where nothing is open, the name given to joined() is the root's."""
        with harness.bank().joined("pay") as unit:
            assert "pay" == unit.status().name

    def test_rule_18_options_of_an_independent_unit(self, harness: Harness) -> None:
        """It has the options of the unit it is made from, or instead those that it is given."""
        stored(harness, Account("A-1", "Ann", 10))
        with harness.bank(read_only=True) as bank:
            with bank.independent() as same:
                assert same.status().isolation is None
                with pytest.raises(ReadOnlyUnitOfWork):
                    same.accounts.add(Account("B-2", "Bob"))
            with bank.independent(isolation="SERIALIZABLE") as other:
                assert "SERIALIZABLE" == other.status().isolation

                other.accounts.add(Account("B-2", "Bob"))
                other.commit()
            with pytest.raises(ReadOnlyUnitOfWork):
                bank.accounts.add(Account("C-3", "Cleo"))

        assert {"A-1": 10, "B-2": 0} == balances(harness)

    def test_rule_18_a_read_only_unit_inside_a_writing_one(self, harness: Harness) -> None:
        """An independent read-only unit reads what is committed, and the writing one around it writes."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with bank.independent(read_only=True) as reader:
                assert 0 == reader.accounts.count()
            bank.commit()

        assert ["A-1"] == harness.numbers()
