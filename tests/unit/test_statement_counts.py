"""
What a unit sends, counted against a hand-written `Session` that does the same work on the same engine.

Counted are the statements that reach a cursor, and COMMIT and ROLLBACK as the engine reports them. Where a driver sends
BEGIN by itself neither side's is counted. On SQLite the unit sends its own, which this engine's hand-written sessions
do too, with the recipe of SQLAlchemy's documentation: without it SQLite's savepoints do not work. So a BEGIN is
counted on both sides there, or on neither.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.orm import Session

from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank

Work = Callable[[Engine], object]


def unit_add(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        bank.accounts.add(Account("X", "Ann"))
        bank.commit()


def session_add(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Account("X", "Ann"))
        session.commit()


def unit_change(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        bank.accounts.get("A").balance += 1
        bank.commit()


def session_change(engine: Engine) -> None:
    with Session(engine) as session:
        session.get_one(Account, "A").balance += 1
        session.commit()


def unit_nested(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        for number in range(10):
            with bank.nested():
                bank.accounts.add(Account(f"X{number}", "Ann"))
        bank.commit()


def session_nested(engine: Engine) -> None:
    with Session(engine) as session:
        for number in range(10):
            with session.begin_nested():
                session.add(Account(f"X{number}", "Ann"))
        session.commit()


def unit_deep(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        with bank.nested() as one, one.nested() as two, two.nested() as three:
            three.accounts.add(Account("X", "Ann"))
        bank.rollback()


def session_deep(engine: Engine) -> None:
    with Session(engine) as session:
        with session.begin_nested(), session.begin_nested(), session.begin_nested():
            session.add(Account("X", "Ann"))
        session.rollback()


def unit_nested_rolled_back(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        account = bank.accounts.get("A")
        for number in range(10):
            with bank.nested() as nested:
                account.balance = number + 100
                bank.flush()
                nested.rollback()
            assert 10 == account.balance
        bank.commit()


def session_nested_rolled_back(engine: Engine) -> None:
    with Session(engine) as session:
        account = session.get_one(Account, "A")
        for number in range(10):
            with session.begin_nested() as nested:
                account.balance = number + 100
                session.flush()
                nested.rollback()
            assert 10 == account.balance
        session.commit()


def unit_read(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        account = bank.accounts.get("A")
        assert account is bank.accounts.get("A")


def session_read(engine: Engine) -> None:
    with Session(engine) as session:
        account = session.get_one(Account, "A")
        assert account is session.get_one(Account, "A")


def unit_list(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        assert 2 == len(bank.accounts.list(lambda a: a.balance > 0, order_by=lambda a: a.number))
        bank.commit()


def session_list(engine: Engine) -> None:
    with Session(engine) as session:
        assert 2 == len(session.scalars(select(Account).where(Account.balance > 0).order_by(Account.number)).all())  # type: ignore[arg-type]
        session.commit()


def unit_after_commit(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        account = bank.accounts.get("A")
        account.balance += 1
        bank.commit()
        assert 11 == account.balance


def session_after_commit(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        account = session.get_one(Account, "A")
        account.balance += 1
        session.commit()
        assert 11 == account.balance


def unit_many(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        bank.accounts.add_all(Account(f"X{number:03}", "Ann") for number in range(100))
        bank.commit()


def session_many(engine: Engine) -> None:
    with Session(engine) as session:
        session.add_all(Account(f"X{number:03}", "Ann") for number in range(100))
        session.commit()


PAIRS: dict[str, tuple[Work, Work]] = {
    "add and commit": (unit_add, session_add),
    "get, change, commit": (unit_change, session_change),
    "ten nested scopes": (unit_nested, session_nested),
    "three levels deep": (unit_deep, session_deep),
    "ten nested scopes rolled back": (unit_nested_rolled_back, session_nested_rolled_back),
    "get without commit": (unit_read, session_read),
    "list and commit": (unit_list, session_list),
    "read after the commit": (unit_after_commit, session_after_commit),
    "add a hundred": (unit_many, session_many),
}


@pytest.fixture
def harness(database_url: object) -> Iterator[SqlAlchemyHarness]:
    harness = SqlAlchemyHarness(create_engine(database_url))  # type: ignore[arg-type]
    yield harness
    harness.close()


def sent(harness: SqlAlchemyHarness, work: Work) -> list[str]:
    """Do *work* on two accounts, and return what it sent."""
    with SqlBank(harness.engine) as bank:
        for account in bank.accounts.list():
            bank.accounts.remove(account)
        bank.flush()
        bank.accounts.add_all([Account("A", "Ann", 10), Account("B", "Bob", 20)])
        bank.commit()
    mark = len(harness.statements)
    work(harness.engine)
    return harness.statements[mark:]


@contextmanager
def own_begin(engine: Engine) -> Iterator[None]:
    """Let hand-written sessions begin as SQLAlchemy's documentation recommends for SQLite."""
    if engine.dialect.name != "sqlite":
        yield
        return

    def connect(raw: object, record: object, proxy: object) -> None:
        raw.isolation_level = None  # type: ignore[attr-defined]

    def begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    listeners = (("checkout", connect), ("begin", begin))
    for name, listener in listeners:
        event.listen(engine, name, listener)
    yield
    for name, listener in listeners:
        event.remove(engine, name, listener)


