"""
Whole units done again: what is retried, what never is, and that each attempt starts from nothing.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import stamina
from attrs import define, field
from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks

from uow import AsyncRepository, AsyncUnitOfWork, Handlers, Lock, Retry, State, current
from uow.adapters.memory import AsyncFakeUnitOfWork, Store
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork
from uow.errors import (
    AfterCommitFailed,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    Deadlock,
    InvalidArgument,
    LockTimeout,
    Misuse,
    SerializationFailure,
    StaleVersion,
    UniqueViolation,
    UnitOfWorkActive,
    UnitOfWorkError,
    UnitOfWorkRolledBack,
)
from uow.testing._memory import FakeBank
from uow.testing._model import Account, Bank, Document, MoneyMoved
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank

AT_ONCE = Retry(wait_initial=0, wait_max=0, wait_jitter=0)
SETTINGS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 0},
    "postgresql": {"options": "-c deadlock_timeout=20ms -c lock_timeout=10s"},
    "mysql": {"init_command": "SET innodb_lock_wait_timeout = 10, lock_wait_timeout = 10"},
}


@pytest.fixture(autouse=True)
def retries() -> Iterator[list[RetryDetails]]:
    """What stamina tells its hooks, in place of what it logs."""
    before = get_on_retry_hooks()
    seen: list[RetryDetails] = []
    set_on_retry_hooks([seen.append])
    yield seen
    set_on_retry_hooks(before)


# ----------------------------------------------------------------------------------- what databases do, made on purpose


def opened(url: URL, **connect_args: Any) -> Iterator[SqlAlchemyHarness]:
    harness = SqlAlchemyHarness(create_engine(url, connect_args=SETTINGS[url.get_backend_name()] | connect_args))
    with harness.bank() as bank:
        bank.accounts.add_all([Account("A-1", "Ann", 0), Account("B-2", "Bob", 0)])
        bank.documents.add(Document(1, "a title"))
        bank.commit()
    yield harness
    harness.close()


@pytest.fixture
def harness(database_url: URL) -> Iterator[SqlAlchemyHarness]:
    yield from opened(database_url)


@pytest.fixture
def sqlite(sqlite_url: URL) -> Iterator[SqlAlchemyHarness]:
    yield from opened(sqlite_url)


@pytest.fixture
def postgresql(postgresql_url: URL) -> Iterator[SqlAlchemyHarness]:
    yield from opened(postgresql_url)


@pytest.fixture
def mariadb(mariadb_url: URL) -> Iterator[SqlAlchemyHarness]:
    yield from opened(mariadb_url)


@pytest.fixture
def strict_mariadb(mariadb_url: URL) -> Iterator[SqlAlchemyHarness]:
    """A MariaDB that refuses to write to a row that changed since the unit began, as newer ones do by default."""
    yield from opened(mariadb_url, init_command="SET innodb_snapshot_isolation = ON")


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> SqlAlchemyHarness:
    """Each database that is a server."""
    harness: SqlAlchemyHarness = request.getfixturevalue(request.param)
    return harness


@define
class Story:
    """What one unit went through, attempt by attempt."""

    errors: list[UnitOfWorkError] = field(factory=list)
    sessions: list[Session] = field(factory=list)
    found: list[list[object]] = field(factory=list)
    log: list[object] = field(factory=list)


Provoke = Callable[[SqlBank, int], None]


def live(harness: SqlAlchemyHarness, provoke: Provoke, name: str = "NEW", **options: Any) -> Story:
    """Do a unit with retries, in which *provoke* sees to it that the first attempt fails."""
    story, handlers = Story(), Handlers()
    handlers.after_commit(MoneyMoved)(story.log.append)
    for attempt in harness.bank(handlers=handlers, retry=AT_ONCE, **options).attempts():
        with attempt as uow:
            number = attempt.number
            story.sessions.append(uow.session)
            story.found.append([*uow.session, *uow.session.new])
            uow.accounts.add(Account(f"{name}-{number}", "Zoe"))
            uow.record(MoneyMoved(name, number))
            uow.after_commit(lambda number=number: story.log.append(f"committed {number}"))
            uow.after_rollback(lambda number=number: story.log.append(f"rolled back {number}"))
            try:
                provoke(uow, number)
                uow.commit()
            except UnitOfWorkError as error:
                story.errors.append(error)
                raise
    return story


def assert_second_attempt_won(
    harness: SqlAlchemyHarness, story: Story, kind: type[UnitOfWorkError], *codes: object, name: str = "NEW"
) -> None:
    (error,) = story.errors
    if isinstance(error, UnitOfWorkRolledBack):
        error = error.__cause__

    assert kind is type(error)
    assert error.code in codes

    first, second = story.sessions

    assert first is not second
    assert [[], []] == story.found
    assert ["rolled back 1", "committed 2", MoneyMoved(name, 2)] == story.log
    assert [f"{name}-2"] == [number for number in harness.numbers() if number.startswith(name)]
    assert harness.idle()


def balances(harness: SqlAlchemyHarness) -> list[int]:
    with harness.bank() as bank:
        return [bank.accounts.get(number).balance for number in ("A-1", "B-2")]


@contextmanager
def rival(harness: SqlAlchemyHarness, statement: str) -> Iterator[None]:
    """Keep what *statement* locks while in the block; another session than the unit's."""
    with harness.engine.connect() as connection:
        connection.execute(text(statement))
        yield
        connection.commit()


