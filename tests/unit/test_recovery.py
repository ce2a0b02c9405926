"""
Recovery, on branches that were prepared by hand in every state that a crash can leave.

Each pair of databases is one last agent and one branch. A branch's witness tells whether it was committed.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import count
from typing import Any, TypeVar

import pytest
from attrs import define, field, frozen
from sqlalchemy import URL, Connection, Engine, NullPool, Pool, QueuePool, create_engine, delete, insert, select
from sqlalchemy.exc import OperationalError

import uow._points as points
import uow._recovery as recovery
import uow.adapters.sqlalchemy._resource as sql_resource
from uow import Decision, Finished, Heuristic, Recovery, State, recover
from uow._branches import new_id
from uow.adapters.memory import FakeResource, Store
from uow.adapters.memory._outcomes import Branch
from uow.adapters.sqlalchemy import SqlResource, uow_metadata
from uow.errors import ConfigurationError, ConnectionUnavailable, DatabaseError, InvalidArgument, LockTimeout

OUTCOME, BRANCH, HEURISTIC = (uow_metadata.tables[f"uow_{name}"] for name in ("outcome", "branch", "heuristic"))
MINUTE = timedelta(minutes=1)
P = TypeVar("P", bound="SqlPlace")


@define
class Place:
    """
    A database, and what a test does there by hand.
    """

    resource: Any

    def prepare(self, id: str) -> None:
        """Prepare a branch whose coordinator is gone."""
        self.resource.store.prepared[id] = Branch(datetime.now(UTC), lambda commit: None)

    def decide(self, id: str, *branches: str, ago: timedelta = MINUTE) -> None:
        """Decide to commit."""
        self.resource.store.outcomes.decide(Decision(id, branches, datetime.now(UTC) - ago))

    def witness(self, id: str, ago: timedelta = MINUTE) -> None:
        """Leave a branch that was committed."""
        self.resource.store.witnesses[id] = datetime.now(UTC) - ago

    def remove_heuristics(self) -> None:
        """Do what people do once they have put everything right."""
        self.resource.store.heuristics.clear()

    def clean_up(self) -> None:
        """Leave nothing prepared."""


@define
class SqlPlace(Place):
    """
    A database with tables; this is SQLite, which cannot prepare.
    """

    engine: Engine

    def run(self, statement: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement)

    def decide(self, id: str, *branches: str, ago: timedelta = MINUTE) -> None:
        now = datetime.now(UTC)
        moments = {"decided_at": now - ago, "expires_at": now + timedelta(days=7) - ago}
        self.run(insert(OUTCOME).values(id=id, outcome="C", branches=",".join(branches), **moments))

    def witness(self, id: str, ago: timedelta = MINUTE) -> None:
        self.run(insert(BRANCH).values(id=id, at=datetime.now(UTC) - ago))

    def remove_heuristics(self) -> None:
        self.run(delete(HEURISTIC))


@define
class PostgresqlPlace(SqlPlace):
    def prepare(self, id: str) -> None:
        self.prepare_as(f"{id}/{self.resource.name}", id)

    def prepare_as(self, gid: str, id: str) -> None:
        with self.engine.connect() as connection:
            connection.execute(insert(BRANCH).values(id=id, at=datetime.now(UTC)))
            connection.exec_driver_sql(f"PREPARE TRANSACTION '{gid}'")

    def listed(self) -> set[str]:
        with self.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
            return set(found.scalars())

    def clean_up(self) -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for gid in self.listed():
                connection.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")


@define
class MariadbPlace(SqlPlace):
    xids: list[str] = field(factory=list)

    def prepare(self, id: str) -> None:
        self.prepare_as(f"'{id}','{self.resource.name}'", id).invalidate()

    def prepare_as(self, xid: str, id: str, session: str = "CONNECTION_ID()") -> Connection:
        """Prepare a branch; its session lives as long as the connection that is returned."""
        connection = self.engine.connect()
        self.xids.append(xid)
        for statement in (
            f"XA START {xid}",
            f"INSERT INTO uow_branch (id, at, session) VALUES ('{id}', UTC_TIMESTAMP(6), {session})",
            f"XA END {xid}",
            f"XA PREPARE {xid}",
        ):
            connection.exec_driver_sql(statement)
        return connection

    def roll_back(self, xid: str) -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"XA ROLLBACK {xid}")

    def clean_up(self) -> None:
        for xid in self.xids:
            with suppress(OperationalError):  # it was ended
                self.roll_back(xid)


@pytest.fixture
def stores() -> tuple[Place, Place]:
    return Place(FakeResource(Store(), "bank")), Place(FakeResource(Store(), "stock"))


@pytest.fixture(scope="module")
def engine_of() -> Iterator[Callable[[URL, type[Pool]], Engine]]:
    """Recovery has an engine with a pool; what a test does by hand takes a connection of its own each time."""

    @cache
    def engine_of(url: URL, pool: type[Pool]) -> Engine:
        limit = {"init_command": "SET lock_wait_timeout = 10, innodb_lock_wait_timeout = 10"}
        engines.append(create_engine(url, poolclass=pool, connect_args=limit if "pymysql" in url.drivername else {}))
        return engines[-1]

    engines: list[Engine] = []
    yield engine_of
    for engine in engines:
        engine.dispose()


@contextmanager
def place(kind: type[P], url: URL, name: str, engine_of: Callable[[URL, type[Pool]], Engine]) -> Iterator[P]:
    engine = engine_of(url, NullPool)
    uow_metadata.create_all(engine)
    made = kind(SqlResource(engine_of(url, QueuePool), name), engine)
    yield made
    made.clean_up()
    with engine.begin() as connection:
        for table in (OUTCOME, BRANCH, HEURISTIC):
            connection.execute(delete(table))


EngineOf = Callable[[URL, type[Pool]], Engine]


@pytest.fixture
def sqlite_bank(sqlite_url: URL, engine_of: EngineOf) -> Iterator[SqlPlace]:
    with place(SqlPlace, sqlite_url, "bank", engine_of) as made:
        yield made


@pytest.fixture
def postgresql_bank(postgresql_url: URL, engine_of: EngineOf) -> Iterator[PostgresqlPlace]:
    with place(PostgresqlPlace, postgresql_url, "bank", engine_of) as made:
        yield made


@pytest.fixture
def postgresql_stock(postgresql_url: URL, engine_of: EngineOf) -> Iterator[PostgresqlPlace]:
    with place(PostgresqlPlace, postgresql_url, "stock", engine_of) as made:
        yield made


@pytest.fixture
def mariadb_stock(mariadb_url: URL, engine_of: EngineOf) -> Iterator[MariadbPlace]:
    with place(MariadbPlace, mariadb_url, "stock", engine_of) as made:
        yield made


PAIRS = {
    "fake": ("stores",),
    "sqlite and postgresql": ("sqlite_bank", "postgresql_stock"),
    "postgresql and mariadb": ("postgresql_bank", "mariadb_stock"),
}


@define
class World:
    """A last agent and a branch, in a domain of their own."""

    bank: Any
    stock: Any
    domain: str = field(factory=lambda: secrets.token_hex(6))

    def new_id(self) -> str:
        return new_id(self.domain, "bank")

    def recover(self, *, grace: float = 0.0, **options: Any) -> Recovery:
        return recover(self.bank.resource, self.stock.resource, domain=self.domain, grace=grace, **options)

    def committed(self, id: str) -> bool:
        return id in self.stock.resource.witnessed([id])

    def prepared(self) -> set[str]:
        return {branch.id for branch in self.stock.resource.prepared(self.domain)}

    def decided(self) -> set[str]:
        return {decision.id for decision in self.bank.resource.decisions(self.domain, grace=0)}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def world(request: pytest.FixtureRequest) -> World:
    places = [request.getfixturevalue(name) for name in request.param]
    return World(*(places[0] if len(places) == 1 else places))


def states(found: Recovery) -> dict[str, State]:
    return {doubt.id: doubt.state for doubt in found.doubts}


# --------------------------------------------------------------------------------------------------------- branches


def test_an_undecided_branch_is_rolled_back_for_good(world: World) -> None:
    id = world.new_id()
    world.stock.prepare(id)

    found = world.recover()

    assert states(found) == {id: State.ROLLED_BACK}
    assert found.clean
    assert not world.committed(id)
    assert world.prepared() == set()
    assert world.bank.resource.settle(id, 1) is False  # the coordinator cannot decide any more


def test_a_branch_is_committed_as_was_decided(world: World) -> None:
    id, undecided = world.new_id(), world.new_id()
    for one in (id, undecided):
        world.stock.prepare(one)
    world.bank.decide(id, "stock")

    found = world.recover(grace=0)

    assert states(found) == {id: State.COMMITTED, undecided: State.ROLLED_BACK}
    assert {doubt.resource for doubt in found.doubts} == {"stock"}
    assert found.clean
    assert world.prepared() == world.decided() == set()
    assert not world.committed(id), "its witness is not needed any more"


def test_what_is_decided_and_finished_is_looked_at_no_more(world: World) -> None:
    """But a caller who was left in doubt is still told what became of it."""
    id = world.new_id()
    world.bank.decide(id, "stock")
    world.stock.witness(id)

    found = world.recover()

    assert found == Recovery((), (), (), 0)
    assert found.clean
    assert world.decided() == set()
    assert not world.committed(id)
    assert world.bank.resource.settle(id, 5)


def test_a_decision_without_branches_is_looked_at_no_more(world: World) -> None:
    world.bank.decide(world.new_id())

    assert world.recover().clean
    assert world.decided() == set()


def test_what_is_young_is_left_to_its_coordinator(world: World) -> None:
    id, decided = world.new_id(), world.new_id()
    world.stock.prepare(id)
    world.bank.decide(decided, "stock", ago=timedelta())
    world.stock.witness(decided)

    found = world.recover(grace=60)

    assert found == Recovery((), (), (), 0)
    assert world.prepared() == {id}
    assert world.decided() == {decided}
    assert world.committed(decided)
    world.recover()


def test_recovery_is_idempotent(world: World) -> None:
    for decided in (True, False):
        id = world.new_id()
        world.stock.prepare(id)
        if decided:
            world.bank.decide(id, "stock")
    assert len(world.recover().doubts) == 2

    assert world.recover() == Recovery((), (), (), 0)


def test_a_dry_run_changes_nothing(world: World) -> None:
    decided, undecided, lost, done = (world.new_id() for _ in range(4))
    world.stock.prepare(decided)
    world.stock.prepare(undecided)
    for id in (decided, lost, done):
        world.bank.decide(id, "stock")
    world.stock.witness(done)

    for _ in range(2):
        found = world.recover(dry_run=True)

        assert states(found) == {decided: State.IN_DOUBT, undecided: State.IN_DOUBT}
        assert [heuristic.id for heuristic in found.heuristics] == [lost]
        assert not found.clean
        assert world.prepared() == {decided, undecided}
        assert world.decided() == {decided, lost, done}
        assert world.committed(done)
        assert world.bank.resource.heuristics() == []
    world.bank.decide(undecided, "stock")  # no fence is in its way
    assert states(world.recover()) == {decided: State.COMMITTED, undecided: State.COMMITTED}


def test_other_domains_are_left_alone(world: World) -> None:
    other = World(world.bank, world.stock)
    id, decided, finished = (other.new_id() for _ in range(3))
    other.stock.prepare(id)
    for one in (decided, finished):
        other.bank.decide(one, "stock")
    other.stock.witness(finished)

    assert world.recover() == Recovery((), (), (), 0)

    assert other.prepared() == {id}
    assert other.decided() == {decided, finished}
    assert other.committed(finished)
    other.recover()


def test_two_recoverers_share_the_work(world: World) -> None:
    ids = [world.new_id() for _ in range(12)]
    for number, id in enumerate(ids):
        world.stock.prepare(id)
        if number % 2:
            world.bank.decide(id, "stock")
    barrier = threading.Barrier(2)

    def run() -> Recovery:
        barrier.wait()
        return world.recover()

    with ThreadPoolExecutor(2) as pool:
        both = [future.result() for future in [pool.submit(run) for _ in range(2)]]

    assert all(found.clean for found in both), both
    became: dict[str, State] = {}
    for found in both:
        for id, state in states(found).items():
            assert became.setdefault(id, state) is state, "a branch ends once"
    assert world.recover().clean
    assert world.prepared() == world.decided() == set()
    assert became == {id: State.COMMITTED if number % 2 else State.ROLLED_BACK for number, id in enumerate(ids)}


def test_a_crash_anywhere_is_made_good_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the first recovery at its first point, then at its second, and so on; two more make everything right."""

    class Killed(BaseException):
        pass

    def die(at: int, reached: list[str], name: str) -> None:
        reached.append(name)
        if len(reached) == at:
            raise Killed

    reached: list[str] = []
    for at in count(1):
        decided, undecided = world.new_id(), world.new_id()
        for id in (decided, undecided):
            world.stock.prepare(id)
        world.bank.decide(decided, "stock")
        reached.clear()
        monkeypatch.setattr(points, "listener", partial(die, at, reached))
        try:
            world.recover()
        except Killed:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(points, "listener", None)
        assert world.recover().clean
        assert world.recover() == Recovery((), (), (), 0)
        assert world.prepared() == world.decided() == set()
        assert not world.bank.resource.settle(undecided, 1)
        if "recover:finished:stock" in reached:
            assert not world.committed(undecided)
    assert reached == [
        "recover:listed",
        "recover:settled",
        "recover:finished:stock",
        "recover:settled",
        "recover:finished:stock",
        "recover:completed",
    ]


