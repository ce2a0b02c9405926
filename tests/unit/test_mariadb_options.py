"""
What a unit's options do on MariaDB, and that the next user of the connection finds it as it was.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pymysql
import pytest
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.orm import sessionmaker

from uow import Lock
from uow.adapters.sqlalchemy._errors import translate
from uow.errors import (
    ConfigurationError,
    DatabaseError,
    Deadlock,
    LockTimeout,
    ReadOnlyTransaction,
    StatementTimeout,
    UnitOfWorkRolledBack,
)
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlBank, metadata

OWN = (
    "SET SESSION tx_isolation = 'READ-COMMITTED', SESSION tx_read_only = 1, SESSION max_statement_time = 77,"
    " SESSION innodb_lock_wait_timeout = 8, SESSION lock_wait_timeout = 9"
)
EVERYTHING: dict[str, Any] = {
    "isolation": "SERIALIZABLE",
    "read_only": True,
    "statement_timeout": 5.5,
    "lock_timeout": 3,
}


@pytest.fixture
def other(mariadb_url: URL) -> Iterator[Engine]:
    """Another application on the same database, in which Ann and Bob have 10."""
    engine = create_engine(mariadb_url, connect_args={"init_command": "SET lock_wait_timeout = 20"})
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with SqlBank(engine) as bank:
        bank.accounts.add_all([Account("A", "Ann", 10), Account("B", "Bob", 10)])
        bank.commit()
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def engine(other: Engine) -> Iterator[Engine]:
    """An engine with one connection."""
    with one_connection(other) as engine:
        yield engine


@contextmanager
def one_connection(other: Engine, **options: Any) -> Generator[Engine]:
    engine = create_engine(other.url, pool_size=1, max_overflow=0, pool_timeout=1, **options)
    yield engine
    engine.dispose()


def found(engine: Engine) -> tuple[object, ...]:
    """What the next user of the connection finds: its number, and the variables of its session."""
    with engine.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT connection_id(), @@tx_isolation, @@tx_read_only, @@max_statement_time, @@innodb_lock_wait_timeout,"
            " @@lock_wait_timeout"
        ).one()
    return tuple(row)


def balance(bank: SqlBank) -> int:
    """Read what Ann has, past what the session remembers."""
    return int(bank.session.scalar(text("SELECT balance FROM accounts WHERE number = 'A'")) or 0)


def kill(bank: SqlBank, other: Engine) -> None:
    number = bank.session.scalar(text("SELECT connection_id()"))
    with other.connect() as connection:
        connection.exec_driver_sql(f"KILL {number}")


# ------------------------------------------------------------------------------------------------ what the options do


def test_a_write_in_a_read_only_unit(engine: Engine) -> None:
    """The server refuses it; around a nested scope the unit goes on, and is still read-only."""
    with SqlBank(engine, read_only=True) as bank:
        for _ in range(2):
            with pytest.raises(ReadOnlyTransaction) as raised, bank.nested():
                bank.session.execute(text("UPDATE accounts SET balance = 0"))

            assert 1792 == raised.value.code

        assert 10 == balance(bank)

    with SqlBank(engine) as bank:
        bank.accounts.get("A").balance += 1
        bank.commit()


@pytest.mark.parametrize("statement", ["CREATE TABLE more (id INT)", "DROP TABLE `lines`", "TRUNCATE TABLE `lines`"])
def test_what_would_commit_in_a_read_only_unit(engine: Engine, statement: str) -> None:
    """The server refuses that, too, although a transaction that is merely begun READ ONLY would let it pass."""
    before = tables(engine)
    with pytest.raises(ReadOnlyTransaction), SqlBank(engine, read_only=True) as bank:
        bank.session.execute(text(statement))

    assert before == tables(engine)


def tables(engine: Engine) -> dict[str, int]:
    """Return how many rows each table has."""
    with engine.connect() as connection:
        names = connection.exec_driver_sql("SHOW TABLES").scalars().all()
        return {name: connection.exec_driver_sql(f"SELECT count(*) FROM `{name}`").scalar_one() for name in names}


@pytest.mark.parametrize(
    ("level", "uncommitted", "committed"),
    [("read_uncommitted", 20, 20), ("READ COMMITTED", 10, 20), ("REPEATABLE READ", 10, 10)],
)
def test_what_a_level_lets_through(engine: Engine, other: Engine, level: str, uncommitted: int, committed: int) -> None:
    """A unit sees of another one's work what its level lets through."""
    with SqlBank(engine, isolation=level) as reader:
        assert 10 == balance(reader)

        with SqlBank(other) as writer:
            writer.accounts.get("A").balance = 20
            writer.flush()

            assert uncommitted == balance(reader)

            writer.commit()

        assert committed == balance(reader)


