"""
The framework's own tables.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, MetaData, String, Table, Text
from sqlalchemy.dialects import mysql

__all__ = ["branches", "heuristics", "outcomes", "uow_metadata"]

uow_metadata = MetaData()
"""The tables behind commit outcomes, keys and distributed transactions: for ``create_all()``, or a migration tool."""

_ID = String(64).with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
_EXACT = mysql.VARCHAR(200, charset="utf8mb4", collation="utf8mb4_nopad_bin")
_MOMENT = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

outcomes = Table(
    "uow_outcome",
    uow_metadata,
    Column("id", _ID, primary_key=True, comment="the token of a unit, or of a distributed transaction"),
    Column("key", String(200).with_variant(_EXACT, "mysql", "mariadb"), unique=True, comment="see UnitOfWork.once()"),
    Column("outcome", String(1), nullable=False, comment="C: committed, A: aborted for good"),
    Column("decided_at", _MOMENT, nullable=False),
    Column("expires_at", _MOMENT, nullable=False, comment="when it may be removed, at the earliest"),
    Column("branches", Text, comment="the other databases of a distributed transaction"),
    Column("session", BigInteger, comment="the server's session that wrote it"),
    CheckConstraint("outcome IN ('C', 'A')", name="uow_outcome_known"),
)

branches = Table(
    "uow_branch",
    uow_metadata,
    Column("id", _ID, primary_key=True, comment="the distributed transaction that this database took part in"),
    Column("at", _MOMENT, nullable=False),
    Column("session", BigInteger, comment="the server's session that wrote it"),
)

heuristics = Table(
    "uow_heuristic",
    uow_metadata,
    Column("id", _ID, primary_key=True, comment="a distributed transaction that somebody else finished in another way"),
    Column("resource", String(64), primary_key=True, comment="the database where that happened"),
    Column("noticed_at", _MOMENT, nullable=False),
    Column("problem", Text, nullable=False),
)
