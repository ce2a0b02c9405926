"""
A database of distributed transactions, asked from outside a unit: its prepared branches, decisions and witnesses.
"""

import re
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, ClassVar

from attrs import field, frozen
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    and_,
    delete,
    insert,
    literal_column,
    or_,
    select,
    text,
    update,
)

from uow import KEPT, Decision, Finished, Heuristic, Prepared, demand_name, id_prefix
from uow.errors import ConfigurationError, DatabaseError, UniqueViolation

from ._backend import raw_of
from ._outcomes import SqlOutcomes, aware, brief, connected, ledger_of, reported
from ._tables import branches, heuristics, outcomes

__all__ = ["SqlResource"]

_MARGIN = timedelta(hours=1)
"""How long an expired row is kept all the same."""
_BATCH = 500

Listed = tuple[str, datetime | None]
"""The id of a prepared branch, and since when."""


# ------------------------------------------------------------------------------------------------------ the statements


class Manager:
    """
    What a database does with prepared branches, in its own words; this base is for SQLite, which has none.
    """

    refusals: ClassVar[Collection[str | int]] = ()
    """What it answers when a branch cannot be ended, for it is not known, or not to be had now."""

    def rank(self, connection: Connection) -> int:
        """Tell how well the database can be the last agent."""
        return 0

    def demand_ready(self, connection: Connection, *, prepares: bool) -> None:
        """Raise what stands in the way, but for missing tables."""
        if prepares:
            raise ConfigurationError(
                "SQLite cannot prepare a transaction", "Let it be the only one of the group that cannot: it decides."
            )
        if connection.exec_driver_sql("PRAGMA synchronous").scalar_one() < 2:
            raise ConfigurationError(
                "SQLite may lose what it committed: its pragma synchronous is below FULL",
                "Send PRAGMA synchronous = FULL on each connection of the engine, or leave the default.",
            )

    def listed(self, connection: Connection, name: str) -> list[Listed]:
        """Return the branches that are prepared under that name, of whatever domain."""
        return []

    def ending(self, id: str, name: str, *, commit: bool) -> str | None:
        """Return the statement that ends a prepared branch, outside of any transaction."""
        return None

    def disown(self, connection: Connection, id: str) -> None:
        """End the session that a prepared branch belongs to, if it waits for its client."""


# https://www.postgresql.org/docs/current/sql-prepare-transaction.html
class PostgreSqlManager(Manager):
    """
    PostgreSQL's words. A prepared branch belongs to no session there.
    """

    refusals = ("42704", "55000")  # undefined_object; "is busy": somebody else is ending it at this moment

    def rank(self, connection: Connection) -> int:
        """Look whether two-phase commit is switched on."""
        return 0 if _setting(connection, "max_prepared_transactions") == "0" else 1

    def demand_ready(self, connection: Connection, *, prepares: bool) -> None:
        """Demand two-phase commit, and that the disk is waited for; synchronous_commit the unit sets itself."""
        if prepares and not self.rank(connection):
            raise ConfigurationError(
                "PostgreSQL cannot prepare a transaction: max_prepared_transactions is 0",
                "Set it in postgresql.conf to as many as there are connections, and restart the server.",
            )
        if _setting(connection, "fsync") == "off" and _setting(connection, _THROWAWAY) != "on":
            raise ConfigurationError(
                "PostgreSQL may lose what it committed: fsync is off",
                f"Set fsync = on in postgresql.conf; on a server for tests alone, set {_THROWAWAY} = on beside it.",
            )

    def listed(self, connection: Connection, name: str) -> list[Listed]:
        """Leave out those of other databases of the server."""
        gids = [(gid.rpartition("/"), since) for gid, since in connection.exec_driver_sql(_PREPARED)]
        return [(id, since) for (id, _, suffix), since in gids if suffix == name]

    def ending(self, id: str, name: str, *, commit: bool) -> str | None:
        """Return COMMIT PREPARED, or ROLLBACK PREPARED."""
        gid = f"{id}/{name}".replace("'", "''")
        return f"{_verb(commit)} PREPARED '{gid}'"


_THROWAWAY = "uow.throwaway"
_PREPARED = "SELECT gid, prepared FROM pg_prepared_xacts WHERE database = current_database()"


def _setting(connection: Connection, name: str) -> Any:
    return connection.execute(text("SELECT current_setting(:name, true)"), {"name": name}).scalar_one()


def _verb(commit: bool) -> str:
    return "COMMIT" if commit else "ROLLBACK"


