"""
Rule 11: whatever leaves a block, and wherever it arrives.
"""

import asyncio
import gc
from collections.abc import Callable, Generator
from contextlib import suppress

import pytest

from uow import State, Transition, Verb
from uow.errors import NotNullViolation, UnitOfWorkError
from uow.testing._harness import Harness
from uow.testing._model import Account, Document

from ._base import Contract

__all__ = ["InterruptRules", "program", "remove_all", "works"]

INTERRUPTS = [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, MemoryError]


def works(harness: Harness) -> bool:
    """Tell whether a fresh unit does its work."""
    with harness.bank() as bank:
        bank.documents.add(Document(999, "next"))
        bank.commit()
    with harness.bank() as bank:
        bank.documents.remove(bank.documents.get(999))
        bank.commit()
    return harness.idle()


def program(
    harness: Harness,
    kept: list[str],
    observe: Callable[[Verb], object],
    forgive: type[BaseException] = NotNullViolation,
) -> None:
    """Do a unit of many steps; *kept* gets what its blocks ended with, and so what must be there if it commits."""

    def on(transition: Transition) -> None:
        observe(transition.verb)

    with harness.bank(observers=[on]) as bank:
        bank.accounts.add(Account("A", "Ann"))
        kept.append("A")
        for number in range(4):
            with suppress(forgive):
                inside: list[str] = []
                with bank.nested() as outer:
                    outer.accounts.add(Account(f"B-{number}", "Bob"))
                    with suppress(forgive, NotNullViolation):
                        with outer.nested() as inner:
                            inner.accounts.add(Account(f"C-{number}", None if number == 1 else "Cleo"))
                            inner.flush()
                            if number == 2:
                                raise NotNullViolation("no")
                        inside.append(f"C-{number}")
                    inside.append(f"B-{number}")
                    if number == 3:
                        outer.rollback()
                        inside.clear()
                kept.extend(inside)
        bank.commit()


def remove_all(harness: Harness) -> None:
    """Empty the accounts."""
    with harness.bank() as bank:
        for account in bank.accounts.list():
            bank.accounts.remove(account)
        bank.commit()


class InterruptRules(Contract):
    """
    BaseException counts.
    """

    @pytest.mark.parametrize("interrupt", INTERRUPTS)
    @pytest.mark.parametrize("flush", [False, True])
    def test_rule_11_an_interrupt_rolls_back(
        self, harness: Harness, interrupt: type[BaseException], flush: bool
    ) -> None:
        """Any BaseException that leaves the block rolls it back, goes on, and the connection is clean again."""
        error = interrupt()
        bank = harness.bank()
        with pytest.raises(interrupt) as caught:
            with bank, bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))
                if flush:
                    nested.flush()
                raise error

        assert error is caught.value
        assert State.ROLLED_BACK is bank.state
        assert harness.idle()
        assert [] == harness.numbers()
        assert works(harness)

    @pytest.mark.parametrize("interrupt", INTERRUPTS)
    def test_rule_11_an_interrupt_that_was_caught_costs_the_nested_scope_alone(
        self, harness: Harness, interrupt: type[BaseException]
    ) -> None:
        """Any BaseException that leaves a nested block rolls that one back, and the outer one goes on."""
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            with suppress(interrupt), bank.nested() as nested:
                nested.accounts.add(Account("B-2", "Bob"))
                nested.flush()
                raise interrupt
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_11_a_cancelled_task_rolls_back(self, harness: Harness) -> None:
        """A task that is cancelled inside the block rolls back, and stays cancelled."""

        async def work(inside: asyncio.Event) -> None:
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                inside.set()
                await asyncio.Event().wait()

        async def main() -> None:
            inside = asyncio.Event()
            task = asyncio.create_task(work(inside))
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())

        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_11_a_closed_generator_rolls_back(self, harness: Harness) -> None:
        """A generator that is closed inside the block rolls back."""

        def service() -> Generator[None]:
            with harness.bank() as bank:
                bank.accounts.add(Account("A-1", "Ann"))
                bank.flush()
                yield
                bank.commit()

        generator = service()
        next(generator)
        generator.close()

        assert harness.idle()
        assert [] == harness.numbers()

    def test_rule_11_an_interrupt_at_any_transition_loses_nothing_silently(self, harness: Harness) -> None:
        """Wherever in a unit's life an interrupt arrives: all is durable if COMMIT was confirmed, else nothing is."""
        seen: list[Verb] = []
        program(harness, [], seen.append)
        transitions = len(seen)
        remove_all(harness)

        assert transitions > 15

        for stop in range(transitions):
            seen = []
            kept: list[str] = []

            def observe(verb: Verb, seen: list[Verb] = seen, stop: int = stop) -> None:
                seen.append(verb)
                if len(seen) == stop + 1:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                program(harness, kept, observe)
            gc.collect()

            assert harness.idle(), seen
            assert (sorted(kept) if Verb.DURABLE in seen else []) == harness.numbers(), seen
            assert works(harness)

            remove_all(harness)

    def test_rule_11_an_interrupt_caught_around_a_nested_scope_costs_that_one_alone(self, harness: Harness) -> None:
        """An interrupt in a nested scope costs that one alone; one that comes after RELEASE costs nothing."""
        seen: list[Verb] = []
        program(harness, [], seen.append)
        transitions = len(seen)
        remove_all(harness)
        for stop in range(transitions):
            seen = []
            kept: list[str] = []

            def observe(verb: Verb, seen: list[Verb] = seen, stop: int = stop) -> None:
                seen.append(verb)
                if len(seen) == stop + 1:
                    raise KeyboardInterrupt

            with suppress(KeyboardInterrupt, UnitOfWorkError):
                program(harness, kept, observe, forgive=KeyboardInterrupt)
            gc.collect()

            assert harness.idle(), seen
            there = harness.numbers()
            if seen[stop] is not Verb.RELEASE:
                assert (sorted(kept) if Verb.DURABLE in seen else []) == there, (stop, seen)
            elif there:
                assert set(kept) <= set(there), (stop, seen)

            remove_all(harness)
