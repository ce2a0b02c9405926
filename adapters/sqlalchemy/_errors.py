"""
What the drivers' errors mean, told by their codes.

One table per backend maps a code to one of `uow.errors`. The text is read only for what the backend tells nowhere else:
the constraint, the table and the columns.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from attrs import define
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError

from uow.errors import (
    CheckViolation,
    ConnectionLost,
    ConnectionUnavailable,
    DatabaseError,
    Deadlock,
    ForeignKeyViolation,
    IntegrityViolation,
    LockTimeout,
    NotNullViolation,
    ReadOnlyTransaction,
    SerializationFailure,
    StaleVersion,
    StatementTimeout,
    UniqueViolation,
)

__all__ = ["translate", "translate_connect", "translate_orm"]

_Code = TypeVar("_Code", int, str)

# ---------------------------------------------------------------------------------------------------------- the tables

# https://www.postgresql.org/docs/current/errcodes-appendix.html; two characters stand for all others of their class
_POSTGRESQL: Mapping[type[DatabaseError], tuple[str, ...]] = {
    UniqueViolation: ("23505",),
    ForeignKeyViolation: ("23503", "23001"),  # the latter for ON DELETE RESTRICT, from PostgreSQL 18
    NotNullViolation: ("23502",),
    CheckViolation: ("23514",),
    IntegrityViolation: ("23",),
    SerializationFailure: ("40001",),
    Deadlock: ("40P01",),
    LockTimeout: ("55P03",),
    StatementTimeout: ("57014",),
    ReadOnlyTransaction: ("25006",),
    ConnectionLost: ("08", "25P03", "25P04", "40003", "57P01", "57P02", "57P03", "57P05"),  # timeouts among them
    ConnectionUnavailable: ("53300",),
}

# https://mariadb.com/kb/en/mariadb-error-code-reference/; 0 is PyMySQL's, on a connection that it closed itself
_MARIADB: Mapping[type[DatabaseError], tuple[int, ...]] = {
    UniqueViolation: (1062, 1586),
    ForeignKeyViolation: (1216, 1217, 1451, 1452),
    NotNullViolation: (1048, 1364),
    CheckViolation: (4025, 3819),  # the latter on MySQL
    SerializationFailure: (1020,),
    Deadlock: (1213, 1614),  # the latter in an XA branch
    LockTimeout: (1205, 1613, 3572),  # the second in an XA branch, the third for MySQL's NOWAIT
    StatementTimeout: (1317, 1969, 3024),  # the first for KILL QUERY, the last on MySQL
    ReadOnlyTransaction: (1792,),
    ConnectionLost: (0, 1053, 1927, 2006, 2013, 2055, 4031),
    ConnectionUnavailable: (1040, 1203, 2002, 2003),
}

# https://www.sqlite.org/rescode.html; a primary code, up to 255, stands for all others that extend it
_SQLITE: Mapping[type[DatabaseError], tuple[int, ...]] = {
    UniqueViolation: (2067, 1555, 2579),  # unique, primary key, rowid
    ForeignKeyViolation: (787,),
    NotNullViolation: (1299,),
    CheckViolation: (275,),
    IntegrityViolation: (19,),
    SerializationFailure: (517,),  # BUSY_SNAPSHOT: the unit reads an older state than the one it wants to write to
    LockTimeout: (5, 6),
    StatementTimeout: (9,),  # interrupted
    ReadOnlyTransaction: (8,),
    ConnectionUnavailable: (14,),
}


def translate(error: BaseException, dialect_name: str, *, disconnect: bool = False) -> DatabaseError:
    """
    Make what a driver's error means: the error to raise from it.

    Args:
        error: The driver's own exception: ``sqlalchemy.exc.DBAPIError.orig``.

        dialect_name: The name of SQLAlchemy's dialect, such as ``postgresql``.

        disconnect: Whether the connection is known to be gone (SQLAlchemy's ``is_disconnect``). Some drivers say so in
            their text alone, without a code.
    """
    answer = _read(error, dialect_name)
    kind = ConnectionLost if disconnect else answer.kind
    if issubclass(kind, IntegrityViolation):
        return kind(answer.detail, answer.code, answer.constraint, answer.table, answer.columns)
    return kind(answer.detail, answer.code)


def translate_connect(error: BaseException, dialect_name: str) -> ConnectionUnavailable:
    """
    Tell why no connection could be had.

    Args:
        error: What the pool or the driver raised when a connection was asked for; SQLAlchemy's wrapper is fine.

        dialect_name: The name of SQLAlchemy's dialect.
    """
    if isinstance(error, PoolTimeout):
        hint = "End units sooner, or raise pool_size or max_overflow of the engine"
        return ConnectionUnavailable(f"the pool is exhausted ({error.args[0]}). {hint}")
    answer = _read(error.orig or error if isinstance(error, DBAPIError) else error, dialect_name)
    return ConnectionUnavailable(answer.detail, answer.code)


def translate_orm(error: StaleDataError) -> StaleVersion:
    """
    Tell that a flush found a row changed or gone.

    Args:
        error: What SQLAlchemy's unit of work raised.
    """
    return StaleVersion(_first_line(error))


# --------------------------------------------------------------------------------------------------- reading an answer


@define(frozen=True)
class _Answer:
    """What a backend said: its words, its code, and what these mean."""

    detail: str
    code: str | int | None = None
    kind: type[DatabaseError] = DatabaseError
    constraint: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()


def _read(error: BaseException, dialect_name: str) -> _Answer:
    reader = _READERS.get(dialect_name)
    return (reader and reader(error)) or _Answer(_first_line(error))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].strip() or type(error).__name__


def _kind(table: Mapping[type[DatabaseError], tuple[_Code, ...]], *codes: _Code) -> type[DatabaseError]:
    """Look a code up, and then the one that stands for its class."""
    return next((kind for code in codes for kind, listed in table.items() if code in listed), DatabaseError)


def _groups(pattern: re.Pattern[str] | None, text: str) -> dict[str, str]:
    """Read the named groups that took part in a match."""
    match = pattern.match(text) if pattern else None
    return {name: value for name, value in match.groupdict().items() if value is not None} if match else {}


# PostgreSQL shows the columns of a key alone in the detail. Of a reference it shows those of the row referred to where
# that one is removed, and these are not the columns that the constraint is about.
_KEY_TOKEN = re.compile(r"""  "(?:[^"]|"")*"  |  '(?:[^']|'')*'  |  [(),]  |  [^"'(),]+  """, re.VERBOSE)
_IDENTIFIER = re.compile(r"""  [^\W\d][\w$]*  |  "(?:[^"]|"")+"  """, re.VERBOSE)
# psycopg raises this before its connection knows that the socket is gone.
_CLOSED = "connection socket closed"
_REFERRING = re.compile(r"Key \((?P<columns>.+?)\)=\(.*\) is not present in table", re.DOTALL)


