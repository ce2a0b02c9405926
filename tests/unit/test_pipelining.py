"""
What only controls a transaction rides with the next statement: PostgreSQL's pipeline mode, through psycopg.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql.elements import SavepointClause
from sqlalchemy.util import await_only

from uow.adapters.sqlalchemy._connection import _CONTROL
from uow.adapters.sqlalchemy._pipelining import ride, serve
from uow.errors import (
    CheckViolation,
    CommitOutcomeUnknown,
    ConnectionLost,
    DatabaseError,
    StatementTimeout,
    UniqueViolation,
)
from uow.testing import FaultProxy, record_statements
from uow.testing._async_sqlalchemy import AsyncSqlBank
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlBank, metadata


@pytest.fixture
def proxy(postgresql_url: URL) -> Iterator[FaultProxy]:
    direct = create_engine(postgresql_url)
    metadata.create_all(direct)
    with direct.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    direct.dispose()
    with FaultProxy.to(postgresql_url) as made:
        yield made


@pytest.fixture
def engine(request: pytest.FixtureRequest, proxy: FaultProxy, postgresql_url: URL) -> Iterator[Engine]:
    made = create_engine(proxy.url(postgresql_url), execution_options=getattr(request, "param", {}))
    with made.connect():
        pass  # what SQLAlchemy asks a server at first is not to be counted
    yield made
    made.dispose()


WITHOUT = {"uow_pipeline": False}
EITHER_WAY = pytest.mark.parametrize("engine", [{}, WITHOUT], ids=["pipeline", "one text"], indirect=True)


def add(engine: Engine, *numbers: str) -> None:
    with SqlBank(engine) as bank:
        for number in numbers:
            bank.accounts.add(Account(number, "Ann"))
        bank.commit()


def several(engine: Engine) -> None:
    add(engine, "B", "C", "D")


def get(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        bank.accounts.get("A")


def change(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        bank.accounts.get("A").balance += 1
        bank.commit()


def nested(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        for number in range(100):
            with bank.nested():
                bank.accounts.add(Account(f"{number}", "Ann"))
        bank.commit()


def half_undone(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        for number in range(100):
            with bank.nested() as inner:
                inner.accounts.add(Account(f"{number}", "Ann"))
                inner.flush()
                if number % 2:
                    inner.rollback()
        bank.commit()


def many(engine: Engine) -> None:
    statement = text("INSERT INTO accounts VALUES (:n, 'Ann', 0)")
    with SqlBank(engine) as bank:
        bank.session.execute(statement, [{"n": "B"}, {"n": "C"}])
        bank.commit()


def empty(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        bank.accounts.get("A")
        for _ in range(100):
            with bank.nested():
                pass


@pytest.mark.parametrize(
    ("work", "trips"), [(add, 2), (several, 2), (get, 2), (change, 3), (nested, 101), (half_undone, 101), (empty, 2)]
)
def test_control_costs_no_round_trip(engine: Engine, proxy: FaultProxy, work: Callable[..., None], trips: int) -> None:
    """Each data statement is one round trip, and the end of the transaction another; that is all."""
    add(engine, "A")
    before = proxy.round_trips

    work(engine, *["B"] * (work is add))

    assert trips == proxy.round_trips - before


@pytest.mark.parametrize(
    ("work", "trips"), [(add, 3), (get, 3), (change, 4), (nested, 201), (half_undone, 201), (many, 3), (empty, 3)]
)
def test_without_a_pipeline(
    drive: Any, proxy: FaultProxy, postgresql_url: URL, work: Callable[..., None], trips: int
) -> None:
    """What controls the transaction costs one round trip before a statement, however much it is; none before COMMIT."""
    direct = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")

    def count(engine: Engine) -> int:
        for _ in range(8):  # until the driver has prepared what it prepares
            with direct.connect() as connection:
                connection.exec_driver_sql("DELETE FROM accounts; INSERT INTO accounts VALUES ('A', 'Ann', 0)")
            before = proxy.round_trips
            work(engine, *["B"] * (work is add))
        return proxy.round_trips - before

    reached = {"host": "127.0.0.1", "port": proxy.port}
    late = drive.driver == "asyncpg" and work is half_undone  # the last ROLLBACK TO does not wait for COMMIT
    assert trips + late == drive(count, connect_args=reached, execution_options=WITHOUT)
    direct.dispose()


def test_engines_that_share_a_pool(engine: Engine, proxy: FaultProxy) -> None:
    """Each unit does what its own engine says, whatever the one before did on the same connection."""
    without = engine.execution_options(**WITHOUT)
    counts = []
    for number, one in enumerate([engine, without, engine, without]):
        before = proxy.round_trips
        add(one, f"{number}")
        counts.append(proxy.round_trips - before)

    assert [2, 3, 2, 3] == counts


def test_a_libpq_that_has_no_pipeline(proxy: FaultProxy, postgresql_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs what it costs without the option."""
    monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    engine = create_engine(proxy.url(postgresql_url))
    add(engine, "A")
    before = proxy.round_trips

    add(engine, "B")

    assert 3 == proxy.round_trips - before
    engine.dispose()