@pytest.mark.parametrize("where", ["outright", "nested", "nested and swallowed"])
def test_a_deadlock_is_retried(server: SqlAlchemyHarness, where: str) -> None:
    """Of two units in a deadlock one is done again as a whole, also if a nested scope met it, and both are kept."""
    meet = threading.Barrier(2, timeout=30)

    def move(name: str, first: str, second: str, amount: int) -> Story:
        def provoke(uow: SqlBank, number: int) -> None:
            uow.accounts.get(first, lock=Lock.UPDATE).balance += amount
            uow.flush()
            if number == 1:
                meet.wait()
            if where == "outright":
                uow.accounts.get(second, lock=Lock.UPDATE).balance += amount
                return
            with suppress(*([Deadlock] if "swallowed" in where else [])), uow.nested() as nested:
                nested.accounts.get(second, lock=Lock.UPDATE).balance += amount

        return live(server, provoke, name)

    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(move, "LEFT", "A-1", "B-2", 1)
        right = pool.submit(move, "RIGHT", "B-2", "A-1", 10)
        stories = {"LEFT": left.result(), "RIGHT": right.result()}

    (winner, won), (loser, lost) = sorted(stories.items(), key=lambda item: len(item[1].errors))

    assert [[], ["committed 1", MoneyMoved(winner, 1)]] == [won.errors, won.log]
    assert_second_attempt_won(server, lost, Deadlock, "40P01" if server.name == "postgresql" else 1213, name=loser)
    assert [11, 11] == balances(server)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_serialization_failure_is_retried(postgresql: SqlAlchemyHarness, isolation: str) -> None:
    """A unit whose row another one changed is done again, and sees that change."""

    def provoke(uow: SqlBank, number: int) -> None:
        account = uow.accounts.get("A-1")
        if number == 1:
            with rival(postgresql, "UPDATE accounts SET balance = balance + 10 WHERE number = 'A-1'"):
                pass
        account.balance += 1

    story = live(postgresql, provoke, isolation=isolation)

    assert_second_attempt_won(postgresql, story, SerializationFailure, "40001")
    assert [11, 0] == balances(postgresql)


def test_a_write_skew_is_retried(postgresql: SqlAlchemyHarness) -> None:
    """A unit that could not have run alone is done again, although no row was written by two."""

    def provoke(uow: SqlBank, number: int) -> None:
        total = sum(account.balance for account in uow.accounts.list())
        if number == 1:
            with postgresql.bank(isolation="SERIALIZABLE") as other:
                other.accounts.get("B-2").balance = 5 + sum(account.balance for account in other.accounts.list())
                other.commit()
        uow.accounts.get("A-1").balance = total + 1

    story = live(postgresql, provoke, isolation="SERIALIZABLE")

    assert_second_attempt_won(postgresql, story, SerializationFailure, "40001")
    assert [6, 5] == balances(postgresql)


