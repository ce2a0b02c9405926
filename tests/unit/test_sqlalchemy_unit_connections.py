"""
What a unit has set on its connection is not there any more when somebody else gets it, whoever gave it back.
"""

import asyncio
import gc
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import SingletonThreadPool, StaticPool
from sqlalchemy.util import greenlet_spawn

from uow.errors import CommitOutcomeUnknown, UnitOfWorkError
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlBank, metadata

Drive = Callable[[Callable[[Engine], None]], None]

# Drivers may warn when a connection that was thrown away is collected: let that happen here, and not in a later test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


DRIVERS = {
    "sqlite": "sqlite",
    "aiosqlite": "sqlite+aiosqlite",
    "psycopg": "postgresql+psycopg",
    "psycopg async": "postgresql+psycopg",
    "asyncpg": "postgresql+asyncpg",
    "pymysql": "mysql+pymysql",
    "aiomysql": "mysql+aiomysql",
}
ASYNCHRONOUS = ("aiosqlite", "psycopg async", "asyncpg", "aiomysql")
OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {"read_only": True, "lock_timeout": 1},
    "postgresql": {"isolation": "SERIALIZABLE", "read_only": True, "deferrable": True},
    "mysql": {"isolation": "SERIALIZABLE", "read_only": True, "statement_timeout": 5.5, "lock_timeout": 3},
}
SETTINGS = {
    "sqlite": ["PRAGMA query_only", "PRAGMA busy_timeout"],
    "postgresql": [f"SHOW transaction_{name}" for name in ("isolation", "read_only", "deferrable")],
    "mysql": ["SELECT @@tx_isolation, @@tx_read_only, @@max_statement_time, @@lock_wait_timeout"],
}


@pytest.fixture(params=DRIVERS)
def drive(request: pytest.FixtureRequest, tmp_path: Path) -> Drive:
    """Run a function on an engine of each driver, which has one connection, and no table; in a greenlet if need be."""
    driver, dialect = request.param, make_url(f"{DRIVERS[request.param]}://").get_backend_name()
    if dialect == "sqlite":
        url = make_url(f"sqlite:///{tmp_path / 'bank.db'}")
    else:
        url = request.getfixturevalue({"postgresql": "postgresql_url", "mysql": "mariadb_url"}[dialect])
    url = url.set(drivername=DRIVERS[driver])
    one: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}

    async def run(work: Callable[[Engine], None]) -> None:
        engine = create_async_engine(url, **one)
        await greenlet_spawn(work, engine.sync_engine)
        await engine.dispose()

    def drive(work: Callable[[Engine], None]) -> None:
        if driver in ASYNCHRONOUS:
            return asyncio.run(run(work))
        engine = create_engine(url, **one)
        work(engine)
        engine.dispose()

    return drive


def settings(connection: Connection) -> list[Any]:
    """Read what options are set in."""
    rows = [connection.exec_driver_sql(statement).one() for statement in SETTINGS[connection.dialect.name]]
    return [value for row in rows for value in row]


def found(engine: Engine) -> list[Any]:
    """Read what whoever comes next finds."""
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        own = getattr(raw, "driver_connection", raw)
        return [*settings(connection), own.isolation_level if engine.dialect.name == "sqlite" else None]


def closed(bank: SqlBank) -> None:
    bank.session.connection().close()


def closed_by_a_block(bank: SqlBank) -> None:
    with bank.session.connection() as connection:
        connection.execute(text("SELECT 1"))


def closed_as_the_bind(bank: SqlBank) -> None:
    bind: Any = bank.session.get_bind()
    bind.close()


def closed_below(bank: SqlBank) -> None:
    bank.session.connection().connection.close()


def invalidated(bank: SqlBank) -> None:
    bank.session.connection().invalidate()


def detached(bank: SqlBank) -> None:
    bank.session.connection().detach()


@pytest.mark.filterwarnings("ignore:.*psycopg:ResourceWarning")  # SQLAlchemy leaves a detached one to the collector
@pytest.mark.parametrize("end", [closed, closed_by_a_block, closed_as_the_bind, closed_below, invalidated, detached])
def test_a_connection_that_its_user_gives_back(drive: Drive, end: Callable[[SqlBank], None]) -> None:
    """The next user of the pool finds the defaults, and the one after a second unit does too."""

    def work(engine: Engine) -> None:
        before = found(engine)
        for _ in range(2):
            with suppress(Exception), SqlBank(engine, **OPTIONS[engine.dialect.name]) as bank:
                assert before[:-1] != settings(bank.session.connection())
                end(bank)

            assert before == found(engine)
            assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]

    drive(work)


