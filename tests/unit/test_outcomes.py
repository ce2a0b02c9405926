"""
What the databases do, each in its own words, to find out what became of a COMMIT.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from uow import Retry, State
from uow._outcomes import new_token
from uow.adapters.sqlalchemy import _outcomes as module
from uow.adapters.sqlalchemy import uow_metadata
from uow.adapters.sqlalchemy._errors import translate
from uow.adapters.sqlalchemy._outcomes import brief, ledger_of
from uow.errors import (
    AlreadyDone,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    DatabaseError,
    LockTimeout,
)
from uow.testing import MariaDbServer, PostgresServer, record_statements, sandbox
from uow.testing._model import Account, Transfer
from uow.testing._servers import DatabaseServer
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank


def made(url: URL) -> Iterator[Engine]:
    """Make an engine on which the bank and the framework's tables are, and empty."""
    harness = SqlAlchemyHarness(create_engine(url))
    yield harness.engine
    uow_metadata.create_all(harness.engine)
    harness.close()


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    """Each of the databases in turn."""
    yield from made(database_url)


@pytest.fixture(params=["postgresql_url", "mariadb_url"])
def server(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each of those that have sessions."""
    yield from made(request.getfixturevalue(request.param))


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[Engine]:
    """The one that knows its transactions by number."""
    yield from made(postgresql_url)


@pytest.fixture
def mariadb(mariadb_url: URL) -> Iterator[Engine]:
    """The one that numbers its sessions anew when it starts."""
    yield from made(mariadb_url)


def add(engine: Engine, number: str, **options: Any) -> None:
    """Add an account in a unit of its own."""
    with SqlBank(engine, **options) as bank:
        bank.accounts.add(Account(number, "Ann"))
        bank.commit()


def numbers(engine: Engine) -> list[str]:
    """Return the accounts that are there."""
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT number FROM accounts ORDER BY number")))


def rows(engine: Engine) -> int:
    """Count the rows of the table."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM uow_outcome")) or 0


# ------------------------------------------------------------------------------------------------------------ the table


def commit_with_row(engine: Engine) -> None:
    add(engine, "A-1", outcome="row")


def take_key(engine: Engine, number: str = "A-1") -> None:
    with SqlBank(engine) as bank:
        bank.accounts.add(Account(number, "Ann"))
        bank.once("k")
        bank.commit()


@pytest.mark.parametrize("work", [commit_with_row, take_key])
def test_a_table_that_is_not_there(engine: Engine, work: Callable[[Engine], None]) -> None:
    """Without its table the unit is rolled back, and the error names what creates it."""
    uow_metadata.drop_all(engine)
    with pytest.raises(ConfigurationError, match=r"uow_outcome.*uow_metadata\.create_all\(engine\).*migrations"):
        work(engine)

    assert [] == numbers(engine)
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]


def test_a_table_that_is_not_there_when_the_database_is_asked(engine: Engine) -> None:
    """Nobody can tell without the table, and asking again at once is no use."""
    uow_metadata.drop_all(engine)
    with pytest.raises(CommitOutcomeUnknown, match="uow_metadata") as caught:
        SqlBank(engine).resolve(new_token())

    assert isinstance(caught.value.__cause__, ConfigurationError)


def test_other_errors_arrive_as_they_are(engine: Engine) -> None:
    """What is wrong with the table otherwise is the database's own error, raised at once."""
    uow_metadata.drop_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE uow_outcome (id varchar(64) PRIMARY KEY)")
    try:
        with pytest.raises(DatabaseError):
            commit_with_row(engine)
        with record_statements(engine) as sent, pytest.raises(CommitOutcomeUnknown) as caught:
            SqlBank(engine).resolve(new_token())
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE uow_outcome")

    assert isinstance(caught.value.__cause__, DatabaseError)
    assert 1 == sum("INSERT" in statement for statement in sent)


def test_a_transaction_that_ended_behind_the_unit(engine: Engine) -> None:
    """A transaction that the driver's own connection ended is noticed, though the token would begin another one."""
    with (
        pytest.raises(CommitOutcomeUnknown, match="in no transaction any more"),
        SqlBank(engine, outcome="row") as bank,
    ):
        bank.accounts.add(Account("A-1", "Ann"))
        bank.flush()
        raw: Any = bank.session.connection().connection.driver_connection
        raw.rollback()
        bank.commit()

    assert State.IN_DOUBT is bank.state
    assert ([], 0) == (numbers(engine), rows(engine))


