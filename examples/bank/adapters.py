"""
The adapters: the bank on a database and on the fake, and the file that payments come in.
"""

import csv
from collections.abc import Iterable, Iterator

from sqlalchemy import BigInteger, CheckConstraint, Column, Engine, ForeignKey, Integer, String, Table
from sqlalchemy.orm import registry, relationship

from uow.adapters.memory import FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlAlchemyUnitOfWork

from .domain import Account, Transfer
from .port import AsyncBank, Bank
from .service import Line

__all__ = [
    "HEADER",
    "AsyncSqlBank",
    "FakeBank",
    "MalformedFile",
    "SqlBank",
    "make_store",
    "make_tables",
    "read_lines",
    "with_driver",
]

# ------------------------------------------------------------------------------------------------------- the database

_registry = registry()
_EXACT = "utf8mb4_bin"
"""Without it MariaDB takes "ann" and "Ann" for the same."""

_accounts = Table(
    "demo_accounts",
    _registry.metadata,
    Column("number", String(40), primary_key=True),
    Column("balance", BigInteger, nullable=False),
    CheckConstraint("balance >= 0", name="account_not_overdrawn"),
    mysql_collate=_EXACT,
    mariadb_collate=_EXACT,
)
_transfers = Table(
    "demo_transfers",
    _registry.metadata,
    Column("id", Integer, primary_key=True),
    Column("reference", String(40), nullable=False, unique=True),
    Column("source", String(40), ForeignKey(_accounts.c.number)),
    Column("target", String(40), ForeignKey(_accounts.c.number), nullable=False),
    Column("amount", BigInteger, nullable=False),
    mysql_collate=_EXACT,
    mariadb_collate=_EXACT,
)

_registry.map_imperatively(Account, _accounts)
_registry.map_imperatively(
    Transfer,
    _transfers,
    # Without it SQLAlchemy would not know that an account is to be written before the transfers to it.
    properties={"_target": relationship(Account, foreign_keys=_transfers.c.target)},
)


class SqlBank(SqlAlchemyUnitOfWork, Bank):
    """
    The bank on a database.
    """


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank):
    """
    The bank on a database, awaited.
    """


def with_driver(url: str) -> str:
    """Name the driver that ``uow[mariadb]`` installs, unless *url* names one; SQLAlchemy would take another."""
    scheme, colon, rest = url.partition(":")
    return {"mariadb": "mariadb+pymysql", "mysql": "mysql+pymysql"}.get(scheme, scheme) + colon + rest


def make_tables(engine: Engine) -> None:
    """Make the tables that are not there yet."""
    _registry.metadata.create_all(engine)


# ----------------------------------------------------------------------------------------------------------- the fake


class FakeBank(FakeUnitOfWork, Bank):
    """
    The bank in memory.
    """


def make_store() -> Store:
    """Make an empty store with the constraints of the database."""
    store = Store()
    store.unique(Transfer, "reference")
    store.foreign_key(Transfer, "source", Account)
    store.foreign_key(Transfer, "target", Account)
    store.check(Account, lambda account: account.balance >= 0, name="account_not_overdrawn")
    return store


# ----------------------------------------------------------------------------------------------------------- the file

HEADER = ["reference", "source", "target", "amount"]


class MalformedFile(Exception):
    """
    A file is no payments file.
    """


def read_lines(text: Iterable[str]) -> Iterator[Line]:
    """
    Read the lines of a payments file, one at a time; empty ones are passed over.

    Raises:
        MalformedFile: It does not begin with the header, or is no CSV file.
    """
    rows = csv.reader(text)
    try:
        header = [name.strip().lower() for name in next(rows, ())]
        if header != HEADER:
            found = repr(",".join(header)[:60])
            raise MalformedFile(f"its first line must be {','.join(HEADER)!r}, and is {found}")
        for row in rows:
            if row:
                yield Line(rows.line_num, row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise MalformedFile(f"it cannot be read as CSV in UTF-8 near line {rows.line_num}: {error}") from error
