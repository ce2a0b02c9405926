"""
What a unit asks of its transaction on PostgreSQL, seen by what the database does; on each driver.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, text

from uow.errors import (
    ConfigurationError,
    LockTimeout,
    ReadOnlyTransaction,
    ReadOnlyUnitOfWork,
    SerializationFailure,
    StatementTimeout,
)
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank

Drive = Callable[..., Any]

SETTINGS = (
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
    "statement_timeout",
    "lock_timeout",
)
ALL: dict[str, Any] = {
    "isolation": "serializable",
    "read_only": True,
    "deferrable": True,
    "statement_timeout": 1.5,
    "lock_timeout": 0.25,
}
DEFAULTS = ["read committed", "off", "off", "0", "20s"]  # the last is what the tests' engines are made with
ONE = {"pool_size": 1, "max_overflow": 0}


@pytest.fixture(autouse=True)
def harness(postgresql_url: URL) -> Iterator[SqlAlchemyHarness]:
    """Two accounts, and somebody else to look at them."""
    harness = SqlAlchemyHarness(create_engine(postgresql_url))
    with harness.bank() as bank:
        bank.accounts.add_all([Account("A-1", "Ann", 50), Account("B-2", "Bob", 50)])
        bank.commit()
    yield harness
    harness.close()


def shown(bank: SqlBank) -> list[str]:
    """Read what the transaction of *bank* runs with."""
    return [bank.session.execute(text(f"SHOW {name}")).scalar_one() for name in SETTINGS]


def next_user(engine: Engine) -> list[str]:
    """Read what whoever comes next on the pooled connection finds, in a unit and without one."""
    with SqlBank(engine) as bank:
        found = shown(bank)
    with engine.connect() as connection:
        assert found == [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in SETTINGS]
    return found


# ------------------------------------------------------------------------------------------------- asked and received


def test_the_transaction_has_what_was_asked_for(drive: Drive) -> None:
    """Every option arrives, whatever the unit does first, and `status()` tells the level."""

    def work(engine: Engine) -> None:
        with SqlBank(engine, **ALL) as bank:
            assert "SERIALIZABLE" == bank.status().isolation
            assert ["serializable", "on", "on", "1500ms", "250ms"] == shown(bank)
        with SqlBank(engine, **ALL) as bank, bank.nested() as nested:
            assert ["serializable", "on", "on", "1500ms", "250ms"] == shown(nested)

    drive(work)


@pytest.mark.parametrize("level", ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_every_level_is_to_be_had(drive: Drive, level: str) -> None:
    """A level may be written in any case, with blanks or underscores, and leaves the rest alone."""

    def work(engine: Engine) -> None:
        with SqlBank(engine, isolation=level.lower().replace(" ", "_")) as bank:
            assert [level.lower(), *DEFAULTS[1:]] == shown(bank)
        assert DEFAULTS == next_user(engine)

    drive(work, **ONE)


@pytest.mark.parametrize("level", ["SNAPSHOT", "AUTOCOMMIT"])
def test_a_level_that_is_not_known(drive: Drive, level: str) -> None:
    """A level that PostgreSQL does not have is refused when the unit is made, and those that it has are told."""

    def work(engine: Engine) -> None:
        with pytest.raises(ConfigurationError) as caught:
            SqlBank(engine, isolation=level)

        assert (
            f"Wrong configuration: PostgreSQL has no isolation level '{level}'. "
            "Use one of READ UNCOMMITTED, READ COMMITTED, REPEATABLE READ, SERIALIZABLE."
        ) == str(caught.value)

    drive(work)


def sent(engine: Engine, **options: Any) -> list[str]:
    """Read in a unit, and return the commands that it sent, some of them perhaps as one text."""
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with SqlBank(engine, **options) as bank:
        bank.session.execute(text("SELECT 1"))
        bank.commit()
    return "; ".join(statements).split("; ")


def test_options_cost_no_statement_but_the_timeouts(drive: Drive) -> None:
    """Level, read-only and deferrable ride with BEGIN, and each timeout is one command; no option sends nothing."""

    def work(engine: Engine) -> None:
        assert ["SELECT 1"] == sent(engine)
        assert ["SELECT 1"] == sent(engine, isolation="SERIALIZABLE", read_only=True, deferrable=True)
        assert ["SET LOCAL statement_timeout = 2500", "SET LOCAL lock_timeout = 1", "SELECT 1"] == sent(
            engine, statement_timeout=2.5, lock_timeout=0.0001
        )
        assert ["SET LOCAL lock_timeout = 2147483647", "SELECT 1"] == sent(engine, lock_timeout=1e9)

    drive(work)


# ------------------------------------------------------------------------------------------------- what it is good for


def test_a_read_only_unit_cannot_write(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """The server refuses what goes past the port, and the port the rest."""

    def work(engine: Engine) -> None:
        with pytest.raises(ReadOnlyTransaction) as caught, SqlBank(engine, read_only=True) as bank:
            bank.session.execute(text("UPDATE accounts SET balance = 0"))
        assert "25006" == caught.value.code
        assert not caught.value.transient
        with pytest.raises(ReadOnlyUnitOfWork), SqlBank(engine, read_only=True) as bank:
            bank.accounts.add(Account("C-3", "Cleo"))
        assert DEFAULTS == next_user(engine)

    drive(work, **ONE)

    assert ["A-1", "B-2"] == harness.numbers()


@pytest.mark.parametrize(("level", "seen"), [("READ COMMITTED", [50, 2, 0, 3]), ("REPEATABLE READ", [50, 2, 50, 2])])
def test_what_another_unit_commits_meanwhile(
    drive: Drive, harness: SqlAlchemyHarness, level: str, seen: list[int]
) -> None:
    """A change and a new row of another unit appear in the midst of READ COMMITTED, and not of REPEATABLE READ."""

    def work(engine: Engine) -> list[int]:
        def look(bank: SqlBank) -> list[int]:
            balance = bank.session.execute(text("SELECT balance FROM accounts WHERE number = 'A-1'"))
            return [balance.scalar_one(), bank.accounts.count()]

        with SqlBank(engine, isolation=level) as bank:
            before = look(bank)
            with harness.bank() as other:
                other.accounts.get("A-1").balance = 0
                other.accounts.add(Account("C-3", "Cleo"))
                other.commit()
            return before + look(bank)

    assert seen == drive(work)


@pytest.mark.parametrize(("level", "total"), [("REPEATABLE READ", -100), ("SERIALIZABLE", 0)])
def test_write_skew(drive: Drive, harness: SqlAlchemyHarness, level: str, total: int) -> None:
    """Two units that each check the sum and take from another account both commit, but not at SERIALIZABLE."""

    def work(engine: Engine) -> None:
        def take(bank: SqlBank, number: str) -> None:
            assert 100 == bank.session.execute(text("SELECT sum(balance) FROM accounts")).scalar_one()
            bank.accounts.get(number).balance -= 100
            bank.flush()

        with ExitStack() as stack:
            if level == "SERIALIZABLE":
                stack.enter_context(pytest.raises(SerializationFailure))
            one, two = (stack.enter_context(SqlBank(engine, isolation=level)) for _ in range(2))
            take(one, "A-1")
            take(two, "B-2")
            one.commit()
            two.commit()

    drive(work)

    with harness.bank() as bank:
        assert total == sum(account.balance for account in bank.accounts.list())


def test_a_deferrable_unit_waits_for_its_snapshot(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """A deferrable unit waits while another one could make it fail, and no longer than its statements may take."""

    def work(engine: Engine) -> None:
        with harness.bank(isolation="SERIALIZABLE") as other:
            other.accounts.get("A-1").balance = 0
            other.flush()
            with pytest.raises(StatementTimeout), SqlBank(engine, **ALL | {"statement_timeout": 0.1}) as bank:
                bank.accounts.count()
            with SqlBank(engine, isolation="SERIALIZABLE", read_only=True) as bank:
                assert 2 == bank.accounts.count()
        with SqlBank(engine, **ALL) as bank:
            assert "on" == bank.session.execute(text("SELECT current_setting('transaction_deferrable')")).scalar_one()

    drive(work)


def test_a_statement_that_takes_too_long(drive: Drive) -> None:
    """StatementTimeout tells of it; it is not transient, for the next try would take as long."""

    def work(engine: Engine) -> None:
        with pytest.raises(StatementTimeout) as caught, SqlBank(engine, statement_timeout=0.05) as bank:
            bank.session.execute(text("SELECT pg_sleep(60)"))
        assert "57014" == caught.value.code
        assert not caught.value.transient
        assert DEFAULTS == next_user(engine)

    drive(work, **ONE)


def test_a_lock_that_is_not_free_in_time(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """LockTimeout tells of it; it is transient."""

    def work(engine: Engine) -> None:
        with harness.bank() as holder:
            holder.accounts.get("A-1").balance = 1
            holder.flush()
            with pytest.raises(LockTimeout) as caught, SqlBank(engine, lock_timeout=0.05) as bank:
                bank.accounts.get("A-1").balance = 2
                bank.flush()
        assert "55P03" == caught.value.code
        assert caught.value.transient
        assert DEFAULTS == next_user(engine)

    drive(work, **ONE)


def test_a_rollback_to_a_savepoint_loses_no_option(drive: Drive) -> None:
    """Options are the root's: they outlive the nested scope in which the first statement was sent, and its errors."""

    def work(engine: Engine) -> None:
        with SqlBank(engine, **ALL) as bank:
            with suppress(ReadOnlyTransaction), bank.nested() as nested:
                nested.session.execute(text("DELETE FROM accounts"))
            with bank.nested() as nested:
                nested.accounts.count()
                nested.rollback()
            assert ["serializable", "on", "on", "1500ms", "250ms"] == shown(bank)

    drive(work)