# ------------------------------------------------------------------------------------------------------- what it costs


def test_a_row_is_one_statement_more(engine: Engine) -> None:
    """The row is one INSERT; the rows of a hundred units are removed by one DELETE."""
    with record_statements(engine) as sent:
        add(engine, "A")
        plain = list(sent)
        del sent[:]
        add(engine, "B", outcome="row")
        marked = list(sent)
        del sent[:]
        for number in range(99):
            add(engine, f"C-{number}", outcome="row")
        many = list(sent)

    extra = [statement for statement in marked if "INSERT INTO uow_outcome" in statement]

    assert len(plain) + 1 == len(marked)
    assert 1 == len(extra)
    assert 99 * len(marked) + 2 == len(many)  # DELETE and its COMMIT
    assert 1 == sum(statement.startswith("DELETE FROM uow_outcome") for statement in many)
    assert 0 == rows(engine)


def test_a_number_is_one_query_more(postgresql: Engine) -> None:
    """With outcome='xid' nothing is written: the number is asked for."""
    with record_statements(postgresql) as sent:
        add(postgresql, "A")
        plain = len(sent)
        add(postgresql, "B", outcome="xid")

    assert plain + 1 == len(sent) - plain
    assert 0 == rows(postgresql)


def test_rows_that_cannot_be_removed_stay(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A DELETE that fails costs the unit nothing: its work is durable, and the rows are left for later."""
    monkeypatch.setattr(module, "_BATCH", 2)

    def refuse(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("DELETE"):
            raise LockTimeout("no")

    event.listen(engine, "before_cursor_execute", refuse)
    with caplog.at_level(logging.WARNING, "uow"):
        for number in "ABC":
            add(engine, number, outcome="row")
    event.remove(engine, "before_cursor_execute", refuse)

    assert ["A", "B", "C"] == numbers(engine)
    assert 3 == rows(engine)
    assert ["left, to be removed later" in record.message for record in caplog.records] == [True]


# ----------------------------------------------------------------------------------------- sessions that are in the way


def mark(engine: Engine, outcome: Any) -> tuple[Connection, str]:
    """Leave a unit between its token and its COMMIT, as one whose client is gone; return its session."""
    stuck = engine.connect()
    stuck.exec_driver_sql("INSERT INTO documents (id, title, version) VALUES (1, 'stuck', 1)")
    return stuck, ledger_of(stuck).mark(stuck, outcome, new_token())


def alive(connection: Connection) -> bool:
    """Tell whether the server has not ended that session."""
    try:
        return connection.exec_driver_sql("SELECT 1").scalar_one() == 1
    except Exception:
        return False


@pytest.mark.parametrize("outcome", ["row", "xid"])
def test_a_session_that_nobody_will_end(server: Engine, outcome: str) -> None:
    """One that holds the token and waits for a client that is gone is ended; no other one is."""
    if outcome not in ledger_of(server).modes:
        pytest.skip("it does not know its transactions by number")
    stuck, token = mark(server, outcome)
    with server.connect() as idle, server.connect() as busy:
        busy_token = ledger_of(busy).mark(busy, "row", new_token())
        idle.exec_driver_sql("SELECT 1")

        assert State.ROLLED_BACK is SqlBank(server).resolve(token)
        assert (False, True, True) == (alive(stuck), alive(idle), alive(busy))

        busy.commit()
    stuck.close()

    assert State.COMMITTED is SqlBank(server).resolve(busy_token)
    assert State.ROLLED_BACK is SqlBank(server).resolve(token)


def test_a_resolver_that_hangs(server: Engine) -> None:
    """One that was stopped between its answer and its COMMIT does not keep others from theirs."""
    token = new_token()
    with server.connect() as stuck:
        ledger_of(stuck).settle(stuck, token)

        assert State.ROLLED_BACK is SqlBank(server).resolve(token)
        assert not alive(stuck)


def test_a_session_that_works_is_left_alone(server: Engine) -> None:
    """A session that is executing something may still commit: it is waited for, and then nobody can tell in time."""
    sleep = "SELECT pg_sleep(3)" if server.dialect.name == "postgresql" else "SELECT SLEEP(3)"
    stuck, token = mark(server, "row")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(stuck.exec_driver_sql, sleep)
        with pytest.raises(CommitOutcomeUnknown) as caught:
            SqlBank(server).resolve(token, timeout=1.5)
        slow.result()
    stuck.commit()
    stuck.close()

    assert isinstance(caught.value.__cause__, LockTimeout)
    assert token == caught.value.token
    assert State.COMMITTED is SqlBank(server).resolve(token)


def test_a_number_of_a_session_that_works(postgresql: Engine) -> None:
    """The same by number: in progress is no answer."""
    stuck, token = mark(postgresql, "xid")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(stuck.exec_driver_sql, "SELECT pg_sleep(3)")
        with pytest.raises(CommitOutcomeUnknown, match="still in progress"):
            SqlBank(postgresql).resolve(token, timeout=1.2)
        slow.result()
    committed = threading.Timer(0.2, stuck.commit)
    committed.start()

    assert State.COMMITTED is SqlBank(postgresql).resolve(token)

    committed.join()
    stuck.close()


def test_a_session_of_an_earlier_run_of_the_server(mariadb: Engine) -> None:
    """MariaDB numbers sessions from 1 when it starts: a row from before is not the row of one that has its number."""
    token = new_token()
    with mariadb.connect() as innocent:
        innocent.exec_driver_sql("SELECT 1")
        with mariadb.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO uow_outcome (id, outcome, decided_at, expires_at, session) SELECT %s, 'C',"
                " UTC_TIMESTAMP() - INTERVAL variable_value + 60 SECOND, UTC_TIMESTAMP() + INTERVAL 1 DAY, %s"
                " FROM information_schema.global_status WHERE variable_name = 'UPTIME'",
                (token, innocent.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()),
            )
        with brief(mariadb) as connection:
            ledger_of(mariadb).hang_up(connection, token)

        assert alive(innocent)


def test_a_session_that_cannot_be_ended(
    server: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to end it, the resolver says so in the log, and waits for as long as it may."""

    def refuse(self: object, connection: object, token: str) -> None:
        raise DatabaseError("permission denied")

    stuck, token = mark(server, "row")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "uow"):
        patch.setattr(type(ledger_of(server)), "hang_up", refuse)
        with pytest.raises(CommitOutcomeUnknown, match="A lock was not free"):
            SqlBank(server).resolve(token, timeout=1.5)
    stuck.close()

    assert any("could not be ended" in record.message for record in caplog.records)
    assert State.ROLLED_BACK is SqlBank(server).resolve(token)