# -------------------------------------------------------------------------------------------------- heuristic outcomes


def test_a_branch_that_somebody_rolled_back_is_reported(world: World, caplog: pytest.LogCaptureFixture) -> None:
    id, healthy = world.new_id(), world.new_id()
    for one in (id, healthy):
        world.bank.decide(one, "stock")
    world.stock.witness(healthy)
    problem = "it was rolled back by somebody, although it was decided to commit"

    with caplog.at_level(logging.ERROR, "uow"):
        found = world.recover()

    assert found == Recovery((), (Heuristic(id, "stock", problem),), (), 0)
    assert not found.clean
    assert caplog.messages == [f"Recovery: the branch of {id} in 'stock': {problem}. Put it right by hand"]
    assert world.bank.resource.heuristics() == [Heuristic(id, "stock", problem)]
    assert world.decided() == {id}, "it is never forgotten by itself"

    with caplog.at_level(logging.ERROR, "uow"):
        again = world.recover()

    assert again == found
    assert len(caplog.messages) == 1, "one alarm is enough"


def test_people_put_a_heuristic_outcome_right(world: World) -> None:
    """They do the branch's work again, leave its witness with it, and remove the note."""
    id = world.new_id()
    world.bank.decide(id, "stock")
    assert not world.recover().clean

    world.stock.witness(id)
    world.bank.remove_heuristics()

    assert world.recover().clean
    assert world.decided() == set()