# https://mariadb.com/kb/en/xa-transactions/
class MariaDbManager(Manager):
    """
    MariaDB's words. A prepared branch belongs to the session that prepared it, until that one ends.
    """

    refusals = (1397, 1402)  # XAER_NOTA, though it may be listed; XA_RBROLLBACK: it is gone with this answer

    def rank(self, connection: Connection) -> int:
        """It can always prepare, and is last to decide."""
        return 2

    def demand_ready(self, connection: Connection, *, prepares: bool) -> None:
        """Demand a server on which a prepared transaction stays, and what was committed, too."""
        dialect: Any = connection.dialect
        if not dialect.is_mariadb or dialect.server_version_info < (10, 5):
            raise ConfigurationError(
                "the server loses what was prepared when its session ends, as MariaDB before 10.5 and MySQL may do",
                "Use MariaDB 10.5 or newer.",
            )
        settings: dict[str, str] = dict(map(tuple, connection.exec_driver_sql(_SETTINGS)))
        for name, value in _DURABLE.items():
            if (now := settings.get(name, value)) != value:
                raise ConfigurationError(
                    f"MariaDB may lose, or divide, what it committed: {name} is {now}",
                    f"Set {name} = {value} in the server's configuration.",
                )

    def listed(self, connection: Connection, name: str) -> list[Listed]:
        """
        Read the xids; the server does not tell since when, nor in which of its databases.

        Another one may have the same name there. Ours has left its witness here, which a dirty read shows.
        """
        xids = [_XID.fullmatch(row.data) for row in connection.exec_driver_sql("XA RECOVER FORMAT='SQL'")]
        pairs = [(_read(xid[1], xid[2]), _read(xid[3], xid[4])) for xid in xids if xid]
        ids = [gtrid for gtrid, bqual in pairs if bqual == name and gtrid.isascii()]
        if not ids:
            return []
        connection.exec_driver_sql(_DIRTY)
        return [(id, None) for id in connection.scalars(select(branches.c.id).where(branches.c.id.in_(ids)))]

    def ending(self, id: str, name: str, *, commit: bool) -> str | None:
        """Return XA COMMIT, or XA ROLLBACK."""
        return f"XA {_verb(commit)} X'{id.encode().hex()}',X'{name.encode().hex()}'"

    def disown(self, connection: Connection, id: str) -> None:
        """Find the session in the witness that the branch wrote, by a dirty read."""
        connection.exec_driver_sql(_DIRTY)
        session = connection.execute(_OWNER, {"id": id}).scalar_one_or_none()
        if session is not None:
            connection.exec_driver_sql(f"KILL CONNECTION {session:d}")


_DURABLE = {"innodb_flush_log_at_trx_commit": "1", "wsrep_on": "OFF"}
_SETTINGS = f"SHOW GLOBAL VARIABLES WHERE variable_name IN {tuple(_DURABLE)}"
_DIRTY = "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"
_XID = re.compile(r"(X?)'([^']*)',(X?)'([^']*)'")  # another format than ours has its number behind
_OWNER = text(
    "SELECT process.id FROM uow_branch JOIN information_schema.processlist process ON process.id = session"
    " WHERE uow_branch.id = :id AND process.command = 'Sleep'"
)


def _read(hexadecimal: str, part: str) -> str:
    return bytes.fromhex(part).decode("ascii", "replace") if hexadecimal else part


_MANAGERS = {"postgresql": PostgreSqlManager(), "mysql": MariaDbManager(), "mariadb": MariaDbManager()}
_SQLITE = Manager()


# -------------------------------------------------------------------------------------------------------- the resource


