"""
Failures on demand: what a test orders from the fake, and what the code under test then meets.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from uow import AsyncRepository, AsyncUnitOfWork, Repository, State, UnitOfWork, entity
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store
from uow.errors import (
    AfterCommitFailed,
    AfterRollbackFailed,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    ConnectionUnavailable,
    DatabaseError,
    Deadlock,
    Misuse,
    SerializationFailure,
    StaleVersion,
    StatementTimeout,
    UniqueViolation,
    UnitOfWorkError,
    UnitOfWorkRolledBack,
)


@entity(key="number")
class Account:
    number: str
    balance: int = 0


@entity(key="number")
class Savings(Account): ...


@entity
class Entry:
    text: str
    id: int | None = None


class Bank(UnitOfWork):
    accounts: Repository[Account]
    savings: Repository[Savings]
    entries: Repository[Entry]


class FakeBank(FakeUnitOfWork, Bank): ...


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


@pytest.fixture
def store() -> Store:
    return Store()


def add(store: Store, number: str) -> FakeBank:
    bank = FakeBank(store)
    with bank:
        bank.accounts.add(Account(number))
        bank.commit()
    return bank


def numbers(store: Store) -> list[str]:
    with FakeBank(store) as bank:
        return [account.number for account in bank.accounts.list(order_by=lambda a: a.number)]


# ------------------------------------------------------------------------------------------------------- where it fails


def test_begin_fails_at_the_first_look(store: Store) -> None:
    """A connection is needed with the first statement, and not to enter the block."""
    store.fail_next("begin", ConnectionUnavailable)
    with FakeBank(store) as bank:
        with pytest.raises(ConnectionUnavailable, match="No connection could be had: made to fail"):
            bank.accounts.count()
        assert bank.state is State.DOOMED
        assert not bank.status().begun
        bank.rollback()

    assert [] == numbers(store)


def test_a_flush_that_fails_breaks_its_scope_alone(store: Store) -> None:
    """The nested scope is lost, and the unit goes on."""
    with FakeBank(store) as bank:
        with pytest.raises(UniqueViolation), bank.nested():
            bank.accounts.add(Account("A"))
            store.fail_next("flush", UniqueViolation)
            bank.flush()
        bank.accounts.add(Account("B"))
        bank.commit()

    assert ["B"] == numbers(store)


def test_a_read_flushes_first(store: Store) -> None:
    """So an order for the flush is how a read is made to fail."""
    store.fail_next("flush", StatementTimeout)
    with pytest.raises(StatementTimeout), FakeBank(store) as bank:
        bank.accounts.get_or_none("A")


def test_a_nested_scope_that_cannot_begin(store: Store) -> None:
    """The failure is the outer scope's."""
    store.fail_next("savepoint", DatabaseError("no"))
    with pytest.raises(DatabaseError, match="no"), FakeBank(store) as bank:
        bank.accounts.add(Account("A"))
        with bank.nested():
            raise AssertionError("not entered")

    assert [] == numbers(store)


def test_a_nested_scope_that_is_not_released(store: Store) -> None:
    """Its work is lost, and the unit goes on."""
    store.fail_next("release", DatabaseError("no"))
    with FakeBank(store) as bank:
        bank.accounts.add(Account("A"))
        with pytest.raises(DatabaseError, match="no"), bank.nested() as nested:
            bank.accounts.add(Account("B"))
        bank.commit()

    assert nested.state is State.ROLLED_BACK
    assert ["A"] == numbers(store)


def test_a_deadlock_at_a_release_dooms_the_unit(store: Store) -> None:
    """Swallowed, it comes back with commit()."""
    store.fail_next("release", Deadlock)
    with pytest.raises(UnitOfWorkRolledBack), FakeBank(store) as bank:
        with suppress(Deadlock), bank.nested():
            bank.accounts.add(Account("A"))
        bank.commit()

    assert [] == numbers(store)


def test_a_rollback_that_fails(store: Store) -> None:
    """The error on its way goes on, with a note; without one the failure itself is raised."""
    store.fail_next("rollback", ConnectionLost)
    with pytest.raises(ValueError, match="mine") as caught, FakeBank(store):
        raise ValueError("mine")

    assert "Another error while rolling back FakeBank (root): ConnectionLost" in str(caught.value.__notes__)

    store.fail_next("rollback", ConnectionLost)
    with FakeBank(store) as bank, pytest.raises(ConnectionLost):
        bank.rollback()

    assert bank.state is State.ROLLED_BACK