def test_a_manual_rollback_of_a_prepared_branch(world: World) -> None:
    id = world.new_id()
    world.stock.prepare(id)
    world.bank.decide(id, "stock")
    assert world.stock.resource.finish(id, commit=False) is Finished.DONE

    assert [heuristic.id for heuristic in world.recover().heuristics] == [id]


def test_heuristic_outcomes_of_others_are_not_told(world: World) -> None:
    world.bank.resource.note(Heuristic(new_id("other", "bank"), "stock", "lost"))

    assert world.recover().clean


# -------------------------------------------------------------------------------------------------- what is in the way


def test_a_last_agent_that_is_not_given(world: World) -> None:
    id = new_id(world.domain, "ledger")
    world.stock.prepare(id)

    found = world.recover()

    assert [(one.id, one.problem) for one in found.left] == [(id, "its last agent 'ledger' is not among the resources")]
    assert not found.clean
    assert world.prepared() == {id}
    world.stock.resource.finish(id, commit=False)


def test_a_branch_that_is_not_given(world: World) -> None:
    id = world.new_id()
    world.bank.decide(id, "ledger", "stock")
    world.stock.witness(id)

    found = world.recover()

    assert [(one.id, one.resource, one.problem) for one in found.left] == [
        (id, "ledger", "'ledger' is not among the resources, which may have it prepared still")
    ]
    assert world.decided() == {id}