def _read_postgresql(error: BaseException) -> _Answer | None:
    def told(field: str) -> str | None:
        return getattr(source, field, None) or None

    code: str | None = getattr(error, "sqlstate", None)
    if code is None:
        return _Answer(str(error), None, ConnectionLost) if str(error) == _CLOSED else None
    source = getattr(error, "diag", None) or getattr(error, "orig", None)  # of psycopg; asyncpg's error in an adapter
    kind = _kind(_POSTGRESQL, code, code[:2])
    more, column = told("message_detail") or told("detail") or "", told("column_name")
    columns: tuple[str, ...] = ()
    if column:
        columns = (column,)
    elif kind is UniqueViolation or code == "23P01":  # an exclusion, which has a key, too
        columns = _key_columns(more)
    elif kind is ForeignKeyViolation and (match := _REFERRING.match(more)):
        columns = tuple(match["columns"].split(", "))
    detail = ". ".join(filter(None, (told("message_primary") or told("message"), more))) or _first_line(error)
    return _Answer(detail, code, kind, told("constraint_name"), told("table_name"), columns)


def _key_columns(detail: str) -> tuple[str, ...]:
    """Read the columns of ``Key (a, "B", lower(c))=(1, 2, x) already exists.``; an expression is no column."""
    items, depth = [""], 1
    for token in _KEY_TOKEN.findall(detail.partition("(")[2]):
        depth += (token == "(") - (token == ")")
        if depth == 0:
            break
        if token == "," and depth == 1:
            items.append("")
        else:
            items[-1] += token
    names = [name for name in map(str.strip, items) if _IDENTIFIER.fullmatch(name)]
    return tuple(name[1:-1].replace('""', '"') if name.startswith('"') else name for name in names)


_MARIADB_TEXTS: Mapping[type[DatabaseError], re.Pattern[str]] = {
    UniqueViolation: re.compile(r".*'(?:(?P<table>[^'.]+)\.)?(?P<constraint>[^']+)'", re.DOTALL),  # MySQL has the table
    ForeignKeyViolation: re.compile(
        r".*?\(`.+?`\.`(?P<table>.+?)`, CONSTRAINT `(?P<constraint>.+?)` FOREIGN KEY \((?P<columns>.+?)\) REFERENCES"
    ),
    NotNullViolation: re.compile(r"[^']*'(?P<column>[^']+)'"),
    CheckViolation: re.compile(  # `table.column` is what MariaDB calls the unnamed check of a column
        r"[^'`]*['`](?:[^'`.]+\.(?P<column>[^'`]+)|(?P<constraint>[^'`]+))['`](?:.* `.+?`\.`(?P<table>.+?)`)?"
    ),
}


def _read_mariadb(error: BaseException) -> _Answer | None:
    match error.args:
        case (int(code), str(text), *_):
            kind = _kind(_MARIADB, code)
            told = _groups(_MARIADB_TEXTS.get(kind), text)
            columns = (told["column"],) if "column" in told else tuple(re.findall(r"`(.+?)`", told.get("columns", "")))
            detail = text.strip() or type(error).__name__
            return _Answer(detail, code, kind, told.get("constraint"), told.get("table"), columns)
        case _:
            return None


_SQLITE_COLUMNS = r"(?P<table>.+?)\.(?P<columns>.+)"
_SQLITE_TEXTS: Mapping[type[DatabaseError], re.Pattern[str]] = {
    UniqueViolation: re.compile(rf"UNIQUE constraint failed: (?:index '(?P<constraint>.+)'|{_SQLITE_COLUMNS})"),
    NotNullViolation: re.compile(rf"NOT NULL constraint failed: {_SQLITE_COLUMNS}"),
    CheckViolation: re.compile(r"CHECK constraint failed: (?P<constraint>\w+)$"),  # an unnamed one shows its condition
}


def _read_sqlite(error: BaseException) -> _Answer | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    kind = _kind(_SQLITE, code, code & 0xFF)
    told = _groups(_SQLITE_TEXTS.get(kind), str(error))
    columns = tuple(told["columns"].split(f", {told['table']}.")) if "columns" in told else ()
    name: str | None = getattr(error, "sqlite_errorname", None)
    return _Answer(_first_line(error), name, kind, told.get("constraint"), told.get("table"), columns)


_READERS: Mapping[str, Callable[[BaseException], _Answer | None]] = {
    "postgresql": _read_postgresql,
    "mysql": _read_mariadb,
    "mariadb": _read_mariadb,
    "sqlite": _read_sqlite,
}
