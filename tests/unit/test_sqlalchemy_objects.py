"""
Rules 13 and 14 where they are about SQLAlchemy: relationships, mutable columns, what the server computes, bulk SQL.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import JSON, Engine, ForeignKey, Integer, String, create_engine, delete, event, insert, text, update
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.orm.exc import DetachedInstanceError

from uow import Repository, UnitOfWork
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork

ticks = iter(range(1000))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON), default=dict)
    plain: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    state: Mapped[str] = mapped_column(String(40), server_default="open")
    touched: Mapped[int | None] = mapped_column(Integer, onupdate=lambda: next(ticks))
    text_: Mapped[str | None] = mapped_column("text", String(40), deferred=True)
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
    items: Repository[Item]


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
            shop.orders.add(Order(id=number, name=f"order {number}", items=items, data={"k": 1}, plain=[1], touched=-1))
        shop.commit()
    yield given
    Base.metadata.drop_all(engine)
    engine.dispose()


def names(order: Order) -> list[str]:
    return [item.name for item in order.items]


flushed = pytest.mark.parametrize("flushed", [True, False], ids=["written", "not written"])


# ------------------------------------------------------------------------------------------------------- relationships


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


# ------------------------------------------------------------------------------------------------------------- columns


@flushed
def test_rule_13_a_mutable_column_changed_in_place(given: Given, flushed: bool) -> None:
    """A JSON value changed in place in a rolled-back scope is the outer one again, and goes on being watched."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            order.data["k"] = 2
            order.data["new"] = True
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = dict(order.data)
        order.data["later"] = 3
        shop.commit()
    with given.shop() as shop:
        stored = dict(shop.orders.get(1).data)

    assert {"k": 1} == read
    assert {"k": 1, "later": 3} == stored


@flushed
def test_rule_13_a_mutable_column_changed_after_another(given: Given, flushed: bool) -> None:
    """The same when something else of the entity was written before in that scope."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            order.name = "changed"
            shop.flush()
            order.data["k"] = 2
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = (order.name, dict(order.data))
        shop.commit()
    with given.shop() as shop:
        stored = dict(shop.orders.get(1).data)

    assert ("order 1", {"k": 1}) == read
    assert {"k": 1} == stored


@flushed
def test_rule_13_a_json_column_replaced(given: Given, flushed: bool) -> None:
    """A JSON value replaced in a rolled-back scope is the outer one again, and goes on being watched."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            order.plain, order.data = {"other": [2]}, MutableDict({})
            if flushed:
                shop.flush()
            nested.rollback()
        with given.quiet():
            read = (order.plain, dict(order.data))
        order.data["later"] = 3
        shop.commit()
    with given.shop() as shop:
        stored = dict(shop.orders.get(1).data)

    assert ([1], {"k": 1}) == read
    assert {"k": 1, "later": 3} == stored