@pytest.fixture
def down() -> Callable[[str], SqlResource]:
    """A database that does not answer."""
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=1", poolclass=NullPool)
    return partial(SqlResource, engine)


def test_a_last_agent_that_is_down_blocks_its_own_branches_alone(
    world: World, down: Callable[[str], SqlResource]
) -> None:
    waiting, free = new_id(world.domain, "ledger"), world.new_id()
    for id in (waiting, free):
        world.stock.prepare(id)

    found = recover(down("ledger"), world.bank.resource, world.stock.resource, domain=world.domain, grace=0)

    assert [(one.id, one.problem) for one in found.left] == [(waiting, "its last agent 'ledger' cannot be asked")]
    assert states(found)[free] is State.ROLLED_BACK
    assert [one.resource for one in found.unreachable] == ["ledger"]
    assert "refused" in found.unreachable[0].problem
    assert world.prepared() == {waiting}
    world.stock.resource.finish(waiting, commit=False)


def test_a_branch_that_is_down_does_not_block_the_others(world: World, down: Callable[[str], SqlResource]) -> None:
    id = world.new_id()
    world.bank.decide(id, "ledger", "stock")
    world.stock.prepare(id)

    found = recover(down("ledger"), world.bank.resource, world.stock.resource, domain=world.domain, grace=0)

    assert states(found) == {id: State.IN_DOUBT}
    assert [one.resource for one in found.left] == ["ledger"]
    assert world.committed(id)
    assert world.decided() == {id}, "it must be remembered for the one that is down"


