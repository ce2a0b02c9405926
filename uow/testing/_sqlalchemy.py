"""
The contract suite's bank on SQLAlchemy.
"""

from functools import partial
from typing import Any

from sqlalchemy import CheckConstraint, Column, Engine, ForeignKey, Integer, String, Table, event, text
from sqlalchemy.orm import registry

from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork

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
    A bank on the database that *engine* is for; its tables are made and dropped.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.dialect.name
        metadata.drop_all(engine)
        metadata.create_all(engine)
        self._statements: list[str] = []
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "commit", partial(self._log, "COMMIT"))
        event.listen(engine, "rollback", partial(self._log, "ROLLBACK"))

    @property
    def statements(self) -> list[str]:
        """What was sent so far."""
        return self._statements

    def bank(self, **options: Any) -> SqlBank:
        """Return a new unit on the engine."""
        return SqlBank(self.engine, **options)

    def idle(self) -> bool:
        """Tell whether the pool has all its connections back."""
        return self.engine.pool.checkedout() == 0  # type: ignore[attr-defined, no-any-return]

    def kill(self, bank: Bank) -> None:
        """End the session of *bank* from another one; SQLite has none, so its file handle is closed."""
        assert isinstance(bank, SqlBank)
        connection = bank.session.connection()
        if self.name == "sqlite":
            raw: Any = connection.connection.dbapi_connection
            raw.close()
            return
        if self.name == "postgresql":
            own, end = "SELECT pg_backend_pid()", "SELECT pg_terminate_backend({}, 5000)"
        else:
            own, end = "SELECT connection_id()", "KILL {}"
        number = connection.exec_driver_sql(own).scalar_one()
        with self.engine.connect() as other:
            other.execute(text(end.format(number)))

    def close(self) -> None:
        """Drop the tables."""
        metadata.drop_all(self.engine)
        self.engine.dispose()

    def _statement(self, connection: Any, cursor: Any, statement: str, *rest: object) -> None:
        self._log(statement)

    def _log(self, statement: str, *rest: object) -> None:
        self._statements.append(statement)
