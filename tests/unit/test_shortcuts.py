"""
The short ways of a flush: taken where one plain class alone is concerned, and they end as SQLAlchemy's flush does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from attrs import define
from sqlalchemy import (
    Column,
    ColumnDefault,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    create_engine,
    event,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.orm import Mapper, Session, column_property, composite, registry, relationship, sessionmaker

from uow import Repository
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork
from uow.adapters.sqlalchemy._shortcuts import shortcut_of
from uow.errors import DatabaseError, StaleVersion, UniqueViolation
from uow.testing import record_statements


@define(slots=False, eq=False)
class Part:
    number: int
    name: str | None = "wheel"
    weight: Any = Decimal(1)


@define(slots=False, eq=False)
class Box:
    number: int


class Heavy(Part):
    pass


class Parts(SqlAlchemyUnitOfWork):
    parts: Repository[Part]
    boxes: Repository[Box]


@dataclass
class Size:
    width: int
    height: int


@pytest.fixture
def mapped() -> Iterator[tuple[registry, Table, Table]]:
    metadata = MetaData()
    parts = Table(
        "parts",
        metadata,
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("name", String(20)),
        Column("mass", Numeric, key="weight", default=7),
        Column("kind", String(9), server_default="p"),
        Column("version", Integer, default=1),
        Column("width", Integer),
        Column("height", Integer),
        Column("box", ForeignKey("boxes.number")),
    )
    boxes = Table("boxes", metadata, Column("number", Integer, primary_key=True))
    made = registry(metadata=metadata)
    yield made, parts, boxes
    made.dispose()


@pytest.fixture
def engine(mapped: tuple[registry, Table, Table], tmp_path: Any) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path}/parts.db")
    mapped[0].metadata.create_all(made)
    yield made
    made.dispose()


NAMES = ("number", "name", "weight")


def map_plainly(mapped: tuple[registry, Table, Table], *names: str, **more: Any) -> Any:
    made, parts, boxes = mapped
    made.map_imperatively(Box, boxes)
    return made.map_imperatively(Part, parts, include_properties=(*NAMES, *names), **more)


# ------------------------------------------------------------------------------------------------------- where it goes


def test_it_ends_as_a_flush_does(engine: Engine, mapped: Any) -> None:
    """What was new is held by its key, unchanged, and of the transaction; one statement for all."""
    map_plainly(mapped)
    parts = [Part(3), Part(1, None), Part(2, "cog", Decimal("2.5"))]
    with SqlAlchemyUnitOfWork(engine) as unit, record_statements(engine) as statements:
        unit.session.add_all(parts)
        unit.flush()
        for part in parts:
            state = inspect(part)
            assert state.persistent
            assert not state.modified
            assert unit.session.identity_map[state.key] is part
        assert not unit.session.new
        parts[0].name = "spoke"
        unit.session.delete(parts[1])
        unit.commit()
    assert ["INSERT", "UPDATE", "DELETE", "COMMIT"] == [statement.split()[0] for statement in statements]
    with Session(engine) as session:
        assert [(2, "cog", Decimal("2.5")), (3, "spoke", 1)] == [
            (part.number, part.name, part.weight) for part in session.scalars(select(Part).order_by(Part.number))
        ]


def test_what_fails_is_not_written(engine: Engine, mapped: Any) -> None:
    """The error is the database's, and what was new in the scope is new again."""
    map_plainly(mapped)
    with SqlAlchemyUnitOfWork(engine) as unit:
        unit.session.add(Part(1))
        twin = Part(1)
        with pytest.raises(UniqueViolation), unit.nested():
            unit.flush()
            unit.session.expunge_all()
            unit.session.add(twin)
            unit.flush()
        assert inspect(twin).transient
        unit.commit()


def test_no_flush_inside(engine: Engine, mapped: Any) -> None:
    """A listener that flushes while the INSERT is under way would write the same again."""
    map_plainly(mapped)
    with SqlAlchemyUnitOfWork(engine) as unit:
        unit.session.add(Part(1))
        event.listen(engine, "before_cursor_execute", lambda *_: unit.session.flush())
        with pytest.raises(DatabaseError, match="already flushing"):
            unit.flush()
        unit.rollback()


