"""
Relationships of mapped classes in the fake, held to SQLite.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, ForeignKeyConstraint, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, attribute_keyed_dict, mapped_column, relationship

from uow import Repository, UnitOfWork
from uow.adapters.memory import FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork
from uow.errors import ForeignKeyViolation, NotNullViolation, UnmappedEntity


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "r_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(default="")
    lines: Mapped[list["Line"]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="Line.position.desc()"
    )
    notes: Mapped[list["Note"]] = relationship(back_populates="order")
    label: Mapped["Label | None"] = relationship(cascade="all, delete-orphan")
    parcels: Mapped[list["Parcel"]] = relationship(passive_deletes=True)
    marks: Mapped[dict[str, "Mark"]] = relationship(
        collection_class=attribute_keyed_dict("key"), cascade="all, delete-orphan"
    )


class Line(Base):
    __tablename__ = "r_lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int | None]
    order_id: Mapped[int] = mapped_column(ForeignKey("r_orders.id"))
    order: Mapped[Order] = relationship(back_populates="lines")


class Note(Base):
    __tablename__ = "r_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("r_orders.id"))
    order: Mapped[Order | None] = relationship(back_populates="notes")


class Label(Base):
    __tablename__ = "r_labels"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("r_orders.id"))


class Parcel(Base):
    __tablename__ = "r_parcels"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("r_orders.id", ondelete="CASCADE"))


class Mark(Base):
    __tablename__ = "r_marks"

    order_id: Mapped[int] = mapped_column(ForeignKey("r_orders.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    dots: Mapped[list["Dot"]] = relationship(cascade="all, delete-orphan")


class Dot(Base):
    __tablename__ = "r_dots"
    __table_args__ = (ForeignKeyConstraint(["order_id", "key"], ["r_marks.order_id", "r_marks.key"]),)

    order_id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Shop(UnitOfWork):
    orders: Repository[Order]
    lines: Repository[Line]
    notes: Repository[Note]
    labels: Repository[Label]
    parcels: Repository[Parcel]
    marks: Repository[Mark]
    dots: Repository[Dot]


class FakeShop(FakeUnitOfWork, Shop):
    pass


class SqlShop(SqlAlchemyUnitOfWork, Shop):
    pass


Open = Callable[..., Any]


@pytest.fixture(params=["fake", "sqlite"])
def shop(request: pytest.FixtureRequest) -> Iterator[Open]:
    """A unit where one order has two lines, a note, a label, a parcel and a mark with a dot."""
    engine = None
    if request.param == "fake":
        store = Store(Base.metadata)

        def unit() -> Any:
            return FakeShop(store)
    else:
        engine = create_engine(request.getfixturevalue("sqlite_url"))
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        made = engine

        def unit() -> Any:
            return SqlShop(made)

    with unit() as it:
        order = Order(lines=[Line(position=1), Line(position=2)], notes=[Note()], label=Label(), parcels=[Parcel()])
        order.marks["a"] = Mark(key="a", dots=[Dot(number=1)])
        it.orders.add(order)
        it.commit()
    yield unit
    if engine is not None:
        engine.dispose()


def counts(unit: Any) -> list[int]:
    """Count everything in a fresh unit."""
    with unit() as it:
        names = ("orders", "lines", "notes", "labels", "parcels", "marks", "dots")
        return [getattr(it, name).count() for name in names]


def test_what_is_related_is_added_and_loaded(shop: Open) -> None:
    """An order brings what it holds, with the keys that refer to it, and is loaded with it, in order."""
    with shop() as it:
        order = it.orders.list()[0]
        found = [line.position for line in order.lines], len(order.notes), len(order.parcels), list(order.marks)
        same = all(line.order is order for line in order.lines)
        keys = {order.lines[0].order_id, order.label.order_id, order.marks["a"].dots[0].order_id}
    with shop() as it:
        line = it.lines.first(order_by=lambda ln: ln.position)
        through = [other.position for other in line.order.lines]

    assert [1, 2, 1, 1, 1, 1, 1] == counts(shop)
    assert ([2, 1], 1, 1, ["a"]) == found
    assert (True, {1}, [2, 1]) == (same, keys, through)


def test_what_comes_in_later_is_added(shop: Open) -> None:
    """What is put into a stored order is stored with it: on either side of the relationship."""
    with shop() as it:
        order = it.orders.list()[0]
        order.lines.append(Line(position=3))
        it.notes.add(Note(order=order))
        other = Note()
        it.notes.add(other)
        it.flush()
        other.order = order
        pending = it.status().pending.changed
        it.commit()
    with shop() as it:
        order = it.orders.list()[0]
        read = [line.position for line in order.lines], len(order.notes)

    assert ([3, 2, 1], 3) == read
    assert 1 == pending


def test_what_is_taken_out_is_removed_or_let_go(shop: Open) -> None:
    """An orphan is removed where the mapping says so; otherwise it refers to nothing."""
    with shop() as it:
        order = it.orders.list()[0]
        order.lines.pop()
        order.notes.clear()
        order.label = None
        del order.marks["a"]
        it.commit()
    with shop() as it:
        note = it.notes.list()[0]

        assert (None, None) == (note.order, note.order_id)

    assert [1, 1, 1, 0, 1, 0, 0] == counts(shop)


def test_what_moves_is_no_orphan(shop: Open) -> None:
    """A line that goes to another order is changed, whichever side says so."""
    with shop() as it:
        order, other = it.orders.list()[0], Order()
        it.orders.add(other)
        other.lines.append(order.lines[0])
        order.lines[-1].order = other
        it.notes.list()[0].order = None
        it.commit()
    with shop() as it:
        read = {len(order.lines) for order in it.orders.list()}, it.notes.list()[0].order_id

    assert ({0, 2}, None) == read
    assert [2, 2, 1, 1, 1, 1, 1] == counts(shop)


def test_what_is_removed_takes_its_own_along(shop: Open) -> None:
    """A removal cascades as the mapping says, leaves to the database what is passive, and lets go of the rest."""
    with shop() as it:
        it.orders.remove(it.orders.list()[0])
        it.commit()
    with shop() as it:
        note = it.notes.list()[0]

        assert (None, None) == (note.order, note.order_id)

    assert [0, 0, 1, 0, 0, 0, 0] == counts(shop)


def test_a_rollback_puts_relationships_back(shop: Open) -> None:
    """What a nested scope added, moved, took out and removed is where it was, in the same entities."""
    with shop() as it:
        order = it.orders.list()[0]
        before = list(order.lines), list(order.notes), order.label, dict(order.marks)
        with it.nested() as nested:
            order.lines.append(Line(position=9))
            order.lines.remove(before[0][0])
            order.notes.clear()
            order.label = Label()
            del order.marks["a"]
            it.flush()
            with it.nested():
                order.lines.append(Line(position=10))
            inside = it.lines.count()
            nested.rollback()
        after = list(order.lines), list(order.notes), order.label, dict(order.marks)
        with it.nested() as nested:
            order.lines.clear()  # not written
            nested.rollback()
        again = list(order.lines), [line.order for line in order.lines]
        it.commit()

    assert 3 == inside
    assert before == after
    assert (before[0], [order, order]) == again
    assert [1, 2, 1, 1, 1, 1, 1] == counts(shop)


def test_a_rollback_undoes_what_a_released_scope_related(shop: Open) -> None:
    """What an inner scope put into a collection and handed over goes with the outer one."""
    with shop() as it:
        order = it.orders.list()[0]
        before = list(order.lines)
        with it.nested() as nested:
            with it.nested():
                order.lines.append(Line(position=9))
            inside = len(order.lines)
            nested.rollback()
        after = list(order.lines)
        it.commit()

    assert 3 == inside
    assert before == after
    assert [1, 2, 1, 1, 1, 1, 1] == counts(shop)


def test_a_removal_that_is_rolled_back(shop: Open) -> None:
    """An order that was removed in a nested scope is back, with everything that went along."""
    with shop() as it:
        order = it.orders.list()[0]
        with it.nested() as nested:
            it.orders.remove(order)
            it.flush()
            nested.rollback()
        read = [line.position for line in order.lines], len(order.notes), order.notes[0].order is order
        order.text = "kept"
        it.commit()

    assert ([2, 1], 1, True) == read
    assert [1, 2, 1, 1, 1, 1, 1] == counts(shop)


def test_a_removed_one_in_a_collection_stays_removed(shop: Open) -> None:
    """Removing a line does not need it taken out of the order first."""
    with shop() as it:
        order = it.orders.list()[0]
        it.lines.remove(order.lines[0])
        it.flush()
        order.text = "changed"
        it.commit()

    assert [1, 1, 1, 1, 1, 1, 1] == counts(shop)


def test_an_entity_of_an_earlier_unit_brings_its_own(shop: Open) -> None:
    """Adding a stored order to another unit adds what is new in it."""
    with shop() as it:
        order = it.orders.list()[0]
        read = len(order.lines), len(order.notes), order.label, len(order.parcels), len(order.marks["a"].dots)
    with shop() as it:
        order.lines.append(Line(position=5))
        it.orders.add(order)
        it.commit()

    assert (2, 1, 1, 1) == read[:2] + read[3:]
    assert [1, 3, 1, 1, 1, 1, 1] == counts(shop)


def test_a_key_said_by_hand_is_kept(shop: Open) -> None:
    """Where the relationship was not touched, the foreign key is what the entity says."""
    with shop() as it:
        it.orders.add(Order(id=7))
        it.flush()
        it.notes.add(Note(order_id=7))
        it.notes.first(lambda n: n.order_id == 1).order_id = 7
        it.commit()
    with shop() as it:
        assert [7, 7] == [note.order_id for note in it.notes.list()]
        assert 2 == len(it.orders.get(7).notes)


class Link(Base):
    __tablename__ = "r_links"

    id: Mapped[int] = mapped_column(primary_key=True)
    next_id: Mapped[int | None] = mapped_column(ForeignKey("r_links.id"))
    next: Mapped["Link | None"] = relationship(remote_side=[id], cascade="all")
    later: Mapped[list["Link"]] = relationship(primaryjoin="foreign(Link.id) > remote(Link.id)", viewonly=True)
    odd: Mapped[list["Link"]] = relationship(
        primaryjoin="and_(remote(foreign(Link.next_id)) == Link.id, remote(Link.id) > 7)", overlaps="next"
    )


class FakeLinks(FakeUnitOfWork):
    links: Repository[Link]


def test_a_long_chain() -> None:
    """A chain of two thousand is added, loaded and removed as a whole."""
    store = Store(Base.metadata)
    with FakeLinks(store) as it:
        first: Link | None = None
        for _ in range(2000):
            first = Link(next=first)
        assert first is not None
        it.links.add(first)
        it.commit()
    with FakeLinks(store) as it:
        link: Link | None = it.links.get(first.id)
        length = 0
        while link is not None:
            link, length = link.next, length + 1
        it.links.remove(it.links.get(first.id))
        it.commit()
    with FakeLinks(store) as it:
        assert (2000, 0) == (length, it.links.count())


def test_a_relationship_by_more_than_equal_columns_is_refused() -> None:
    """A relationship with a condition of its own cannot be kept, and says so when it is not empty."""
    with pytest.raises(UnmappedEntity, match="'odd' is not empty"), FakeLinks(Store(Base.metadata)) as it:
        it.links.add(Link(odd=[Link()]))
        it.commit()


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda it: it.lines.add(Line(position=1)), NotNullViolation),
        (lambda it: it.notes.add(Note(order_id=99)), ForeignKeyViolation),
    ],
)
def test_constraints_hold_for_what_is_related(
    shop: Open, work: Callable[[Any], object], error: type[Exception]
) -> None:
    """A reference that is needed must be there, and must point at something."""
    with pytest.raises(error), shop() as it:
        work(it)
        it.commit()


def test_a_relative_of_another_class_is_refused() -> None:
    """The fake knows no inheritance among what is related, either."""

    class Special(Note):
        pass

    with pytest.raises(UnmappedEntity, match=r"Special.*knows no inheritance"), FakeShop(Store(Base.metadata)) as it:
        it.orders.add(Order(notes=[Special()]))
        it.commit()
