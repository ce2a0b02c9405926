"""
Rules 5 and 6: where a unit may be used, and by whom.
"""

import asyncio
import gc
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial

import pytest

from uow import State, Transition, Verb
from uow.errors import (
    DatabaseError,
    NotNullViolation,
    OutsideUnitOfWork,
    UnitOfWorkActive,
    UnitOfWorkEnded,
    UnitOfWorkRolledBack,
    WrongTask,
)
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank

from ._base import Contract

__all__ = ["OwnershipRules"]


def attempts(bank: Bank) -> list[Callable[[], object]]:
    """Return every way to do something with a unit."""
    return [
        lambda: bank.accounts,
        bank.flush,
        bank.commit,
        bank.rollback,
        lambda: bank.nested().__enter__(),
        lambda: bank.before_commit(print),
        lambda: bank.after_commit(print),
        lambda: bank.after_rollback(print),
    ]


def drop(units: list[Bank]) -> None:
    """Let go of *units* that are still open."""
    units.clear()
    gc.collect()


class OwnershipRules(Contract):
    """
    Where and by whom a unit is used.
    """

    # --------------------------------------------------------------------------------------------- 5. inside its block

    def test_rule_05_a_unit_that_was_never_entered_does_nothing(self, harness: Harness) -> None:
        """Everything but `state` is OutsideUnitOfWork before the unit was entered."""
        bank = harness.bank()
        calls: list[Callable[[], object]] = [*attempts(bank), bank.status, lambda: bank.__exit__(None, None, None)]
        for attempt in calls:
            with pytest.raises(OutsideUnitOfWork, match=r"Do it inside `with uow:`"):
                attempt()

        assert State.NEW is bank.state
        assert harness.idle()

    @pytest.mark.parametrize("end", ["commit", "rollback", "flush"])
    def test_rule_05_a_unit_that_was_left_does_nothing(self, harness: Harness, end: str) -> None:
        """A unit, and a repository that somebody kept, is OutsideUnitOfWork after the block, however that ended."""
        with harness.bank() as bank:
            kept = bank.accounts
            kept.add(Account("A-1", "Ann"))
            getattr(bank, end)()
        calls: list[Callable[[], object]] = [
            *attempts(bank),
            lambda: kept.add(Account("B-2", "Bob")),
            lambda: kept.get("A-1"),
            kept.list,
            kept.count,
            kept.exists,
            kept.overdrawn,
            partial(next, kept.iterate()),
        ]
        for attempt in calls:
            with pytest.raises(OutsideUnitOfWork):
                attempt()

        assert (["A-1"] if end == "commit" else []) == harness.numbers()
        assert harness.idle()

    def test_rule_05_an_active_unit_is_not_entered_again(self, harness: Harness) -> None:
        """Entering a unit that is active is UnitOfWorkActive, points to nested(), and costs the active one nothing."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with pytest.raises(UnitOfWorkActive, match=r"uow\.nested\(\)"):
                bank.__enter__()
            with bank.nested() as nested, pytest.raises(UnitOfWorkActive):
                nested.__enter__()
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_05_a_unit_that_committed_is_not_entered_again_inside_its_block(self, harness: Harness) -> None:
        """Inside its own block a unit cannot be entered again, even after commit()."""
        with harness.bank() as bank:
            bank.commit()
            with pytest.raises((UnitOfWorkActive, UnitOfWorkEnded)):
                bank.__enter__()

        assert harness.idle()

    def test_rule_05_each_block_is_a_fresh_scope(self, harness: Harness) -> None:
        """A unit may be entered again after it ended in any way, and carries nothing over."""
        bank = harness.bank()
        with bank:
            first = bank.accounts
            bank.accounts.add(Account("A-1", "Ann"))
            bank.after_commit(pytest.fail)
            bank.rollback()
        with suppress(UnitOfWorkRolledBack), bank:
            bank.accounts.add(Account("X", None))
            with suppress(DatabaseError):
                bank.flush()
        with bank:
            assert first is not bank.accounts
            assert State.ACTIVE is bank.state

            bank.accounts.add(Account("B-2", "Bob"))
            bank.commit()

        assert ["B-2"] == harness.numbers()
        assert harness.idle()

    def test_rule_05_a_failed_enter_leaves_nothing_behind(self, harness: Harness) -> None:
        """A unit that could not be entered can be, later."""
        failing = True

        def observe(transition: Transition) -> None:
            if failing and transition.verb is Verb.ENTER:
                raise KeyboardInterrupt

        bank = harness.bank(observers=[observe])
        with pytest.raises(KeyboardInterrupt):
            bank.__enter__()

        assert harness.idle()

        failing = False
        with bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert ["A-1"] == harness.numbers()
        assert harness.idle()

    # ------------------------------------------------------------------------------------------------------ 6. one task

    def test_rule_06_another_thread_cannot_use_a_unit(self, harness: Harness) -> None:
        """Whatever another thread does with a unit or its repositories is WrongTask and changes nothing."""
        with harness.bank() as bank:
            kept = bank.accounts
            kept.add(Account("A-1", "Ann"))
            for attempt in (*attempts(bank), kept.count, lambda: kept.add(Account("B-2", "Bob"))):
                with pytest.raises(WrongTask, match=r"entered in another thread.*Give each thread and task"):
                    harness.elsewhere(attempt)
            bank.commit()

        assert ["A-1"] == harness.numbers()
        assert harness.idle()

    def test_rule_06_another_thread_cannot_leave_the_block(self, harness: Harness) -> None:
        """A block left in another thread is WrongTask, and its own thread can still end it."""
        bank = harness.bank().__enter__()
        bank.accounts.add(Account("A-1", "Ann"))
        with pytest.raises(WrongTask):
            harness.elsewhere(lambda: bank.__exit__(None, None, None))
        bank.commit()
        bank.__exit__(None, None, None)

        assert ["A-1"] == harness.numbers()
        assert harness.idle()

    def test_rule_06_another_asyncio_task_cannot_use_a_unit(self, harness: Harness) -> None:
        """A child task inherits context variables, but not the unit."""

        async def child(attempt: Callable[[], object]) -> None:
            with pytest.raises(WrongTask, match="another asyncio task"):
                attempt()

        async def parent() -> None:
            with harness.bank() as bank:
                kept = bank.accounts
                bank.accounts.add(Account("A-1", "Ann"))
                for attempt in (*attempts(bank), kept.count):
                    await asyncio.create_task(child(attempt))
                bank.commit()

        asyncio.run(parent())

        assert ["A-1"] == harness.numbers()
        assert harness.idle()

    def test_rule_06_with_handoff_a_unit_moves(self, harness: Harness) -> None:
        """With handoff=True each thread, or each task of an event loop, may go on where the last one stopped."""
        bank = harness.bank(handoff=True)
        harness.handed(bank.__enter__)
        harness.handed(lambda: bank.accounts.add(Account("A-1", "Ann")))
        nested = bank.nested()
        harness.handed(nested.__enter__)
        harness.handed(lambda: nested.accounts.add(Account("B-2", "Bob")))
        harness.handed(lambda: nested.__exit__(None, None, None))
        harness.handed(bank.flush)
        harness.handed(bank.commit)
        bank.__exit__(None, None, None)

        assert ["A-1", "B-2"] == harness.numbers()
        assert harness.idle()

    def test_rule_06_with_handoff_two_operations_at_once_are_an_error(self, harness: Harness) -> None:
        """Even with handoff=True, an operation while another thread's is under way is WrongTask."""
        met: list[BaseException] = []

        def observe(transition: Transition) -> None:
            if transition.verb is Verb.BREAK:  # the flush is under way
                met.extend(error for error in [error_of(lambda: harness.elsewhere(kept.count))] if error)

        with harness.bank(handoff=True, observers=[observe]) as bank:
            kept = bank.accounts
            kept.add(Account("X", None))
            with pytest.raises(NotNullViolation):
                bank.flush()
            bank.rollback()

        assert [WrongTask] == [type(error) for error in met]
        assert "at this moment" in str(met[0])
        assert harness.idle()

    # SQLAlchemy and the drivers have words of their own for what is collected open.
    @pytest.mark.filterwarnings("ignore:The garbage collector|.*deleted (while still open|before being closed):Warning")
    def test_rule_06_an_open_scope_that_is_collected_is_a_resource_warning(self, harness: Harness) -> None:
        """
        A scope that is garbage-collected open is rolled back, with a ResourceWarning that names the unit.

        Its hooks run too, unless they would have to be awaited.
        """
        units = [harness.bank().__enter__()]
        told: list[str] = []
        units[0].after_rollback(lambda: told.append("rolled back"))
        units[0].accounts.add(Account("A-1", "Ann"))
        units[0].flush()
        with pytest.warns(ResourceWarning, match=f"{type(units[0]).__name__}.*never left.*Enter a unit with `with`"):
            drop(units)

        assert ([] if harness.asynchronous else ["rolled back"]) == told
        assert harness.idle()
        assert [] == harness.numbers()

    # SQLAlchemy and the drivers have words of their own for what is collected open.
    @pytest.mark.filterwarnings("ignore:The garbage collector|.*deleted (while still open|before being closed):Warning")
    def test_rule_06_an_open_nested_scope_that_is_collected_is_one_warning(self, harness: Harness) -> None:
        """A unit that is garbage-collected with nested scopes open gives its connection back all the same."""
        units = [harness.bank().__enter__()]
        units.append(units[0].nested().__enter__())
        units[1].accounts.add(Account("A-1", "Ann"))
        units[1].flush()
        with pytest.warns(ResourceWarning, match="never left") as warned:
            drop(units)

        assert 1 == sum("never left" in str(warning.message) for warning in warned)
        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_06_a_generator_that_is_never_finished_is_rolled_back(self, harness: Harness) -> None:
        """A generator that is dropped inside the block of a unit rolls it back."""

        def service() -> Generator[int]:
            with harness.bank() as bank, bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))
                nested.flush()
                yield 1

        generator = service()

        assert 1 == next(generator)
        assert not harness.idle()

        del generator
        gc.collect()

        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_06_a_generator_may_be_finished_elsewhere(self, harness: Harness) -> None:
        """Whichever thread or task collects a generator rolls its unit back."""

        def service() -> Generator[int]:
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                yield 1

        generator = service()
        next(generator)
        harness.handed(generator.close)

        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_06_units_of_two_threads_are_two_units(self, harness: Harness) -> None:
        """Each thread works with a unit of its own, one after the other, on the same database."""
        for number in ("A-1", "B-2"):
            harness.elsewhere(partial(commit_account, harness, number))

        assert ["A-1", "B-2"] == harness.numbers()
        assert harness.idle()


def error_of(call: Callable[[], object]) -> BaseException | None:
    """Return what *call* raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


def commit_account(harness: Harness, number: str) -> None:
    """Keep one account, in a unit of its own."""
    with harness.bank() as bank:
        bank.accounts.add(Account(number, "Ann"))
        bank.commit()
