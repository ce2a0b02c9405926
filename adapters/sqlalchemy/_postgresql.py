"""
What PostgreSQL needs around a transaction.
"""

import math
import weakref
from functools import cache
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.util import await_only

from uow import Options
from uow.errors import ConfigurationError, DatabaseError

from ._backend import Backend, driver_of, gone_error, raw_of
from ._errors import translate

__all__ = ["PostgreSql"]

_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
_TIMEOUTS = ("statement_timeout", "lock_timeout")
_LONGEST = 2**31 - 1

Mode = tuple[Any, Any, Any]
"""What a driver says in its next BEGIN: isolation level, read-only, deferrable."""


class PostgreSql(Backend):
    """
    PostgreSQL answers COMMIT of a failed transaction with ``ROLLBACK`` and no error; see its manual on COMMIT.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if engine.dialect.driver not in _DRIVERS:
            raise ConfigurationError(
                f"the answer to COMMIT cannot be looked at with the driver {engine.dialect.driver}",
                "Use postgresql+psycopg or postgresql+asyncpg.",
            )
        self.driver = _DRIVERS[engine.dialect.driver](engine)
        self.modes: weakref.WeakKeyDictionary[Connection, Mode] = weakref.WeakKeyDictionary()

    def check(self, options: Options) -> None:
        """Refuse a level that is not known; everything else is to be had."""
        if options.isolation not in (None, *_LEVELS):
            raise ConfigurationError(
                f"PostgreSQL has no isolation level {options.isolation!r}", f"Use one of {', '.join(_LEVELS)}."
            )

    def prepare(self, connection: Connection, options: Options) -> None:
        """Let the driver's BEGIN say what was asked for, which costs no statement."""
        super().prepare(connection, options)
        if options.isolation or options.read_only:
            self.touch(connection)
            mode = self.modes[connection] = self.driver.mode(connection)
            level = self.driver.level(connection, options.isolation) if options.isolation else mode[0]
            mode = (level, options.read_only or mode[1], options.deferrable or mode[2])
            self.driver.set_mode(connection, mode)

    def begin(self, connection: Connection, options: Options) -> None:
        """Set what holds for this transaction alone. A SELECT would do it too, but take the snapshot."""
        for name in _TIMEOUTS:
            if (seconds := getattr(options, name)) is not None:
                milliseconds = min(math.ceil(seconds * 1000), _LONGEST)
                connection.exec_driver_sql(f"SET LOCAL {name} = {milliseconds}")

    def confirm(self, connection: Connection, *, wrote: bool) -> None:
        """Look at the status that the server sent with its last answer; asks nothing."""
        super().confirm(connection, wrote=wrote)
        status = self.driver.status(raw_of(connection))
        if status == "INERROR":
            detail = "PostgreSQL had aborted the transaction: a statement sent past the session failed"
            raise DatabaseError(detail, "25P02")
        if status == "IDLE" and wrote:
            raise gone_error("postgresql")

    def gone(self, raw: Any) -> bool:
        """Tell by the status that came with the last answer."""
        return self.driver.status(raw) == "IDLE"

    def commit(self, connection: Connection) -> None:
        """Send COMMIT and look at the tag of the answer."""
        raw, dialect = raw_of(connection), connection.dialect
        if self.driver.status(raw) == "IDLE":
            return
        try:
            tag = self.driver.commit(connection)
        except Exception as error:  # asyncpg lets a TimeoutError through, which says as little as a lost connection
            answered = isinstance(error, dialect.loaded_dbapi.Error) and not dialect.is_disconnect(error, raw, None)
            raise translate(error, "postgresql", disconnect=not answered) from error
        if tag != "COMMIT":
            raise DatabaseError(f"PostgreSQL answered COMMIT with {tag}: nothing of it was kept", "25P02")

    def release(self, connection: Connection) -> None:
        """
        Give the driver its mode back, then the connection.

        SQLAlchemy would put its own idea of the defaults in, and make the next transaction READ WRITE on a server where
        they are read-only.
        """
        mode = self.modes.pop(connection, None)
        try:
            if mode is not None and not connection.closed and not connection.invalidated:
                raw_of(connection).rollback()
                self.driver.set_mode(connection, mode)
        finally:
            super().release(connection)


