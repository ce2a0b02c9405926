"""
What the databases say when units collide or a connection is missing, provoked on the real ones.
"""

import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import URL, Column, Connection, Engine, Integer, MetaData, Table, create_engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, TimeoutError
from sqlalchemy.orm import Session, registry
from sqlalchemy.orm.exc import StaleDataError

from uow.adapters.sqlalchemy._errors import translate, translate_connect, translate_orm
from uow.errors import (
    ConnectionLost,
    ConnectionUnavailable,
    DatabaseError,
    Deadlock,
    LockTimeout,
    SerializationFailure,
    StaleVersion,
)

metadata = MetaData()
counters = Table(
    "told_counters",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("value", Integer, nullable=False),
)


class Counter:
    """An entity with a version."""

    value: int


registry(metadata=metadata).map_imperatively(Counter, counters, version_id_col=counters.c.version)


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    """An engine on a database that holds two counters."""
    yield from started(database_url)


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[Engine]:
    """The same on PostgreSQL."""
    yield from started(postgresql_url)


@pytest.fixture
def mariadb(mariadb_url: URL) -> Iterator[Engine]:
    """The same on MariaDB."""
    yield from started(mariadb_url)


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Engine:
    """The same on each that is a server."""
    engine: Engine = request.getfixturevalue(request.param)
    return engine


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    """An SQLite file in WAL mode with two counters."""
    path = tmp_path / "test.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE told_counters (id INTEGER PRIMARY KEY, value INTEGER)")
        connection.execute("INSERT INTO told_counters VALUES (1, 0), (2, 0)")
        connection.commit()
    return path


def started(url: URL) -> Iterator[Engine]:
    """Create the counters, and remove them in the end."""
    engine = create_engine(url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(counters.insert(), [{"id": key, "version": 1, "value": 0} for key in (1, 2)])
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


def change(key: int) -> str:
    """A statement that locks one counter."""
    return f"UPDATE told_counters SET value = value + 1 WHERE id = {key}"


def told(connection: Connection, statement: str) -> DatabaseError:
    """Run a statement that fails, and translate its error."""
    with pytest.raises(DBAPIError) as caught:
        connection.exec_driver_sql(statement)
    assert caught.value.orig is not None
    return translate(caught.value.orig, connection.dialect.name, disconnect=caught.value.connection_invalidated)


def test_deadlock(server: Engine) -> None:
    """One of two units that wait for each other is told of the deadlock, and the other goes on."""
    barrier = Barrier(2)

    def work(first: int, second: int) -> BaseException | None:
        with server.connect() as connection:
            if server.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL deadlock_timeout = '10ms'")
            connection.exec_driver_sql(change(first))
            barrier.wait()
            try:
                connection.exec_driver_sql(change(second))
            except DBAPIError as error:
                return error.orig
        return None

    with ThreadPoolExecutor(2) as threads:
        outcomes = threads.map(work, (1, 2), (2, 1))
    errors = [translate(error, server.dialect.name) for error in outcomes if error]

    assert [(Deadlock, {"postgresql": "40P01", "mysql": 1213}[server.dialect.name])] == [
        (type(error), error.code) for error in errors
    ]


@pytest.mark.parametrize("waiting", ["timeout", "nowait"])
def test_lock_timeout(server: Engine, waiting: str) -> None:
    """A lock that is not free in time is told as such, and so is one that was not to be waited for."""
    limit = {"postgresql": "SET LOCAL lock_timeout = '1ms'", "mysql": "SET innodb_lock_wait_timeout = 1"}
    with server.connect() as holder, server.connect() as waiter:
        holder.exec_driver_sql(change(1))
        if waiting == "timeout":
            waiter.exec_driver_sql(limit[server.dialect.name])
            error = told(waiter, change(1))
        else:
            error = told(waiter, "SELECT * FROM told_counters WHERE id = 1 FOR UPDATE NOWAIT")
        waiter.invalidate()  # the limit goes with the connection

    assert (LockTimeout, {"postgresql": "55P03", "mysql": 1205}[server.dialect.name]) == (type(error), error.code)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_postgresql_serialization_failure(postgresql: Engine, level: str) -> None:
    """A unit that wants to change what another one changed since it began is told that it collided."""
    with (
        postgresql.connect().execution_options(isolation_level=level) as reader,
        postgresql.connect() as writer,
    ):
        reader.exec_driver_sql("SELECT * FROM told_counters")
        writer.exec_driver_sql(change(1))
        writer.commit()
        error = told(reader, change(1))

    assert (SerializationFailure, "40001") == (type(error), error.code)
    assert "could not serialize access due to concurrent update" == error.detail


def test_mariadb_serialization_failure(mariadb: Engine) -> None:
    """MariaDB tells the same where it isolates snapshots."""
    with mariadb.connect() as reader, mariadb.connect() as writer:
        reader.exec_driver_sql("SET innodb_snapshot_isolation = ON")
        reader.exec_driver_sql("SELECT * FROM told_counters")
        writer.exec_driver_sql(change(1))
        writer.commit()
        error = told(reader, change(1))
        reader.invalidate()

    assert (SerializationFailure, 1020) == (type(error), error.code)


def test_sqlite_busy(sqlite_file: Path) -> None:
    """A file that another unit is writing to is a lock that is not free."""
    with closing(unbuffered(sqlite_file)) as holder, closing(unbuffered(sqlite_file)) as waiter:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            waiter.execute("BEGIN IMMEDIATE")
    error = translate(caught.value, "sqlite")

    assert (LockTimeout, "SQLITE_BUSY", "database is locked") == (type(error), error.code, error.detail)


def test_sqlite_busy_snapshot(sqlite_file: Path) -> None:
    """A unit that read before another one wrote cannot write any more: it collided, and waiting would not help."""
    with closing(unbuffered(sqlite_file)) as reader, closing(unbuffered(sqlite_file)) as writer:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM told_counters").fetchall()
        writer.execute(change(1))
        with pytest.raises(sqlite3.OperationalError) as caught:
            reader.execute(change(1))
    error = translate(caught.value, "sqlite")

    assert (SerializationFailure, "SQLITE_BUSY_SNAPSHOT") == (type(error), error.code)


def test_sqlite_locked(sqlite_file: Path) -> None:
    """A table that the same connection is still reading is a lock that is not free."""
    with closing(unbuffered(sqlite_file)) as connection:
        rows = connection.execute("SELECT * FROM told_counters")
        next(rows)
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("DROP TABLE told_counters")
        rows.close()
    error = translate(caught.value, "sqlite")

    assert (LockTimeout, "SQLITE_LOCKED") == (type(error), error.code)


def unbuffered(path: Path) -> sqlite3.Connection:
    """Connect to a file without the driver's own transactions, and without waiting for locks."""
    return sqlite3.connect(path, timeout=0, isolation_level=None)


def test_connection_killed(server: Engine) -> None:
    """A session that the server ended is a lost connection, with SQLAlchemy's word for it and without."""
    identify, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({}, 10000)"),
        "mysql": ("SELECT connection_id()", "KILL {}"),
    }[server.dialect.name]
    with server.connect() as victim, server.connect() as killer:
        identity = victim.exec_driver_sql(identify).scalar_one()
        killer.exec_driver_sql(end.format(identity))
        with pytest.raises(DBAPIError) as caught:
            victim.exec_driver_sql(change(1))
    assert caught.value.orig is not None
    error = translate(caught.value.orig, server.dialect.name)
    same = translate(caught.value.orig, server.dialect.name, disconnect=caught.value.connection_invalidated)

    assert (ConnectionLost, ConnectionLost) == (type(error), type(same))
    assert error.code in {"57P01", 1927, 2006, 2013}