@frozen
class SqlResource(SqlOutcomes):
    """
    A database of distributed transactions: PostgreSQL, MariaDB or SQLite.

    Args:
        engine: The engine; of an asynchronous one its ``sync_engine``, for code that is run through SQLAlchemy's
            bridge.

        name: What the ids of distributed transactions call the database.

    Raises:
        ConfigurationError: That is no engine, or no name for an id.
    """

    name: str = field()

    def __attrs_post_init__(self) -> None:
        demand_name("resource", self.name)
        if not isinstance(self.engine, Engine):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"{self.engine!r} is no Engine", "Pass create_engine(...).")

    @property
    def rank(self) -> int:
        """How well it can be the last agent, 0 best."""
        with brief(self.engine) as connection:
            return self._manager.rank(connection)

    def demand_ready(self, *, prepares: bool) -> None:
        """Raise what stands in the way of its part: to prepare, or else to decide."""
        with brief(self.engine) as connection:
            self._manager.demand_ready(connection, prepares=prepares)
            for table in (branches,) if prepares else (outcomes, heuristics):
                connection.execute(select(table).limit(0))

    def prepared(self, domain: str) -> Sequence[Prepared]:
        """Return the branches of that domain that are prepared and not ended."""
        with brief(self.engine) as connection:
            return Prepared.of(domain, self._manager.listed(connection, self.name))

    def finish(self, id: str, *, commit: bool) -> Finished:
        """Commit a prepared branch, or roll it back."""
        statement = self._manager.ending(id, self.name, commit=commit)
        if statement is None:
            return Finished.UNKNOWN
        try:
            with self._outside() as connection:
                connection.exec_driver_sql(statement)
            return Finished.DONE
        except DatabaseError as error:
            if error.code not in self._manager.refusals:
                raise
        with brief(self.engine) as connection:
            still = any(id == listed for listed, _ in self._manager.listed(connection, self.name))
        return Finished.OWNED if still else Finished.UNKNOWN

    def disown(self, id: str) -> None:
        """End the session that keeps a prepared branch for itself and does nothing with it."""
        with brief(self.engine) as connection:
            self._manager.disown(connection, id)

    def witnessed(self, ids: Collection[str]) -> Collection[str]:
        """Return those whose branch was committed here."""
        with brief(self.engine) as connection:
            return set(connection.scalars(select(branches.c.id).where(branches.c.id.in_(ids))))

    def witnesses(self, domain: str) -> Collection[str]:
        """Return those whose branch was committed here, longer ago than an outcome is kept."""
        with brief(self.engine) as connection:
            return set(
                connection.scalars(
                    select(branches.c.id).where(
                        _starts(branches.c.id, id_prefix(domain)),
                        branches.c.at < self._now(connection) - KEPT - _MARGIN,
                    )
                )
            )

    def decisions(self, domain: str, *, grace: float) -> Sequence[Decision]:
        """Return what was decided here to be committed, at least *grace* seconds ago, and was not forgotten."""
        with brief(self.engine) as connection:
            rows = connection.execute(
                select(outcomes.c.id, outcomes.c.branches, outcomes.c.decided_at).where(
                    outcomes.c.outcome == "C",
                    outcomes.c.branches.is_not(None),
                    _starts(outcomes.c.id, id_prefix(domain, self.name)),
                    outcomes.c.decided_at <= self._now(connection) - timedelta(seconds=grace),
                )
            )
            return [Decision(id, _names(joined), aware(moment)) for id, joined, moment in rows]

    def complete(self, ids: Collection[str]) -> None:
        """Take decisions off the list, which is of those with branches."""
        with brief(self.engine) as connection:
            connection.execute(update(outcomes).where(outcomes.c.id.in_(ids)).values(branches=None))

    def forget(self, ids: Collection[str]) -> None:
        """Remove decisions whose branches are all committed."""
        with brief(self.engine) as connection:
            connection.execute(delete(outcomes).where(outcomes.c.id.in_(ids)))

    def forget_witnesses(self, ids: Collection[str]) -> None:
        """Remove the rows that show that branches were committed."""
        with brief(self.engine) as connection:
            connection.execute(delete(branches).where(branches.c.id.in_(ids)))

    def note(self, heuristic: Heuristic) -> None:
        """Keep a heuristic outcome for people to see; once for each branch."""
        told = {"id": heuristic.id, "resource": heuristic.resource, "problem": heuristic.problem}
        moment: ColumnElement[datetime] = literal_column(ledger_of(self.engine).now)
        with suppress(UniqueViolation), brief(self.engine) as connection:
            connection.execute(insert(heuristics).values(noticed_at=moment, **told))

    def heuristics(self) -> Sequence[Heuristic]:
        """Return the heuristic outcomes that were noted and not removed by people."""
        columns = heuristics.c.id, heuristics.c.resource, heuristics.c.problem
        with brief(self.engine) as connection:
            return [Heuristic(*row) for row in connection.execute(select(*columns).order_by(heuristics.c.id))]

    def purge(self, domain: str, listed: Collection[str]) -> int:
        """Remove rows of units, and of that domain's transactions that are over, once they have expired."""
        unit = ~outcomes.c.id.contains(".")
        over = and_(outcomes.c.branches.is_(None), _starts(outcomes.c.id, id_prefix(domain)))
        with brief(self.engine) as connection:
            expired = outcomes.c.expires_at < self._now(connection) - _MARGIN
            found = select(outcomes.c.id).where(expired, or_(unit, over)).order_by(outcomes.c.id)
            ids = [id for id in connection.scalars(found) if id not in listed]
        for start in range(0, len(ids), _BATCH):
            self.forget(ids[start : start + _BATCH])
        return len(ids)

    @property
    def _manager(self) -> Manager:
        return _MANAGERS.get(self.engine.dialect.name, _SQLITE)

    def _now(self, connection: Connection) -> datetime:
        """Return the time by the database's clock."""
        return aware(connection.exec_driver_sql(f"SELECT {ledger_of(connection).now}").scalar_one())

    @contextmanager
    def _outside(self) -> Generator[Connection]:
        """Give a connection in no transaction, and throw it away: its mode must not be left behind in the pool."""
        with connected(self.engine) as connection, reported(self.engine):
            try:
                connection.dialect.set_isolation_level(raw_of(connection), "AUTOCOMMIT")
                yield connection
            finally:
                connection.invalidate()  # a detached one of psycopg's asynchronous face is not closed by SQLAlchemy


def _starts(column: Column[str], prefix: str) -> ColumnElement[bool]:
    return column.startswith(prefix, autoescape=True)


def _names(joined: str | None) -> list[str]:
    return joined.split(",") if joined else []
