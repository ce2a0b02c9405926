"""
The pytest plugin and what its fixtures give; the plugin itself runs in a pytest of its own.
"""

import asyncio
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import frozen
from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import uow.testing
from uow import Aggregate, AsyncRepository, AsyncUnitOfWork, Event, Repository, UnitOfWork, entity
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store
from uow.errors import CommitOutcomeUnknown
from uow.testing import Recorder, plugin, record_statements

DOCUMENT = Path(__file__).parents[2] / "docs" / "testing.md"
FIXTURES = {
    "uow_store": "An empty `Store` for fakes",
    "uow_recorder": "What became of the units that are made with it",
    "uow_sandbox": "Calling it with an engine gives another one",
    "uow_sqlite_url": "The URL of an empty SQLite file",
    "uow_postgresql_url": "The URL of an empty database of this test session on an embedded PostgreSQL",
    "uow_mariadb_url": "The URL of an empty database of this test session on the MariaDB server",
}


@frozen
class Opened(Event):
    number: str


@entity(key="number")
class Account(Aggregate):
    number: str

    @classmethod
    def open(cls, number: str) -> "Account":
        account = cls(number)
        account.record(Opened(number))
        return account


class Bank(UnitOfWork):
    accounts: Repository[Account]


class FakeBank(FakeUnitOfWork, Bank): ...


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


# -------------------------------------------------------------------------------------------------------- the recorder


def test_what_was_committed(uow_store: Store, uow_recorder: Recorder) -> None:
    """Units that ended well, and their events, those of released scopes included, in order."""
    with FakeBank(uow_store, observers=[uow_recorder]) as bank:
        bank.accounts.add(Account.open("A"))
        with bank.nested("kept"):
            bank.accounts.add(Account.open("B"))
        with suppress(ValueError), bank.nested("lost"):
            bank.accounts.add(Account.open("C"))
            raise ValueError
        assert [] == uow_recorder.events
        bank.commit()
    with FakeBank(uow_store, observers=[uow_recorder]) as bank:
        bank.accounts.add(Account.open("D"))
        bank.rollback()

    assert ["FakeBank (root)"] == uow_recorder.committed
    assert ["FakeBank (root > lost)", "FakeBank (root)"] == uow_recorder.rolled_back
    assert [Opened("A"), Opened("B")] == uow_recorder.events
    assert [] == uow_recorder.in_doubt


def test_what_nobody_knows(uow_store: Store, uow_recorder: Recorder) -> None:
    """It is neither committed nor rolled back, and its events are not published."""
    uow_store.fail_next("commit", CommitOutcomeUnknown, kept=True)
    with pytest.raises(CommitOutcomeUnknown), FakeBank(uow_store, observers=[uow_recorder]) as bank:
        bank.accounts.add(Account.open("A"))
        bank.commit()

    assert ["FakeBank (root)"] == uow_recorder.in_doubt
    assert ([], [], []) == (uow_recorder.committed, uow_recorder.rolled_back, uow_recorder.events)

    uow_recorder.clear()

    assert [] == uow_recorder.in_doubt


def test_asynchronous_units_are_recorded(uow_store: Store, uow_recorder: Recorder) -> None:
    """They have the same observers."""

    async def main() -> None:
        async with AsyncFakeBank(uow_store, observers=[uow_recorder]) as bank:
            bank.accounts.add(Account.open("A"))
            await bank.commit()

    asyncio.run(main())

    assert ["AsyncFakeBank (root)"] == uow_recorder.committed
    assert [Opened("A")] == uow_recorder.events


# ---------------------------------------------------------------------------------------------------- the statements


def test_statements_are_recorded_for_a_while(uow_sqlite_url: URL) -> None:
    """With COMMIT and ROLLBACK, and no more once the block was left."""
    engine = create_engine(uow_sqlite_url)
    with record_statements(engine) as sent, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.commit()
        connection.execute(text("SELECT 2"))
        connection.rollback()
    with engine.connect() as connection:
        connection.execute(text("SELECT 3"))
        connection.commit()

    assert ["SELECT 1", "COMMIT", "SELECT 2", "ROLLBACK"] == sent
    engine.dispose()


def test_statements_of_an_asynchronous_engine(uow_sqlite_url: URL) -> None:
    """The same."""

    async def main() -> list[str]:
        engine = create_async_engine(uow_sqlite_url.set(drivername="sqlite+aiosqlite"))
        with record_statements(engine) as sent:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        await engine.dispose()
        return sent

    assert ["SELECT 1", "ROLLBACK"] == asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------- the plugin


def test_importing_the_plugin_is_cheap(tmp_path: Path) -> None:
    """Every pytest run where the package is installed imports it; what a fixture needs comes with the fixture."""
    code = "import sys, pytest; before = set(sys.modules); import uow.testing.plugin; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = done.stdout.split()

    assert "uow.testing.plugin" in imported
    assert [] == [name for name in imported if name.partition(".")[0] in {"sqlalchemy", "hypothesis", "psycopg"}]
    assert [] == [name for name in imported if name.startswith("uow.adapters")]


def test_what_is_not_there_is_said() -> None:
    """A misspelt name of the package is an AttributeError like any other's."""
    with pytest.raises(AttributeError, match=r"module 'uow.testing' has no attribute 'sandbx'"):
        _ = uow.testing.sandbx  # type: ignore[attr-defined]