def test_the_same_statements_are_seen(engine: Engine, postgresql_url: URL) -> None:
    """What listens to the engine hears of SAVEPOINT and its like, as without a pipeline."""
    plain = create_engine(postgresql_url, execution_options={"uow_pipeline": False})
    heard = []
    for one in (engine, plain):
        with record_statements(one) as sent, SqlBank(one) as bank:
            for number in "AB":
                with bank.nested():
                    bank.accounts.add(Account(number, "Ann"))
            bank.rollback()
        heard.append("; ".join(sent).split("; "))
    plain.dispose()

    assert heard[0] == heard[1]
    assert ["SAVEPOINT uow_1", "RELEASE SAVEPOINT uow_1", "SAVEPOINT uow_1"] == [heard[0][n] for n in (0, 2, 3)]


@EITHER_WAY
def test_an_error_surfaces_where_it_was_made(engine: Engine) -> None:
    """The scope that it happened in fails alone, and nothing else is blamed."""
    with SqlBank(engine) as bank:
        bank.accounts.add(Account("A", "Ann"))
        with pytest.raises(UniqueViolation) as caught, bank.nested():
            bank.flush()
            bank.session.execute(text("INSERT INTO accounts VALUES ('A', 'Ann', 0)"))
        with pytest.raises(CheckViolation), bank.nested():
            bank.accounts.add(Account("B", "Ann", -2000))
        with bank.nested():
            bank.accounts.add(Account("C", "Ann"))
        bank.commit()

    assert not hasattr(caught.value.__cause__, "__notes__")
    with SqlBank(engine) as bank:
        assert ["A", "C"] == [account.number for account in bank.accounts.list(order_by=lambda a: a.number)]


@pytest.mark.parametrize("pipeline", [True, False])
def test_a_command_that_failed_is_named(postgresql_url: URL, pipeline: bool) -> None:
    """A savepoint that is not there is not blamed on the statement that its end rode with."""
    engine = create_engine(postgresql_url)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.autocommit = True
        assert serve(driver, pipeline=pipeline)
        ride(driver, "BEGIN")
        ride(driver, "RELEASE SAVEPOINT uow_1")
        with pytest.raises(psycopg.errors.InvalidSavepointSpecification) as caught:
            driver.execute("SELECT %s", (1,))
        driver.rollback()
        connection.invalidate()
    engine.dispose()

    assert ["One of BEGIN, RELEASE SAVEPOINT uow_1 failed, which were sent together with this statement."] == (
        caught.value.__notes__
    )


@EITHER_WAY
def test_nothing_is_left_of_it_in_the_pool(engine: Engine) -> None:
    """Who takes the connection after a unit finds psycopg's own transactions."""
    add(engine, "A")
    with SqlBank(engine) as bank:
        bank.accounts.get("A")
        with bank.nested():
            pass
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert not driver.autocommit
        assert 1 == connection.scalar(text("SELECT count(*) FROM accounts"))
        assert driver.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS


