"""
What each fault of the proxy does to a client, and what the server then did, as a direct connection sees it.
"""

import asyncio
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from uow.testing import Fault, FaultProxy
from uow.testing._proxy import _MariaDb, _Postgresql

POSTGRESQL = ["psycopg", "psycopg async", "asyncpg"]
MARIADB = ["pymysql", "aiomysql"]


class Database:
    """A database with a table, seen directly, and through a proxy by one driver."""

    def __init__(self, url: URL, driver: str, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.driver = driver
        self.direct = create_engine(url, poolclass=NullPool)
        self.through = proxy.url(url).set(drivername=f"{url.get_backend_name()}+{driver.partition(' ')[0]}")
        self.limit = "SET lock_timeout = '300ms'"
        if "mysql" in driver:
            self.limit = "SET SESSION innodb_lock_wait_timeout = 1"
        with self.direct.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS proxied"))
            connection.execute(text("CREATE TABLE proxied (id INTEGER PRIMARY KEY)"))

    def drive(self, work: Callable[[Engine], Any]) -> Any:
        """Run a function on an engine that goes through the proxy."""
        if self.driver in {"psycopg", "pymysql"}:
            return work(create_engine(self.through, poolclass=NullPool))

        async def run() -> Any:
            engine = create_async_engine(self.through, poolclass=NullPool)
            return await greenlet_spawn(work, engine.sync_engine)

        return asyncio.run(run())

    def insert(self, engine: Engine, id: int = 1) -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO proxied VALUES (:id)"), {"id": id})

    def ids(self) -> list[int]:
        with self.direct.connect() as connection:
            return list(connection.execute(text("SELECT id FROM proxied ORDER BY id")).scalars())

    def fence(self) -> None:
        """Insert the same row, as who resolves an outcome does: it waits for a transaction that has it."""
        with self.direct.begin() as connection:
            connection.execute(text(self.limit))
            connection.execute(text("INSERT INTO proxied VALUES (1)"))

    def finish(self, statement: str) -> None:
        """End a branch that is prepared, once the server has let go of the session that prepared it."""
        with self.direct.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            patience = time.monotonic() + 30
            while True:
                try:
                    connection.exec_driver_sql(statement)
                except DBAPIError:
                    if time.monotonic() > patience:
                        raise
                else:
                    return


@pytest.fixture(params=[*POSTGRESQL, *MARIADB])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    name = "mariadb" if request.param in MARIADB else "postgresql"
    url: URL = request.getfixturevalue(f"{name}_url")
    with FaultProxy.to(url) as proxy:
        yield Database(url, request.param, proxy)


def test_a_request_that_is_dropped_rolls_back(database: Database) -> None:
    """The client is reset, the server lets the row go, and the next commit passes."""
    fault = database.proxy.drop_request(b"COMMIT")
    with pytest.raises(DBAPIError) as raised:
        database.drive(database.insert)
    fault.wait()

    assert raised.value.connection_invalidated
    assert (1, 1) == (fault.met, database.proxy.faults)
    database.fence()
    database.drive(lambda engine: database.insert(engine, 2))
    assert [1, 2] == database.ids()


def test_a_reply_that_is_dropped_was_a_commit(database: Database) -> None:
    """The server has committed by the time that the client is reset."""
    fault = database.proxy.drop_reply(b"COMMIT")
    with pytest.raises(DBAPIError):
        database.drive(database.insert)

    assert [1] == database.ids()
    fault.wait()


def test_a_delayed_request_commits_after_the_client_has_gone(database: Database) -> None:
    """Who asks meanwhile sees no row, waits for it, and sees it at last."""
    fault = database.proxy.delay(b"COMMIT", None, reset=True)
    with pytest.raises(DBAPIError):
        database.drive(database.insert)

    assert [] == database.ids()
    with pytest.raises(OperationalError, match=r"lock timeout|Lock wait timeout"):
        database.fence()
    fault.release()
    fault.wait()
    assert [1] == database.ids()


def test_a_half_open_session_keeps_its_locks(database: Database) -> None:
    """The client is reset; the server waits for the commit until the proxy is closed."""
    fault = database.proxy.half_open(b"COMMIT")
    with pytest.raises(DBAPIError):
        database.drive(database.insert)
    fault.wait()

    assert [] == database.ids()
    with pytest.raises(OperationalError, match=r"lock timeout|Lock wait timeout"):
        database.fence()
    database.proxy.close()
    database.fence()
    assert [1] == database.ids()


@pytest.mark.parametrize(("arm", "expected"), [(FaultProxy.half_open, []), (FaultProxy.drop_reply, [1])])
def test_a_silent_fault_leaves_the_client_waiting(
    database: Database, arm: Callable[..., Fault], expected: list[int]
) -> None:
    """Nothing tells the client; it gets away when the proxy is closed, or by a timeout of its own."""
    fault = arm(database.proxy, b"COMMIT", silent=True)
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(database.drive, database.insert)
        fault.wait()
        assert not client.done()
        assert expected == database.ids()
        database.proxy.close()
        assert isinstance(client.exception(), DBAPIError)


def test_a_plain_delay_loses_nothing(database: Database) -> None:
    """The client waits and gets its answer; seconds release it, too."""
    fault = database.proxy.delay(b"COMMIT", 0.01, times=None)
    database.drive(database.insert)
    database.drive(lambda engine: database.insert(engine, 2))
    fault.wait()

    assert 2 == fault.met
    assert [1, 2] == database.ids()


def test_a_fault_may_meet_every_turn_until_it_is_disarmed(database: Database) -> None:
    """``times=None`` is every one, and `disarm` ends it."""
    fault = database.proxy.drop_request(b"COMMIT", times=None)
    for _ in range(3):
        with pytest.raises(DBAPIError):
            database.drive(database.insert)
    fault.disarm()
    database.drive(database.insert)

    assert (3, 3) == (fault.met, database.proxy.faults)
    assert [1] == database.ids()


def test_values_are_matched_too(database: Database) -> None:
    """The text of a statement, or a value bound to it: a test finds the turn of one token."""
    fault = database.proxy.drop_request(b"token-17")

    def select(engine: Engine, token: str) -> Any:
        with engine.connect() as connection:
            return connection.execute(text("SELECT CONCAT(CAST(:token AS CHAR(8)), '!')"), {"token": token}).scalar()

    def work(engine: Engine) -> None:
        assert "token-16!" == select(engine, "token-16")
        with pytest.raises(DBAPIError):
            select(engine, "token-17")

    database.drive(work)
    assert 1 == fault.met


def test_only_what_is_executed_is_met(database: Database) -> None:
    """A statement that the driver prepared is met each time that it runs, and not when it is prepared."""
    fault = database.proxy.delay(b"SELECT 17", 0, times=None)

    def work(engine: Engine) -> None:
        with engine.connect() as connection:
            for _ in range(10):
                connection.exec_driver_sql("SELECT 17").all()

    database.drive(work)
    assert 10 == fault.met


def test_round_trips_are_counted(database: Database) -> None:
    """A turn is counted when the client waits for its answer; a driver may prepare in a turn of its own."""
    counts = []

    def work(engine: Engine) -> None:
        with engine.connect() as connection:
            for _ in range(10):
                before = database.proxy.round_trips
                connection.exec_driver_sql("SELECT 1").all()
                counts.append(database.proxy.round_trips - before)

    database.drive(work)
    assert [1, 1, 1] == counts[7:]


def test_latency_is_added_without_loss(database: Database) -> None:
    """It reaches both directions, and everything arrives."""
    proxy = FaultProxy.to(database.direct.url, latency=0.0005)
    with proxy:
        database.through = database.through.set(port=proxy.port)
        database.drive(database.insert)
    assert [1] == database.ids()


def run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize("database", POSTGRESQL, indirect=True)
@pytest.mark.parametrize("statement", ["PREPARE TRANSACTION", "COMMIT PREPARED"])
@pytest.mark.parametrize("arm", [FaultProxy.drop_request, FaultProxy.drop_reply])
def test_two_phase_commit_on_postgresql(
    database: Database, xid: str, statement: str, arm: Callable[..., Fault]
) -> None:
    """Each of its statements is found, and has happened or not."""
    dropped = arm is FaultProxy.drop_request
    arm(database.proxy, statement.encode())

    def work(engine: Engine) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            run(connection, "BEGIN", "INSERT INTO proxied VALUES (1)", f"PREPARE TRANSACTION '{xid}'")
            run(connection, f"COMMIT PREPARED '{xid}'")

    with pytest.raises(DBAPIError):
        database.drive(work)
    prepared = (statement == "COMMIT PREPARED") == dropped
    if prepared:
        database.finish(f"ROLLBACK PREPARED '{xid}'")
    with database.direct.connect() as connection:
        assert xid not in connection.exec_driver_sql("SELECT gid FROM pg_prepared_xacts").scalars().all()
    assert ([1] if statement == "COMMIT PREPARED" and not dropped else []) == database.ids()


@pytest.fixture
def xid() -> str:
    """An id of this test: a server lists those of all its databases."""
    return f"proxied-{secrets.token_hex(4)}"


@pytest.mark.parametrize("database", MARIADB, indirect=True)
@pytest.mark.parametrize("statement", ["XA PREPARE", "XA COMMIT"])
@pytest.mark.parametrize("arm", [FaultProxy.drop_request, FaultProxy.drop_reply])
def test_two_phase_commit_on_mariadb(database: Database, xid: str, statement: str, arm: Callable[..., Fault]) -> None:
    """Each of its statements is found, and has happened or not."""
    dropped = arm is FaultProxy.drop_request
    arm(database.proxy, statement.encode())

    def work(engine: Engine) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            run(connection, f"XA START '{xid}'", "INSERT INTO proxied VALUES (1)", f"XA END '{xid}'")
            run(connection, f"XA PREPARE '{xid}'", f"XA COMMIT '{xid}'")

    with pytest.raises(DBAPIError):
        database.drive(work)
    prepared = (statement == "XA COMMIT") == dropped
    if prepared:
        database.finish(f"XA ROLLBACK '{xid}'")
    with database.direct.connect() as connection:
        assert xid not in [row.data for row in connection.exec_driver_sql("XA RECOVER")]
    assert ([1] if statement == "XA COMMIT" and not dropped else []) == database.ids()


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
@pytest.mark.parametrize("arm", [FaultProxy.drop_request, FaultProxy.drop_reply])
def test_many_threads_share_a_proxy(database: Database, arm: Callable[..., Fault]) -> None:
    """Two hundred faults in twenty threads: each client is reset, and nothing is left at the end."""
    fault = arm(database.proxy, b"COMMIT", times=None)
    engine = create_engine(database.through, poolclass=NullPool)

    def work(id: int) -> bool:
        with pytest.raises(DBAPIError):
            database.insert(engine, id)
        return True

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(work, range(200)))
    fault.wait()
    assert 200 == fault.met == database.proxy.faults
    assert ([] if arm is FaultProxy.drop_request else list(range(200))) == database.ids()
    database.proxy.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fault proxy")]


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_a_notice_is_not_the_answer(database: Database) -> None:
    """The client is reset when the statement is done, not when the server says that it is at it."""
    database.proxy.drop_reply(b"INSERT")

    def work(engine: Engine) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            run(
                connection,
                "DO $$ BEGIN RAISE WARNING 'at it'; PERFORM pg_sleep(0.1); INSERT INTO proxied VALUES (1); END $$",
            )

    with pytest.raises(DBAPIError):
        database.drive(work)
    assert [1] == database.ids()


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_a_half_open_session_outlives_a_client_that_leaves(database: Database) -> None:
    """What the client says after the silence, and that it leaves, do not reach the server."""
    fault = database.proxy.half_open(b"SELECT 17", silent=True)
    options = {"user": "postgres", "database": database.through.database or "", "application_name": "silent"}
    startup = (
        (3 << 16).to_bytes(4) + b"".join(b"%b\0%b\0" % (k.encode(), v.encode()) for k, v in options.items()) + b"\0"
    )
    with socket.create_connection(("127.0.0.1", database.proxy.port)) as client:
        client.sendall((4 + len(startup)).to_bytes(4) + startup)
        while b"Z\0\0\0\5I" not in client.recv(65536):
            pass
        client.sendall(b"Q\0\0\0\x0eSELECT 17\0")
        fault.wait()
        client.sendall(b"X\0\0\0\4")
    database.drive(lambda engine: database.insert(engine))
    with database.direct.connect() as connection:
        sessions = connection.execute(text("SELECT state FROM pg_stat_activity WHERE application_name = 'silent'"))
        assert ["idle"] == sessions.scalars().all()


