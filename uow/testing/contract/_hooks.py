"""
Rules 15 and 17: hooks, which live and die with their scope, and what fails after the commit.
"""

import pytest

from uow import Handlers, State
from uow.errors import (
    AfterCommitFailed,
    AfterRollbackFailed,
    OutsideUnitOfWork,
    UniqueViolation,
    UnitOfWorkEnded,
    UnitOfWorkError,
)
from uow.testing._harness import Harness
from uow.testing._model import Account

from ._base import Contract
from ._steps import Noted, Oops, balances, fail, stored, told

__all__ = ["HookRules"]

KINDS = ("before_commit", "after_commit", "after_rollback")


class HookRules(Contract):
    """
    Rules 15 and 17, on hooks.
    """

    # ------------------------------------------------------------------------------------------------- 15. the hooks

    def test_rule_15_hooks_run_in_the_order_they_were_registered_in(self, harness: Harness) -> None:
        """Hooks before and after the commit run in registration order, those of a released scope included."""
        seen: list[str] = []
        with harness.bank() as bank:
            bank.after_commit(told(seen, "after 1"))
            bank.before_commit(told(seen, "before 1"))
            with bank.nested():
                bank.after_commit(told(seen, "after 2"))
                bank.before_commit(told(seen, "before 2"))
            bank.after_commit(told(seen, "after 3"))
            bank.before_commit(told(seen, "before 3"))
            bank.after_rollback(told(seen, "rolled back"))
            early = list(seen)
            bank.commit()

        assert [] == early
        assert ["before 1", "before 2", "before 3", "after 1", "after 2", "after 3"] == seen

    def test_rule_15_a_hook_belongs_to_the_innermost_scope(self, harness: Harness) -> None:
        """A hook registered through the outer handle belongs to the innermost open scope and is discarded with it."""
        seen: list[str] = []
        with harness.bank() as bank:
            with bank.nested() as nested:
                bank.before_commit(told(seen, "before"))
                bank.after_commit(told(seen, "after"))
                nested.after_commit(told(seen, "after too"))
                bank.after_rollback(told(seen, "rolled back"))
                nested.rollback()
            at_once = list(seen)
            bank.commit()

        assert ["rolled back"] == at_once == seen

    def test_rule_15_an_outer_rollback_runs_the_hooks_of_a_released_scope(self, harness: Harness) -> None:
        """Hooks handed over by a released scope share the fate of the scope around it."""
        seen: list[str] = []
        with harness.bank() as bank:
            bank.after_rollback(told(seen, "root"))
            with bank.nested() as nested:
                nested.after_rollback(told(seen, "nested"))
                with nested.nested() as inner:
                    inner.after_rollback(told(seen, "inner"))
                    inner.after_commit(told(seen, "never"))
                released = list(seen)
                nested.rollback()
            after_nested = list(seen)
            bank.rollback()

        assert [] == released
        assert ["nested", "inner"] == after_nested
        assert ["nested", "inner", "root"] == seen

    def test_rule_15_an_exception_discards_hooks_too(self, harness: Harness) -> None:
        """A root that an exception leaves runs `after_rollback` and nothing else, with its connection given back."""
        seen: list[object] = []
        with pytest.raises(Oops), harness.bank() as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.flush()
            for kind in KINDS:
                getattr(bank, kind)(told(seen, kind))
            bank.after_rollback(lambda: seen.append(harness.idle()))
            raise Oops

        assert ["after_rollback", True] == seen

    def test_rule_15_after_commit_waits_for_the_root_to_be_durable(self, harness: Harness) -> None:
        """`after_commit` runs once, when another unit sees the work and the connection is back in the pool."""
        seen: list[object] = []
        with harness.bank() as bank:
            bank.accounts.add(Account("A", "Ann", 10))

            @bank.after_commit
            def look() -> None:
                seen.append((harness.idle(), bank.status().state, balances(harness)))

            with bank.nested():
                bank.after_commit(look)
            released = list(seen)
            bank.commit()

        assert [] == released
        assert [(True, State.COMMITTED, {"A": 10})] * 2 == seen

    def test_rule_15_a_hook_of_after_commit_may_open_the_next_unit(self, harness: Harness) -> None:
        """In an `after_commit` hook a second unit can write."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A", "Ann", 10))
            bank.after_commit(lambda: stored(harness, Account("B", "Bob", 20)))
            bank.commit()

        assert {"A": 10, "B": 20} == balances(harness)

    @pytest.mark.parametrize("kind", KINDS)
    def test_rule_15_registering_outside_is_an_error(self, harness: Harness, kind: str) -> None:
        """A hook cannot be registered before a scope, after it, or in one that ended."""
        bank = harness.bank()
        with pytest.raises(
            OutsideUnitOfWork, match=rf"Cannot register a hook with {kind}\(\) on {type(bank).__name__}"
        ):
            getattr(bank, kind)(lambda: None)
        with bank:
            bank.commit()
            with pytest.raises(UnitOfWorkEnded, match="it was committed and has ended"):
                getattr(bank, kind)(lambda: None)
        with pytest.raises(OutsideUnitOfWork):
            getattr(bank, kind)(lambda: None)

    @pytest.mark.parametrize("kind", KINDS)
    def test_rule_15_registering_in_an_ended_nested_scope_is_an_error(self, harness: Harness, kind: str) -> None:
        """In a nested scope that was ended early nothing can be registered, through either handle."""
        with harness.bank() as bank:
            with bank.nested() as nested:
                nested.rollback()
                for handle in (nested, bank):
                    with pytest.raises(UnitOfWorkEnded, match="it was rolled back and has ended"):
                        getattr(handle, kind)(lambda: None)
            with pytest.raises(OutsideUnitOfWork):
                getattr(nested, kind)(lambda: None)

    def test_rule_15_afailing_hook_of_after_rollback(self, harness: Harness) -> None:
        """All hooks of `after_rollback` run; their errors are raised as a group, and the rollback stands."""
        seen: list[str] = []
        with harness.bank() as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.after_rollback(fail)
            bank.after_rollback(told(seen, "ran"))
            with pytest.raises(AfterRollbackFailed) as raised:
                bank.rollback()

        assert (["ran"], [Oops]) == (seen, [type(error) for error in raised.value.exceptions])
        assert {} == balances(harness)

    def test_rule_15_afailing_hook_never_hides_the_original_error(self, harness: Harness) -> None:
        """When an exception leaves the block, a failing `after_rollback` hook is a note on it."""
        with pytest.raises(ZeroDivisionError) as raised, harness.bank() as bank:
            bank.after_rollback(fail)
            raise ZeroDivisionError

        assert any("AfterRollbackFailed" in note for note in raised.value.__notes__)

    # ------------------------------------------------------------------------------------------- 17. after the commit

    @pytest.mark.parametrize("kind", ["hook", "handler"])
    def test_rule_17_afailure_after_the_commit(self, harness: Harness, kind: str) -> None:
        """When something fails after the commit, all the others run, and an error says that the commit stands."""
        handlers, seen = Handlers(), list[str]()

        @handlers.after_commit(Noted)
        def publish(event: Noted) -> None:
            seen.append(event.text)
            if kind == "handler" and event.text == "first":
                raise Oops

        with harness.bank(handlers=handlers) as bank:
            bank.accounts.add(Account("A", "Ann", 10))
            bank.after_commit(fail if kind == "hook" else told(seen, "hook 1"))
            bank.after_commit(told(seen, "hook 2"))
            bank.record(Noted("first"))
            bank.record(Noted("second"))
            with pytest.raises(AfterCommitFailed) as raised:
                bank.commit()
            state = bank.state

        error = raised.value

        assert ["hook 2", "first", "second"] == [word for word in seen if word != "hook 1"]
        assert isinstance(error, ExceptionGroup)
        assert isinstance(error, UnitOfWorkError)
        assert [Oops] == [type(inner) for inner in error.exceptions]
        assert not error.transient
        assert "was committed and stays so" in str(error)
        assert State.COMMITTED is state
        assert {"A": 10} == balances(harness)

    def test_rule_17_everyfailure_is_told(self, harness: Harness) -> None:
        """The group holds the error of each hook that failed, and splits like any exception group."""
        with pytest.raises(AfterCommitFailed) as raised, harness.bank() as bank:
            for error in (Oops(), KeyError("x"), Oops()):
                bank.after_commit(lambda error=error: fail(error))
            bank.commit()

        matched, rest = raised.value.split(KeyError)

        assert [Oops, KeyError, Oops] == [type(error) for error in raised.value.exceptions]
        assert (AfterCommitFailed, AfterCommitFailed) == (type(matched), type(rest))

    def test_rule_17_a_transientfailure_is_not_transient_any_more(self, harness: Harness) -> None:
        """A failure after the commit never invites to do the work again, whatever failed."""
        stored(harness, Account("A", "Ann", 10))
        with pytest.raises(AfterCommitFailed) as raised, harness.bank() as bank:
            bank.after_commit(lambda: stored(harness, Account("A", "Bea")))
            bank.commit()

        assert [UniqueViolation] == [type(error) for error in raised.value.exceptions]
        assert not raised.value.transient
