"""
The contract suite's bank on SQLAlchemy.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import CheckConstraint, Column, Engine, ForeignKey, Integer, String, Table, event, text
from sqlalchemy.orm import registry

from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork, uow_metadata
from uow.errors import ConnectionLost, ConnectionUnavailable

from ._harness import Harness
from ._model import Account, Bank, Document, Line, Transfer

__all__ = ["SqlAlchemyHarness", "SqlBank", "metadata"]

_registry = registry()
metadata = _registry.metadata

accounts = Table(
    "accounts",
    metadata,
    Column("number", String(40), primary_key=True),
    Column("owner", String(40), nullable=False),
    Column("balance", Integer, nullable=False),
    Column("note", String(40)),
    CheckConstraint("balance >= -1000", name="balance_floor"),
)
transfers = Table(
    "transfers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("source", ForeignKey("accounts.number", name="transfer_source"), nullable=False),
    Column("amount", Integer, nullable=False),
)
documents = Table(
    "documents",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("title", String(40), nullable=False, unique=True),
    Column("version", Integer, nullable=False),
)
lines = Table(
    "lines",
    metadata,
    Column("order", String(40), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("text", String(40)),
)

_registry.map_imperatively(Account, accounts)
_registry.map_imperatively(Transfer, transfers)
_registry.map_imperatively(Document, documents, version_id_col=documents.c.version)
_registry.map_imperatively(Line, lines)


class SqlBank(SqlAlchemyUnitOfWork, Bank):
    """
    The bank on a database.
    """


class SqlAlchemyHarness(Harness):
    """
    A bank on the database that *engine* is for; its tables are made if they are not there, and emptied.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.dialect.name
        self._statements: list[str] = []
        self._hurried = False
        self._unanswered = False
        self._cut: Callable[[Any], None] | None = None
        metadata.create_all(engine)
        uow_metadata.create_all(engine)
        self._empty()
        self._listen(engine)

    @property
    def statements(self) -> list[str]:
        """What was sent so far."""
        return self._statements

    def bank(self, **options: Any) -> Bank:
        """Return a new unit on the engine."""
        return SqlBank(self.engine, **options)

    def idle(self) -> bool:
        """Tell whether the pool has all its connections back."""
        return self.engine.pool.checkedout() == 0  # type: ignore[attr-defined, no-any-return]

    def killer(self, bank: Bank) -> Callable[[], None]:
        """Return what ends the session of *bank* from another one; SQLite has none, so its file handle is closed."""
        session: Any = bank.session  # type: ignore[attr-defined]
        connection = session.connection()
        if self.name == "sqlite":
            return self._closer(connection)
        if self.name == "postgresql":
            own, end = "SELECT pg_backend_pid()", "SELECT pg_terminate_backend({}, 5000)"
        else:
            own, end = "SELECT connection_id()", "KILL {}"
        number = connection.exec_driver_sql(own).scalar_one()

        def kill() -> None:
            with self.engine.connect() as other:
                other.execute(text(end.format(number)))

        return kill

    def lose_answer(self, bank: Bank) -> None:
        """Commit past the unit, which then finds no transaction."""
        session: Any = bank.session  # type: ignore[attr-defined]
        session.connection().exec_driver_sql("COMMIT")

    def cut_commit(self, bank: Bank, *, kept: bool, by: BaseException | None = None, unanswered: bool = False) -> None:
        """Commit or not in front of SQLAlchemy, then end the session and raise as a driver would."""
        kill = self.killer(bank)
        session: Any = bank.session  # type: ignore[attr-defined]
        shown = session.connection()
        own = getattr(shown, "sync_connection", shown)

        def cut(connection: Any) -> None:
            if connection is not own:  # pragma: no cover - another unit's, in a test that has one meanwhile
                return
            self._cut = None
            if kept:
                connection.connection.dbapi_connection.commit()
            kill()
            self._unanswered = unanswered
            raise by or ConnectionLost("the connection was cut off")

        self._cut = cut

    def answer_again(self) -> None:
        """Let connections be checked out again."""
        self._unanswered = False

    def outcome_rows(self) -> int:
        """Count the rows of ``uow_outcome``."""
        with self.engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM uow_outcome")) or 0

    def hurry(self) -> None:
        """Let SQLite's driver say at once that the database is locked, instead of after five seconds."""
        self._hurried = self.name == "sqlite"

    def close(self) -> None:
        """Empty the tables."""
        self._empty()
        self.engine.dispose()

    def _closer(self, connection: Any) -> Callable[[], None]:
        """Return what closes the file handle behind *connection*."""
        close: Callable[[], None] = connection.connection.dbapi_connection.close
        return close

    def _empty(self) -> None:
        with self.engine.begin() as connection:
            for table in (*reversed(metadata.sorted_tables), *uow_metadata.sorted_tables):
                connection.execute(table.delete())

    def _listen(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "commit", self._commit)  # the first to hear of it: no unit was made yet
        event.listen(engine, "rollback", partial(self._log, "ROLLBACK"))
        event.listen(engine, "checkout", self._checkout)

    def _checkout(self, raw: Any, *rest: object) -> None:
        if self._unanswered:
            raise ConnectionUnavailable("the server was told not to answer")
        if self._hurried:
            raw.execute("PRAGMA busy_timeout = 0")

    def _statement(self, connection: Any, cursor: Any, statement: str, *rest: object) -> None:
        self._log(statement)

    def _commit(self, connection: Any) -> None:
        if self._cut is not None:
            self._cut(connection)
        self._log("COMMIT")

    def _log(self, statement: str, *rest: object) -> None:
        self._statements.append(statement)
