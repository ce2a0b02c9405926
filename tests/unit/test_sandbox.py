"""
The sandbox: the code under test commits on a real database, and nothing of it is left.
"""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import URL, Engine, StaticPool, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from uow import State
from uow.errors import (
    ConfigurationError,
    ConnectionLost,
    DatabaseError,
    ForeignKeyViolation,
    ReadOnlyTransaction,
    ReadOnlyUnitOfWork,
    UniqueViolation,
    UnitOfWorkRolledBack,
)
from uow.testing import record_statements, sandbox
from uow.testing._async_sqlalchemy import AsyncSqlBank
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlBank, accounts, metadata

ENDED = "something ended the sandbox's transaction, and what was done before may be in the database"
ASYNC_DRIVERS = {
    "sqlite+aiosqlite": "sqlite_url",
    "postgresql+psycopg_async": "postgresql_url",
    "postgresql+asyncpg": "postgresql_url",
    "mysql+aiomysql": "mariadb_url",
}


def prepared(url: URL) -> Iterator[Engine]:
    """Yield an engine on a database with one account; whatever a test did, the next one finds the same."""
    engine = create_engine(url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(accounts.delete())
        connection.execute(accounts.insert().values(number="before", owner="Ann", balance=0))
    yield engine
    with engine.begin() as connection:
        connection.execute(accounts.delete())
    engine.dispose()


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    """Each of the databases in turn."""
    yield from prepared(database_url)


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[Engine]:
    yield from prepared(postgresql_url)


@pytest.fixture
def sqlite(sqlite_url: URL) -> Iterator[Engine]:
    yield from prepared(sqlite_url)


def numbers(engine: Engine) -> list[str]:
    with SqlBank(engine) as bank:
        return [account.number for account in bank.accounts.list(order_by=lambda a: a.number)]


def seen(engine: Engine) -> list[str]:
    """Return what a connection of its own sees."""
    with engine.connect() as connection:
        return list(connection.scalars(select(accounts.c.number).order_by(accounts.c.number)))


def add(engine: Engine, *new: str, **options: Any) -> SqlBank:
    bank = SqlBank(engine, **options)
    with bank:
        bank.accounts.add_all([Account(number, "Bob") for number in new])
        bank.commit()
    return bank


# --------------------------------------------------------------------------------------------------- what works inside


def test_units_commit_and_nothing_is_left(engine: Engine) -> None:
    """Each unit sees what those before it committed; another connection never does."""
    with sandbox(engine) as inside:
        assert State.COMMITTED is add(inside, "one").state
        add(inside, "two")

        assert ["before", "one", "two"] == numbers(inside)
        assert ["before"] == seen(engine)

    assert ["before"] == seen(engine)
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]


def test_rollbacks_undo_their_unit_alone(engine: Engine) -> None:
    """A unit that rolls back, or fails, leaves what was committed before; so does a nested scope."""
    with sandbox(engine) as inside:
        add(inside, "one")
        with SqlBank(inside) as bank:
            bank.accounts.add(Account("two", "Bob"))
            bank.flush()
            bank.rollback()
        with pytest.raises(UniqueViolation):
            add(inside, "three", "one")
        with SqlBank(inside) as bank:
            bank.accounts.add(Account("four", "Bob"))
            with suppress(UniqueViolation), bank.nested():
                bank.accounts.add(Account("one", "Bob"))
            with bank.nested(), bank.nested():
                bank.accounts.get("before").balance = 7
            bank.commit()

        assert ["before", "four", "one"] == numbers(inside)

    with SqlBank(engine) as bank:
        assert 0 == bank.accounts.get("before").balance


def test_a_swallowed_error_is_not_lost(engine: Engine) -> None:
    """The unit's promises hold inside."""
    with sandbox(engine) as inside:
        with pytest.raises(UnitOfWorkRolledBack), SqlBank(inside) as bank:
            with suppress(UniqueViolation):
                bank.accounts.add(Account("before", "Bob"))
                bank.flush()
            bank.commit()

        assert ["before"] == numbers(inside)


def test_hooks_run_after_the_commit(engine: Engine) -> None:
    """They find the connection free, as after a real COMMIT."""
    found: list[list[str]] = []
    with sandbox(engine) as inside, SqlBank(inside) as bank:
        bank.accounts.add(Account("one", "Bob"))
        bank.after_commit(lambda: found.append(numbers(inside)))
        bank.commit()

    assert [["before", "one"]] == found


def test_what_is_sent_is_what_would_be_sent(engine: Engine) -> None:
    """The sandbox's own savepoints are not among the statements of the code under test."""

    def work(bank: SqlBank) -> None:
        with bank:
            with bank.nested():
                bank.accounts.add(Account("one", "Bob"))
            bank.commit()

    with sandbox(engine) as inside, record_statements(inside) as sent_inside:
        work(SqlBank(inside))
    with record_statements(engine) as sent:
        work(SqlBank(engine))

    assert [statement for statement in sent if not statement.startswith("BEGIN")] == sent_inside
    assert "COMMIT" == sent[-1]


