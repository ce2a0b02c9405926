"""
What MariaDB needs around a transaction.
"""

from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Any

from sqlalchemy import Connection, CursorResult, RootTransaction, event

from uow import Options
from uow.errors import ConfigurationError, DatabaseError

from ._backend import Backend, Branch, answered_by, gone_error
from ._connection import UnitConnection

__all__ = ["MariaDb"]

_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
_YEAR = 31_536_000  # the most seconds that the server counts
_IN_TRANSACTION = 1  # SERVER_STATUS_IN_TRANS, MariaDB's manual on the OK packet


class MariaDb(Backend):
    """
    MariaDB ends a transaction by itself: at a deadlock, and before a statement such as CREATE TABLE.
    """

    def check(self, options: Options) -> None:
        """
        Raise what MariaDB cannot do of what a unit asks for.

        Raises:
            ConfigurationError: A level that it does not know, deferrable, or a fraction of a second to wait for a lock.
        """
        if options.isolation is not None and options.isolation not in _LEVELS:
            raise ConfigurationError(
                f"MariaDB has no isolation level {options.isolation!r}", f"Take one of {', '.join(_LEVELS)}."
            )
        if options.deferrable:
            raise ConfigurationError("MariaDB has no deferrable transactions", "Leave deferrable out.")
        if options.lock_timeout is not None and options.lock_timeout % 1:
            raise ConfigurationError(
                f"lock_timeout is {options.lock_timeout!r}, and MariaDB waits whole seconds for a lock",
                "Pass a whole number of seconds.",
            )

    def begin(self, connection: UnitConnection, options: Options) -> None:
        """
        Say what is asked for in variables of the session, and keep what they were in others.

        START TRANSACTION READ ONLY would let CREATE TABLE pass, which commits that transaction first.
        """
        if variables := _variables(options):
            changes = (f"@uow_{name} = @@SESSION.{name}, SESSION {name} = {value}" for name, value in variables.items())
            self.touch(connection)
            _set(connection, changes)
            connection.kept = variables

    def confirm(self, connection: UnitConnection, *, wrote: bool) -> None:
        """Look at the status that the server sent with its last answer; ask only if that says no."""
        super().confirm(connection, wrote=wrote)
        if wrote and not _in_transaction(connection):
            # Drivers do not look at the status behind rows, as of INSERT … RETURNING.
            connection.exec_driver_sql("DO 0")
            if not _in_transaction(connection):
                raise gone_error("mariadb")

    def commit(self, connection: UnitConnection, transaction: RootTransaction) -> None:
        """End a branch that was not prepared; COMMIT is refused there."""
        if connection.branch is None:
            super().commit(connection, transaction)
            return
        connection.settle()
        connection.announce_commit()
        xid = _xid(connection.take_branch())
        try:
            self._send(connection, f"XA END {xid}", f"XA COMMIT {xid} ONE PHASE")
        except BaseException:
            connection.invalidate()  # which ends a branch that was not prepared, whatever became of it
            raise
        connection.end_committed()

    def _before_rollback(self, connection: UnitConnection) -> None:
        """End a branch that was not prepared; after a deadlock the server does not want to hear of its end."""
        if not connection.invalidated and (branch := connection.take_branch()) is not None:
            with suppress(DatabaseError):
                self._send(connection, f"XA END {_xid(branch)}")
            self._send(connection, f"XA ROLLBACK {_xid(branch)}")

    # https://mariadb.com/kb/en/xa-transactions/
    def join(self, connection: UnitConnection, branch: Branch) -> None:
        """Begin with XA START, without which nothing can be prepared later."""
        self.touch(connection)
        self._send(connection, f"XA START {_xid(branch)}")
        connection.branch = branch
        event.listen(connection, "rollback", self._before_rollback)

    def prepare_branch(self, connection: UnitConnection, branch: Branch, witness: str) -> None:
        """Send all as one statement, which stops at the first error: `rollback` can undo wherever that is."""
        xid = _xid(branch)
        self._send(connection, f"BEGIN NOT ATOMIC {witness}; XA END {xid}; XA PREPARE {xid}; END")
        connection.branch = None

    def end_branch(self, connection: UnitConnection, branch: Branch, *, commit: bool) -> None:
        """Send XA COMMIT or XA ROLLBACK; only this connection can, as long as it lives."""
        self._send(connection, f"XA {'COMMIT' if commit else 'ROLLBACK'} {_xid(branch)}")

    def _send(self, connection: UnitConnection, *statements: str) -> None:
        """Send what is no business of those who listen to statements."""
        with answered_by(connection), closing(connection.raw.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)

    def release(self, connection: UnitConnection) -> None:
        """Put the session's variables back, then give the connection back; throw it away where that fails."""
        connection.silence()
        variables: dict[str, str] = connection.kept or {}
        connection.kept = None
        try:
            if variables and not connection.closed and not connection.invalidated:
                with suppress(Exception):
                    _set(connection, (f"SESSION {name} = @uow_{name}" for name in variables))
        finally:
            super().release(connection)

    def after_statement(self, connection: UnitConnection, result: CursorResult[Any]) -> None:
        """Notice a statement that ended the transaction, even if the next one begins another."""
        context: Any = result.context
        if context.cursor.description is not None:  # drivers do not look at the status behind rows
            if context.is_crud:
                connection.begun = True
        elif _in_transaction(connection):
            connection.begun = True
        elif connection.begun and (listener := connection.listener) is not None:
            listener.watcher.ended(gone_error("mariadb"))


def _xid(branch: Branch) -> str:
    return f"'{branch.id}','{branch.name}'"


def _set(connection: Connection, changes: Iterable[str]) -> None:
    try:
        connection.exec_driver_sql("SET " + ", ".join(changes))
    except BaseException:
        connection.invalidate()
        raise


def _variables(options: Options) -> dict[str, str]:
    """Return the session's variables that say what is asked for, with their values in SQL."""
    variables: dict[str, str] = {}
    if options.isolation is not None:
        variables["tx_isolation"] = f"'{options.isolation.replace(' ', '-')}'"
    if options.read_only:
        variables["tx_read_only"] = "1"
    if options.statement_timeout is not None:  # 0 would stand for no limit
        variables["max_statement_time"] = f"{min(max(options.statement_timeout, 1e-6), _YEAR):.6f}"
    if options.lock_timeout is not None:
        for name in ("innodb_lock_wait_timeout", "lock_wait_timeout"):  # the latter for a table that somebody alters
            variables[name] = f"{min(options.lock_timeout, _YEAR):.0f}"
    return variables


def _in_transaction(connection: UnitConnection) -> bool:
    return bool(connection.driver.server_status & _IN_TRANSACTION)
