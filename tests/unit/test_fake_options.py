"""
The fake's options: what each isolation level lets happen, held against PostgreSQL, and what they cost.
"""

import asyncio
import gc
import re
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine

from uow import AsyncRepository, AsyncUnitOfWork, Lock
from uow.adapters.memory import AsyncFakeUnitOfWork, Store
from uow.errors import (
    ConfigurationError,
    DatabaseError,
    ForeignKeyViolation,
    SerializationFailure,
    StaleVersion,
    UniqueViolation,
)
from uow.testing._harness import Harness
from uow.testing._memory import FakeBank, FakeHarness
from uow.testing._model import Account, Bank, Document, Line, Transfer
from uow.testing._sqlalchemy import SqlAlchemyHarness

Open = Callable[[], Bank]

BACKENDS = ("postgresql", "fake")
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
SNAPSHOTS = LEVELS[1:]
DOCUMENT = Path(__file__).parents[2] / "docs" / "fake.md"


@contextmanager
def opened(backend: str, url: URL) -> Generator[Harness]:
    """A bank where Ann and Bob have 50 each; on PostgreSQL, nobody waits for long."""
    if backend == "fake":
        harness: Harness = FakeHarness()
    else:
        # A sequential scan would lock the whole table at SERIALIZABLE, and the planner chooses by its statistics.
        settings = "-c lock_timeout=100ms -c enable_seqscan=off"
        harness = SqlAlchemyHarness(create_engine(url, connect_args={"options": settings}))
    with harness.bank() as bank:
        bank.accounts.add_all([Account("A", "Ann", 50), Account("B", "Bob", 50)])
        bank.commit()
    yield harness
    harness.close()


@pytest.fixture(params=BACKENDS)
def harness(request: pytest.FixtureRequest, postgresql_url: URL) -> Iterator[Harness]:
    """The bank on each of the two."""
    with opened(request.param, postgresql_url) as harness:
        yield harness


@pytest.fixture
def store() -> Store:
    """A store where Ann and Bob have 50 each."""
    store = Store()
    store.unique(Account, "note")
    with FakeBank(store) as bank:
        bank.accounts.add_all([Account("A", "Ann", 50, "a"), Account("B", "Bob", 50, "b")])
        bank.commit()
    return store


def change(open_: Open, number: str, balance: int) -> None:
    """Set a balance in a unit of its own."""
    with open_() as bank:
        bank.accounts.get(number).balance = balance
        bank.commit()


def add(open_: Open, *entities: Any) -> None:
    """Add entities in a unit of their own."""
    with open_() as bank:
        for entity in entities:
            (bank.documents if isinstance(entity, Document) else bank.accounts).add(entity)
        bank.commit()


def balances(bank: Bank) -> list[int]:
    """Return what Ann and Bob have."""
    return [bank.accounts.get(number).balance for number in "AB"]


# ------------------------------------------------------------------------------------------------------- the battery


def dirty_write(open_: Open) -> bool:
    """One's row and two's row are kept, of two that each wrote both."""
    with open_() as one, open_() as two:
        one.accounts.get("A").balance = 1
        one.flush()
        two.accounts.get("A").balance = 2
        two.flush()
        two.accounts.get("B").balance = 2
        two.commit()
        one.accounts.get("B").balance = 1
        one.commit()
    return True


def dirty_read(open_: Open) -> bool:
    """A row is seen before it is committed."""
    with open_() as one, open_() as two:
        one.accounts.add(Account("C", "Cem", 1))
        one.flush()
        return two.accounts.exists(lambda a: a.owner == "Cem")


def aborted_read(open_: Open) -> bool:
    """A value is seen that is then rolled back."""
    with open_() as one, open_() as two:
        one.accounts.get("A").balance = 1
        one.flush()
        seen = two.accounts.get("A").balance
        one.rollback()
    return seen == 1


