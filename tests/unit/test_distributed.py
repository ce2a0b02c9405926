"""
Several units that commit as one: both or none, on every pair of databases and on both faces.

A test is synchronous text. For a pair of asynchronous drivers it runs in an event loop, as the contract suite does.
"""

import asyncio
import functools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from attrs import frozen
from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Engine,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import registry, sessionmaker

from uow import (
    Aggregate,
    AsyncRepository,
    AsyncUnitOfWork,
    Event,
    Finished,
    Handlers,
    Repository,
    Retry,
    State,
    UnitOfWork,
    _group,
    _points,
    current,
    distributed,
    entity,
)
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeResource, FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlAlchemyUnitOfWork, SqlResource, uow_metadata
from uow.errors import (
    AfterCommitFailed,
    AlreadyDone,
    CheckViolation,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    DatabaseError,
    EventCycle,
    ForeignKeyViolation,
    IntegrityViolation,
    InvalidArgument,
    LockTimeout,
    NestedScopeOpen,
    OutsideUnitOfWork,
    SerializationFailure,
    TransactionOwned,
    UniqueViolation,
    UnitOfWorkActive,
    UnitOfWorkEnded,
    UnitOfWorkRolledBack,
    WrongTask,
)
from uow.testing import FaultProxy, record_statements
from uow.testing._async import lift, lifted, wait
from uow.testing._databases import open_database

# ------------------------------------------------------------------------------------------------------------ the units


@frozen
class Grown(Event):
    name: str


@entity(key="name")
class Thing(Aggregate):
    name: str
    parent: str | None = None
    size: int = 0

    def grow(self) -> None:
        self.size += 1
        self.record(Grown(self.name))


_registry = registry()
things = Table(
    "things",
    _registry.metadata,
    Column("name", String(40), primary_key=True),
    Column("parent", String(40)),
    Column("size", Integer, nullable=False),
    CheckConstraint("size >= 0", name="no_less"),
    ForeignKeyConstraint(["parent"], ["things.name"], name="of_parent", deferrable=True, initially="DEFERRED").ddl_if(
        dialect=("postgresql", "sqlite")
    ),
)
_registry.map_imperatively(Thing, things)


class Bank(UnitOfWork):
    things: Repository[Thing]


class Stock(UnitOfWork):
    things: Repository[Thing]


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    things: AsyncRepository[Thing]


class AsyncStock(AsyncUnitOfWork):
    sync: Stock
    things: AsyncRepository[Thing]


class FakeBank(FakeUnitOfWork, Bank): ...


class FakeStock(FakeUnitOfWork, Stock): ...


class SqlBank(SqlAlchemyUnitOfWork, Bank): ...


class SqlStock(SqlAlchemyUnitOfWork, Stock): ...


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


class AsyncFakeStock(AsyncFakeUnitOfWork, AsyncStock): ...


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


class AsyncSqlStock(AsyncSqlAlchemyUnitOfWork, AsyncStock): ...


# ------------------------------------------------------------------------------------------------------------ the pairs

ASYNCHRONOUS = {"aiosqlite": "sqlite", "psycopg_async": "postgresql", "asyncpg": "postgresql", "aiomysql": "mysql"}
PAIRS = (
    "fake+fake",
    "fake+postgresql",
    "sqlite+postgresql",
    "postgresql+postgresql",
    "postgresql+mariadb",
    "mariadb+sqlite",
    "mariadb+mariadb",
)
ASYNC_PAIRS = (
    "async fake+fake",
    "async fake+asyncpg",
    "async aiosqlite+asyncpg",
    "async asyncpg+psycopg_async",
    "async psycopg_async+asyncpg",
    "async asyncpg+aiomysql",
    "async aiomysql+aiosqlite",
)
DOMAIN = f"t{os.getpid()}"
"""Of this worker: they share a MariaDB server, which lists the branches of all."""


class FakeSide:
    """A store, with what is in it."""

    driver = name = "fake"

    def __init__(self, resource: str) -> None:
        self.store = Store()
        self.store.check(Thing, lambda thing: thing.size >= 0, name="no_less")
        self.store.foreign_key(Thing, "parent", Thing, name="of_parent", deferred=True)
        self.resource = FakeResource(self.store, resource)

    def unit(self, role: str, *, asynchronous: bool, **options: Any) -> Any:
        kinds: dict[tuple[str, bool], Any] = {
            ("bank", False): FakeBank,
            ("stock", False): FakeStock,
            ("bank", True): AsyncFakeBank,
            ("stock", True): AsyncFakeStock,
        }
        return kinds[role, asynchronous](self.store, resource=self.resource.name, **options)

    def names(self) -> set[str]:
        with FakeBank(self.store) as bank:
            return {thing.name for thing in bank.things.list()}

    def prepared(self) -> list[str]:
        return [branch.id for branch in self.resource.prepared(DOMAIN)]

    def idle(self) -> bool:
        return self.store.idle()

    def killer(self, unit: Any) -> Callable[[], object]:
        return self.store.drop_connections

    async def dispose(self) -> None: ...

    def close(self) -> None: ...


class SqlSide:
    """A database, with what another connection sees in it."""

    engine: Any = None

    def __init__(self, url: URL, driver: str, resource: str) -> None:
        self.driver = driver
        self.url = url
        self.beside = create_engine(url)
        self.name = self.beside.dialect.name
        self.resource = SqlResource(self.beside, resource)
        for metadata in (_registry.metadata, uow_metadata):
            metadata.drop_all(self.beside)
            metadata.create_all(self.beside)

    def connect(self, *, asynchronous: bool) -> Any:
        if self.engine is None:
            if asynchronous:
                name = f"{ASYNCHRONOUS[self.driver]}+{self.driver}"
                self.engine = create_async_engine(self.url.set(drivername=name))
            else:
                self.engine = create_engine(self.url)
        return self.engine

    def unit(self, role: str, *, asynchronous: bool, **options: Any) -> Any:
        kinds: dict[tuple[str, bool], Any] = {
            ("bank", False): SqlBank,
            ("stock", False): SqlStock,
            ("bank", True): AsyncSqlBank,
            ("stock", True): AsyncSqlStock,
        }
        return kinds[role, asynchronous](
            self.connect(asynchronous=asynchronous), resource=self.resource.name, **options
        )

    def names(self) -> set[str]:
        with self.beside.connect() as connection:
            return set(connection.scalars(select(things.c.name)))

    def rows(self, table: str) -> int:
        with self.beside.connect() as connection:
            count: int = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            return count

    def prepared(self) -> list[str]:
        return [branch.id for branch in self.resource.prepared(DOMAIN)]

    def idle(self) -> bool:
        return bool(self.engine is None or self.engine.pool.checkedout() == 0)

    def killer(self, unit: Any) -> Callable[[], object]:
        """Return what ends the session of *unit* from another one."""
        number = {"postgresql": "pg_backend_pid()", "mysql": "connection_id()"}[self.name]
        session = unit.session.execute(text(f"SELECT {number}")).scalar_one()

        def kill() -> None:
            end = {"postgresql": f"SELECT pg_terminate_backend({session}, 5000)", "mysql": f"KILL {session}"}
            with self.beside.connect() as connection:
                connection.exec_driver_sql(end[self.name])

        return kill

    async def dispose(self) -> None:
        if self.engine is not None:
            await self.engine.dispose()

    def close(self) -> None:
        if isinstance(self.engine, Engine):
            self.engine.dispose()
        self.beside.dispose()


