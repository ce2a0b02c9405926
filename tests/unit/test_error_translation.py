"""
What the databases say about data that they refuse, provoked on the real ones, and what we make of it.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pymysql
import pytest
from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import DBAPIError

from uow.adapters.sqlalchemy._errors import translate
from uow.errors import (
    CheckViolation,
    ConnectionLost,
    DatabaseError,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    UniqueViolation,
)

metadata = MetaData()
accounts = Table(
    "told_accounts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("branch", Integer),
    Column("number", Integer),
    Column("email", String(40)),
    Column("balance", Integer, nullable=False),
    UniqueConstraint("email", name="uq_email"),
    UniqueConstraint("branch", "number", name="uq_place"),
    CheckConstraint("balance >= 0", name="ck_balance"),
)
lines = Table(
    "told_lines",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("account_id", ForeignKey(accounts.c.id, name="fk_account")),
    Column("branch", Integer),
    Column("number", Integer),
    ForeignKeyConstraint(["branch", "number"], [accounts.c.branch, accounts.c.number], name="fk_place"),
)
ACCOUNTS, LINES = accounts.name, lines.name


@pytest.fixture(scope="module")
def engine(database_url: URL) -> Iterator[Engine]:
    """An engine on a database that holds two accounts and a line of the first."""
    engine = create_engine(database_url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
    metadata.create_all(engine)
    with engine.begin() as connection:
        for key in (1, 2):
            connection.execute(accounts.insert().values(id=key, branch=1, number=key, email=f"{key}@x", balance=5))
        connection.execute(lines.insert().values(id=1, account_id=1))
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[Connection]:
    """A connection to PostgreSQL; what is done on it is undone."""
    yield from connected(postgresql_url)


@pytest.fixture
def mariadb(mariadb_url: URL) -> Iterator[Connection]:
    """A connection to MariaDB, for temporary tables."""
    yield from connected(mariadb_url)


@pytest.fixture
def sqlite() -> Iterator[Connection]:
    """A connection to an SQLite database in memory."""
    yield from connected(URL.create("sqlite"))


def connected(url: URL) -> Iterator[Connection]:
    """Open a connection and close it with its engine."""
    engine = create_engine(url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def told(connection: Connection, *statements: Any) -> DatabaseError:
    """Run statements, of which the last one fails, and translate its error."""
    *preparation, failing = statements
    for statement in preparation:
        connection.exec_driver_sql(statement)
    with pytest.raises(DBAPIError) as caught:
        connection.exec_driver_sql(failing) if isinstance(failing, str) else connection.execute(failing)
    assert caught.value.orig is not None
    return translate(caught.value.orig, connection.dialect.name, disconnect=caught.value.connection_invalidated)


def facts(error: DatabaseError) -> tuple[object, ...]:
    """What an integrity violation tells beside its class."""
    assert isinstance(error, IntegrityViolation)
    return error.code, error.constraint, error.table, error.columns


@pytest.mark.parametrize(
    ("statement", "kind", "postgresql", "mysql", "sqlite"),
    [
        (
            accounts.insert().values(id=9, email="1@x", balance=1),
            UniqueViolation,
            ("23505", "uq_email", ACCOUNTS, ("email",)),
            (1062, "uq_email", None, ()),
            ("SQLITE_CONSTRAINT_UNIQUE", None, ACCOUNTS, ("email",)),
        ),
        (
            accounts.insert().values(id=9, branch=1, number=2, balance=1),
            UniqueViolation,
            ("23505", "uq_place", ACCOUNTS, ("branch", "number")),
            (1062, "uq_place", None, ()),
            ("SQLITE_CONSTRAINT_UNIQUE", None, ACCOUNTS, ("branch", "number")),
        ),
        (
            accounts.insert().values(id=1, balance=1),
            UniqueViolation,
            ("23505", "told_accounts_pkey", ACCOUNTS, ("id",)),
            (1062, "PRIMARY", None, ()),
            ("SQLITE_CONSTRAINT_PRIMARYKEY", None, ACCOUNTS, ("id",)),
        ),
        (
            accounts.insert().values(id=9, balance=None),
            NotNullViolation,
            ("23502", None, ACCOUNTS, ("balance",)),
            (1048, None, None, ("balance",)),
            ("SQLITE_CONSTRAINT_NOTNULL", None, ACCOUNTS, ("balance",)),
        ),
        (
            accounts.insert().values(id=9),
            NotNullViolation,
            ("23502", None, ACCOUNTS, ("balance",)),
            (1364, None, None, ("balance",)),
            ("SQLITE_CONSTRAINT_NOTNULL", None, ACCOUNTS, ("balance",)),
        ),
        (
            accounts.insert().values(id=9, balance=-1),
            CheckViolation,
            ("23514", "ck_balance", ACCOUNTS, ()),
            (4025, "ck_balance", ACCOUNTS, ()),
            ("SQLITE_CONSTRAINT_CHECK", "ck_balance", None, ()),
        ),
        (
            lines.insert().values(id=9, account_id=77),
            ForeignKeyViolation,
            ("23503", "fk_account", LINES, ("account_id",)),
            (1452, "fk_account", LINES, ("account_id",)),
            ("SQLITE_CONSTRAINT_FOREIGNKEY", None, None, ()),
        ),
        (
            lines.insert().values(id=9, branch=7, number=7),
            ForeignKeyViolation,
            ("23503", "fk_place", LINES, ("branch", "number")),
            (1452, "fk_place", LINES, ("branch", "number")),
            ("SQLITE_CONSTRAINT_FOREIGNKEY", None, None, ()),
        ),
        (
            accounts.delete().where(accounts.c.id == 1),
            ForeignKeyViolation,
            ("23503", "fk_account", LINES, ()),
            (1451, "fk_account", LINES, ("account_id",)),
            ("SQLITE_CONSTRAINT_FOREIGNKEY", None, None, ()),
        ),
    ],
    ids=["unique", "place", "key", "null", "no-default", "check", "reference", "composite-reference", "referred"],
)
def test_integrity(
    engine: Engine, statement: Any, kind: type, postgresql: object, mysql: object, sqlite: object
) -> None:
    """A refused constraint has its own class and carries what the backend tells about it."""
    expected = {"postgresql": postgresql, "mysql": mysql, "sqlite": sqlite}[engine.dialect.name]
    with engine.connect() as connection:
        error = told(connection, statement)

    assert (kind, expected) == (type(error), facts(error))


def test_syntax(engine: Engine) -> None:
    """What no table lists is a plain error with the backend's code and one line of text."""
    with engine.connect() as connection:
        error = told(connection, "SELEKT 1")

    assert {"postgresql": "42601", "mysql": 1064, "sqlite": "SQLITE_ERROR"}[engine.dialect.name] == error.code
    assert DatabaseError is type(error)
    assert error.detail
    assert "\n" not in error.detail