def test_a_fault_that_nothing_met_says_so(postgresql_url: URL) -> None:
    """The wait ends, and names the bytes that never came."""
    with FaultProxy.to(postgresql_url) as proxy:
        fault = proxy.drop_request(re.compile(rb"^COMMIT$"))
        with pytest.raises(TimeoutError, match=r"0 turns met the fault at b'\^COMMIT\$'"):
            fault.wait(0.01)


def test_a_server_that_does_not_listen_is_a_reset() -> None:
    """As behind a load balancer, the client connects and is cut off."""
    for host in ("127.0.0.1", "/nowhere"):
        with FaultProxy(host, 1) as proxy:
            engine = create_engine(proxy.url("mysql+pymysql://root@example.invalid/"))
            with pytest.raises(DBAPIError):
                engine.connect()


def test_a_connection_that_gets_no_thread_is_a_reset(postgresql_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for what never comes, and the next client is served."""
    starts = iter([RuntimeError("can't start new thread")])
    start = threading.Thread.start

    def fail_once(self: threading.Thread) -> None:
        for error in starts:
            raise error
        start(self)

    with FaultProxy.to(postgresql_url) as proxy:
        monkeypatch.setattr("uow.testing._proxy._Link.start", fail_once)
        with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", proxy.port), 30) as client:
            client.recv(1)

        engine = create_engine(proxy.url(postgresql_url))
        with engine.connect() as connection:
            assert 1 == connection.execute(text("SELECT 1")).scalar_one()
        engine.dispose()


def test_nobody_listens_once_it_is_closed() -> None:
    """A client is refused then, and does not wait."""
    with FaultProxy("127.0.0.1", 1) as proxy:
        port = proxy.port

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_url_keeps_all_but_the_address() -> None:
    """Driver, user, database and options stay; a socket goes."""
    with FaultProxy("127.0.0.1", 1) as proxy:
        url = proxy.url("postgresql+psycopg://ada@/bank?host=/tmp/sockets&connect_timeout=3")
        port = proxy.port
    assert make_url(f"postgresql+psycopg://ada@127.0.0.1:{port}/bank?connect_timeout=3") == url


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_postgresql_messages_are_cut_wherever_they_are_split(size: int) -> None:
    """A message, and a turn, may come in any pieces."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (4 + len(body)).to_bytes(4) + body

    bound = b"\0s\0" + b"\0\1\0\0" + b"\0\2" + b"\xff\xff\xff\xff" + b"\0\0\0\5value" + b"\0\0"
    startup = (8).to_bytes(4) + (196608).to_bytes(4)
    query = message(b"Q", b"BEGIN\0")
    prepared = message(b"P", b"s\0COMMIT\0\0\0") + message(b"S", b"")
    executed = message(b"B", bound) + message(b"E", b"\0\0\0\0\0") + message(b"S", b"")
    data = startup + query + prepared + executed
    requests = _Postgresql()
    turns = [turn for at in range(0, len(data), size) for turn in requests.read(data[at : at + size])]

    assert [startup, query, prepared, executed] == [turn.data for turn in turns]
    assert [(), (b"BEGIN",), (), (b"COMMIT", b"", b"value")] == [turn.executes for turn in turns]
    assert [False, True, True, True] == [turn.awaits for turn in turns]


@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_mariadb_packets_are_cut_wherever_they_are_split(size: int) -> None:
    """A command of 16 MiB goes on in a second packet, and is one turn."""

    def packet(number: int, body: bytes) -> bytes:
        return len(body).to_bytes(3, "little") + bytes([number]) + body

    login, leave = packet(1, b"root"), packet(0, b"\x01")
    long = b"\x03" + b"x" * (0xFFFFFF - 1)
    command = packet(0, long) + packet(1, b"COMMIT")
    data = login + command + leave
    requests = _MariaDb()
    pieces = [data[:2], data[2:-1], data[-1:]] if size == 1000 else [data]
    turns = [turn for piece in pieces for turn in requests.read(piece)]

    assert [login, command, leave] == [turn.data for turn in turns]
    assert [(), (long[1:] + b"COMMIT",), ()] == [turn.executes for turn in turns]
    assert [False, True, False] == [turn.awaits for turn in turns]


def test_the_server_has_answered_when_the_command_is_complete() -> None:
    """A notice and a piece of an answer are not the answer."""
    notice = b"N\0\0\0\x05\0"
    assert not _Postgresql().is_answer(notice)
    assert not _Postgresql().is_answer(notice + b"C\0\0\0\x0bCOM")
    assert _Postgresql().is_answer(notice + b"C\0\0\0\x0bCOMMIT\0")
    assert not _MariaDb().is_answer(b"\x07\0\0\x01\0")
    assert _MariaDb().is_answer(b"\x07\0\0\x01\0\0\0\x02\0\0\0")
