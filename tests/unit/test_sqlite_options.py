"""
What a unit's options do on SQLite, and that the next user of the connection finds it as it was.
"""

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import sessionmaker

from uow.adapters.sqlalchemy._errors import translate
from uow.errors import ConfigurationError, DatabaseError, LockTimeout, ReadOnlyTransaction, StatementTimeout
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlBank, metadata

OPTIONS: dict[str, Any] = {"isolation": "SERIALIZABLE", "read_only": True, "lock_timeout": 0.25}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which Ann has 10."""
    path = tmp_path / "bank.db"
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    with SqlBank(engine) as bank:
        bank.accounts.add(Account("A", "Ann", 10))
        bank.commit()
    engine.dispose()
    return path


@contextmanager
def one_connection(path: Path) -> Generator[Engine]:
    """An engine with one connection, which waits a minute for a lock where nobody says otherwise."""
    engine = create_engine(
        f"sqlite:///{path}", pool_size=1, max_overflow=0, pool_timeout=1, connect_args={"timeout": 60}
    )
    yield engine
    engine.dispose()


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with one_connection(path) as engine:
        yield engine


@pytest.fixture
def other(path: Path) -> Iterator[Engine]:
    """Another application on the same file."""
    with one_connection(path) as engine:
        yield engine


def driver(engine: Engine) -> Any:
    """Return the driver's connection that the next user gets."""
    with engine.connect() as connection:
        return connection.connection.driver_connection


def found(engine: Engine) -> tuple[object, ...]:
    """What the next user finds."""
    raw = driver(engine)
    pragmas = (raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("query_only", "busy_timeout"))
    return (raw, raw.isolation_level, getattr(raw, "autocommit", None), raw.in_transaction, *pragmas)


# ------------------------------------------------------------------------------------------------ what the options do


@pytest.mark.parametrize("statement", ["UPDATE accounts SET balance = 0", "CREATE TABLE more (id INT)"])
def test_a_write_in_a_read_only_unit(engine: Engine, statement: str) -> None:
    """The library refuses it; around a nested scope the unit goes on, and is still read-only."""
    with SqlBank(engine, read_only=True) as bank:
        for _ in range(2):
            with pytest.raises(ReadOnlyTransaction) as raised, bank.nested():
                bank.session.execute(text(statement))

            assert "SQLITE_READONLY" == raised.value.code

        assert 1 == bank.accounts.count()

    with SqlBank(engine) as bank:
        bank.session.execute(text(statement))
        bank.commit()


def test_readers_beside_a_writer(path: Path, engine: Engine, other: Engine) -> None:
    """A read-only unit takes no write lock: several read at once what was there before another one wrote."""
    with one_connection(path) as third, SqlBank(engine) as writer:
        writer.accounts.get("A").balance = 20
        writer.flush()
        with SqlBank(other, read_only=True) as one, SqlBank(third, read_only=True) as two:
            assert (10, 10) == (one.accounts.get("A").balance, two.accounts.get("A").balance)

        writer.commit()

    with SqlBank(other, read_only=True) as reader:
        assert 20 == reader.accounts.get("A").balance


def test_a_read_only_unit_reads_one_state(path: Path, engine: Engine, other: Engine) -> None:
    """Where readers do not block writers, it still sees nothing that was committed meanwhile."""
    driver(engine).execute("PRAGMA journal_mode = WAL")
    with SqlBank(engine, read_only=True) as reader:
        assert 1 == reader.accounts.count()

        with SqlBank(other) as writer:
            writer.accounts.add(Account("B", "Bob"))
            writer.commit()

        assert 1 == reader.accounts.count()


def test_a_lock_that_is_not_free_in_time(engine: Engine, other: Engine) -> None:
    """A unit that waits for the write lock fails in time, and not after the minute of its engine."""
    with SqlBank(engine) as writer, SqlBank(other, lock_timeout=0.01) as waiting:
        writer.accounts.count()
        with pytest.raises(LockTimeout) as raised:
            waiting.accounts.count()
        waiting.rollback()

    assert "SQLITE_BUSY" == raised.value.code


@pytest.mark.parametrize(("seconds", "milliseconds"), [(1.5, 1500), (1e-9, 1), (1e9, 2147483647)])
def test_the_limits_that_sqlite_counts(engine: Engine, seconds: float, milliseconds: int) -> None:
    """A time too short to be counted is the shortest, and not for ever; one too long is the longest."""
    with SqlBank(engine, lock_timeout=seconds) as bank:
        assert milliseconds == bank.session.scalar(text("PRAGMA busy_timeout"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"isolation": "read_committed"},
            "SQLite has no isolation level 'READ COMMITTED'. Take SERIALIZABLE, which every unit has there.",
        ),
        (
            {"isolation": "SERIALIZABLE", "read_only": True, "deferrable": True},
            "deferrable has no effect on SQLite, where a read-only unit waits for nobody. Leave deferrable out.",
        ),
        (
            {"statement_timeout": 1},
            "SQLite has no statement_timeout: it runs in this process, and nobody watches it. "
            "Leave it out; lock_timeout limits the wait for other units.",
        ),
    ],
)
def test_what_sqlite_cannot_do(engine: Engine, options: dict[str, Any], message: str) -> None:
    """What the library cannot do is refused when the unit is made."""
    with pytest.raises(ConfigurationError) as raised:
        SqlBank(engine, **options)

    assert f"Wrong configuration: {message}" == str(raised.value)