# ------------------------------------------------------------------------------------------------------------- commit


def test_a_commit_that_is_refused(store: Store) -> None:
    """Nothing is kept."""
    store.fail_next("commit", SerializationFailure("too late"))
    with pytest.raises(SerializationFailure, match="too late"):
        add(store, "A")

    assert [] == numbers(store)


@pytest.mark.parametrize("error", [CommitOutcomeUnknown, CommitOutcomeUnknown("x", "cut"), ConnectionLost])
@pytest.mark.parametrize("kept", [False, True])
def test_an_outcome_that_is_unknown(store: Store, error: Any, kept: bool) -> None:
    """The unit is in doubt either way; the truth is what was ordered."""
    store.fail_next("commit", error, kept=kept)
    bank = FakeBank(store)
    hooks: list[str] = []
    with pytest.raises(CommitOutcomeUnknown, match=r"Cannot tell whether FakeBank \(root\) was committed"), bank:
        bank.accounts.add(Account("A"))
        bank.after_commit(lambda: hooks.append("after"))
        bank.commit()

    assert State.IN_DOUBT is bank.state
    assert [] == hooks
    assert (["A"] if kept else []) == numbers(store)
    assert () == store.pending_failures


@pytest.mark.parametrize("error", [AfterCommitFailed, AfterCommitFailed("late", [OSError("disk")])])
def test_a_failure_after_the_commit(store: Store, error: Any) -> None:
    """The work is durable, every hook ran, and the group has what was ordered."""
    hooks: list[str] = []
    store.fail_next("commit", error)
    bank = FakeBank(store)
    with pytest.raises(AfterCommitFailed, match=r"FakeBank \(root\) was committed and stays so") as caught, bank:
        bank.accounts.add(Account("A"))
        bank.after_commit(lambda: hooks.append("after"))
        bank.commit()

    assert State.COMMITTED is bank.state
    assert ["after"] == hooks
    assert (RuntimeError, OSError)[error is not AfterCommitFailed] is type(caught.value.exceptions[0])
    assert ["A"] == numbers(store)


def test_a_commit_that_fails_by_itself_keeps_the_order(store: Store) -> None:
    """An unknown outcome whose work is kept waits for a commit that keeps some."""
    store.fail_next("commit", CommitOutcomeUnknown, kept=True)
    with pytest.raises(UniqueViolation), FakeBank(store) as late:
        late.accounts.add(Account("A"))
        late.flush()
        with pytest.raises(CommitOutcomeUnknown):
            add(store, "A")
        store.fail_next("commit", CommitOutcomeUnknown, kept=True)
        late.commit()

    assert [True] == [failure.kept for failure in store.pending_failures]
    with pytest.raises(CommitOutcomeUnknown):
        add(store, "B")
    assert ["A", "B"] == numbers(store)


# ------------------------------------------------------------------------------------------------------ when it fails


def test_the_nth_time(store: Store) -> None:
    """Others before and after it are let through."""
    store.fail_next("commit", SerializationFailure, nth=3)
    add(store, "A")
    add(store, "B")
    with pytest.raises(SerializationFailure):
        add(store, "C")
    add(store, "D")

    assert ["A", "B", "D"] == numbers(store)


def test_several_orders(store: Store) -> None:
    """Each operation counts for all of them, and of several that are due the oldest is met."""
    for error in (SerializationFailure("2nd"), Deadlock("1st"), Deadlock("then")):
        store.fail_next("commit", error, nth=2 if "2nd" in error.detail else 1)
    store.fail_next("rollback", DatabaseError)
    met: list[str] = []
    for number in "ABCD":
        try:
            add(store, number)
        except DatabaseError as error:
            met.append(error.detail)

    assert ["1st", "2nd", "then"] == met
    assert ["D"] == numbers(store)


