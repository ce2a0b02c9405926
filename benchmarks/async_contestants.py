"""
Who is measured, awaited: SQLAlchemy's AsyncSession (the baseline), its Core, and ours.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker

from .databases import Database
from .model import SEEDED, AsyncSqlShop, Item, Undo, items, metadata, new, row


class AsyncContestant:
    name: str
    asynchronous = True
    needs_recipe = True

    def __init__(self, database: Database) -> None:
        self.engine = database.async_engine(recipe=self.needs_recipe)

    async def ready(self, seeded: int = SEEDED) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(delete(items))
            await connection.execute(insert(items), [row(key) for key in range(1, seeded + 1)])

    async def rows(self) -> int:
        async with self.engine.begin() as connection:
            return await connection.scalar(select(func.count()).select_from(items))  # type: ignore[return-value]

    async def close(self) -> None:
        await self.engine.dispose()


class AsyncOrm(AsyncContestant):
    name = "AsyncSession"

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.sessions = async_sessionmaker(self.engine)

    async def add_one(self, key: int) -> None:
        async with self.sessions.begin() as session:
            session.add(new(key))

    async def change(self, key: int) -> None:
        async with self.sessions.begin() as session:
            (await session.get_one(Item, key)).quantity += 1

    async def add_many(self, keys: Sequence[int]) -> None:
        async with self.sessions.begin() as session:
            for key in keys:
                session.add(new(key))

    async def read(self, key: int) -> int:
        async with self.sessions() as session:
            return (await session.get_one(Item, key)).quantity

    async def released(self, keys: Sequence[int]) -> None:
        async with self.sessions.begin() as session:
            for key in keys:
                async with session.begin_nested():
                    session.add(new(key))

    async def half(self, keys: Sequence[int]) -> None:
        async with self.sessions.begin() as session:
            for key in keys:
                with suppress(Undo):
                    async with session.begin_nested():
                        session.add(new(key))
                        await session.flush()
                        if key % 2:
                            raise Undo

    async def empty(self, count: int) -> None:
        async with self.sessions.begin() as session:
            await session.get_one(Item, 1)
            for _ in range(count):
                async with session.begin_nested():
                    pass

    async def hold(self, count: int) -> None:
        self.session = self.sessions()
        self.held = (await self.session.scalars(select(Item).where(items.c.id <= count))).all()

    async def undone(self, key: int) -> None:
        with suppress(Undo):
            async with self.session.begin_nested():
                self.session.add(new(key))
                await self.session.flush()
                raise Undo

    async def let_go(self) -> None:
        await self.session.close()


class AsyncCore(AsyncContestant):
    name = "AsyncCore"

    async def add_one(self, key: int) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(insert(items), row(key))

    async def change(self, key: int) -> None:
        async with self.engine.begin() as connection:
            found = Item(*(await connection.execute(select(items).where(items.c.id == key))).one())
            await connection.execute(update(items).where(items.c.id == key), {"quantity": found.quantity + 1})

    async def read(self, key: int) -> int:
        async with self.engine.connect() as connection:
            return Item(*(await connection.execute(select(items).where(items.c.id == key))).one()).quantity


class AsyncOurs(AsyncContestant):
    name = "async-uow"
    needs_recipe = False

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        AsyncSqlShop(
            self.engine
        )  # as an application makes when it starts: asyncpg's connections are then the unit's kind

    async def add_one(self, key: int) -> None:
        async with AsyncSqlShop(self.engine) as uow:
            uow.items.add(new(key))
            await uow.commit()

    async def change(self, key: int) -> None:
        async with AsyncSqlShop(self.engine) as uow:
            (await uow.items.get(key)).quantity += 1
            await uow.commit()

    async def add_many(self, keys: Sequence[int]) -> None:
        async with AsyncSqlShop(self.engine) as uow:
            for key in keys:
                uow.items.add(new(key))
            await uow.commit()

    async def read(self, key: int) -> int:
        async with AsyncSqlShop(self.engine) as uow:
            return (await uow.items.get(key)).quantity

    async def released(self, keys: Sequence[int]) -> None:
        async with AsyncSqlShop(self.engine) as uow:
            for key in keys:
                async with uow.nested():
                    uow.items.add(new(key))
            await uow.commit()

    async def half(self, keys: Sequence[int]) -> None:
        async with AsyncSqlShop(self.engine) as uow:
            for key in keys:
                with suppress(Undo):
                    async with uow.nested():
                        uow.items.add(new(key))
                        await uow.flush()
                        if key % 2:
                            raise Undo
            await uow.commit()

    async def empty(self, count: int) -> None:
        async with AsyncSqlShop(self.engine) as uow:
            await uow.items.get(1)
            for _ in range(count):
                async with uow.nested():
                    pass
            await uow.commit()

    async def hold(self, count: int) -> None:
        self.unit = await AsyncSqlShop(self.engine).__aenter__()
        self.held = await self.unit.items.list(lambda item: item.id <= count)

    async def undone(self, key: int) -> None:
        with suppress(Undo):
            async with self.unit.nested():
                self.unit.items.add(new(key))
                await self.unit.flush()
                raise Undo

    async def let_go(self) -> None:
        await self.unit.rollback()
        await self.unit.__aexit__(None, None, None)


ASYNC: list[type[Any]] = [AsyncOrm, AsyncCore, AsyncOurs]
