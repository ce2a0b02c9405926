"""
Rule 13 where rows or entities change past the repositories: text, bulk SQL, what the session itself offers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, String, create_engine, delete, event, insert, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from uow import Repository, UnitOfWork
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))


class Shop(UnitOfWork):
    orders: Repository[Order]


class SqlShop(SqlAlchemyUnitOfWork, Shop):
    pass


class Given:
    """Two orders."""

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

    def names(self) -> list[str]:
        with self.shop() as shop:
            return [order.name for order in shop.orders.list(order_by=lambda o: o.name)]


@pytest.fixture(params=["sqlite", "postgresql"])
def given(request: pytest.FixtureRequest) -> Iterator[Given]:
    engine = create_engine(request.getfixturevalue(f"{request.param}_url"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    given = Given(engine)
    with given.shop() as shop:
        shop.orders.add_all([Order(id=1, name="order 1"), Order(id=2, name="order 2")])
        shop.commit()
    yield given
    Base.metadata.drop_all(engine)
    engine.dispose()


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
    assert ["order 1", "order 2"] == given.names()


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

    assert ["order 1", "order 2"] == given.names()
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
    "text": lambda shop: shop.session.execute(text("DELETE FROM orders WHERE id = 1")),
    "ORM delete": lambda shop: shop.session.execute(delete(Order).where(Order.id == 1)),
    "query.delete": lambda shop: shop.session.query(Order).filter_by(id=1).delete(),
}


@pytest.mark.parametrize("how", DELETE)
def test_rule_13_rows_that_sql_deleted(given: Given, how: str) -> None:
    """A row that SQL deleted in a rolled-back scope is back, as the same object, and can be changed."""
    with given.shop() as shop:
        order = shop.orders.get(1)
        with shop.nested() as nested:
            DELETE[how](shop)
            nested.rollback()
        with given.quiet():
            read = order.name
        same = shop.orders.get(1) is order
        order.name = "order z"
        shop.commit()

    assert ("order 1", True) == (read, same)
    assert ["order 2", "order z"] == given.names()


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
    assert ["again", "order 1", "order 2"] == given.names()


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
    assert ["order 1", "order 2"] == given.names()


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