def test_serializable_reads_lock(engine: Engine, other: Engine) -> None:
    """A unit cannot write what another one has read and goes by."""
    with (
        SqlBank(engine, isolation="SERIALIZABLE") as reader,
        SqlBank(other, isolation="SERIALIZABLE", lock_timeout=1) as writer,
    ):
        assert balance(reader) == balance(writer)

        with pytest.raises(LockTimeout), writer.nested():
            writer.session.execute(text("UPDATE accounts SET balance = 0"))
        reader.session.scalar(text("SELECT 1"))


def test_the_level_of_the_engine(other: Engine) -> None:
    """A unit's own level comes before that of the engine, which the next user finds again."""
    with one_connection(other, isolation_level="READ UNCOMMITTED") as engine:
        with SqlBank(engine, isolation="SERIALIZABLE") as reader, SqlBank(other, lock_timeout=1) as writer:
            assert 10 == balance(reader)

            with pytest.raises(LockTimeout), writer.nested():
                writer.session.execute(text("UPDATE accounts SET balance = 0"))

        with SqlBank(engine) as reader, SqlBank(other) as writer:
            writer.session.execute(text("UPDATE accounts SET balance = 0"))

            assert 0 == balance(reader)

            writer.rollback()


def test_a_statement_that_takes_too_long(engine: Engine) -> None:
    """It fails; around a nested scope the unit goes on, and a rollback to the savepoint does not lose the limit."""
    with SqlBank(engine, statement_timeout=0.05) as bank:
        bank.accounts.get("A").balance = 11
        for _ in range(2):
            with pytest.raises(StatementTimeout) as raised, bank.nested() as nested:
                nested.accounts.get("B").balance = 12
                nested.flush()
                nested.session.execute(text("SELECT SLEEP(60)"))

            assert 1969 == raised.value.code

        bank.commit()

    with SqlBank(engine) as bank:
        assert [11, 10] == [account.balance for account in bank.accounts.list(order_by=lambda a: a.number)]


@pytest.mark.parametrize("lock", ["SELECT * FROM accounts FOR UPDATE", "LOCK TABLES accounts WRITE"])
def test_a_lock_that_is_not_free_in_time(engine: Engine, other: Engine, lock: str) -> None:
    """The statement that waits for it fails, be it the lock of a row or of a table."""
    with other.connect() as holder, SqlBank(engine, lock_timeout=1) as bank:
        holder.exec_driver_sql(lock)
        with pytest.raises(LockTimeout) as raised, bank.nested():
            bank.session.execute(text("UPDATE accounts SET balance = 0"))
        holder.exec_driver_sql("UNLOCK TABLES")

    assert 1205 == raised.value.code


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("statement_timeout", 1e9, "31536000.000000"),
        ("statement_timeout", 1e-9, "0.000001"),
        ("lock_timeout", 1e9, "31536000"),
        ("lock_timeout", 2.0, "2"),
    ],
)
def test_limits_beyond_those_of_the_server(engine: Engine, option: str, value: float, expected: str) -> None:
    """What is too long to be counted is the longest that is; what is too short is the shortest, and not for ever."""
    variable = {"statement_timeout": "max_statement_time", "lock_timeout": "lock_wait_timeout"}[option]
    options: dict[str, Any] = {option: value}
    with SqlBank(engine, **options) as bank:
        assert expected == str(bank.session.scalar(text(f"SELECT CAST(@@{variable} AS CHAR)")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"isolation": "snapshot"},
            "MariaDB has no isolation level 'SNAPSHOT'. "
            "Take one of READ UNCOMMITTED, READ COMMITTED, REPEATABLE READ, SERIALIZABLE.",
        ),
        (
            {"isolation": "SERIALIZABLE", "read_only": True, "deferrable": True},
            "MariaDB has no deferrable transactions. Leave deferrable out.",
        ),
        (
            {"lock_timeout": 0.5},
            "lock_timeout is 0.5, and MariaDB waits whole seconds for a lock. Pass a whole number of seconds.",
        ),
    ],
)
def test_what_mariadb_cannot_do(engine: Engine, options: dict[str, Any], message: str) -> None:
    """What the server cannot do is refused when the unit is made."""
    with pytest.raises(ConfigurationError) as raised:
        SqlBank(engine, **options)

    assert f"Wrong configuration: {message}" == str(raised.value)


@pytest.mark.parametrize(
    ("code", "kind"), [(1317, StatementTimeout), (3024, StatementTimeout), (1792, ReadOnlyTransaction)]
)
def test_codes(code: int, kind: type[DatabaseError]) -> None:
    """What somebody killed with KILL QUERY, and what MySQL says of its own limit, is told by the code."""
    assert kind is type(translate(pymysql.err.OperationalError(code, "said"), "mysql"))


# ------------------------------------------------------------------------------------------- what the next user finds