class Pair:
    """Two databases, and the units on them."""

    def __init__(self, name: str, sides: list[Any]) -> None:
        self.asynchronous = name.startswith("async")
        self.sides = sides
        self.bank_side, self.stock_side = sides

    def bank(self, **options: Any) -> Any:
        return self.bank_side.unit("bank", asynchronous=self.asynchronous, **options)

    def stock(self, **options: Any) -> Any:
        return self.stock_side.unit("stock", asynchronous=self.asynchronous, **options)

    def both(self, **options: Any) -> Any:
        """Return a group, made of units with those options."""
        return lift(distributed(self.bank(**options), self.stock(**options), domain=DOMAIN))

    def names(self) -> tuple[set[str], set[str]]:
        return self.bank_side.names(), self.stock_side.names()

    def is_clean(self) -> bool:
        return all(side.idle() and not side.prepared() for side in self.sides)

    def branch(self) -> Any:
        """Return the side that prepares."""
        return max(self.sides, key=lambda side: (side.resource.rank, side is self.stock_side))

    def last(self) -> Any:
        """Return the side that decides."""
        return next(side for side in self.sides if side is not self.branch())

    def unit_of(self, side: Any, units: tuple[Any, Any]) -> Any:
        return units[self.sides.index(side)]

    def run(self, call: Callable[[], object]) -> None:
        if not self.asynchronous:
            call()
            return

        async def main() -> None:
            try:
                await lifted(call)
            finally:
                for side in self.sides:
                    await side.dispose()

        asyncio.run(main())


def on_both_faces(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in an event loop if its pair is asynchronous."""

    @functools.wraps(test)
    def run(pair: Pair, **fixtures: Any) -> None:
        pair.run(lambda: test(pair, **fixtures))

    return run


@pytest.fixture(scope="module")
def another_postgresql_url() -> Iterator[URL]:
    """A second database on the same server."""
    with open_database("postgresql") as url:
        yield url


@pytest.fixture(scope="module")
def another_mariadb_url() -> Iterator[URL]:
    """A second database on the same server."""
    with open_database("mariadb") as url:
        yield url


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two empty databases."""
    name = getattr(request, "param", "postgresql+postgresql")
    with ExitStack() as stack:
        sides: list[Any] = []
        used: set[str] = set()
        for resource, driver in zip(("bank", "stock"), name.removeprefix("async ").split("+"), strict=True):
            if driver == "fake":
                sides.append(FakeSide(resource))
                continue
            database = ASYNCHRONOUS.get(driver, driver).replace("mysql", "mariadb")
            fixture = f"another_{database}_url" if database in used else f"{database}_url"
            used.add(database)
            sides.append(SqlSide(request.getfixturevalue(fixture), driver, resource))
            stack.callback(sides[-1].close)
        yield Pair(name, sides)


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pair", names, indirect=True)


everywhere = on(*PAIRS, *ASYNC_PAIRS)
with_fakes = on("fake+fake", "async fake+fake")
NEW = {"a"}, {"a"}
NONE: tuple[set[str], set[str]] = (set(), set())


@contextmanager
def at(point: str, do: Callable[[], object], *, seen: list[str] | None = None) -> Generator[None]:
    """Do something when a point of the protocol is reached, once."""
    waiting = [point]

    def listen(name: str) -> None:
        if seen is not None:
            seen.append(name)
        if name in waiting:
            waiting.remove(name)
            do()

    before, _points.listener = _points.listener, listen
    try:
        yield
    finally:
        _points.listener = before
    if seen is None:
        assert not waiting, f"{point} was never reached"


def add_to(bank: Any, stock: Any, name: str = "a") -> None:
    bank.things.add(Thing(name))
    stock.things.add(Thing(name))


# ------------------------------------------------------------------------------------------------------- both, or none


@everywhere
@on_both_faces
def test_both_are_kept(pair: Pair) -> None:
    """What a group committed is in both databases, nothing is prepared, and the connections are back."""
    both, ran = pair.both(), []
    with both as (bank, stock):
        add_to(bank, stock)
        for unit in (bank, stock):
            unit.after_commit(lambda: ran.append((pair.is_clean(), pair.names())))
        both.commit()

        assert both.state is bank.state is stock.state is State.COMMITTED

    assert pair.names() == NEW
    assert ran == [(True, NEW), (True, NEW)]
    assert pair.is_clean()


@everywhere
@on_both_faces
def test_an_exception_undoes_both(pair: Pair) -> None:
    """An exception that leaves the block rolls both units back, and the group can be entered again."""
    both = pair.both()
    with pytest.raises(KeyError), both as (bank, stock):
        add_to(bank, stock)
        bank.flush()
        stock.flush()
        raise KeyError

    assert both.state is State.ROLLED_BACK
    assert pair.names() == NONE
    assert pair.is_clean()

    with both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert pair.names() == NEW


@everywhere
@on_both_faces
def test_without_commit_nothing_is_kept(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A block that is left without commit() keeps nothing, and each unit warns of what it lost."""
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)

    assert pair.names() == NONE
    assert 2 == sum("was left without commit(): rolled back 1 added" in message for message in caplog.messages)
    assert pair.is_clean()


@everywhere
@on_both_faces
def test_rollback_undoes_both(pair: Pair) -> None:
    """The group's rollback() ends both units at once; nothing can be done in them afterwards."""
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)
        bank.flush()
        both.rollback()

        with pytest.raises(UnitOfWorkEnded):
            bank.things.list()
        with pytest.raises(UnitOfWorkEnded):
            both.commit()

    assert both.state is State.ROLLED_BACK
    assert pair.names() == NONE
    assert pair.is_clean()


@everywhere
@on_both_faces
def test_an_error_at_the_flush_of_one_undoes_both(pair: Pair) -> None:
    """What one database refuses when the group commits is raised, and nothing is kept in the other one."""
    for broken in (0, 1):
        both = pair.both()
        with pytest.raises(CheckViolation), both as units:
            add_to(*units)
            units[broken].things.add(Thing("b", size=-1))
            both.commit()

        assert both.state is State.ROLLED_BACK
        assert pair.names() == NONE
        assert pair.is_clean()


@on("fake+fake", "sqlite+postgresql", "postgresql+postgresql", "async fake+asyncpg", "async aiosqlite+asyncpg")
@on_both_faces
def test_what_is_refused_at_the_very_end_undoes_both(pair: Pair) -> None:
    """A deferred constraint that refuses the PREPARE of one, or the COMMIT of the other, leaves nothing in either."""
    for broken in (0, 1):
        both = pair.both()
        with pytest.raises(ForeignKeyViolation) as caught, both as units:
            add_to(*units)
            units[broken].things.add(Thing("b", parent="nobody"))
            both.commit()

        if broken == pair.sides.index(pair.branch()):
            cause = caught.value.__cause__
            assert not [note for error in (caught.value, cause) for note in getattr(error, "__notes__", ())]
        assert both.state is State.ROLLED_BACK
        assert pair.names() == NONE
        assert pair.is_clean()


PREPARING = (
    "postgresql+postgresql",
    "postgresql+mariadb",
    "async asyncpg+psycopg_async",
    "async psycopg_async+asyncpg",
    "async asyncpg+aiomysql",
)


def demand_sound(pair: Pair, caught: Any) -> None:
    """Demand that the failure said one thing, and that the branch's connection went back and serves the next group."""
    pool = pair.branch().engine.pool
    assert not getattr(caught.value, "__notes__", ())
    assert pair.names() == NONE
    assert pair.is_clean()
    assert pool.checkedin() == 1

    both = pair.both()
    with both as units:
        add_to(*units)
        both.commit()

    assert pair.names() == NEW
    assert pair.is_clean()
    assert pool.checkedin() == 1


@on(*PREPARING)
@on_both_faces
def test_a_witness_that_is_refused(pair: Pair) -> None:
    """What it met is raised although it travels with PREPARE, and nothing is prepared."""
    both, side = pair.both(), pair.branch()
    with pytest.raises(UniqueViolation) as caught, both as units:
        add_to(*units)
        pair.unit_of(side, units).flush()
        with side.beside.begin() as connection:
            connection.execute(insert(uow_metadata.tables["uow_branch"]).values(id=both.status().id, at=func.now()))
        both.commit()

    assert both.state is State.ROLLED_BACK
    demand_sound(pair, caught)


@on(*PREPARING)
@on_both_faces
def test_a_witness_without_its_table(pair: Pair) -> None:
    """The error says what to create, and nothing is prepared."""
    both, side = pair.both(), pair.branch()
    table = uow_metadata.tables["uow_branch"]
    with pytest.raises(ConfigurationError, match=r"uow_metadata\.create_all\(engine\)") as caught, both as units:
        add_to(*units)
        with at(f"prepare:{side.resource.name}", lambda: table.drop(side.beside)):
            both.commit()
    table.create(side.beside)

    assert both.state is State.ROLLED_BACK
    demand_sound(pair, caught)


@on("postgresql+postgresql", "async psycopg_async+asyncpg")
@on_both_faces
def test_a_table_of_the_user_that_is_missing_at_the_end(pair: Pair) -> None:
    """A trigger that runs with PREPARE may miss a table, which is none of ours to be created."""
    both, side = pair.both(), pair.branch()
    with side.beside.begin() as connection:
        connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM * FROM nowhere; RETURN NULL; END'"
        )
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION look()"
        )
    with pytest.raises(DatabaseError, match="nowhere") as caught, both as units:
        add_to(*units)
        both.commit()
    with side.beside.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION look CASCADE")

    assert caught.value.code == "42P01"
    demand_sound(pair, caught)