def test_plain_sessions_and_connections(engine: Engine) -> None:
    """The code under test may go past the units, with COMMIT and ROLLBACK of its own."""
    with sandbox(engine) as inside:
        with Session(inside) as session:
            session.add(Account("one", "Bob"))
            session.commit()
            session.add(Account("two", "Bob"))
            session.flush()
            session.rollback()
            assert 2 == session.scalar(select(func.count()).select_from(accounts))
        with inside.begin() as connection:
            connection.execute(accounts.update().values(owner="Eve"))
        with inside.connect() as connection:
            connection.execute(accounts.delete())
        with SqlBank(sessionmaker(inside)) as bank:
            assert {"Eve"} == {account.owner for account in bank.accounts.list()}

    assert ["before"] == seen(engine)


def test_a_connection_that_was_forgotten(engine: Engine) -> None:
    """What is collected without being closed is rolled back, as a pool does."""
    with sandbox(engine) as inside:
        connection = inside.connect()
        connection.execute(accounts.delete())
        del connection
        gc.collect()

        assert ["before"] == numbers(inside)


def test_a_commit_that_fails_ends_the_transaction(postgresql: Engine) -> None:
    """What cannot be committed is gone, and the next one begins afresh."""
    with sandbox(postgresql) as inside:
        with inside.connect() as connection:
            connection.execute(accounts.delete())
            with suppress(DBAPIError):
                connection.execute(text("nonsense"))
            with pytest.raises(DBAPIError, match="current transaction is aborted"):
                connection.commit()

        assert ["before"] == numbers(inside)


def test_deferred_constraints_are_checked_at_commit(postgresql: Engine) -> None:
    """They stay deferred, for every unit."""
    with postgresql.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS cards"))
        connection.execute(
            text("CREATE TABLE cards (owner varchar(40) REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)")
        )
    try:
        with sandbox(postgresql) as inside:
            for number in ("one", "two"):
                with SqlBank(inside) as bank:
                    bank.session.execute(text("INSERT INTO cards VALUES (:number)"), {"number": number})
                    bank.accounts.add(Account(number, "Bob"))
                    bank.commit()
            with pytest.raises(ForeignKeyViolation), SqlBank(inside) as bank:
                bank.session.execute(text("INSERT INTO cards VALUES ('nobody')"))
                bank.flush()
                bank.commit()

            assert ["before", "one", "two"] == numbers(inside)
    finally:
        with postgresql.begin() as connection:
            connection.execute(text("DROP TABLE cards"))


def test_an_engine_in_memory() -> None:
    """A database of one connection, as SQLite in memory, has its tables inside too."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    metadata.create_all(engine)
    with sandbox(engine) as inside:
        add(inside, "one")

        assert ["one"] == numbers(inside)

    assert [] == numbers(engine)
    engine.dispose()


def test_the_engine_may_be_disposed_of(engine: Engine) -> None:
    """Code under test that closes its engine closes nothing of the sandbox."""
    with sandbox(engine) as inside:
        add(inside, "one")
        inside.dispose()

        assert ["before", "one"] == numbers(inside)


def test_the_engines_options_hold_inside(engine: Engine) -> None:
    """Execution options are taken over, but for the isolation level, which the one transaction has already."""
    chosen = engine.execution_options(isolation_level="SERIALIZABLE", schema_translate_map={"x": None})
    with sandbox(chosen) as inside:
        assert {"schema_translate_map": {"x": None}} == dict(inside.get_execution_options())
        assert ["before"] == numbers(inside)


def test_listeners_of_the_engine_hear_nothing(engine: Engine) -> None:
    """What is told to the sandbox's engine is told to nobody else."""
    outside: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: outside.append(args[2]))
    event.listen(engine.dialect, "do_execute", lambda *args: outside.append(args[1]))
    with sandbox(engine) as inside:
        outside.clear()
        with record_statements(inside) as heard:
            assert ["before"] == numbers(inside)
        assert [] == outside

    assert "ROLLBACK" == heard[-1]


# ----------------------------------------------------------------------------------------------------------- options