def ends_well(bank: SqlBank, other: Engine) -> None:
    bank.commit()


def is_left(bank: SqlBank, other: Engine) -> None:
    """Do no more."""


def is_rolled_back(bank: SqlBank, other: Engine) -> None:
    with bank.nested() as nested:
        nested.session.execute(text("SELECT 1"))
        nested.rollback()
    bank.rollback()


def fails(bank: SqlBank, other: Engine) -> None:
    bank.session.execute(text("nonsense"))


def is_interrupted(bank: SqlBank, other: Engine) -> None:
    raise KeyboardInterrupt


def is_killed(bank: SqlBank, other: Engine) -> None:
    kill(bank, other)
    bank.session.execute(text("SELECT 1"))


def is_killed_and_left(bank: SqlBank, other: Engine) -> None:
    kill(bank, other)


@pytest.mark.parametrize("own", [None, OWN], ids=["defaults", "init_command"])
@pytest.mark.parametrize(
    "end", [ends_well, is_left, is_rolled_back, fails, is_interrupted, is_killed, is_killed_and_left]
)
def test_the_next_user_finds_what_was_there(
    other: Engine, end: Callable[[SqlBank, Engine], None], own: str | None
) -> None:
    """However a unit ends, the variables of the session are afterwards what they were before."""
    with one_connection(other, connect_args={"init_command": own}) as engine:
        before = found(engine)
        with suppress(DatabaseError, KeyboardInterrupt), SqlBank(engine, **EVERYTHING) as bank:
            during = bank.session.execute(
                text("SELECT @@tx_isolation, @@tx_read_only, @@max_statement_time, @@lock_wait_timeout")
            ).one()

            assert ("SERIALIZABLE", 1, 5.5, 3) == tuple(during)

            end(bank, other)

        after = found(engine)

        assert before[1:] == after[1:]
        assert (before[0] == after[0]) is (end not in {is_killed, is_killed_and_left})


def test_a_unit_without_options_after_one_with_them(engine: Engine) -> None:
    """It sends nothing of its own."""
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    for options in (EVERYTHING, {}):
        sent.clear()
        with SqlBank(engine, **options) as bank:
            bank.session.execute(text("SELECT 1"))

        assert (3 if options else 1) == len(sent), sent


def test_a_connection_that_is_lost_after_commit(engine: Engine, other: Engine) -> None:
    """What cannot be put back any more goes with the connection, and the commit stands."""
    before = found(engine)
    factory = sessionmaker(engine)
    bank = SqlBank(factory, lock_timeout=1)

    @event.listens_for(factory, "after_commit")
    def lose(session: object) -> None:
        with other.connect() as connection:
            connection.exec_driver_sql(f"KILL {before[0]}")

    with bank:
        bank.accounts.get("A").balance = 11
        bank.commit()

    after = found(engine)

    assert before[1:] == after[1:]
    assert before[0] != after[0]

    with SqlBank(engine) as again:
        assert 11 == balance(again)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("moment", ["before_cursor_execute", "after_cursor_execute"])
@pytest.mark.parametrize("verb", ["SET @uow_", "SET SESSION"])
def test_options_that_cannot_be_set_or_put_back(
    engine: Engine, moment: str, verb: str, error: type[BaseException]
) -> None:
    """Nobody gets a connection that is half set; what stopped a unit arrives, unless the unit was over."""
    before = found(engine)

    def stop(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith(verb):
            raise error

    event.listen(engine, moment, stop)
    arrives = verb == "SET @uow_" or error is KeyboardInterrupt
    with pytest.raises(error) if arrives else nullcontext(), SqlBank(engine, **EVERYTHING) as bank:
        bank.session.execute(text("SELECT 1"))
    event.remove(engine, moment, stop)

    assert before[1:] == found(engine)[1:]
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------- deadlocks


def test_a_deadlock_takes_the_savepoints(other: Engine) -> None:
    """Caught around a nested scope it dooms the root all the same: commit is refused, and nothing is kept."""
    meet = threading.Barrier(2, timeout=30)

    def move(first: str, second: str) -> BaseException | None:
        try:
            with SqlBank(other) as bank:
                bank.accounts.add(Account(f"{first} was first", "Ann"))
                bank.accounts.get(first).balance += 1
                bank.flush()
                meet.wait()
                with suppress(Deadlock), bank.nested() as nested:
                    nested.accounts.get(second, lock=Lock.UPDATE).balance += 1
                bank.commit()
        except UnitOfWorkRolledBack as error:
            return error.__cause__
        return None

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(move, ("A", "B"), ("B", "A"))
    error, winner = (one, "B was first") if one else (two, "A was first")

    assert isinstance(error, Deadlock)

    with SqlBank(other) as bank:
        assert {"A": 11, "B": 11, winner: 0} == {account.number: account.balance for account in bank.accounts.list()}