def test_an_interrupted_statement() -> None:
    """What another thread or a progress handler interrupted is told as a statement that was cancelled."""
    with closing(sqlite3.connect(":memory:")) as raw:
        raw.set_progress_handler(lambda: 1, 1)
        with pytest.raises(sqlite3.OperationalError) as raised:
            raw.execute("SELECT * FROM sqlite_master").fetchall()
    error = translate(raised.value, "sqlite")

    assert (StatementTimeout, "SQLITE_INTERRUPT") == (type(error), error.code)


# ------------------------------------------------------------------------------------------- what the next user finds


def ends_well(bank: SqlBank) -> None:
    bank.commit()


def is_left(bank: SqlBank) -> None:
    """Do no more."""


def is_rolled_back(bank: SqlBank) -> None:
    with bank.nested() as nested:
        nested.session.execute(text("SELECT 1"))
        nested.rollback()
    bank.rollback()


def fails(bank: SqlBank) -> None:
    bank.session.execute(text("nonsense"))


def is_interrupted(bank: SqlBank) -> None:
    raise KeyboardInterrupt


def loses_its_file(bank: SqlBank) -> None:
    raw: Any = bank.session.connection().connection.driver_connection
    raw.close()
    bank.session.execute(text("SELECT 1"))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("end", [ends_well, is_left, is_rolled_back, fails, is_interrupted, loses_its_file])
def test_the_next_user_finds_what_was_there(engine: Engine, end: Callable[[SqlBank], None], own: bool) -> None:
    """However a unit ends, the connection is afterwards what it was before."""

    def configure(raw: Any, record: object) -> None:
        raw.isolation_level = "EXCLUSIVE"
        raw.execute("PRAGMA busy_timeout = 123")
        raw.execute("PRAGMA query_only = 1")

    if own:
        event.listen(engine, "connect", configure)
    before = found(engine)
    with suppress(DatabaseError, KeyboardInterrupt), SqlBank(engine, **OPTIONS) as bank:
        during = [bank.session.scalar(text(f"PRAGMA {name}")) for name in ("query_only", "busy_timeout")]

        assert [1, 250] == during

        end(bank)

    after = found(engine)

    assert before[1:] == after[1:]
    assert (before[0] is after[0]) is (end is not loses_its_file)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_begin_of_the_user_s_own(engine: Engine, read_only: bool) -> None:
    """An engine that begins by itself, as SQLAlchemy's documentation has it, serves with all options, too."""
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with SqlBank(engine, lock_timeout=1, read_only=read_only) as bank:
        assert int(read_only) == bank.session.scalar(text("PRAGMA query_only"))
        assert 1 == bank.accounts.count()


def test_a_connection_that_is_lost_after_commit(engine: Engine) -> None:
    """What cannot be put back any more goes with the connection, and the commit stands."""
    before = found(engine)
    factory = sessionmaker(engine)
    raw: Any = before[0]
    event.listen(factory, "after_commit", lambda session: raw.close())
    with SqlBank(factory, lock_timeout=1) as bank:
        bank.accounts.add(Account("B", "Bob"))
        bank.commit()

    after = found(engine)

    assert before[1:] == after[1:]
    assert before[0] is not after[0]

    with SqlBank(engine) as bank:
        assert 2 == bank.accounts.count()


def test_a_connection_that_cannot_be_put_back(engine: Engine) -> None:
    """It is thrown away, and the unit ends as if nothing had happened."""
    before = found(engine)
    raw: Any = before[0]
    with SqlBank(engine, lock_timeout=1) as bank:
        assert 1 == bank.accounts.count()

        raw.set_authorizer(lambda action, *rest: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_PRAGMA else 0)
        bank.commit()

    after = found(engine)

    assert before[1:] == after[1:]
    assert raw is not after[0]


def test_an_interrupt_while_a_connection_is_prepared(engine: Engine) -> None:
    """Nobody gets a connection that is half prepared; the interrupt arrives."""
    before = found(engine)

    def interrupt(connection: object) -> None:
        raise KeyboardInterrupt

    event.listen(engine, "begin", interrupt)
    with pytest.raises(KeyboardInterrupt), SqlBank(engine, **OPTIONS) as bank:
        bank.session.execute(text("SELECT 1"))
    event.remove(engine, "begin", interrupt)

    assert before[1:] == found(engine)[1:]
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