@on("postgresql+postgresql", "async asyncpg+psycopg_async", "async psycopg_async+asyncpg")
@on_both_faces
def test_a_branch_without_a_pipeline(pair: Pair) -> None:
    """Witness and PREPARE are one text then, with what waits before them, and an error of either is told."""
    make, side = pair.stock_side.connect, pair.stock_side
    side.engine = make(asynchronous=pair.asynchronous).execution_options(uow_pipeline=False)
    both = pair.both()
    with pytest.raises(UniqueViolation) as caught, both as units:
        add_to(*units)
        units[1].flush()
        with side.beside.begin() as connection:
            connection.execute(insert(uow_metadata.tables["uow_branch"]).values(id=both.status().id, at=func.now()))
        both.commit()
    demand_sound(pair, caught)
    before = side.rows("uow_branch")

    with pytest.raises(ForeignKeyViolation), both as units:
        add_to(*units, "b")
        units[1].things.add(Thing("c", parent="nobody"))
        both.commit()

    assert pair.names() == NEW

    with both as units:
        with both.nested():
            add_to(*units, "b")
        with suppress(ZeroDivisionError), both.nested():
            add_to(*units, "c")
            units[1].flush()
            raise ZeroDivisionError
        with both.nested():
            add_to(*units, "d")
        with suppress(ZeroDivisionError), both.nested():
            add_to(*units, "e")
            units[1].flush()
            raise ZeroDivisionError
        both.commit()

    assert pair.names() == ({"a", "b", "d"}, {"a", "b", "d"})
    assert pair.is_clean()
    assert side.rows("uow_branch") == before + 1


@everywhere
@on_both_faces
def test_a_swallowed_error_is_never_half_committed(pair: Pair) -> None:
    """An error that was swallowed in one unit makes the group's commit() roll both back, and raise."""
    for broken in (0, 1):
        both = pair.both()
        with pytest.raises(UnitOfWorkRolledBack, match="and the error was swallowed"), both as units:
            add_to(*units)
            with suppress(IntegrityViolation):
                units[broken].things.add(Thing("b", size=-1))
                units[broken].flush()
            both.commit()

        assert pair.names() == NONE
        assert pair.is_clean()


@on("postgresql+postgresql", "sqlite+postgresql")
@on_both_faces
def test_an_error_past_the_session_is_never_half_committed(pair: Pair) -> None:
    """A statement that failed on the driver's own cursor, unseen, is found before anything is prepared."""
    both = pair.both()
    with pytest.raises(DatabaseError, match="aborted the transaction"), both as (bank, stock):
        add_to(bank, stock)
        stock.flush()
        cursor = stock.session.connection().connection.cursor()
        with suppress(Exception):
            cursor.execute("SELECT 1/0")
        both.commit()

    assert pair.names() == NONE
    assert pair.is_clean()


