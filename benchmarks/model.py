"""
One table, one entity, and the units over it. Everybody is measured with the same mapped class.
"""

from sqlalchemy import Column, Integer, String, Table
from sqlalchemy.orm import registry

from uow import Aggregate, AsyncRepository, AsyncUnitOfWork, Repository, UnitOfWork, entity
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlAlchemyUnitOfWork

SEEDED = 1000
"""How many rows there are before a scenario begins, with keys from 1."""


class Undo(Exception):
    """Raised in a nested scope to undo it."""


@entity
class Item(Aggregate):
    id: int
    name: str
    quantity: int


_registry = registry()
metadata = _registry.metadata
items = Table(
    "benchmark_items",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(80), nullable=False),
    Column("quantity", Integer, nullable=False),
)
_registry.map_imperatively(Item, items)


class Shop(UnitOfWork):
    items: Repository[Item]


class AsyncShop(AsyncUnitOfWork):
    sync: Shop
    items: AsyncRepository[Item]


class SqlShop(SqlAlchemyUnitOfWork, Shop): ...


class AsyncSqlShop(AsyncSqlAlchemyUnitOfWork, AsyncShop): ...


def new(key: int) -> Item:
    return Item(key, f"item {key}", 1)


def row(key: int) -> dict[str, object]:
    return {"id": key, "name": f"item {key}", "quantity": 1}