# ------------------------------------------------------------------------------------------------------------ by number


def test_a_unit_that_has_no_number(postgresql: Engine) -> None:
    """What only read has no number, and nothing that could be done twice: it counts as rolled back."""
    with postgresql.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        token = ledger_of(connection).mark(connection, "xid", new_token())

    assert token.startswith("xid.none.")
    assert State.ROLLED_BACK is SqlBank(postgresql).resolve(token)


def test_a_number_of_another_server(postgresql: Engine) -> None:
    """A number says nothing on another server or timeline, and after the server was started anew, or crashed."""
    stuck, token = mark(postgresql, "xid")
    stuck.commit()
    stuck.close()
    kind, number, server, made = token.split(".")
    facts = server.split("-")
    for changed in range(len(facts)):
        other = "-".join(f"{fact}0" if index == changed else fact for index, fact in enumerate(facts))
        with pytest.raises(CommitOutcomeUnknown, match="started anew since, and may count from elsewhere") as caught:
            SqlBank(postgresql).resolve(f"{kind}.{number}.{other}.{made}")

        assert caught.value.token is None

    assert State.COMMITTED is SqlBank(postgresql).resolve(token)


def test_a_number_that_the_server_does_not_know(postgresql: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too old is forgotten, and one that was not given yet is an error: nobody can tell."""
    stuck, token = mark(postgresql, "xid")
    stuck.close()
    kind, number, rest = token.split(".", 2)
    with pytest.raises(CommitOutcomeUnknown, match="in the future"):
        SqlBank(postgresql).resolve(f"{kind}.{int(number) + 1_000_000}.{rest}")
    monkeypatch.setattr(module, "_STATUS", text("SELECT nullif(CAST(:number AS text), CAST(:number AS text))"))
    with pytest.raises(CommitOutcomeUnknown, match="does not remember"):
        SqlBank(postgresql).resolve(token)


def test_what_does_not_know_its_own_outcome() -> None:
    """PostgreSQL's 40003 and those in front of it say that nobody knows: it is a lost connection, not a certain no."""
    error = psycopg.errors.StatementCompletionUnknown("?")

    assert "40003" == error.sqlstate
    assert isinstance(translate(error, "postgresql"), ConnectionLost)


# ---------------------------------------------------------------------------------------------- servers that start anew


def in_doubt(harness: SqlAlchemyHarness, outcome: Any, *, kept: bool) -> str:
    """Commit a unit whose outcome nobody can tell at first; return its token."""
    with pytest.raises(CommitOutcomeUnknown) as caught, harness.bank(outcome=outcome) as bank:
        bank.transfers.add(Transfer("A", 1))
        bank.flush()
        harness.cut_commit(bank, kept=kept, unanswered=True)
        bank.commit()
    harness.answer_again()
    assert caught.value.token is not None
    return caught.value.token


def stop(harness: SqlAlchemyHarness, server: DatabaseServer) -> None:
    server.stop()


def kill(harness: SqlAlchemyHarness, server: DatabaseServer) -> None:
    server.kill()


def kill_one_process(harness: SqlAlchemyHarness, server: DatabaseServer) -> None:
    """Let PostgreSQL end all sessions and recover, as it does when one of its processes crashes."""
    with harness.engine.connect() as connection:
        pid: int = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DBAPIError), harness.engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(30)")