def test_an_id_that_makes_trouble_does_not_block_the_others(stores: tuple[Place, Place]) -> None:
    """The last agent is not asked again for a second branch of that id."""
    asked: list[str] = []

    @frozen
    class Stubborn(FakeResource):
        def settle(self, token: str, timeout: float) -> bool:
            asked.append(token)
            if token == bad:
                raise LockTimeout("somebody holds its row")
            return super().settle(token, timeout)

        def finish(self, id: str, *, commit: bool) -> Finished:
            if id == refused:
                raise DatabaseError("permission denied", "42501")
            return super().finish(id, commit=commit)

    bank, stock = stores
    bad, refused, good = (new_id("uow", "bank") for _ in range(3))
    ledger = Place(Stubborn(Store(), "ledger"))
    for one in (stock, ledger):
        one.prepare(bad)
    for id in (refused, good):
        ledger.prepare(id)

    found = recover(
        Stubborn(bank.resource.store, "bank"), Stubborn(stock.resource.store, "stock"), ledger.resource, grace=0
    )

    told = "its last agent 'bank' does not tell what was decided: "
    assert {(one.id, one.resource) for one in found.left} == {(bad, "stock"), (bad, "ledger"), (refused, "ledger")}
    assert [one.problem.startswith(told) for one in found.left if one.id == bad] == [True, True]
    assert [one.problem for one in found.left if one.id == refused] == [
        f"it could not be told what was decided: {DatabaseError('permission denied', '42501')}"
    ]
    assert found.unreachable == ()
    assert states(found)[good] is State.ROLLED_BACK
    assert asked.count(bad) == 1


def test_a_branch_that_goes_down_meanwhile(stores: tuple[Place, Place]) -> None:
    @frozen
    class Going(FakeResource):
        def finish(self, id: str, *, commit: bool) -> Finished:
            told.append(id)
            raise ConnectionUnavailable("it went down")

    told: list[str] = []
    bank, stock = stores
    for _ in range(3):
        stock.prepare(new_id("uow", "bank"))

    found = recover(bank.resource, Going(stock.resource.store, "stock"), grace=0)

    assert len(told) == 1, "it is not asked again"
    assert len(found.left) == 3
    assert [one.resource for one in found.unreachable] == ["stock"]


