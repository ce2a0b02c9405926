"""
What the fake costs: it follows what a unit touches, not what the store holds.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from attrs import Factory

from uow import AsyncRepository, Lock, Repository, entity
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store, _tracking
from uow.adapters.memory._tables import Row
from uow.adapters.memory._tracking import Tracked

SIZES = (10**2, 10**4, 10**6)
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@entity
class Item:
    id: int
    name: str
    tags: list[str] = Factory(list)


@entity
class Plain:
    """All its values are such that only setting an attribute changes it."""

    id: int
    name: str = ""
    price: Decimal = Decimal(0)
    day: date | None = None


class FakeItems(FakeUnitOfWork):
    items: Repository[Item]
    plain: Repository[Plain]


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
    """How many values were copied, and entities compared."""
    counts = Counter[str]()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counts[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(_tracking, "freeze", counting("copied", _tracking.freeze))
    looked = Tracked.changed.fget
    assert looked is not None
    monkeypatch.setattr(Tracked, "changed", property(counting("compared", looked)))
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


def find_key(unit: Any) -> None:
    with unit:
        assert unit.items.one(lambda i: (i.id == 7) & (i.name != "x"))
        assert unit.items.exists(lambda i: i.name == "8")
        assert 1 == unit.items.count(lambda i: i.id == 9)
        assert not unit.items.list(lambda i: i.id == -1)


def add(unit: Any) -> None:
    with unit:
        unit.items.add(Item(-1, "new"))
        unit.flush()
        with unit.nested() as nested:
            unit.items.add(Item(-2, "undone"))
            nested.rollback()
        unit.items.remove(unit.items.get(-1))
        unit.commit()


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
@pytest.mark.parametrize("work", [begin, get, find, find_key, add, page, lock, change, replace, nest])
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


def holding(count: int) -> Store:
    """Return a store with so many plain entities."""
    store = Store()
    with FakeItems(store) as unit:
        unit.plain.add_all(Plain(number, str(number)) for number in range(1, count + 1))
        unit.commit()
    return store


@pytest.mark.parametrize("held", [10, 1000])
def test_a_flush_compares_what_was_changed(counted: Counter[str], held: int) -> None:
    """However many entities a unit holds, those whose values can only be set are compared when they were."""
    with FakeItems(holding(held)) as unit:
        kept = unit.plain.list()
        counted.clear()
        with unit.nested():
            pass
        nothing = Counter(counted)
        with unit.nested():
            kept[5].price = Decimal(7)
        with unit.nested() as nested:
            kept[7].day = date(2030, 1, 1)
            nested.rollback()
        unit.plain.get(1)

        assert held == len(kept)
        assert (Decimal(7), None) == (kept[5].price, kept[7].day)
    assert Counter() == nothing
    assert Counter({"compared": 3}) == counted  # one found and written, one undone and found to be as before


@pytest.mark.parametrize("held", [10, 1000])
def test_a_flush_compares_what_can_change_in_place(counted: Counter[str], held: int) -> None:
    """Nobody says when a list changes: a nested scope compares its entities when it begins and when it ends."""
    with FakeItems(stored(1000)) as unit:
        kept = unit.items.list(limit=held)
        counted.clear()
        with unit.nested():
            pass

        assert held == len(kept)
        assert {"compared": 2 * held} == dict(counted)


@pytest.mark.parametrize("work", ["get", "add", "deep"])
def test_units_of_work_do_not_look_at_all_that_they_hold(counted: Counter[str], work: str) -> None:
    """A thousand reads, or nested scopes beside or inside each other, compare no entity again and again."""
    kept: list[Plain] = []
    with FakeItems(holding(1000)) as unit, ExitStack() as scopes:
        counted.clear()
        for number in range(1, 1001):
            if work == "get":
                kept.append(unit.plain.get(number))
                continue
            kept.append(Plain(2000 + number))
            if work == "deep":
                scopes.enter_context(unit.nested())
                unit.plain.add(kept[-1])
            else:
                with unit.nested():
                    unit.plain.add(kept[-1])

    assert 1000 >= counted["compared"]


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


def test_what_was_written_and_dropped_costs_nothing(counted: Counter[str]) -> None:
    """The commit, which compares all that the unit holds, has nothing to compare."""
    with FakeItems(holding(50)) as unit:
        for number in range(1, 51):
            unit.plain.get(number).name = "changed"
            unit.plain.add(Plain(100 + number))
        unit.flush()
        unit.flush()
        counted.clear()
        unit.commit()

    assert {} == dict(counted)


def test_a_commit_copies_nothing(counted: Counter[str]) -> None:
    """It compares before and after its hooks, and all once more; what was written is handed over as it is."""
    with FakeItems(stored(100)) as unit:
        kept = unit.items.list()
        for item in kept[:5]:
            item.name += "!"
        unit.flush()
        counted.clear()
        unit.commit()

    assert {"compared": 3 * 100} == dict(counted)


# ------------------------------------------------------------------------------------------------ what is noticed


class Stubborn:
    """Sets its attributes past its own ``__setattr__``."""

    __uow_key__ = ("id",)
    id: int
    name: str

    def __init__(self, id: int, name: str) -> None:
        self.__dict__.update(id=id, name=name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def rename(self, name: str) -> None:
        object.__setattr__(self, "name", name)


class Child(Plain):
    """A subclass of a class that is watched already."""


class FakeNoticed(FakeUnitOfWork):
    plain: Repository[Plain]
    stubborn: Repository[Stubborn]
    children: Repository[Child]


def test_every_way_to_change_an_entity_is_noticed() -> None:
    """Setting, deleting, past the class where it has a way of its own, in a value that came to be mutable."""
    store = Store()
    with FakeNoticed(store) as unit:
        unit.plain.add_all([Plain(1, "set"), Plain(2, "deleted"), Plain(3), Plain(4)])
        unit.children.add(Child(1, "child"))
        unit.stubborn.add(Stubborn(1, "stubborn"))
        unit.commit()
    with FakeNoticed(store) as unit:
        one, two, three, four = (unit.plain.get(number) for number in range(1, 5))
        child, stubborn = unit.children.get(1), unit.stubborn.get(1)
        unit.flush()
        one.name = "new"
        del two.name
        three.name = value = []  # type: ignore[assignment]
        child.name = "grown"
        stubborn.rename("renamed")
        unit.flush()
        unit.flush()
        value.append("in place")
        vars(four)["name"] = "past the class"
        with unit.nested() as nested:
            stubborn.rename("undone")
            child.name = "undone"
            nested.rollback()
        unit.commit()
    with FakeNoticed(store) as unit:
        names = [plain.name for plain in unit.plain.list(order_by=lambda p: p.id)]

        assert ["new", None, ["in place"], "past the class"] == names
        assert ("grown", "renamed") == (unit.children.get(1).name, unit.stubborn.get(1).name)


def test_a_change_is_noticed_although_the_entity_is_dropped() -> None:
    """Before it goes, and after a flush that had found it unchanged."""
    store = holding(3)
    with FakeItems(store) as unit:
        plain = unit.plain.get(2)
        unit.flush()
        plain.name = "dropped"
        del plain
        assert "dropped" == unit.plain.get(2).name
        unit.commit()
    with FakeItems(store) as unit:
        assert "dropped" == unit.plain.get(2).name


def test_an_entity_outside_every_unit_may_be_changed() -> None:
    """Its class tells nobody then."""
    holding(1)
    plain = Plain(1)
    plain.name = "x"
    del plain.name

    assert not hasattr(plain, "name")


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
