"""
What became of a COMMIT whose answer was lost, and the keys that units were done under: the table ``uow_outcome``.
"""

import asyncio
import logging
import math
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar, cast

from attrs import frozen
from sqlalchemy import Connection, Engine, delete, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.util import await_only

from uow import KEPT, Claim, Outcome
from uow.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionUnavailable,
    DatabaseError,
    LockTimeout,
    UnitOfWorkError,
)

from ._errors import translate, translate_connect
from ._tables import outcomes

__all__ = [
    "Ledger",
    "SqlOutcomes",
    "answered",
    "aware",
    "brief",
    "connected",
    "ledger_of",
    "pause",
    "reported",
    "table_demanded",
    "time_at",
]

logger = logging.getLogger("uow")

_COLUMNS = ("id", "key", "outcome", "decided_at", "expires_at", "session", "branches")
_PAUSE = 0.1
_BATCH = 100
_MISSING = ("42P01", 1146)  # PostgreSQL's undefined_table, MariaDB's ER_NO_SUCH_TABLE


# ------------------------------------------------------------------------------------------------------ the statements


class Ledger:
    """
    The statements on the table, in the words of one database; this base speaks SQLite's.

    A unit inserts its token with ``C`` in its own transaction. Who wants to know what became of it does not look, but
    inserts the same token with ``A``: that waits for a unit on its way, and whoever comes first wins by primary key.
    """

    modes: ClassVar[tuple[Outcome, ...]] = ("row", "none")
    now: ClassVar[str] = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    later: ClassVar[str] = "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+{} seconds')"
    """The time so many seconds from now."""
    seconds: ClassVar[str] = "(julianday('now') - 2440587.5) * 86400.0"
    """The time in seconds since 1970."""
    session: ClassVar[str] = "NULL"
    """The number of this session."""
    conflict: ClassVar[str] = "ON CONFLICT ({}) DO UPDATE SET id = uow_outcome.id"
    """What leaves a row alone that has the same value in a column, and returns it."""
    hurry: ClassVar[str] = ""
    """What lets the next statement wait for a lock only shortly."""

    def __init__(self) -> None:
        self._claim = text(f"{self._insert('C', ':key')} {self.conflict.format('key')} RETURNING id, decided_at")
        self._fence = text(f"{self.hurry}{self._insert('A')} {self.conflict.format('id')} RETURNING outcome")
        self._mark = text(self._insert("C"))
        self._decide = text(self._insert("C", branches=":branches", source=f"WHERE {self.seconds} < :deadline"))
        self._clock = text(f"SELECT {self.seconds}")

    def _insert(self, outcome: str, key: str = "NULL", source: str = "WHERE true", branches: str = "NULL") -> str:
        expires = self.later.format(int(KEPT.total_seconds()))
        values = f":id, {key}, '{outcome}', {self.now}, {expires}, {self.session}, {branches}"
        return f"INSERT INTO uow_outcome (id, {self.quoted_key}, {', '.join(_COLUMNS[2:])}) SELECT {values} {source}"

    quoted_key: ClassVar[str] = "key"

    def claim(self, connection: Connection, key: str, token: str) -> Claim | None:
        """Take a key; return who has it."""
        with table_demanded():
            first, moment = connection.execute(self._claim, {"id": token, "key": key}).one()
        return None if first == token else Claim(first, aware(moment))

    def mark(self, connection: Connection, outcome: Outcome, token: str) -> str:
        """Leave the token in the transaction of a unit, and return it."""
        with table_demanded():
            connection.execute(self._mark, {"id": token})
        return token

    def witness(self, id: str) -> str:
        """
        Return what leaves in a branch of a distributed transaction what shows later that it was committed.

        It is text, to travel with PREPARE; the *id* is a `Branch`'s, which is safe to be quoted.
        """
        return f"INSERT INTO uow_branch (id, at, session) VALUES ('{id}', {self.now}, {self.session})"

    def clock(self, connection: Connection) -> float:
        """Return what time it is for the database, in seconds since 1970."""
        return float(connection.execute(self._clock).scalar_one())

    def decide(self, connection: Connection, id: str, branches: Sequence[str], deadline: float) -> bool:
        """
        Leave in the last agent's transaction that a distributed one is committed; False if it is past the *deadline*.

        Raises:
            UniqueViolation: Somebody asked what became of it, and was told that it was aborted.
        """
        told = {"id": id, "branches": ",".join(branches), "deadline": deadline}
        with table_demanded():
            return connection.execute(self._decide, told).rowcount == 1

    def settle(self, connection: Connection, token: str) -> bool:
        """
        Tell whether the unit with that token was committed, and fence it if not.

        Raises:
            LockTimeout: It may still be on its way.
        """
        return bool(connection.execute(self._fence, {"id": token}).scalar_one() == "C")

    def hang_up(self, connection: Connection, token: str) -> None:
        """End the session of a unit on its way whose client is gone: it does nothing and holds its locks."""