def test_rule_13_what_an_update_computes(given: Given) -> None:
    """A value that the mapping computes at each update is the outer one again, without a statement."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            order.name = "changed"
            shop.flush()
            inside = order.touched
            nested.rollback()
        with given.quiet():
            read = (order.name, order.touched)

    assert inside != -1
    assert ("order 1", -1) == read


def test_rule_13_a_server_default_is_forgotten(given: Given) -> None:
    """A default that the server gave to an entity added in a rolled-back scope is gone; it is given anew."""
    order = Order(id=3, name="order 3")
    with given.shop() as shop:
        with shop.nested() as nested:
            shop.orders.add(order)
            shop.flush()
            inside = (order.state, order.data)
            nested.rollback()
        with given.quiet():
            read = (order.state, order.data, order.name)
        shop.orders.add(order)
        shop.commit()
    with given.shop() as shop:
        stored = shop.orders.get(3).state

    assert ("open", {}) == inside
    assert (None, None, "order 3") == read
    assert "open" == stored


def test_rule_13_a_server_default_not_yet_read(given: Given) -> None:
    """A default that the outer scope has not read yet is there after the rollback of a scope that changed it."""
    order = Order(id=3, name="order 3")
    with given.shop() as shop:
        shop.orders.add(order)
        with shop.nested() as nested:
            order.state = "closed"
            shop.flush()
            nested.rollback()
        read = order.state
        shop.commit()

    assert "open" == read


@flushed
def test_rule_13_a_deferred_column(given: Given, flushed: bool) -> None:
    """A deferred column that a rolled-back scope loaded or changed has its outer value."""
    with given.shop() as shop:
        order, other = shop.orders.get(1), shop.orders.get(2)
        with shop.nested() as nested:
            assert other.text_ is None
            order.text_ = other.text_ = "inside"
            if flushed:
                shop.flush()
            nested.rollback()
        read = (order.text_, other.text_)
        shop.commit()
    with given.shop() as shop:
        stored = shop.orders.get(1).text_

    assert (None, None) == read
    assert stored is None


# ------------------------------------------------------------------------------------------------ past the repositories


PAST: dict[str, Callable[[SqlShop], object]] = {
    "text": lambda shop: shop.session.execute(text("UPDATE orders SET name = 'x'")),
    "ORM update": lambda shop: shop.session.execute(update(Order).values(name="x")),
    "ORM update by key": lambda shop: shop.session.execute(
        update(Order), [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]
    ),
    "Core update": lambda shop: shop.session.execute(update(Order.__table__).values(name="x")),  # type: ignore[arg-type]
    "query.update": lambda shop: shop.session.query(Order).update({"name": "x"}),
    "bulk_update_mappings": lambda shop: shop.session.bulk_update_mappings(
        Order.__mapper__, [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]
    ),
    "connection": lambda shop: shop.session.connection().execute(text("UPDATE orders SET name = 'x'")),
    "update returning": lambda shop: shop.session.scalars(update(Order).values(name="x").returning(Order)).all(),
}


@pytest.mark.parametrize("how", PAST)
def test_rule_13_sql_past_the_repositories(given: Given, how: str) -> None:
    """However SQL changed rows inside a rolled-back scope, entities loaded before or in it have their outer values."""
    with given.shop() as shop:
        before = shop.orders.get(1)
        with shop.nested() as nested:
            PAST[how](shop)
            inside = shop.orders.get(2)
            assert "x" == inside.name
            nested.rollback()
        with given.quiet():
            read = (before.name, inside.name)
        shop.commit()

    assert ("order 1", "order 2") == read
    assert ["order 1", "order 2"] == sorted(given.items())


def test_rule_13_a_connection_taken_before(given: Given) -> None:
    """SQL in a nested scope, on a connection that was asked for outside, is undone with it and not served stale."""
    with given.shop() as shop:
        connection = shop.session.connection()
        before = shop.orders.get(1)
        with shop.nested() as nested:
            connection.execute(text("UPDATE orders SET name = 'x'"))
            inside = shop.orders.get(2)
            nested.rollback()
        read = (before.name, inside.name)
        shop.commit()

    assert ["order 1", "order 2"] == sorted(given.items())
    assert ("order 1", "order 2") == read


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_rule_13_loaded_deeper_than_the_sql(given: Given, end: str) -> None:
    """What a scope inside loaded, after SQL in the one that is rolled back, is not served stale."""
    with given.shop() as shop:
        with shop.nested() as nested:
            shop.session.execute(text("UPDATE orders SET name = 'x'"))
            with nested.nested() as inner:
                order = shop.orders.get(1)
                assert "x" == order.name
                getattr(inner, end)()
            nested.rollback()
        with given.quiet():
            read = order.name

    assert "order 1" == read


DELETE: dict[str, Callable[[SqlShop], object]] = {
    "text": lambda shop: shop.session.execute(text("DELETE FROM items WHERE name = '1a'")),
    "ORM delete": lambda shop: shop.session.execute(delete(Item).where(Item.name == "1a")),
    "query.delete": lambda shop: shop.session.query(Item).filter_by(name="1a").delete(),
}


@pytest.mark.parametrize("how", DELETE)
def test_rule_13_rows_that_sql_deleted(given: Given, how: str) -> None:
    """A row that SQL deleted in a rolled-back scope is back, as the same object, and can be changed."""
    with given.shop() as shop:
        item = shop.items.one(lambda i: i.name == "1a")
        with shop.nested() as nested:
            DELETE[how](shop)
            nested.rollback()
        with given.quiet():
            read = item.name
        same = shop.items.one(lambda i: i.name == "1a") is item
        item.name = "1z"
        shop.commit()

    assert ("1a", True) == (read, same)
    assert ["1b", "1z"] == given.items()["order 1"]


INSERT: dict[str, Callable[[SqlShop], object]] = {
    "ORM insert": lambda shop: shop.session.execute(insert(Order), [{"id": 3, "name": "x"}]),
    "insert returning": lambda shop: shop.session.scalars(
        insert(Order).returning(Order), [{"id": 3, "name": "x"}]
    ).one(),
    "bulk_insert_mappings": lambda shop: shop.session.bulk_insert_mappings(Order.__mapper__, [{"id": 3, "name": "x"}]),
    "bulk_save_objects": lambda shop: shop.session.bulk_save_objects([Order(id=3, name="x")]),
}


@pytest.mark.parametrize("how", INSERT)
def test_rule_13_rows_that_sql_inserted(given: Given, how: str) -> None:
    """A row that SQL inserted in a rolled-back scope is found by nobody, and its key is free."""
    with given.shop() as shop:
        with shop.nested() as nested:
            INSERT[how](shop)
            inside = shop.orders.get(3).name
            nested.rollback()
        found = (shop.orders.get_or_none(3), shop.orders.count())
        shop.orders.add(Order(id=3, name="again"))
        shop.commit()

    assert ("x", (None, 2)) == (inside, found)
    assert ["again", "order 1", "order 2"] == sorted(given.items())


def test_rule_13_a_merged_entity(given: Given) -> None:
    """What `session.merge()` brought into a rolled-back scope is undone like any change."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            merged = shop.session.merge(Order(id=1, name="merged"))
            shop.flush()
            nested.rollback()
        with given.quiet():
            read = order.name
        shop.commit()

    assert merged is order
    assert "order 1" == read
    assert ["order 1", "order 2"] == sorted(given.items())


def test_rule_13_a_refreshed_entity(given: Given) -> None:
    """An entity refreshed in a rolled-back scope after its change was written has its outer value."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            order.name = "x"
            shop.flush()
            shop.session.refresh(order)
            nested.rollback()
        with given.quiet():
            read = order.name

    assert "order 1" == read


def test_rule_13_an_expired_entity(given: Given) -> None:
    """An entity that a rolled-back scope expired and did not read again can be read."""
    with given.shop() as shop:
        order, other = shop.orders.get(1), shop.orders.get(2)
        with shop.nested() as nested:
            order.name = "x"
            shop.flush()
            shop.session.expire(order)
            shop.session.expire(other)
            nested.rollback()
        read = (order.name, other.name)

    assert ("order 1", "order 2") == read
