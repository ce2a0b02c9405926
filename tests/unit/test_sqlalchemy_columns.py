"""
Rule 13 where it is about columns: mutable ones, deferred ones, and those that somebody else computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import JSON, Engine, String, create_engine, event
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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
    touched: Mapped[int | None] = mapped_column(onupdate=lambda: next(ticks))
    text_: Mapped[str | None] = mapped_column("text", String(40), deferred=True)


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


@pytest.fixture(params=["sqlite", "postgresql"])
def given(request: pytest.FixtureRequest) -> Iterator[Given]:
    engine = create_engine(request.getfixturevalue(f"{request.param}_url"))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    given = Given(engine)
    with given.shop() as shop:
        for number in (1, 2):
            shop.orders.add(Order(id=number, name=f"order {number}", data={"k": 1}, plain=[1], touched=-1))
        shop.commit()
    yield given
    Base.metadata.drop_all(engine)
    engine.dispose()


flushed = pytest.mark.parametrize("flushed", [True, False], ids=["written", "not written"])


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
