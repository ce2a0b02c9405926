"""
Lies that fakes are known to tell, each planted into ours: the parity machine finds every one, as it is shipped.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import Phase, settings
from sqlalchemy import URL, Engine

from uow.adapters.memory import _constraints, _gateway, _transaction
from uow.adapters.memory._gateway import FakeGateway
from uow.adapters.memory._store import Store
from uow.adapters.memory._tracking import Shape
from uow.adapters.memory._transaction import FakeTransaction, Level
from uow.adapters.memory._views import Record, View
from uow.domain import _expressions
from uow.testing._memory import FakeBank
from uow.testing._parity_bank import BankParity, hurried_engine
from uow.testing.parity import Different

Patch = pytest.MonkeyPatch


def nothing(*arguments: Any, **options: Any) -> None:
    """Do nothing."""


# ------------------------------------------------------------------------------------------------ the lies of others


def rollback_that_does_nothing(patch: Patch) -> None:
    """What was flushed stays after the root rolled back."""
    rollback = FakeTransaction.rollback

    def lie(self: FakeTransaction) -> None:
        for name, values in self._own.rows.items():
            self.store.put(*name, values)
        rollback(self)

    patch.setattr(FakeTransaction, "rollback", lie)


def uncommitted_rows_seen_by_others(patch: Patch) -> None:
    """A unit reads what every open unit wrote."""
    rows = View.rows

    def lie(self: View, entity: type) -> dict[Any, Any]:
        found = rows(self, entity)
        for transaction in self.store.transactions:
            transaction._own.cover(entity, found)
        return found

    patch.setattr(View, "rows", lie)


def mutation_without_commit_that_stays(patch: Patch) -> None:
    """The store holds the very values that an entity has, so that a change needs no commit."""
    close = FakeTransaction.close

    def lie(self: FakeTransaction, *, broken: bool = False) -> None:
        for name, tracked in self._tracked.items():
            if tracked.base is not None and name[1] in self.store.table(name[0]).rows:
                self.store.put(*name, tracked.shape.values_of(tracked.attributes))
        close(self, broken=broken)

    patch.setattr(FakeTransaction, "close", lie)


def keys_checked_within_one_unit_only(patch: Patch) -> None:
    """A key that another unit committed is not seen, and its row replaced."""
    check = FakeTransaction._check

    def lie(self: FakeTransaction, *arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(View, "committed", nothing)
            check(self, *arguments)

    patch.setattr(FakeTransaction, "_check", lie)
    patch.setattr(FakeTransaction, "_demand_first", nothing)


def values_checked_within_one_unit_only(patch: Patch) -> None:
    """A unique value that another unit committed is not seen."""
    find = View.find

    def lie(self: View, entity: type, columns: Any, value: Any) -> Iterator[Any]:
        return (key for key in find(self, entity, columns, value) if (entity, key) in self.own.rows)

    check = _constraints.check_uniques

    def check_uniques(*arguments: Any, **options: Any) -> None:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(View, "find", lie)
            check(*arguments, **options)

    patch.setattr(_transaction, "check_uniques", check_uniques)


def specifications_ignored(patch: Patch) -> None:
    """Everything matches."""
    matching = FakeGateway._matching
    patch.setattr(FakeGateway, "_matching", lambda self, where: matching(self, None))


def nested_writes_kept(patch: Patch) -> None:
    """What a nested scope wrote stays after it rolled back."""

    def lie(self: FakeTransaction) -> None:
        self.levels.pop().merge_into(self.levels[-1])

    patch.setattr(FakeTransaction, "rollback_to_savepoint", lie)


class HooksOfTheRoot(FakeBank):
    """
    A bank whose hooks all belong to the root.
    """

    def after_commit(self, hook: Any) -> Any:
        assert self._context is not None
        self._context.root.after_commit.append(hook)
        return hook


class EventsOfTheRoot(FakeBank):
    """
    A bank whose events all belong to the root.
    """

    def record(self, event: Any) -> None:
        assert self._context is not None
        self._context.root.events.append(event)


class NoRollbackHooks(FakeBank):
    """
    A bank that forgets what is to happen after a rollback.
    """

    def after_rollback(self, hook: Any) -> Any:
        return hook


# -------------------------------------------------------------------------------------------------------------- more


def version_not_counted(patch: Patch) -> None:
    """A changed entity keeps its version."""
    update = FakeTransaction._update

    def lie(self: FakeTransaction, tracked: Any) -> None:
        version = tracked.shape.version
        before = tracked.base and version and tracked.base[version]
        update(self, tracked)
        if version is not None:
            tracked.attributes[version] = tracked.base[version] = before

    patch.setattr(FakeTransaction, "_update", lie)


def stale_version_accepted(patch: Patch) -> None:
    """An entity of an earlier unit is written whatever became of its row."""
    patch.setattr(FakeTransaction, "_demand_fresh", nothing)
    patch.setattr(FakeTransaction, "_demand_first", nothing)


def two_valued_logic(patch: Patch) -> None:
    """What is not true is false, so the opposite of NULL is true."""
    patch.setitem(_expressions._MEANINGS, "not", lambda value: not value)


def generated_keys_reused(patch: Patch) -> None:
    """A rollback gives the keys back that it discards."""
    rollback = FakeTransaction.rollback

    def lie(self: FakeTransaction) -> None:
        for table in {self.store.table(entity) for entity, _ in self._own.rows}:
            table.last_id = max((key[0] for key in table.rows if isinstance(key[0], int)), default=0)
        rollback(self)

    patch.setattr(FakeTransaction, "rollback", lie)


def references_not_checked_at_removal(patch: Patch) -> None:
    """A row can go while others refer to it."""
    patch.setattr(_constraints, "_check_not_needed", nothing)


def references_not_checked(patch: Patch) -> None:
    """A row can refer to what is not there."""
    patch.setattr(_constraints, "_check_target", nothing)


def checks_not_checked(patch: Patch) -> None:
    """Neither checks nor missing values are looked at."""
    patch.setattr(_transaction, "check_row", nothing)


def constraints_left_to_the_commit(patch: Patch) -> None:
    """A flush checks nothing."""
    patch.setattr(_transaction, "check_uniques", nothing)


def attributes_not_restored(patch: Patch) -> None:
    """A nested rollback puts back the rows and not the entities."""
    back = FakeTransaction.rollback_to_savepoint

    def lie(self: FakeTransaction) -> None:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(Shape, "fill", nothing)
            back(self)

    patch.setattr(FakeTransaction, "rollback_to_savepoint", lie)


def added_entities_stay_stored(patch: Patch) -> None:
    """What was added in a scope that rolled back is not new again."""
    patch.setattr(FakeTransaction, "_make_new", nothing)


def released_scope_forgotten(patch: Patch) -> None:
    """A rollback does not undo what a released scope inside it did."""
    patch.setattr(Level, "merge_into", nothing)


def missing_values_sorted_last(patch: Patch) -> None:
    """A missing value is the greatest."""

    def lie(rows: Any, orders: Any) -> list[Any]:
        result = list(rows)
        for order in reversed(orders):

            def key(row: Any, by: Any = order.expression) -> Any:
                value = _expressions.evaluate(by, row)
                return (value is None, value)

            result.sort(key=key, reverse=order.descending)
        return result

    patch.setattr(_gateway, "ordered", lie)


def limit_before_filter(patch: Patch) -> None:
    """The first few rows are taken, and then those that match."""
    select, matching = FakeGateway.select, FakeGateway._matching

    def lie(self: Any, query: Any) -> Any:
        def few(gateway: Any, where: Any) -> Any:
            first = islice(matching(gateway, None), query.limit)
            return [(key, row) for key, row in first if where is None or _expressions.matches(where, Record(row))]

        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(FakeGateway, "_matching", few)
            return select(self, query)

    patch.setattr(FakeGateway, "select", lie)


def removal_forgotten(patch: Patch) -> None:
    """What was removed is there again after the commit."""
    put = Store.put
    patch.setattr(Store, "put", lambda self, *name: put(self, *name) if name[-1] is not None else None)


def queries_without_what_is_pending(patch: Patch) -> None:
    """A query looks at what is committed only."""
    patch.setattr(View, "rows", lambda self, entity: {key: row.values for key, row in self._all(entity).items()})


LIES: list[Callable[[Patch], None] | type[FakeBank]] = [
    rollback_that_does_nothing,
    uncommitted_rows_seen_by_others,
    mutation_without_commit_that_stays,
    keys_checked_within_one_unit_only,
    values_checked_within_one_unit_only,
    specifications_ignored,
    nested_writes_kept,
    HooksOfTheRoot,
    EventsOfTheRoot,
    NoRollbackHooks,
    version_not_counted,
    stale_version_accepted,
    two_valued_logic,
    generated_keys_reused,
    references_not_checked_at_removal,
    references_not_checked,
    checks_not_checked,
    constraints_left_to_the_commit,
    attributes_not_restored,
    added_entities_stay_stored,
    released_scope_forgotten,
    missing_values_sorted_last,
    limit_before_filter,
    removal_forgotten,
    queries_without_what_is_pending,
]


@pytest.fixture(scope="module")
def engine(sqlite_url: URL) -> Iterator[Engine]:
    """An SQLite file that waits for nothing."""
    engine = hurried_engine(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    """Coverage would take as long as the programs, and other tests take their branches."""
    tracing = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracing)


class Liar(BankParity):
    settings = settings(BankParity.settings, database=None, phases=[Phase.generate])


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_is_found(lie: Any, engine: Engine, monkeypatch: Patch) -> None:
    """Each lie is found within the examples that the machine runs by default."""
    if isinstance(lie, type):
        monkeypatch.setattr(Liar, "fake", lie)
    else:
        lie(monkeypatch)

    with pytest.raises(Different):
        Liar().test_the_fake_does_what_the_database_does(engine, seed=0)


def test_the_truth_is_no_lie(engine: Engine) -> None:
    """The same programs find nothing where nothing is planted."""
    Liar().test_the_fake_does_what_the_database_does(engine, seed=0)
