"""
What keeps a unit cheap, counted and never timed; and what of SQLAlchemy it rests on, so that a change there is loud.
"""

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial, partialmethod
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Mapper, Session, SessionTransaction
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from uow.adapters.sqlalchemy import _async
from uow.testing._async_sqlalchemy import AsyncSqlBank
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlAlchemyHarness, SqlBank


class Undo(Exception):
    pass


@pytest.fixture
def harness(database_url: URL) -> Iterator[SqlAlchemyHarness]:
    harness = SqlAlchemyHarness(create_engine(database_url))
    yield harness
    harness.close()


def add_one(engine: Engine) -> None:
    with SqlBank(engine) as bank:
        bank.accounts.add(Account("A", "Ann"))
        bank.commit()


def nested(engine: Engine, count: int, *, undo: bool = False) -> None:
    """Open *count* nested scopes with a row each; with *undo* every second one is rolled back."""
    with SqlBank(engine) as bank:
        for number in range(count):
            with suppress(Undo), bank.nested():
                bank.accounts.add(Account(f"A{number}", "Ann"))
                bank.flush()
                if undo and number % 2:
                    raise Undo
        bank.commit()


# ------------------------------------------------------------------------------------------------------- round trips


class CountingProxy:
    """Passes on what a client and a server say, and counts how often the client begins to speak."""

    def __init__(self, path: str) -> None:
        self.trips = 0
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                turn = {"client"}
                for source, sink, name in ((client, server, "client"), (server, client, "server")):
                    threading.Thread(target=self._pass_on, args=(source, sink, name, turn), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, name: str, turn: set[str]) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(1 << 16):
                if name == "client" and "client" in turn:
                    self.trips += 1
                    turn.discard("client")
                elif name == "server":
                    turn.add("client")
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def counted(url: URL) -> Iterator[tuple[Engine, CountingProxy]]:
    """Open an engine on *url* behind a proxy; skip where the server is not reached by a socket in a folder."""
    folder = url.query.get("host")
    if not isinstance(folder, str):
        pytest.skip("the server has no socket in a folder")
    proxy = CountingProxy(f"{folder}/.s.PGSQL.{url.port or 5432}")
    engine = create_engine(
        url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable"}),
        execution_options={"uow_pipeline": False},
    )
    yield engine, proxy
    engine.dispose()
    proxy.close()


def test_round_trips(postgresql_url: URL) -> None:
    """One row costs three round trips, a nested scope with a row two, an empty one none."""
    with counted(postgresql_url) as (engine, proxy):
        harness = SqlAlchemyHarness(engine)

        def trips(work: Any, *args: Any, **kwargs: Any) -> int:
            for _ in range(8):  # until the driver has prepared what it prepares
                harness._empty()
                before = proxy.trips
                work(engine, *args, **kwargs)
            return proxy.trips - before

        assert 3 == trips(add_one)
        assert 2 * 100 + 1 == trips(nested, 100)
        assert 2 * 100 + 1 == trips(nested, 100, undo=True)

        harness.close()


# -------------------------------------------------------------------------------------------------- memory and objects


@pytest.mark.parametrize("work", [add_one, lambda engine: nested(engine, 4, undo=True)], ids=["one row", "nested"])
def test_a_unit_leaves_no_garbage(harness: SqlAlchemyHarness, work: Any) -> None:
    """Nothing of a unit that ended waits for the garbage collector."""
    work(harness.engine)
    harness._empty()

    def left() -> int:
        gc.collect()
        gc.disable()
        try:
            work(harness.engine)
            return gc.collect()
        finally:
            gc.enable()
            harness._empty()

    assert 0 == min(left() for _ in range(3))  # what else runs in this process leaves some, too