def intermediate_read(open_: Open) -> bool:
    """A value is seen that its own unit then writes over."""
    with open_() as one, open_() as two:
        account = one.accounts.get("A")
        account.balance = 1
        one.flush()
        seen = two.accounts.get("A").balance
        account.balance = 2
        one.commit()
    return seen == 1


def lost_update(open_: Open) -> bool:
    """Two add to a balance that both have read, and one addition is gone."""
    with open_() as one, open_() as two:
        mine, yours = one.accounts.get("A"), two.accounts.get("A")
        yours.balance += 10
        two.commit()
        mine.balance += 10
        one.commit()
    return True


def unrepeatable_read(open_: Open) -> bool:
    """The same question about a row has another answer."""
    with open_() as one:
        before = one.accounts.exists(lambda a: (a.number == "A") & (a.balance == 50))
        change(open_, "A", 1)
        return before and not one.accounts.exists(lambda a: (a.number == "A") & (a.balance == 50))


def phantom(open_: Open) -> bool:
    """The same question about many rows has another answer."""
    with open_() as one:
        before = one.accounts.count(lambda a: a.balance >= 0)
        add(open_, Account("C", "Cem"))
        return one.accounts.count(lambda a: a.balance >= 0) != before


def read_skew(open_: Open) -> bool:
    """One account is seen before a transfer, the other after it."""
    with open_() as one:
        mine = one.accounts.get("A").balance
        with open_() as two:
            two.accounts.get("A").balance -= 10
            two.accounts.get("B").balance += 10
            two.commit()
        return mine + one.accounts.get("B").balance != 100


def stale_read(open_: Open) -> bool:
    """What one wrote rests on a row that two had changed by then, and two knows nothing of one."""
    with open_() as one:
        mine = one.accounts.get("A").balance
        change(open_, "A", 1)
        one.accounts.get("B").balance = mine + 1
        one.commit()
    return True


def write_skew(open_: Open) -> bool:
    """Two take from one account each, what both together could pay only once."""
    with open_() as one, open_() as two:
        assert 100 == sum(balances(one)) == sum(balances(two))
        one.accounts.get("A").balance -= 80
        two.accounts.get("B").balance -= 80
        two.commit()
        one.commit()
    return True


def write_skew_of_one_predicate(open_: Open) -> bool:
    """Two count the same rows, and each adds what would be one too many after the other's."""
    with open_() as one, open_() as two:
        assert 1 == one.accounts.count(lambda a: a.owner == "Ann") == two.accounts.count(lambda a: a.owner == "Ann")
        one.accounts.add(Account("C", "Ann"))
        two.accounts.add(Account("D", "Ann"))
        two.commit()
        one.commit()
    return True


def write_skew_of_two_predicates(open_: Open) -> bool:
    """Each adds what the other one made sure is not there."""
    with open_() as one, open_() as two:
        assert not one.accounts.exists(lambda a: a.balance == 1)
        assert not two.accounts.exists(lambda a: a.balance == 2)
        one.accounts.add(Account("C", "Cem", 2))
        two.accounts.add(Account("D", "Dee", 1))
        two.commit()
        one.commit()
    return True


def read_only_anomaly(open_: Open) -> bool:
    """A unit that only reads sees two's commit and not one's, and one did not see two's."""
    with open_() as one, open_() as two, open_() as three:
        balances(one)
        two.accounts.get("B").balance += 20
        two.commit()
        balances(three)
        three.commit()
        one.accounts.get("A").balance -= 60
        one.commit()
    return True


def duplicate_key(open_: Open) -> bool:
    """Two add the same key."""
    with open_() as one:
        one.accounts.add(Account("C", "Cem"))
        add(open_, Account("C", "Cid"))
        one.commit()
    return True


def duplicate_value(open_: Open) -> bool:
    """Two add the same unique value, each after it made sure that it is not there."""
    with open_() as one, open_() as two:
        for number, bank in enumerate((one, two)):
            assert not bank.documents.exists(lambda d: d.title == "x")
            bank.documents.add(Document(number, "x"))
        two.commit()
        one.commit()
    return True


