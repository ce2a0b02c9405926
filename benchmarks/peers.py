"""
Other units of work, where they are installed: ``uv sync --group peers``.

Each is used as its manual shows. To be called through `Peer` costs it a call for each step, and a generator a scope.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.orm import sessionmaker

from .contestants import Contestant
from .databases import Database
from .model import SEEDED, Item, Undo, items, new, row

__all__ = ["PEERS"]


class Peer(Contestant):
    """
    The scenarios, in a peer's own words for what they consist of.
    """

    unit: Callable[[], AbstractContextManager[Any]]
    nested: Callable[[Any], AbstractContextManager[Any]]
    add: Callable[[Any, int], object]
    get: Callable[[Any, int], Any]

    def reading(self) -> AbstractContextManager[Any]:
        """Open a unit that only reads; it ends without a commit where the peer has such an end."""
        return self.unit()

    def increase(self, unit: Any, entity: Any) -> None:
        """Change *entity*."""
        entity.quantity += 1

    def flush(self, unit: Any) -> None:
        """Write what is pending, where that waits."""

    def add_one(self, key: int) -> None:
        with self.unit() as unit:
            self.add(unit, key)

    def change(self, key: int) -> None:
        with self.unit() as unit:
            self.increase(unit, self.get(unit, key))

    def add_many(self, keys: Sequence[int]) -> None:
        with self.unit() as unit:
            for key in keys:
                self.add(unit, key)

    def read(self, key: int) -> int:
        with self.reading() as unit:
            found: int = self.get(unit, key).quantity
            return found

    def released(self, keys: Sequence[int]) -> None:
        with self.unit() as unit:
            for key in keys:
                with self.nested(unit):
                    self.add(unit, key)

    def half(self, keys: Sequence[int]) -> None:
        with self.unit() as unit:
            for key in keys:
                with suppress(Undo), self.nested(unit):
                    self.add(unit, key)
                    self.flush(unit)
                    if key % 2:
                        raise Undo

    def empty(self, count: int) -> None:
        with self.unit() as unit:
            self.get(unit, 1)
            for _ in range(count):
                with self.nested(unit):
                    pass


def _advanced_alchemy() -> type[Peer]:
    from advanced_alchemy.repository import SQLAlchemySyncRepository

    class Items(SQLAlchemySyncRepository[Item]):
        model_type = Item

    class AdvancedAlchemy(Peer):
        """Its repositories flush and read again with each add; scopes are the session's own."""

        name = "advanced-alchemy"

        def __init__(self, database: Database) -> None:
            super().__init__(database)
            self.sessions = sessionmaker(self.engine)

        @contextmanager
        def unit(self) -> Generator[Items]:
            with self.sessions.begin() as session:
                yield Items(session=session)

        @contextmanager
        def reading(self) -> Generator[Items]:
            with self.sessions() as session:
                yield Items(session=session)

        def nested(self, unit: Items) -> AbstractContextManager[Any]:
            return unit.session.begin_nested()

        def add(self, unit: Items, key: int) -> Item:
            return unit.add(new(key))

        def get(self, unit: Items, key: int) -> Item:
            return unit.get(key)

        def increase(self, unit: Items, entity: Item) -> None:
            entity.quantity += 1
            unit.update(entity)

    return AdvancedAlchemy


def _zope() -> type[Peer]:
    import transaction
    from zope.sqlalchemy import register
    from zope.sqlalchemy.datamanager import NO_SAVEPOINT_SUPPORT

    NO_SAVEPOINT_SUPPORT.discard("sqlite")  # it has them where the engine begins transactions itself

    class Zope(Peer):
        name = "zope.sqlalchemy"

        def __init__(self, database: Database) -> None:
            super().__init__(database)
            self.sessions = sessionmaker(self.engine)
            register(self.sessions)

        @contextmanager
        def unit(self) -> Generator[Any]:
            with transaction.manager:
                yield self.sessions()

        @contextmanager
        def reading(self) -> Generator[Any]:
            transaction.begin()
            try:
                yield self.sessions()
            finally:
                transaction.abort()

        @contextmanager
        def nested(self, unit: Any) -> Generator[None]:
            savepoint = transaction.savepoint()
            try:
                yield
            except Undo:
                savepoint.rollback()
                raise

        def add(self, unit: Any, key: int) -> None:
            unit.add(new(key))

        def get(self, unit: Any, key: int) -> Item:
            found: Item = unit.get_one(Item, key)
            return found

        def flush(self, unit: Any) -> None:
            unit.flush()

    return Zope