def test_a_changed_snapshot_is_retried(strict_mariadb: SqlAlchemyHarness) -> None:
    """A unit whose row another one changed is done again where MariaDB looks after that."""

    def provoke(uow: SqlBank, number: int) -> None:
        account = uow.accounts.get("A-1")
        if number == 1:
            with rival(strict_mariadb, "UPDATE accounts SET balance = balance + 10 WHERE number = 'A-1'"):
                pass
        account.balance += 1

    story = live(strict_mariadb, provoke)

    assert_second_attempt_won(strict_mariadb, story, SerializationFailure, 1020)
    assert [11, 0] == balances(strict_mariadb)


def test_a_lock_that_is_not_free_in_time_is_retried(harness: SqlAlchemyHarness) -> None:
    """A unit that waited too long for a lock is done again; on SQLite the lock is that of the whole database."""

    def provoke(uow: SqlBank, number: int) -> None:
        if number == 1:
            with rival(harness, "UPDATE accounts SET note = 'mine' WHERE number = 'A-1'"):
                uow.accounts.get("A-1", lock=Lock.UPDATE)
        uow.accounts.get("A-1", lock=Lock.UPDATE).balance += 1

    story = live(harness, provoke, lock_timeout=1 if harness.name == "mysql" else 0.02)

    assert_second_attempt_won(harness, story, LockTimeout, "55P03", 1205, "SQLITE_BUSY")
    assert [1, 0] == balances(harness)


@pytest.mark.parametrize("when", ["in the middle", "before the commit"])
def test_a_lost_connection_is_retried(server: SqlAlchemyHarness, when: str) -> None:
    """A unit whose session the server ended before COMMIT is done again."""

    def provoke(uow: SqlBank, number: int) -> None:
        account = uow.accounts.get("A-1")
        account.balance += 1
        uow.flush()
        if number == 1:
            server.kill(uow)
            if when == "in the middle":
                uow.accounts.count()
        account.owner = "Amy"

    story = live(server, provoke)

    assert_second_attempt_won(server, story, ConnectionLost, "57P01", 1927, 2006, 2013)
    assert [1, 0] == balances(server)


def test_a_stale_version_is_retried(server: SqlAlchemyHarness) -> None:
    """A unit whose entity another one changed is done again with the entity as it is now."""
    versions: list[int | None] = []

    def provoke(uow: SqlBank, number: int) -> None:
        document = uow.documents.get(1)
        versions.append(document.version)
        if number == 1:
            with rival(server, "UPDATE documents SET version = version + 1"):
                pass
        document.title = f"written in attempt {number}"

    story = live(server, provoke)

    assert_second_attempt_won(server, story, StaleVersion, None)
    assert [1, 2] == versions
    with server.bank() as bank:
        assert "written in attempt 2" == bank.documents.get(1).title


def test_a_constraint_is_no_reason_to_try_again(harness: SqlAlchemyHarness) -> None:
    """What would fail again is raised at once."""
    numbers: list[int] = []

    def provoke(uow: SqlBank, number: int) -> None:
        numbers.append(number)
        uow.accounts.add(Account("A-1", "Amy"))

    with pytest.raises(UniqueViolation):
        live(harness, provoke)

    assert [1] == numbers
    assert ["A-1", "B-2"] == harness.numbers()
    assert harness.idle()


# ------------------------------------------------------------------------------------------------ the loop, on the fake


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def bank(store: Store) -> FakeBank:
    return FakeBank(store, retry=AT_ONCE)


def failing(store: Store, times: int, error: type[UnitOfWorkError] = SerializationFailure) -> None:
    for _ in range(times):
        store.fail_next("commit", error)


def numbers(store: Store) -> list[str]:
    with FakeBank(store) as bank:
        return sorted(account.number for account in bank.accounts.list())


def test_each_attempt_enters_the_unit_anew(bank: FakeBank, store: Store, retries: list[RetryDetails]) -> None:
    """An attempt finds nothing of those before, and the loop ends with the one that succeeds."""
    failing(store, 2)
    log: list[str] = []
    for attempt in bank.attempts():
        with attempt as uow:
            assert bank is uow
            assert not uow.status().written
            uow.accounts.add(Account(f"A-{attempt.number}", "Ann"))
            uow.after_commit(lambda number=attempt.number: log.append(f"committed {number}"))
            uow.commit()

    assert ["A-3"] == numbers(store)
    assert ["committed 3"] == log
    assert [SerializationFailure] * 2 == [type(details.caused_by) for details in retries]