def test_without_code(engine: Engine) -> None:
    """An error that the driver finds by itself has no code and means no more, unless the connection is known lost."""
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        cursor.close()
        with pytest.raises(engine.dialect.loaded_dbapi.Error) as caught:
            cursor.execute("SELECT 1")
    error = translate(caught.value, engine.dialect.name)
    lost = translate(caught.value, engine.dialect.name, disconnect=True)

    assert (DatabaseError, None, str(caught.value)) == (type(error), error.code, error.detail)
    assert (ConnectionLost, None, str(caught.value)) == (type(lost), lost.code, lost.detail)


@pytest.mark.parametrize(("said", "detail"), [(ValueError(), "ValueError"), (ValueError("first \nsecond"), "first")])
def test_unknown_backend(said: Exception, detail: str) -> None:
    """An error of a backend without a table is plain, and carries its class's name where it has no text."""
    error = translate(said, "oracle")

    assert (DatabaseError, None, detail) == (type(error), error.code, error.detail)


def test_postgresql_key_with_expressions(postgresql: Connection) -> None:
    """Of a unique index only the columns are told, unquoted; what it computes is left out."""
    odd = '"Key, (a ""b"")"'
    error = told(
        postgresql,
        f"CREATE TABLE odd (email text, {odd} int)",
        f"CREATE UNIQUE INDEX uq_odd ON odd (replace(email, '\")', 'x'), {odd}, email)",
        "INSERT INTO odd VALUES ('a', 1), ('a', 1)",
    )

    assert ("23505", "uq_odd", "odd", ('Key, (a "b")', "email")) == facts(error)


def test_postgresql_reference_to_itself(postgresql: Connection) -> None:
    """The columns are those of the reference, so the ones of the row referred to are not told in their place."""
    tree = "CREATE TABLE tree (id int PRIMARY KEY, above int CONSTRAINT fk_above REFERENCES tree ON DELETE RESTRICT)"
    removed = told(postgresql, tree, "INSERT INTO tree VALUES (1, NULL), (2, 1)", "DELETE FROM tree WHERE id = 1")
    postgresql.rollback()
    added = told(postgresql, tree, "INSERT INTO tree VALUES (1, 2)")

    assert ForeignKeyViolation is type(removed)
    assert removed.code in {"23503", "23001"}  # the latter from PostgreSQL 18
    assert ("fk_above", "tree", ()) == facts(removed)[1:]
    assert ("23503", "fk_above", "tree", ("above",)) == facts(added)