@on("mariadb+sqlite", "async aiomysql+aiosqlite")
@on_both_faces
def test_a_statement_cannot_end_a_branch(pair: Pair) -> None:
    """MariaDB refuses in a branch what would end the transaction, such as COMMIT and CREATE TABLE."""
    both = pair.both()
    for statement in ("COMMIT", "CREATE TABLE nothing (a int)"):
        with pytest.raises(DatabaseError, match="XAER_RMFAIL"), both as (bank, stock):
            add_to(bank, stock)
            bank.session.execute(text(statement))

    assert pair.names() == NONE
    assert pair.is_clean()


@on("postgresql+postgresql", "async asyncpg+psycopg_async")
@on_both_faces
def test_a_statement_that_ends_the_transaction_is_found(pair: Pair) -> None:
    """One unit whose transaction was ended by a statement is in doubt, and the other one is rolled back."""
    both = pair.both()
    with pytest.raises(CommitOutcomeUnknown), both as (bank, stock):
        add_to(bank, stock)
        bank.flush()
        bank.session.execute(text("COMMIT"))
        both.commit()

    assert both.state is bank.state is State.IN_DOUBT
    assert stock.state is State.ROLLED_BACK
    assert pair.names() == ({"a"}, set())
    assert pair.is_clean()


# ------------------------------------------------------------------------------------------------------ what interrupts

POINTS = ("prepare:", "prepared:", "decide", "deciding", "decided", "finish:", "finished:", "done")


def points_of(pair: Pair) -> list[str]:
    branch = pair.branch().resource.name
    return [f"{point}{branch}" if point.endswith(":") else point for point in POINTS]


@everywhere
@on_both_faces
def test_the_points_are_reached_in_order(pair: Pair) -> None:
    """A crash test can enumerate the steps."""
    seen: list[str] = []
    both = pair.both()
    with at("", lambda: None, seen=seen), both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert points_of(pair) == seen


@everywhere
@on_both_faces
def test_an_interrupt_at_any_point_leaves_both_or_none(pair: Pair) -> None:
    """An interrupt before the decision undoes both, and after it both are finished; `state` says which."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    points = points_of(pair)
    for number, point in enumerate(points):
        both, name = pair.both(), f"at {point}"
        with at(point, interrupt), pytest.raises(KeyboardInterrupt), both as (bank, stock):
            add_to(bank, stock, name)
            both.commit()

        kept = number >= points.index("decided")

        assert both.state is (State.COMMITTED if kept else State.ROLLED_BACK), point
        assert (name in pair.names()[0]) is (name in pair.names()[1]) is kept, point
        assert pair.is_clean(), point


@on(*PAIRS[1:], *ASYNC_PAIRS[1:])
@on_both_faces
def test_a_lost_connection_before_the_decision_undoes_both(pair: Pair) -> None:
    """A database that goes away before the decision undoes both; the error may be retried."""
    for side, before in ((pair.branch(), "prepare:"), (pair.branch(), "prepared:"), (pair.last(), "decide")):
        if side.name == "sqlite":
            continue
        point = f"{before}{side.resource.name}" if before.endswith(":") else before
        both = pair.both()
        if before == "prepared:":  # the branch is lost from sight, and cannot be told that all is undone
            kill_last = pair.last()
            if kill_last.name == "sqlite":
                continue
            with pytest.raises(ConnectionLost) as caught, both as units:
                add_to(*units)
                kill = kill_last.killer(pair.unit_of(kill_last, units))
                with at(point, kill):
                    both.commit()
        else:
            with pytest.raises(ConnectionLost) as caught, both as units:
                add_to(*units)
                kill = side.killer(pair.unit_of(side, units))
                with at(point, kill):
                    both.commit()

        assert caught.value.transient
        assert both.state is State.ROLLED_BACK
        assert pair.names() == NONE
        assert pair.is_clean()


@everywhere
@on_both_faces
def test_a_lost_connection_after_the_decision_is_no_error(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A branch that cannot be told the decision stays prepared; all is committed, and the log says what is left."""
    both, side, ran = pair.both(), pair.branch(), []
    with both as units:
        add_to(*units)
        units[0].after_commit(lambda: ran.append("after"))
        kill = side.killer(pair.unit_of(side, units))
        with at("decided", kill):
            both.commit()

    assert both.state is State.COMMITTED
    assert ran == ["after"]
    assert f"its branch in {side.resource.name} is still pending; recovery ends it" in caplog.text
    assert pair.last().names() == {"a"}

    (id,) = side.prepared()
    while side.resource.finish(id, commit=True) is Finished.OWNED:
        side.resource.disown(id)

    assert pair.names() == NEW
    assert pair.is_clean()


@on(*(name for name in (*PAIRS, *ASYNC_PAIRS) if "sqlite" not in name))  # it has one writer at a time
@on_both_faces
def test_recovery_may_be_faster(pair: Pair) -> None:
    """Where somebody asked what became of the transaction before it was decided, it is undone, and may be retried."""
    both = pair.both()
    with pytest.raises(SerializationFailure) as caught, both as (bank, stock):
        add_to(bank, stock)
        id = both.status().id
        with at("decide", lambda: pair.last().resource.settle(id, 5)):
            both.commit()

    assert caught.value.transient
    assert pair.names() == NONE
    assert pair.is_clean()
    assert both.resolve(id) is State.ROLLED_BACK