def test_the_isolation_level_is_the_sandboxs(engine: Engine) -> None:
    """A unit that asks for another one is refused when it is made, and a connection when it asks."""
    with sandbox(engine) as inside:
        if engine.dialect.name != "sqlite":
            with pytest.raises(ConfigurationError, match=r"SERIALIZABLE is asked for, .* with the database's default"):
                SqlBank(inside, isolation="SERIALIZABLE")
        with pytest.raises(ConfigurationError, match=r"isolation level"):
            SqlBank(inside, isolation="CHAOS")
    with sandbox(engine, isolation="SERIALIZABLE") as inside:
        add(inside, "one", isolation="SERIALIZABLE")
        with inside.connect() as connection:
            connection.execution_options(isolation_level="SERIALIZABLE")
            with pytest.raises(ConfigurationError, match=r"AUTOCOMMIT is asked for, .* with SERIALIZABLE as isolation"):
                connection.execution_options(isolation_level="AUTOCOMMIT")

        assert ["before", "one"] == numbers(inside)

    with pytest.raises(ConfigurationError, match="has no isolation level 'CHAOS'"), sandbox(engine, isolation="CHAOS"):
        raise AssertionError("not entered")

    assert ["before"] == seen(engine)


def test_read_only_units(engine: Engine) -> None:
    """The port refuses writes everywhere, PostgreSQL and SQLite too; the next unit writes."""
    refusal = ReadOnlyUnitOfWork if engine.dialect.name == "mysql" else ReadOnlyTransaction
    with sandbox(engine) as inside:
        with SqlBank(inside, read_only=True) as bank:
            with pytest.raises(ReadOnlyUnitOfWork):
                bank.accounts.add(Account("one", "Bob"))
            with suppress(refusal), bank.nested():
                bank.session.execute(accounts.delete())
            bank.rollback()
        add(inside, "one")

        assert ["before", "one"] == numbers(inside)

    read_only = pytest.raises(refusal)
    with sandbox(engine) as inside, read_only, SqlBank(inside, read_only=True) as bank:
        bank.session.execute(accounts.delete())


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_limits_of_time_are_taken_back(engine: Engine, end: str) -> None:
    """A unit has them, and the next one has the defaults."""
    if engine.dialect.name == "sqlite":
        options: dict[str, Any] = {"lock_timeout": 3}
        ask = "SELECT '3s'"  # nobody waits in a sandbox on SQLite
    elif engine.dialect.name == "postgresql":
        options, ask = {"lock_timeout": 3, "statement_timeout": 60}, "SHOW lock_timeout"
    else:
        options, ask = {"lock_timeout": 3}, "SELECT CONCAT(@@innodb_lock_wait_timeout, 's')"
    with sandbox(engine) as inside:
        with SqlBank(inside) as bank:
            before = bank.session.scalar(text(ask))
        with SqlBank(inside, **options) as bank:
            assert "3s" == bank.session.scalar(text(ask))
            getattr(bank, end)()
        with SqlBank(inside) as bank:
            assert before == bank.session.scalar(text(ask))


# ------------------------------------------------------------------------------------------------------ what is refused


def test_one_connection_at_a_time(engine: Engine) -> None:
    """A second unit, session or connection is an error that says so, and changes nothing for the first."""
    one = "a sandbox has one connection, and another unit, session or connection is using it"
    with sandbox(engine) as inside, SqlBank(inside) as bank:
        bank.accounts.add(Account("one", "Bob"))
        bank.flush()
        with pytest.raises(ConfigurationError, match=one), bank.independent() as other:
            other.accounts.count()
        with pytest.raises(ConfigurationError, match=one), Session(inside) as session:
            session.scalar(select(1))
        with pytest.raises(ConfigurationError, match=one):
            inside.connect()
        bank.commit()

        assert ["before", "one"] == numbers(inside)


def test_whoever_holds_the_connection_at_the_end_is_told(engine: Engine) -> None:
    """It was rolled back all the same; the engine is of no use afterwards."""
    left = "the sandbox was left, and its engine with it"
    with pytest.raises(ConfigurationError, match="left while somebody still holds its connection"):
        with sandbox(engine) as inside:
            connection = inside.connect()
            connection.execute(accounts.delete())
    with pytest.raises(ConfigurationError, match=left):
        connection.commit()

    connection.close()
    assert ["before"] == seen(engine)
    with pytest.raises(ConfigurationError, match=left):
        numbers(inside)


def test_a_unit_that_is_left_after_the_sandbox(engine: Engine) -> None:
    """What it had set goes with the connection, which nobody is given again."""
    with pytest.raises(ConfigurationError, match="left while somebody still holds its connection"):
        with sandbox(engine) as inside:
            bank = SqlBank(inside, read_only=True, lock_timeout=3).__enter__()
            assert 1 == bank.accounts.count()
    with suppress(DatabaseError):
        bank.__exit__(None, None, None)

    add(engine, "one")
    assert ["before", "one"] == seen(engine)


def test_an_error_in_the_block_goes_on(engine: Engine) -> None:
    """What the sandbox would complain about is no news then."""
    with pytest.raises(ValueError, match="mine"), sandbox(engine) as inside:
        connection = inside.connect()
        raise ValueError("mine")

    connection.close()
    assert ["before"] == seen(engine)