BATTERY = (
    dirty_write,
    dirty_read,
    aborted_read,
    intermediate_read,
    lost_update,
    unrepeatable_read,
    phantom,
    read_skew,
    stale_read,
    write_skew,
    write_skew_of_one_predicate,
    write_skew_of_two_predicates,
    read_only_anomaly,
    duplicate_key,
    duplicate_value,
)


def documented() -> dict[str, dict[tuple[str, str], bool]]:
    """Read the table of verdicts: by history, then by level and backend, whether it happens."""
    table: dict[str, dict[tuple[str, str], bool]] = {}
    columns = [(level, backend) for level in LEVELS for backend in BACKENDS]
    for line in DOCUMENT.read_text("utf-8").splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(columns) and set(cells) <= {"happens", "never"}:
            table[name.replace(" ", "_")] = {
                column: cell == "happens" for column, cell in zip(columns, cells, strict=True)
            }
    return table


def verdict(backend: str, url: URL, level: str, history: Callable[[Open], bool]) -> str:
    """Tell whether a history can happen."""
    with opened(backend, url) as harness, suppress(DatabaseError):
        return "happens" if history(partial(harness.bank, isolation=level)) else "never"
    return "never"


@pytest.mark.parametrize("history", BATTERY, ids=lambda history: history.__name__)
def test_what_a_level_lets_happen(postgresql_url: URL, history: Callable[[Open], bool]) -> None:
    """The documentation's table has the row that is measured here, on PostgreSQL and on the fake at each level."""
    cells = [verdict(backend, postgresql_url, level, history) for level in LEVELS for backend in BACKENDS]
    row = " | ".join(["", history.__name__.replace("_", " "), *cells, ""]).strip()

    assert row in DOCUMENT.read_text("utf-8").splitlines()


def test_the_fake_is_never_the_laxer_one() -> None:
    """Every history has its row, and nothing happens on the fake that PostgreSQL forbids at that level."""
    verdicts = documented()
    laxer = [
        (name, level)
        for name, row in verdicts.items()
        for level in LEVELS
        if row[level, "fake"] and not row[level, "postgresql"]
    ]

    assert [history.__name__ for history in BATTERY] == list(verdicts)
    assert [] == laxer


# ------------------------------------------------------------------------------------------ errors, side by side


def parent_added(one: Bank, open_: Open) -> None:
    add(open_, Account("Z", "Zoe"))
    one.transfers.add(Transfer("Z", 1))


def parent_removed(one: Bank, open_: Open) -> None:
    with open_() as two:
        two.accounts.remove(two.accounts.get("A"))
        two.commit()
    one.transfers.add(Transfer("A", 1))


def parent_changed(one: Bank, open_: Open) -> None:
    change(open_, "A", 1)
    one.transfers.add(Transfer("A", 1))


def child_added(one: Bank, open_: Open) -> None:
    with open_() as two:
        two.transfers.add(Transfer("A", 1))
        two.commit()
    one.accounts.remove(one.accounts.get("A"))


def key_added(one: Bank, open_: Open) -> None:
    add(open_, Account("C", "Cem"))
    one.accounts.add(Account("C", "Cid"))


def key_added_after_both_looked(one: Bank, open_: Open) -> None:
    assert not one.accounts.exists(lambda a: a.number == "C")
    with open_() as two:
        assert two.accounts.get_or_none("C") is None
        two.accounts.add(Account("C", "Cem"))
        two.commit()
    one.accounts.add(Account("C", "Cid"))


def key_removed(one: Bank, open_: Open) -> None:
    with open_() as two:
        two.accounts.remove(two.accounts.get("A"))
        two.commit()
    one.accounts.add(Account("A", "Amy"))


def key_removed_before_a_change(one: Bank, open_: Open) -> None:
    key_removed(one, open_)
    one.flush()
    one.accounts.get("A").balance = 1


def value_added(one: Bank, open_: Open) -> None:
    add(open_, Document(2, "two"))
    one.documents.add(Document(3, "two"))


