"""
The fake's schema, read from SQLAlchemy's metadata: the same rules and the same errors as PostgreSQL has.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, date
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
    DateTime,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    and_,
    column,
    create_engine,
    false,
    func,
    join,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

from uow import Repository, UnitOfWork, entity, like
from uow.adapters.memory import FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork
from uow.errors import (
    CheckViolation,
    ConfigurationError,
    ForeignKeyViolation,
    IntegrityViolation,
    NotNullViolation,
    SerializationFailure,
    StaleVersion,
    UniqueViolation,
    UnmappedEntity,
)
from uow.testing._harness import Harness
from uow.testing._memory import FakeHarness
from uow.testing._sqlalchemy import metadata as bank_metadata
from uow.testing.contract._violations import ViolationRules


class TestBank(ViolationRules):
    """What constraints refuse, where the fake reads them from the contract suite's own tables."""

    @pytest.fixture
    def harness(self) -> Harness:
        harness = FakeHarness()
        harness.store = Store(bank_metadata)
        return harness


# ------------------------------------------------------------------------------------------------- held to PostgreSQL


class Status(Enum):
    OPEN = "open"
    SHUT = "shut"


class Base(DeclarativeBase):
    pass


class Country(Base):
    __tablename__ = "countries"
    __table_args__ = (PrimaryKeyConstraint("code", name="one_country"),)

    code: Mapped[str] = mapped_column(String(2))
    dial: Mapped[int | None] = mapped_column(unique=True)


class Shop(Base):
    __tablename__ = "shops"
    __table_args__ = (
        UniqueConstraint("country", "city"),
        UniqueConstraint("rank", deferrable=True, initially="DEFERRED", name="one_rank"),
        Index("ix_mail", "mail", unique=True),
        Index("ix_flagship", "country", unique=True, postgresql_where=text("flagship AND city <> 'x'")),
        Index("ix_city", "city"),
        CheckConstraint("area > 0"),
        CheckConstraint("area < 1000 OR flagship"),
        CheckConstraint("area <> 13"),
    )

    id: Mapped[int] = mapped_column("shop_id", primary_key=True)
    country: Mapped[str | None] = mapped_column(ForeignKey("countries.code"))
    dial: Mapped[int | None] = mapped_column(
        ForeignKey("countries.dial", name="by_dial", deferrable=True, initially="DEFERRED")
    )
    town: Mapped[str] = mapped_column("city", default="Ulm")
    mail: Mapped[str | None]
    rank: Mapped[int | None]
    area: Mapped[int] = mapped_column(default=10)
    flagship: Mapped[bool] = mapped_column(server_default=false())