class PostgreSqlLedger(Ledger):
    """
    The statements in PostgreSQL's words. A lock on the token, taken with the insert, shows whose session it is.
    """

    modes = ("row", "xid", "none")
    now = "clock_timestamp()"
    later = "clock_timestamp() + interval '{} seconds'"
    session = "pg_backend_pid()"
    seconds = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"

    def __init__(self) -> None:
        super().__init__()
        locked = "FROM pg_advisory_xact_lock(hashtextextended(:id, 0))"
        durable = "set_config('synchronous_commit', 'on', true)"
        self._mark = text(self._insert("C", source=locked))
        self._fence = text(f"{self._insert('A', source=locked)} {self.conflict.format('id')} RETURNING outcome")
        in_time = f"{locked}, {durable} WHERE {self.seconds} < :deadline"
        self._decide = text(self._insert("C", branches=":branches", source=in_time))

    def mark(self, connection: Connection, outcome: Outcome, token: str) -> str:
        """Leave the token, or make one of the transaction's number, which the server knows anyway."""
        if outcome == "row":
            return super().mark(connection, outcome, token)
        number, server = connection.execute(_NUMBER).one()
        return f"xid.{number}.{server}.{token}"

    def settle(self, connection: Connection, token: str) -> bool:
        """Fence the row, or ask what became of the number."""
        if not token.startswith("xid."):
            connection.exec_driver_sql(_HURRY)
            return super().settle(connection, token)
        _, number, server, _ = token.split(".")
        if number == "none":  # nothing was written, so nothing is done twice
            return False
        if connection.execute(_SERVER).scalar_one() != server:
            raise CommitOutcomeUnknown("the unit", "the server was started anew since, and may count from elsewhere")
        status = connection.execute(_STATUS, {"number": number}).scalar_one()
        if status == "in progress":
            connection.exec_driver_sql("SELECT pg_sleep(0.5)")
            status = connection.execute(_STATUS, {"number": number}).scalar_one()
        if status == "in progress":
            raise LockTimeout(f"the transaction {number} is still in progress")
        if status is None:
            raise CommitOutcomeUnknown("the unit", f"the server does not remember the transaction {number} any more")
        return bool(status == "committed")

    def hang_up(self, connection: Connection, token: str) -> None:
        """End the session that holds the lock, or has the number, if it waits for its client."""
        if token.startswith("xid."):
            connection.execute(_END_BY_NUMBER, {"number": token.split(".")[1]})
        else:
            connection.execute(_END_BY_TOKEN, {"id": token})


# That a transaction is aborted must be as durable as what others do because of it.
_HURRY = "SELECT set_config('lock_timeout', '500ms', true), set_config('synchronous_commit', 'on', true)"

# https://www.postgresql.org/docs/current/functions-info.html on pg_xact_status; a number counts on one timeline of one
# server only, and after a crash of it may be given again. A server that goes on after the crash of one of its processes
# keeps the time of its start, but resets its statistics, as after any crash (on monitoring statistics there).
_SERVER = text(
    "SELECT concat_ws('-', system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),"
    " (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,"
    " (extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::bigint) FROM pg_control_system()"
)
_NUMBER = text(f"SELECT coalesce(pg_current_xact_id_if_assigned()::text, 'none'), ({_SERVER.text})")
_STATUS = text("SELECT pg_xact_status(CAST(CAST(:number AS text) AS xid8))")
_END = (
    "SELECT pg_terminate_backend(activity.pid, 1000) FROM pg_stat_activity activity"
    " WHERE activity.datname = current_database() AND activity.state LIKE 'idle in transaction%' AND "
)
_END_BY_NUMBER = text(f"{_END} backend_xid = CAST(CAST(CAST(:number AS text) AS xid8) AS xid)")
_END_BY_TOKEN = text(
    f"{_END} pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    " AND ((classid::bigint << 32) | objid::bigint) = hashtextextended(:id, 0))"
)


class MariaDbLedger(Ledger):
    """
    The statements in MariaDB's words. A row that is not committed shows a dirty read whose session it is.
    """

    now = "UTC_TIMESTAMP(6)"
    later = "UTC_TIMESTAMP(6) + INTERVAL {} SECOND"
    session = "CONNECTION_ID()"
    seconds = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6"
    conflict = "ON DUPLICATE KEY UPDATE id = uow_outcome.id"
    hurry = "SET STATEMENT innodb_lock_wait_timeout = 1 FOR "
    quoted_key = "`key`"

    def hang_up(self, connection: Connection, token: str) -> None:
        """End the session that wrote the row, if it waits for its client."""
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
        session = connection.execute(_WRITER, {"id": token}).scalar_one_or_none()
        if session is not None:
            connection.exec_driver_sql(f"KILL CONNECTION {session:d}")


# The server numbers its sessions from 1 again when it starts; a row that is older than that is not theirs.
_WRITER = text(
    "SELECT process.id FROM uow_outcome JOIN information_schema.processlist process ON process.id = session"
    " WHERE uow_outcome.id = :id AND process.command = 'Sleep' AND decided_at > UTC_TIMESTAMP() - INTERVAL"
    " (SELECT variable_value + 1 FROM information_schema.global_status WHERE variable_name = 'UPTIME') SECOND"
)

