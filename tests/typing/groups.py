"""
What a type checker knows of units that commit as one; checked, never run.
"""

from typing import assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from uow import (
    AsyncDistributed,
    AsyncUnitOfWork,
    Distributed,
    Repository,
    State,
    Status,
    UnitOfWork,
    distributed,
    entity,
)
from uow.adapters.memory import FakeUnitOfWork
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlAlchemyUnitOfWork


@entity(key="name")
class Item:
    name: str


class Bank(UnitOfWork):
    items: Repository[Item]


class Stock(UnitOfWork):
    items: Repository[Item]


class SqlBank(SqlAlchemyUnitOfWork, Bank): ...


class FakeStock(FakeUnitOfWork, Stock): ...


class AsyncBank(AsyncSqlAlchemyUnitOfWork): ...


class AsyncStock(AsyncUnitOfWork): ...


def the_units_of_a_group_have_their_types(engine: Engine, port: Stock) -> None:
    both = distributed(SqlBank(engine, resource="bank"), FakeStock(resource="stock"), domain="shop")
    assert_type(both, Distributed[SqlBank, FakeStock])
    with both as (bank, stock):
        assert_type(bank, SqlBank)
        assert_type(stock, FakeStock)
        with both.nested("inner") as (bank, stock):
            assert_type(bank, SqlBank)
        both.commit()
    assert_type(both.state, State)
    assert_type(both.status().units, tuple[Status, ...])
    for attempt in both.attempts():
        with attempt as (bank, stock):
            assert_type(stock, FakeStock)
    assert_type(both.run(len, "abc"), int)
    with distributed(SqlBank(engine), FakeStock(), port) as three:
        assert_type(three, tuple[SqlBank, FakeStock, Stock])
    distributed(1, port)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def asynchronous_ones_are_awaited(engine: AsyncEngine, stock: AsyncStock) -> None:
    both = distributed(AsyncBank(engine, resource="bank"), stock)
    assert_type(both, AsyncDistributed[AsyncBank, AsyncStock])
    async with both as (bank, stock):
        assert_type(bank, AsyncBank)
        async with both.nested() as nested:
            assert_type(nested, tuple[AsyncBank, AsyncStock])
        await both.commit()
    async for attempt in both.attempts():
        async with attempt as units:
            assert_type(units, tuple[AsyncBank, AsyncStock])
    assert_type(await both.resolve("token"), State)
    with both:  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
        pass