@everywhere
@on_both_faces
def test_a_decision_that_comes_too_late_is_none(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the deadline nothing is decided any more: recovery may have forgotten that it aborted the transaction."""
    monkeypatch.setattr(_group, "WINDOW", -1.0)
    both = pair.both()
    with pytest.raises(SerializationFailure, match="so long") as caught, both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert caught.value.transient
    assert pair.names() == NONE
    assert pair.is_clean()


# --------------------------------------------------------------------------------------------- what is not answered


@with_fakes
@on_both_faces
def test_a_commit_that_was_cut_off_is_asked_about(pair: Pair) -> None:
    """Where the answer to the decision is lost, the deciding database is asked, and the branch is told what it says."""
    for kept in (True, False):
        both, name = pair.both(), f"kept {kept}"
        pair.last().store.fail_next("commit", ConnectionLost, kept=kept)
        with suppress(ConnectionLost), both as (bank, stock):
            add_to(bank, stock, name)
            both.commit()

        assert both.state is (State.COMMITTED if kept else State.ROLLED_BACK)
        assert [name in names for names in pair.names()] == [kept, kept]
        assert pair.is_clean()


@on("fake+fake", "async fake+fake")
@on_both_faces
def test_a_group_in_doubt(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the deciding database does not answer, the group is in doubt, the branch stays, and resolve() tells."""
    both = pair.both()
    pair.last().store.fail_next("commit", CommitOutcomeUnknown)
    with pytest.raises(CommitOutcomeUnknown, match=r"Bank and .*Stock was committed") as caught, both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert both.state is bank.state is stock.state is State.IN_DOUBT
    assert [caught.value.token] == pair.branch().prepared()
    assert both.resolve(caught.value.token) is State.ROLLED_BACK

    pair.branch().resource.finish(caught.value.token, commit=False)

    assert pair.names() == NONE
    assert pair.is_clean()


@everywhere
@on_both_faces
def test_an_interrupt_that_nobody_can_resolve(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the decision, with a database that does not tell, the group is in doubt; nothing is undone."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    def silent(*_: object) -> State:
        raise CommitOutcomeUnknown("the group", "it does not tell")

    monkeypatch.setattr(_group, "resolve", silent)
    both = pair.both()
    with at("decided", interrupt), pytest.raises(KeyboardInterrupt), both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert both.state is State.IN_DOUBT
    assert pair.last().names() == {"a"}

    (id,) = pair.branch().prepared()
    while pair.branch().resource.finish(id, commit=True) is Finished.OWNED:
        pair.branch().resource.disown(id)

    assert pair.names() == NEW
    assert pair.is_clean()


@with_fakes
@on_both_faces
def test_a_prepare_that_was_not_answered_is_rolled_back(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A branch that may be prepared is rolled back from outside; one that cannot be reached is left to recovery."""
    both, store = pair.both(), pair.branch().store
    store.fail_next("prepare", ConnectionLost, kept=True)
    with pytest.raises(ConnectionLost), both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert pair.names() == NONE
    assert pair.is_clean()
    assert not caplog.messages


@with_fakes
@on_both_faces
def test_a_branch_that_cannot_be_reached_is_left_to_recovery(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared without an answer, and cannot be rolled back from outside either, is logged."""

    def unreachable(*_: object, **__: object) -> Finished:
        raise ConnectionLost("nobody there")

    both = pair.both()
    pair.branch().store.fail_next("prepare", ConnectionLost, kept=True)
    with monkeypatch.context() as patch:
        patch.setattr(FakeResource, "finish", unreachable)
        with pytest.raises(ConnectionLost), both as (bank, stock):
            add_to(bank, stock)
            both.commit()

    assert "was rolled back, but its branch in stock may still be prepared; recovery ends it" in caplog.text
    assert len(pair.branch().prepared()) == 1


# ------------------------------------------------------------------------------------------------------ nested scopes


@everywhere
@on_both_faces
def test_nested_scopes_are_kept_or_undone_in_both(pair: Pair) -> None:
    """A nested group is kept when its block ends, and undone in both when an exception leaves it."""
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)
        with both.nested("kept") as units:
            add_to(*units, "nested")
            with both.nested() as deeper:
                add_to(*deeper, "deeper")
        for broken in (0, 1):
            with pytest.raises(CheckViolation), both.nested() as units:
                add_to(*units, "undone")
                units[broken].things.add(Thing("b", size=-1))
        with pytest.raises(KeyError), both.nested() as units:
            add_to(*units, "undone")
            raise KeyError
        with both.nested() as units:
            add_to(*units, "early")
            units_state = units[0].state
        with bank.nested():
            bank.things.add(Thing("alone"))
        both.commit()

    assert units_state is State.ACTIVE
    assert pair.names() == ({"a", "nested", "deeper", "early", "alone"}, {"a", "nested", "deeper", "early"})
    assert pair.is_clean()


@everywhere
@on_both_faces
def test_nested_scopes_end_early(pair: Pair) -> None:
    """commit() and rollback() of a nested group end its scopes before its block does."""
    both = pair.both()
    with both as (_bank, _stock):
        with both.nested() as units:
            add_to(*units)
            nested = both.nested()
            with nested as deeper:
                add_to(*deeper, "undone")
                nested.rollback()

                assert nested.state is State.ROLLED_BACK

            early = both.nested()
            with early as deeper:
                add_to(*deeper, "early")
                early.commit()

                assert early.state is State.RELEASED

                with pytest.raises(UnitOfWorkEnded):
                    deeper[0].things.list()
        both.commit()

    assert pair.names() == ({"a", "early"}, {"a", "early"})


@on("fake+fake", "sqlite+postgresql", "async fake+fake", "async asyncpg+aiomysql")
@on_both_faces
def test_what_is_open_inside_cannot_be_ended(pair: Pair) -> None:
    """The group is not committed while a nested scope of one unit is open, and a block left so is undone in both."""
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)
        with stock.nested(), pytest.raises(NestedScopeOpen):
            both.commit()
        both.commit()

    assert pair.names() == NEW

    for position in (0, 1):
        with both as (bank, stock):
            nested = both.nested()
            units = nested.__enter__()
            add_to(*units, "b")
            left_open = units[position].nested()
            left_open.__enter__()
            with pytest.raises(NestedScopeOpen):
                nested.__exit__(None, None, None)

            assert nested.state is State.ROLLED_BACK

            both.commit()

    assert pair.names() == NEW
    assert pair.is_clean()


@with_fakes
@on_both_faces
def test_a_release_that_fails_in_one_dooms_both(pair: Pair) -> None:
    """Where one unit has kept a nested scope that the other one lost, nothing of the group can be kept."""
    both = pair.both()
    pair.stock_side.store.fail_next("release", DatabaseError("no"))
    with pytest.raises(UnitOfWorkRolledBack), both as (_bank, _stock):
        with pytest.raises(DatabaseError, match="no"), both.nested() as units:
            add_to(*units)

        assert both.state is State.DOOMED

        both.commit()

    assert pair.names() == NONE
    assert pair.is_clean()


# ----------------------------------------------------------------------------------------------------- hooks and events


@everywhere
@on_both_faces
def test_handlers_of_one_work_in_the_other(pair: Pair) -> None:
    """What a handler or hook of one unit does in the other one is committed too, with the events it causes."""
    handlers, ran = Handlers(), []

    @handlers.before_commit(Grown)
    def pass_on(grown: Grown, unit: Any) -> None:
        if grown.name == "a":
            stock = current(Stock)
            stock.record(Grown(f"{stock.things.get('a').name}2"))

    @handlers.after_commit(Grown)
    def publish(grown: Grown) -> None:
        ran.append(grown.name)

    both = pair.both(handlers=handlers)
    with both as (bank, stock):
        add_to(bank, stock)
        bank.record(Grown("a"))
        stock.before_commit(lambda: bank.things.add(Thing("from stock")))
        bank.after_commit(lambda: ran.append("hook"))
        both.commit()

    assert pair.names() == ({"a", "from stock"}, {"a"})
    assert ran == ["hook", "a", "a2"]


@with_fakes
@on_both_faces
def test_a_cycle_of_events_between_units(pair: Pair) -> None:
    """Handlers of two units that cause each other's events for ever are an error, and nothing is kept."""
    handlers, units = Handlers(), []

    @handlers.before_commit(Grown)
    def again(grown: Grown, unit: Any) -> None:
        other = units[0] if grown.name == "stock" else units[1]
        other.record(Grown("bank" if grown.name == "stock" else "stock"))

    both = pair.both(handlers=handlers)
    with pytest.raises(EventCycle, match=r"Bank and .*Stock"), both as (bank, stock):
        units += [bank, stock]
        add_to(bank, stock)
        bank.record(Grown("bank"))
        both.commit()

    assert both.state is State.ROLLED_BACK
    assert pair.names() == NONE


@everywhere
@on_both_faces
def test_a_hook_that_fails_stops_both_or_is_reported(pair: Pair) -> None:
    """A before_commit hook that raises undoes both; an after_commit hook cannot any more, and all others still run."""
    both, ran = pair.both(), []

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), both as (bank, stock):
        add_to(bank, stock)
        stock.before_commit(fail)
        bank.after_rollback(lambda: ran.append("undone"))
        both.commit()

    assert ran == ["undone"]
    assert pair.names() == NONE

    with pytest.raises(AfterCommitFailed), both as (bank, stock):
        add_to(bank, stock)
        bank.after_commit(fail)
        stock.after_commit(lambda: ran.append("after"))
        both.commit()

    assert ran == ["undone", "after"]
    assert both.state is State.COMMITTED
    assert pair.names() == NEW
    assert pair.is_clean()


