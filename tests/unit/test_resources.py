"""
A database as a part of distributed transactions: what it must be like, and that every driver can ask it.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, event
from sqlalchemy.dialects.mysql.pymysql import MySQLDialect_pymysql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

import uow.adapters.sqlalchemy._resource as resource
from uow import Finished, Heuristic, Prepared, Resource
from uow._branches import domain_of, new_id
from uow.adapters.memory import FakeResource, Store
from uow.adapters.sqlalchemy import SqlResource, uow_metadata
from uow.errors import ConfigurationError, DatabaseError

RESOURCES: tuple[type[Resource], ...] = (SqlResource, FakeResource)  # a type checker looks at this


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    engine = create_engine(database_url)
    uow_metadata.create_all(engine)
    yield engine
    uow_metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[Engine]:
    engine = create_engine(postgresql_url, poolclass=NullPool)
    uow_metadata.create_all(engine)
    yield engine
    uow_metadata.drop_all(engine)


@pytest.fixture
def mariadb(mariadb_url: URL) -> Iterator[Engine]:
    engine = create_engine(mariadb_url, poolclass=NullPool)
    uow_metadata.create_all(engine)
    yield engine
    uow_metadata.drop_all(engine)


def test_rank_and_readiness(engine: Engine) -> None:
    """What cannot prepare decides; MariaDB decides only if all others do so, too."""
    database = SqlResource(engine, "bank")
    name = engine.dialect.name

    assert database.rank == {"sqlite": 0, "postgresql": 1, "mysql": 2}[name]
    database.demand_ready(prepares=False)
    if name == "sqlite":
        with pytest.raises(ConfigurationError, match="SQLite cannot prepare a transaction"):
            database.demand_ready(prepares=True)
    else:
        database.demand_ready(prepares=True)


@pytest.mark.parametrize("prepares", [True, False])
def test_missing_tables(engine: Engine, prepares: bool) -> None:
    uow_metadata.drop_all(engine)
    if engine.dialect.name == "sqlite" and prepares:
        return

    with pytest.raises(ConfigurationError, match=r"uow_metadata\.create_all\(engine\)"):
        SqlResource(engine, "bank").demand_ready(prepares=prepares)


def answer(engine: Engine, **settings: str) -> None:
    """Let the server have other settings, as far as they are asked for."""
    for name, value in settings.items():
        event.listen(
            engine,
            "before_cursor_execute",
            lambda conn, cursor, statement, parameters, context, many, name=name, value=value: (
                (f"SELECT '{value}'", ()) if name in str(parameters) else (statement, parameters)
            ),
            retval=True,
        )


def test_two_phase_commit_is_off_on_postgresql(postgresql: Engine) -> None:
    answer(postgresql, max_prepared_transactions="0")
    database = SqlResource(postgresql, "bank")

    assert database.rank == 0
    database.demand_ready(prepares=False)
    with pytest.raises(ConfigurationError, match=r"Set it in postgresql\.conf to as many as there are connections"):
        database.demand_ready(prepares=True)


@pytest.mark.parametrize("prepares", [True, False])
def test_postgresql_without_fsync_is_for_tests_alone(postgresql: Engine, prepares: bool) -> None:
    with postgresql.connect() as connection:
        assert connection.exec_driver_sql("SHOW fsync").scalar_one() == "off"
    answer(postgresql, **{"uow.throwaway": "off"})

    with pytest.raises(ConfigurationError, match=r"fsync is off\. Set fsync = on .* set uow\.throwaway = on"):
        SqlResource(postgresql, "bank").demand_ready(prepares=prepares)


@pytest.mark.parametrize(("name", "value"), [("innodb_flush_log_at_trx_commit", "2"), ("wsrep_on", "ON")])
def test_settings_of_mariadb(mariadb: Engine, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setattr(resource, "_SETTINGS", f"SELECT '{name}', '{value}'")

    with pytest.raises(ConfigurationError, match=f"{name} is {value}. Set {name} = "):
        SqlResource(mariadb, "bank").demand_ready(prepares=True)


@pytest.mark.parametrize(("attribute", "value"), [("is_mariadb", False), ("server_version_info", (10, 4, 30))])
def test_servers_that_lose_prepared_branches(
    mariadb: Engine, monkeypatch: pytest.MonkeyPatch, attribute: str, value: Any
) -> None:
    with mariadb.connect():
        monkeypatch.setattr(mariadb.dialect, attribute, value)

    with pytest.raises(ConfigurationError, match=r"Use MariaDB 10\.5 or newer"):
        SqlResource(mariadb, "bank").demand_ready(prepares=True)
    assert isinstance(mariadb.dialect, MySQLDialect_pymysql)


def test_sqlite_that_does_not_wait_for_the_disk(sqlite_url: URL) -> None:
    engine = create_engine(sqlite_url)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = NORMAL"))

    with pytest.raises(ConfigurationError, match="pragma synchronous is below FULL"):
        SqlResource(engine, "bank").demand_ready(prepares=False)
    engine.dispose()


def test_what_is_no_engine_and_no_name() -> None:
    engine = create_engine("sqlite://")

    with pytest.raises(ConfigurationError, match="is no Engine"):
        SqlResource(create_async_engine("sqlite+aiosqlite://"), "bank")  # type: ignore[arg-type]
    for make in (lambda: SqlResource(engine, "a b"), lambda: FakeResource(Store(), "a b")):
        with pytest.raises(ConfigurationError, match="the resource is called 'a b'"):
            make()


def test_sqlite_in_memory_survives_being_asked_to_end_a_branch() -> None:
    engine = create_engine("sqlite://")
    uow_metadata.create_all(engine)
    database = SqlResource(engine, "bank")

    assert database.finish(new_id("uow", "bank"), commit=True) is Finished.UNKNOWN
    assert database.heuristics() == []
    assert database.prepared("uow") == []
    database.disown("x")
    engine.dispose()


def test_the_fake_is_always_ready() -> None:
    fake = FakeResource(Store(), "bank")

    fake.demand_ready(prepares=True)
    fake.disown("x")
    assert fake.finish("x", commit=True) is Finished.UNKNOWN
    assert (fake.rank, tuple(fake.modes)) == (2, ("row", "none"))


def test_the_connection_that_ended_a_branch_does_not_go_back_to_the_pool(postgresql_url: URL) -> None:
    """It commits by itself, and the next user must not."""
    engine = create_engine(postgresql_url, pool_size=1, max_overflow=0)
    uow_metadata.create_all(engine)
    id = new_id("uow", "bank")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PREPARE TRANSACTION '{id}/bank'")

    assert SqlResource(engine, "bank").finish(id, commit=True) is Finished.DONE

    with engine.connect() as connection:
        own: Any = connection.connection.dbapi_connection
        assert (own.autocommit, own.isolation_level) == (False, None)
    engine.dispose()


def test_what_the_server_refuses_for_another_reason_is_raised(
    postgresql: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource.PostgreSqlManager, "ending", lambda *_, commit: "SELECT 1 / 0")

    with pytest.raises(DatabaseError) as caught:
        SqlResource(postgresql, "bank").finish("x", commit=True)

    assert caught.value.code == "22012"


def test_a_quote_in_an_id_is_none_in_the_statement(postgresql: Engine, mariadb: Engine) -> None:
    for engine in (postgresql, mariadb):
        assert SqlResource(engine, "bank").finish("it's", commit=False) is Finished.UNKNOWN


DRIVERS = {
    "psycopg": "postgresql_url",
    "asyncpg": "postgresql_url",
    "aiomysql": "mariadb_url",
    "aiosqlite": "sqlite_url",
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_asynchronous_drivers(driver: str, request: pytest.FixtureRequest) -> None:
    """The same code, run through SQLAlchemy's bridge."""
    import asyncio

    url: URL = request.getfixturevalue(DRIVERS[driver])
    id = new_id("async", "bank")

    def prepare(engine: Engine) -> bool:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"INSERT INTO uow_branch (id, at) VALUES ('{id}', now())")
                connection.exec_driver_sql(f"PREPARE TRANSACTION '{id}/bank'")
                connection.invalidate()
            elif engine.dialect.name == "mysql":
                insert = f"INSERT INTO uow_branch (id, at, session) VALUES ('{id}', now(), connection_id())"
                for statement in ("XA START {}", insert, "XA END {}", "XA PREPARE {}"):
                    connection.exec_driver_sql(statement.format(f"'{id}','bank'"))
                assert SqlResource(engine, "bank").finish(id, commit=True) is Finished.OWNED
                SqlResource(engine, "bank").disown(id)
                connection.invalidate()
        return engine.dialect.name != "sqlite"

    def work(engine: Engine) -> None:
        database = SqlResource(engine, "bank")
        uow_metadata.create_all(engine)
        database.demand_ready(prepares=False)
        if prepare(engine):
            assert [branch.id for branch in database.prepared("async")] == [id]
            assert database.finish(id, commit=True) is Finished.DONE
            assert set(database.witnessed([id])) == {id}
        assert database.finish(id, commit=True) is Finished.UNKNOWN
        assert database.prepared("async") == []
        assert database.settle(id, 5) is False
        assert database.decisions("async", grace=0) == []
        database.note(Heuristic(id, "bank", "lost"))
        assert database.heuristics() == [Heuristic(id, "bank", "lost")]
        assert database.purge("async", []) == 0
        assert list(database.witnesses("async")) == []
        database.complete([id])
        database.forget([id])
        database.forget_witnesses([id])
        uow_metadata.drop_all(engine)

    async def main() -> None:
        dialect = url.get_backend_name()
        engine = create_async_engine(url.set(drivername=f"{dialect}+{driver}"))
        try:
            await greenlet_spawn(work, engine.sync_engine)
        finally:
            await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize(
    "id",
    [
        "",
        "u1.shop.bank.n",
        "u2.shop.bank.n.01M7ZPYMT1TRATA9Q0S78J2VXX",
        "u1.shop.bank.n.x",
        f"u1.shop.bank.n.{'Z' * 26}",
    ],
)
def test_what_is_no_id_of_ours(id: str) -> None:
    assert domain_of(id) is None
    assert Prepared.of("shop", [(id, None)]) == []
