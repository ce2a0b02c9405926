"""
What a database needs around a transaction, and where one is like the other.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from attrs import field, frozen, validators
from sqlalchemy import Connection, CursorResult, Engine, RootTransaction, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from uow import Options
from uow.errors import CommitOutcomeUnknown, ConfigurationError, ConnectionLost

from ._connection import UnitConnection
from ._errors import translate, translate_connect

__all__ = ["Backend", "Branch", "answered_by", "gone_error", "raw_of"]

_UNDO = "uow_undo"
"""In the ``info`` of a pooled connection: what undoes what a unit has set on it."""

_SAFE = validators.matches_re(r"[A-Za-z0-9_.-]+")

_AUTOCOMMIT = ConfigurationError(
    "the engine is in AUTOCOMMIT, so there would be no transaction to roll back",
    "Create the engine without isolation_level='AUTOCOMMIT'.",
)


@frozen
class Branch:
    """
    A branch of a distributed transaction; both parts are safe to be quoted.

    Args:
        id: The distributed transaction.

        name: What it calls this database.
    """

    id: str = field(validator=_SAFE)
    name: str = field(validator=_SAFE)


class Backend:
    """
    One engine, with what its database needs around a transaction. This base serves where nothing is special.
    """

    lets_wait = False
    """Whether the driver sends several control statements at once; see `UnitConnection.waits`."""

    def __init__(self, engine: Engine) -> None:
        self.dialect = engine.dialect.name
        on_connect = getattr(engine.dialect, "_on_connect_isolation_level", None)
        for level in (on_connect, engine.get_execution_options().get("isolation_level")):
            if level == "AUTOCOMMIT":
                raise _AUTOCOMMIT
        event.listen(engine, "handle_error", self._translate)
        event.listen(engine, "checkin", _checked_in)  # once for a pool, whichever engines share it

    def check(self, options: Options) -> None:
        """
        Raise what the database cannot do of what a unit asks for.

        Raises:
            ConfigurationError: An option is not to be had, or a level is not known.
        """
        if asked := options.asked():
            raise ConfigurationError(f"{self.dialect} takes no {', '.join(asked)} from a unit", "Leave it out.")

    def connect(self, engine: Engine, listener: Any, options: Options) -> UnitConnection:
        """
        Check a connection of *engine* out and begin its transaction; *listener* is told of its errors.

        Raises:
            ConnectionUnavailable: There is none to be had.
        """
        try:
            connection = UnitConnection(engine, self, listener)
        except (PoolTimeout, DBAPIError, OSError) as error:  # asyncpg lets the last through
            raise translate_connect(error, self.dialect) from (getattr(error, "orig", None) or error)
        try:
            connection.pooled = connection.connection
            connection.raw = connection.pooled.dbapi_connection
            connection.driver = connection.dialect.get_driver_connection(connection.raw)
            self.prepare(connection, options)
            connection.begin()
            connection.waits, connection.exposed = self.lets_wait, False
            self.begin(connection, options)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def prepare(self, connection: UnitConnection, options: Options) -> None:
        """Set the driver up before the transaction begins."""
        if connection.dialect.detect_autocommit_setting(connection.raw):
            raise _AUTOCOMMIT

    def begin(self, connection: UnitConnection, options: Options) -> None:
        """Begin the transaction, where the driver does not do it by itself."""

    def control(self, connection: UnitConnection, commands: Sequence[str]) -> None:
        """Send *commands* that begin or end savepoints; at the latest with the next statement."""
        connection.exec_driver_sql("; ".join(commands))

    def expose(self, connection: UnitConnection) -> None:
        """Send what waits for the next statement: the user has the connection now, and may pass by."""

    def confirm(self, connection: UnitConnection, *, wrote: bool) -> None:
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

    def gone(self, connection: UnitConnection) -> bool:
        """Tell whether the driver knows that its connection is in no transaction."""
        return False

    def commit(self, connection: UnitConnection, transaction: RootTransaction) -> None:
        """Commit; what waits and the listeners of the connection's commit come first."""
        connection.settle()
        transaction.commit()
        connection.note_end(transaction)

    def join(self, connection: UnitConnection, branch: Branch) -> None:
        """Let the transaction, in which nothing was done yet, be a branch of a distributed one."""

    def prepare_branch(self, connection: UnitConnection, branch: Branch, witness: str) -> None:
        """Execute *witness* in it and prepare it, in one round trip; the database must answer that it did."""
        raise ConfigurationError(f"{self.dialect} cannot prepare a transaction", "Let it be the one that decides.")

    def end_branch(self, connection: UnitConnection, branch: Branch, *, commit: bool) -> None:
        """End a branch that was prepared on this connection, which then is in no transaction."""

    def may_have_written(self, connection: UnitConnection) -> bool:
        """Tell whether statements that should only read have written; asked where the answer changes something."""
        return False

    def release(self, connection: UnitConnection) -> None:
        """Give the connection back."""
        connection.silence()
        if connection.touched and not connection.closed and not connection.invalidated:
            connection.pooled.info.pop(_UNDO, None)
        connection.close()

    def touch(self, connection: UnitConnection, undo: Callable[[ConnectionPoolEntry], None] | None = None) -> None:
        """
        Say, before something is set, how to *undo* it if the connection goes back to its pool past `release`.

        By default it is thrown away then.
        """
        connection.touched = True
        connection.pooled.info[_UNDO] = undo or _throw_away

    def after_statement(self, connection: UnitConnection, result: CursorResult[Any]) -> None:
        """Tell the unit if a statement ended its transaction."""
        if self.gone(connection) and (listener := connection.listener) is not None:
            listener.watcher.ended(gone_error(self.dialect))

    def _translate(self, context: ExceptionContext) -> BaseException | None:
        listener = _listener(context.connection)
        failure = context.sqlalchemy_exception or context.original_exception
        if listener is None:
            return None
        if not isinstance(failure, Exception):  # SQLAlchemy throws the connection away
            listener.failed(ConnectionLost(f"{type(failure).__name__} cut a statement off"))
            return None
        if not isinstance(failure, (DBAPIError, OSError)):
            return None
        error = translate(context.original_exception, self.dialect, disconnect=bool(context.is_disconnect))
        context.is_disconnect = isinstance(error, ConnectionLost)
        listener.failed(error)
        return error


def _listener(connection: Connection | None) -> Any:
    return connection.listener if isinstance(connection, UnitConnection) else None


def _throw_away(entry: ConnectionPoolEntry) -> None:
    entry.invalidate()


def _checked_in(raw: object, entry: ConnectionPoolEntry) -> None:
    """Undo what a unit had set, if its user closed the connection, or nobody uses the unit any more."""
    undo = entry.info.pop(_UNDO, None)
    if undo is not None:
        undo(entry)


@contextmanager
def answered_by(connection: UnitConnection) -> Generator[None]:
    """Translate what a driver raises that is used without SQLAlchemy."""
    raw, dialect = connection.raw, connection.dialect
    try:
        yield
    except Exception as error:  # asyncpg lets a TimeoutError through, which says as little as a lost connection
        told = isinstance(error, dialect.loaded_dbapi.Error) or hasattr(error, "sqlstate")
        answered = told and not dialect.is_disconnect(cast("Any", error), raw, None)
        raise translate(error, dialect.name, disconnect=not answered) from error


def raw_of(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def gone_error(dialect: str) -> CommitOutcomeUnknown:
    hint = " (CREATE TABLE and its like commit implicitly)" if dialect == "mariadb" else ""
    return CommitOutcomeUnknown(
        "the unit", f"the database is in no transaction any more; one ended it with a statement of its own{hint}"
    )