# -------------------------------------------------------------------------------------------------- no more than needed


@everywhere
@on_both_faces
def test_one_that_wrote_is_committed_plainly(pair: Pair) -> None:
    """Where one database was written to, or none, nothing is prepared; what was only read is ended first."""
    for writer in (0, 1, None):
        both, seen = pair.both(), []
        with at("", lambda: None, seen=seen), both as units:
            for unit in units:
                unit.things.list()
            if writer is not None:
                units[writer].things.add(Thing("a"))
            both.commit()

        assert seen == ["done"]
        assert both.state is State.COMMITTED
        assert pair.is_clean()

    assert pair.names() == NEW


@on("postgresql+postgresql", "async asyncpg+psycopg_async", "mariadb+mariadb")
@on_both_faces
def test_what_writes_unseen_counts_as_written(pair: Pair) -> None:
    """Raw statements count as written, and on PostgreSQL a SELECT that writes does."""
    both, seen = pair.both(), []
    with at("", lambda: None, seen=seen), both as (bank, stock):
        bank.things.add(Thing("a"))
        written = insert(things).values(name="raw", size=0).returning(things.c.name)
        if pair.stock_side.name == "postgresql":
            stock.session.execute(select(written.cte()))
        else:
            stock.session.execute(text("INSERT INTO things (name, size) VALUES ('raw', 0) RETURNING name")).all()
        both.commit()

    assert "prepared:stock" in seen
    assert pair.names() == ({"a"}, {"raw"})
    assert pair.is_clean()


@on(
    "postgresql+postgresql",
    "async asyncpg+psycopg_async",
    "async psycopg_async+asyncpg",
    "mariadb+mariadb",
    "async asyncpg+aiomysql",
)
@on_both_faces
def test_the_statements_of_a_commit(pair: Pair) -> None:
    """Who listens to statements hears the work, the outcome row and both commits; PREPARE has its witness row along."""
    both = pair.both()
    with both as (bank, stock):  # the first asks the clock
        add_to(bank, stock, "first")
        both.commit()
    decides, prepares = pair.last().engine, pair.branch().engine
    with record_statements(decides) as decided, record_statements(prepares) as prepared, both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert [statement.split("(")[0].strip() for statement in decided] == [
        "INSERT INTO things",
        "INSERT INTO uow_outcome",
        "COMMIT",
    ]
    assert [statement.split("(")[0].strip() for statement in prepared] == ["INSERT INTO things", "COMMIT"]


TRIPS = {
    "postgresql+postgresql": ((1, 2, 0), (1, 2, 0)),
    "postgresql+mariadb": ((1, 2, 0), (2, 2, 0)),
    "mariadb+mariadb": ((1, 2, 0), (2, 2, 0)),
    "async asyncpg+psycopg_async": ((2, 2, 0), (1, 2, 0)),
    "async psycopg_async+asyncpg": ((1, 2, 0), (2, 2, 0)),
    "async asyncpg+aiomysql": ((2, 2, 0), (2, 2, 0)),
}
"""What each database is asked until its row is written, in the commit, and when the connection goes back."""


@on(*TRIPS)
@on_both_faces
def test_the_round_trips_of_a_commit(pair: Pair, request: pytest.FixtureRequest) -> None:
    """One database is sent an outcome row and COMMIT, and the other one PREPARE with its witness, and its end."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy.to(side.url)) for side in pair.sides]
        for side, proxy in zip(pair.sides, proxies, strict=True):
            side.url = proxy.url(side.url)
        both = pair.both()
        told: list[list[int]] = []

        def look() -> None:
            told.append([proxy.round_trips for proxy in proxies])

        for number in range(8):  # until the drivers have prepared what they prepare
            told.clear()
            look()
            with both as units:
                add_to(*units, f"{number}")
                for unit in units:
                    unit.flush()
                with at(f"finished:{pair.branch().resource.name}", look):
                    look()
                    both.commit()
            look()
        for side in pair.sides:
            if pair.asynchronous:
                wait(side.dispose())
            side.close()

    counts = [tuple(after - before for before, after in pairwise(counts)) for counts in zip(*told, strict=True)]
    assert TRIPS[request.node.callspec.params["pair"]] == tuple(counts)


@on("postgresql+postgresql", "postgresql+mariadb", "mariadb+sqlite", "fake+fake", "async asyncpg+aiomysql")
@on_both_faces
def test_what_nobody_needs_is_forgotten(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all branches are committed, outcome and witness rows are removed, so many at a time."""
    monkeypatch.setattr(_group, "_BATCH", 3)
    both = pair.both()
    for name in "abc":
        with both as (bank, stock):
            add_to(bank, stock, name)
            both.commit()
    branch, last = pair.branch(), pair.last()
    if isinstance(branch, FakeSide):
        left = len(branch.store.witnesses), len(last.store.outcomes.decisions)
    else:
        left = branch.rows("uow_branch"), last.rows("uow_outcome")

    assert left == (0, 0)