def _pyuow() -> type[Peer]:
    from dataclasses import dataclass, replace

    from pyuow.contrib.sqlalchemy.repository import BaseSqlAlchemyEntityRepository
    from pyuow.contrib.sqlalchemy.tables import EntityTable
    from pyuow.contrib.sqlalchemy.work import SqlAlchemyTransactionManager
    from pyuow.entity import Entity
    from sqlalchemy.orm import Mapped, mapped_column

    @dataclass(frozen=True, kw_only=True)
    class Thing(Entity[int]):
        id: int
        name: str
        quantity: int

    class Record(EntityTable):
        __tablename__ = items.name
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        quantity: Mapped[int]

    class Things(BaseSqlAlchemyEntityRepository[int, Thing, Record]):
        @staticmethod
        def to_entity(record: Record) -> Thing:
            return Thing(id=record.id, name=record.name, quantity=record.quantity)

        @staticmethod
        def to_record(entity: Thing) -> Record:
            return Record(id=entity.id, name=entity.name, quantity=entity.quantity)

    class PyUow(Peer):
        """Its repositories open a transaction for each call, which is a savepoint in the unit's."""

        name = "pyUoW"

        def __init__(self, database: Database) -> None:
            super().__init__(database)
            self.manager = SqlAlchemyTransactionManager(self.engine)
            self.things = Things(Record, self.manager, self.manager)
            if self.engine.dialect.name == "mysql":
                self.change = None  # it sends UPDATE ... RETURNING, which MariaDB has not

        def unit(self) -> AbstractContextManager[Any]:
            return self.manager.transaction()

        def nested(self, unit: Any) -> AbstractContextManager[Any]:
            return self.manager.transaction()

        def add(self, unit: Any, key: int) -> None:
            self.things.add(Thing(**row(key)))

        def get(self, unit: Any, key: int) -> Thing:
            return self.things.get(key)

        def increase(self, unit: Any, entity: Thing) -> None:
            self.things.update(replace(entity, quantity=entity.quantity + 1))

    return PyUow


def _django() -> type[Peer]:
    import django
    from django.conf import settings
    from django.db import connection, models, transaction

    class Django(Peer):
        """Django's ORM, which writes each object at once and keeps none of them."""

        name = "Django"

        def __init__(self, database: Database) -> None:
            settings.configure(DATABASES={"default": _django_database(database.url)}, INSTALLED_APPS=[])
            django.setup()

            class Row(models.Model):
                id = models.IntegerField(primary_key=True)
                name = models.CharField(max_length=80)
                quantity = models.IntegerField()

                class Meta:
                    app_label = "benchmarks"
                    db_table = items.name

            self.rows_of: Any = Row.objects
            self.model = Row

        def ready(self, seeded: int = SEEDED) -> None:
            if items.name not in connection.introspection.table_names():
                with connection.schema_editor() as editor:
                    editor.create_model(self.model)
            with transaction.atomic():
                self.rows_of.all().delete()
                self.rows_of.bulk_create([self.model(**row(key)) for key in range(1, seeded + 1)])

        def rows(self) -> int:
            count: int = self.rows_of.count()
            return count

        def close(self) -> None:
            connection.close()

        def unit(self) -> AbstractContextManager[Any]:
            return transaction.atomic()

        def nested(self, unit: Any) -> AbstractContextManager[Any]:
            return transaction.atomic()

        def add(self, unit: Any, key: int) -> None:
            self.rows_of.create(**row(key))

        def get(self, unit: Any, key: int) -> Any:
            return self.rows_of.get(id=key)

        def increase(self, unit: Any, entity: Any) -> None:
            entity.quantity += 1
            entity.save()

    return Django


def _django_database(text: str) -> dict[str, Any]:
    """Return what Django calls the database at that URL."""
    url = make_url(text)
    if url.get_backend_name() == "sqlite":
        pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL"
        name = url.database or ":memory:"
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": {"init_command": pragmas}}
    backend = {"postgresql": "postgresql", "mysql": "mysql"}[url.get_backend_name()]
    if backend == "mysql":
        import pymysql

        pymysql.install_as_MySQLdb()
    return {
        "ENGINE": f"django.db.backends.{backend}",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or url.query.get("host", ""),
        "PORT": url.port or url.query.get("port", ""),
        "CONN_MAX_AGE": None,
    }


_MAKERS: dict[str, Callable[[], type[Peer]]] = {
    "advanced_alchemy": _advanced_alchemy,
    "zope.sqlalchemy": _zope,
    "pyuow": _pyuow,
    "django": _django,
}


def _is_installed(module: str) -> bool:
    parent = module.partition(".")[0]
    return find_spec(parent) is not None and find_spec(module) is not None


PEERS: list[type[Any]] = [make() for module, make in _MAKERS.items() if _is_installed(module)]