def test_a_transaction_that_somebody_ended(engine: Engine) -> None:
    """A statement that commits cannot be undone, so the sandbox does not stay silent."""
    statement = "CREATE TABLE IF NOT EXISTS mischief (id integer)" if engine.dialect.name == "mysql" else "COMMIT"
    with pytest.raises(ConfigurationError, match=ENDED), sandbox(engine) as inside:
        add(inside, "one")
        with suppress(DBAPIError), inside.connect() as connection:
            connection.execute(text(statement))
            connection.commit()

    assert ["before", "one"] == seen(engine)
    add(engine, "two")


def test_a_connection_that_is_lost(engine: Engine) -> None:
    """The sandbox went with it, and says so from then on."""
    with pytest.raises(ConfigurationError, match=ENDED), sandbox(engine) as inside:
        add(inside, "one")
        with inside.connect() as connection:
            connection.execute(select(1))
            connection.invalidate()
        with pytest.raises(ConfigurationError, match="the sandbox's connection was lost or thrown away"):
            numbers(inside)

    assert ["before"] == seen(engine)


def test_a_server_that_goes_away(postgresql: Engine) -> None:
    """The unit gets the error that it would get."""
    with pytest.raises(ConfigurationError, match=ENDED), sandbox(postgresql) as inside:
        with suppress(ConnectionLost), SqlBank(inside) as bank:
            number = bank.session.scalar(text("SELECT pg_backend_pid()"))
            with postgresql.connect() as other:
                other.execute(text(f"SELECT pg_terminate_backend({number}, 5000)"))
            bank.accounts.count()

        assert State.ROLLED_BACK is bank.state


def test_two_phases_are_refused(postgresql: Engine) -> None:
    """PREPARE would take the whole sandbox with it."""
    with sandbox(postgresql) as inside, inside.connect() as connection:
        with pytest.raises(ConfigurationError, match="there is no two-phase commit in a sandbox"):
            connection.begin_twophase()


def test_a_sandbox_that_cannot_begin(sqlite: Engine) -> None:
    """The connection goes back."""

    @event.listens_for(sqlite, "before_cursor_execute")
    def refuse(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("SAVEPOINT"):
            raise RuntimeError("no savepoints today")

    with pytest.raises(RuntimeError, match="no savepoints today"), sandbox(sqlite):
        raise AssertionError("not entered")

    assert 0 == sqlite.pool.checkedout()  # type: ignore[attr-defined]
    with pytest.raises(DatabaseError), sandbox(create_engine("sqlite:////nowhere/at/all.db")):
        raise AssertionError("not entered")


# ------------------------------------------------------------------------------------------------------ asynchronously


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
def test_asynchronous_units(driver: str, request: pytest.FixtureRequest) -> None:
    """The same for an ``AsyncEngine``, entered with ``async with``."""
    url: URL = request.getfixturevalue(ASYNC_DRIVERS[driver])
    found: list[str] = []

    async def work(inside: AsyncEngine) -> None:
        async with AsyncSqlBank(inside) as bank:
            bank.accounts.add(Account("one", "Bob"))
            async with bank.nested():
                bank.accounts.add(Account("two", "Bob"))
            bank.after_commit(lambda: found.append("hook"))
            await bank.commit()
        async with AsyncSqlBank(inside) as bank:
            bank.accounts.add(Account("three", "Bob"))
            await bank.flush()
            await bank.rollback()
        with pytest.raises(UniqueViolation):
            async with AsyncSqlBank(inside) as bank:
                bank.accounts.add(Account("one", "Bob"))
                await bank.commit()
        async with AsyncSession(inside) as session:
            session.add(Account("four", "Bob"))
            await session.commit()
        with record_statements(inside) as sent:
            async with AsyncSqlBank(inside, read_only=True) as bank:
                found.extend(sorted([account.number for account in await bank.accounts.list()]))
                await bank.commit()
        assert "COMMIT" == sent[-1]

    async def main() -> None:
        engine = create_async_engine(url.set(drivername=driver))
        async with sandbox(engine) as inside:
            await work(inside)
        with pytest.raises(ValueError, match="mine"):
            async with sandbox(engine) as inside:
                raise ValueError("mine")
        with pytest.raises(ConfigurationError, match="somebody still holds its connection"):
            async with sandbox(engine) as inside:
                connection = await inside.connect()
        await connection.close()
        async with AsyncSqlBank(engine) as bank:
            found.append(str(await bank.accounts.count()))
        await engine.dispose()

    for _ in prepared(url):
        asyncio.run(main())

    assert ["hook", "before", "four", "one", "two", "1"] == found
