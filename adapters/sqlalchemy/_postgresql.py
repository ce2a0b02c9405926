"""
What PostgreSQL needs around a transaction.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Protocol

from attrs import frozen
from sqlalchemy import CursorResult, Engine, RootTransaction, event
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only

from uow import Options
from uow.errors import ConfigurationError, ConnectionLost, DatabaseError

from ._backend import Backend, Branch, answered_by, gone_error
from ._connection import UnitConnection
from ._pipelining import PIPELINE, Rider, begin_of, drop, ride, serve, supported, take_joined, waiting

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
        self.lets_wait = True
        psycopg = engine.dialect.driver == "psycopg"
        self.pipelines: bool = psycopg and engine.get_execution_options().get(PIPELINE, True) and supported()

    def check(self, options: Options) -> None:
        """Refuse a level that is not known; everything else is to be had."""
        if options.isolation not in (None, *_LEVELS):
            raise ConfigurationError(
                f"PostgreSQL has no isolation level {options.isolation!r}", f"Use one of {', '.join(_LEVELS)}."
            )

    def prepare(self, connection: UnitConnection, options: Options) -> None:
        """Let the driver's BEGIN say what was asked for, which costs no statement."""
        super().prepare(connection, options)
        rides = connection.rides = self.driver.lets_ride(connection, pipeline=self.pipelines)
        connection.pipelined = rides and self.pipelines
        if connection.pipelined:
            self.touch(connection, partial(_drop, connection.driver))
        elif rides:
            self.touch(connection)
            connection.raw.set_autocommit(True)  # psycopg would send a BEGIN of its own, and wait
        elif options.isolation or options.read_only:
            self.touch(connection)
            mode = connection.kept = self.driver.mode(connection)
            level = self.driver.level(connection, options.isolation) if options.isolation else mode[0]
            mode = (level, options.read_only or mode[1], options.deferrable or mode[2])
            self.driver.set_mode(connection, mode)

    def begin(self, connection: UnitConnection, options: Options) -> None:
        """Set what holds for this transaction alone. A SELECT would do it too, but take the snapshot."""
        if connection.rides:
            ride(connection.driver, begin_of(connection.driver, options))
        for name in _TIMEOUTS:
            if (seconds := getattr(options, name)) is not None:
                milliseconds = min(math.ceil(seconds * 1000), _LONGEST)
                connection.waiting.append(f"SET LOCAL {name} = {milliseconds}")
        if not connection.waits:
            connection.catch_up()

    def control(self, connection: UnitConnection, commands: Sequence[str]) -> None:
        """Let commands ride with the next statement, if the driver can do that and everybody passes by here."""
        if not connection.rides or connection.exposed:
            self.driver.control(connection, commands)
            return
        for command in commands:
            connection.exec_driver_sql(Rider(command))

    def expose(self, connection: UnitConnection) -> None:
        """Send what waits."""
        if connection.rides and waiting(connection.driver):
            connection.exec_driver_sql("")

    def confirm(self, connection: UnitConnection, *, wrote: bool) -> None:
        """Look at the status that the server sent with its last answer; asks nothing."""
        super().confirm(connection, wrote=wrote)
        status = self.driver.status(connection)
        if status == "INERROR" and any(command.startswith("ROLLBACK") for command in waiting(connection.driver)):
            self.expose(connection)
            status = self.driver.status(connection)
        if status == "INERROR":
            detail = "PostgreSQL had aborted the transaction: a statement sent past the session failed"
            raise DatabaseError(detail, "25P02")
        if status == "IDLE" and wrote:
            raise gone_error("postgresql")

    def gone(self, connection: UnitConnection) -> bool:
        """Tell by the status that came with the last answer."""
        return self.driver.status(connection) == "IDLE"

    def after_statement(self, connection: UnitConnection, result: CursorResult[Any]) -> None:
        """Look at the answer, unless none was waited for."""
        if not (connection.rides and waiting(connection.driver)):
            super().after_statement(connection, result)

    def commit(self, connection: UnitConnection, transaction: RootTransaction) -> None:
        """Send COMMIT and look at the tag of the answer."""
        connection.settle()
        connection.announce_commit()
        if self.driver.status(connection) != "IDLE":
            self._end(connection, ["COMMIT"], "COMMIT")
        connection.end_committed()

    def prepare_branch(self, connection: UnitConnection, branch: Branch, witness: str) -> None:
        """Send PREPARE TRANSACTION and look at the tag; the name in the gid keeps it unique in the whole cluster."""
        connection.settle()
        statements = [witness, f"PREPARE TRANSACTION {_gid(branch)}"]
        if connection.pipelined:
            ride(connection.driver, statements.pop(0))
        self._end(connection, statements, "PREPARE TRANSACTION")

    def end_branch(self, connection: UnitConnection, branch: Branch, *, commit: bool) -> None:
        """Send COMMIT PREPARED or ROLLBACK PREPARED, which may not be in a transaction."""
        with answered_by(connection):
            self.driver.send_alone(connection, f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED {_gid(branch)}")

    def may_have_written(self, connection: UnitConnection) -> bool:
        """Ask whether the transaction has a number: a SELECT may call a function that writes."""
        return bool(connection.exec_driver_sql("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").scalar_one())

    def _end(self, connection: UnitConnection, statements: Sequence[str], expected: str) -> None:
        """End the transaction with *statements*; one that failed is answered with ROLLBACK and no error."""
        whole = "; ".join([*self.driver.take_waiting(connection), *statements])
        with answered_by(connection):
            tag = self.driver.end(connection, whole)
        if tag is None:
            raise ConnectionLost(f"nobody waited for the answer to {expected}: the connection is in a pipeline")
        if tag != expected:
            raise DatabaseError(f"PostgreSQL answered {expected} with {tag}: nothing of it was kept", "25P02")

    def release(self, connection: UnitConnection) -> None:
        """
        Give the driver its mode back, then the connection.

        SQLAlchemy would put its own idea of the defaults in, and make the next transaction READ WRITE on a server where
        they are read-only.
        """
        mode, connection.kept = connection.kept, None
        rode, connection.rides = connection.rides, False
        try:
            if rode and not connection.closed and not connection.invalidated:
                drop(connection.driver)
                if self.driver.status(connection) != "IDLE":
                    connection.raw.rollback()
                if not connection.pipelined:
                    connection.raw.set_autocommit(False)
            if mode is not None and not connection.closed and not connection.invalidated:
                connection.raw.rollback()
                self.driver.set_mode(connection, mode)
        except BaseException:  # a cancellation, say: nobody may have it as it is
            connection.invalidate()
            raise
        finally:
            super().release(connection)


def _drop(own: object, entry: ConnectionPoolEntry) -> None:
    drop(own)  # which the entry has no more if it was invalidated


def _gid(branch: Branch) -> str:
    return f"'{branch.id}/{branch.name}'"


class _Driver(Protocol):
    def __init__(self, engine: Engine) -> None: ...

    def lets_ride(self, connection: UnitConnection, *, pipeline: bool) -> bool:
        """Let the cursors keep what waits for the next statement, if they can."""
        ...

    def control(self, connection: UnitConnection, commands: Sequence[str]) -> None:
        """Send *commands* that begin or end savepoints."""
        ...

    def take_waiting(self, connection: UnitConnection) -> Sequence[str]:
        """Return what must be one text with the end of the transaction, which does not stand for it."""
        ...

    def status(self, connection: UnitConnection) -> str:
        """Return the status that came with the last answer, in the words of libpq: IDLE, INTRANS, INERROR."""
        ...

    def end(self, connection: UnitConnection, statement: str) -> str | None:
        """Send *statement*, which ends the transaction, and return the tag of the answer; of several, the last one."""
        ...

    def send_alone(self, connection: UnitConnection, statement: str) -> None:
        """Send *statement* outside of any transaction."""
        ...

    def level(self, connection: UnitConnection, name: str) -> object:
        """Return what the driver calls an isolation level."""
        ...

    def mode(self, connection: UnitConnection) -> Mode:
        """Return what the next BEGIN says."""
        ...

    def set_mode(self, connection: UnitConnection, mode: Mode) -> None:
        """Set what the next BEGIN says."""
        ...


class _Psycopg:
    """
    Both faces of psycopg.
    """

    def __init__(self, engine: Engine) -> None:
        self.statuses: dict[int, str] = {
            int(status): status.name for status in engine.dialect.loaded_dbapi.pq.TransactionStatus
        }

    def lets_ride(self, connection: UnitConnection, *, pipeline: bool) -> bool:
        return serve(connection.driver, pipeline=pipeline)

    def control(self, connection: UnitConnection, commands: Sequence[str]) -> None:
        connection.exec_driver_sql("; ".join(commands))

    def take_waiting(self, connection: UnitConnection) -> Sequence[str]:
        return take_joined(connection.driver)

    def status(self, connection: UnitConnection) -> str:
        return self.statuses[connection.driver.pgconn.transaction_status]

    def end(self, connection: UnitConnection, statement: str) -> str | None:
        own = connection.driver
        threshold, own.prepare_threshold = own.prepare_threshold, None  # ROLLBACK TO in it would cost all prepared ones
        try:
            return self._send(connection, statement)
        finally:
            own.prepare_threshold = threshold

    def send_alone(self, connection: UnitConnection, statement: str) -> None:
        connection.raw.set_autocommit(True)
        self._send(connection, statement)
        one_text = connection.rides and not connection.pipelined
        connection.raw.set_autocommit(one_text)  # where it failed, the connection is thrown away

    def _send(self, connection: UnitConnection, statement: str) -> str | None:
        answer = connection.driver.execute(statement)
        cursor = await_only(answer) if connection.dialect.is_async else answer
        while cursor.nextset():
            pass
        tag: str | None = cursor.statusmessage
        return tag

    def level(self, connection: UnitConnection, name: str) -> object:
        return connection.dialect.loaded_dbapi.IsolationLevel[name.replace(" ", "_")]

    def mode(self, connection: UnitConnection) -> Mode:
        own = connection.driver
        return own.isolation_level, own.read_only, own.deferrable

    def set_mode(self, connection: UnitConnection, mode: Mode) -> None:
        raw = connection.raw
        for set_, value in zip((raw.set_isolation_level, raw.set_read_only, raw.set_deferrable), mode, strict=True):
            set_(value)


class _Asyncpg:
    """
    asyncpg, which tells whether a transaction is open, but neither that it failed nor the tag that its own COMMIT met.
    """

    def __init__(self, engine: Engine) -> None:
        self.recording = _recording(engine.dialect.loaded_dbapi.asyncpg.Connection)
        event.listen(engine.dialect, "do_connect", _record_tags)

    def lets_ride(self, connection: UnitConnection, *, pipeline: bool) -> bool:
        return False

    def control(self, connection: UnitConnection, commands: Sequence[str]) -> None:
        own = connection.driver
        if type(own) is not self.recording:  # its isinstance() is true of any connection
            for command in commands:
                connection.exec_driver_sql(command)
            return
        own.commands = "; ".join(commands)
        try:
            connection.exec_driver_sql(own.commands, execution_options={"stream_results": False})
        finally:
            own.commands, own.sent = None, False

    def take_waiting(self, connection: UnitConnection) -> Sequence[str]:
        return ()

    def status(self, connection: UnitConnection) -> str:
        return "INTRANS" if connection.driver.is_in_transaction() else "IDLE"

    def end(self, connection: UnitConnection, statement: str) -> str | None:
        # asyncpg must send COMMIT itself, or its next transaction would be a savepoint. It does so with the public
        # execute() of its connection, whose class can be chosen: ours can send another statement instead, and keeps
        # what that returned. Connections that were made before the engine served a unit, or in a way of the user's,
        # have another class: there the server is asked first, and refuses if the transaction failed; asyncpg's COMMIT
        # after PREPARE TRANSACTION is one too many, about which the server warns it.
        raw, own = connection.raw, connection.driver
        if type(own) is not self.recording:
            commits = statement == "COMMIT"
            answer: str = await_only(own.execute("SELECT" if commits else statement))
            raw.commit()
            return "COMMIT" if commits else answer
        own.tag, own.instead = None, statement
        try:
            try:
                raw.commit()
            finally:
                own.instead = None
        except Exception:
            if own.is_in_transaction():  # SQLAlchemy takes it for ended, and would send no ROLLBACK
                await_only(own.execute("ROLLBACK"))
            raise
        tag: str | None = own.tag
        assert tag is not None, "asyncpg sent COMMIT without its execute(), so the answer is not known"
        return tag

    def send_alone(self, connection: UnitConnection, statement: str) -> None:
        await_only(connection.driver.execute(statement))

    def level(self, connection: UnitConnection, name: str) -> object:
        return name.lower().replace(" ", "_")

    def mode(self, connection: UnitConnection) -> Mode:
        raw = connection.raw
        return raw.isolation_level, raw.readonly, raw.deferrable

    def set_mode(self, connection: UnitConnection, mode: Mode) -> None:
        raw = connection.raw
        raw.isolation_level, raw.readonly, raw.deferrable = mode


_DRIVERS: dict[str, type[_Driver]] = {"psycopg": _Psycopg, "asyncpg": _Asyncpg}


def _record_tags(dialect: Any, record: object, arguments: object, options: dict[str, Any]) -> None:
    options.setdefault("connection_class", _recording(dialect.loaded_dbapi.asyncpg.Connection))


@cache
def _recording(base: Any) -> Any:
    """
    Make a connection class of asyncpg's that keeps the tag of its last `execute()`, and can send something else.

    Several commands, which nobody can prepare, it sends as they are; with BEGIN, if asyncpg begins a transaction first.
    """

    class Recording(base):  # type: ignore[misc]
        tag: str | None
        instead: str | None = None
        commands: str | None = None
        sent = False

        async def execute(self, query: str, *args: Any, **options: Any) -> Any:
            query, self.instead = self.instead or query, None
            begins = self.commands is not None and not self.sent and query.startswith("BEGIN")
            if begins:
                query, self.sent = f"{query} {self.commands}", True
            try:
                self.tag = await base.execute(self, query, *args, **options)
            except Exception:
                if begins:  # the server may be in a transaction then, which asyncpg would not let anybody end
                    self.terminate()
                raise
            return self.tag

        async def prepare(self, query: str, **options: Any) -> Any:
            if self.commands is not None and self.commands in query:  # a listener may have added a comment
                return _Several(self, query)
            return await base.prepare(self, query, **options)

    return Recording


@frozen
class _Several:
    """
    Several commands in the place of a statement that is prepared; SQLAlchemy keeps it for the next time.
    """

    own: Any
    text: str

    def get_attributes(self) -> Sequence[Any]:
        return ()

    async def fetch(self) -> Sequence[Any]:
        if not self.own.sent:
            await self.own.execute(self.text)
        return ()

    def get_statusmsg(self) -> str:
        return ""