@pytest.mark.filterwarnings("ignore:.*psycopg:ResourceWarning")
def test_the_unit_that_lost_its_connection_says_so(drive: Drive) -> None:
    """To close the connection is no way to end a unit, nor to invalidate it; a detached one is as good as any."""

    def work(engine: Engine) -> None:
        made: list[object] = []
        event.listen(engine, "connect", lambda *args: made.append(args))
        with pytest.raises(UnitOfWorkError), SqlBank(engine, **OPTIONS[engine.dialect.name]) as bank:
            invalidated(bank)
            bank.commit()

        assert 1 == len(made)  # to let go of a connection that is no more makes no other

        with pytest.raises(CommitOutcomeUnknown), SqlBank(engine, **OPTIONS[engine.dialect.name]) as bank:
            closed(bank)
        with SqlBank(engine, **OPTIONS[engine.dialect.name]) as bank:
            detached(bank)
            bank.session.execute(text("SELECT 1"))
            bank.commit()

    drive(work)


def test_a_connection_that_a_unit_gives_back_is_kept(drive: Drive) -> None:
    """Nothing is thrown away where a unit ends as it should."""

    def work(engine: Engine) -> None:
        raw: list[Any] = []
        for _ in range(2):
            with SqlBank(engine, **OPTIONS[engine.dialect.name]) as bank:
                raw.append(bank.session.connection().connection.dbapi_connection)
            with engine.connect() as connection:
                raw.append(connection.connection.dbapi_connection)

        assert 1 == len({id(connection) for connection in raw})

    drive(work)


def test_a_pool_that_was_made_anew(drive: Drive) -> None:
    """An engine that was disposed of has another pool, which is watched like the first."""

    def work(engine: Engine) -> None:
        before = found(engine)
        bank = SqlBank(engine, **OPTIONS[engine.dialect.name])
        engine.dispose()
        with suppress(UnitOfWorkError), bank:
            closed(bank)

        assert before == found(engine)

    drive(work)


@pytest.mark.parametrize("drive", [name for name in DRIVERS if name not in ASYNCHRONOUS], indirect=True)
def test_a_unit_that_nobody_uses_any_more(drive: Drive) -> None:
    """What is collected with a transaction open leaves nothing behind either."""

    def work(engine: Engine) -> None:
        before = found(engine)
        bank = SqlBank(engine, **OPTIONS[engine.dialect.name])
        bank.__enter__()
        bank.session.execute(text("SELECT 1"))
        del bank
        gc.collect()

        assert before == found(engine)

    drive(work)


# --------------------------------------------------------------------------------------------------- SQLite in memory


@contextmanager
def in_memory(pool: type[Any]) -> Generator[Engine]:
    engine = create_engine("sqlite://", poolclass=pool)
    metadata.create_all(engine)
    with SqlBank(engine) as bank:
        bank.accounts.add(Account("A", "Ann", 10))
        bank.commit()
    yield engine
    engine.dispose()


@pytest.mark.parametrize("pool", [SingletonThreadPool, StaticPool])
def test_a_database_in_memory(pool: type[Any]) -> None:
    """It is still there when its connection was given back by the user."""
    with in_memory(pool) as engine:
        before = found(engine)
        with suppress(UnitOfWorkError), SqlBank(engine, read_only=True, lock_timeout=1) as bank:
            closed(bank)

        assert before == found(engine)

        with SqlBank(engine) as bank:
            assert 10 == bank.accounts.get("A").balance


def test_a_unit_that_was_refused_leaves_the_other_alone() -> None:
    """Two units in one thread have one connection in memory: the second is refused, and the first is still undone."""
    with in_memory(SingletonThreadPool) as engine:
        before = found(engine)
        with suppress(UnitOfWorkError), SqlBank(engine, read_only=True, lock_timeout=1) as bank:
            assert 1 == bank.accounts.count()
            with suppress(UnitOfWorkError), SqlBank(engine) as other:
                other.accounts.count()
            closed(bank)

        assert before == found(engine)


def test_what_cannot_be_undone(drive: Drive) -> None:
    """A connection that is closed already when it goes back is thrown away."""

    def work(engine: Engine) -> None:
        before = found(engine)
        with suppress(Exception), SqlBank(engine, **OPTIONS[engine.dialect.name]) as bank:
            connection = bank.session.connection()
            raw: Any = connection.connection.dbapi_connection
            raw.close()
            connection.close()

        assert before == found(engine)

    drive(work)


def test_engines_that_share_a_pool(postgresql_url: URL) -> None:
    """An engine made of another one with ``execution_options()`` is no exception, and neither is its parent."""
    parent = create_engine(postgresql_url, pool_size=1, max_overflow=0)
    before = found(parent)
    for engine in (parent, parent.execution_options(isolation_level="REPEATABLE READ"), parent):
        with suppress(UnitOfWorkError), SqlBank(engine, **OPTIONS["postgresql"]) as bank:
            closed(bank)

        assert before == found(parent)

    parent.dispose()