_LEDGERS = {"postgresql": PostgreSqlLedger(), "mysql": MariaDbLedger(), "mariadb": MariaDbLedger()}
_SQLITE = Ledger()


def ledger_of(on: Connection | Engine) -> Ledger:
    """Return the statements for the database that *on* is for."""
    return _LEDGERS.get(on.dialect.name, _SQLITE)


def aware(moment: Any) -> datetime:
    """Return what a driver made of a moment in UTC."""
    made = datetime.fromisoformat(moment) if isinstance(moment, str) else cast("datetime", moment)
    return made if made.tzinfo else made.replace(tzinfo=UTC)


@contextmanager
def table_demanded() -> Generator[None]:
    """Say what to do about a table of ours that is not there."""
    try:
        yield
    except DatabaseError as error:
        raise _explained(error) from error.__cause__


def _explained(error: DatabaseError) -> UnitOfWorkError:
    """Return what to do about a table of ours that is not there, and any other error as it is."""
    missing = error.code in _MISSING or "no such table: " in error.detail
    if not missing or "uow_" not in error.detail:
        return error
    return ConfigurationError(
        f"a table of uow_metadata is not there ({error.detail})",
        "Create it with uow.adapters.sqlalchemy.uow_metadata.create_all(engine), or add that to your migrations.",
    )


# --------------------------------------------------------------------------------------------------- outside of a unit


@frozen
class SqlOutcomes:
    """
    A database that is asked what became of a unit.

    Args:
        engine: The engine.
    """

    engine: Engine

    @property
    def modes(self) -> tuple[Outcome, ...]:
        """The ways to find out that the database has."""
        return ledger_of(self.engine).modes

    def settle(self, token: str, timeout: float) -> bool:
        """Tell whether the unit with *token* was committed; try until the database answers, or time is up."""
        ledger, deadline = ledger_of(self.engine), time.monotonic() + timeout
        while True:
            try:
                with brief(self.engine) as connection:
                    return ledger.settle(connection, token)
            except DatabaseError as error:
                passing = error.transient or isinstance(error, ConnectionUnavailable)
                if not passing or time.monotonic() >= deadline:
                    raise
                in_the_way = isinstance(error, LockTimeout)
            try:
                if in_the_way:
                    with brief(self.engine) as connection:
                        ledger.hang_up(connection, token)
            except DatabaseError as error:
                logger.warning("The session that %s waits for could not be ended: %s", token, error)
            pause(self.engine, _PAUSE)


@contextmanager
def brief(engine: Engine) -> Generator[Connection]:
    """
    Give a connection in a short transaction that is no unit's, and commit it.

    Raises:
        DatabaseError: What the driver said, translated.
    """
    with connected(engine) as connection, reported(engine), connection.begin():
        yield connection


def connected(engine: Engine) -> Connection:
    """Return a connection from the pool; ConnectionUnavailable if there is none to be had."""
    try:
        return engine.connect()
    except (PoolTimeout, DBAPIError, OSError) as error:  # asyncpg lets the last through
        raise translate_connect(error, engine.dialect.name) from error


@contextmanager
def reported(engine: Engine) -> Generator[None]:
    """Raise what the driver says, translated."""
    try:
        yield
    except (DBAPIError, OSError) as error:
        lost = not isinstance(error, DBAPIError) or error.connection_invalidated
        original = error if isinstance(error, OSError) else error.orig or error
        raise _explained(translate(original, engine.dialect.name, disconnect=lost)) from error


def pause(engine: Engine, seconds: float) -> None:
    """Wait, and let others go on."""
    if engine.dialect.is_async:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


# ----------------------------------------------------------------------------------------------------------- the clock

_REMEMBERED = 60.0
_clocks: weakref.WeakKeyDictionary[Engine, tuple[float, float]] = weakref.WeakKeyDictionary()


def time_at(connection: Connection) -> float:
    """
    Return what time it is by the database's clock, in seconds since 1970, or a moment before.

    It is asked once a minute; between, this machine counts.
    """
    told, at = _clocks.get(connection.engine, (0.0, -math.inf))
    if time.monotonic() - at > _REMEMBERED:
        told, at = ledger_of(connection).clock(connection), time.monotonic()  # in this order, so that it is no later
        _clocks[connection.engine] = told, at
    return told + (time.monotonic() - at)


# ----------------------------------------------------------------------------------------------------- to be forgotten

_mutex = threading.Lock()
_answered: weakref.WeakKeyDictionary[Engine, list[str]] = weakref.WeakKeyDictionary()


def answered(engine: Engine, token: str) -> None:
    """
    Take note that a COMMIT was answered, so that nobody will ask for its token; remove the rows, a hundred at a time.

    What is left when the process ends is removed when it has expired.
    """
    with _mutex:
        tokens = _answered.setdefault(engine, [])
        tokens.append(token)
        if len(tokens) < _BATCH:
            return
        _answered[engine] = []
    try:
        with brief(engine) as connection:
            connection.execute(delete(outcomes).where(outcomes.c.id.in_(tokens)))
    except UnitOfWorkError as error:
        logger.warning("Rows of uow_outcome that nobody needs were left, to be removed later: %s", error)
