"""
What the fake has beyond the contract: its store, and entities of every make.
"""

import copy
import gc
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from attrs import Factory, define, field
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry, relationship

from uow import Lock, Repository, UnitOfWork, entity
from uow.adapters.memory import FakeUnitOfWork, Store
from uow.errors import (
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    Deadlock,
    ForeignKeyViolation,
    SerializationFailure,
    UniqueViolation,
    UnmappedEntity,
)


@entity(key="name")
class Tag:
    name: str
    color: str | None = None
    labels: list[str] | None = None


@entity
class Numbered:
    text: str
    id: int | None = None


class Base(DeclarativeBase):
    pass


class Declared(Base):
    __tablename__ = "fake_declared"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    text: Mapped[str] = mapped_column(String(10))


class Untyped:
    def __init__(self, text: str) -> None:
        self.text = text


registry().map_imperatively(
    Untyped, Table("fake_untyped", MetaData(), Column("id", Integer, primary_key=True), Column("text", String(10)))
)


@define
class Slotted:
    id: int


class Shelf(UnitOfWork):
    tags: Repository[Tag]
    numbered: Repository[Numbered]
    declared: Repository[Declared]
    untyped: Repository[Untyped]
    slotted: Repository[Slotted]
    strings: Repository[str]


class FakeShelf(FakeUnitOfWork, Shelf):
    pass


def stored(store: Store, *tags: Tag) -> None:
    with FakeShelf(store) as shelf:
        shelf.tags.add_all(tags)
        shelf.commit()


def test_declarative_classes_work_without_a_database() -> None:
    """A class declared on SQLAlchemy's base is stored and loaded like any other."""
    store = Store()
    with FakeShelf(store) as shelf:
        shelf.declared.add(Declared(text="one"))
        shelf.commit()
    with FakeShelf(store) as shelf:
        (found,) = shelf.declared.list(lambda d: d.text == "one")

    assert (1, "one") == (found.id, found.text)


def test_a_key_that_is_annotated_nowhere_is_generated() -> None:
    """Nothing says that it is no number, so it is one."""
    with FakeShelf() as shelf:
        thing = Untyped("x")
        shelf.untyped.add(thing)
        shelf.flush()

        assert 1 == thing.id  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "text"),
    [("slotted", "nothing says what its key is.*@entity"), ("strings", "nothing says what its key is.*@entity")],
)
def test_a_class_that_cannot_be_stored_is_refused(name: str, text: str) -> None:
    """The refusal says what is missing, and the unit can go on."""
    with FakeShelf() as shelf:
        with pytest.raises(UnmappedEntity, match=text):
            getattr(shelf, name)
        shelf.commit()


def test_a_class_with_slots_is_refused() -> None:
    """An entity without a __dict__ cannot be tracked."""
    Slotted.__uow_key__ = ("id",)  # type: ignore[attr-defined]
    try:
        with FakeShelf() as shelf, pytest.raises(UnmappedEntity, match=r"it has slots.*slots=False"):
            shelf.slotted.count()
    finally:
        del Slotted.__uow_key__  # type: ignore[attr-defined]


def test_a_copy_of_a_stored_entity_is_new() -> None:
    """Adding a copy adds another entity, with a key of its own."""
    store = Store()
    with FakeShelf(store) as shelf:
        first = Numbered("x")
        shelf.numbered.add(first)
        shelf.flush()
        second = copy.deepcopy(first)
        second.id = None
        shelf.numbered.add(second)
        shelf.commit()

    assert [1, 2] == [first.id, second.id]


def test_a_key_may_change() -> None:
    """A changed key moves the entity, unless another one has it."""
    store = Store()
    store.unique(Tag, "color")
    stored(store, Tag("a", "red"), Tag("b", "blue"))
    with FakeShelf(store) as shelf:
        shelf.tags.get("a").name = "c"
        with pytest.raises(UniqueViolation), shelf.nested():
            shelf.tags.get("c").name = "b"
        names = [tag.name for tag in shelf.tags.list(order_by=lambda t: t.name)]
        red = shelf.tags.one(lambda t: t.color == "red").name
        shelf.commit()
    with FakeShelf(store) as shelf:
        found = {tag.name: tag.color for tag in shelf.tags.list()}

    assert ["b", "c"] == names
    assert "c" == red
    assert {"b": "blue", "c": "red"} == found


@pytest.mark.parametrize(("kept", "lock"), [(True, None), (False, None), (True, Lock.UPDATE)])
def test_an_entity_that_another_unit_removed(kept: bool, lock: Lock | None) -> None:
    """What a unit holds it gets again, whatever became of the row, unless nobody kept it or it is read anew."""
    store = Store()
    stored(store, Tag("a"))
    with FakeShelf(store) as shelf:
        tag = shelf.tags.get("a")
        with FakeShelf(store) as other:
            other.tags.remove(other.tags.get("a"))
            other.commit()
        if not kept:
            del tag
            gc.collect()
        found = shelf.tags.get_or_none("a", lock=lock)

        assert (kept and lock is None) == (found is not None)
        assert [] == shelf.tags.list()


