"""
The short way to one entity: taken where a mapper loads nothing but its own columns, and it ends as SQLAlchemy's does.
"""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import define
from sqlalchemy import (
    Column,
    Enum,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    select,
)
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, column_property, composite, deferred, registry, relationship, sessionmaker

from uow import Repository
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork
from uow.adapters.sqlalchemy._loading import reader_of
from uow.errors import EntityNotFound
from uow.testing import record_statements


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@define(slots=False, eq=False)
class Part:
    maker: str
    number: int
    name: str | None = None
    size: Size = Size.SMALL


class Heavy(Part):
    pass


@define(slots=False, eq=False)
class Box:
    number: int


@define
class Label:
    maker: str
    name: str


class Parts(SqlAlchemyUnitOfWork):
    parts: Repository[Part]


@pytest.fixture
def mapped() -> Iterator[tuple[registry, Table, Table]]:
    metadata = MetaData()
    boxes = Table("boxes", metadata, Column("number", Integer, primary_key=True))
    parts = Table(
        "parts",
        metadata,
        Column("maker", String(9, collation="NOCASE"), primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("called", String(9), key="name"),
        Column("size", Enum(Size)),
        Column("kind", String(9)),
        Column("box", ForeignKey("boxes.number")),
    )
    made = registry(metadata=metadata)
    yield made, parts, boxes
    made.dispose()


@pytest.fixture
def engine(mapped: tuple[registry, Table, Table], tmp_path: Any) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path}/parts.db")
    mapped[0].metadata.create_all(made)
    with made.begin() as connection:
        connection.execute(mapped[2].insert(), {"number": 7})
        rows = [("ACME", 1, "wheel", Size.LARGE), ("ACME", 2, None, Size.SMALL)]
        connection.execute(
            mapped[1].insert(),
            [dict(zip(("maker", "number", "name", "size"), row, strict=True)) | {"box": 7} for row in rows],
        )
    yield made
    made.dispose()


NAMES = ("maker", "number", "name", "size")


def map_plainly(mapped: tuple[registry, Table, Table], **more: Any) -> Any:
    made, parts, boxes = mapped
    made.map_imperatively(Box, boxes)
    return made.map_imperatively(Part, parts, include_properties=(*NAMES, "kind", "box"), **more)


def facts(entity: object) -> list[Any]:
    """Return what SQLAlchemy knows of *entity*."""
    state = inspect(entity)
    values = {attribute.key: (attribute.loaded_value, attribute.history) for attribute in state.attrs}
    expired = state.expired, state.expired_attributes, state.unloaded
    return [state.key, state.identity, state.persistent, state.modified, state.committed_state, *expired, values]


def test_it_is_what_sqlalchemy_loads(engine: Engine, mapped: Any) -> None:
    """Values, history, identity and what SQLAlchemy keeps of an entity are the same."""
    map_plainly(mapped)
    with Parts(engine) as unit, Session(engine) as session:
        mine, theirs = unit.parts.get(("ACME", 1)), session.get_one(Part, ("ACME", 1))
        assert reader_of(inspect(Part), unit.session) is not None
        assert facts(theirs) == facts(mine)
        assert unit.session.identity_map[inspect(mine).key] is mine
        assert mine not in unit.session.dirty
        assert (Size.LARGE, "wheel") == (mine.size, mine.name)


