"""
What the fake costs: it follows what a unit touches, not what the store holds.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from attrs import Factory

from uow import AsyncRepository, Lock, Repository, entity
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store, _tracking
from uow.adapters.memory._tables import Row

SIZES = (10**2, 10**4, 10**6)
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@entity
class Item:
    id: int
    name: str
    tags: list[str] = Factory(list)


class FakeItems(FakeUnitOfWork):
    items: Repository[Item]


class AsyncFakeItems(AsyncFakeUnitOfWork):
    items: AsyncRepository[Item]


class CountedRows(dict[Any, Any]):
    """Committed rows that count how many of them are looked at."""

    seen = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.seen += 1
        return super().get(key, default)

    def __iter__(self) -> Iterator[Any]:
        self.seen += len(self)
        return super().__iter__()

    def items(self) -> Any:
        self.seen += len(self)
        return super().items()


def stored(size: int) -> Store:
    """Return a store with so many items; those that no test comes near share one row."""
    store = Store()
    store.unique(Item, "name")
    table, far = store.table(Item), Row({}, 0)
    near = min(size, 10**4)
    table.rows = CountedRows({(number,): far for number in range(1, size + 1)})
    for number in range(1, near + 1):
        table.rows[number,] = Row({"id": number, "name": str(number), "tags": []}, 0)
        table.indexes["name",][str(number),] = {(number,)}
    table.last_id = size
    return store


@pytest.fixture(scope="module")
def stores() -> dict[int, Store]:
    """A store of each size."""
    return {size: stored(size) for size in SIZES}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many values were copied and compared."""
    counts = Counter[str]()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counts[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(_tracking, "freeze", counting("copied", _tracking.freeze))
    monkeypatch.setattr(_tracking, "alike", counting("compared", _tracking.alike))
    return counts


def begin(unit: Any) -> None:
    with unit:
        pass


def get(unit: Any) -> None:
    with unit:
        unit.items.get(7)


def find(unit: Any) -> None:
    with unit:
        unit.items.one(lambda i: i.name == "7")


def page(unit: Any) -> None:
    with unit:
        next(unit.items.iterate(lambda i: i.id > 5, batch_size=10))


def lock(unit: Any) -> None:
    with unit:
        unit.items.get(7, lock=Lock.UPDATE)


def change(unit: Any) -> None:
    with unit:
        unit.items.get(7).tags = ["x"]
        unit.commit()


def replace(unit: Any) -> None:
    with unit:
        unit.items.remove(unit.items.get(7))
        unit.flush()
        unit.items.add(Item(7, "7"))
        unit.commit()


def nest(unit: Any) -> None:
    with unit:
        item = unit.items.get(7)
        with unit.nested():
            item.tags.append("x")
        with unit.nested() as nested:
            item.tags.append("y")
            nested.rollback()
        unit.rollback()


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("work", [begin, get, find, page, lock, change, replace, nest])
def test_the_cost_does_not_follow_the_store(
    stores: dict[int, Store], counted: Counter[str], work: Callable[[Any], None], isolation: str
) -> None:
    """As many rows are looked at, and values copied and compared, with a hundred stored entities as with a million."""
    costs = []
    for store in stores.values():
        page(FakeItems(store))  # the first page of all sorts the keys
        rows: Any = store.table(Item).rows
        counted.clear()
        rows.seen = 0
        work(FakeItems(store, isolation=isolation))
        costs.append((rows.seen, dict(counted)))

    assert [costs[0]] * len(SIZES) == costs
    assert 60 > costs[0][0]


def test_pages_stay_in_order() -> None:
    """What is committed after the first page sorted the keys, or only written by the unit itself, is in its place."""
    store = stored(100)
    for unit in (FakeItems(store), FakeItems(store)):
        with unit:
            first = [item.id for item in unit.items.iterate(batch_size=3)][:3]
            unit.items.remove(unit.items.get(first[1]))
            unit.items.add(Item(0 if first[0] else -1, "new" + str(first[0])))
            unit.commit()
    with FakeItems(store) as unit:
        unit.items.add(Item(2, "two"))
        unit.items.remove(unit.items.get(4))
        pages = [item.id for item in unit.items.iterate(lambda i: i.id < 9, batch_size=2)]

    assert [-1, 0, 2, 3, 5, 6, 7, 8] == pages


def test_locks_of_others_are_not_visited() -> None:
    """Giving locks back follows what the unit locked, not what all units hold."""
    store = stored(100)
    with FakeItems(store) as other, FakeItems(store) as unit:
        other.items.list(lock=Lock.UPDATE)
        visited = Counter[str]()

        class Locks(dict[Any, Any]):
            def __getitem__(self, key: Any) -> Any:
                visited["looked up"] += 1
                return super().__getitem__(key)

            def items(self) -> Any:
                visited["all"] += 1
                return super().items()

        store._locks = Locks(store._locks)
        assert not unit.items.list(lambda i: i.id == 1, lock=Lock.UPDATE_SKIP_LOCKED)
        unit.rollback()
        alone = Counter(visited)
        other.rollback()

    assert Counter() == alone
    assert Counter({"looked up": 100}) == visited
    assert not store._locks


@pytest.mark.parametrize("held", [10, 1000])
def test_a_flush_compares_each_held_entity_once(counted: Counter[str], held: int) -> None:
    """A nested scope compares what the unit holds twice: when it begins and when it ends. It copies nothing."""
    with FakeItems(stored(1000)) as unit:
        kept = unit.items.list(limit=held)
        counted.clear()
        with unit.nested():
            pass

        assert held == len(kept)
        assert {"compared": 2 * 3 * held} == dict(counted)


def test_what_nobody_keeps_costs_nothing(counted: Counter[str]) -> None:
    """Entities that went out of scope are compared once more, and then forgotten."""
    with FakeItems(stored(1000)) as unit:
        for _ in unit.items.iterate():
            pass
        unit.flush()
        del _
        unit.flush()
        counted.clear()
        with unit.nested():
            pass

        assert {} == dict(counted)


def test_a_commit_copies_nothing(counted: Counter[str]) -> None:
    """It flushes before and after its hooks; what was written is handed over as it is."""
    with FakeItems(stored(100)) as unit:
        kept = unit.items.list()
        for item in kept[:5]:
            item.name += "!"
        unit.flush()
        counted.clear()
        unit.commit()

    assert {"compared": 2 * 3 * 100} == dict(counted)


# ------------------------------------------------------------------------------------------------------------ depth


def test_a_thousand_nested_scopes_in_a_row() -> None:
    """Scopes that end leave nothing behind: each may be kept or rolled back."""
    with FakeItems() as unit:
        item = Item(1, "0")
        unit.items.add(item)
        for number in range(1000):
            with unit.nested() as nested:
                item.name = str(number)
                if number % 2:
                    nested.rollback()
        unit.commit()

    assert "998" == item.name


def test_a_thousand_nested_scopes_deep() -> None:
    """Scopes nest to any depth, and end from the innermost."""
    store = Store()
    with FakeItems(store) as unit:
        item = Item(1, "0")
        unit.items.add(item)
        with ExitStack() as stack:
            for number in range(1000):
                stack.enter_context(unit.nested())
                item.name = str(number)
        unit.commit()
    with FakeItems(store) as unit:
        item = unit.items.get(1)
        scopes = []
        for number in range(1000):
            scopes.append(unit.nested())
            scopes[-1].__enter__()
            item.name = f"inner {number}"
        names = []
        for scope in reversed(scopes):
            scope.rollback()
            scope.__exit__(None, None, None)
            names.append(item.name)

    assert ["inner 998", "inner 997", "inner 0", "999"] == [*names[:2], *names[-2:]]


def test_a_thousand_nested_scopes_deep_for_tasks() -> None:
    """The asynchronous face nests as deep, and as often."""

    async def main() -> tuple[str, str]:
        async with AsyncFakeItems() as unit:
            item = Item(1, "0")
            unit.items.add(item)
            for number in range(1000):
                async with unit.nested():
                    item.name = str(number)
            row, scopes = item.name, list[Any]()
            for number in range(1000):
                scopes.append(unit.nested())
                await scopes[-1].__aenter__()
                item.name = f"inner {number}"
            for number, scope in enumerate(reversed(scopes)):
                if number % 2:
                    await scope.rollback()
                await scope.__aexit__(None, None, None)
            await unit.commit()
            return row, item.name

    assert ("999", "999") == asyncio.run(main())