@EITHER_WAY
def test_a_connection_that_the_user_has_waits_for_nothing(engine: Engine) -> None:
    """What the driver is told past SQLAlchemy is inside the transaction and its savepoint."""
    with SqlBank(engine) as bank:
        driver: Any = bank.session.connection().connection.driver_connection
        with driver.cursor().copy("COPY accounts (number, owner, balance) FROM STDIN") as copy:
            copy.write_row(("A", "Ann", 0))
        with bank.nested() as inner:
            with driver.cursor().copy("COPY accounts (number, owner, balance) FROM STDIN") as copy:
                copy.write_row(("B", "Ann", 0))
            inner.rollback()
        assert 1 == bank.accounts.count()
    with SqlBank(engine) as bank:
        assert 0 == bank.accounts.count()


@EITHER_WAY
@pytest.mark.parametrize(
    "work",
    [
        lambda session: session.execute(text("SELECT 1; SELECT 2")),
        lambda session: session.execute(text("INSERT INTO accounts VALUES (:n, 'Ann', 0)"), [{"n": "A"}, {"n": "B"}]),
        lambda session: session.execute(text("SELECT 1").execution_options(stream_results=True)).all(),
    ],
    ids=["several statements", "many parameters", "a server's cursor"],
)
def test_what_no_pipeline_can_carry_comes_after_it(engine: Engine, work: Callable[[Any], object]) -> None:
    """A text of several statements, executemany() and a server-side cursor go alone, in the transaction."""
    with SqlBank(engine) as bank:
        with bank.nested() as inner:
            work(bank.session)
            inner.rollback()
        assert 0 == bank.accounts.count()


@EITHER_WAY
def test_many_parameters_twice(engine: Engine) -> None:
    """What waits goes with the first executemany(), and nothing with the second."""
    statement = text("INSERT INTO accounts VALUES (:n, 'Ann', 0)")
    with SqlBank(engine) as bank:
        for names in ("AB", "CD"):
            bank.session.execute(statement, [{"n": name} for name in names])
        assert 4 == bank.accounts.count()


def test_the_cursors_of_the_user_are_left_alone(proxy: FaultProxy, postgresql_url: URL) -> None:
    """An engine with its own kind of cursor works without a pipeline."""
    engine = create_engine(proxy.url(postgresql_url), connect_args={"cursor_factory": psycopg.ClientCursor})
    add(engine, "A")
    before = proxy.round_trips

    add(engine, "B")

    assert 3 == proxy.round_trips - before
    engine.dispose()


def test_options_ride_too(engine: Engine, proxy: FaultProxy) -> None:
    """BEGIN says the level, and SET LOCAL costs no round trip; both hold."""
    before = proxy.round_trips
    with SqlBank(engine, isolation="SERIALIZABLE", read_only=True, deferrable=True, lock_timeout=7) as bank:
        shown = bank.session.scalars(
            text(
                "SELECT current_setting(name) FROM unnest(ARRAY['transaction_isolation', 'transaction_read_only',"
                " 'transaction_deferrable', 'lock_timeout']) AS name"
            )
        ).all()

    assert ["serializable", "on", "on", "7s"] == shown
    assert 2 == proxy.round_trips - before


def test_options_without_a_pipeline(proxy: FaultProxy, postgresql_url: URL) -> None:
    """psycopg's own BEGIN says them, and its connection has its own modes again in the pool."""
    engine = create_engine(proxy.url(postgresql_url), connect_args={"cursor_factory": psycopg.ClientCursor})
    with SqlBank(engine, isolation="SERIALIZABLE", read_only=True) as bank:
        assert "serializable" == bank.session.scalar(text("SHOW transaction_isolation"))
    with engine.connect() as connection:
        assert "read committed" == connection.scalar(text("SHOW transaction_isolation"))
    engine.dispose()


def test_the_modes_of_the_engine_hold(proxy: FaultProxy, postgresql_url: URL) -> None:
    """The level that the engine was made with is in BEGIN."""
    engine = create_engine(proxy.url(postgresql_url), isolation_level="REPEATABLE READ")
    with SqlBank(engine) as bank:
        assert "repeatable read" == bank.session.scalar(text("SHOW transaction_isolation"))
    engine.dispose()


def test_a_limit_on_statements_counts_for_each(engine: Engine) -> None:
    """A timeout ends the statement that is too slow, and the scope fails alone."""
    with SqlBank(engine, statement_timeout=0.2) as bank:
        with pytest.raises(StatementTimeout), bank.nested():
            bank.session.execute(text("SELECT pg_sleep(:s)"), {"s": 5})
        assert 0 == bank.accounts.count()