def test_a_last_agent_that_goes_down_before_an_alarm(stores: tuple[Place, Place]) -> None:
    """What nobody can be sure of is no heuristic outcome."""

    @frozen
    class Going(FakeResource):
        def decisions(self, domain: str, *, grace: float) -> Any:
            if grace == 0:
                raise ConnectionUnavailable("it went down")
            return super().decisions(domain, grace=grace)

    bank, stock = stores
    bank.decide(new_id("uow", "bank"), "stock")

    found = recover(Going(bank.resource.store, "bank"), stock.resource, grace=1)

    assert found.heuristics == ()
    assert [one.resource for one in found.unreachable] == ["bank"]


def test_a_coordinator_that_finishes_and_forgets_meanwhile(stores: tuple[Place, Place]) -> None:
    """Between two looks a live coordinator ends a branch and forgets it; that is no heuristic outcome."""
    bank, stock = stores
    id = new_id("uow", "bank")

    @frozen
    class Watched(FakeResource):
        def witnessed(self, ids: Any) -> Any:
            there = super().witnessed(ids)
            if stock.resource.store.prepared:
                stock.resource.finish(id, commit=True)
            else:
                bank.resource.forget([id])
                stock.resource.forget_witnesses([id])
            return there

    stock.prepare(id)
    bank.decide(id, "stock")
    stock.resource.store.prepared[id] = Branch(datetime.now(UTC) + MINUTE, lambda commit: None)  # young: not ours yet

    assert recover(bank.resource, Watched(stock.resource.store, "stock"), grace=0) == Recovery((), (), (), 0)


