"""
The connection of a unit: SQLAlchemy's own, with savepoints that cost as little as they can.
"""

import weakref
from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Engine, RootTransaction
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

__all__ = ["UnitConnection"]

_CONTROL: dict[type, str] = {
    SavepointClause: "SAVEPOINT",
    ReleaseSavepointClause: "RELEASE SAVEPOINT",
    RollbackToSavepointClause: "ROLLBACK TO SAVEPOINT",
}


class UnitConnection(Connection):
    """
    A connection that sends SAVEPOINT and its like as text: SQLAlchemy would compile each of them anew.

    Args:
        engine: The engine.

        backend: What its database needs; told of every statement.

        listener: The unit's transaction. Weak: an open unit that nobody uses any more must be collected, and say so.
    """

    def __init__(self, engine: Engine, backend: Any, listener: Any) -> None:
        self._backend = backend
        self._listener: Callable[[], Any] = weakref.ref(listener)
        self.pooled: Any = None
        """What the pool gave, for us: who asks for `connection` has more to be done."""
        self.raw: Any = None
        """What SQLAlchemy takes for the driver's connection."""
        self.driver: Any = None
        """The driver's connection."""
        self.waits = False
        """Whether SAVEPOINT and RELEASE wait for the next statement; where each would be a round trip of its own."""
        self.waiting: list[str] = []
        """What waits."""
        self._savepoints: list[str] = []
        self._standing: str | None = None  # rolled back to, and nothing sent since: it serves for the next scope
        self.kept: Any = None
        """What the backend puts back when the connection goes back to its pool."""
        self.branch: Any = None
        """The branch of a distributed transaction that was begun on it and not prepared, where that must be ended."""
        self.rides = False
        """Whether the driver's cursors keep what waited for the next statement; see `_pipelining`."""
        self.pipelined = False
        """Whether it costs no round trip there."""
        self.exposed = True
        """Whether nothing may wait: somebody passes by, or it is not in the unit's transaction yet, or any more."""
        self._passed_by = False
        self._ended: RootTransaction | None = None
        self.touched = False
        """Whether the backend has set anything on it."""
        self.begun = False
        """Whether the server was seen to be in the transaction, where the backend keeps that in mind."""
        super().__init__(engine)  # which may ask for the connection, to set an option of the engine's on it

    @property
    def listener(self) -> Any:
        """The unit's transaction; None if nobody uses it any more, or it gave the connection back."""
        return self._listener()

    def silence(self) -> None:
        """Tell the unit nothing from now on, and send nothing of it any more."""
        self._listener = _nobody
        self.forget()

    @property
    def connection(self) -> PoolProxiedConnection:
        """What the pool gave. Whoever asks for it may pass by this object."""
        if not self.exposed:
            self.expose()
        self._ended = None
        return super().connection

    def expose(self) -> None:
        """Let nothing wait from now on: somebody passes by the session, or by this object."""
        self.waits, self.exposed, self._passed_by = False, True, True
        self.catch_up()
        self._backend.expose(self)

    def execute(self, statement: Any, *args: Any, **kwargs: Any) -> CursorResult[Any]:
        """Execute a statement; a savepoint's as text."""
        if type(statement) in _CONTROL:
            self._control(statement)
            return cast("CursorResult[Any]", None)  # for which no dialect asks
        self.catch_up()
        result = super().execute(statement, *args, **kwargs)
        self._backend.after_statement(self, result)
        return result

    def exec_driver_sql(self, statement: str, *args: Any, **kwargs: Any) -> CursorResult[Any]:
        """Execute a string."""
        self.catch_up()
        result = super().exec_driver_sql(statement, *args, **kwargs)
        self._backend.after_statement(self, result)
        return result

    def catch_up(self) -> None:
        """Send what waits, in one go."""
        self._standing = None
        if self.waiting:
            commands, self.waiting = self.waiting, []
            self._backend.control(self, commands)

    def take_branch(self) -> Any:
        """Return the branch that is to be ended, which nobody else needs to do then."""
        branch, self.branch = self.branch, None
        return branch

    def announce_commit(self) -> None:
        """Tell those who listen to the commit of the connection."""
        self.dispatch.commit(self)

    def end_committed(self) -> None:
        """End SQLAlchemy's transaction, which the database has committed by now: another COMMIT would be empty."""
        transaction = self.get_transaction()
        assert transaction is not None
        self.engine.logger.info("COMMIT")
        transaction.is_active = False  # so that nothing is sent
        transaction.close()
        self.note_end(transaction)

    def note_end(self, transaction: RootTransaction) -> None:
        """Remember that *transaction* was ended, and nothing sent since, so far as anybody can know."""
        if not self._passed_by:
            self._ended = transaction

    def close(self) -> None:
        """Give the connection back. What was ended a moment ago need not be rolled back by the pool."""
        ended, self._ended = self._ended, None
        if self._transaction is None:
            self._transaction = ended  # as if it were ended now: SQLAlchemy tells the pool then
        super().close()

    def settle(self) -> None:
        """Leave unsent what waits before a COMMIT, which stands for every RELEASE; what is pipelined costs nothing."""
        if self.pipelined:
            self.catch_up()
        self.forget()

    def forget(self) -> None:
        """Leave unsent what waits: the end of the transaction, which comes now, stands for it."""
        self.waiting.clear()
        self.exposed = True

    def _control(self, clause: Any) -> None:
        """
        Send what *clause* says of a savepoint, or let it wait for the next statement and travel before it.

        Savepoints are named by depth, so that drivers prepare the same few statements once.
        """
        begins, ends = isinstance(clause, SavepointClause), isinstance(clause, RollbackToSavepointClause)
        open_ = self._savepoints
        depth = len(open_) if begins else len(open_) - 1 - open_[::-1].index(clause.ident)  # mostly the last one
        name = f"uow_{depth + 1}"
        if not (begins and name == self._standing):
            self.waiting.append(f"{_CONTROL[type(clause)]} {name}")
            if not self.waits or ends:  # what is rolled back gives its locks free, and finds out if nothing is there
                self.catch_up()
        self._savepoints[depth:] = [clause.ident] if begins else []
        self._standing = name if ends else None


def _nobody() -> None:
    """Stand for a weak reference to nothing."""