# --------------------------------------------------------------------------------------------------- where it does not


def with_a_relationship(mapped: Any) -> object:
    map_plainly(mapped, properties={"box": relationship(Box, primaryjoin=mapped[1].c.box == mapped[2].c.number)})
    return Part(1)


def with_an_heir(mapped: Any) -> object:
    mapper = map_plainly(mapped, "kind", polymorphic_on=mapped[1].c.kind, polymorphic_identity="p")
    mapped[0].map_imperatively(Heavy, inherits=mapper, polymorphic_identity="h")
    return Part(1)


def of_an_heir(mapped: Any) -> object:
    mapped[0].map_imperatively(Heavy, inherits=map_plainly(mapped))
    return Heavy(1)


def with_a_version(mapped: Any) -> object:
    map_plainly(mapped, version_id_col=mapped[1].c.version)
    return Part(1)


def with_an_expression_to_load(mapped: Any) -> object:
    map_plainly(mapped, properties={"shout": column_property(func.upper(mapped[1].c.name))})
    return Part(1)


def with_a_composite(mapped: Any) -> object:
    size = composite(Size, mapped[1].c.width, mapped[1].c.height)
    map_plainly(mapped, "width", "height", properties={"size": size})
    part: Any = Part(1)
    part.size = Size(1, 2)
    return part


def with_a_default_for_none(mapped: Any) -> object:
    map_plainly(mapped)
    return Part(1, weight=None)


def with_a_default_for_what_is_missing(mapped: Any) -> object:
    map_plainly(mapped, "kind")
    return Part(1)


def without_a_key(mapped: Any) -> object:
    map_plainly(mapped)
    box = Box(0)
    box.number = None  # type: ignore[assignment]
    return box


def with_an_expression(mapped: Any) -> object:
    map_plainly(mapped)
    return Part(1, weight=literal(3))


def with_what_stands_for_one(mapped: Any) -> object:
    class Three:
        def __clause_element__(self) -> object:
            return literal(3)

    map_plainly(mapped)
    return Part(1, weight=Three())


def with_a_listener_before(mapped: Any) -> object:
    event.listen(map_plainly(mapped), "before_insert", lambda *_: None)
    return Part(1)


def with_a_listener_after(mapped: Any) -> object:
    event.listen(map_plainly(mapped), "after_insert", lambda *_: None)
    return Part(1)


def without_its_parent(mapped: Any) -> object:
    made, parts, boxes = mapped
    made.map_imperatively(Part, parts, include_properties=NAMES)
    contents = relationship(Part, cascade="all, delete-orphan", primaryjoin=parts.c.box == boxes.c.number)
    made.map_imperatively(Box, boxes, properties={"contents": contents})
    return Part(1)


WAYS = [
    with_a_relationship,
    with_an_heir,
    of_an_heir,
    with_a_version,
    with_an_expression_to_load,
    with_a_composite,
    with_a_default_for_none,
    with_a_default_for_what_is_missing,
    without_a_key,
    with_an_expression,
    with_what_stands_for_one,
    with_a_listener_before,
    with_a_listener_after,
    without_its_parent,
]


@pytest.mark.parametrize("make", WAYS, ids=lambda make: make.__name__)
def test_the_rest_is_for_the_flush(engine: Engine, mapped: Any, make: Callable[[Any], object]) -> None:
    """What depends on more than its own columns, or on what SQLAlchemy or the database find out."""
    entity = make(mapped)
    with SqlAlchemyUnitOfWork(engine) as unit:
        unit.session.add(entity)
        assert shortcut_of(unit.session) is None
        unit.rollback()


@pytest.mark.parametrize("kind", ["before_flush", "after_flush", "after_flush_postexec"])
def test_who_listens_to_flushes_hears_of_them(engine: Engine, mapped: Any, kind: str) -> None:
    """The listeners of a user's sessions are called as ever."""
    map_plainly(mapped)
    heard: list[str] = []
    factory = sessionmaker(engine, class_=type("Own", (Session,), {}))
    event.listen(factory, kind, lambda *_: heard.append(kind))
    with SqlAlchemyUnitOfWork(factory) as unit:
        unit.session.add(Part(1))
        unit.commit()
    assert [kind] == heard