def test_the_last_error_reaches_the_caller(bank: FakeBank, store: Store) -> None:
    """When the attempts are used up, the last error is raised as it was, with a note on how many there were."""
    errors: list[Exception] = []

    def work() -> None:
        error = Deadlock("no luck")
        errors.append(error)
        raise error

    with pytest.raises(Deadlock, match="no luck") as caught:
        for attempt in bank.attempts(Retry(attempts=3, wait_initial=0, wait_jitter=0)):
            with attempt:
                work()

    assert 3 == len(errors)
    assert errors[-1] is caught.value
    assert caught.value.__cause__ is None
    (note,) = caught.value.__notes__

    assert note.startswith("Gave up after 3 attempts in ")
    assert "work" == traceback.extract_tb(caught.value.__traceback__)[-1].name
    assert store.idle()


def test_there_is_an_end_to_waiting(bank: FakeBank) -> None:
    """No further attempt begins after the timeout."""
    with pytest.raises(Deadlock) as caught:
        for attempt in bank.attempts(Retry(attempts=None, timeout=1e-9)):
            with attempt:
                raise Deadlock("no luck")

    assert caught.value.__notes__[0].startswith("Gave up after 1 attempt in ")


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), UniqueViolation("taken")], ids=repr)
def test_what_is_not_transient_is_raised_at_once(bank: FakeBank, store: Store, error: BaseException) -> None:
    """An error that would come again, or an interrupt, leaves the block at once and unchanged."""
    attempts = 0
    with pytest.raises(type(error)) as caught:
        for attempt in bank.attempts():
            attempts += 1
            with attempt as uow:
                uow.accounts.add(Account("A-1", "Ann"))
                raise error
            raise AssertionError("the error does not leave the block")

    assert error is caught.value
    assert not hasattr(error, "__notes__")
    assert 1 == attempts
    assert [] == numbers(store)


def test_a_commit_in_doubt_is_not_done_again(bank: FakeBank, store: Store) -> None:
    """A unit that may be durable is not done a second time, although a lost connection is transient."""
    failing(store, 1, ConnectionLost)
    attempts = 0
    with pytest.raises(CommitOutcomeUnknown):
        for attempt in bank.attempts():
            attempts += 1
            with attempt as uow:
                uow.accounts.add(Account("A-1", "Ann"))
                uow.commit()

    assert 1 == attempts


def test_a_failure_after_the_commit_is_not_done_again(bank: FakeBank, store: Store) -> None:
    """A hook that failed after the commit does not make the committed work be done a second time."""

    @bank.run
    def _() -> None:
        bank.accounts.add(Account("A-1", "Ann"))

    def notify() -> None:
        raise Deadlock("elsewhere")

    with pytest.raises(AfterCommitFailed):
        for attempt in bank.attempts():
            with attempt as uow:
                uow.accounts.get("A-1").balance += 1
                uow.after_commit(notify)
                uow.commit()

    assert [1] == [bank.run(lambda: bank.accounts.get("A-1").balance)]


def test_what_another_unit_failed_with_does_not_repeat_committed_work(bank: FakeBank, store: Store) -> None:
    """A transient error that is raised after commit() in the block is another unit's, and leaves the block."""
    attempts = 0
    with pytest.raises(Deadlock):
        for attempt in bank.attempts():
            attempts += 1
            with attempt as uow:
                uow.accounts.add(Account(f"A-{attempt.number}", "Ann"))
                uow.commit()
                raise Deadlock("elsewhere")

    assert 1 == attempts
    assert ["A-1"] == numbers(store)


def test_a_swallowed_error_is_not_lost_with_a_return(bank: FakeBank, store: Store) -> None:
    """A block that ends as if nothing had happened raises what was swallowed: after `return` nobody would try again."""
    failing(store, 1)

    def work() -> str:
        for attempt in bank.attempts():
            with attempt as uow:
                uow.accounts.add(Account("A-1", "Ann"))
                with suppress(SerializationFailure):
                    uow.commit()
                return "done"
        return "never"

    with pytest.raises(UnitOfWorkRolledBack, match="ending it failed, and the error was swallowed"):
        work()

    assert [] == numbers(store)