def value_added_before_a_change(one: Bank, open_: Open) -> None:
    add(open_, Document(2, "two"))
    one.documents.get(1).title = "two"


def key_added_before_a_change(one: Bank, open_: Open) -> None:
    add(open_, Account("C", "Cem"))
    one.accounts.get("A").number = "C"


def changed_before_a_change(one: Bank, open_: Open) -> None:
    change(open_, "A", 1)
    one.accounts.get("A").balance += 1


def changed_before_a_removal(one: Bank, open_: Open) -> None:
    change(open_, "A", 1)
    one.accounts.remove(one.accounts.get("A"))


def changed_before_a_lock(one: Bank, open_: Open) -> None:
    change(open_, "A", 1)
    one.accounts.get("A", lock=Lock.SHARE)


def added_before_a_lock(one: Bank, open_: Open) -> None:
    add(open_, Account("C", "Cem"))
    one.accounts.get_or_none("C", lock=Lock.UPDATE)


def changed_version(one: Bank, open_: Open) -> None:
    mine = one.documents.get(1)
    with open_() as two:
        two.documents.get(1).title = "two"
        two.commit()
    mine.title = "three"


ERRORS: list[tuple[Callable[[Bank, Open], None], list[type[DatabaseError] | None]]] = [
    (parent_added, [None, ForeignKeyViolation, ForeignKeyViolation]),
    (parent_removed, [ForeignKeyViolation, SerializationFailure, SerializationFailure]),
    (parent_changed, [None, None, None]),
    (child_added, [ForeignKeyViolation, ForeignKeyViolation, ForeignKeyViolation]),
    (key_added, [UniqueViolation, UniqueViolation, UniqueViolation]),
    (key_added_after_both_looked, [UniqueViolation, UniqueViolation, SerializationFailure]),
    (key_removed, [None, None, None]),
    (key_removed_before_a_change, [None, SerializationFailure, SerializationFailure]),
    (value_added, [UniqueViolation, UniqueViolation, UniqueViolation]),
    (value_added_before_a_change, [UniqueViolation, UniqueViolation, UniqueViolation]),
    (key_added_before_a_change, [UniqueViolation, UniqueViolation, UniqueViolation]),
    (changed_before_a_change, [None, SerializationFailure, SerializationFailure]),
    (changed_before_a_removal, [None, SerializationFailure, SerializationFailure]),
    (changed_before_a_lock, [None, SerializationFailure, SerializationFailure]),
    (added_before_a_lock, [None, None, None]),
    (changed_version, [StaleVersion, SerializationFailure, SerializationFailure]),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("step", "errors"), ERRORS, ids=[step.__name__ for step, _ in ERRORS])
def test_the_error_is_the_database_s(
    harness: Harness, level: str, step: Callable[[Bank, Open], None], errors: list[type[DatabaseError] | None]
) -> None:
    """What another unit committed since the first read fails the flush, or not, with the same error on both."""
    open_ = partial(harness.bank, isolation=level)
    add(open_, Document(1, "one"))
    raised = None
    try:
        with open_() as one:
            one.lines.count()
            step(one, open_)
            one.flush()
    except DatabaseError as error:
        raised = type(error)

    assert errors[LEVELS.index(level)] is raised


@pytest.mark.parametrize("level", LEVELS[:2])  # PostgreSQL is more careful than it would need to be at SERIALIZABLE
def test_a_key_that_came_and_went(harness: Harness, level: str) -> None:
    """A key that others added and removed since the snapshot is free, also for later changes of what has it then."""
    open_ = partial(harness.bank, isolation=level)
    with open_() as one:
        one.lines.count()
        add(open_, Account("C", "Cem"))
        with open_() as two:
            two.accounts.remove(two.accounts.get("C"))
            two.commit()
        account = Account("C", "Cid")
        one.accounts.add(account)
        one.flush()
        account.balance = 1
        one.commit()

    assert ["A", "B", "C"] == harness.numbers()