@pytest.mark.parametrize("loaded", [0, 50])
def test_a_nested_rollback_visits_what_it_touched(
    harness: SqlAlchemyHarness, loaded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many entities are loaded, a nested rollback looks at those that the scope touched."""
    with SqlBank(harness.engine) as bank:
        bank.accounts.add_all(Account(f"L{number}", "Ann") for number in range(loaded + 1))
        bank.commit()
    visited: list[int] = []
    with SqlBank(harness.engine) as bank:
        held = bank.accounts.list()
        kind = type(bank.session.identity_map)
        original = kind.all_states
        monkeypatch.setattr(kind, "all_states", lambda self: visited.append(len(found := original(self))) or found)
        with suppress(Undo), bank.nested():
            held[0].balance = 5
            bank.flush()
            raise Undo

        assert [1] == visited
        assert 0 == held[0].balance

        monkeypatch.undo()

        assert loaded + 1 == len(bank.session.identity_map.all_states())


# ------------------------------------------------------------------------------------------ what this rests on, and how


def test_sqlalchemy_rolls_back_what_all_states_shows() -> None:
    """A savepoint's rollback asks the identity map, which the unit's session narrows, and nothing else."""
    engine = create_engine("sqlite://")
    session = Session(engine)
    asked: list[str] = []
    kind = type(session.identity_map)
    narrowed = type("Narrowed", (kind,), {"all_states": lambda self: asked.append("all_states") or []})
    session.identity_map.__class__ = narrowed
    session.begin()
    savepoint = session.begin_nested()
    savepoint.rollback()

    assert ["all_states"] == asked
    assert isinstance(savepoint, SessionTransaction)


def test_sqlalchemy_executes_clauses_for_savepoints() -> None:
    """The clauses that the unit's connection turns into text are what a dialect executes, with the name as `ident`."""
    seen: list[tuple[type, str]] = []

    class Watching(Connection):
        def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((type(statement), statement.ident))

    with Watching(create_engine("sqlite://")) as connection, connection.begin():
        connection.begin_nested().commit()
        connection.begin_nested().rollback()

    assert [SavepointClause, ReleaseSavepointClause, SavepointClause, RollbackToSavepointClause] == [
        kind for kind, _ in seen
    ]
    assert seen[0][1] == seen[1][1] != seen[2][1] == seen[3][1]


def test_sqlalchemy_ends_its_flush_with_what_the_short_way_calls(
    harness: SqlAlchemyHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush asks each mapper for orphans and hands what it inserted to the session, as `_shortcuts` does."""
    asked: list[str] = []
    for owner, name in ((Session, "_register_persistent"), (Mapper, "_is_orphan")):
        original = getattr(owner, name)
        call = partial(lambda original, name, *args: asked.append(name) or original(*args), original, name)
        monkeypatch.setattr(owner, name, partialmethod(call))
    with Session(harness.engine) as session:
        session.add(Account("A", "Ann"))

        assert (1, 0, False) == (len(session._new), len(session._deleted), session._flushing)

        session.flush()

    assert ["_is_orphan", "_register_persistent"] == asked
    assert not session._new


def test_sqlalchemy_adds_as_the_short_way_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its add() does what `SqlAlchemyGateway.add` does, and then looks where relationships lead."""
    asked: list[str] = []
    for owner, name in ((Session, "_save_or_update_impl"), (Mapper, "cascade_iterator")):
        original = getattr(owner, name)

        def call(self: Any, *args: Any, original: Any = original, name: str = name, **options: Any) -> Any:
            asked.append(name)
            return original(self, *args, **options)

        monkeypatch.setattr(owner, name, call)
    account = Account("A", "Ann")
    state = inspect(account)
    state._orphaned_outside_of_session = True
    with Session() as session:
        session.add(account)

        assert not state._orphaned_outside_of_session
        assert account in session
    assert ["_save_or_update_impl", "cascade_iterator"] == asked
    assert [] == [*inspect(Account).cascade_iterator("save-update", state)]
    assert not inspect(Account)._delete_orphans


def test_savepoints_are_named_by_depth(harness: SqlAlchemyHarness) -> None:
    """The names are few, so that a driver prepares each statement once; `status()` tells them."""
    with SqlBank(harness.engine) as bank:
        for _ in range(2):
            with bank.nested() as one, one.nested() as two:
                two.accounts.add(Account("A", "Ann"))
                two.flush()

                assert ("uow_1", "uow_2") == (one.status().savepoint, two.status().savepoint)

                two.rollback()
        bank.rollback()

    names = {word for line in harness.statements for word in line.replace(";", "").split() if word.startswith("uow_")}

    assert {"uow_1", "uow_2"} == names


def test_what_a_user_sends_past_the_unit_comes_in_order(postgresql_url: URL) -> None:
    """Whoever takes the driver's connection finds nothing waiting that belongs before his statement."""
    harness = SqlAlchemyHarness(create_engine(postgresql_url))
    with SqlBank(harness.engine) as bank:
        with bank.nested():
            bank.accounts.add(Account("A", "Ann"))
        raw: Any = bank.session.connection().connection
        with suppress(Undo), bank.nested():
            raw.cursor().execute("INSERT INTO accounts VALUES ('B', 'Bob', 0)")
            raise Undo
        with bank.nested():
            raw.cursor().execute("INSERT INTO accounts VALUES ('C', 'Cem', 0)")
        bank.commit()

    assert ["A", "C"] == harness.numbers()

    harness.close()


def test_what_a_listener_sends_comes_in_order(postgresql_url: URL) -> None:
    """A mapper's listener that goes to the driver finds the savepoint that it writes in."""
    harness = SqlAlchemyHarness(create_engine(postgresql_url))

    def write(mapper: Any, connection: Connection, account: Account) -> None:
        raw: Any = connection.connection
        raw.cursor().execute(f"INSERT INTO accounts VALUES ('{account.number}!', 'Log', 0)")

    event.listen(Account, "before_insert", write)
    try:
        nested(harness.engine, 4, undo=True)
    finally:
        event.remove(Account, "before_insert", write)

    assert ["A0", "A0!", "A2", "A2!"] == harness.numbers()

    harness.close()


def test_text_inside_a_savepoint_that_serves_again(harness: SqlAlchemyHarness) -> None:
    """A savepoint serves for the next scope only while nothing was sent since it was rolled back to."""
    insert = text("INSERT INTO accounts (number, owner, balance) VALUES (:number, 'Ann', 0)")
    with SqlBank(harness.engine) as bank:
        for number in ("A", "B", "C"):
            with suppress(Undo), bank.nested():
                bank.session.execute(insert, {"number": number})
                raise Undo
            if number == "B":
                bank.session.execute(insert, {"number": "kept"})
        bank.commit()

    assert ["kept"] == harness.numbers()


def test_inspection_still_finds_what_was_added(harness: SqlAlchemyHarness) -> None:
    """An entity added in a scope that is undone is new again, its generated key gone."""
    account = Account("A", "Ann")
    with SqlBank(harness.engine) as bank:
        with suppress(Undo), bank.nested():
            bank.accounts.add(account)
            bank.flush()
            raise Undo

        assert inspect(account).transient

        bank.rollback()


# ------------------------------------------------------------------------------------------------------- bridge calls


async def get(bank: AsyncSqlBank) -> None:
    async with bank:
        await bank.accounts.get("A")


async def get_and_change(bank: AsyncSqlBank) -> None:
    async with bank:
        (await bank.accounts.get("A")).balance += 1
        await bank.commit()


async def add(bank: AsyncSqlBank) -> None:
    async with bank:
        bank.accounts.add(Account("B", "Bob"))
        await bank.commit()


async def nothing_nested(bank: AsyncSqlBank) -> None:
    async with bank:
        await bank.accounts.get("A")
        for _ in range(10):
            async with bank.nested():
                pass
        await bank.commit()


async def add_nested(bank: AsyncSqlBank) -> None:
    async with bank:
        for number in range(10):
            async with bank.nested():
                bank.accounts.add(Account(f"B{number}", "Bob"))
        await bank.commit()


@pytest.mark.parametrize(
    ("work", "calls"), [(get, 2), (get_and_change, 2), (add, 1), (nothing_nested, 2), (add_nested, 11)]
)
def test_an_asynchronous_unit_crosses_the_bridge_only_to_wait(
    sqlite_url: URL,
    work: Callable[[AsyncSqlBank], Coroutine[Any, Any, None]],
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each crossing is a greenlet, which costs more than what it does in a scope where nothing waits."""
    crossed: list[object] = []
    spawn = _async.greenlet_spawn
    monkeypatch.setattr(
        _async, "greenlet_spawn", lambda call, *args, **kw: crossed.append(call) or spawn(call, *args, **kw)
    )
    harness = SqlAlchemyHarness(create_engine(sqlite_url))
    add_one(harness.engine)

    async def main() -> None:
        engine = create_async_engine(sqlite_url.set(drivername="sqlite+aiosqlite"))
        await work(AsyncSqlBank(engine))
        await engine.dispose()

    asyncio.run(main())

    assert calls == len(crossed)

    harness.close()


# --------------------------------------------------------------------------------------------------- the pool's reset


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_pool_does_not_roll_back_what_was_ended(harness: SqlAlchemyHarness, end: str) -> None:
    """It would cost MariaDB a round trip, and a thread of aiosqlite's a turn."""
    sent: list[str] = []
    event.listen(harness.engine, "reset", lambda raw, record, state: sent.append(str(state.transaction_was_reset)))
    with SqlBank(harness.engine) as bank:
        bank.accounts.add(Account("A", "Ann"))
        bank.flush()
        getattr(bank, end)()

    assert ["True"] == sent


def test_the_pool_rolls_back_what_somebody_may_have_begun(harness: SqlAlchemyHarness) -> None:
    """Whoever has the driver's connection may use it as long as the unit has not given it back."""
    sent: list[str] = []
    with SqlBank(harness.engine) as bank:
        assert bank.session.connection().connection
        event.listen(harness.engine, "reset", lambda raw, record, state: sent.append(str(state.transaction_was_reset)))
        bank.commit()

    assert ["False"] == sent
