"""
What MariaDB needs around a transaction.
"""

import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine

from uow import Options
from uow.errors import ConfigurationError

from ._backend import Backend, driver_of, gone_error

__all__ = ["MariaDb"]

_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
_YEAR = 31_536_000  # the most seconds that the server counts
_IN_TRANSACTION = 1  # SERVER_STATUS_IN_TRANS, MariaDB's manual on the OK packet


class MariaDb(Backend):
    """
    MariaDB ends a transaction by itself: at a deadlock, and before a statement such as CREATE TABLE.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.changed: weakref.WeakKeyDictionary[Connection, dict[str, str]] = weakref.WeakKeyDictionary()
        self.begun: weakref.WeakSet[Connection] = weakref.WeakSet()

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

    def begin(self, connection: Connection, options: Options) -> None:
        """
        Say what is asked for in variables of the session, and keep what they were in others.

        START TRANSACTION READ ONLY would let CREATE TABLE pass, which commits that transaction first.
        """
        if variables := _variables(options):
            changes = (f"@uow_{name} = @@SESSION.{name}, SESSION {name} = {value}" for name, value in variables.items())
            self.touch(connection)
            _set(connection, changes)
            self.changed[connection] = variables

    def confirm(self, connection: Connection, *, wrote: bool) -> None:
        """Look at the status that the server sent with its last answer; ask only if that says no."""
        super().confirm(connection, wrote=wrote)
        if wrote and not _in_transaction(connection):
            # Drivers do not look at the status behind rows, as of INSERT … RETURNING.
            connection.exec_driver_sql("DO 0")
            if not _in_transaction(connection):
                raise gone_error("mariadb")

    def release(self, connection: Connection) -> None:
        """Put the session's variables back, then give the connection back; throw it away where that fails."""
        self.listening.pop(connection, None)
        variables = self.changed.pop(connection, {})
        try:
            if variables and not connection.closed and not connection.invalidated:
                with suppress(Exception):
                    _set(connection, (f"SESSION {name} = @uow_{name}" for name in variables))
        finally:
            super().release(connection)

    def _after_statement(self, connection: Connection, *rest: Any) -> None:
        """Notice a statement that ended the transaction, even if the next one begins another."""
        listener = self._listener(connection)
        if listener is None:
            return
        cursor, _, _, context, _ = rest
        if cursor.description is not None:  # drivers do not look at the status behind rows
            if context.is_crud:
                self.begun.add(connection)
        elif _in_transaction(connection):
            self.begun.add(connection)
        elif connection in self.begun:
            listener.watcher.ended(gone_error("mariadb"))


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


def _in_transaction(connection: Connection) -> bool:
    return bool(driver_of(connection).server_status & _IN_TRANSACTION)