# ------------------------------------------------------------------------------------------------------ the snapshot


@pytest.mark.parametrize("level", SNAPSHOTS)
def test_every_read_sees_the_snapshot(store: Store, level: str) -> None:
    """Rows changed, added, removed and changed once more by others look as they did at the first read."""
    with FakeBank(store, isolation=level) as bank:
        bank.lines.count()
        for balance in (1, 2):
            change(partial(FakeBank, store), "A", balance)
        with FakeBank(store) as other:
            other.accounts.remove(other.accounts.get("B"))
            other.flush()
            other.accounts.get("A").note = "b"
            other.accounts.add(Account("C", "Cem", 50, "c"))
            other.commit()
        listed = [(a.number, a.balance, a.note) for a in bank.accounts.list(order_by=lambda a: a.number)]
        paged = [account.number for account in bank.accounts.iterate(batch_size=1)]
        found = [[a.number for a in bank.accounts.list(lambda a, n=note: a.note == n)] for note in "abc"]  # type: ignore[misc]

        assert [("A", 50, "a"), ("B", 50, "b")] == listed
        assert ["A", "B"] == paged
        assert [["A"], ["B"], []] == found
        assert 50 == bank.accounts.get("A").balance
        assert bank.accounts.get_or_none("C") is None
        assert 2 == bank.accounts.count() == bank.accounts.count(lambda a: a.balance == 50)
        assert not bank.accounts.exists(lambda a: a.number == "C")

    with FakeBank(store, isolation=level) as bank:
        assert ["A", "C"] == sorted(account.number for account in bank.accounts.list())


def test_the_first_look_takes_the_snapshot(store: Store) -> None:
    """Neither entering nor a nested scope does, as with a database."""
    with FakeBank(store, isolation="REPEATABLE READ") as bank, bank.nested() as nested:
        assert not bank.status().begun

        change(partial(FakeBank, store), "A", 1)

        assert 1 == nested.accounts.get("A").balance
        assert bank.status().begun


def test_own_work_stands_over_the_snapshot(store: Store) -> None:
    """A unit sees what it wrote, nested or not, over what was there; a nested rollback uncovers that again."""
    with FakeBank(store, isolation="REPEATABLE READ") as bank:
        bank.accounts.get("A").note = "mine"
        change(partial(FakeBank, store), "B", 1)
        with suppress(ValueError), bank.nested():
            bank.accounts.remove(bank.accounts.get("A"))
            bank.accounts.add(Account("C", "Cem", note="c"))

            assert ["B", "C"] == sorted(account.number for account in bank.accounts.list())

            raise ValueError
        mine = bank.accounts.one(lambda a: a.note == "mine").number
        left = [(account.number, account.balance) for account in bank.accounts.list(order_by=lambda a: a.number)]
        bank.commit()

    assert "A" == mine
    assert [("A", 50), ("B", 50)] == left


def test_old_rows_go_with_the_last_snapshot(store: Store) -> None:
    """An old row is kept for as long as an open unit may look at it, and not at all if none does."""
    change_a = partial(change, partial(FakeBank, store), "A")

    def row() -> "weakref.ref[Any]":
        return weakref.ref(store.table(Account).rows["A",])

    unseen = row()
    change_a(1)
    gc.collect()

    assert unseen() is None

    with FakeBank(store, isolation="SERIALIZABLE") as first:
        first.accounts.count()
        old = row()
        change_a(2)
        between = row()
        with FakeBank(store, isolation="REPEATABLE READ") as second:
            second.accounts.count()
            change_a(3)
            gc.collect()

            assert [1, 2] == [bank.accounts.get("A").balance for bank in (first, second)]

        gc.collect()

        assert between() is None
        assert old() is not None

        first.rollback()
        gc.collect()

        assert old() is None
    assert not store.snapshots