def change(session: Session, held: Part) -> None:
    held.name = "spoke"
    session.add(Part(2))


def remove(session: Session, held: Part) -> None:
    session.delete(held)
    session.add(Part(2))


def add_of_two_classes(session: Session, held: Part) -> None:
    session.add_all([Part(2), Box(1)])


def add_one_that_is_held(session: Session, held: Part) -> None:
    session.add_all([Part(2), Part(1)])


def add_nothing(session: Session, held: Part) -> None:
    pass


@pytest.mark.parametrize("work", [change, remove, add_of_two_classes, add_one_that_is_held, add_nothing])
def test_other_work_is_for_the_flush(engine: Engine, mapped: Any, work: Callable[[Session, Part], None]) -> None:
    """What is not only new, or of several classes, takes an order; and what is held already takes a warning."""
    map_plainly(mapped)
    held = Part(1)
    with SqlAlchemyUnitOfWork(engine) as unit:
        unit.session.add(held)
        unit.flush()
        work(unit.session, held)
        assert shortcut_of(unit.session) is None
        unit.rollback()


# ------------------------------------------------------------------------------------------------- one that was changed


def stored(engine: Engine, *parts: Part) -> None:
    with Session(engine) as session:
        session.add_all(parts)
        session.commit()


def test_a_change_ends_as_a_flush_does(engine: Engine, mapped: Any) -> None:
    """One UPDATE that says what was changed; then the entity is unchanged, and as it was where that is rolled back."""
    map_plainly(mapped)
    stored(engine, Part(1), Part(2))
    with SqlAlchemyUnitOfWork(engine) as unit, record_statements(engine) as statements:
        part = unit.session.get_one(Part, 2)
        part.name = "cog"
        assert shortcut_of(unit.session) is not None
        unit.flush()
        assert not inspect(part).modified
        assert shortcut_of(unit.session) is None
        with unit.nested() as nested:
            part.name, part.weight = "spoke", Decimal(3)
            nested.flush()
            nested.rollback()
        assert ("cog", 1) == (part.name, part.weight)
        unit.commit()

    assert [
        "UPDATE parts SET name=? WHERE parts.number = ?",
        "UPDATE parts SET name=?, mass=? WHERE parts.number = ?",
    ] == [statement for statement in statements if statement.startswith("UPDATE")]
    with Session(engine) as session:
        assert [(1, "wheel"), (2, "cog")] == [(part.number, part.name) for part in session.scalars(select(Part))]


def test_a_change_of_what_is_gone(engine: Engine, mapped: Any) -> None:
    """It is stale, as with a flush."""
    map_plainly(mapped)
    stored(engine, Part(1))
    with SqlAlchemyUnitOfWork(engine) as unit:
        part = unit.session.get_one(Part, 1)
        unit.session.execute(mapped[1].delete())
        part.name = "cog"
        with pytest.raises(StaleVersion, match="'parts' met 0 rows instead of 1"):
            unit.flush()
        unit.rollback()


def another_too(session: Session) -> None:
    one, two = session.get_one(Part, 1), session.get_one(Part, 2)
    one.name = two.name = "cog"


def the_key(session: Session) -> None:
    session.get_one(Part, 1).number = 3


def to_an_expression(session: Session) -> None:
    session.get_one(Part, 1).name = literal("cog")  # type: ignore[assignment]


def to_the_same(session: Session) -> None:
    session.get_one(Part, 1).name = "wheel"


def to_nothing(session: Session) -> None:
    del session.get_one(Part, 1).name