def test_one_entity_alone(store: Store) -> None:
    """Only a flush that writes it counts: one that adds, changes or removes it, or one of a derived class."""
    add(store, "A")

    def fails(work: Callable[[FakeBank], object]) -> bool:
        store.fail_next("flush", StaleVersion, entity=Account)
        before = len(store.pending_failures)
        with suppress(StaleVersion), FakeBank(store) as bank:
            work(bank)
            bank.commit()
        return len(store.pending_failures) < before

    assert not fails(lambda bank: bank.accounts.list())
    assert not fails(lambda bank: bank.entries.add(Entry("x")))
    assert fails(lambda bank: bank.accounts.add(Account("B")))
    assert fails(lambda bank: bank.savings.add(Savings("S")))
    assert fails(lambda bank: setattr(bank.accounts.get("A"), "balance", 5))
    assert fails(lambda bank: bank.accounts.remove(bank.accounts.get("A")))


def test_what_was_written_before_is_not_written_again(store: Store) -> None:
    """A row that an earlier flush removed does not count for the next one."""
    add(store, "A")
    with FakeBank(store) as bank:
        bank.accounts.remove(bank.accounts.get("A"))
        bank.flush()
        store.fail_next("flush", StaleVersion, entity=Account)
        bank.commit()

    assert 1 == len(store.pending_failures)


# --------------------------------------------------------------------------------------------------- what is discovered


def test_pending_failures(store: Store) -> None:
    """What was ordered and not met can be read, until it is met."""
    store.fail_next("commit", SerializationFailure("x"), nth=2)
    store.fail_next("flush", Deadlock("y"), entity=Account)

    said = (
        "Failure(operation='commit', error=SerializationFailure(detail='x', code=None), nth=2, entity=None, kept=False)"
    )
    assert said == repr(store.pending_failures[0])

    with pytest.raises(Deadlock):
        add(store, "A")

    assert [("commit", 2)] == [(failure.operation, failure.nth) for failure in store.pending_failures]


@pytest.mark.parametrize(
    ("operation", "error", "options", "said"),
    [
        ("select", Deadlock, {}, "'select' cannot be made to fail. Choose one of begin, flush, savepoint, release"),
        ("flush", CommitOutcomeUnknown, {}, "a flush cannot fail with CommitOutcomeUnknown. Order it for commit: not"),
        ("begin", AfterCommitFailed, {}, "a begin cannot fail with AfterCommitFailed. Order it for commit: it says"),
        ("release", UniqueViolation, {}, "a release cannot fail with UniqueViolation. Order it for flush or commit"),
        ("begin", StaleVersion("x"), {}, "a begin cannot fail with StaleVersion. Order it for flush or commit"),
        ("commit", ConnectionUnavailable, {}, "a commit cannot fail with ConnectionUnavailable. Order it for begin"),
        ("commit", Misuse, {}, "Misuse is nothing that a database answers. Order a DatabaseError, or for commit"),
        ("rollback", AfterRollbackFailed, {}, "AfterRollbackFailed is nothing that a database answers"),
        ("commit", Deadlock, {"nth": 0}, "nth is 0. The next one is nth=1"),
        ("commit", Deadlock, {"entity": Account}, "a commit is of no entity, so it cannot be one of Account. Pass"),
        ("commit", Deadlock, {"kept": True}, "Deadlock says that nothing was kept, so kept=True would be a lie"),
        ("flush", ConnectionLost, {"kept": True}, "a flush keeps nothing. Pass kept with commit"),
    ],
)
def test_orders_that_mean_nothing_are_refused(
    store: Store, operation: str, error: type[UnitOfWorkError], options: dict[str, Any], said: str
) -> None:
    """The error says what would mean something, and nothing was ordered."""
    with pytest.raises(ConfigurationError) as caught:
        store.fail_next(operation, error, **options)

    assert said in str(caught.value)
    assert () == store.pending_failures


# ----------------------------------------------------------------------------------------------------- asynchronously


def test_asynchronous_units_meet_them_too(store: Store) -> None:
    """The store is the same, and so are its failures."""
    store.fail_next("flush", Deadlock, nth=2)
    store.fail_next("commit", CommitOutcomeUnknown, kept=True, nth=1)

    async def main() -> list[str]:
        async with AsyncFakeBank(store) as bank:
            await bank.accounts.count()
            with pytest.raises(Deadlock):
                await bank.accounts.count()
            await bank.rollback()
        with pytest.raises(CommitOutcomeUnknown):
            async with AsyncFakeBank(store) as bank:
                bank.accounts.add(Account("A"))
                await bank.commit()
        async with AsyncFakeBank(store) as bank:
            return [account.number for account in await bank.accounts.list()]

    assert ["A"] == asyncio.run(main())