def test_a_snapshot_ends_with_its_unit(store: Store) -> None:
    """Commits hand it nothing more, even while somebody holds the error that it raised."""
    with pytest.raises(SerializationFailure) as caught, FakeBank(store, isolation="REPEATABLE READ") as bank:
        account = bank.accounts.get("A")
        change(partial(FakeBank, store), "A", 1)
        account.balance += 1
        bank.flush()

    assert "another unit since this one's snapshot" in str(caught.value)
    assert not store.snapshots


@pytest.mark.parametrize(("level", "early"), [("READ COMMITTED", True), ("REPEATABLE READ", False)])
@pytest.mark.parametrize("wrote", [False, True])
def test_an_entity_stays_what_was_read(store: Store, level: str, early: bool, wrote: bool) -> None:
    """A later unit that changes an entity is told that another one was faster, however the one that read it ended."""
    add(partial(FakeBank, store), Document(1, "one"))
    with FakeBank(store, isolation=level) as bank:
        bank.lines.count()
        held = [bank.documents.get(1)] if early else []
        with FakeBank(store) as other:
            other.documents.get(1).title = "two"
            other.commit()
        document = bank.documents.get(1)
        if wrote:
            bank.lines.add(Line("1", 1))
        bank.commit()

    assert held in ([], [document])
    with pytest.raises(StaleVersion), FakeBank(store) as bank:
        bank.documents.add(document)
        document.title = "three"
        bank.commit()


@pytest.mark.parametrize(
    ("level", "error"), [("READ COMMITTED", ForeignKeyViolation), ("REPEATABLE READ", SerializationFailure)]
)
def test_a_reference_is_checked_again_at_commit(level: str, error: type[DatabaseError]) -> None:
    """A row that was referred to may go as long as nobody knows of the reference; trying again shows what is there."""
    harness = FakeHarness()
    add(harness.bank, Account("A", "Ann"))
    with pytest.raises(error), harness.bank(isolation=level) as bank:
        bank.transfers.add(Transfer("A", 1))
        bank.flush()
        with harness.bank() as other:
            other.accounts.remove(other.accounts.get("A"))
            other.commit()
        bank.commit()


class Watched(dict[Any, Any]):
    """A dictionary that counts how often it is gone through."""

    walks = 0

    def _walk(self, name: str) -> Any:
        self.walks += 1
        return getattr(super(), name)()

    def __iter__(self) -> Iterator[Any]:
        found: Iterator[Any] = self._walk("__iter__")
        return found

    def keys(self) -> Any:
        return self._walk("keys")

    def values(self) -> Any:
        return self._walk("values")

    def items(self) -> Any:
        return self._walk("items")

    def copy(self) -> Any:
        return self._walk("copy")


def visits(store: Store, level: str) -> tuple[int, int]:
    """Count how often a busy unit goes through the stored rows, and how many old ones are kept for it."""
    table = store.table(Account)
    table.rows = watched = Watched(table.rows)
    with suppress(SerializationFailure), FakeBank(store, isolation=level) as bank:
        bank.accounts.get("A").balance += 1
        for name in ("C", "D"):
            with FakeBank(store, isolation=level) as other:
                other.accounts.add(Account(name, "Cem", note=name))
                other.accounts.get("B").balance += 1
                other.commit()
        with suppress(ValueError), bank.nested():
            bank.accounts.remove(bank.accounts.get("A"))
            bank.flush()
            raise ValueError
        assert bank.accounts.exists(lambda a: a.note == "b")
        (snapshot,) = store.snapshots or [None]
        kept = 0 if snapshot is None else len(snapshot._before.rows)
        bank.commit()
    return watched.walks, kept


@pytest.mark.parametrize(("level", "kept"), [("READ COMMITTED", 0), ("REPEATABLE READ", 3), ("SERIALIZABLE", 3)])
@pytest.mark.parametrize("size", [10**2, 10**5])
def test_a_snapshot_copies_nothing(store: Store, level: str, kept: int, size: int) -> None:
    """A unit never goes through the stored rows for its isolation, and keeps only those that others replaced."""
    for number in range(size):
        store.put(Account, (f"{number:06}",), {"number": f"{number:06}", "owner": "", "balance": 0, "note": None})

    assert (0, kept) == visits(store, level)


