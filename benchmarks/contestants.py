"""
Who is measured, synchronously: SQLAlchemy's Session (the baseline), its Core, and ours.

A contestant has a method for each scenario; one that it has not shows as a dash. `ready` comes first.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import sessionmaker

from .databases import Database
from .model import SEEDED, Item, SqlShop, Undo, items, metadata, new, row


class Contestant:
    name: str
    asynchronous = False

    def __init__(self, database: Database) -> None:
        self.engine = database.engine(recipe=self.needs_recipe)

    needs_recipe = True
    """Whether SQLite needs the recipe of SQLAlchemy's documentation to begin transactions for it."""

    def ready(self, seeded: int = SEEDED) -> None:
        with self.engine.begin() as connection:
            metadata.create_all(connection)
            connection.execute(delete(items))
            connection.execute(insert(items), [row(key) for key in range(1, seeded + 1)])

    def rows(self) -> int:
        with self.engine.begin() as connection:
            return connection.scalar(select(func.count()).select_from(items))  # type: ignore[return-value]

    def close(self) -> None:
        self.engine.dispose()


class Orm(Contestant):
    name = "Session"
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.sessions = sessionmaker(self.engine, **self.options)

    def add_one(self, key: int) -> None:
        with self.sessions.begin() as session:
            session.add(new(key))

    def change(self, key: int) -> None:
        with self.sessions.begin() as session:
            session.get_one(Item, key).quantity += 1

    def add_many(self, keys: Sequence[int]) -> None:
        with self.sessions.begin() as session:
            for key in keys:
                session.add(new(key))

    def read(self, key: int) -> int:
        with self.sessions() as session:
            return session.get_one(Item, key).quantity

    def released(self, keys: Sequence[int]) -> None:
        with self.sessions.begin() as session:
            for key in keys:
                with session.begin_nested():
                    session.add(new(key))

    def half(self, keys: Sequence[int]) -> None:
        with self.sessions.begin() as session:
            for key in keys:
                with suppress(Undo), session.begin_nested():
                    session.add(new(key))
                    session.flush()
                    if key % 2:
                        raise Undo

    def empty(self, count: int) -> None:
        with self.sessions.begin() as session:
            session.get_one(Item, 1)
            for _ in range(count):
                with session.begin_nested():
                    pass

    def hold(self, count: int) -> None:
        self.session = self.sessions()
        self.held = self.session.scalars(select(Item).where(items.c.id <= count)).all()

    def undone(self, key: int) -> None:
        with suppress(Undo), self.session.begin_nested():
            self.session.add(new(key))
            self.session.flush()
            raise Undo

    def let_go(self) -> None:
        self.session.close()


class OrmNotExpired(Orm):
    name = "Session-no-expire"
    options = {"expire_on_commit": False}  # noqa: RUF012


class Core(Contestant):
    name = "Core"

    def add_one(self, key: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(items), row(key))

    def change(self, key: int) -> None:
        with self.engine.begin() as connection:
            found = Item(*connection.execute(select(items).where(items.c.id == key)).one())
            connection.execute(update(items).where(items.c.id == key), {"quantity": found.quantity + 1})

    def add_many(self, keys: Sequence[int]) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(items), [row(key) for key in keys])

    def read(self, key: int) -> int:
        with self.engine.connect() as connection:
            return Item(*connection.execute(select(items).where(items.c.id == key)).one()).quantity

    def released(self, keys: Sequence[int]) -> None:
        with self.engine.begin() as connection:
            for key in keys:
                with connection.begin_nested():
                    connection.execute(insert(items), row(key))

    def half(self, keys: Sequence[int]) -> None:
        with self.engine.begin() as connection:
            for key in keys:
                with suppress(Undo), connection.begin_nested():
                    connection.execute(insert(items), row(key))
                    if key % 2:
                        raise Undo


class Ours(Contestant):
    name = "uow"
    needs_recipe = False

    def add_one(self, key: int) -> None:
        with SqlShop(self.engine) as uow:
            uow.items.add(new(key))
            uow.commit()

    def change(self, key: int) -> None:
        with SqlShop(self.engine) as uow:
            uow.items.get(key).quantity += 1
            uow.commit()

    def add_many(self, keys: Sequence[int]) -> None:
        with SqlShop(self.engine) as uow:
            for key in keys:
                uow.items.add(new(key))
            uow.commit()

    def read(self, key: int) -> int:
        with SqlShop(self.engine) as uow:
            return uow.items.get(key).quantity

    def released(self, keys: Sequence[int]) -> None:
        with SqlShop(self.engine) as uow:
            for key in keys:
                with uow.nested():
                    uow.items.add(new(key))
            uow.commit()

    def half(self, keys: Sequence[int]) -> None:
        with SqlShop(self.engine) as uow:
            for key in keys:
                with suppress(Undo), uow.nested():
                    uow.items.add(new(key))
                    uow.flush()
                    if key % 2:
                        raise Undo
            uow.commit()

    def empty(self, count: int) -> None:
        with SqlShop(self.engine) as uow:
            uow.items.get(1)
            for _ in range(count):
                with uow.nested():
                    pass
            uow.commit()

    def hold(self, count: int) -> None:
        self.unit = SqlShop(self.engine).__enter__()
        self.held = self.unit.items.list(lambda item: item.id <= count)

    def undone(self, key: int) -> None:
        with suppress(Undo), self.unit.nested():
            self.unit.items.add(new(key))
            self.unit.flush()
            raise Undo

    def let_go(self) -> None:
        self.unit.rollback()
        self.unit.__exit__(None, None, None)


SYNC: list[type[Any]] = [Orm, OrmNotExpired, Core, Ours]

__all__ = ["SYNC", "Contestant"]