@on("postgresql+postgresql")
@on_both_faces
def test_what_cannot_be_forgotten_is_left(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that could not be removed are no error."""
    monkeypatch.setattr(_group, "_BATCH", 1)
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)
        with at("finished:stock", lambda: uow_metadata.drop_all(pair.bank_side.beside)):
            both.commit()

    assert both.state is State.COMMITTED
    assert "Rows of uow_outcome and uow_branch were left, to be removed later" in caplog.text


# ------------------------------------------------------------------------------------------------------- wrong use


@everywhere
@on_both_faces
def test_a_unit_of_a_group_does_not_end_alone(pair: Pair) -> None:
    """commit() and rollback() of one unit are refused, and name the group's."""
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)
        for verb in ("commit", "rollback"):
            with pytest.raises(TransactionOwned, match=rf"ends together .* Call {verb}\(\) of the group"):
                getattr(stock, verb)()
        with both.nested() as units, pytest.raises(TransactionOwned):
            units[0].commit()
        both.commit()

    assert pair.names() == NEW


@with_fakes
@on_both_faces
def test_a_group_follows_the_rules_of_units(pair: Pair) -> None:
    """It is entered once at a time, used inside its block, and ends once."""
    both = pair.both()

    assert both.state is State.NEW
    assert repr(both).endswith("Stock: new>")

    for use in (both.commit, both.rollback, both.status, both.nested):
        with pytest.raises(OutsideUnitOfWork):
            use()
    with both as (bank, stock):
        add_to(bank, stock)
        with pytest.raises(UnitOfWorkActive, match="nested"), both:
            pass
        with pytest.raises(UnitOfWorkActive), pair.both() as _, both:
            pass
        both.commit()
        with pytest.raises(UnitOfWorkEnded):
            both.commit()
    status = both.status()

    assert (status.state, status.last_agent) == (State.COMMITTED, "bank")
    assert [unit.written.added for unit in status.units] == [1, 1]
    for token in ("nonsense", status.id.replace(".bank.", ".other.")):
        with pytest.raises(InvalidArgument, match="no transaction that one of bank, stock has decided"):
            both.resolve(token)


def test_a_second_unit_that_cannot_be_entered() -> None:
    """If one unit cannot be entered, the one before it is left clean."""
    bank, stock = FakeBank(), FakeStock()
    both = distributed(bank, stock)
    with stock:
        with pytest.raises(UnitOfWorkActive), both:
            pass

        assert bank.state is State.ROLLED_BACK
        assert bank.store.idle()

    with both:
        both.commit()


def test_another_thread_cannot_leave_the_block() -> None:
    """A group belongs to the thread that entered it."""
    both = distributed(FakeBank(), FakeStock())
    with both:
        with pytest.raises(WrongTask, match="group of its own"):
            asyncio.run(asyncio.to_thread(both.__exit__, None, None, None))
        both.commit()


def test_strict_units_make_the_loss_an_error() -> None:
    """In a group of strict units a block that is left with work and without commit() is an error; both are undone."""
    bank, stock = FakeBank(strict=True), FakeStock(strict=True)
    with pytest.raises(UnitOfWorkRolledBack, match="without commit"), distributed(bank, stock):
        add_to(bank, stock)

    assert bank.state is stock.state is State.ROLLED_BACK


@on("fake+fake")
@on_both_faces
def test_a_transient_failure_is_retried(pair: Pair) -> None:
    """attempts() and run() do the whole group again after a transient failure, and are refused inside another unit."""
    both, tries = pair.both(), []
    pair.branch().store.fail_next("prepare", SerializationFailure)
    for attempt in both.attempts(Retry(wait_initial=0, wait_jitter=0)):
        with attempt as (bank, stock):
            tries.append(1)
            add_to(bank, stock)
            both.commit()

    assert len(tries) == 2
    assert pair.names() == NEW

    with both, pytest.raises(UnitOfWorkActive, match="Retry the outermost unit"):
        list(pair.both().attempts())


def test_work_is_run_as_a_whole() -> None:
    """run() enters, calls and commits, on both faces."""
    bank, stock = FakeBank(), FakeStock()

    def work(name: str) -> str:
        add_to(bank, stock, name)
        return name

    assert distributed(bank, stock).run(work, "a") == "a"

    async def main() -> None:
        awaited_bank, awaited_stock = AsyncFakeBank(bank.store), AsyncFakeStock(stock.store)

        async def wait(name: str) -> str:
            await asyncio.sleep(0)
            add_to(awaited_bank, awaited_stock, name)
            return name

        assert await distributed(awaited_bank, awaited_stock).run(wait, "b") == "b"

    asyncio.run(main())
    with bank:
        assert {"a", "b"} == {thing.name for thing in bank.things.list()}


# ------------------------------------------------------------------------------------------ what cannot be in a group


def test_what_cannot_be_a_group(sqlite_url: URL) -> None:
    """A group that cannot work is refused when it is made, with what to change."""
    bank, stock = FakeBank(), FakeStock()
    sql = SqlBank(create_engine(sqlite_url), resource="bank")
    with pytest.raises(ConfigurationError, match="cannot be a group of units"):
        distributed(bank, object())
    with pytest.raises(ConfigurationError, match="cannot be a group of units"):
        distributed(bank, AsyncFakeStock())
    with pytest.raises(ConfigurationError, match="FakeBank is alone in its group"):
        distributed(bank)
    with pytest.raises(ConfigurationError, match="FakeBank and FakeStock are on the same database"):
        distributed(bank, FakeStock(bank.store, resource="another"))
    with pytest.raises(ConfigurationError, match="SqlBank and SqlStock are on the same database"):
        distributed(sql, SqlStock(create_engine(sqlite_url), resource="stock"))
    with pytest.raises(ConfigurationError, match=r"both called 'same'\. Make one of the units with resource="):
        distributed(FakeBank(resource="same"), FakeStock(resource="same"))
    with pytest.raises(ConfigurationError, match="domain is called 'a b'"):
        distributed(bank, stock, domain="a b")
    with pytest.raises(ConfigurationError, match="called 'no name'"):
        distributed(bank, FakeStock(resource="no name"))
    with pytest.raises(ConfigurationError, match="FakeStock is read-only, and has nothing to commit"):
        distributed(bank, FakeStock(read_only=True))
    with bank, pytest.raises(ConfigurationError, match="is a part of another unit"):
        distributed(bank.nested(), stock)
    with pytest.raises(ConfigurationError, match="is a part of another unit"):
        distributed(bank.joined(), stock)
    sql._primary.dispose()