def test_mariadb_connection_closed(mariadb: Engine) -> None:
    """PyMySQL says nothing on a connection that is closed, and its number 0 is understood."""
    with closing(mariadb.raw_connection()) as connection:
        assert connection.driver_connection is not None
        connection.driver_connection.close()
        with pytest.raises(mariadb.dialect.loaded_dbapi.InterfaceError) as caught:
            connection.cursor().execute(change(1))
        connection.invalidate()
    error = translate(caught.value, "mariadb")

    assert (ConnectionLost, 0) == (type(error), error.code)
    assert error.detail


def test_postgresql_without_code(postgresql: Engine) -> None:
    """An operational error without a code is no lost connection: too many parameters are told like that, too."""
    with closing(postgresql.raw_connection()) as connection:
        statement = f"SELECT 1 WHERE 1 IN ({', '.join(['%s'] * 65536)})"
        with pytest.raises(postgresql.dialect.loaded_dbapi.OperationalError) as caught:
            connection.cursor().execute(statement, (1,) * 65536)
    error = translate(caught.value, "postgresql")

    assert (DatabaseError, None) == (type(error), error.code)


def test_pool_exhausted(database_url: URL) -> None:
    """A pool that is empty says so, with its size and what to do."""
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect(), pytest.raises(TimeoutError) as caught:
        engine.connect()
    engine.dispose()
    error = translate_connect(caught.value, engine.dialect.name)

    assert (
        "the pool is exhausted (QueuePool limit of size 1 overflow 0 reached, connection timed out, timeout 0.01). "
        "End units sooner, or raise pool_size or max_overflow of the engine"
    ) == error.detail
    assert error.code is None


@pytest.mark.parametrize(
    ("address", "code"), [("postgresql+psycopg://127.0.0.1:{}/none", None), ("mysql+pymysql://127.0.0.1:{}/none", 2003)]
)
def test_connection_refused(address: str, code: object) -> None:
    """A server that does not answer is no connection, whether the wrapper or the driver's error is at hand."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        engine = create_engine(address.format(taken.getsockname()[1]))
        with pytest.raises(OperationalError) as caught:
            engine.connect()
    assert caught.value.orig is not None
    errors = [translate_connect(error, engine.dialect.name) for error in (caught.value, caught.value.orig)]

    assert [(ConnectionUnavailable, code)] * 2 == [(type(error), error.code) for error in errors]
    assert "refused" in errors[0].detail


def test_sqlite_cannot_open(tmp_path: Path) -> None:
    """A file that cannot be opened is no connection, whoever asks."""
    engine = create_engine(make_url("sqlite://").set(database=str(tmp_path / "missing" / "test.db")))
    with pytest.raises(OperationalError) as caught:
        engine.connect()
    assert caught.value.orig is not None
    errors = [translate(caught.value.orig, "sqlite"), translate_connect(caught.value, "sqlite")]

    assert [(ConnectionUnavailable, "SQLITE_CANTOPEN")] * 2 == [(type(error), error.code) for error in errors]


def test_stale_version(engine: Engine) -> None:
    """A flush that finds a newer version of an entity is told as such, with what SQLAlchemy says."""
    with Session(engine, expire_on_commit=False) as late, Session(engine) as quick:
        counter = late.get_one(Counter, 1)
        late.commit()
        quick.get_one(Counter, 1).value = 7
        quick.commit()
        counter.value = 8
        with pytest.raises(StaleDataError) as caught:
            late.flush()
    error = translate_orm(caught.value)

    assert (StaleVersion, None) == (type(error), error.code)
    assert "told_counters" in error.detail
    assert error.transient
