"""
Section 6 of the design: `joined()` and `independent()`.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from uow import Handlers, State, Transition, Verb
from uow.errors import (
    DatabaseError,
    NestedScopeOpen,
    NotNullViolation,
    OutsideUnitOfWork,
    ScopeBroken,
    UnitOfWorkActive,
    UnitOfWorkEnded,
    UnitOfWorkRolledBack,
)
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, MoneyMoved

from ._base import Contract
from ._steps import Noted, Oops, balances, needs_sql, quiet, stored, told

__all__ = ["JoinedRules"]

DEPTH = 30
KEEP = "Let its error leave the block, or let the step fail alone in a nested() or independent() scope."


def ann(bank: Bank) -> None:
    """Add an account that can be stored."""
    bank.accounts.add(Account("A-1", "Ann"))


def swallow(bank: Bank) -> None:
    """Cause a database error and go on as if nothing had happened."""
    bank.accounts.add(Account("X", None))
    with suppress(NotNullViolation):
        bank.flush()


def fail_in(unit: Bank, error: BaseException) -> None:
    """Let *error* leave the block of *unit*, and catch it outside."""
    with pytest.raises(type(error)) as caught, unit:
        raise error

    assert error is caught.value


class JoinedRules(Contract):
    """
    Units that take part in the one around them, and units that do not.
    """

    # ----------------------------------------------------------------------------------------------- joined: alone

    def test_joined_with_none_open_is_a_root(self, harness: Harness) -> None:
        """Where nothing is open, a joined unit is a unit of its own, and its commit() commits."""
        with harness.bank().joined("step") as unit:
            ann(unit)

            assert 0 == unit.status().depth

            unit.commit()

            assert State.COMMITTED is unit.state

        assert harness.idle()
        assert ["A-1"] == harness.numbers()

    def test_joined_with_none_open_needs_its_commit(self, harness: Harness) -> None:
        """A joined unit that is the root is rolled back when its block ends without commit(), as every root is."""
        with harness.bank().joined() as unit:
            ann(unit)

        assert State.ROLLED_BACK is unit.state
        assert [] == harness.numbers()

    # -------------------------------------------------------------------------------------- joined: kept with the whole

    def test_joined_sends_nothing(self, harness: Harness) -> None:
        """A joined unit has no savepoint, and neither its begin nor its end sends a statement."""
        with harness.bank() as bank:
            ann(bank)
            bank.flush()
            with quiet(harness):
                with bank.joined() as unit:
                    unit.accounts.add(Account("B-2", "Bob"))
                with bank.joined() as unit:
                    unit.commit()

            assert State.RELEASED is unit.state
            assert ["A-1", "B-2"] == [a.number for a in bank.accounts.list(order_by=lambda a: a.number)]

            bank.commit()

        assert ["A-1", "B-2"] == harness.numbers()

    def test_joined_work_is_durable_with_the_root_alone(self, harness: Harness) -> None:
        """The commit() of a joined unit makes nothing durable: the root's rollback takes its work along."""
        with harness.bank() as bank:
            with bank.joined() as unit:
                ann(unit)
                unit.commit()
            bank.rollback()

        assert [] == harness.numbers()

    def test_joined_commit_ends_it_early(self, harness: Harness) -> None:
        """After its commit() more work is UnitOfWorkEnded, and what then leaves its block costs nothing."""
        with harness.bank() as bank:
            with suppress(Oops), bank.joined() as unit:
                ann(unit)
                unit.commit()
                for attempt in (lambda: unit.accounts, unit.flush, unit.commit, unit.rollback):
                    with pytest.raises(UnitOfWorkEnded, match="it was released and has ended"):
                        attempt()
                raise Oops
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_joined_is_a_unit(self, harness: Harness) -> None:
        """It has the class, the repositories and the entities of the unit that it joined."""
        with harness.bank() as bank:
            account = Account("A-1", "Ann")
            bank.accounts.add(account)
            with bank.joined() as unit:
                assert type(bank) is type(unit)
                assert account is unit.accounts.get("A-1")

    def test_joined_status(self, harness: Harness) -> None:
        """Its status has its own name, depth and counts, and the savepoint that it shares."""
        with harness.bank() as bank:
            ann(bank)
            with bank.joined("pay") as unit, unit.joined() as inner:
                assert [("root", 0), ("pay", 1), ("joined 2", 2)] == [
                    (status.name, status.depth) for status in (bank.status(), unit.status(), inner.status())
                ]
                assert unit.status().savepoint is None

                inner.accounts.add(Account("B-2", "Bob"))
                inner.flush()
            with bank.nested() as nested:
                nested.accounts.add(Account("C-3", "Cleo"))
                nested.flush()
                with nested.joined() as unit:
                    assert nested.status().savepoint == unit.status().savepoint is not None

            assert 3 == bank.status().written.added

            bank.commit()

    def test_joined_hands_its_hooks_over(self, harness: Harness) -> None:
        """Its hooks run once, when the root ends, in the order in which all were registered."""
        seen: list[object] = []
        with harness.bank() as bank:
            bank.before_commit(told(seen, "before 1"))
            bank.after_commit(told(seen, "after 1"))
            with bank.joined() as unit:
                unit.before_commit(told(seen, "before 2"))
                unit.after_commit(told(seen, "after 2"))
                unit.after_rollback(told(seen, "never"))
            bank.before_commit(told(seen, "before 3"))
            bank.after_commit(told(seen, "after 3"))

            assert [] == seen

            bank.commit()

        assert ["before 1", "before 2", "before 3", "after 1", "after 2", "after 3"] == seen

    def test_joined_hands_its_events_over(self, harness: Harness) -> None:
        """Its events are handled by the root, once, with the others."""
        handlers, handled = Handlers(), list[object]()
        handlers.before_commit(MoneyMoved)(lambda event, uow: handled.append(event))
        handlers.after_commit(Noted)(handled.append)
        with harness.bank(handlers=handlers) as bank:
            account = Account("A-1", "Ann", 10)
            bank.accounts.add(account)
            with bank.joined() as unit:
                account.withdraw(1)
                unit.record(Noted("joined"))

                assert [] == handled

            account.withdraw(2)
            bank.commit()

        assert [MoneyMoved("A-1", 1), MoneyMoved("A-1", 2), Noted("joined")] == handled

    # -------------------------------------------------------------------------------------- joined: lost with the whole

    @pytest.mark.parametrize("end", ["commit", "leave"])
    def test_joined_failure_dooms_the_root(self, harness: Harness, end: str) -> None:
        """An exception that leaves a joined block and is caught dooms the root, whose end names both."""
        error = Oops("no")
        with pytest.raises(UnitOfWorkRolledBack) as caught, harness.bank() as bank:
            ann(bank)
            fail_in(bank.joined("pay"), error)

            assert State.DOOMED is bank.state

            if end == "commit":
                bank.commit()

        assert (
            f"(root) was rolled back: the joined scope 'root > pay' failed, and the error was swallowed. {KEEP}"
            in str(caught.value)
        )
        assert error is caught.value.__cause__
        assert State.ROLLED_BACK is bank.state
        assert [] == harness.numbers()
        assert harness.idle()

    def test_joined_failure_that_leaves_the_root(self, harness: Harness) -> None:
        """The original exception reaches the caller through both blocks, as it was raised."""
        error = Oops("no")
        with pytest.raises(Oops) as caught, harness.bank() as bank, bank.joined() as unit:
            ann(unit)
            raise error

        assert error is caught.value
        assert not hasattr(error, "__notes__")
        assert (None, None) == (error.__cause__, error.__context__)
        assert [State.ROLLED_BACK] * 2 == [bank.state, unit.state]
        assert [] == harness.numbers()

    def test_joined_failure_that_is_swallowed_twice(self, harness: Harness) -> None:
        """Whoever swallows the root's refusal to commit hears of it again at the end of the block."""
        error = Oops("no")
        with pytest.raises(UnitOfWorkRolledBack) as caught, harness.bank() as bank:
            fail_in(bank.joined("pay"), error)
            with suppress(UnitOfWorkRolledBack):
                bank.commit()

        assert caught.value.__cause__ is not None
        assert error is caught.value.__cause__.__cause__

    def test_joined_rollback_dooms_the_root(self, harness: Harness) -> None:
        """A joined unit cannot be rolled back alone: its rollback() dooms the root, which says where it was called."""
        with pytest.raises(UnitOfWorkRolledBack, match="the joined scope 'root > pay'") as caught:
            with harness.bank() as bank:
                ann(bank)
                with bank.joined("pay") as unit:
                    unit.rollback()

                    assert State.ROLLED_BACK is unit.state

                    with pytest.raises(UnitOfWorkEnded, match="rolled back"):
                        unit.flush()
                bank.commit()

        assert isinstance(caught.value.__cause__, UnitOfWorkRolledBack)
        assert "(root > pay) was rolled back: rollback() was called in it" in str(caught.value.__cause__)
        assert [] == harness.numbers()

    @pytest.mark.parametrize("caught_outside", [False, True])
    def test_joined_database_error_dooms_the_root(self, harness: Harness, caught_outside: bool) -> None:
        """A database error in a joined block dooms the root, whether it was swallowed in the block or around it."""
        with pytest.raises(UnitOfWorkRolledBack, match="the joined scope 'root > pay'") as caught:
            with harness.bank() as bank:
                ann(bank)
                bank.flush()
                if caught_outside:
                    with suppress(NotNullViolation), bank.joined("pay") as unit:
                        unit.accounts.add(Account("X", None))
                        unit.flush()
                else:
                    with pytest.raises(UnitOfWorkRolledBack, match="root > pay"), bank.joined("pay") as unit:
                        swallow(unit)
                bank.commit()

        assert KEEP in str(caught.value)
        assert isinstance(caught.value.__cause__, NotNullViolation)
        assert [] == harness.numbers()

    def test_joined_flush_error_of_the_root_belongs_to_both(self, harness: Harness) -> None:
        """What the root had pending and a joined unit writes is an error of both; the root's rollback() ends it."""
        with harness.bank() as bank:
            bank.accounts.add(Account("X", None))
            with suppress(DatabaseError, UnitOfWorkRolledBack), bank.joined() as unit:
                with pytest.raises(NotNullViolation):
                    unit.accounts.count()

                assert State.BROKEN is unit.state
            bank.rollback()

        assert harness.idle()

    def test_joined_failure_refuses_further_work(self, harness: Harness) -> None:
        """After a joined unit failed, work in what it joined is ScopeBroken, from the cause; rollback() ends it."""
        error = Oops("no")
        with harness.bank() as bank:
            kept = bank.accounts
            fail_in(bank.joined("pay"), error)
            attempts: list[Callable[[], object]] = [
                lambda: bank.accounts,
                kept.list,
                partial(kept.add, Account("B-2", "Bob")),
                bank.flush,
                bank.nested().__enter__,
                bank.joined().__enter__,
                partial(bank.after_commit, print),
            ]
            for attempt in attempts:
                with pytest.raises(ScopeBroken, match="the joined scope 'root > pay' failed") as caught:
                    attempt()
                assert error is caught.value.__cause__
            bank.rollback()

        assert State.ROLLED_BACK is bank.state
        assert harness.idle()

    def test_joined_first_failure_is_the_cause(self, harness: Harness) -> None:
        """The error that the root reports is that of the innermost joined unit which failed first."""
        error = Oops("no")
        with pytest.raises(UnitOfWorkRolledBack, match="the joined scope 'root > outer > inner' failed") as caught:
            with harness.bank() as bank:
                with pytest.raises(UnitOfWorkRolledBack, match="'root > outer > inner' failed"):
                    with bank.joined("outer") as outer:
                        fail_in(outer.joined("inner"), error)

                        assert [State.DOOMED] * 2 == [bank.state, outer.state]
                bank.commit()

        assert error is caught.value.__cause__

    def test_joined_interrupt_dooms_the_root(self, harness: Harness) -> None:
        """An interrupt that leaves a joined block counts like every exception."""
        error = KeyboardInterrupt()
        with pytest.raises(UnitOfWorkRolledBack) as caught, harness.bank() as bank:
            ann(bank)
            fail_in(bank.joined(), error)
            bank.commit()

        assert error is caught.value.__cause__
        assert [] == harness.numbers()
        assert harness.idle()

    def test_joined_failure_undoes_everything(self, harness: Harness) -> None:
        """Entities are new again, events wait again, and after_rollback hooks run once, when the root rolls back."""
        stored(harness, Account("A-1", "Ann", 10))
        seen: list[object] = []
        account = Account("B-2", "Bob", 5)
        account.withdraw(1)
        with suppress(UnitOfWorkRolledBack), harness.bank() as bank:
            bank.after_rollback(told(seen, "root"))
            with suppress(Oops), bank.joined() as unit:
                unit.after_rollback(told(seen, "joined"))
                unit.after_commit(told(seen, "never"))
                unit.accounts.get("A-1").balance = 0
                unit.accounts.add(account)
                unit.flush()
                raise Oops

            assert [] == seen

        assert ["root", "joined"] == seen
        assert (MoneyMoved("B-2", 1),) == account.pending_events
        assert {"A-1": 10} == balances(harness)
        with harness.bank() as bank:
            bank.accounts.add(account)
            bank.commit()
        assert {"A-1": 10, "B-2": 4} == balances(harness)

    # --------------------------------------------------------------------------------------- joined: nested and joined

    @pytest.mark.parametrize("how", ["exception", "rollback", "database error"])
    def test_joined_inside_a_nested_scope_costs_that_scope(self, harness: Harness, how: str) -> None:
        """The nested scope is lost and says so; the root goes on."""
        with harness.bank() as bank:
            ann(bank)
            with pytest.raises(UnitOfWorkRolledBack, match=r"\(root > line\) was rolled back.*'root > line > pay'"):
                with bank.nested("line") as nested:
                    nested.accounts.add(Account("B-2", "Bob"))
                    with suppress(Oops, UnitOfWorkRolledBack), nested.joined("pay") as unit:
                        if how == "exception":
                            raise Oops
                        if how == "rollback":
                            unit.rollback()
                        else:
                            swallow(unit)

                    assert (State.BROKEN, State.ACTIVE) == (nested.state, bank.state)

            assert State.ACTIVE is bank.state

            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_joined_inside_a_nested_scope_that_is_rolled_back(self, harness: Harness) -> None:
        """The nested scope's rollback() is the caller's word: its block ends in peace, the root goes on."""
        with harness.bank() as bank:
            ann(bank)
            with bank.nested() as nested:
                nested.accounts.add(Account("B-2", "Bob"))
                fail_in(nested.joined(), Oops())
                nested.rollback()
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_joined_inside_a_nested_scope_that_lets_its_error_go(self, harness: Harness) -> None:
        """An exception through the joined and the nested block can be caught outside, and costs those two."""
        with harness.bank() as bank:
            ann(bank)
            with suppress(Oops), bank.nested() as nested, nested.joined() as unit:
                unit.accounts.add(Account("B-2", "Bob"))
                unit.flush()
                raise Oops
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_joined_database_error_breaks_up_to_the_nearest_savepoint(self, harness: Harness) -> None:
        """It breaks the scopes that share a savepoint, and none outside."""
        with harness.bank() as bank:
            ann(bank)
            with suppress(NotNullViolation), bank.joined() as around, around.nested() as nested:
                with nested.joined() as outer, outer.joined() as inner:
                    inner.accounts.add(Account("X", None))
                    with pytest.raises(NotNullViolation):
                        inner.flush()

                    assert [State.BROKEN] * 3 == [unit.state for unit in (inner, outer, nested)]
                    assert [State.ACTIVE] * 2 == [unit.state for unit in (around, bank)]

                    nested_error = inner.state
                    with suppress(ScopeBroken):
                        inner.flush()
                    raise NotNullViolation("again")

            assert State.BROKEN is nested_error

            bank.rollback()

    def test_joined_nested_inside_fails_alone(self, harness: Harness) -> None:
        """A nested scope in a joined one has a savepoint, and its failure costs neither the joined one nor the root."""
        with harness.bank() as bank:
            with bank.joined() as unit:
                ann(unit)
                with suppress(NotNullViolation), unit.nested() as nested:
                    nested.accounts.add(Account("X", None))
                    nested.flush()
                with suppress(Oops), unit.nested() as nested:
                    nested.accounts.add(Account("B-2", "Bob"))
                    nested.flush()
                    raise Oops
                with unit.nested() as nested:
                    nested.accounts.add(Account("C-3", "Cleo"))

                assert State.ACTIVE is unit.state
            bank.commit()

        assert ["A-1", "C-3"] == harness.numbers()

    def test_joined_to_any_depth(self, harness: Harness) -> None:
        """However many join one another, one statement less than that many is sent, and all work is kept."""
        with harness.bank() as bank:
            bank.accounts.count()
            with quiet(harness), ExitStack() as stack:
                unit = bank
                for depth in range(DEPTH):
                    unit = stack.enter_context(unit.joined())
                    unit.accounts.add(Account(f"A-{depth:02}", "Ann"))
            bank.commit()

        assert [f"A-{depth:02}" for depth in range(DEPTH)] == harness.numbers()

    # ----------------------------------------------------------------------------------------- joined: which unit, when

    def test_joined_through_another_handle(self, harness: Harness) -> None:
        """Another unit object of the same class and database joins the open one."""
        with harness.bank() as bank:
            ann(bank)
            with harness.bank().joined() as unit:
                assert unit.accounts.exists(lambda a: a.number == "A-1")

                unit.accounts.add(Account("B-2", "Bob"))
            bank.rollback()

        assert [] == harness.numbers()

    def test_joined_handle_entered_again(self, harness: Harness) -> None:
        """A joined unit is a handle: each block looks for the unit around anew; inside its block it is active."""
        unit = harness.bank().joined()
        with harness.bank() as bank:
            for number in ("A-1", "B-2"):
                with unit:
                    unit.accounts.add(Account(number, "Ann"))
                    with pytest.raises(UnitOfWorkActive):
                        unit.__enter__()

                    assert 1 == unit.status().depth

                with pytest.raises(OutsideUnitOfWork):
                    unit.flush()
            bank.rollback()
        with unit:
            assert 0 == unit.status().depth

        assert [] == harness.numbers()

    def test_joined_in_another_thread_is_alone(self, harness: Harness) -> None:
        """A unit is joined by its own thread only; in another one a root begins."""
        depths: list[int] = []

        def work() -> None:
            with harness.bank().joined() as unit:
                depths.append(unit.status().depth)
                unit.accounts.add(Account("B-2", "Bob"))
                unit.commit()

        with harness.bank() as bank:
            ann(bank)
            harness.elsewhere(work)
            bank.rollback()

        assert [0] == depths
        assert ["B-2"] == harness.numbers()

    def test_joined_after_the_commit_is_a_root(self, harness: Harness) -> None:
        """In the block after its commit(), and in a hook that runs after it, there is nothing to join any more."""
        depths: list[int] = []

        def work(number: str) -> None:
            with harness.bank().joined() as unit:
                depths.append(unit.status().depth)
                unit.accounts.add(Account(number, "Ann"))
                unit.commit()

        with harness.bank() as bank:
            bank.after_commit(partial(work, "A-1"))
            bank.commit()
            work("B-2")

        assert [0, 0] == depths
        assert ["A-1", "B-2"] == harness.numbers()

    @pytest.mark.parametrize("fail", [False, True])
    def test_joined_during_the_commit(self, harness: Harness, fail: bool) -> None:
        """In a before_commit hook it joins the unit that commits; a failure there is no commit."""
        error = Oops("no")

        def hook() -> None:
            with harness.bank().joined("late") as unit:
                unit.accounts.add(Account("B-2", "Bob"))
            if fail:
                fail_in(harness.bank().joined("later"), error)

        def run() -> None:
            with harness.bank() as bank:
                ann(bank)
                bank.before_commit(hook)
                bank.commit()

        if fail:
            with pytest.raises(UnitOfWorkRolledBack, match="the joined scope 'root > later' failed") as caught:
                run()
            assert error is caught.value.__cause__
        else:
            run()

        assert ([] if fail else ["A-1", "B-2"]) == harness.numbers()

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_joined_must_be_left_first(self, harness: Harness, end: str) -> None:
        """Ending what it joined while its block is open is NestedScopeOpen and changes nothing."""
        with harness.bank() as bank:
            with bank.joined("pay") as unit:
                ann(unit)
                with pytest.raises(NestedScopeOpen, match="'root > pay' inside it was not left yet"):
                    getattr(bank, end)()

                assert [State.ACTIVE] * 2 == [bank.state, unit.state]
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_joined_block_left_after_the_root(self, harness: Harness) -> None:
        """Leaving the root with a joined block open rolls everything back and says so, in both blocks."""
        bank = harness.bank().__enter__()
        unit = bank.joined().__enter__()
        ann(unit)
        with pytest.raises(NestedScopeOpen, match="still open"):
            bank.__exit__(None, None, None)
        with pytest.raises(UnitOfWorkRolledBack):
            unit.__exit__(None, None, None)

        assert [State.ROLLED_BACK] * 2 == [bank.state, unit.state]
        assert harness.idle()
        assert [] == harness.numbers()

    def test_joined_transitions(self, harness: Harness) -> None:
        """Observers of the unit see the joined scope's steps, and that its failure dooms the root."""
        seen: list[Transition] = []
        error = Oops("no")
        with harness.bank(observers=[seen.append]) as bank:
            with bank.joined("kept"):
                pass
            fail_in(bank.joined("lost"), error)
            bank.rollback()

        assert [
            ("root", 0, Verb.ENTER, None),
            ("root > kept", 1, Verb.ENTER, None),
            ("root > kept", 1, Verb.RELEASE, None),
            ("root > lost", 1, Verb.ENTER, None),
            ("root > lost", 1, Verb.ROLLBACK, error),
            ("root", 0, Verb.DOOM, error),
            ("root", 0, Verb.ROLLBACK, None),
        ] == [(step.scope, step.depth, step.verb, step.cause) for step in seen]

    # -------------------------------------------------------------------------------------------------- independent

    @pytest.mark.parametrize("kept", ["inner", "outer"])
    def test_independent_is_kept_or_lost_alone(self, harness: Harness, kept: str) -> None:
        """Neither unit's rollback costs the other one anything."""
        with harness.bank() as bank:
            ann(bank)
            with bank.independent() as other:
                assert 0 == other.status().depth
                assert not other.accounts.exists()

                other.accounts.add(Account("B-2", "Bob"))
                if kept == "inner":
                    other.commit()
                else:
                    other.rollback()
            if kept == "inner":
                bank.rollback()
            else:
                bank.commit()

        assert (["B-2"] if kept == "inner" else ["A-1"]) == harness.numbers()
        assert harness.idle()

    def test_independent_needs_its_own_commit(self, harness: Harness) -> None:
        """It is a root: what it did is lost at the end of its block without commit(), and the outer unit goes on."""
        with harness.bank() as bank:
            ann(bank)
            with bank.independent() as other:
                other.accounts.add(Account("B-2", "Bob"))
            bank.commit()

        assert ["A-1"] == harness.numbers()

    @pytest.mark.parametrize("error", [Oops(), KeyboardInterrupt()], ids=["exception", "interrupt"])
    def test_independent_failure_costs_the_outer_unit_nothing(self, harness: Harness, error: BaseException) -> None:
        """The step that failed alone is caught, and the outer unit commits."""
        with harness.bank() as bank:
            ann(bank)
            fail_in(bank.independent(), error)
            with suppress(NotNullViolation), bank.independent() as other:
                other.accounts.add(Account("X", None))
                other.flush()

            assert State.ACTIVE is bank.state

            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_independent_has_a_connection_of_its_own(self, harness: Harness) -> None:
        """Both transactions are open at once, and the outer one has begun nothing for the inner one's sake."""
        needs_sql(harness)
        with harness.bank() as bank:
            ann(bank)
            with bank.independent() as other:
                other.accounts.count()

                assert (False, True) == (bank.status().begun, other.status().begun)

                other.commit()

                assert harness.idle()
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_independent_hooks_and_events_are_its_own(self, harness: Harness) -> None:
        """They run with its commit, while those of the outer unit wait for theirs."""
        seen: list[object] = []
        handlers = Handlers()
        handlers.after_commit(Noted)(lambda event: seen.append(event.text))
        with harness.bank(handlers=handlers) as bank:
            bank.after_commit(told(seen, "outer hook"))
            bank.record(Noted("outer event"))
            with bank.independent() as other:
                other.after_commit(told(seen, "inner hook"))
                other.record(Noted("inner event"))
                other.commit()

            assert ["inner hook", "inner event"] == seen

            bank.rollback()

        assert ["inner hook", "inner event"] == seen

    def test_independent_is_what_is_joined_inside(self, harness: Harness) -> None:
        """Inside its block a joined unit joins it; afterwards, and once it has ended, the outer one again."""
        with harness.bank() as bank:
            with bank.independent() as other:
                with harness.bank().joined() as unit:
                    unit.accounts.add(Account("B-2", "Bob"))
                other.commit()
                with harness.bank().joined() as unit:
                    unit.accounts.add(Account("A-1", "Ann"))
            with harness.bank().joined() as unit:
                unit.accounts.add(Account("C-3", "Cleo"))

            assert ["A-1", "B-2", "C-3"] == [a.number for a in bank.accounts.list(order_by=lambda a: a.number)]

            bank.rollback()

        assert ["B-2"] == harness.numbers()

    def test_independent_joined_failure_dooms_it_alone(self, harness: Harness) -> None:
        """A failure in what joined the independent unit dooms that one, not the outer one."""
        with harness.bank() as bank:
            ann(bank)
            with pytest.raises(UnitOfWorkRolledBack, match="'root > pay'"), bank.independent() as other:
                fail_in(other.joined("pay"), Oops())
                other.commit()

            assert State.ACTIVE is bank.state

            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_independent_of_a_nested_unit(self, harness: Harness) -> None:
        """Made from a nested unit it is a root all the same, and nests."""
        with harness.bank() as bank, bank.nested() as nested, nested.independent() as other:
            with other.nested() as inner:
                inner.accounts.add(Account("B-2", "Bob"))

            assert (0, 1) == (other.status().depth, nested.status().depth)

            other.commit()

        assert ["B-2"] == harness.numbers()

    def test_independent_with_none_open(self, harness: Harness) -> None:
        """It needs nothing around it, and its handle may be entered again and again."""
        unit = harness.bank().independent()
        for number in ("A-1", "B-2"):
            with unit:
                unit.accounts.add(Account(number, "Ann"))
                unit.commit()

        assert ["A-1", "B-2"] == harness.numbers()