def test_two_that_cannot_prepare(sqlite_url: URL) -> None:
    """Two databases that cannot prepare are refused, and both say why."""
    engine, memory = create_engine(sqlite_url), create_engine("sqlite://")
    units = SqlBank(engine, resource="bank"), SqlStock(memory)
    with pytest.raises(ConfigurationError, match="2 of the databases cannot prepare a transaction: SQLite cannot"):
        distributed(*units)
    memory.dispose()
    engine.dispose()


def test_the_name_of_a_database(sqlite_url: URL, postgresql_url: URL) -> None:
    """Without a name for it, a database goes by its own."""
    names = [
        SqlBank(create_engine(url))._resource().name
        for url in (sqlite_url, "sqlite://", postgresql_url.set(database="bank"))
    ]

    assert names == ["test", "memory", "bank"]
    assert distributed(FakeBank(), FakeStock())._party.resources[0].name.startswith("store")


# ------------------------------------------------------------------------------------------------ what else can happen


@everywhere
@on_both_faces
def test_what_was_removed_can_be_added_again(pair: Pair) -> None:
    """An entity that a group removed belongs to no unit, and can be added in the next one."""
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)
        both.commit()
    with both as (bank, stock):
        removed = bank.things.get("a"), stock.things.get("a")
        for unit, thing in zip((bank, stock), removed, strict=True):
            unit.things.remove(thing)
        both.commit()

    assert pair.names() == NONE

    with both as (bank, stock):
        for unit, thing in zip((bank, stock), removed, strict=True):
            unit.things.add(Thing(thing.name))
            unit.flush()
        both.commit()

    assert pair.names() == NEW


@on("postgresql+postgresql")
@on_both_faces
def test_listeners_of_a_session(pair: Pair) -> None:
    """What listens to a session's commit is told before the branch is prepared, and when it is committed."""
    heard: list[str] = []
    factory = sessionmaker(create_engine(pair.stock_side.url))
    stock = SqlStock(factory, resource="stock")
    both = distributed(pair.bank(), stock, domain=DOMAIN)
    event.listen(factory, "before_commit", lambda session: heard.append("before"))
    event.listen(factory, "after_commit", lambda session: heard.append("after"))
    with at("", lambda: None, seen=heard), both:
        add_to(*both._units)
        both.commit()

    assert [each for each in heard if ":" in each or each in ("before", "after")] == [
        "prepare:stock",
        "before",
        "prepared:stock",
        "finish:stock",
        "after",
        "finished:stock",
    ]

    def fail(session: object) -> None:
        raise ValueError("no")

    event.listen(factory, "after_commit", fail)
    for name in ("b", None):
        with pytest.raises(AfterCommitFailed), both as units:
            units[0].things.add(Thing(f"{name}"))
            stock.things.list()
            if name is not None:
                stock.things.add(Thing(name))
            both.commit()

        assert both.state is State.COMMITTED

    assert pair.names() == ({"a", "b", "None"}, {"a", "b"})
    factory.kw["bind"].dispose()


@on("async fake+asyncpg", "async psycopg_async+asyncpg")
@on_both_faces
def test_connections_that_asyncpg_made_before(pair: Pair) -> None:
    """A connection that was made before its engine served a unit commits, and is prepared, like any other."""

    async def connect() -> None:
        async with pair.stock_side.connect(asynchronous=True).connect():
            pass

    wait(connect())
    both = pair.both()
    with both as (bank, stock):
        add_to(bank, stock)
        both.commit()

    assert pair.names() == NEW
    assert pair.is_clean()


@with_fakes
@on_both_faces
def test_a_branch_that_somebody_else_ended(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A branch that is not there any more when it is to be committed is left to recovery, which can tell why."""
    both, resource = pair.both(), pair.stock_side.resource
    with both as (bank, stock):
        add_to(bank, stock)
        id = both.status().id
        with at("finish:stock", lambda: resource.finish(id, commit=True)):
            both.commit()

    assert both.state is State.COMMITTED
    assert "somebody else has ended the prepared transaction" in caplog.text
    assert pair.names() == NEW


@with_fakes
@on_both_faces
def test_an_interrupted_branch_that_cannot_be_finished(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch that an interrupt kept from being told is told from outside; where that fails, recovery does it."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    def unreachable(*_: object, **__: object) -> Finished:
        raise ConnectionLost("nobody there")

    for number, answer in enumerate((lambda *_, **__: Finished.OWNED, unreachable)):
        both = pair.both()
        with monkeypatch.context() as patch:
            patch.setattr(FakeResource, "finish", answer)
            with at("finish:stock", interrupt), pytest.raises(KeyboardInterrupt), both as (bank, stock):
                add_to(bank, stock, f"{number}")
                both.commit()

        assert both.state is State.COMMITTED
        assert number + 1 == len(pair.stock_side.prepared())

    assert "its session has not ended yet" in caplog.text
    assert "nobody there" in caplog.text


def test_a_store_keeps_room_for_what_is_prepared() -> None:
    """What would stand in the way of a prepared transaction of a store is refused, and everything else goes on."""
    bank_store, store = Store(), Store()
    store.unique(Thing, "size")
    store.foreign_key(Thing, "parent", Thing)
    bank, stock, other = FakeBank(bank_store), FakeStock(store), FakeStock(store)
    with other:
        other.things.add_all([Thing("parent", size=1), Thing("known", size=2)])
        other.commit()
    both = distributed(bank, stock)
    store.fail_next("finish", ConnectionLost)
    with both:
        bank.things.add(Thing("a"))
        stock.once("key")
        stock.things.add(Thing("child", parent="parent", size=3))
        stock.things.get("known").size = 4
        both.commit()

    def change(thing: str, **values: Any) -> None:
        with other:
            for name, value in values.items():
                setattr(other.things.get(thing), name, value)
            other.commit()

    with pytest.raises(LockTimeout, match="has written the same row"):
        change("known", size=5)
    with pytest.raises(LockTimeout, match="is in the way"):
        change("parent", size=3)
    with pytest.raises(LockTimeout, match="is in the way"), other:
        other.things.remove(other.things.get("parent"))
        other.commit()
    with pytest.raises(LockTimeout, match="has the key"), other:
        other.once("key")
    change("parent", size=9)
    store.drop_connections()
    FakeResource(store, "store").finish(both.status().id, commit=True)

    with other:
        assert {"parent": 9, "child": 3, "known": 4} == {thing.name: thing.size for thing in other.things.list()}
    with pytest.raises(AlreadyDone), other:
        other.once("key")
