"""
Money is neither made nor lost when many units move it at once and are done again after they collided.

At SERIALIZABLE that takes no locks of ours. At the default level of PostgreSQL and MariaDB two units may read the same
balance and both write to it, so there the rows are locked when they are read: in no order, so that there are deadlocks.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from attrs import define, field, frozen
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks

from uow import AsyncRepository, AsyncUnitOfWork, Lock, Retry
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork
from uow.errors import Deadlock, SerializationFailure
from uow.testing._model import Account, Bank, Transfer
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank

NUMBERS = [f"A-{number}" for number in range(6)]
INITIAL = 1000
WORKERS, ORDERS = 4, 40
UNWANTED = 10  # every tenth order
RETRY = Retry(attempts=None, timeout=60, wait_initial=0.001, wait_max=0.05, wait_jitter=0.005)
SETTINGS: dict[str, dict[str, Any]] = {
    "psycopg": {"options": "-c deadlock_timeout=20ms -c lock_timeout=30s"},
    "asyncpg": {"server_settings": {"deadlock_timeout": "20ms", "lock_timeout": "30s"}},
    "pymysql": {"init_command": "SET innodb_lock_wait_timeout = 30, lock_wait_timeout = 30"},
    "aiomysql": {"init_command": "SET innodb_lock_wait_timeout = 30, lock_wait_timeout = 30"},
}
LEVELS = pytest.mark.parametrize(
    ("options", "lock"), [({}, Lock.UPDATE), ({"isolation": "SERIALIZABLE"}, None)], ids=["default", "serializable"]
)


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]
    transfers: AsyncRepository[Transfer]


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


class ChangedMind(Exception):
    """The customer does not want the transfer any more, after all of it was written."""


@frozen
class Order:
    source: str
    target: str
    amount: int
    wanted: bool

    def entries(self) -> list[Transfer]:
        return [Transfer(self.source, -self.amount), Transfer(self.target, self.amount)]


@define
class Worker:
    """
    The orders of one thread or task, and what it was told of them.

    Its first order collides on purpose with that of its partner: each has one account and halts until all have theirs,
    before it asks for the other's.
    """

    number: int
    meet: Any
    acknowledged: dict[int | None, tuple[str, int]] = field(factory=dict)

    def orders(self) -> Iterator[Order]:
        chance = random.Random(self.number)
        first = self.number // 2 * 2
        pair = NUMBERS[first : first + 2]
        for number in range(ORDERS):
            source, target = chance.sample(NUMBERS, 2) if number else pair[:: -1 if self.number % 2 else 1]
            yield Order(source, target, chance.randint(1, 9), number % UNWANTED != UNWANTED - 1)

    def meet_once(self) -> Any:
        meet, self.meet = self.meet, None
        return meet

    def book(self, entries: list[Transfer]) -> None:
        """Note what run() returned: it is committed."""
        self.acknowledged |= {entry.id: (entry.source, entry.amount) for entry in entries}

    def work(self, bank: SqlBank, lock: Lock | None) -> None:
        """Carry out the orders in a thread."""

        def move(order: Order) -> list[Transfer]:
            bank.accounts.get(order.source, lock=lock).balance -= order.amount
            if meet := self.meet_once():
                meet.wait()
            bank.accounts.get(order.target, lock=lock).balance += order.amount
            entries = order.entries()
            bank.transfers.add_all(entries)
            bank.flush()
            if not order.wanted:
                raise ChangedMind
            return entries

        for order in self.orders():
            try:
                self.book(bank.run(move, order))
            except ChangedMind:
                assert not order.wanted

    async def work_as_task(self, bank: AsyncSqlBank, lock: Lock | None) -> None:
        """Carry out the orders in a task."""

        async def move(order: Order) -> list[Transfer]:
            (await bank.accounts.get(order.source, lock=lock)).balance -= order.amount
            if meet := self.meet_once():
                await meet.wait()
            (await bank.accounts.get(order.target, lock=lock)).balance += order.amount
            entries = order.entries()
            bank.transfers.add_all(entries)
            await bank.flush()
            if not order.wanted:
                raise ChangedMind
            return entries

        for order in self.orders():
            try:
                self.book(await bank.run(move, order))
            except ChangedMind:
                assert not order.wanted


@pytest.fixture(params=["postgresql", "mariadb"])
def harness(request: pytest.FixtureRequest) -> Iterator[SqlAlchemyHarness]:
    """A bank with money in it, on each database that is a server."""
    url: URL = request.getfixturevalue(f"{request.param}_url")
    harness = SqlAlchemyHarness(create_engine(url, connect_args=SETTINGS[url.get_dialect().driver]))
    with harness.bank() as bank:
        bank.accounts.add_all([Account(number, "Ann", INITIAL) for number in NUMBERS])
        bank.commit()
    yield harness
    harness.close()


@pytest.fixture
def retries() -> Iterator[list[RetryDetails]]:
    """What stamina tells its hooks, in place of what it logs."""
    before = get_on_retry_hooks()
    seen: list[RetryDetails] = []
    set_on_retry_hooks([seen.append])
    yield seen
    set_on_retry_hooks(before)


def assert_conserved(harness: SqlAlchemyHarness, workers: list[Worker], retries: list[RetryDetails]) -> None:
    acknowledged = {number: entry for worker in workers for number, entry in worker.acknowledged.items()}

    assert 2 * WORKERS * (ORDERS - ORDERS // UNWANTED) == len(acknowledged)
    assert WORKERS // 2 <= len(retries)
    assert {type(details.caused_by) for details in retries} <= {Deadlock, SerializationFailure}

    with harness.bank() as bank:
        kept = {entry.id: (entry.source, entry.amount) for entry in bank.transfers.list()}
        balances = {account.number: account.balance for account in bank.accounts.list()}
    expected = Counter(dict.fromkeys(NUMBERS, INITIAL))
    for number, amount in acknowledged.values():
        expected[number] += amount

    assert acknowledged == kept
    assert expected == balances
    assert INITIAL * len(NUMBERS) == sum(balances.values())
    assert harness.idle()


@LEVELS
def test_threads_conserve_money(
    harness: SqlAlchemyHarness, retries: list[RetryDetails], options: dict[str, Any], lock: Lock | None
) -> None:
    """What was acknowledged to a thread is there and nothing else is, and the balances are what the entries say."""
    meet = threading.Barrier(WORKERS, timeout=30)
    workers = [Worker(number, meet) for number in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(w.work, harness.bank(retry=RETRY, **options), lock) for w in workers]:
            done.result()

    assert_conserved(harness, workers, retries)


@LEVELS
@pytest.mark.parametrize(
    ("harness", "driver"),
    [("postgresql", "psycopg"), ("postgresql", "asyncpg"), ("mariadb", "aiomysql")],
    indirect=["harness"],
    ids=["psycopg", "asyncpg", "aiomysql"],
)
def test_tasks_conserve_money(
    harness: SqlAlchemyHarness,
    driver: str,
    retries: list[RetryDetails],
    options: dict[str, Any],
    lock: Lock | None,
) -> None:
    """What was acknowledged to a task is there and nothing else is, and the balances are what the entries say."""
    url = harness.engine.url.set(drivername=f"{harness.name}+{driver}")

    async def main() -> list[Worker]:
        engine = create_async_engine(url, connect_args=SETTINGS[driver])
        meet = asyncio.Barrier(WORKERS)
        workers = [Worker(number, meet) for number in range(WORKERS)]
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.work_as_task(AsyncSqlBank(engine, retry=RETRY, **options), lock))
        assert 0 == engine.sync_engine.pool.checkedout()  # type: ignore[attr-defined]
        await engine.dispose()
        return workers

    assert_conserved(harness, asyncio.run(main()), retries)