# ------------------------------------------------------------------------------------------------------ serializable


def test_units_on_other_rows_do_not_meet(store: Store) -> None:
    """Two serializable units that read by key and write what they read both commit, if the keys are not the same."""
    serializable = partial(FakeBank, store, isolation="SERIALIZABLE")
    with serializable() as one, serializable() as two:
        one.accounts.get("A").balance -= 1
        two.accounts.get("B").balance -= 1
        two.commit()
        one.commit()

    with serializable() as bank:
        assert [49, 49] == balances(bank)


@pytest.mark.parametrize(
    ("look", "valid"),
    [
        (lambda bank: bank.accounts.get("B"), True),
        (lambda bank: bank.accounts.list(lambda a: a.owner == "Bob"), True),
        (lambda bank: bank.accounts.list(lambda a: a.note == "b"), True),
        (lambda bank: bank.lines.count(), True),
        (lambda bank: bank.accounts.get("A"), False),
        (lambda bank: bank.accounts.get_or_none("C"), False),
        (lambda bank: bank.accounts.list(), False),
        (lambda bank: bank.accounts.count(), False),
        (lambda bank: list(bank.accounts.iterate()), False),
        (lambda bank: bank.accounts.first(order_by=lambda a: a.number), False),
        (lambda bank: bank.accounts.count(lambda a: a.balance == 50), False),
        (lambda bank: bank.accounts.exists(lambda a: a.balance == 1), False),
        (lambda bank: bank.accounts.exists(lambda a: a.owner == "Cem"), False),
    ],
    ids=["key", "other", "index", "class", "row", "miss", "all", "number", "pages", "first", "was", "is", "added"],
)
def test_what_was_read_must_still_be_so(store: Store, look: Callable[[Bank], object], valid: bool) -> None:
    """A serializable unit that writes is refused if a key it asked for, or a row that matched or matches, changed."""
    refusal = pytest.raises(SerializationFailure, match=r"Account \('[AC]',\), which this unit read or looked for")
    with nullcontext() if valid else refusal, FakeBank(store, isolation="SERIALIZABLE") as bank:
        look(bank)
        change(partial(FakeBank, store), "A", 1)
        add(partial(FakeBank, store), Account("C", "Cem"))
        bank.documents.add(Document(1, "report"))
        bank.commit()


@pytest.mark.parametrize("undone", [False, True])
def test_a_unit_that_wrote_nothing_is_never_refused(store: Store, undone: bool) -> None:
    """It saw what was there between two commits; what it undid itself does not count."""
    with FakeBank(store, isolation="SERIALIZABLE") as bank:
        bank.accounts.list()
        change(partial(FakeBank, store), "A", 1)
        if undone:
            with suppress(ValueError), bank.nested():
                bank.documents.add(Document(1, "one"))
                bank.flush()
                raise ValueError
        bank.commit()