@pytest.mark.parametrize(
    ("make_server", "crashes"),
    [(PostgresServer, [stop, kill, kill_one_process]), (MariaDbServer, [stop, kill])],
    ids=["postgresql", "mariadb"],
)
def test_a_server_that_starts_anew_before_it_is_asked(
    make_server: Callable[[], DatabaseServer], crashes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row tells the same after a crash; a number, which a server may have given again by then, tells nothing."""
    monkeypatch.setattr("uow._commit._PATIENCE", 0)
    with make_server() as server:
        harness = SqlAlchemyHarness(create_engine(server.url))
        with harness.bank() as bank:
            bank.accounts.add(Account("A", "Ann"))
            bank.commit()
        for crash in crashes:
            by_row = {in_doubt(harness, "row", kept=kept): kept for kept in (True, False)}
            xid = "xid" in ledger_of(harness.engine).modes
            by_number = [in_doubt(harness, "xid", kept=kept) for kept in (True, False) if xid]
            crash(harness, server)
            server.start()
            for token, kept in by_row.items():
                assert kept is (harness.bank().resolve(token, timeout=30) is State.COMMITTED), crash
            for token in by_number:
                with pytest.raises(CommitOutcomeUnknown, match="started anew") as caught:
                    harness.bank().resolve(token, timeout=30)
                assert caught.value.token is None
        harness.close()


# ----------------------------------------------------------------------------------------------------------------- once


def test_many_at_once_under_one_key(server: Engine) -> None:
    """Of many units with one key at the same time, one does the work, even if the first ones fail half-way."""
    start = threading.Barrier(8)
    failures = iter("xx")
    retry = Retry(wait_initial=0.01)

    def work(number: int) -> str:
        start.wait()
        try:
            for attempt in SqlBank(server, retry=retry).attempts():
                with attempt as bank:
                    bank.once("k")
                    bank.accounts.add(Account(f"A-{number}", "Ann"))
                    bank.flush()
                    if next(failures, None):
                        return "failed"
                    bank.commit()
        except AlreadyDone:
            return "already done"
        return "done"

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(work, range(8)))

    assert {"done": 1, "failed": 2, "already done": 5} == {each: ended.count(each) for each in set(ended)}
    assert [f"A-{ended.index('done')}"] == numbers(server)


def test_in_a_sandbox(engine: Engine) -> None:
    """Tokens and keys are left in a sandbox as anywhere else, and undone with it."""
    with sandbox(engine) as inside:
        for number in range(101):
            add(inside, f"A-{number}", outcome="row")
        take_key(inside, "B-1")
        with pytest.raises(AlreadyDone):
            take_key(inside, "B-2")

        assert 102 == len(numbers(inside))

    assert ([], 0) == (numbers(engine), rows(engine))
