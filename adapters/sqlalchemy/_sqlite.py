"""
What SQLite needs around a transaction.
"""

import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from attrs import Factory, frozen
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool
from sqlalchemy.util import await_

from uow import Options
from uow.errors import ConfigurationError

from ._backend import Backend, gone_error
from ._connection import UnitConnection
from ._errors import translate

__all__ = ["Sqlite"]

R = TypeVar("R")

_SHARED = ConfigurationError(
    "the pool gave out a connection on which another unit is at work, as it does for SQLite in memory",
    "End the other unit first, or use a file.",
)
_LONGEST = 2**31 - 1  # milliseconds


@frozen
class _Before:
    """What the driver's connection was like when a unit took it over."""

    isolation_level: str | None
    autocommit: Any
    pragmas: dict[str, object] = Factory(dict[str, object])


class Sqlite(Backend):
    """
    SQLite, with transactions that begin when the unit's do; what was the driver's own is put back afterwards.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        # A pool's only connection may be in use already. Weak: nobody may use that unit any more.
        self.shared: weakref.WeakSet[Connection] = weakref.WeakSet()

    def check(self, options: Options) -> None:
        """
        Raise what SQLite cannot do of what a unit asks for.

        Raises:
            ConfigurationError: Another level than SERIALIZABLE, deferrable, or a limit to the time of a statement.
        """
        if options.isolation not in (None, "SERIALIZABLE"):
            raise ConfigurationError(
                f"SQLite has no isolation level {options.isolation!r}", "Take SERIALIZABLE, which every unit has there."
            )
        if options.deferrable:
            raise ConfigurationError(
                "deferrable has no effect on SQLite, where a read-only unit waits for nobody", "Leave deferrable out."
            )
        if options.statement_timeout is not None:
            raise ConfigurationError(
                "SQLite has no statement_timeout: it runs in this process, and nobody watches it",
                "Leave it out; lock_timeout limits the wait for other units.",
            )

    def connect(self, engine: Engine, listener: Any, options: Options) -> UnitConnection:
        """Refuse a pool of one shared connection while it is in use: even to give it back would roll it back."""
        if not isinstance(engine.pool, StaticPool):
            return super().connect(engine, listener, options)
        if any(not other.closed for other in self.shared):
            raise _SHARED
        connection = super().connect(engine, listener, options)
        self.shared.add(connection)
        return connection

    def gone(self, connection: UnitConnection) -> bool:
        """Ask the library, which is in this process."""
        return not connection.driver.in_transaction

    def prepare(self, connection: UnitConnection, options: Options) -> None:
        """Take transaction control from the driver and turn foreign keys on, which SQLite needs for each connection."""
        info = connection.pooled.info
        before = _call(connection, _take_over, "uow_foreign_keys" not in info)
        if before is None:
            raise _SHARED
        connection.kept = before
        self.touch(connection, partial(_put_back, before=before))
        info["uow_foreign_keys"] = True
        if options.lock_timeout is not None:
            milliseconds = math.ceil(min(options.lock_timeout * 1000, _LONGEST))
            before.pragmas["busy_timeout"] = _call(connection, _set, "busy_timeout", milliseconds)

    def begin(self, connection: UnitConnection, options: Options) -> None:
        """Take the write lock at once: a later upgrade could fail with SQLITE_BUSY after work was done."""
        if self.gone(connection):
            self._send(connection, "BEGIN" if options.read_only else "BEGIN IMMEDIATE")
        if options.read_only:
            connection.kept.pragmas["query_only"] = _call(connection, _set, "query_only", 1)

    def _send(self, connection: UnitConnection, statement: str) -> None:
        """Send what takes no parameters to the driver itself: SQLAlchemy would make a cursor and a result for it."""
        try:
            _run(connection.driver, _execute, statement)
        except connection.dialect.loaded_dbapi.Error as error:
            failure = translate(error, self.dialect)
            connection.listener.failed(failure)
            raise failure from error

    def confirm(self, connection: UnitConnection, *, wrote: bool) -> None:
        """Ask the library, which is in this process; aiosqlite answers for a closed connection with a ValueError."""
        super().confirm(connection, wrote=wrote)
        try:
            in_transaction = not self.gone(connection)
        except (connection.dialect.loaded_dbapi.Error, ValueError) as error:
            raise translate(error, self.dialect, disconnect=True) from error
        if not in_transaction:
            raise gone_error("sqlite")

    def release(self, connection: UnitConnection) -> None:
        """Give the driver back what was its own, then the connection; throw it away where that fails."""
        before, connection.kept = connection.kept, None
        try:
            if before is not None and not connection.closed and not connection.invalidated:
                with suppress(Exception):
                    _call(connection, _give_back, before)
        finally:
            super().release(connection)

    def _translate(self, context: ExceptionContext) -> BaseException | None:
        """Close what a connection that is thrown away was at: a traceback may keep it, and it keeps the file locked."""
        if context.is_disconnect and context.execution_context is not None:
            with suppress(Exception):
                context.execution_context.cursor.close()
        return super()._translate(context)


def _put_back(entry: ConnectionPoolEntry, before: _Before) -> None:
    """Undo without throwing the connection away, with which a database in memory would go."""
    with suppress(Exception):
        _call(entry, _give_back, before)


def _call(owner: UnitConnection | ConnectionPoolEntry, function: Callable[..., R], *args: object) -> R:
    """Call *function* with sqlite3's connection, in its thread if it has one; throw it away where that fails."""
    driver: Any = owner.driver if isinstance(owner, UnitConnection) else owner.driver_connection
    try:
        return _run(driver, function, *args)
    except BaseException:
        owner.invalidate()
        raise


def _run(driver: Any, function: Callable[..., R], *args: object) -> R:
    if hasattr(driver, "_execute"):
        result: R = await_(driver._execute(function, driver._conn, *args))
        return result
    return function(driver, *args)


def _execute(raw: Any, statement: str) -> None:
    raw.execute(statement).close()


def _take_over(raw: Any, foreign_keys: bool) -> _Before | None:
    """Take transaction control from the driver, unless a transaction is under way; check *foreign_keys* from now on."""
    before = _Before(raw.isolation_level, getattr(raw, "autocommit", None))
    if raw.in_transaction and before.autocommit is not False:
        return None
    if before.autocommit is not None:  # pragma: no cover - Python 3.12 and later
        raw.autocommit = True  # ends the transaction that mode False keeps open
        raw.autocommit = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL
    raw.isolation_level = None
    if foreign_keys:
        _set(raw, "foreign_keys", 1)
    return before


def _give_back(raw: Any, before: _Before) -> None:
    if raw.in_transaction:  # a COMMIT that failed leaves it open, and to set the mode would commit it
        raw.rollback()
    for name, value in before.pragmas.items():
        _set(raw, name, value)
    raw.isolation_level = before.isolation_level
    if before.autocommit is not None:  # pragma: no cover - Python 3.12 and later
        raw.autocommit = before.autocommit


def _set(raw: Any, pragma: str, value: object) -> object:
    """Set a PRAGMA, and return what it was."""
    was: object = raw.execute(f"PRAGMA {pragma}").fetchone()[0]
    raw.execute(f"PRAGMA {pragma} = {value}").close()
    return was