def test_changed_entities_whose_keys_have_no_order_are_written() -> None:
    """Changes are written in the order of the keys, or in any order where keys have none."""
    store, names = Store(), (1j, 2j)
    stored(store, *(Tag(name) for name in names))
    with FakeShelf(store) as shelf:
        found = [shelf.tags.get(name) for name in names]
        for tag in found:
            tag.color = "red"
        shelf.commit()
    with FakeShelf(store) as shelf:
        assert 2 == shelf.tags.count(lambda t: t.color == "red")


def test_a_change_of_an_entity_that_nobody_kept_is_written() -> None:
    """An entity that goes out of scope before the flush loses nothing, and is the same again while it is waited for."""
    store = Store()
    stored(store, Tag("a", "red"))
    with FakeShelf(store) as shelf:
        shelf.tags.get("a").color = "green"
        gc.collect()

        assert "green" == shelf.tags.get("a").color

        shelf.commit()
    with FakeShelf(store) as shelf:
        assert "green" == shelf.tags.get("a").color


def test_a_value_in_place_is_its_unit_s_own() -> None:
    """A list that one unit changes is not changed for others, and a rollback puts it back."""
    store = Store()
    stored(store, Tag("a", labels=["x"]))
    with FakeShelf(store) as shelf, FakeShelf(store) as other:
        tag = shelf.tags.get("a")
        assert tag.labels is not None
        tag.labels.append("y")
        with pytest.raises(ValueError, match="no"), shelf.nested():
            tag.labels.append("z")
            raise ValueError("no")

        assert ["x", "y"] == tag.labels
        assert ["x"] == other.tags.get("a").labels


def test_two_units_that_write_the_same_row() -> None:
    """The first to commit wins; the other is told, and may try again."""
    store = Store()
    stored(store, Tag("a", "red"))
    with pytest.raises(SerializationFailure, match="committed first") as raised, FakeShelf(store) as late:
        late.tags.get("a").color = "blue"
        with FakeShelf(store) as quick:
            quick.tags.get("a").color = "green"
            quick.commit()
        late.commit()

    assert raised.value.transient


def test_two_units_that_add_the_same_key() -> None:
    """The second to commit finds the key taken."""
    store = Store()
    with pytest.raises(UniqueViolation, match="added by another unit"), FakeShelf(store) as late:
        late.tags.add(Tag("a"))
        late.flush()
        stored(store, Tag("a"))
        late.commit()


def test_a_unique_value_declared_late_counts_what_is_there() -> None:
    """A constraint holds for rows that were stored before it was declared, and is lifted with the row."""
    store = Store()
    stored(store, Tag("a", "red"))
    store.unique(Tag, "color")
    with FakeShelf(store) as shelf:
        with pytest.raises(UniqueViolation) as raised, shelf.nested():
            shelf.tags.add(Tag("b", "red"))
        shelf.tags.remove(shelf.tags.get("a"))
        shelf.flush()
        shelf.tags.add(Tag("b", "red"))
        shelf.commit()

    assert ("color", "Tag", ("color",)) == (raised.value.constraint, raised.value.table, raised.value.columns)


def test_a_value_that_cannot_be_hashed_is_looked_for_all_the_same() -> None:
    """Equality on an indexed attribute falls back to looking at every row."""
    store = Store()
    store.unique(Tag, "color")
    stored(store, Tag("a", "red"))
    with FakeShelf(store) as shelf:
        tag = Tag("b")
        tag.color = ["odd"]  # type: ignore[assignment]
        with pytest.raises(TypeError):
            shelf.tags.list(lambda t: t.color == tag.color)


def test_what_the_store_cannot_do_is_refused() -> None:
    """A misspelt attribute or operation is an error that lists the known ones."""
    store = Store()
    with pytest.raises(ConfigurationError, match=r"Tag has no attribute 'colour'. Choose one of name, color, labels"):
        store.unique(Tag, "colour")
    with pytest.raises(ConfigurationError, match=r"'select' cannot be made to fail. Choose one of begin, flush"):
        store.fail_next("select", Deadlock)


def test_failures_on_demand() -> None:
    """The next operation of that name fails with that error, once; a lost COMMIT leaves the outcome unknown."""
    store = Store()
    store.fail_next("flush", Deadlock("two at once"))
    with pytest.raises(Deadlock, match="two at once"):
        stored(store, Tag("a"))
    store.fail_next("commit", ConnectionLost)
    with pytest.raises(CommitOutcomeUnknown, match=r"FakeShelf \(root\)"):
        stored(store, Tag("a"))
    stored(store, Tag("a"))

    assert store.idle()