def test_the_fixtures_are_explained(pytester: pytest.Pytester) -> None:
    """`pytest --fixtures` says what each is and does."""
    result = pytester.runpytest_subprocess("--fixtures", "-p", "no:randomly")
    said = result.stdout.str()

    assert 0 == result.ret
    assert set(FIXTURES.values()) == {text for text in FIXTURES.values() if text in " ".join(said.split())}
    assert sorted(FIXTURES) == plugin.__all__
    assert (
        "no docstring available"
        not in said.partition("fixtures defined from uow.testing.plugin")[2].partition("---")[0]
    )


BANK = """
import pytest
from sqlalchemy import Column, String, Table, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import registry
from uow import AsyncRepository, AsyncUnitOfWork, Repository, UnitOfWork, entity
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlAlchemyUnitOfWork
from uow.errors import Deadlock
from uow.testing import record_statements, sandbox


@entity(key="number")
class Account:
    number: str


class Bank(UnitOfWork):
    accounts: Repository[Account]


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class FakeBank(FakeUnitOfWork, Bank): ...


class SqlBank(SqlAlchemyUnitOfWork, Bank): ...


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


mapping = registry()
mapping.map_imperatively(Account, Table("accounts", mapping.metadata, Column("number", String(20), primary_key=True)))


@pytest.fixture
def engine(uow_sqlite_url):
    engine = create_engine(uow_sqlite_url)
    mapping.metadata.create_all(engine)
    yield engine
    engine.dispose()


def add(bank):
    with bank:
        bank.accounts.add(Account("A"))
        bank.commit()
"""


def test_the_fixtures_work(pytester: pytest.Pytester) -> None:
    """For synchronous and asynchronous tests, each on its own."""
    pytester.makepyfile(
        BANK
        + """

@pytest.mark.parametrize("time", [1, 2])
def test_store(uow_store, uow_recorder, time):
    add(FakeBank(uow_store, observers=[uow_recorder]))
    assert uow_recorder.committed == ["FakeBank (root)"]


@pytest.mark.parametrize("time", [1, 2])
def test_sandbox(engine, uow_sandbox, time):
    inside = uow_sandbox(engine)
    with record_statements(inside) as sent:
        add(SqlBank(inside))
    assert len(sent) == 2


def test_sandbox_of_a_level(engine, uow_sandbox):
    add(SqlBank(uow_sandbox(engine, isolation="SERIALIZABLE"), isolation="SERIALIZABLE"))


def test_nothing_is_left(engine):
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM accounts")) == 0


def test_async_engines_are_refused(uow_sandbox, uow_sqlite_url):
    with pytest.raises(pytest.UsageError, match="async with uow.testing.sandbox"):
        uow_sandbox(create_async_engine(uow_sqlite_url.set(drivername="sqlite+aiosqlite")))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_async_store(uow_store, uow_recorder):
    async with AsyncFakeBank(uow_store, observers=[uow_recorder]) as bank:
        bank.accounts.add(Account("A"))
        await bank.commit()
    assert uow_recorder.committed == ["AsyncFakeBank (root)"]


@pytest.fixture
async def inside(engine, anyio_backend):
    outside = create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"))
    async with sandbox(outside) as inside:
        yield inside
    await outside.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize("time", [1, 2])
async def test_async_sandbox(inside, time):
    async with AsyncSqlBank(inside) as bank:
        bank.accounts.add(Account("A"))
        await bank.commit()
    async with AsyncSqlBank(inside) as bank:
        assert await bank.accounts.count() == 1
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-W", "error")

    result.assert_outcomes(passed=10)


def test_a_failure_that_was_never_met_fails_the_test(pytester: pytest.Pytester) -> None:
    """The report says which was ordered."""
    pytester.makepyfile(
        BANK
        + """

def test_met(uow_store):
    uow_store.fail_next("commit", Deadlock)
    with pytest.raises(Deadlock):
        add(FakeBank(uow_store))


def test_not_met(uow_store):
    uow_store.fail_next("commit", Deadlock("mine"), nth=2)
    add(FakeBank(uow_store))
"""
    )
    result = pytester.runpytest_subprocess()

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "The test ordered failures of the store that were never met:",
            "  Failure(operation='commit', error=Deadlock(detail='mine', code=None), nth=2, entity=None, kept=False)",
        ]
    )


def test_each_worker_has_databases_of_its_own(pytester: pytest.Pytester) -> None:
    """One for the whole session, and another one in another process."""
    pytester.makepyfile(
        """
import pytest
from pathlib import Path
from sqlalchemy import create_engine, text


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_database(database, time, request, worker_id):
    url = request.getfixturevalue(f"uow_{database}_url")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS visits (time integer)"))
        connection.execute(text("INSERT INTO visits VALUES (1)"))
        visits = connection.scalar(text("SELECT count(*) FROM visits"))
    engine.dispose()
    with Path(__file__).with_name("log").open("a") as log:
        log.write(f"{worker_id} {database} {visits} {url.render_as_string(hide_password=False)}\\n")
"""
    )
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "each")

    result.assert_outcomes(passed=8)
    lines = sorted(line.split() for line in (pytester.path / "log").read_text().splitlines())

    for database in ("sqlite", "postgresql"):
        visits = [(worker, number) for worker, name, number, _ in lines if name == database]
        urls = {url for _, name, _, url in lines if name == database}
        assert [("gw0", "1"), ("gw0", "2"), ("gw1", "1"), ("gw1", "2")] == visits
        assert 2 == len(urls)


@pytest.mark.skipif(not DOCUMENT.exists(), reason="reads the documentation of a checkout")
def test_the_page_on_testing_is_a_test_module(pytester: pytest.Pytester) -> None:
    """What it shows passes as it stands, in a project of a user's."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
    pytester.makepyfile("\n\n".join(blocks))
    result = pytester.runpytest_subprocess("-W", "error")

    result.assert_outcomes(passed=9)