def test_money_is_kept_by_threads(store: Store) -> None:
    """Threads that move money between two accounts, seen as a whole at every level with snapshots, lose none."""
    sums: list[int] = []

    def move(level: str) -> None:
        moved = 0
        while moved < 25:
            with suppress(SerializationFailure), FakeBank(store, isolation=level) as bank:
                sums.append(sum(account.balance for account in bank.accounts.list()))
                source, target = bank.accounts.get("A"), bank.accounts.get("B")
                source.balance -= 1
                target.balance += 1
                bank.commit()
                moved += 1

    threads = [threading.Thread(target=move, args=(level,)) for level in SNAPSHOTS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {100} == set(sums)
    with FakeBank(store) as bank:
        assert [-50, 150] == balances(bank)


# ----------------------------------------------------------------------------------------------------------- options


def test_a_level_that_is_not_known() -> None:
    """It is refused when the unit is made, and those that the fake has are told."""
    with pytest.raises(ConfigurationError) as caught:
        FakeBank(isolation="snapshot")

    assert (
        "Wrong configuration: the fake has no isolation level 'SNAPSHOT'. "
        "Use one of READ UNCOMMITTED, READ COMMITTED, REPEATABLE READ, SERIALIZABLE."
    ) == str(caught.value)
    with pytest.raises(ConfigurationError, match="no isolation level 'AUTOCOMMIT'"):
        FakeBank().independent(isolation="AUTOCOMMIT")


@pytest.mark.parametrize("level", [None, "READ UNCOMMITTED", *LEVELS])
def test_the_level_is_told(level: str | None) -> None:
    """The status says what was asked for, as on a database."""
    with FakeBank(isolation=level and level.lower().replace(" ", "_")) as bank:
        assert level == bank.status().isolation


def test_read_uncommitted_is_read_committed(store: Store) -> None:
    """As on PostgreSQL, nobody sees what is not committed, and everybody what is."""
    with FakeBank(store) as other, FakeBank(store, isolation="READ UNCOMMITTED") as bank:
        other.accounts.get("A").balance = 1
        other.flush()
        before = bank.accounts.count(lambda a: a.balance == 1)
        other.commit()

        assert (0, 1) == (before, bank.accounts.count(lambda a: a.balance == 1))


def test_what_bounds_a_wait_is_accepted(store: Store) -> None:
    """The fake never waits, so a unit may be deferrable, and no timeout is ever passed."""
    bounds = {"statement_timeout": 0.001, "lock_timeout": 0.001}
    with FakeBank(store, isolation="SERIALIZABLE", read_only=True, deferrable=True, **bounds) as bank:
        assert [50, 50] == balances(bank)

        change(partial(FakeBank, store, **bounds), "A", 1)

        assert 2 == bank.accounts.count(lambda a: a.balance == 50)
        bank.commit()


class AsyncBank(AsyncUnitOfWork):
    accounts: AsyncRepository[Account]


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank):
    pass


def test_the_asynchronous_face_has_the_same_levels(store: Store) -> None:
    """Two tasks that skew each other's reads: both commit at REPEATABLE READ, and one is refused at SERIALIZABLE."""

    async def skew(level: str) -> list[str]:
        read = asyncio.Barrier(2)

        async def take(number: str) -> str:
            try:
                async with AsyncFakeBank(store, isolation=level) as bank:
                    accounts = await bank.accounts.list()
                    await read.wait()
                    next(a for a in accounts if a.number == number).balance -= 1
                    await bank.commit()
            except SerializationFailure:
                return "refused"
            return "committed"

        return sorted(await asyncio.gather(take("A"), take("B")))

    assert ["committed", "committed"] == asyncio.run(skew("REPEATABLE READ"))
    assert ["committed", "refused"] == asyncio.run(skew("SERIALIZABLE"))
    with pytest.raises(ConfigurationError, match="the fake has no isolation level"):
        AsyncFakeBank(store, isolation="SNAPSHOT")


def test_the_table_is_a_table() -> None:
    """The head of the documented verdicts names their columns in the order in which this test reads them."""
    head = "| |" + "|".join(f" {level}: {backend} " for level in LEVELS for backend in ("PostgreSQL", "fake")) + "|"

    assert re.search(re.escape(head), DOCUMENT.read_text("utf-8"))


def test_a_key_that_another_unit_gave_free_since_it_was_read() -> None:
    """A unit may take the key of an entity that it had read, after another unit removed that and committed."""
    store = Store()
    with FakeBank(store) as bank:
        bank.documents.add(Document(1, "old"))
        bank.commit()
    with FakeBank(store) as bank:
        assert "old" == bank.documents.get(1).title
        gc.collect()
        with FakeBank(store) as other:
            other.documents.remove(other.documents.get(1))
            other.commit()
        bank.documents.add(Document(1, "new"))
        bank.commit()
    with FakeBank(store) as bank:
        assert "new" == bank.documents.get(1).title