@pytest.mark.parametrize("work", [another_too, the_key, to_an_expression, to_the_same, to_nothing])
def test_other_changes_are_for_the_flush(engine: Engine, mapped: Any, work: Callable[[Session], None]) -> None:
    """More than one entity takes an order, and a key, an expression and what is no change are SQLAlchemy's business."""
    map_plainly(mapped)
    stored(engine, Part(1), Part(2))
    with SqlAlchemyUnitOfWork(engine) as unit:
        work(unit.session)
        assert unit.session.dirty
        assert shortcut_of(unit.session) is None
        unit.rollback()


def map_with_onupdate(mapped: Any) -> None:
    made, parts, _ = mapped
    parts.c.width.onupdate = ColumnDefault(1)
    made.map_imperatively(Part, parts, include_properties=NAMES)


def map_with_another_key(mapped: Any) -> None:
    made, parts, _ = mapped
    made.map_imperatively(Part, parts, include_properties=NAMES, primary_key=[parts.c.name])


def map_listened_to_before(mapped: Any) -> None:
    event.listen(map_plainly(mapped), "before_update", lambda *_: None)


def map_listened_to_after(mapped: Any) -> None:
    event.listen(map_plainly(mapped), "after_update", lambda *_: None)


def map_with_a_version(mapped: Any) -> None:
    map_plainly(mapped, "version", version_id_col=mapped[1].c.version)


MAPPINGS = [
    map_with_onupdate,
    map_with_another_key,
    map_listened_to_before,
    map_listened_to_after,
    map_with_a_version,
]


@pytest.mark.parametrize("map_it", MAPPINGS, ids=lambda map_it: map_it.__name__)
def test_other_mappings_are_for_the_flush(engine: Engine, mapped: Any, map_it: Callable[[Any], None]) -> None:
    """Where an UPDATE does more than it says, or somebody listens."""
    with engine.begin() as connection:
        connection.execute(mapped[1].insert().values(number=1, name="wheel", version=1))
    map_it(mapped)
    with SqlAlchemyUnitOfWork(engine) as unit:
        unit.session.scalars(select(Part)).one().weight = Decimal(2)
        assert unit.session.dirty
        assert shortcut_of(unit.session) is None
        unit.commit()


# ------------------------------------------------------------------------------------------------------ how it is added


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Mapper[Any]]:
    """The mappers whose relationships SQLAlchemy walks over."""
    seen: list[Mapper[Any]] = []
    original = Mapper.cascade_iterator

    def walk(self: Mapper[Any], *args: Any, **options: Any) -> Any:
        seen.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(Mapper, "cascade_iterator", walk)
    return seen


def test_what_has_no_relationship_is_added_alone(engine: Engine, mapped: Any, walks: list[Mapper[Any]]) -> None:
    """Nothing is looked for that would have to be added with it."""
    map_plainly(mapped)
    part = Part(1)
    with Parts(engine) as unit:
        unit.parts.add(part)

        assert [part] == [*unit.session.new]
        assert not walks

        unit.commit()


def test_what_relationships_lead_to_is_added_too(engine: Engine, mapped: Any) -> None:
    """Those of the entity's own class, which may be an heir of the repository's."""
    made, parts, boxes = mapped
    made.map_imperatively(Box, boxes)
    plain = made.map_imperatively(
        Part, parts, include_properties=(*NAMES, "kind"), polymorphic_on=parts.c.kind, polymorphic_identity="p"
    )
    held = relationship(Box, primaryjoin=parts.c.box == boxes.c.number)
    made.map_imperatively(Heavy, inherits=plain, polymorphic_identity="h", properties={"held": held})
    heavy, box = Heavy(1), Box(7)
    heavy.held = box  # type: ignore[attr-defined]
    with Parts(engine) as unit:
        unit.parts.add(heavy)

        assert {heavy, box} == {*unit.session.new}

        unit.commit()


def test_a_session_with_an_add_of_its_own(engine: Engine, mapped: Any) -> None:
    """It is called, whatever is added."""
    map_plainly(mapped)
    heard: list[object] = []

    class Own(Session):
        def add(self, instance: object, **options: Any) -> None:
            heard.append(instance)
            super().add(instance, **options)

    with Parts(sessionmaker(engine, class_=Own)) as unit:
        unit.parts.add(part := Part(1))
        unit.commit()
    assert [part] == heard