class Shelf(Base):
    __tablename__ = "shelves"
    __table_args__ = (UniqueConstraint("shop_id", "row", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    shop: Mapped[int] = mapped_column("shop_id", ForeignKey("shops.shop_id", ondelete="CASCADE"))
    row: Mapped[int] = mapped_column(CheckConstraint("row BETWEEN 1 AND 9"))


class Book(Base):
    __tablename__ = "books"
    __table_args__ = (
        ForeignKeyConstraint(["shop_id", "row"], ["shelves.shop_id", "shelves.row"]),
        CheckConstraint(text("price IS NULL OR NOT price < 0"), name="price_floor"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    shop: Mapped[int | None] = mapped_column("shop_id")
    row: Mapped[int | None]
    price: Mapped[Decimal | None] = mapped_column(Numeric(8, 2))
    sequel: Mapped[int | None] = mapped_column("sequel_id", ForeignKey("books.id", ondelete="SET NULL"))


class Town(UnitOfWork):
    countries: Repository[Country]
    shops: Repository[Shop]
    shelves: Repository[Shelf]
    books: Repository[Book]


class FakeTown(FakeUnitOfWork, Town):
    pass


class SqlTown(SqlAlchemyUnitOfWork, Town):
    pass


@pytest.fixture(scope="module")
def sql_town(postgresql_url: Any) -> Iterator[Callable[[], Town]]:
    """A unit on PostgreSQL."""
    engine = create_engine(postgresql_url)
    Base.metadata.create_all(engine)
    yield lambda: SqlTown(engine)
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture(params=["fake", "postgresql"])
def town(request: pytest.FixtureRequest) -> Iterator[Callable[[], Town]]:
    """A unit where two shops, three shelves and two books are."""
    if request.param == "fake":
        store = Store(Base.metadata)

        def unit() -> Town:
            return FakeTown(store)
    else:
        unit = request.getfixturevalue("sql_town")
    with unit() as it:
        it.countries.add_all([Country(code="de", dial=49), Country(code="fr", dial=33)])
        it.flush()
        it.shops.add(Shop(id=1, country="de", town="Bonn", mail="a@b", rank=1, flagship=True))
        it.shops.add(Shop(id=2, country="fr", rank=2))
        it.flush()
        it.shelves.add_all([Shelf(id=1, shop=1, row=1), Shelf(id=2, shop=1, row=2), Shelf(id=3, shop=2, row=1)])
        it.flush()
        it.books.add(Book(id=1, shop=1, row=1, price=Decimal(5)))
        it.flush()
        it.books.add(Book(id=2, sequel=1))
        it.commit()
    yield unit
    with unit() as it:
        for repository in (it.books, it.shelves, it.shops, it.countries):
            for found in list(repository.iterate()):
                repository.remove(found)
            it.flush()
        it.commit()


def change(repository: str, key: object, **values: object) -> Callable[[Town], None]:
    """Set attributes of a stored entity."""

    def work(unit: Town) -> None:
        found = getattr(unit, repository).get(key)
        for name, value in values.items():
            setattr(found, name, value)

    return work


VIOLATIONS: dict[str, tuple[Callable[[Town], object], tuple[object, ...]]] = {
    "a named key": (
        lambda it: it.countries.add(Country(code="de")),
        (UniqueViolation, "one_country", "countries", ("code",)),
    ),
    "an unnamed key": (lambda it: it.shops.add(Shop(id=1)), (UniqueViolation, "shops_pkey", "shops", ("shop_id",))),
    "two columns": (
        lambda it: it.shops.add(Shop(country="de", town="Bonn", id=9)),
        (UniqueViolation, "shops_country_city_key", "shops", ("country", "city")),
    ),
    "a unique index": (
        lambda it: it.shops.add(Shop(id=9, mail="a@b")),
        (UniqueViolation, "ix_mail", "shops", ("mail",)),
    ),
    "a partial index": (
        lambda it: it.shops.add(Shop(id=9, country="de", flagship=True)),
        (UniqueViolation, "ix_flagship", "shops", ("country",)),
    ),
    "a missing value": (
        change("shelves", 1, row=None),
        (NotNullViolation, None, "shelves", ("row",)),
    ),
    "a check": (change("shops", 1, area=0), (CheckViolation, "shops_area_check", "shops", ())),
    "a check of two columns": (change("shops", 2, area=1001), (CheckViolation, "shops_check", "shops", ())),
    "a second check of a column": (change("shops", 2, area=13), (CheckViolation, "shops_area_check1", "shops", ())),
    "a column's check": (change("shelves", 1, row=10), (CheckViolation, "shelves_row_check", "shelves", ())),
    "a named check": (change("books", 1, price=Decimal(-1)), (CheckViolation, "price_floor", "books", ())),
    "a missing value before a check": (
        lambda it: it.shelves.add(Shelf(id=9, shop=None, row=99)),
        (NotNullViolation, None, "shelves", ("shop_id",)),
    ),
    "a check before a key": (
        lambda it: it.shops.add(Shop(id=1, area=0)),
        (CheckViolation, "shops_area_check", "shops", ()),
    ),
    "a reference": (
        change("shops", 1, country="xx"),
        (ForeignKeyViolation, "shops_country_fkey", "shops", ("country",)),
    ),
    "a reference of two columns": (
        change("books", 1, row=3),
        (ForeignKeyViolation, "books_shop_id_row_fkey", "books", ("shop_id", "row")),
    ),
    "a reference to itself": (
        change("books", 1, sequel=77),
        (ForeignKeyViolation, "books_sequel_id_fkey", "books", ("sequel_id",)),
    ),
    "what is referred to": (
        lambda it: it.countries.remove(it.countries.get("de")),
        (ForeignKeyViolation, "shops_country_fkey", "shops", ()),
    ),
    "what is referred to by two columns": (
        change("shelves", 1, row=5),
        (ForeignKeyViolation, "books_shop_id_row_fkey", "books", ()),
    ),
    "what a cascade would remove": (
        lambda it: it.shops.remove(it.shops.get(1)),
        (ForeignKeyViolation, "books_shop_id_row_fkey", "books", ()),
    ),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_has_the_same_fields(town: Callable[[], Town], case: str) -> None:
    """What was read refuses what PostgreSQL refuses, with the same class, constraint, table and columns."""
    work, expected = VIOLATIONS[case]
    with pytest.raises(IntegrityViolation) as raised, town() as it:
        work(it)
        it.flush()
    error = raised.value

    assert expected == (type(error), error.constraint, error.table, error.columns)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (change("shops", 1, dial=7), (ForeignKeyViolation, "by_dial", "shops", ("dial",))),
        (change("shops", 1, rank=2), (UniqueViolation, "one_rank", "shops", ("rank",))),
    ],
    ids=["reference", "unique"],
)
def test_a_deferred_rule_waits_for_the_commit(town: Callable[[], Town], work: Any, expected: object) -> None:
    """A deferred constraint may be broken in between, also by a nested scope, and refuses at the commit."""
    with pytest.raises(IntegrityViolation) as raised, town() as it:
        with it.nested():
            work(it)
        it.flush()
        it.commit()
    with town() as it:
        work(it)
        it.flush()
        change("shops", 1, dial=49, rank=5)(it)
        it.commit()
    error = raised.value

    assert expected == (type(error), error.constraint, error.table, error.columns)


def test_what_refers_goes_with_its_target(town: Callable[[], Town]) -> None:
    """ON DELETE CASCADE removes rows, loaded or not; a rollback to the savepoint brings them back."""
    with town() as it:
        shelf = it.shelves.get(3)
        with it.nested() as nested:
            it.shops.remove(it.shops.get(2))
            it.flush()
            inside = it.shelves.count()
            nested.rollback()
        outside = it.shelves.count()
        shelf.row = 4
        it.commit()
    with town() as it:
        found = it.shelves.one(lambda s: s.row == 4).id
        it.shops.remove(it.shops.get(2))
        it.commit()
    with town() as it:
        left = it.shelves.count()

    assert (2, 3, 3, 2) == (inside, outside, found, left)


def test_a_reference_is_taken_away_with_its_target(town: Callable[[], Town]) -> None:
    """ON DELETE SET NULL takes the reference away; a rollback to the savepoint gives it back."""
    with town() as it:
        with it.nested() as nested:
            it.books.remove(it.books.get(1))
            it.flush()
            inside = it.books.count(lambda b: b.sequel == 1)
            nested.rollback()
        outside = it.books.count(lambda b: b.sequel == 1)
        it.books.remove(it.books.get(1))
        it.commit()
    with town() as it:
        left = it.books.get(2).sequel

    assert (0, 1, None) == (inside, outside, left)


def test_a_change_of_what_went_with_its_target(town: Callable[[], Town]) -> None:
    """An entity whose row a cascade removed cannot be written any more."""
    with pytest.raises(StaleVersion), town() as it:
        shelf = it.shelves.get(3)
        it.shops.remove(it.shops.get(2))
        it.flush()
        shelf.row = 5
        it.flush()


def test_what_refers_may_be_removed_with_its_target(town: Callable[[], Town]) -> None:
    """Removing both in one flush is no error, although the database removes one of them itself."""
    with town() as it:
        shelf, shop = it.shelves.get(3), it.shops.get(2)
        it.shelves.remove(shelf)
        it.flush()
        it.shops.remove(shop)
        it.commit()
    with town() as it:
        assert 2 == it.shelves.count()


# -------------------------------------------------------------------------------------------------- what SQL text says


def mapped(*columns: Any, attributes: dict[str, Any] | None = None, **options: Any) -> type:
    """Return a class that is mapped to a table of those columns, with an integer key."""
    mapping = registry()

    class Thing:
        def __init__(self, **values: object) -> None:
            vars(self).update(values)

    table = Table("things", mapping.metadata, Column("id", primary_key=True, type_=Integer()), *columns)
    mapping.map_imperatively(Thing, table, properties=attributes or {}, **options)
    return Thing


def unit_of(thing: type, *metadata: MetaData, store: Store | None = None, **options: Any) -> Any:
    """Return a unit with one repository of *thing*, on a store that knows its schema."""
    store = store or Store(*(metadata or [thing.__table__.metadata]), **options)  # type: ignore[attr-defined]
    kind = type("Things", (FakeUnitOfWork,), {"__annotations__": {"things": Repository[thing]}})
    return kind(store)


def accepted(criterion: Any, **values: object) -> bool:
    """Tell whether a check on some columns lets a row through."""
    thing = mapped(
        Column("n", Integer),
        Column("label", String),
        Column("Odd name", String),
        Column("price", Numeric),
        Column("on", Boolean),
        Column("day", Date),
        Column("status", SqlEnum(Status, create_constraint=True, name="statuses")),
        CheckConstraint(criterion, name="it"),
    )
    try:
        with unit_of(thing) as unit:
            unit.things.add(thing(**values))
            unit.commit()
    except CheckViolation:
        return False
    return True


n, label = column("n", Integer), column("label", String)


@pytest.mark.parametrize(
    ("criterion", "yes", "no"),
    [
        ("n >= -1", {"n": -1}, {"n": -2}),
        ("things.N=1", {"n": 1}, {"n": 2}),
        ("n <> 1 AND (n != 2)", {"n": 3}, {"n": 2}),
        ("NOT n = 1 OR label = 'it''s'", {"n": 1, "label": "it's"}, {"n": 1, "label": "its"}),
        ("n IS NULL OR label IS NOT NULL", {"n": 1, "label": ""}, {"n": 1}),
        ("label IN ('a', 'b')", {"label": "a"}, {"label": "c"}),
        ("label NOT IN ('a')", {"label": "b"}, {"label": "a"}),
        ("label IN ('a')", {}, {"label": "b"}),
        ("n BETWEEN 1 AND 2 + 1", {"n": 3}, {"n": 4}),
        ("n NOT BETWEEN 1 AND 3", {"n": 4}, {"n": 3}),
        ("label LIKE 'a%'", {"label": "ab"}, {"label": "b"}),
        ("label NOT LIKE 'a_'", {"label": "a"}, {"label": "ab"}),
        ("2 * n - 1 > -n", {"n": 1}, {"n": 0}),
        ('"Odd name" = label', {"Odd name": "a", "label": "a"}, {"Odd name": "a", "label": "b"}),
        ('things."on"', {"on": True}, {"on": False}),
        ('"on" = 1', {"on": True}, {"on": False}),
        ('"on" = true', {"on": True}, {"on": False}),
        ("price >= 0.5", {"price": Decimal("0.5")}, {"price": Decimal("0.4")}),
        ("price < 2", {"price": Decimal(1)}, {"price": Decimal(2)}),
        ("day > '2020-01-31'", {"day": date(2020, 2, 1)}, {"day": date(2020, 1, 31)}),
        ("status <> 'SHUT'", {"status": Status.OPEN}, {"status": Status.SHUT}),
        (n > 0, {"n": 1}, {"n": 0}),
        (and_(n > 0, or_(label == "a", label.is_(None))), {"n": 1}, {"n": 1, "label": "b"}),
        (not_(n.in_([1, 2])), {"n": 3}, {"n": 2}),
        (label.like("a%"), {"label": "ab"}, {"label": "b"}),
        (n.between(1, 2), {"n": 1}, {"n": 0}),
    ],
    ids=str,
)
def test_a_check_in_sql_is_read(criterion: Any, yes: dict[str, object], no: dict[str, object]) -> None:
    """Comparisons, written as text or as expressions, are checked as SQL has them."""
    assert (True, False) == (accepted(criterion, **yes), accepted(criterion, **no))


@pytest.mark.parametrize(
    "criterion",
    [
        "length(label) = 22",
        "label ~ '^[A-Z]+$'",
        "n::text = '1'",
        "n > 'text'",
        "day > 'soon'",
        "other = 1",
        "n + 1",
        "n = 1 2",
        "(n = 1",
        "n NOT 1",
        "n IN (label)",
        "n = (label = 'a')",
        "n IS 1",
        "n AND",
        "status = 'GONE'",
        '"on" = 7',
        func.length(label) == 22,
    ],
    ids=str,
)
def test_a_check_that_cannot_be_read_is_never_ignored(criterion: Any) -> None:
    """A check that says anything else is refused by name at the first use, and can be let be."""
    with pytest.raises(ConfigurationError, match=r"every rule of the table 'things': 'it' \(check .*unchecked"):
        accepted(criterion, n=1)


def test_a_check_that_cannot_be_read_may_be_declared_or_let_be() -> None:
    """A rule of the same name, declared on the store, stands for the one in the schema; so does leaving it out."""
    thing = mapped(Column("label", String), CheckConstraint("length(label) = 2", name="short"))
    store = Store(thing.__table__.metadata)  # type: ignore[attr-defined]
    store.check(thing, lambda t: like(t.label, "__"), name="short")
    with pytest.raises(CheckViolation) as raised, unit_of(thing, store=store) as unit:
        unit.things.add(thing(label="abc"))
        unit.commit()
    with unit_of(thing, unchecked=["short"]) as unit:
        unit.things.add(thing(label="abc"))
        unit.commit()

    assert ("short", "things") == (raised.value.constraint, raised.value.table)


# ------------------------------------------------------------------------------------------------- what is not read


@pytest.mark.parametrize(
    ("items", "rule"),
    [
        ([Column("a", Integer), UniqueConstraint("a", name="it", postgresql_nulls_not_distinct=True)], "NULLS NOT"),
        ([Column("a", Integer), Index("it", "a", unique=True, postgresql_nulls_not_distinct=True)], "NULLS NOT"),
        ([Column("a", String), Index("it", text("lower(a)"), unique=True)], "a unique index on an expression"),
        ([Column("a", String), Index("it", func.lower(column("a")), unique=True)], "a unique index on an expression"),
        (
            [Column("a", String), Index("it", "a", unique=True, sqlite_where=text("length(a) > 1"))],
            r"unique where length\(a\) > 1",
        ),
        ([Column("a", Integer), ExcludeConstraint(("a", "="), name="it")], "a exclude constraint"),
        ([Column("a", ForeignKey("others.id", name="it"))], "a foreign key to 'others', which no class is mapped to"),
        ([Column("a", ForeignKey("things.id", name="it", ondelete="SET DEFAULT"))], "ON DELETE SET DEFAULT"),
        ([Column("a", ForeignKey("things.id", name="it", onupdate="CASCADE"))], "ON UPDATE CASCADE"),
        (
            [
                Column("a", Integer),
                Column("b", Integer),
                UniqueConstraint("a", "b"),
                ForeignKeyConstraint(["a", "b"], ["things.a", "things.b"], name="it", match="FULL"),
            ],
            "MATCH FULL",
        ),
        ([Column("a", Integer, Identity())], "a value that the database makes, identity_column"),
        ([Column("a", Integer, Computed("1 + 1"))], "a value that the database makes, computed_column"),
        ([Column("a", Integer, FetchedValue())], "a value that the database makes, FetchedValue"),
        ([Column("a", Integer, server_onupdate=FetchedValue())], "a value that the database makes, FetchedValue"),
        ([Column("a", Integer, default=select(1).scalar_subquery())], "a value that the database makes"),
        ([Column("a", Integer, server_default="x")], "a value that the database makes, 'x' is no int"),
        ([Column("a", Integer, server_default=text("'x'"))], "a value that the database makes, 'x' is no int"),
        ([Column("a", String, server_default=text("1"))], "a value that the database makes, 1 is no str"),
        ([Column("a", String, server_default=func.now())], r"a value that the database makes, now\(\)"),
        ([Column("a", String, server_default=text("n"))], "a value that the database makes, n"),
        ([Column("a", Integer, server_default=text("1 + 1"))], r"a value that the database makes, 1 \+ 1"),
        ([Column("a", Boolean, server_default="x")], "a value that the database makes, 'x' is no bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused(items: list[Any], rule: str) -> None:
    """A rule that the fake cannot keep is refused, with its name and the reason, unless it is named as unchecked."""
    thing = mapped(*items)
    Table("others", thing.__table__.metadata, Column("id", Integer, primary_key=True))  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=rf"'(it|things.a)' \({rule}"), unit_of(thing) as unit:
        unit.things.count()
    with unit_of(thing, unchecked=["it", "things.a"]) as unit:
        assert 0 == unit.things.count()


@pytest.mark.parametrize(
    ("items", "rule"),
    [
        ([UniqueConstraint("a", name="it")], "it"),
        ([Index("it", "a", unique=True)], "it"),
        ([ForeignKeyConstraint(["a"], ["things.id"], name="it")], "it"),
        ([CheckConstraint("a > 0", name="it")], "it"),
        ([], "things.a"),
    ],
)
def test_a_rule_on_what_no_attribute_is_mapped_to(items: list[Any], rule: str) -> None:
    """A column that the class does not have cannot be checked; one with a default needs no value."""
    thing = mapped(Column("a", Integer, nullable=bool(items)), *items, exclude_properties=["a"])
    with pytest.raises(ConfigurationError, match=f"'{rule}'"), unit_of(thing) as unit:
        unit.things.count()
    made = mapped(Column("a", Integer, nullable=False, server_default="1"), exclude_properties=["a"])
    with unit_of(made) as unit:
        assert 0 == unit.things.count()


def test_a_class_of_other_metadata_is_refused() -> None:
    """A store that reads a schema reads all: a mapped class that it was not told of is an error, a plain one is not."""

    @entity
    class Plain:
        id: int

    one, other = mapped(), mapped()
    with pytest.raises(ConfigurationError, match=r"other MetaData.*Store\(metadata, other\)"):
        with unit_of(one, other.__table__.metadata) as unit:  # type: ignore[attr-defined]
            unit.things.count()
    both = one.__table__.metadata, other.__table__.metadata  # type: ignore[attr-defined]
    for kind in (one, other, Plain):
        with unit_of(kind, *both) as unit:
            assert 0 == unit.things.count()


def test_a_class_without_one_table_is_refused() -> None:
    """The fake knows no inheritance and no joins."""
    parent, mapping = mapped(), registry()

    class Child(parent):  # type: ignore[misc, valid-type]
        pass

    class Joined:
        pass

    metadata = parent.__table__.metadata  # type: ignore[attr-defined]
    table = Table("children", metadata, Column("id", ForeignKey("things.id"), primary_key=True))
    parent.__mapper__.registry.map_imperatively(Child, table, inherits=parent)  # type: ignore[attr-defined]
    things = metadata.tables["things"]
    mapping.map_imperatively(
        Joined,
        join(things, table, things.c.id == table.c.id),
        properties={"id": [things.c.id, table.c.id]},
    )
    for kind in (Child, Joined):
        with pytest.raises(UnmappedEntity, match="not mapped to one table"), unit_of(kind, metadata) as unit:
            unit.things.count()


def test_another_key_than_the_table_s_is_refused() -> None:
    """SQLAlchemy would look an entity up by the primary key, whatever @entity says."""
    mapping = registry()

    @entity(key="number")
    class Numbered:
        number: str
        id: int | None = None

    table = Table("numbered", mapping.metadata, Column("id", Integer, primary_key=True), Column("number", String))
    mapping.map_imperatively(Numbered, table)
    with pytest.raises(ConfigurationError, match=r"the key of Numbered is number, and that of its table id"):
        with unit_of(Numbered, mapping.metadata) as unit:
            unit.things.count()


# -------------------------------------------------------------------------------------------------------- defaults


class Odd(TypeDecorator[Any]):
    impl = String
    cache_ok = True

    @property
    def python_type(self) -> type:
        raise NotImplementedError


def test_defaults_are_those_of_the_columns() -> None:
    """A missing value gets its column's default: a constant, what a function returns, what the database would say."""
    numbers = iter(range(1, 9))
    thing = mapped(
        Column("scalar", Integer, default=7),
        Column("called", Integer, default=lambda: next(numbers)),
        Column("looked", Integer, default=lambda context: context.get_current_parameters()["scalar"] + 1),
        Column("texted", Integer, server_default="3"),
        Column("worded", String, server_default="x"),
        Column("negative", Numeric, server_default=text("-1.5")),
        Column("day", Date, server_default=text("'2020-01-31'")),
        Column("today", Date, server_default=func.current_date()),
        Column("aware", DateTime(timezone=True), server_default=func.now()),
        Column("naive", DateTime, default=func.now()),
        Column("on", Boolean, server_default="true"),
        Column("off", Boolean, server_default=false()),
        Column("status", SqlEnum(Status), server_default="OPEN"),
        Column("odd", Odd, server_default="odd"),
        Column("given", Integer, default=1),
    )
    new = thing(given=2)
    with unit_of(thing) as unit:
        unit.things.add(new)
        unit.flush()
        read = {name: vars(new)[name] for name in ("scalar", "called", "looked", "texted", "worded", "negative", "day")}
        times = (type(new.today), new.aware.tzinfo, new.naive.tzinfo)
        others = (new.on, new.off, new.status, new.odd, new.given)
        unit.rollback()

    assert [7, 1, 8, 3, "x", Decimal("-1.5"), date(2020, 1, 31)] == list(read.values())
    assert (date, UTC, None) == times
    assert (True, False, Status.OPEN, "odd", 2) == others
    assert (None, None) == (new.id, new.scalar)


def test_a_change_refreshes_what_the_column_says() -> None:
    """An onupdate of a column is its new value when an entity is changed, unless that was changed itself."""
    numbers = iter(range(1, 9))
    thing = mapped(Column("a", Integer), Column("changes", Integer, default=0, onupdate=lambda: next(numbers)))
    store = Store(thing.__table__.metadata)  # type: ignore[attr-defined]
    seen = []
    for values in ({"a": 1}, {"a": 2}, {"a": 3, "changes": 9}):
        with unit_of(thing, store=store) as unit:
            found = unit.things.get_or_none(1)
            if found is None:
                unit.things.add(found := thing())
            vars(found).update(values)
            unit.commit()
            seen.append(found.changes)

    assert [0, 1, 9] == seen


def test_a_key_is_generated_where_the_table_says_so() -> None:
    """A key that the database does not count must be given; one column of several may be counted."""
    mapping = registry()

    class Counted:
        pass

    class Given:
        pass

    counted = Table(
        "counted",
        mapping.metadata,
        Column("group", String, primary_key=True),
        Column("id", Integer, primary_key=True, autoincrement=True),
    )
    given = Table("given", mapping.metadata, Column("id", Integer, primary_key=True, autoincrement=False))
    mapping.map_imperatively(Counted, counted)
    mapping.map_imperatively(Given, given)
    made = []
    with unit_of(Counted, mapping.metadata) as unit:
        for group in ("a", "b"):
            new = Counted()
            new.group = group  # type: ignore[attr-defined]
            unit.things.add(new)
            unit.flush()
            made.append(new.id)  # type: ignore[attr-defined]
    with pytest.raises(NotNullViolation), unit_of(Given, mapping.metadata) as unit:
        unit.things.add(Given())
        unit.commit()

    assert [1, 2] == made


# --------------------------------------------------------------------------------------------- declared on the store


@entity(key=("country", "city"))
class Place:
    country: str
    city: str


@entity
class Visit:
    id: int
    country: str | None
    city: str | None
    place: int = 0


class Travels(FakeUnitOfWork):
    places: Repository[Place]
    visits: Repository[Visit]


def travels(**options: Any) -> Store:
    """Return a store where a visit refers to one of two places."""
    store = Store()
    store.foreign_key(Visit, ("country", "city"), Place, **options)
    with Travels(store) as unit:
        unit.places.add_all([Place("de", "Ulm"), Place("fr", "Lyon")])
        unit.visits.add(Visit(1, "de", "Ulm"))
        unit.commit()
    return store


def test_a_declared_reference_may_have_several_attributes() -> None:
    """All of them are looked at together; one that is None refers to nothing."""
    store = travels(name="visited")
    with pytest.raises(ForeignKeyViolation) as raised, Travels(store) as unit:
        unit.visits.get(1).city = "Lyon"
        unit.commit()
    error = raised.value
    with Travels(store) as unit:
        visit = unit.visits.get(1)
        visit.country, visit.city = None, "Lyon"
        unit.commit()

    assert ("visited", "Visit", ("country", "city")) == (error.constraint, error.table, error.columns)


@pytest.mark.parametrize(("on_delete", "left"), [("cascade", []), ("set null", [(None, None)])])
def test_a_declared_reference_says_what_a_removal_does(on_delete: Any, left: list[object]) -> None:
    """As in a schema; an entity that is loaded loses its reference, and has it again after a rollback."""
    store = travels(on_delete=on_delete)
    with Travels(store) as unit:
        visit = unit.visits.get(1)
        with unit.nested() as nested:
            unit.places.remove(unit.places.get(("de", "Ulm")))
            unit.flush()
            inside = visit.city
            nested.rollback()
        outside = visit.city, unit.visits.count()
        unit.places.remove(unit.places.get(("de", "Ulm")))
        unit.commit()
    with Travels(store) as unit:
        found = [(visit.country, visit.city) for visit in unit.visits.list()]

    assert left == found
    assert ("Ulm" if on_delete == "cascade" else None, ("Ulm", 1)) == (inside, outside)


def test_a_cascade_meets_other_units() -> None:
    """A row that a cascade removed and another unit changed is a conflict."""
    store = travels(on_delete="cascade")
    with pytest.raises(SerializationFailure), Travels(store) as unit:
        unit.places.remove(unit.places.get(("de", "Ulm")))
        unit.flush()
        with Travels(store) as other:
            other.visits.get(1).place = 7
            other.commit()
        unit.commit()


def test_a_reference_may_not_be_taken_away_from_what_needs_it() -> None:
    """SET NULL on a value that may not be missing is refused."""
    store = travels(on_delete="set null")
    store.not_null(Visit, "city")
    with pytest.raises(NotNullViolation), Travels(store) as unit:
        unit.places.remove(unit.places.get(("de", "Ulm")))
        unit.commit()


def test_a_declared_rule_may_wait_for_the_commit() -> None:
    """A deferred reference and a deferred unique value are checked at the commit alone."""
    store = travels(deferred=True)
    store.unique(Visit, "place", name="one_visit", deferred=True)
    with Travels(store) as unit:
        unit.visits.add(Visit(2, "it", "Rome"))
        unit.flush()
        unit.visits.get(2).place = 1
        unit.places.add(Place("it", "Rome"))
        unit.commit()
    for change_, name in (({"city": "Nice"}, "country_city"), ({"place": 1}, "one_visit")):
        with pytest.raises(IntegrityViolation) as raised, Travels(store) as unit:
            vars(unit.visits.get(1)).update(change_)
            unit.flush()
            unit.commit()

        assert name == raised.value.constraint


def test_a_reference_that_makes_no_sense_is_refused() -> None:
    """Attributes that do not fit the key, and a consequence that is not known, are errors that say what to write."""
    store = Store()
    with pytest.raises(ConfigurationError, match=r"place cannot refer to Place, whose key is country, city"):
        store.foreign_key(Visit, "place", Place)
    with pytest.raises(ConfigurationError, match=r"on_delete='nothing'.*'cascade', 'set null' or None"):
        store.foreign_key(Visit, ("country", "city"), Place, on_delete="nothing")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="Visit has no attribute 'town'"):
        store.foreign_key(Visit, ("country", "town"), Place)