@EITHER_WAY
@pytest.mark.parametrize("fault", ["drop_request", "drop_reply", "half_open"])
def test_a_lost_connection_is_noticed(engine: Engine, proxy: FaultProxy, fault: str) -> None:
    """Whatever is lost of a pipeline, the unit is lost with it, and none of it is kept."""
    getattr(proxy, fault)(b"INSERT INTO accounts")
    with pytest.raises(ConnectionLost), SqlBank(engine) as bank, bank.nested():
        bank.accounts.add(Account("A", "Ann"))
        bank.flush()
    with SqlBank(engine) as bank:
        assert 0 == bank.accounts.count()


def test_a_socket_that_only_the_driver_saw_closing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """psycopg raises that before its connection says that it is broken; the pool must not keep it."""
    broken = psycopg.OperationalError("connection socket closed")
    thrown_away: list[object] = []
    event.listen(engine, "invalidate", lambda raw, entry, error: thrown_away.append(error))
    with pytest.raises(ConnectionLost), SqlBank(engine) as bank:
        monkeypatch.setattr(psycopg.Cursor, "execute", Mock(side_effect=broken))
        bank.accounts.get("A")
    assert [broken] == thrown_away


@pytest.mark.parametrize(("owner", "name"), [(psycopg.Connection, "pipeline"), (psycopg.Cursor, "execute")])
def test_an_interrupt(engine: Engine, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Wherever it comes, nobody gets the connection that it left half-way."""
    with pytest.raises(KeyboardInterrupt), SqlBank(engine) as bank, monkeypatch.context() as patch:
        bank.accounts.add(Account("A", "Ann"))
        patch.setattr(owner, name, Mock(side_effect=KeyboardInterrupt))
        bank.flush()
    with SqlBank(engine) as bank:
        assert 0 == bank.accounts.count()


def test_a_pipeline_of_the_user(engine: Engine) -> None:
    """COMMIT in it has no answer, so nobody can tell whether it was kept."""
    with pytest.raises(CommitOutcomeUnknown), SqlBank(engine) as bank:
        bank.accounts.add(Account("A", "Ann"))
        bank.flush()
        driver = bank.session.connection().connection.driver_connection
        assert driver is not None
        with driver.pipeline():
            bank.commit()


# -------------------------------------------------------------------------------------------------------- every driver

WAYS = pytest.mark.parametrize("options", [{}, {"execution_options": WITHOUT}], ids=["usual", "one text"])
ASYNCPG = pytest.mark.parametrize("drive", ["asyncpg"], indirect=True)


def numbers(bank: SqlBank) -> list[str]:
    return [account.number for account in bank.accounts.list(order_by=lambda a: a.number)]


@WAYS
@pytest.mark.parametrize("first", [True, False])
def test_a_savepoint_that_fails(
    drive: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], first: bool
) -> None:
    """It is told, be it sent with BEGIN or later; nothing is kept, and the pool's only connection serves on."""

    def work(engine: Engine) -> None:
        with monkeypatch.context() as patch, pytest.raises(DatabaseError) as caught, SqlBank(engine) as bank:
            patch.setitem(_CONTROL, SavepointClause, "RELEASE SAVEPOINT")
            if not first:
                bank.accounts.add(Account("A", "Ann"))
                bank.flush()
            with bank.nested():
                bank.accounts.add(Account("B", "Bob"))
                bank.flush()
            bank.commit()
        assert "3B001" == caught.value.code
        with SqlBank(engine) as bank, bank.nested():
            assert [] == numbers(bank)

    drive(work, pool_size=1, max_overflow=0, **options)


@WAYS
def test_a_listener_that_adds_comments(drive: Any, proxy: FaultProxy, options: dict[str, Any]) -> None:
    """Tracing tools do that, to what controls the transaction as well."""

    def work(engine: Engine) -> None:
        heard = []

        def comment(connection: object, cursor: object, statement: str, *rest: Any) -> tuple[str, Any]:
            heard.append(statement)
            return f"{statement} /* traced */", rest[0]

        event.listen(engine, "before_cursor_execute", comment, retval=True)
        half_undone(engine)
        with SqlBank(engine) as bank:
            assert 50 == bank.accounts.count()
        assert 50 == "; ".join(heard).count("ROLLBACK TO SAVEPOINT uow_1")

    drive(work, **options)


@WAYS
def test_a_listener_that_sends_statements(drive: Any, proxy: FaultProxy, options: dict[str, Any]) -> None:
    """It may do so before the very first savepoint is sent."""

    def work(engine: Engine) -> None:
        def look(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
            if statement.startswith("SAVEPOINT"):
                connection.execute(text("SELECT 1"))

        event.listen(engine, "before_cursor_execute", look)
        half_undone(engine)
        with SqlBank(engine) as bank:
            assert 50 == bank.accounts.count()

    drive(work, **options)


@ASYNCPG
def test_cursors_of_the_server_everywhere(drive: Any, proxy: FaultProxy) -> None:
    """An engine may be made to stream every result, where the driver can do that with an INSERT."""

    def work(engine: Engine) -> None:
        half_undone(engine.execution_options(stream_results=True))
        with SqlBank(engine) as bank:
            assert 50 == bank.accounts.count()

    drive(work)


@WAYS
def test_past_the_session_inside_a_scope(drive: Any, proxy: FaultProxy, options: dict[str, Any]) -> None:
    """Who has the driver's connection finds nothing waiting, neither SAVEPOINT nor ROLLBACK TO."""
    insert = "INSERT INTO accounts VALUES ('{}', 'Ann', 0)"

    def past(bank: SqlBank, number: str) -> None:
        own: Any = bank.session.connection().connection.driver_connection
        answer = own.execute(insert.format(number))
        if inspect.isawaitable(answer):
            await_only(answer)

    def work(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            with bank.nested() as inner:
                inner.accounts.add(Account("A", "Ann"))
                inner.flush()
                inner.rollback()
            past(bank, "A")
            for number in "BC":
                with bank.nested() as inner:
                    past(bank, number)
                    if number == "B":
                        inner.rollback()
            bank.commit()
        with SqlBank(engine) as bank:
            assert ["A", "C"] == numbers(bank)

    drive(work, **options)


@WAYS
def test_a_rollback_that_is_sent_with_commit(
    drive: Any, proxy: FaultProxy, postgresql_url: URL, options: dict[str, Any]
) -> None:
    """It is heard of, it counts, and where the answer is lost nobody can tell what became of both."""
    reached = {"connect_args": {"host": "127.0.0.1", "port": proxy.port}}

    def undone(bank: SqlBank) -> None:
        bank.accounts.add(Account("A", "Ann"))
        with bank.nested() as inner:
            inner.accounts.add(Account("B", "Bob"))
            inner.flush()
            inner.rollback()
        bank.commit()

    def work(engine: Engine) -> None:
        with record_statements(engine) as sent, SqlBank(engine) as bank:
            undone(bank)
        assert "ROLLBACK TO SAVEPOINT uow_1" in [*sent][-2:]
        with SqlBank(engine) as bank:
            assert ["A"] == numbers(bank)
            bank.accounts.remove(bank.accounts.get("A"))
            bank.commit()
        proxy.drop_reply(b"COMMIT")
        with pytest.raises(CommitOutcomeUnknown), SqlBank(engine) as bank:
            undone(bank)
        with SqlBank(engine) as bank:
            assert ["A"] == numbers(bank)

    drive(work, **reached, **options)


@WAYS
def test_a_scope_that_failed_last(drive: Any, proxy: FaultProxy, options: dict[str, Any]) -> None:
    """COMMIT heals nothing, but what is rolled back before it does."""

    def work(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            bank.accounts.add(Account("A", "Ann"))
            with pytest.raises(CheckViolation), bank.nested():
                bank.accounts.add(Account("B", "Ann", -2000))
            bank.commit()
        with SqlBank(engine) as bank:
            assert ["A"] == numbers(bank)

    drive(work, **options)


@WAYS
def test_limits_are_sent_with_the_first_statement(drive: Any, proxy: FaultProxy, options: dict[str, Any]) -> None:
    """They hold for it, and cost no round trip that BEGIN does not."""
    asked = text("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')")

    def work(engine: Engine) -> None:
        for _ in range(3):  # until the driver has prepared what it prepares
            before = proxy.round_trips
            with SqlBank(engine, lock_timeout=7, statement_timeout=8) as bank:
                assert ("7s", "8s") == bank.session.execute(asked).one()
        assert proxy.round_trips - before <= 3

    reached = {"connect_args": {"host": "127.0.0.1", "port": proxy.port}}
    drive(work, **reached, **options)


@ASYNCPG
def test_a_class_of_connections_of_the_user(drive: Any, proxy: FaultProxy) -> None:
    """One that we have not made is sent one command after the other."""

    class Own(asyncpg.Connection):  # type: ignore[misc]
        pass

    def work(engine: Engine) -> None:
        with record_statements(engine) as sent:
            half_undone(engine)
        assert not any(";" in statement for statement in sent)
        with SqlBank(engine, lock_timeout=7, statement_timeout=8) as bank:
            assert 50 == bank.accounts.count()

    drive(work, connect_args={"connection_class": Own})


# ------------------------------------------------------------------------------------------------------- asynchronous


def run(url: URL, work: Callable[[AsyncEngine], Any]) -> None:
    async def whole() -> None:
        engine = create_async_engine(url)
        async with engine.connect():
            pass
        await work(engine)
        await engine.dispose()

    asyncio.run(whole())


def test_an_asynchronous_unit_rides_too(proxy: FaultProxy, postgresql_url: URL) -> None:
    """Ten scopes take a round trip each, and the end another."""

    async def work(engine: AsyncEngine) -> None:
        before = proxy.round_trips
        async with AsyncSqlBank(engine) as bank:
            for number in range(10):
                async with bank.nested() as inner:
                    bank.accounts.add(Account(f"{number}", "Ann"))
                    await inner.flush()
                    if number % 2:
                        await inner.rollback()
            await bank.commit()
        assert 11 == proxy.round_trips - before
        async with AsyncSqlBank(engine) as bank:
            assert 5 == await bank.accounts.count()

    run(proxy.url(postgresql_url), work)


@pytest.mark.parametrize("statement", ["SELECT 1; SELECT 2", "SELECT 1"])
def test_an_asynchronous_statement_that_cannot_ride(proxy: FaultProxy, postgresql_url: URL, statement: str) -> None:
    """It is sent by itself, and an error in it is its own."""

    async def work(engine: AsyncEngine) -> None:
        async with AsyncSqlBank(engine) as bank:
            async with bank.nested():
                await bank.session.execute(text(statement))
                await bank.session.execute(text("INSERT INTO accounts VALUES (:n, 'Ann', 0)"), [{"n": "A"}, {"n": "B"}])
            with pytest.raises(UniqueViolation):
                async with bank.nested():
                    await bank.session.execute(
                        text("INSERT INTO accounts VALUES (:n, 'Ann', 0)"), [{"n": "C"}, {"n": "A"}]
                    )
            with pytest.raises(CheckViolation):
                async with bank.nested():
                    bank.accounts.add(Account("D", "Ann", -2000))
            assert 2 == await bank.accounts.count()

    run(proxy.url(postgresql_url), work)


SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
    " AND wait_event = 'PgSleep'"
)


def test_a_cancelled_statement_takes_the_unit_with_it(proxy: FaultProxy, postgresql_url: URL) -> None:
    """A cancellation in the middle of a pipeline leaves no half-read connection in the pool."""

    async def work(engine: AsyncEngine) -> None:
        async def slow() -> None:
            async with AsyncSqlBank(engine) as bank, bank.nested():
                await bank.session.execute(text("SELECT pg_sleep(:s)"), {"s": 30})

        task = asyncio.create_task(slow())
        with create_engine(postgresql_url, isolation_level="AUTOCOMMIT").connect() as direct:
            while not direct.scalar(text(SLEEPING)):
                await asyncio.sleep(0)
            direct.detach()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with AsyncSqlBank(engine) as bank:
            assert 0 == await bank.accounts.count()

    run(proxy.url(postgresql_url), work)