def test_a_doomed_unit_that_is_committed_is_done_again(bank: FakeBank, store: Store) -> None:
    """A transient error that was swallowed and comes back with commit() is transient still."""
    for attempt in bank.attempts():
        with attempt as uow:
            uow.accounts.add(Account(f"A-{attempt.number}", "Ann"))
            if attempt.number == 1:
                with suppress(Deadlock), uow.nested():
                    store.fail_next("flush", Deadlock)
                    uow.flush()
            uow.commit()

    assert ["A-2"] == numbers(store)


def test_a_loop_may_be_left_early(bank: FakeBank, store: Store) -> None:
    """`break` and `return` in the block leave the loop; what was committed stays, and the unit is free again."""

    def work() -> int:
        for attempt in bank.attempts():
            with attempt as uow:
                uow.accounts.add(Account("A-1", "Ann"))
                uow.commit()
                return attempt.number
        return 0

    for attempt in bank.attempts():
        with attempt:
            break

    assert 1 == work()
    assert ["A-1"] == numbers(store)
    assert State.COMMITTED is bank.state


def test_an_error_that_the_loop_catches_ends_it(bank: FakeBank) -> None:
    """An error that is caught around the `with` is dealt with: there is no further attempt."""
    attempts = 0
    for attempt in bank.attempts():
        attempts += 1
        with suppress(ValueError), attempt:
            raise ValueError("no")

    assert 1 == attempts


def test_a_failed_attempt_that_is_abandoned_is_a_warning(bank: FakeBank, store: Store) -> None:
    """A loop that is left between two attempts would lose work in silence."""
    failing(store, 1)

    def work() -> None:
        for attempt in bank.attempts():
            with attempt as uow:
                uow.accounts.add(Account("A-1", "Ann"))
                uow.commit()
            break

    with pytest.warns(RuntimeWarning, match=r"attempts of FakeBank was left after attempt 1 failed.*Put `break`"):
        work()


def test_attempts_may_be_made_again(bank: FakeBank, store: Store) -> None:
    """Each loop over the same attempts starts from the first."""
    attempts = bank.attempts()
    for number in (1, 2):
        for attempt in attempts:
            with attempt as uow:
                assert 1 == attempt.number
                uow.accounts.add(Account(f"A-{number}", "Ann"))
                uow.commit()

    assert ["A-1", "A-2"] == numbers(store)


def test_an_attempt_has_to_be_entered(bank: FakeBank) -> None:
    """A loop that does not enter its attempts would never end."""
    with pytest.raises(Misuse, match=r"Cannot go on to the next attempt on FakeBank: attempt 1 was not entered\. Let"):
        for _ in bank.attempts():
            pass


def test_an_attempt_has_to_be_left(bank: FakeBank) -> None:
    """A loop cannot go on while its attempt is still open."""
    with pytest.raises(Misuse, match=r"Cannot go on to the next attempt on FakeBank: attempt 1 was not left\."):
        for attempt in bank.attempts():
            attempt.__enter__()
    bank.__exit__(None, None, None)


def test_an_attempt_is_entered_once(bank: FakeBank) -> None:
    """An attempt that was entered before cannot be entered again, neither inside itself nor after it."""
    message = r"Cannot enter attempt 1 on FakeBank: it was entered before\. Let the loop make the next one"
    for attempt in bank.attempts():
        with attempt:
            with pytest.raises(Misuse, match=message):
                attempt.__enter__()
        with pytest.raises(Misuse, match=message):
            attempt.__enter__()


def test_a_retry_inside_another_unit_is_refused(bank: FakeBank, store: Store) -> None:
    """What the unit around did cannot be done again from inside, whichever unit it is."""
    other = FakeBank(store)
    for unit in (bank, FakeBank(Store())):
        with other:
            with pytest.raises(UnitOfWorkActive, match="Retry the outermost unit"):
                unit.run(list)
            with pytest.raises(UnitOfWorkActive, match="Retry the outermost unit"):
                next(iter(unit.attempts()))


