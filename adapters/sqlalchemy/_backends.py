"""
Where databases differ in beginning, checking and ending a transaction.
"""

import weakref
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import StaticPool

from uow.errors import CommitOutcomeUnknown, ConfigurationError, DatabaseError

from ._errors import translate, translate_connect

__all__ = ["Backend", "backend_of"]

_AUTOCOMMIT = ConfigurationError(
    "the engine is in AUTOCOMMIT, so there would be no transaction to roll back",
    "Create the engine without isolation_level='AUTOCOMMIT'.",
)


_SHARED = ConfigurationError(
    "the pool gave out a connection on which another unit is at work, as it does for SQLite in memory",
    "End the other unit first, or use a file.",
)


class Backend:
    """
    One engine, with what its database needs around a transaction. This base serves where nothing is special.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect = engine.dialect.name
        # Weak on both sides: an open unit that nobody uses any more must be collected, and say so.
        self.listening: weakref.WeakKeyDictionary[Connection, weakref.ref[Any]] = weakref.WeakKeyDictionary()
        on_connect = getattr(engine.dialect, "_on_connect_isolation_level", None)
        for level in (on_connect, engine.get_execution_options().get("isolation_level")):
            if level == "AUTOCOMMIT":
                raise _AUTOCOMMIT
        event.listen(engine, "handle_error", self._translate)
        event.listen(engine, "after_cursor_execute", self._after_statement)
        event.listen(engine, "commit", self._before_commit)

    def connect(self, engine: Engine, listener: Any) -> Connection:
        """
        Check a connection of *engine* out and begin its transaction; *listener* is told of its errors.

        Raises:
            ConnectionUnavailable: There is none to be had.
        """
        try:
            connection = engine.connect()
        except (PoolTimeout, DBAPIError) as error:
            raise translate_connect(error, self.dialect) from (getattr(error, "orig", None) or error)
        try:
            self.listening[connection] = weakref.ref(listener)
            self.prepare(connection)
            connection.begin()
            self.begin(connection)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def prepare(self, connection: Connection) -> None:
        """Set the driver up before the transaction begins."""
        if connection.dialect.detect_autocommit_setting(_raw(connection)):
            raise _AUTOCOMMIT

    def begin(self, connection: Connection) -> None:
        """Begin the transaction, where the driver does not do it by itself."""

    def confirm(self, connection: Connection, *, wrote: bool) -> None:
        """
        Raise unless the database is still in the transaction, and could commit it.

        Args:
            connection: The connection.

            wrote: Whether the unit wrote anything in it.
        """
        if not connection.in_transaction():
            raise _gone(self.dialect)

    def gone(self, raw: Any) -> bool:
        """Tell whether the driver knows that its connection is in no transaction."""
        return False

    def commit(self, connection: Connection) -> None:
        """Send COMMIT where its answer must be looked at; otherwise SQLAlchemy sends it, right after this."""

    def release(self, connection: Connection) -> None:
        """Give the connection back."""
        self.listening.pop(connection, None)
        connection.close()

    def _listener(self, connection: Connection | None) -> Any:
        reference = None if connection is None else self.listening.get(connection)
        return None if reference is None else reference()

    def _after_statement(self, connection: Connection, *rest: object) -> None:
        listener = self._listener(connection)
        if listener is not None and self.gone(_raw(connection)):
            listener.watcher.ended(_gone(self.dialect))

    def _before_commit(self, connection: Connection) -> None:
        if self._listener(connection) is not None:
            self.commit(connection)

    def _translate(self, context: ExceptionContext) -> BaseException | None:
        listener = self._listener(context.connection)
        if listener is None or not isinstance(context.sqlalchemy_exception, DBAPIError):
            return None
        error = translate(context.original_exception, self.dialect, disconnect=bool(context.is_disconnect))
        listener.failed(error)
        return error


class PostgreSql(Backend):
    """
    PostgreSQL answers COMMIT of a failed transaction with ``ROLLBACK`` and no error; see its manual on COMMIT.
    """

    def confirm(self, connection: Connection, *, wrote: bool) -> None:
        """Look at the status that the server sent with its last answer; asks nothing."""
        super().confirm(connection, wrote=wrote)
        status = _raw(connection).info.transaction_status.name
        if status == "INERROR":
            detail = "PostgreSQL had aborted the transaction: a statement sent past the session failed"
            raise DatabaseError(detail, "25P02")
        if status == "IDLE" and wrote:
            raise _gone("postgresql")

    def gone(self, raw: Any) -> bool:
        """Tell by the status that came with the last answer."""
        idle: bool = raw.info.transaction_status.name == "IDLE"
        return idle

    def commit(self, connection: Connection) -> None:
        """Send COMMIT and look at the tag of the answer."""
        raw = _raw(connection)
        if raw.info.transaction_status.name == "IDLE":
            return
        try:
            with raw.cursor() as cursor:
                cursor.execute("COMMIT")
                tag = cursor.statusmessage
        except raw.Error as error:
            lost = connection.dialect.is_disconnect(error, raw, None)
            raise translate(error, "postgresql", disconnect=lost) from error
        if tag != "COMMIT":
            raise DatabaseError(f"PostgreSQL answered COMMIT with {tag}: nothing of it was kept", "25P02")


class MariaDb(Backend):
    """
    MariaDB ends a transaction by itself: at a deadlock, and before a statement such as CREATE TABLE.
    """

    def confirm(self, connection: Connection, *, wrote: bool) -> None:
        """Look at the status that the server sent with its last answer; ask only if that says no."""
        super().confirm(connection, wrote=wrote)
        raw = _raw(connection)
        in_transaction = 1  # SERVER_STATUS_IN_TRANS, MariaDB's manual on the OK packet
        if wrote and not raw.server_status & in_transaction:
            with raw.cursor() as cursor:
                cursor.execute("DO 0")  # the driver does not look at the status behind rows, as of INSERT … RETURNING
            if not raw.server_status & in_transaction:
                raise _gone("mariadb")


class Sqlite(Backend):
    """
    SQLite, with transactions that begin when the unit's do; the driver's own mode is put back afterwards.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.modes: weakref.WeakKeyDictionary[Connection, tuple[Any, Any]] = weakref.WeakKeyDictionary()

    def connect(self, engine: Engine, listener: Any) -> Connection:
        """Refuse a pool of one shared connection while it is in use: even to give it back would roll it back."""
        if isinstance(engine.pool, StaticPool) and any(not other.closed for other in self.listening):
            raise _SHARED
        return super().connect(engine, listener)

    def gone(self, raw: Any) -> bool:
        """Ask the library, which is in this process."""
        return not raw.in_transaction

    def prepare(self, connection: Connection) -> None:
        """Take transaction control from the driver and turn foreign keys on, which SQLite needs for each connection."""
        raw = _raw(connection)
        mode = (raw.isolation_level, getattr(raw, "autocommit", None))
        if raw.in_transaction and mode[1] is not False:
            raise _SHARED
        if mode[1] is not None:  # pragma: no cover - Python 3.12 and later
            raw.autocommit = True  # ends the transaction that mode False keeps open
            raw.autocommit = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL
        raw.isolation_level = None
        self.modes[connection] = mode
        if not connection.info.get("uow_foreign_keys"):
            raw.execute("PRAGMA foreign_keys = ON")
            connection.info["uow_foreign_keys"] = True

    def begin(self, connection: Connection) -> None:
        """Take the write lock at once: a later upgrade could fail with SQLITE_BUSY after work was done."""
        if not _raw(connection).in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def confirm(self, connection: Connection, *, wrote: bool) -> None:
        """Ask the library, which is in this process."""
        super().confirm(connection, wrote=wrote)
        raw = _raw(connection)
        try:
            in_transaction = raw.in_transaction
        except connection.dialect.loaded_dbapi.Error as error:
            raise translate(error, self.dialect, disconnect=True) from error
        if not in_transaction:
            raise _gone("sqlite")

    def release(self, connection: Connection) -> None:
        """Give the driver its mode back, then the connection."""
        mode = self.modes.pop(connection, None)
        try:
            if mode is not None and not connection.closed and not connection.invalidated:
                raw = _raw(connection)
                raw.rollback()  # a COMMIT that failed leaves it open, and to set the mode would commit it
                raw.isolation_level = mode[0]
                if mode[1] is not None:  # pragma: no cover - Python 3.12 and later
                    raw.autocommit = mode[1]
        finally:
            super().release(connection)


def _raw(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def _gone(dialect: str) -> CommitOutcomeUnknown:
    hint = " (CREATE TABLE and its like commit implicitly)" if dialect == "mariadb" else ""
    return CommitOutcomeUnknown(
        "the unit", f"the database is in no transaction any more; one ended it with a statement of its own{hint}"
    )


_BACKENDS: dict[str, type[Backend]] = {
    "postgresql": PostgreSql,
    "mysql": MariaDb,
    "mariadb": MariaDb,
    "sqlite": Sqlite,
}
_known: weakref.WeakKeyDictionary[Engine, Backend] = weakref.WeakKeyDictionary()


def backend_of(engine: Engine) -> Backend:
    """
    Return the backend of *engine*, made once for each.

    Raises:
        ConfigurationError: The engine cannot serve a unit.
    """
    backend = _known.get(engine)
    if backend is None:
        backend = _known[engine] = _BACKENDS.get(engine.dialect.name, Backend)(engine)
    return backend