# ------------------------------------------------------------------------------------------------------- never leaked


def left(bank: SqlBank) -> None:
    """Leave the block."""


def rolled_back(bank: SqlBank) -> None:
    bank.rollback()


def committed(bank: SqlBank) -> None:
    bank.commit()


def refused(bank: SqlBank) -> None:
    bank.session.execute(text("SELEKT"))


def raised(bank: SqlBank) -> None:
    raise KeyboardInterrupt


def ended_behind_its_back(bank: SqlBank) -> None:
    bank.session.execute(text("COMMIT"))


ENDS = [left, rolled_back, committed, refused, raised, ended_behind_its_back]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("option", ALL)
def test_the_next_user_finds_the_defaults(drive: Drive, option: str, end: Callable[[SqlBank], None]) -> None:
    """However a unit ends, nothing that it asked for stays on the connection."""
    options = ALL if option == "deferrable" else {option: ALL[option]}

    def work(engine: Engine) -> None:
        found: list[str] = []
        with suppress(BaseException), SqlBank(engine, **options) as bank:
            found = shown(bank)
            end(bank)
        assert found
        assert DEFAULTS != found
        assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
        assert DEFAULTS == next_user(engine)

    drive(work, **ONE)


def test_a_connection_that_was_killed_leaks_nothing(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """A unit with options whose connection is gone, before its first statement or after it, gives none back."""

    def work(engine: Engine) -> None:
        def kill(number: object) -> None:
            with harness.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": number})

        with suppress(Exception), SqlBank(engine, **ALL) as bank:
            number = bank.session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            kill(number)
            bank.accounts.count()
        assert DEFAULTS == next_user(engine)
        with engine.connect() as connection:
            number = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        kill(number)
        with suppress(Exception), SqlBank(engine, **ALL) as bank:
            bank.accounts.count()
        assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
        assert DEFAULTS == next_user(engine)

    drive(work, **ONE)


def test_the_engine_has_a_level_of_its_own(drive: Drive) -> None:
    """A unit may ask for another one, and the next user finds the engine's again."""

    def work(engine: Engine) -> None:
        with SqlBank(engine, isolation="REPEATABLE READ", read_only=True) as bank:
            assert ["repeatable read", "on", *DEFAULTS[2:]] == shown(bank)
        assert ["serializable", *DEFAULTS[1:]] == next_user(engine)
        with SqlBank(engine.execution_options(isolation_level="READ COMMITTED"), isolation="REPEATABLE READ") as bank:
            assert ["repeatable read", *DEFAULTS[1:]] == shown(bank)
        assert ["serializable", *DEFAULTS[1:]] == next_user(engine)

    drive(work, isolation_level="SERIALIZABLE", **ONE)


def test_a_server_whose_transactions_are_read_only(drive: Drive, harness: SqlAlchemyHarness) -> None:
    """A unit that asked for more, or for the same, does not take that away from the next one."""
    database = harness.engine.url.database
    with harness.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        connection.exec_driver_sql(f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'")
    expected = ["repeatable read", "on", *DEFAULTS[2:]]

    def work(engine: Engine) -> None:
        assert expected == next_user(engine)
        for options in (ALL, {"isolation": "SERIALIZABLE"}, {"read_only": True}):
            with SqlBank(engine, **options) as bank:
                assert "on" == shown(bank)[1]
            assert expected == next_user(engine)

    try:
        drive(work, **ONE)
    finally:
        with harness.engine.connect() as connection:
            connection.exec_driver_sql("SET TRANSACTION READ WRITE")
            connection.exec_driver_sql(f"ALTER DATABASE {database} RESET ALL")
            connection.commit()


# -------------------------------------------------------------------------------------------------------- the replica


def test_read_only_units_go_to_the_replica(postgresql_url: URL, harness: SqlAlchemyHarness) -> None:
    """What only reads asks the replica, and everything else the primary."""
    replica = create_engine(postgresql_url, connect_args={"options": "-c default_transaction_read_only=on"})
    primary = create_engine(postgresql_url)
    asked: list[str] = []
    for name, engine in (("primary", primary), ("replica", replica)):
        event.listen(engine, "before_cursor_execute", lambda *args, name=name: asked.append(name))

    with SqlBank(primary, replica=replica, read_only=True) as bank:
        assert 2 == bank.accounts.count()
        bank.commit()
    with SqlBank(primary, replica=replica) as bank:
        bank.accounts.get("A-1").balance = 7
        bank.commit()
    with SqlBank(primary, read_only=True) as bank:
        assert 7 == bank.accounts.get("A-1").balance

    assert ["replica", "primary", "primary", "primary"] == asked

    with pytest.raises(ConfigurationError):
        SqlBank(primary, replica=replica, read_only=True, isolation="CHAOS")
    for engine in (primary, replica):
        engine.dispose()
