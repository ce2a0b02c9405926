"""
Specifications in SQL: every database gives the answer that `evaluate` gives.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    URL,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    create_engine,
    insert,
    select,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry

from uow.adapters.sqlalchemy._criteria import compile_criterion, compile_order
from uow.domain import (
    Attribute,
    Constant,
    Expression,
    Operation,
    Order,
    SpecificationError,
    asc,
    desc,
    evaluate,
    is_in,
    is_null,
    like,
    not_,
    ordered,
    trace,
    trace_order,
)

Spec = Callable[[Any], object]


class Flag(TypeDecorator[bool]):
    """A boolean in disguise."""

    impl = Boolean
    cache_ok = True


@define(slots=False, eq=False)
class Sample:
    """A row; its class knows nothing of SQLAlchemy."""

    id: int
    x: int | None
    y: int | None
    flag: bool | None
    text: str | None
    label: str


NAMES = ("id", "x", "y", "flag", "text", "label")

# Texts compare by code point here; what a column's own collation says is the column's business.
EXACT = (
    String(20)
    .with_variant(mysql.VARCHAR(20, collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
    .with_variant(postgresql.VARCHAR(20, collation="C"), "postgresql")
)
metadata = MetaData()
samples = Table(
    "uow_criteria_samples",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("x", Integer),
    Column("y", Integer),
    Column("flag", Flag),
    Column("text", EXACT),
    Column("label", String(20), nullable=False),
    mysql_charset="utf8mb4",
)
registry(metadata=metadata).map_imperatively(Sample, samples)

TEXTS = [None, "", "a", "A", "aB", "ä", "Ä", "%", "_", "\\", "a\nb", "*?[a]", "😀"]
ROWS = [
    {"id": number, "x": x, "y": y, "flag": flag, "text": text, "label": text or "none"}
    for number, (x, y, flag, text) in enumerate(product([None, -1, 0, 2], [None, 0, 3], [None, True, False], TEXTS))
]
SAMPLES = [Sample(**row) for row in ROWS]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def connection(database_url: URL) -> Iterator[Connection]:
    """A connection to each of the databases, with all samples in a table of their own."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        metadata.create_all(connection)
        connection.execute(insert(samples), ROWS)
        connection.commit()
        yield connection
        connection.rollback()
        metadata.drop_all(connection)
        connection.commit()
    engine.dispose()


def answers(connection: Connection, expression: Expression) -> list[bool | None]:
    criterion = compile_criterion(expression, Sample, connection.dialect.name)
    rows = connection.execute(select(criterion).select_from(samples).order_by(samples.c.id))
    return [None if answer is None else bool(answer) for answer in rows.scalars()]


# ---------------------------------------------------------------------------------------------------- random criteria


def operation(operators: list[str], *operands: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    return st.builds(Operation, st.sampled_from(operators), st.tuples(*operands))


def constants(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Expression]:
    return st.builds(Constant, values)


def attributes(*names: str) -> st.SearchStrategy[Expression]:
    return st.builds(Attribute, st.sampled_from(names))


COMPARISONS = ["==", "!=", "<", "<=", ">", ">="]
integers = st.integers(-3, 3)
texts = st.text("aAbBäÄ😀%_*?[]\\\n", max_size=3)
patterns = st.lists(st.sampled_from(["%", "_", r"\%", r"\_", r"\\", *"aAbäÄ*?[]\n😀"]), max_size=4).map("".join)

numeric = st.recursive(
    attributes("x", "y"),
    lambda inner: (
        operation(["+", "-", "*"], inner, inner | constants(integers))
        | operation(["+", "-", "*"], constants(integers), inner)
    ),
    max_leaves=4,
)
textual = st.recursive(
    attributes("text"), lambda inner: operation(["+"], inner, inner | constants(texts)), max_leaves=3
)


def options(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Expression]:
    return constants(st.lists(values | st.none(), max_size=3).map(tuple))


criteria = st.recursive(
    operation(COMPARISONS, numeric, numeric | constants(integers))
    | operation(COMPARISONS, textual, textual | constants(texts))
    | operation(["==", "!="], attributes("flag"), attributes("flag") | constants(st.booleans()))
    | operation(["in"], numeric, options(integers))
    | operation(["in"], textual, options(texts))
    | operation(["like"], textual | attributes("label"), constants(patterns))
    | operation(["is null"], numeric | textual | attributes("flag"))
    | operation(["truth"], attributes("flag")),
    lambda inner: operation(["and", "or"], inner, inner) | operation(["not"], inner),
    max_leaves=5,
)


@given(expression=criteria)
@settings(deadline=None, max_examples=100)
def test_one_meaning(connection: Connection, expression: Expression) -> None:
    """A criterion is true, false or NULL for the same rows in every database and in Python."""
    assert [evaluate(expression, sample) for sample in SAMPLES] == answers(connection, expression)


@given(expression=criteria)
@settings(deadline=None, max_examples=50)
def test_where(connection: Connection, expression: Expression) -> None:
    """WHERE keeps the rows for which a criterion is true, and no others."""
    criterion = compile_criterion(expression, Sample, connection.dialect.name)
    found = connection.execute(select(samples.c.id).where(criterion).order_by(samples.c.id)).scalars().all()

    assert [sample.id for sample in SAMPLES if evaluate(expression, sample) is True] == found


@given(keys=st.lists(st.tuples(numeric | textual | attributes("flag"), st.booleans()), max_size=3))
@settings(deadline=None, max_examples=50)
def test_one_order(connection: Connection, keys: list[tuple[Expression, bool]]) -> None:
    """Rows come in the same order from every database and from Python, NULL as the smallest value."""
    orders = [*(Order(expression, descending) for expression, descending in keys), Order(Attribute("id"))]
    found = connection.execute(
        select(samples.c.id).order_by(*compile_order(orders, Sample, connection.dialect.name))
    ).scalars()

    assert [sample.id for sample in ordered(SAMPLES, orders)] == list(found)


# ------------------------------------------------------------------------------------------------------- single rules


def traced(specification: Spec) -> Expression:
    return trace(specification, Sample, NAMES)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", {"a"}),
        ("A%", {"A"}),
        ("Ä", {"Ä"}),
        ("a%", {"a", "aB", "a\nb"}),
        ("a_b", {"a\nb"}),
        (r"\%", {"%"}),
        (r"\_", {"_"}),
        (r"\\", {"\\"}),
        ("*?[_]", {"*?[a]"}),
        ("%?[%", {"*?[a]"}),
        (r"\a\B", {"aB"}),
    ],
)
def test_like(connection: Connection, pattern: str, expected: set[str]) -> None:
    """Upper and lower case differ whatever the column's collation, and no wildcard but ``%`` and ``_`` leaks in."""
    criterion = compile_criterion(traced(lambda a: like(a.label, pattern)), Sample, connection.dialect.name)

    assert expected == set(connection.execute(select(samples.c.label).where(criterion)).scalars())


