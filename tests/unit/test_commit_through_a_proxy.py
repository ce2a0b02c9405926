"""
A COMMIT over a network that fails: what commit() says is what the database has, every time.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from uow._outcomes import new_token
from uow.adapters.sqlalchemy._outcomes import ledger_of
from uow.errors import CommitOutcomeUnknown, ConnectionLost
from uow.testing import Fault, FaultProxy
from uow.testing._async import lift, lifted
from uow.testing._async_sqlalchemy import AsyncSqlBank
from uow.testing._model import Account, Bank
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank

COMMIT = b"COMMIT"
AT_ONCE = 8
Arm = Callable[[FaultProxy, int], Fault]
MakeBank = Callable[..., Bank]


def times(number: int) -> int:
    """Lose the resolver's own COMMIT too, now and then."""
    return 2 if number % 4 == 3 else 1


def drop_request(proxy: FaultProxy, number: int) -> Fault:
    return proxy.drop_request(COMMIT, times=times(number))


def drop_reply(proxy: FaultProxy, number: int) -> Fault:
    return proxy.drop_reply(COMMIT, times=times(number))


def delay(proxy: FaultProxy, number: int) -> Fault:
    """Let the COMMIT arrive while the resolver is at it: before, in between, and after it has ended the session."""
    seconds = 1.2 if number % 20 == 19 else random.uniform(0, 0.02)
    return proxy.delay(COMMIT, seconds, reset=True)


def half_open(proxy: FaultProxy, number: int) -> Fault:
    return proxy.half_open(COMMIT, times=2 if number % 10 == 9 else 1)


FAULTS = [drop_request, drop_reply, delay, half_open]


@pytest.fixture(params=["postgresql_url", "mariadb_url"])
def url(request: pytest.FixtureRequest) -> Iterator[URL]:
    """The servers, with the bank's tables."""
    url: URL = request.getfixturevalue(request.param)
    harness = SqlAlchemyHarness(create_engine(url))
    yield url
    harness.close()


@pytest.fixture
def innocent(url: URL) -> Iterator[Connection]:
    """A session that has left its own token and waits for its client, as every unit does between two statements."""
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO accounts (number, owner, balance) VALUES ('innocent', 'Ann', 0)"))
        ledger_of(connection).mark(connection, "row", new_token())
        yield connection
    engine.dispose()


def rounds(make_bank: MakeBank, proxy: FaultProxy, direct: Connection, arm: Arm, numbers: range) -> Counter[str]:
    """Commit once for each number while the network fails, and compare the answer with what is there."""
    ended: Counter[str] = Counter()
    for number in numbers:
        bank, there = make_bank(), "COMMITTED"
        try:
            with bank:
                bank.accounts.add(Account(f"A-{number}", "Ann"))
                bank.flush()
                fault = arm(proxy, number)
                bank.commit()
        except ConnectionLost:
            there = "ROLLED_BACK"
        except CommitOutcomeUnknown as unknown:
            there = bank.resolve(unknown.token or "", timeout=30).name
            ended["unknown at first"] += 1
        fault.disarm()
        fault.wait()
        found = direct.execute(text("SELECT 1 FROM accounts WHERE number = :number"), {"number": f"A-{number}"}).all()
        right = bool(found) is (there == "COMMITTED") and bank.state.name in (there, "IN_DOUBT")
        ended[f"{there}{'' if right else ': wrong'}"] += 1
    return ended


def lifted_bank(engine: AsyncEngine, **options: Any) -> Bank:
    """Return an asynchronous unit for code that does not await."""
    bank: Bank = lift(AsyncSqlBank(engine, **options))
    return bank


def run(url: URL, driver: str, outcome: str, arm: Arm, count: int) -> Counter[str]:
    """Do *count* rounds, many at once, each thread with a proxy and an engine of its own."""
    plain_text: dict[str, Any] = (
        {"ssl_disabled": True} if driver == "mysql+pymysql" else {}
    )  # else it loads certificates
    plain = create_engine(url, isolation_level="AUTOCOMMIT", pool_size=AT_ONCE)

    def in_thread(numbers: range) -> Counter[str]:
        with ExitStack() as stack:
            proxy = stack.enter_context(FaultProxy.to(url))
            direct = stack.enter_context(plain.connect())
            through = proxy.url(url).set(drivername=driver)
            if driver == url.drivername:
                engine = create_engine(through, pool_size=1, max_overflow=0, connect_args=plain_text)
                stack.callback(engine.dispose)
                return rounds(partial(SqlBank, engine, outcome=outcome), proxy, direct, arm, numbers)

            async def main() -> Counter[str]:
                engine = create_async_engine(through, pool_size=1, max_overflow=0)
                try:
                    make_bank = partial(lifted_bank, engine, outcome=outcome)
                    return await lifted(rounds, make_bank, proxy, direct, arm, numbers)
                finally:
                    await engine.dispose()

            return asyncio.run(main())

    step = -(-count // AT_ONCE)
    shares = [range(at, min(at + step, count)) for at in range(0, count, step)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = sum(pool.map(in_thread, shares), Counter[str]())
    plain.dispose()
    return ended


def demand_right(ended: Counter[str], arm: Arm, count: int) -> None:
    """Fail unless all answers were there at once, and right."""
    one = {drop_request: "ROLLED_BACK", drop_reply: "COMMITTED", half_open: "ROLLED_BACK"}.get(arm)

    assert set(ended) <= {"COMMITTED", "ROLLED_BACK"}, ended
    assert one is None or {one} == set(ended)
    assert count == ended.total()


@pytest.mark.parametrize("arm", FAULTS)
def test_a_row_tells_every_time(url: URL, innocent: Connection, arm: Arm) -> None:
    """200 of 200 for each fault; and no session is ended but those whose client is gone."""
    demand_right(run(url, url.drivername, "row", arm, 200), arm, 200)

    assert 1 == innocent.exec_driver_sql("SELECT 1").scalar_one()


@pytest.mark.parametrize("arm", FAULTS)
@pytest.mark.parametrize("url", ["postgresql_url"], indirect=True)
def test_a_number_tells_every_time(url: URL, innocent: Connection, arm: Arm) -> None:
    """The same with PostgreSQL's number of the transaction, and nothing written."""
    demand_right(run(url, url.drivername, "xid", arm, 200), arm, 200)

    assert 1 == innocent.exec_driver_sql("SELECT 1").scalar_one()


@pytest.mark.parametrize("arm", FAULTS)
@pytest.mark.parametrize(
    ("url", "driver", "outcome"),
    [
        ("postgresql_url", "postgresql+psycopg_async", "row"),
        ("postgresql_url", "postgresql+psycopg_async", "xid"),
        ("postgresql_url", "postgresql+asyncpg", "row"),
        ("postgresql_url", "postgresql+asyncpg", "xid"),
        ("mariadb_url", "mysql+aiomysql", "row"),
    ],
    indirect=["url"],
)
def test_asynchronous_drivers(url: URL, driver: str, outcome: str, arm: Arm) -> None:
    """Each driver tells a lost connection in its own way."""
    demand_right(run(url, driver, outcome, arm, 20), arm, 20)