@pytest.mark.parametrize("work", PAIRS)
def test_a_unit_sends_no_more_than_a_session(harness: SqlAlchemyHarness, work: str) -> None:
    """A unit sends at most as many statements as a hand-written session."""
    unit, session = PAIRS[work]
    ours = sent(harness, unit)
    with own_begin(harness.engine):
        theirs = sent(harness, session)

    assert len(ours) <= len(theirs), (ours, theirs)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (unit_add, ["INSERT", "COMMIT"]),
        (unit_change, ["SELECT", "UPDATE", "COMMIT"]),
        (unit_nested, [*["SAVEPOINT", "INSERT", "RELEASE"] * 10, "COMMIT"]),
        (unit_deep, [*["SAVEPOINT"] * 3, "INSERT", *["RELEASE"] * 3, "ROLLBACK"]),
        (unit_nested_rolled_back, ["SELECT", "SAVEPOINT", *["UPDATE", "ROLLBACK TO"] * 10, "COMMIT"]),
        (unit_read, ["SELECT", "ROLLBACK"]),
        (unit_list, ["SELECT", "COMMIT"]),
        (unit_after_commit, ["SELECT", "UPDATE", "COMMIT"]),
        (unit_many, ["INSERT", "COMMIT"]),
    ],
)
def test_a_unit_sends_what_is_needed(harness: SqlAlchemyHarness, work: Work, expected: list[str]) -> None:
    """A unit sends what its work needs and nothing else."""
    lines = [line for text in sent(harness, work) for line in text.split("; ") if not line.startswith("BEGIN")]
    verbs = [" ".join(line.split()[:2]) if line.startswith("ROLLBACK TO") else line.split()[0] for line in lines]
    if harness.name == "postgresql":  # where RELEASE waits for what comes next, and COMMIT stands for it
        verbs = [verb for verb in verbs if verb != "RELEASE"]
        expected = [verb for verb in expected if verb != "RELEASE"]

    assert expected == verbs


def test_an_empty_unit_sends_nothing(harness: SqlAlchemyHarness) -> None:
    """A unit that did nothing has sent nothing, and has taken no connection, however it ended."""
    engine = harness.engine

    def commit(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            bank.commit()

    def leave(engine: Engine) -> None:
        with SqlBank(engine):
            pass

    assert [] == sent(harness, commit) == sent(harness, leave)
    assert engine is harness.engine


def test_an_empty_nested_scope_sends_nothing(harness: SqlAlchemyHarness) -> None:
    """A nested scope in which nothing was sent sends neither SAVEPOINT nor RELEASE, in whichever way it ends."""

    def work(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            account = bank.accounts.get("A")
            for end in ("commit", "rollback"):
                with bank.nested() as nested:
                    assert 10 == account.balance
                    with nested.nested():
                        pass
                    getattr(nested, end)()
            bank.commit()

    lines = [line for line in sent(harness, work) if not line.startswith("BEGIN")]

    assert ["SELECT", "COMMIT"] == [line.split()[0] for line in lines]


def test_a_nested_scope_that_only_remembers_sends_nothing(harness: SqlAlchemyHarness) -> None:
    """What a rolled-back scope changed or added and never wrote costs no statement."""

    def work(engine: Engine) -> None:
        with SqlBank(engine) as bank:
            account = bank.accounts.get("A")
            with bank.nested() as nested:
                account.balance = 99
                bank.accounts.add(Account("X", "Ann"))
                nested.rollback()
            assert 10 == account.balance
            bank.commit()

    lines = [line for line in sent(harness, work) if not line.startswith("BEGIN")]

    assert ["SELECT", "COMMIT"] == [line.split()[0] for line in lines]