class _Driver(Protocol):
    def __init__(self, engine: Engine) -> None: ...

    def status(self, raw: Any) -> str:
        """Return the status that came with the last answer, in the words of libpq: IDLE, INTRANS, INERROR."""
        ...

    def commit(self, connection: Connection) -> str | None:
        """Send COMMIT and return the tag of the answer."""
        ...

    def level(self, connection: Connection, name: str) -> object:
        """Return what the driver calls an isolation level."""
        ...

    def mode(self, connection: Connection) -> Mode:
        """Return what the next BEGIN says."""
        ...

    def set_mode(self, connection: Connection, mode: Mode) -> None:
        """Set what the next BEGIN says."""
        ...


class _Psycopg:
    """
    Both faces of psycopg.
    """

    def __init__(self, engine: Engine) -> None: ...

    def status(self, raw: Any) -> str:
        name: str = raw.info.transaction_status.name
        return name

    def commit(self, connection: Connection) -> str | None:
        answer = driver_of(connection).execute("COMMIT")
        cursor = await_only(answer) if connection.dialect.is_async else answer
        tag: str | None = cursor.statusmessage
        return tag

    def level(self, connection: Connection, name: str) -> object:
        return connection.dialect.loaded_dbapi.IsolationLevel[name.replace(" ", "_")]

    def mode(self, connection: Connection) -> Mode:
        own = driver_of(connection)
        return own.isolation_level, own.read_only, own.deferrable

    def set_mode(self, connection: Connection, mode: Mode) -> None:
        raw = raw_of(connection)
        for set_, value in zip((raw.set_isolation_level, raw.set_read_only, raw.set_deferrable), mode, strict=True):
            set_(value)


class _Asyncpg:
    """
    asyncpg, which tells whether a transaction is open, but neither that it failed nor the tag that its own COMMIT met.
    """

    def __init__(self, engine: Engine) -> None:
        self.recording = _recording(engine.dialect.loaded_dbapi.asyncpg.Connection)
        event.listen(engine.dialect, "do_connect", _record_tags)

    def status(self, raw: Any) -> str:
        return "INTRANS" if raw.driver_connection.is_in_transaction() else "IDLE"

    def commit(self, connection: Connection) -> str | None:
        # asyncpg must send COMMIT itself, or its next transaction would be a savepoint. It does so with the public
        # execute() of its connection, whose class can be chosen: ours keeps what that returned. Connections that were
        # made before the engine served a unit, or in a way of the user's, have another class: there the server is
        # asked first, and refuses if the transaction failed.
        raw, own = raw_of(connection), driver_of(connection)
        if type(own) is not self.recording:  # its isinstance() is true of any connection
            raw.cursor().execute("SELECT")
            raw.commit()
            return "COMMIT"
        own.tag = None
        raw.commit()
        tag: str | None = own.tag
        assert tag is not None, "asyncpg sent COMMIT without its execute(), so the answer is not known"
        return tag

    def level(self, connection: Connection, name: str) -> object:
        return name.lower().replace(" ", "_")

    def mode(self, connection: Connection) -> Mode:
        raw = raw_of(connection)
        return raw.isolation_level, raw.readonly, raw.deferrable

    def set_mode(self, connection: Connection, mode: Mode) -> None:
        raw = raw_of(connection)
        raw.isolation_level, raw.readonly, raw.deferrable = mode


_DRIVERS: dict[str, type[_Driver]] = {"psycopg": _Psycopg, "asyncpg": _Asyncpg}


def _record_tags(dialect: Any, record: object, arguments: object, options: dict[str, Any]) -> None:
    options.setdefault("connection_class", _recording(dialect.loaded_dbapi.asyncpg.Connection))


@cache
def _recording(base: Any) -> Any:
    """Make a connection class of asyncpg's that keeps the tag of its last `execute()`."""

    class Recording(base):  # type: ignore[misc]
        tag: str | None

        async def execute(self, *args: Any, **options: Any) -> Any:
            self.tag = await base.execute(self, *args, **options)
            return self.tag

    return Recording