def test_it_is_one_statement_and_can_be_changed(engine: Engine, mapped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy's loader is not asked, the second get() reads nothing, and a change is one UPDATE."""
    map_plainly(mapped)
    for name in ("execute", "scalars"):
        monkeypatch.delattr(Session, name)
    with Parts(engine) as unit, record_statements(engine) as statements:
        part = unit.parts.get(("ACME", 1))
        assert unit.parts.get(("ACME", 1)) is part
        part.name = "cog"
        unit.commit()
    assert ["SELECT", "UPDATE", "COMMIT"] == [statement.split()[0] for statement in statements]
    with Parts(engine) as unit:
        assert "cog" == unit.parts.get(("ACME", 1)).name


def test_nothing_is_found(engine: Engine, mapped: Any) -> None:
    """A key that is not there is an error, as it says."""
    map_plainly(mapped)
    with Parts(engine) as unit:
        assert unit.parts.get_or_none(("ACME", 3)) is None
        with pytest.raises(EntityNotFound):
            unit.parts.get(("ACME", 3))


def test_keys_that_the_database_takes_for_equal(engine: Engine, mapped: Any) -> None:
    """What the unit holds already is the same object, however the key is written."""
    map_plainly(mapped)
    with Parts(engine) as unit:
        part = unit.parts.get(("acme", 1))
        assert "ACME" == part.maker
        assert unit.parts.get(("Acme", 1)) is part
        assert [part] == list(unit.session)


def test_a_key_that_is_not_one(engine: Engine, mapped: Any) -> None:
    """Where the mapper's key is no key of the table, SQLAlchemy says so."""
    made, parts, _ = mapped
    made.map_imperatively(Part, parts, include_properties=NAMES, primary_key=[parts.c.maker])
    with Parts(engine) as unit:
        assert 1 == unit.parts.get("ACME").number


def test_it_is_undone_with_its_scope(engine: Engine, mapped: Any) -> None:
    """A nested scope that read and changed it gives it back as it was."""
    map_plainly(mapped)
    with Parts(engine) as unit:
        with unit.nested() as inner:
            part = inner.parts.get(("ACME", 2))
            part.name = "cog"
            inner.flush()
            inner.rollback()
        assert part.name is None
        assert unit.parts.get(("ACME", 2)) is part


# ---------------------------------------------------------------------------------------------- what is for SQLAlchemy


def map_with_eager_relation(mapped: Any) -> None:
    map_plainly(mapped, properties={"place": relationship(Box, lazy="joined")})


def map_with_deferred(mapped: Any) -> None:
    map_plainly(mapped, properties={"name": deferred(mapped[1].c.name)})


def map_with_expression(mapped: Any) -> None:
    map_plainly(mapped, properties={"next": column_property(mapped[1].c.number + 1)})


def map_with_two_columns(mapped: Any) -> None:
    made, parts, boxes = mapped
    key = [parts.c.maker, parts.c.number]
    two = {"number": parts.c.number, "place": [boxes.c.number, parts.c.box]}
    made.map_imperatively(Part, parts.join(boxes), properties=two, primary_key=key)


def map_with_composite(mapped: Any) -> None:
    made, parts, _ = mapped
    made.map_imperatively(
        Part, parts, include_properties=NAMES, properties={"label": composite(Label, parts.c.maker, parts.c.name)}
    )


def map_polymorphically(mapped: Any) -> None:
    made, parts, _ = mapped
    base = made.map_imperatively(Part, parts, polymorphic_on=parts.c.kind, properties={"place": parts.c.box})
    made.map_imperatively(Heavy, inherits=base, polymorphic_identity="heavy")


def map_listened_to(mapped: Any) -> None:
    event.listen(map_plainly(mapped), "load", lambda *_: None)


MAPPINGS = [
    map_with_eager_relation,
    map_with_deferred,
    map_with_expression,
    map_with_two_columns,
    map_with_composite,
    map_polymorphically,
    map_listened_to,
]


@pytest.mark.parametrize("map_it", MAPPINGS, ids=lambda map_it: map_it.__name__)
def test_other_mappings_are_for_sqlalchemy(engine: Engine, mapped: Any, map_it: Callable[[Any], None]) -> None:
    """Where to load an entity is more than to read its columns, or somebody listens."""
    map_it(mapped)
    with Parts(engine) as unit:
        assert reader_of(inspect(Part), unit.session) is None
        if map_it is not map_polymorphically:
            assert Size.LARGE is unit.parts.get(("ACME", 1)).size


@pytest.mark.parametrize(
    "name",
    [
        "do_orm_execute",
        "before_attach",
        "after_attach",
        "loaded_as_persistent",
        "detached_to_persistent",
    ],
)
def test_who_listens_hears_what_sqlalchemy_tells(engine: Engine, mapped: Any, name: str) -> None:
    """A session that somebody listens to loads as ever: listeners are told what they would be told elsewhere."""
    map_plainly(mapped)
    heard: dict[str, list[str]] = {"mine": [], "theirs": []}
    sessions = {whose: sessionmaker(engine, class_=type(whose, (Session,), {})) for whose in heard}
    for whose, made in sessions.items():
        event.listen(made, name, lambda *_, whose=whose: heard[whose].append(name))
    with Parts(sessions["mine"]) as unit, sessions["theirs"]() as session:
        unit.parts.get(("ACME", 1))
        session.scalars(select(Part).where(mapped[1].c.number == 1)).one()
    assert heard["theirs"] == heard["mine"]


def test_a_session_with_options(engine: Engine, mapped: Any) -> None:
    """They are the session's to follow."""
    map_plainly(mapped)
    with Parts(sessionmaker(engine, execution_options={"populate_existing": True})) as unit:
        assert reader_of(inspect(Part), unit.session) is None
        assert "wheel" == unit.parts.get(("ACME", 1)).name
