"""
The contract on the asynchronous face: how its tests are run, and what tasks have in place of threads.
"""

import asyncio
import functools
import gc
import inspect
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from uow.errors import WrongTask
from uow.testing._harness import Harness
from uow.testing._model import Account

from ._ownership import attempts

if TYPE_CHECKING:  # the synchronous suite needs no greenlet
    from uow.testing._async import AsyncHarness

__all__ = ["InTask", "TaskRules"]


class InTask:
    """
    Runs every test of a class in an asyncio task; a synchronous one is given units that need no ``await``.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            if name.startswith("test_") and not hasattr(test := getattr(cls, name), "in_task"):
                setattr(cls, name, _in_task(test))


def _in_task(test: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(self: Any, harness: "AsyncHarness", **arguments: Any) -> None:
        call = functools.partial(test, self, harness=harness, **arguments)
        harness.run((lambda: harness.complete(call())) if inspect.iscoroutinefunction(test) else call)

    vars(run)["in_task"] = True
    return run


async def numbers(harness: "AsyncHarness") -> list[str]:
    """Return the account numbers that a fresh unit sees."""
    async with harness.unit() as bank:
        return [account.number async for account in bank.accounts.iterate()]


async def others() -> None:
    """Wait for all other tasks."""
    await asyncio.sleep(0)
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


def still_running(threads: Iterable[threading.Thread]) -> list[threading.Thread]:
    """Return those of *threads* that do not end; a driver's may need a moment."""
    for thread in threads:
        thread.join(10)
    return [thread for thread in threads if thread.is_alive()]


async def cancel_inside(harness: "AsyncHarness") -> None:
    """Cancel a task inside the block of a unit."""
    inside = asyncio.Event()

    async def work() -> None:
        async with harness.unit() as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            await bank.flush()
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class TaskRules(InTask):
    """
    Rules 6 and 11 with tasks: some take the place of a test that starts an event loop of its own.
    """

    def test_rule_06_another_asyncio_task_cannot_use_a_unit(self, harness: Harness) -> None:
        """A child task inherits context variables, but not the unit."""
        with harness.bank() as bank:
            kept = bank.accounts
            bank.accounts.add(Account("A-1", "Ann"))
            for attempt in (*attempts(bank), kept.count, lambda: bank.__exit__(None, None, None)):
                with pytest.raises(WrongTask, match="another asyncio task"):
                    harness.handed(attempt)
            bank.commit()

        assert ["A-1"] == harness.numbers()
        assert harness.idle()

    async def test_rule_06_two_tasks_at_once_are_an_error(self, harness: "AsyncHarness") -> None:
        """Even with handoff=True, an operation while another task's is under way is WrongTask."""
        async with harness.unit(handoff=True) as bank:
            bank.accounts.add(Account("A-1", "Ann"))

            @bank.before_commit
            async def meanwhile() -> None:
                for operation in (bank.flush, bank.accounts.count, bank.nested().__aenter__):
                    with pytest.raises(WrongTask, match="at this moment"):
                        await asyncio.create_task(operation())

            await bank.commit()

        assert ["A-1"] == await numbers(harness)
        assert harness.idle()

    async def test_rule_06_an_asynchronous_generator_that_is_never_finished(self, harness: "AsyncHarness") -> None:
        """The event loop finishes a generator that was dropped inside a block in a task of its own: rolled back."""

        async def service() -> AsyncIterator[int]:
            async with harness.unit() as bank, bank.nested() as nested:
                nested.accounts.add(Account("A-1", "Ann"))
                await nested.flush()
                yield 1

        generator = service()
        await anext(generator)

        assert not harness.idle()

        del generator
        gc.collect()
        await others()

        assert harness.idle()
        assert [] == await numbers(harness)

    async def test_rule_06_an_open_unit_that_is_collected_leaves_nothing(self, harness: "AsyncHarness") -> None:
        """A unit that is garbage-collected open is one warning, and leaves no task and no thread behind."""
        threads = set(threading.enumerate())
        bank = harness.unit()
        await bank.__aenter__()
        bank.accounts.add(Account("A-1", "Ann"))
        await bank.flush()
        with warnings.catch_warnings(record=True) as warned:  # SQLAlchemy and the drivers have words of their own
            warnings.simplefilter("always")
            del bank
            gc.collect()
            await others()
            await harness.dispose()
            gc.collect()

        assert 1 == sum("never left" in str(warning.message) for warning in warned)
        assert harness.idle()
        assert [] == still_running(set(threading.enumerate()) - threads)
        assert [] == await numbers(harness)

    def test_rule_11_a_cancelled_task_rolls_back(self, harness: Any) -> None:
        """A task that is cancelled inside the block rolls back, and stays cancelled."""
        harness.complete(cancel_inside(harness))

        assert harness.idle()
        assert [] == harness.numbers()