def test_a_row_that_several_refer_to() -> None:
    """It can be removed only when the last of them is gone."""
    store = Store()
    store.foreign_key(Numbered, "text", Tag)
    with FakeShelf(store) as shelf:
        shelf.tags.add(Tag("a"))
        shelf.numbered.add_all([Numbered("a"), Numbered("a")])
        shelf.commit()
    for left in (1, 0):
        with FakeShelf(store) as shelf:
            with pytest.raises(ForeignKeyViolation), shelf.nested():
                shelf.tags.remove(shelf.tags.get("a"))
            shelf.numbered.remove(shelf.numbered.list()[0])
            shelf.commit()
            assert left == len(store.table(Numbered).rows)
    with FakeShelf(store) as shelf:
        shelf.tags.remove(shelf.tags.get("a"))
        shelf.commit()

    assert not store.table(Tag).rows


@entity(key="number")
class Basket:
    number: str
    items: list[Tag] = field(factory=list[Tag])
    prices: dict[str, list[int]] = field(factory=dict[str, list[int]])
    weights: tuple[float, ...] = ()
    colors: frozenset[str] = frozenset()


class Parent(Base):
    __tablename__ = "fake_parents"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    friends: Mapped[list["Parent"]] = relationship(
        secondary=Table(
            "fake_friends",
            Base.metadata,
            Column("left", ForeignKey("fake_parents.id")),
            Column("right", ForeignKey("fake_parents.id")),
        ),
        primaryjoin="Parent.id == fake_friends.c.left",
        secondaryjoin="Parent.id == fake_friends.c.right",
    )


class FakeBaskets(FakeUnitOfWork):
    baskets: Repository[Basket]
    parents: Repository[Parent]


def test_an_aggregate_is_stored_with_what_it_holds() -> None:
    """Reading an entity with entities in it changes nothing; changing one of them is a change."""
    store = Store()
    with FakeBaskets(store, strict=True) as unit:
        unit.baskets.add(Basket("1", [Tag("a"), Tag("b")], {"eur": [1]}, (1.5,), frozenset({"red"})))
        unit.commit()
    with FakeBaskets(store, strict=True) as unit:
        unit.baskets.get("1")
    for change in (
        lambda it: setattr(it.items[1], "color", "red"),
        lambda it: it.items.pop(),
        lambda it: it.prices["eur"].append(2),
        lambda it: it.prices.clear(),
        lambda it: setattr(it, "colors", frozenset()),
    ):
        with FakeBaskets(store) as unit:
            change(unit.baskets.get("1"))

            assert 1 == unit.status().pending.changed

            unit.commit()
    with FakeBaskets(store) as unit:
        basket = unit.baskets.get("1")

    assert [("a", None)] == [(tag.name, tag.color) for tag in basket.items]


class Color(Enum):
    RED = 1
    BLUE = 2


@define(eq=False)
class Size:
    width: int


class Twin:
    def __init__(self, name: str) -> None:
        self.name = name
        self.other = self


@entity
class Thing:
    id: int
    color: Color = Color.RED
    size: Size = Factory(lambda: Size(1))
    twin: Twin = Factory(lambda: Twin("a"))
    rule: Any = len
    kind: type = int


class FakeThings(FakeUnitOfWork):
    things: Repository[Thing]


@pytest.mark.parametrize(
    "change",
    [
        lambda it: setattr(it, "color", Color.BLUE),
        lambda it: setattr(it.size, "width", 2),
        lambda it: setattr(it.twin, "name", "b"),
        lambda it: setattr(it.twin, "other", None),
        lambda it: setattr(it, "rule", lambda: 1),
        lambda it: setattr(it, "kind", str),
    ],
)
def test_values_of_every_make_are_compared(change: Callable[[Thing], None]) -> None:
    """Reading enumerations, objects with slots, circles, functions or classes is no change; changing one is."""
    store = Store()
    with FakeThings(store) as unit:
        unit.things.add(Thing(1, rule=lambda: 0))
        unit.commit()
    with FakeThings(store, strict=True) as unit:
        unit.things.get(1)
    with FakeThings(store) as unit:
        change(unit.things.get(1))

        assert 1 == unit.status().pending.changed

        unit.rollback()


def test_a_relationship_that_would_be_lost_is_refused() -> None:
    """The fake keeps no table between two others, and says so before it loses anything."""
    with pytest.raises(UnmappedEntity, match=r"'friends' is not empty.*Test it on SQLite"):
        with FakeBaskets() as unit:
            unit.parents.add(Parent())
            unit.flush()
            unit.parents.add(Parent(friends=[Parent()]))
            unit.commit()


def test_a_locked_read_does_not_forget_what_it_stands_on() -> None:
    """Reading again what this unit wrote does not hide that another unit was faster."""
    store = Store()
    stored(store, Tag("a", "red"))
    with pytest.raises(SerializationFailure), FakeShelf(store) as late:
        late.tags.get("a").color = "blue"
        late.flush()
        with FakeShelf(store) as quick:
            quick.tags.get("a").color = "green"
            quick.commit()
        late.tags.get("a", lock=Lock.UPDATE)
        late.commit()


def test_a_subclass_is_refused() -> None:
    """The fake knows no inheritance, and says so instead of losing the entity."""

    class Special(Tag):
        pass

    with FakeShelf() as shelf, pytest.raises(UnmappedEntity, match="knows no inheritance"):
        shelf.tags.add(Special("a"))
