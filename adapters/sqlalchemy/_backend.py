"""
What a database needs around a transaction, and where one is like the other.
"""

import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from uow import Options
from uow.errors import CommitOutcomeUnknown, ConfigurationError, ConnectionLost

from ._errors import translate, translate_connect

__all__ = ["Backend", "driver_of", "gone_error", "raw_of"]

_UNDO = "uow_undo"
"""In the ``info`` of a pooled connection: what undoes what a unit has set on it."""

_AUTOCOMMIT = ConfigurationError(
    "the engine is in AUTOCOMMIT, so there would be no transaction to roll back",
    "Create the engine without isolation_level='AUTOCOMMIT'.",
)


class Backend:
    """
    One engine, with what its database needs around a transaction. This base serves where nothing is special.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect = engine.dialect.name
        # Weak on both sides: an open unit that nobody uses any more must be collected, and say so.
        self.listening: weakref.WeakKeyDictionary[Connection, weakref.ref[Any]] = weakref.WeakKeyDictionary()
        self.touched: weakref.WeakSet[Connection] = weakref.WeakSet()
        on_connect = getattr(engine.dialect, "_on_connect_isolation_level", None)
        for level in (on_connect, engine.get_execution_options().get("isolation_level")):
            if level == "AUTOCOMMIT":
                raise _AUTOCOMMIT
        event.listen(engine, "handle_error", self._translate)
        event.listen(engine, "after_cursor_execute", self._after_statement)
        event.listen(engine, "commit", self._before_commit)
        event.listen(engine, "checkin", _checked_in)  # once for a pool, whichever engines share it

    def check(self, options: Options) -> None:
        """
        Raise what the database cannot do of what a unit asks for.

        Raises:
            ConfigurationError: An option is not to be had, or a level is not known.
        """
        if asked := options.asked():
            raise ConfigurationError(f"{self.dialect} takes no {', '.join(asked)} from a unit", "Leave it out.")

    def connect(self, engine: Engine, listener: Any, options: Options) -> Connection:
        """
        Check a connection of *engine* out and begin its transaction; *listener* is told of its errors.

        Raises:
            ConnectionUnavailable: There is none to be had.
        """
        try:
            connection = engine.connect()
        except (PoolTimeout, DBAPIError, OSError) as error:  # asyncpg lets the last through
            raise translate_connect(error, self.dialect) from (getattr(error, "orig", None) or error)
        try:
            self.listening[connection] = weakref.ref(listener)
            self.prepare(connection, options)
            connection.begin()
            self.begin(connection, options)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def prepare(self, connection: Connection, options: Options) -> None:
        """Set the driver up before the transaction begins."""
        if connection.dialect.detect_autocommit_setting(raw_of(connection)):
            raise _AUTOCOMMIT

    def begin(self, connection: Connection, options: Options) -> None:
        """Begin the transaction, where the driver does not do it by itself."""

    def confirm(self, connection: Connection, *, wrote: bool) -> None:
        """
        Raise unless the database is still in the transaction, and could commit it.

        Args:
            connection: The connection.

            wrote: Whether the unit wrote anything in it.
        """
        if not connection.in_transaction():
            raise gone_error(self.dialect)
        if connection.invalidated:
            raise ConnectionLost("the connection was thrown away")

    def gone(self, raw: Any) -> bool:
        """Tell whether the driver knows that its connection is in no transaction."""
        return False

    def commit(self, connection: Connection) -> None:
        """Send COMMIT where its answer must be looked at; otherwise SQLAlchemy sends it, right after this."""

    def release(self, connection: Connection) -> None:
        """Give the connection back."""
        self.listening.pop(connection, None)
        if connection in self.touched and not connection.closed and not connection.invalidated:
            connection.info.pop(_UNDO, None)
        connection.close()

    def touch(self, connection: Connection, undo: Callable[[ConnectionPoolEntry], None] | None = None) -> None:
        """
        Say, before something is set, how to *undo* it if the connection goes back to its pool past `release`.

        By default it is thrown away then.
        """
        self.touched.add(connection)
        connection.info[_UNDO] = undo or _throw_away

    def _listener(self, connection: Connection | None) -> Any:
        reference = None if connection is None else self.listening.get(connection)
        return None if reference is None else reference()

    def _after_statement(self, connection: Connection, *rest: object) -> None:
        listener = self._listener(connection)
        if listener is not None and self.gone(raw_of(connection)):
            listener.watcher.ended(gone_error(self.dialect))

    def _before_commit(self, connection: Connection) -> None:
        if self._listener(connection) is not None:
            self.commit(connection)

    def _translate(self, context: ExceptionContext) -> BaseException | None:
        listener = self._listener(context.connection)
        failure = context.sqlalchemy_exception or context.original_exception
        if listener is None:
            return None
        if not isinstance(failure, Exception):  # SQLAlchemy throws the connection away
            listener.failed(ConnectionLost(f"{type(failure).__name__} cut a statement off"))
            return None
        if not isinstance(failure, (DBAPIError, OSError)):
            return None
        error = translate(context.original_exception, self.dialect, disconnect=bool(context.is_disconnect))
        listener.failed(error)
        return error


def _throw_away(entry: ConnectionPoolEntry) -> None:
    entry.invalidate()


def _checked_in(raw: object, entry: ConnectionPoolEntry) -> None:
    """Undo what a unit had set, if its user closed the connection, or nobody uses the unit any more."""
    undo = entry.info.pop(_UNDO, None)
    if undo is not None:
        undo(entry)


def raw_of(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def driver_of(connection: Connection) -> Any:
    """Return the driver's own connection, without SQLAlchemy's adapter for an asynchronous one; detached ones too."""
    return connection.dialect.get_driver_connection(raw_of(connection))


def gone_error(dialect: str) -> CommitOutcomeUnknown:
    hint = " (CREATE TABLE and its like commit implicitly)" if dialect == "mariadb" else ""
    return CommitOutcomeUnknown(
        "the unit", f"the database is in no transaction any more; one ended it with a statement of its own{hint}"
    )