# ----------------------------------------------------------------------------------------------------------- the policy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts of Retry is 0. Pass a whole number, 1 or more, or None for no limit."),
        ({"attempts": 2.5}, "attempts of Retry is 2.5. Pass a whole number, 1 or more, or None for no limit."),
        ({"attempts": True}, "attempts of Retry is True. Pass a whole number, 1 or more, or None for no limit."),
        ({"timeout": 0}, "timeout of Retry is 0. Pass a number of seconds above 0, or None for no limit."),
        ({"timeout": "9"}, "timeout of Retry is '9'. Pass a number of seconds above 0, or None for no limit."),
        ({"wait_initial": -1}, "wait_initial of Retry is -1. Pass a number of seconds, 0 or more."),
        ({"wait_max": None}, "wait_max of Retry is None. Pass a number of seconds, 0 or more."),
        ({"wait_jitter": float("nan")}, "wait_jitter of Retry is nan. Pass a number of seconds, 0 or more."),
        ({"wait_exp_base": 0.5}, "wait_exp_base of Retry is 0.5. Pass a number, 1 or more."),
        ({"wait_exp_base": "2"}, "wait_exp_base of Retry is '2'. Pass a number, 1 or more."),
    ],
    ids=repr,
)
def test_a_policy_that_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    """A value that cannot work is an error when the policy is made, and says what to pass."""
    with pytest.raises(ConfigurationError) as caught:
        Retry(**options)

    assert f"Wrong configuration: {message}" == str(caught.value)


def test_the_policy_is_the_units_own(store: Store) -> None:
    """A unit is done again as often as the policy says that it was made with."""
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise StaleVersion("as always")

    with pytest.raises(StaleVersion):
        FakeBank(store, retry=Retry(attempts=2, wait_initial=0, wait_jitter=0)).run(work)

    assert 2 == len(calls)


def test_waits_grow_as_the_policy_says(store: Store, retries: list[RetryDetails]) -> None:
    """Each pause is longer than the one before by the factor, up to the longest."""
    retry = Retry(wait_initial=0.001, wait_max=0.005, wait_jitter=0, wait_exp_base=2)
    failing(store, 4)
    bank = FakeBank(store, retry=retry)
    bank.run(lambda: bank.accounts.add(Account("A-1", "Ann")))

    assert [0.001, 0.002, 0.004, 0.005] == pytest.approx([details.wait_for for details in retries])


def test_stamina_can_be_switched_off(bank: FakeBank, store: Store) -> None:
    """With retries switched off in stamina there is one attempt."""
    failing(store, 1)
    stamina.set_active(False)
    try:
        with pytest.raises(SerializationFailure):
            bank.run(lambda: bank.accounts.add(Account("A-1", "Ann")))
    finally:
        stamina.set_active(True)


def test_stamina_has_a_mode_for_tests(bank: FakeBank, store: Store) -> None:
    """stamina's mode for tests says how many attempts there are."""
    failing(store, 2)
    stamina.set_testing(True, attempts=2)
    try:
        with pytest.raises(SerializationFailure) as caught:
            bank.run(lambda: bank.accounts.add(Account("A-1", "Ann")))
    finally:
        stamina.set_testing(False)

    assert caught.value.__notes__[0].startswith("Gave up after 2 attempts")