@pytest.mark.parametrize(
    ("options", "names", "problem"),
    [
        ({}, [], "the resources are none"),
        ({}, ["bank", "bank"], "the resources are bank, bank"),
        ({"grace": -1}, ["bank"], "grace is -1"),
        ({"grace": float("nan")}, ["bank"], "grace is nan"),
        ({"grace": float("inf")}, ["bank"], "grace is inf"),
    ],
)
def test_arguments_that_mean_nothing(options: dict[str, float], names: list[str], problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        recover(*(FakeResource(Store(), name) for name in names), **options)

    assert caught.value.problem == problem


def test_a_domain_must_be_a_name() -> None:
    with pytest.raises(ConfigurationError, match=r"the domain is called 'a\.b'"):
        recover(FakeResource(Store(), "bank"), domain="a.b")


# ---------------------------------------------------------------------------------- what the databases do by themselves


def test_foreign_prepared_transactions_of_postgresql(sqlite_bank: SqlPlace, postgresql_stock: PostgresqlPlace) -> None:
    id = new_id("uow", "bank")
    foreign = {"somebody's".replace("'", ""), id, f"{id}/ledger", f"{id[:-1]}/stock", "u1.uow.bank.n.x/stock", "/stock"}
    for number, gid in enumerate(foreign):
        postgresql_stock.prepare_as(gid, f"{number}")
    foreign_id = new_id("uow", "bank")
    postgresql_stock.prepare_as(f"{foreign_id}/stock", foreign_id)

    found = recover(sqlite_bank.resource, postgresql_stock.resource, grace=0)

    assert states(found) == {foreign_id: State.ROLLED_BACK}
    assert postgresql_stock.listed() == foreign


def test_foreign_prepared_transactions_of_mariadb(sqlite_bank: SqlPlace, mariadb_stock: MariadbPlace) -> None:
    id, ours = new_id("uow", "bank"), new_id("uow", "bank")
    run = secrets.token_hex(8)  # the server lists every one's
    xids = [f"'{id}'", f"'{id}','ledger'", f"'{id}','stock',7", f"X'ff00fe{run}','stock'", f"'it''s {run}','x'"]
    xids.append(f"'{run}','stock'")
    for number, xid in enumerate(xids):
        mariadb_stock.prepare_as(xid, f"{number}").invalidate()
    mariadb_stock.prepare(ours)

    found = recover(sqlite_bank.resource, mariadb_stock.resource, grace=0)

    assert states(found) == {ours: State.ROLLED_BACK}
    assert found.clean
    for xid in xids:
        mariadb_stock.roll_back(xid)  # it is there


def test_a_session_that_keeps_its_branch_is_ended(sqlite_bank: SqlPlace, mariadb_stock: MariadbPlace) -> None:
    id = new_id("uow", "bank")
    sqlite_bank.decide(id, "stock")
    owner = mariadb_stock.prepare_as(f"'{id}','stock'", id)
    assert mariadb_stock.resource.finish(id, commit=True) is Finished.OWNED

    found = recover(sqlite_bank.resource, mariadb_stock.resource, grace=0)

    assert states(found) == {id: State.COMMITTED}
    assert found.clean
    with pytest.raises(OperationalError):
        owner.exec_driver_sql(f"XA COMMIT '{id}','stock'")
    owner.invalidate()


def test_a_session_that_ends_its_branch_meanwhile_is_left_alone(
    sqlite_bank: SqlPlace, mariadb_stock: MariadbPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(time, "time", partial(lambda now: now - 60, time.time()))
        id = new_id("uow", "bank")
    sqlite_bank.decide(id, "stock")
    owner = mariadb_stock.prepare_as(f"'{id}','stock'", id)

    def finish_at(name: str) -> None:
        if name == "recover:finished:stock" and mariadb_stock.resource.prepared("uow"):
            owner.exec_driver_sql(f"XA COMMIT '{id}','stock'")

    monkeypatch.setattr(points, "listener", finish_at)
    found = recover(sqlite_bank.resource, mariadb_stock.resource, grace=30)

    assert found == Recovery((), (), (), 0)
    assert mariadb_stock.resource.prepared("uow") == []
    assert owner.exec_driver_sql("SELECT 1").scalar_one() == 1, "its session lives"
    owner.close()


def test_a_session_that_works_is_not_ended(
    sqlite_bank: SqlPlace, mariadb_stock: MariadbPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The witness names a session that is in the middle of a statement, so it is not the one to end."""
    monkeypatch.setattr(recovery, "_PATIENCE", 0.3)
    busy = mariadb_stock.engine.connect()
    number = busy.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
    id = new_id("uow", "bank")
    owner = mariadb_stock.prepare_as(f"'{id}','stock'", id, f"{number}")
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(busy.exec_driver_sql, "SELECT SLEEP(2)")

        found = recover(sqlite_bank.resource, mariadb_stock.resource, grace=0)

        assert [one.problem for one in found.left] == ["the session that prepared it is alive and keeps it"]
        assert working.result().scalar_one() == 0
    busy.close()
    owner.exec_driver_sql(f"XA ROLLBACK '{id}','stock'")
    owner.close()


def test_postgresql_says_that_somebody_else_is_ending_a_branch(
    postgresql_stock: PostgresqlPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many at once end one branch: one does, and the others are told that it is busy, or not there."""
    for _ in range(5):
        id = new_id("uow", "bank")
        postgresql_stock.prepare(id)
        barrier = threading.Barrier(6)

        def finish(id: str = id, barrier: threading.Barrier = barrier) -> Finished:
            barrier.wait()
            return postgresql_stock.resource.finish(id, commit=True)

        with ThreadPoolExecutor(6) as pool:
            answers = [future.result() for future in [pool.submit(finish) for _ in range(6)]]

        assert answers.count(Finished.DONE) == 1
        assert postgresql_stock.resource.finish(id, commit=True) is Finished.UNKNOWN


def test_a_branch_without_work_is_rolled_back_by_mariadb(sqlite_bank: SqlPlace, mariadb_stock: MariadbPlace) -> None:
    """It answers 1402 to XA COMMIT; without a witness that is a heuristic outcome."""
    id = new_id("uow", "bank")
    sqlite_bank.decide(id, "stock")
    mariadb_stock.xids.append(f"'{id}','stock'")
    with mariadb_stock.engine.connect() as connection:
        for statement in ("START", "END", "PREPARE"):
            connection.exec_driver_sql(f"XA {statement} '{id}','stock'")
            if statement == "START":
                connection.exec_driver_sql("SELECT * FROM uow_branch")
        connection.invalidate()

    assert mariadb_stock.resource.finish(id, commit=True) is Finished.UNKNOWN
    found = recover(sqlite_bank.resource, mariadb_stock.resource, grace=0)

    assert [one.id for one in found.heuristics] == [id]


# ---------------------------------------------------------------------------------------------------------- leftovers


def outcome(id: str, expired: timedelta, outcome: str = "A", **more: Any) -> Any:
    expires = datetime.now(UTC) - expired
    return insert(OUTCOME).values(
        id=id, outcome=outcome, decided_at=expires - timedelta(days=7), expires_at=expires, **more
    )


HOURS, HALF = timedelta(hours=2), timedelta(minutes=30)


@pytest.mark.parametrize("name", ["sqlite_bank", "postgresql_bank", "mariadb_stock"])
def test_what_has_expired_is_removed(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But never a decision, what is listed, or what belongs to another domain."""
    monkeypatch.setattr(sql_resource, "_BATCH", 2)
    place: SqlPlace = request.getfixturevalue(name)
    agent = place.resource.name
    removed = {new_id("uow", "other"), new_id("uow", agent), "UNIT-1", "UNIT-2", "KEY"}
    for id in removed - {"KEY"}:
        place.run(outcome(id, HOURS, "C" if id == "UNIT-2" else "A"))
    place.run(outcome("KEY", HOURS, "C", key="payments:1"))
    kept = {new_id("uow", agent) for _ in range(3)} | {new_id("u_w", agent), new_id("other", agent), "YOUNG"}
    listed, decided, young, *_ = sorted(id for id in kept if id.startswith("u1.uow."))
    for id in kept - {decided, young, "YOUNG"}:
        place.run(outcome(id, HOURS))
    place.run(outcome(decided, HOURS, "C", branches="gone"))
    for id in (young, "YOUNG"):
        place.run(outcome(id, HALF))
    store = Store()
    Place(FakeResource(store, "x")).prepare(listed)

    found = recover(place.resource, FakeResource(store, "x"), grace=7200)

    assert found.purged == len(removed)
    assert [one.id for one in found.left] == [decided]
    with place.engine.connect() as connection:
        assert set(connection.execute(select(OUTCOME.c.id)).scalars()) == kept


def test_nothing_is_removed_while_a_database_cannot_be_asked(
    sqlite_bank: SqlPlace, down: Callable[[str], SqlResource]
) -> None:
    sqlite_bank.run(outcome(new_id("uow", "bank"), HOURS))

    assert recover(sqlite_bank.resource, down("stock")).purged == 0


def test_nothing_is_removed_if_a_database_goes_down_meanwhile(
    stores: tuple[Place, Place], sqlite_bank: SqlPlace
) -> None:
    @frozen
    class Going(FakeResource):
        def decisions(self, domain: str, *, grace: float) -> Any:
            if grace == 0:
                raise ConnectionUnavailable("it went down")
            return super().decisions(domain, grace=grace)

    sqlite_bank.run(outcome(new_id("uow", "bank"), HOURS))

    found = recover(Going(Store(), "stock"), sqlite_bank.resource, grace=1)

    assert found.purged == 0
    assert [one.resource for one in found.unreachable] == ["stock"]


def test_a_witness_whose_decision_was_forgotten_is_removed(world: World) -> None:
    """A crash may leave it behind; it goes when it is old, but not as long as somebody may ask for it."""
    week = timedelta(days=7, hours=2)
    old, young, lost, elsewhere = world.new_id(), world.new_id(), world.new_id(), new_id(world.domain, "ledger")
    for id in (old, lost, elsewhere):
        world.stock.witness(id, ago=week)
    world.stock.witness(young, ago=MINUTE)
    world.bank.decide(lost, "stock", "bank", ago=MINUTE)

    found = world.recover()

    assert [(one.id, one.resource) for one in found.heuristics] == [(lost, "bank")]
    assert set(world.stock.resource.witnessed([old, young, lost, elsewhere])) == {young, lost, elsewhere}
    world.bank.remove_heuristics()