def test_postgresql_exclusion(postgresql: Connection) -> None:
    """A constraint without a class of its own is an integrity violation with all that is told."""
    error = told(
        postgresql,
        "CREATE TABLE stays (during int4range, CONSTRAINT ex_during EXCLUDE USING gist (during WITH &&))",
        "INSERT INTO stays VALUES ('[1, 3)'), ('[2, 4)')",
    )

    assert IntegrityViolation is type(error)
    assert ("23P01", "ex_during", "stays", ("during",)) == facts(error)


@pytest.mark.parametrize("condition", ["unique_violation", "foreign_key_violation"])
def test_postgresql_without_detail(postgresql: Connection, condition: str) -> None:
    """A violation that a database function raises tells nothing beside its class."""
    error = told(postgresql, f"DO $$ BEGIN RAISE {condition}; END $$")

    assert (None, None, ()) == facts(error)[1:]
    assert condition == error.detail


def test_mariadb_odd_names(mariadb: Connection) -> None:
    """A value that looks like the message does not pass for the key's name."""
    error = told(
        mariadb,
        "CREATE TEMPORARY TABLE odd (name varchar(40), UNIQUE KEY uq_odd (name))",
        """INSERT INTO odd VALUES ("x' for key 'y'"), ("x' for key 'y'")""",
    )

    assert (1062, "uq_odd", None, ()) == facts(error)


def test_mariadb_unnamed_check(mariadb: Connection) -> None:
    """A check that a column brings along has no name, but the column is told."""
    error = told(
        mariadb, "CREATE TEMPORARY TABLE odd (balance int CHECK (balance >= 0))", "INSERT INTO odd VALUES (-1)"
    )

    assert CheckViolation is type(error)
    assert (4025, None, "odd", ("balance",)) == facts(error)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (1062, "Duplicate entry '1' for key 'accounts.uq_email'", (1062, "uq_email", "accounts", ())),
        (3819, "Check constraint 'ck_balance' is violated.", (3819, "ck_balance", None, ())),
        (1216, "Cannot add or update a child row: a foreign key constraint fails", (1216, None, None, ())),
    ],
)
def test_mysql_texts(code: int, text: str, expected: tuple[object, ...]) -> None:
    """What MySQL says in other words than MariaDB is understood as well."""
    assert expected == facts(translate(pymysql.err.IntegrityError(code, text), "mysql"))


@pytest.mark.parametrize(
    ("table", "statement", "expected"),
    [
        (
            "CREATE UNIQUE INDEX uq_lower ON odd (lower(name))",
            "INSERT INTO odd (name) VALUES ('a'), ('A')",
            ("SQLITE_CONSTRAINT_UNIQUE", "uq_lower", None, ()),
        ),
        (
            'CREATE UNIQUE INDEX uq_both ON odd ("a, b.c", name)',
            """INSERT INTO odd (name, "a, b.c") VALUES ('a', 1), ('a', 1)""",
            ("SQLITE_CONSTRAINT_UNIQUE", None, "odd", ("a, b.c", "name")),
        ),
        (
            "CREATE TRIGGER refuse BEFORE DELETE ON odd BEGIN SELECT RAISE(ABORT, 'kept'); END",
            "DELETE FROM odd",
            ("SQLITE_CONSTRAINT_TRIGGER", None, None, ()),
        ),
        (
            "CREATE TABLE other (id INTEGER)",
            'INSERT INTO odd ("a, b.c") VALUES (0)',
            ("SQLITE_CONSTRAINT_CHECK", None, None, ()),
        ),
    ],
    ids=["expression", "odd-names", "trigger", "unnamed-check"],
)
def test_sqlite_texts(sqlite: Connection, table: str, statement: str, expected: tuple[object, ...]) -> None:
    """SQLite tells an index by its name only where it computes something, and an unnamed check by its condition."""
    create = 'CREATE TABLE odd (name TEXT, "a, b.c" INTEGER CHECK ("a, b.c" > 0))'
    error = told(sqlite, create, "INSERT INTO odd (name) VALUES ('z')", table, statement)

    assert expected == facts(error)