def test_without_stamina_the_error_names_the_extra(bank: FakeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit needs stamina only to be done again, and says what to install."""
    monkeypatch.setitem(sys.modules, "stamina", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs stamina, which is not installed\. Install uow\[retry\]\."):
        bank.run(list)


# ---------------------------------------------------------------------------------------------------------------- run()


def test_work_runs_as_one_unit(bank: FakeBank, store: Store) -> None:
    """run() calls the work with its arguments, commits, and returns its result; all of it anew after a failure."""
    failing(store, 2)
    calls: list[str] = []

    def open_account(number: str, *, owner: str) -> str:
        calls.append(number)
        bank.accounts.add(Account(number, owner))
        return f"{owner}'s"

    assert "Ann's" == bank.run(open_account, "A-1", owner="Ann")
    assert ["A-1"] * 3 == calls
    assert ["A-1"] == numbers(store)


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_work_may_end_the_unit_itself(bank: FakeBank, store: Store, verb: str) -> None:
    """run() leaves a unit alone that the work has ended."""

    def work() -> str:
        bank.accounts.add(Account("A-1", "Ann"))
        getattr(bank, verb)()
        return verb

    assert verb == bank.run(work)
    assert (["A-1"] if verb == "commit" else []) == numbers(store)


async def later() -> None:
    """Do nothing, some time."""


async def piece_by_piece() -> Any:
    """Yield nothing, some time."""
    yield


@pytest.mark.parametrize(
    "work", [later, piece_by_piece, lambda: (number for number in [1])], ids=["coroutine", "generator", "iterator"]
)
def test_work_that_is_done_later_is_refused(bank: FakeBank, work: Callable[[], object]) -> None:
    """A coroutine or generator would do its work after the unit ended."""
    with pytest.raises(
        InvalidArgument, match=r"Cannot call run\(\): the work returned .* which has not done anything yet"
    ):
        bank.run(work)

    assert State.ROLLED_BACK is bank.state


# ------------------------------------------------------------------------------------------------ the asynchronous face


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


@pytest.fixture
def async_bank(store: Store) -> AsyncFakeBank:
    return AsyncFakeBank(store, retry=AT_ONCE)


def test_each_awaited_attempt_enters_the_unit_anew(async_bank: AsyncFakeBank, store: Store) -> None:
    """An attempt that is awaited finds nothing of those before, and the loop ends with the one that succeeds."""
    failing(store, 2)
    log: list[str] = []

    async def main() -> None:
        async for attempt in async_bank.attempts():
            async with attempt as uow:
                assert async_bank is uow
                assert not uow.status().written
                uow.accounts.add(Account(f"A-{attempt.number}", "Ann"))
                uow.after_commit(lambda number=attempt.number: log.append(f"committed {number}"))
                await uow.commit()

    asyncio.run(main())

    assert ["A-3"] == numbers(store)
    assert ["committed 3"] == log


def test_the_last_error_reaches_who_awaits(async_bank: AsyncFakeBank) -> None:
    """When the attempts are used up, the last error is raised as it was, with a note on how many there were."""
    errors: list[Exception] = []

    async def work() -> None:
        errors.append(Deadlock("no luck"))
        raise errors[-1]

    async def main() -> None:
        async for attempt in async_bank.attempts(Retry(attempts=2, wait_initial=0, wait_jitter=0)):
            async with attempt:
                await work()

    with pytest.raises(Deadlock) as caught:
        asyncio.run(main())

    assert 2 == len(errors)
    assert errors[-1] is caught.value
    assert caught.value.__notes__[0].startswith("Gave up after 2 attempts in ")


def test_what_is_not_transient_is_raised_at_once_to_who_awaits(async_bank: AsyncFakeBank) -> None:
    """An error that would come again leaves the block at once and unchanged."""
    error = ValueError("no")

    async def main() -> None:
        async for attempt in async_bank.attempts():
            async with attempt:
                raise error
            raise AssertionError("the error does not leave the block")

    with pytest.raises(ValueError, match="no") as caught:
        asyncio.run(main())

    assert error is caught.value
    assert not hasattr(error, "__notes__")


def test_an_awaited_attempt_has_to_be_entered(async_bank: AsyncFakeBank) -> None:
    """A loop that does not enter its attempts would never end."""

    async def main() -> None:
        async for _ in async_bank.attempts():
            pass

    with pytest.raises(Misuse, match=r"attempt 1 was not entered\. Let `with attempt as uow:` be the body of the loop"):
        asyncio.run(main())


@pytest.mark.parametrize("when", ["in the block", "in the pause"])
def test_a_cancelled_loop_tries_no_more(store: Store, when: str) -> None:
    """A cancellation ends the loop, whether it comes in an attempt or between two of them."""
    bank = AsyncFakeBank(store, retry=Retry(wait_initial=60, wait_max=60, timeout=None))
    attempts: list[int] = []

    async def work() -> None:
        async for attempt in bank.attempts():
            async with attempt as uow:
                attempts.append(attempt.number)
                uow.accounts.add(Account("A-1", "Ann"))
                if when == "in the block":
                    await asyncio.Event().wait()
                raise Deadlock("no luck")

    async def main() -> None:
        task = asyncio.create_task(work())
        while not attempts or not (store.idle() or when == "in the block"):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert [1] == attempts
    assert [] == numbers(store)


def test_awaited_work_runs_as_one_unit(async_bank: AsyncFakeBank, store: Store) -> None:
    """run() awaits a coroutine function, or calls a function written for both faces, and commits; anew if need be."""
    calls: list[str] = []

    async def open_account(number: str, *, owner: str) -> str:
        calls.append(number)
        async_bank.accounts.add(Account(number, owner))
        return f"{owner}'s"

    def open_for_both(number: str) -> int:
        calls.append(number)
        current(Bank).accounts.add(Account(number, "Bob"))
        return len(calls)

    async def close() -> None:
        await async_bank.accounts.remove(await async_bank.accounts.get("B-2"))
        await async_bank.rollback()

    async def main() -> None:
        failing(store, 1)
        assert "Ann's" == await async_bank.run(open_account, "A-1", owner="Ann")
        failing(store, 1)
        assert 4 == await async_bank.run(open_for_both, "B-2")
        await async_bank.run(close)

    asyncio.run(main())

    assert ["A-1", "A-1", "B-2", "B-2"] == calls
    assert ["A-1", "B-2"] == numbers(store)


@pytest.mark.parametrize("work", [piece_by_piece, lambda: later()], ids=["generator", "coroutine"])
def test_awaited_work_that_is_done_later_is_refused(async_bank: AsyncFakeBank, work: Callable[[], object]) -> None:
    """What would do its work after the unit ended is refused where the unit is awaited, too."""
    with pytest.raises(InvalidArgument, match="which has not done anything yet"):
        asyncio.run(async_bank.run(work))


def test_an_awaited_retry_inside_another_unit_is_refused(async_bank: AsyncFakeBank, store: Store) -> None:
    """What the unit around did cannot be done again from inside; a task that it started stands on its own."""

    async def work() -> None:
        async_bank.accounts.add(Account("A-1", "Ann"))

    async def main() -> None:
        async with AsyncFakeBank(store):
            with pytest.raises(UnitOfWorkActive, match="Retry the outermost unit"):
                await async_bank.run(work)
            await asyncio.create_task(async_bank.run(work))

    asyncio.run(main())

    assert ["A-1"] == numbers(store)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg", "mysql+aiomysql"])
def test_a_lost_connection_is_retried_by_who_awaits(driver: str, request: pytest.FixtureRequest) -> None:
    """A unit whose session the server ended before COMMIT is done again, whatever the driver."""
    harness = request.getfixturevalue("postgresql" if "postgresql" in driver else "mariadb")
    own, end = (
        ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({}, 5000)")
        if "postgresql" in driver
        else ("SELECT connection_id()", "KILL {}")
    )
    attempts: list[int] = []

    async def main() -> None:
        engine = create_async_engine(harness.engine.url.set(drivername=driver))
        async for attempt in AsyncSqlBank(engine, retry=AT_ONCE).attempts():
            async with attempt as uow:
                attempts.append(attempt.number)
                (await uow.accounts.get("A-1")).balance += 1
                await uow.flush()
                if attempt.number == 1:
                    session = (await uow.session.execute(text(own))).scalar_one()
                    with harness.engine.connect() as other:
                        other.execute(text(end.format(session)))
                    with pytest.raises(ConnectionLost):
                        await uow.accounts.count()
                await uow.commit()
        await engine.dispose()

    asyncio.run(main())

    assert [1, 2] == attempts
    assert [1, 0] == balances(harness)


def test_a_busy_database_is_retried_by_who_awaits(sqlite: SqlAlchemyHarness) -> None:
    """A unit that finds SQLite's file locked is done again."""
    errors: list[UnitOfWorkError] = []

    async def main() -> None:
        url = sqlite.engine.url.set(drivername="sqlite+aiosqlite")
        engine = create_async_engine(url, connect_args={"timeout": 0})
        with ExitStack() as stack:
            stack.enter_context(rival(sqlite, "UPDATE accounts SET note = 'mine' WHERE number = 'A-1'"))
            async for attempt in AsyncSqlBank(engine, retry=AT_ONCE).attempts():
                async with attempt as uow:
                    uow.after_rollback(stack.close)
                    try:
                        (await uow.accounts.get("A-1")).balance += 1
                    except LockTimeout as error:
                        errors.append(error)
                        raise
                    await uow.commit()
        await engine.dispose()

    asyncio.run(main())

    assert ["SQLITE_BUSY"] == [error.code for error in errors]
    assert [1, 0] == balances(sqlite)