def test_statement_cache(connection: Connection) -> None:
    """Constants are bind parameters: another value is the same statement."""

    def statements(make: Callable[[Any], Spec], *values: Any) -> int:
        cache: dict[Any, Any] = {}
        for value in values:
            criterion = compile_criterion(traced(make(value)), Sample, connection.dialect.name)
            connection.execute(select(samples.c.id).where(criterion), execution_options={"compiled_cache": cache}).all()
        return len(cache)

    assert 1 == statements(lambda value: lambda a: a.x + value < 2 * value, 1, 2)
    assert 1 == statements(lambda value: lambda a: is_in(a.text, value), ["a"], ["b", "c"], [])
    assert 1 == statements(lambda value: lambda a: like(a.text, value), "a%", "_*")
    assert 1 == statements(lambda value: lambda a: a.flag == value, True, False)


class Base(DeclarativeBase):
    """A declarative base."""


class Declared(Base):
    """A declarative class, one of whose attributes has another name than its column."""

    __tablename__ = "declared"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column("owner_name")
    balance: Mapped[int | None]


DECLARED = ("id", "owner", "balance")


def sql(specification: Spec, dialect: str = "sqlite") -> str:
    return str(compile_criterion(trace(specification, Declared, DECLARED), Declared, dialect))


def order_sql(order_by: Spec, dialect: str) -> list[str]:
    return [str(key) for key in compile_order(trace_order(order_by, Declared, DECLARED), Declared, dialect)]


def test_declarative_classes() -> None:
    """Declarative classes are compiled by their attributes, not by their columns' names."""
    assert "declared.owner_name = :owner_name_1" == sql(lambda a: a.owner == "Ann")
    assert "declared.owner_name GLOB :param_1" == sql(lambda a: like(a.owner, "A%"))
    assert (
        "NOT (declared.owner_name LIKE :param_1 ESCAPE '\\' "
        "AND declared.owner_name LIKE (:param_1 COLLATE utf8mb4_bin) ESCAPE '\\')"
    ) == sql(lambda a: not_(like(a.owner, "A%")), "mariadb")
    assert "declared.owner_name LIKE :param_1 ESCAPE '\\'" == sql(lambda a: like(a.owner, "A%"), "postgresql")
    assert "declared.balance IS NULL" == sql(lambda a: is_null(a.balance))


def test_null_order_is_said_only_where_needed() -> None:
    """PostgreSQL is told where NULL goes, if there can be one; the others know."""

    def keys(a: Any) -> object:
        return a.id, desc(a.owner), a.balance, desc(a.balance), asc(a.id - a.balance), a.id + 1

    assert [
        "declared.id ASC",
        "declared.owner_name DESC",
        "declared.balance ASC NULLS FIRST",
        "declared.balance DESC NULLS LAST",
        "declared.id - declared.balance ASC NULLS FIRST",
        "declared.id + :id_1 ASC",
    ] == order_sql(keys, "postgresql")
    assert not any("NULLS" in key for dialect in ("sqlite", "mariadb", "mysql") for key in order_sql(keys, dialect))


def test_truth_of_a_number() -> None:
    """A column that is no Boolean is no criterion, although some databases would take it for one."""
    with pytest.raises(SpecificationError) as caught:
        sql(lambda a: a.balance)

    assert (
        "Cannot read the specification: `balance` is a column of type INTEGER, and no criterion. "
        "Compare it, as in a.x != 0."
    ) == str(caught.value)
