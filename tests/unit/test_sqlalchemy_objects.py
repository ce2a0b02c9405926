"""
Rules 13 and 14 where they are about relationships.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, ForeignKey, String, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, WriteOnlyMapped, mapped_column, relationship
from sqlalchemy.orm.exc import DetachedInstanceError

from uow import Repository, UnitOfWork
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    all_items: WriteOnlyMapped["Item"] = relationship(viewonly=True)
    items: Mapped[list["Item"]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="Item.name"
    )


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order | None] = relationship(back_populates="items")


class Shop(UnitOfWork):
    orders: Repository[Order]


class SqlShop(SqlAlchemyUnitOfWork, Shop):
    pass


class Given:
    """Two orders with two items each."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sent: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *args: self.sent.append(args[2]))

    def shop(self) -> SqlShop:
        return SqlShop(self.engine)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        mark = len(self.sent)
        yield

        assert [] == self.sent[mark:]

    def items(self) -> dict[str, list[str]]:
        with self.shop() as shop:
            return {order.name: [item.name for item in order.items] for order in shop.orders.list()}


@pytest.fixture(params=["sqlite", "postgresql"])
def given(request: pytest.FixtureRequest) -> Iterator[Given]:
    engine = create_engine(request.getfixturevalue(f"{request.param}_url"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    given = Given(engine)
    with given.shop() as shop:
        for number in (1, 2):
            items = [Item(name=f"{number}a"), Item(name=f"{number}b")]
            shop.orders.add(Order(id=number, name=f"order {number}", items=items))
        shop.commit()
    yield given
    Base.metadata.drop_all(engine)
    engine.dispose()


def names(order: Order) -> list[str]:
    return [item.name for item in order.items]


flushed = pytest.mark.parametrize("flushed", [True, False], ids=["written", "not written"])


@flushed
def test_rule_13_a_collection_is_the_outer_one_again(given: Given, flushed: bool) -> None:
    """A loaded collection that a rolled-back scope changed has its outer members again, without a statement."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        before = list(order.items)
        new = Item(name="1c")
        with shop.nested() as nested:
            order.items.append(new)
            order.items.remove(before[0])
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            members, parents = list(order.items), [item.order for item in before]
        shop.commit()

    assert before == members
    assert [order, order] == parents
    assert {"order 1": ["1a", "1b"], "order 2": ["2a", "2b"]} == given.items()


@flushed
def test_rule_13_a_member_added_by_cascade_is_new_again(given: Given, flushed: bool) -> None:
    """What came into a rolled-back scope with a relationship is new again, and the next commit does not write it."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        assert ["1a", "1b"] == names(order)
        new = Item(name="1c")
        with shop.nested() as nested:
            order.items.append(new)
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = (new.id, new.order_id, new.name)
        order.name = "order 1"
        shop.commit()
    after_first = given.items()
    with given.shop() as shop:
        order = shop.orders.get(1)
        order.items.append(new)
        shop.commit()

    assert (None, None, "1c") == read
    assert ["1a", "1b"] == after_first["order 1"]
    assert ["1a", "1b", "1c"] == given.items()["order 1"]


@flushed
def test_rule_13_a_reference_is_the_outer_one_again(given: Given, flushed: bool) -> None:
    """A loaded reference that a rolled-back scope changed points at its outer target, and both collections agree."""
    with given.shop() as shop:
        first, second = shop.orders.get(1), shop.orders.get(2)
        item = first.items[0]
        assert ["2a", "2b"] == names(second)
        with shop.nested() as nested:
            item.order = second
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = (item.order, item.order_id, names(first), names(second))
        shop.commit()

    assert (first, 1, ["1a", "1b"], ["2a", "2b"]) == read
    assert {"order 1": ["1a", "1b"], "order 2": ["2a", "2b"]} == given.items()


@flushed
def test_rule_13_a_collection_loaded_inside(given: Given, flushed: bool) -> None:
    """A collection that a rolled-back scope loaded and changed has its outer members too."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            order.items.append(Item(name="1c"))
            if flushed:
                shop.flush()
            nested.rollback()
        members = names(order)
        shop.commit()

    assert ["1a", "1b"] == members
    assert ["1a", "1b"] == given.items()["order 1"]


@flushed
def test_rule_13_a_removed_tree_is_back(given: Given, flushed: bool) -> None:
    """An entity that a rolled-back scope removed with its parts is back with them."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        members = list(order.items)
        with shop.nested() as nested:
            shop.orders.remove(order)
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = list(order.items)
        order.items[0].name = "1z"
        shop.commit()

    assert members == read
    assert ["1b", "1z"] == given.items()["order 1"]


@flushed
def test_rule_13_an_emptied_collection_is_full_again(given: Given, flushed: bool) -> None:
    """A collection that a rolled-back scope emptied, so that its members were deleted, has them again."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        members = list(order.items)
        with shop.nested() as nested:
            order.items.clear()
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = [(item.name, item.order is order) for item in order.items]
        same = members == list(order.items)
        shop.commit()

    assert ([("1a", True), ("1b", True)], True) == (read, same)
    assert ["1a", "1b"] == given.items()["order 1"]


@flushed
def test_rule_13_a_tree_is_new_again(given: Given, flushed: bool) -> None:
    """A new entity with its parts, added in a rolled-back scope, can be added again, parts and all."""
    order = Order(id=3, name="order 3", items=[Item(name="3a"), Item(name="3b")])
    with given.shop() as shop:
        with shop.nested() as nested:
            shop.orders.add(order)
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = [(item.name, item.id, item.order_id) for item in order.items]
        shop.orders.add(order)
        shop.commit()

    assert [("3a", None, None), ("3b", None, None)] == read
    assert ["3a", "3b"] == given.items()["order 3"]


def test_rule_14_a_tree_is_new_again_after_the_unit(given: Given) -> None:
    """A new entity with its parts can be added, parts and all, in the unit after the one that was rolled back."""
    order = Order(id=3, name="order 3", items=[Item(name="3a"), Item(name="3b")])
    for end in ("rollback", "commit"):
        with given.shop() as shop:
            shop.orders.add(order)
            shop.flush()
            getattr(shop, end)()
            ids = [item.id is None for item in order.items]

        assert [end == "rollback"] * 2 == ids

    assert ["3a", "3b"] == given.items()["order 3"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_rule_14_loading_more_after_the_unit_raises(given: Given, end: str) -> None:
    """When the unit has ended, a relationship that was not loaded raises, and opens no transaction."""
    with given.shop() as shop:
        order, other = shop.orders.get(1), shop.orders.get(2)
        assert ["2a", "2b"] == names(other)
        getattr(shop, end)()
        with given.quiet(), pytest.raises(DetachedInstanceError):
            names(order)
    with given.quiet(), pytest.raises(DetachedInstanceError):
        names(order)
    with given.quiet():
        loaded = names(other)

    assert ["2a", "2b"] == loaded


def test_rule_13_a_collection_that_was_never_loaded(given: Given) -> None:
    """A new member of a collection that nobody had loaded leaves no trace, and costs no statement."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            shop.session.add(Item(name="1c", order=order))
            with given.quiet():
                nested.rollback()

        assert ["1a", "1b"] == names(order)

        shop.commit()
