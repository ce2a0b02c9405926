"""
The web service on a server that runs.
"""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import httpx
import pytest
import uvicorn
from dependency_injector import providers
from fastapi import FastAPI
from sqlalchemy import URL, Engine, MetaData, create_engine, make_url, text

from uow import Retry
from uow.errors import (
    CommitOutcomeUnknown,
    ConnectionLost,
    DatabaseError,
    Deadlock,
    LockTimeout,
    SerializationFailure,
    StaleVersion,
    StatementTimeout,
)
from uow.examples.bank import port
from uow.examples.bank.adapters import FakeBank, make_store, make_tables
from uow.examples.bank.container import AsyncContainer, Container
from uow.examples.bank.domain import MoneyMoved
from uow.examples.bank.web import create_app, create_async_app, serve

Bank = Container | AsyncContainer
Asgi = Callable[..., Any]
FACES: dict[str, tuple[type[Bank], Callable[[Any], FastAPI]]] = {
    "threads": (Container, create_app),
    "awaited": (AsyncContainer, create_async_app),
}
ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql+psycopg": "postgresql+psycopg"}
PROBLEM = "application/problem+json"

# A row that no foreign key finds is refused when the transaction commits, and not before.
REFUSE_AT_COMMIT = {
    "sqlite": [
        "CREATE TABLE refused (reference TEXT REFERENCES demo_accounts (number) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TRIGGER refuse AFTER INSERT ON demo_transfers WHEN new.amount = 13 "
        "BEGIN INSERT INTO refused VALUES (new.reference); END",
    ],
    "postgresql": [
        "CREATE TABLE refused (reference TEXT REFERENCES demo_accounts (number) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO refused VALUES (new.reference); RETURN new; END $$",
        "CREATE TRIGGER refuse AFTER INSERT ON demo_transfers FOR EACH ROW WHEN (new.amount = 13) "
        "EXECUTE FUNCTION refuse()",
    ],
}

KILL = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()
"""


@contextmanager
def running(app: Asgi) -> Generator[httpx.Client]:
    """Run *app* on a free port, and give a client of it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        # Coverage would watch the greenlets of all the server's threads, and where several end at once CPython 3.11 can
        # loop for ever in the callback of that watch.
        tracing = threading.gettrace()
        threading.settrace(cast("Any", None))
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.01)
            host, port = listener.getsockname()
            with httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
            threading.settrace(cast("Any", tracing))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, open_url: Callable[[str], str]) -> URL:
    return make_url(open_url(request.param))


@pytest.fixture
def other(url: URL) -> Iterator[Engine]:
    """Another connection to the database, which looks at what is committed."""
    engine = create_engine(url)
    make_tables(engine)
    yield engine
    tables = MetaData()
    tables.reflect(engine)
    tables.drop_all(engine)
    engine.dispose()


@pytest.fixture(params=sorted(FACES))
def container(request: pytest.FixtureRequest, url: URL, other: Engine) -> Iterator[Bank]:
    kind, _ = FACES[request.param]
    container = kind()
    driver = ASYNC_DRIVERS[url.drivername] if kind is AsyncContainer else url.drivername
    container.config.database_url.from_value(url.set(drivername=driver))
    with container.override_providers(retry=Retry(attempts=2, wait_initial=0, wait_jitter=0)):
        yield container
    container.unwire()


@pytest.fixture
def app(request: pytest.FixtureRequest, container: Bank) -> FastAPI:
    _, create = FACES[request.node.callspec.params["container"]]
    return create(container)


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the running server; ann has 100.00 and bob has nothing."""
    with running(app) as client:
        assert 201 == client.post("/accounts", json={"number": "ann"}).status_code
        assert 201 == client.post("/accounts", json={"number": "bob"}).status_code
        assert 201 == move(client, "D-1", None, "ann", 10000).status_code
        yield client


def move(client: httpx.Client, reference: str, source: str | None, target: str, amount: int) -> httpx.Response:
    return client.post(
        "/transfers", json={"reference": reference, "source": source, "target": target, "amount": amount}
    )


def balances(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT number, balance FROM demo_accounts ORDER BY number"))
        return {row.number: row.balance for row in rows}


def references(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT reference FROM demo_transfers ORDER BY reference")))


# --------------------------------------------------------------------------------------------------------- what is done


def test_who_has_the_response_finds_the_rows(client: httpx.Client, other: Engine) -> None:
    """When the client has the response, another connection sees what it did."""
    response = move(client, "P-1", "ann", "bob", 3000)

    assert 201 == response.status_code
    assert {"reference": "P-1", "source": "ann", "target": "bob", "amount": 3000} == response.json()
    assert {"ann": 7000, "bob": 3000} == balances(other)
    assert ["D-1", "P-1"] == references(other)
    assert {"number": "bob", "balance": 3000} == client.get("/accounts/bob").json()


def test_the_response_is_sent_after_the_commit(app: FastAPI, container: Bank, other: Engine) -> None:
    """Not a byte of the response is sent before the work is durable."""
    steps: list[str] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                steps.append(f"response {message['status']}")
            await send(message)

        await app(scope, receive, note)

    @container.handlers().before_commit(MoneyMoved)
    def commit(event: MoneyMoved, uow: port.Bank) -> None:
        steps.append("commit")

    @container.handlers().after_commit(MoneyMoved)
    def durable(event: MoneyMoved) -> None:
        steps.extend(references(other))

    with running(watched) as client:
        client.post("/accounts", json={"number": "ann"})
        steps.clear()
        move(client, "D-1", None, "ann", 1)

    assert ["commit", "D-1", "response 201"] == steps


def test_requests_at_once(client: httpx.Client, other: Engine) -> None:
    """Every transfer that was answered with 201 is there, no other is, and no money is lost or made."""

    def send(number: int) -> tuple[str, int]:
        source, target = ("ann", "bob") if number % 3 else ("bob", "ann")
        return f"P-{number:02}", move(client, f"P-{number:02}", source, target, 100 + number).status_code

    with ThreadPoolExecutor(8) as threads:
        answers = dict(threads.map(send, range(40)))

    done = sorted(reference for reference, status in answers.items() if status == 201)
    assert {201, 409, 422} >= set(answers.values())
    assert ["D-1", *done] == references(other)
    assert 10000 == sum(balances(other).values())
    assert done


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("transfer", "status", "title", "detail"),
    [
        (("P-1", "ann", "bob", 10001), 422, "Refused", "account 'ann' holds 100.00 and cannot pay 100.01"),
        (("P-1", "ann", "zoe", 1), 404, "Not found", "There is no Account 'zoe'."),
        (("D-1", "ann", "bob", 1), 409, "Conflict", "A unique value is taken; nothing was done."),
    ],
)
def test_what_is_refused(
    client: httpx.Client, other: Engine, transfer: tuple[str, str, str, int], status: int, title: str, detail: str
) -> None:
    """A refusal is a problem that says why, and leaves no trace."""
    response = move(client, *transfer)

    assert {"title": title, "status": status, "detail": detail} == response.json()
    assert (status, PROBLEM) == (response.status_code, response.headers["content-type"])
    assert ["D-1"] == references(other)
    assert {"ann": 10000, "bob": 0} == balances(other)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_never_reaches_the_bank(client: httpx.Client) -> None:
    """What is no transfer is refused before a unit begins."""
    assert 422 == move(client, "P-1", "ann", "bob", 0).status_code
    assert 422 == move(client, "P 1", "ann", "bob", 1).status_code


@pytest.mark.parametrize("number", ["%00", "ann%20", "x" * 3000])
def test_what_is_no_number_of_an_account(client: httpx.Client, number: str) -> None:
    """A path is looked at like a body is: the database need not cope with what can be no number."""
    assert 422 == client.get(f"/accounts/{number}").status_code
    assert 404 == client.get("/accounts/zoe").status_code


# -------------------------------------------------------------------------------------------------- a commit that fails


def test_a_constraint_that_is_checked_at_commit(client: httpx.Client, other: Engine) -> None:
    """A commit that the database refuses is a conflict, and nothing of it is there."""
    with other.begin() as connection:
        for statement in REFUSE_AT_COMMIT[other.dialect.name]:
            connection.exec_driver_sql(statement)

    response = move(client, "P-1", "ann", "bob", 13)

    assert 409 == response.status_code
    assert "A reference would point at nothing; nothing was done." == response.json()["detail"]
    assert {"ann": 10000, "bob": 0} == balances(other)
    assert ["D-1"] == references(other)
    assert 201 == move(client, "P-1", "ann", "bob", 14).status_code


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("kills", "status"), [(1, 201), (2, 503)])
def test_a_connection_that_is_killed(
    client: httpx.Client, container: Bank, other: Engine, kills: int, status: int
) -> None:
    """A connection lost before COMMIT is tried again; if that fails too, nothing was done and the client is told."""
    left = [KILL] * kills

    @container.handlers().before_commit(MoneyMoved)
    def kill(event: MoneyMoved, uow: port.Bank) -> None:
        if left:
            with other.connect() as connection:
                connection.execute(text(left.pop()))
            uow.accounts.get_or_none("zoe")

    response = move(client, "P-1", "ann", "bob", 1)

    assert status == response.status_code
    assert (["D-1", "P-1"] if status == 201 else ["D-1"]) == references(other)
    assert 201 == move(client, "P-2", "ann", "bob", 1).status_code


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_connection_that_is_killed_before_commit(client: httpx.Client, container: Bank, other: Engine) -> None:
    """A COMMIT that found no connection is no success."""
    killing = [True]

    @container.handlers().before_commit(MoneyMoved)
    def kill(event: MoneyMoved, uow: port.Bank) -> None:
        with other.connect() as connection:
            connection.execute(text(KILL if killing else "SELECT 1"))

    assert 503 == move(client, "P-1", "ann", "bob", 1).status_code
    assert ["D-1"] == references(other)
    killing.clear()
    assert 201 == move(client, "P-1", "ann", "bob", 1).status_code


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_failures_are_told_as(client: httpx.Client, container: Bank, other: Engine) -> None:
    """What is transient was tried again; the problem shows nothing that the database said."""
    tried: list[str] = []
    failures: dict[str, Exception] = {}

    @container.handlers().before_commit(MoneyMoved)
    def fail(event: MoneyMoved, uow: port.Bank) -> None:
        tried.append(event.reference)
        raise failures[event.reference]

    for error, status, title, tries in (
        (StaleVersion("secret"), 409, "Conflict", 2),
        (SerializationFailure("secret"), 409, "Conflict", 2),
        (Deadlock("secret"), 409, "Conflict", 2),
        (LockTimeout("secret"), 409, "Conflict", 2),
        (ConnectionLost("secret"), 503, "Unavailable", 2),
        (StatementTimeout("secret"), 503, "Unavailable", 1),
        (CommitOutcomeUnknown("SqlBank", "secret"), 503, "Outcome unknown", 1),
    ):
        name = type(error).__name__
        failures[name] = error
        response = move(client, name, "ann", "bob", 1)

        assert (status, title) == (response.status_code, response.json()["title"])
        assert "secret" not in response.text
        assert tries == tried.count(name)
    assert ["D-1"] == references(other)


def test_no_connection_is_free(container: Bank, app: FastAPI, other: Engine) -> None:
    """A pool that has no connection left is unavailable, and serves again when it has."""
    container.config.engine.from_value({"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01})
    with running(app) as client:
        client.post("/accounts", json={"number": "ann"})
        answers: list[httpx.Response] = []

        def ask_at_the_same_time(event: MoneyMoved, uow: port.Bank) -> None:
            answers.append(client.get("/accounts/ann"))

        async def ask_and_let_the_server_answer(event: MoneyMoved, uow: port.AsyncBank) -> None:
            await asyncio.to_thread(ask_at_the_same_time, event, uow.sync)

        asynchronous = isinstance(container.bank(), port.AsyncBank)
        container.handlers().before_commit(MoneyMoved)(
            ask_and_let_the_server_answer if asynchronous else ask_at_the_same_time
        )

        assert 201 == move(client, "D-1", None, "ann", 1).status_code
        assert [503] == [answer.status_code for answer in answers]
        assert "No connection could be had; nothing was done. Try again later." == answers[0].json()["detail"]
        assert 1 == client.get("/accounts/ann").json()["balance"]


def test_a_bug_is_no_problem_of_the_client(client: httpx.Client, container: Bank, other: Engine) -> None:
    """What the application does not expect is a 500; the unit is rolled back all the same."""

    @container.handlers().before_commit(MoneyMoved)
    def fail(event: MoneyMoved, uow: port.Bank) -> None:
        raise RuntimeError("bug")

    assert 500 == move(client, "P-1", "ann", "bob", 1).status_code
    assert ["D-1"] == references(other)


@pytest.mark.parametrize("table", ["demo_accounts", "demo_transfers"])
def test_a_table_that_is_missing(client: httpx.Client, other: Engine, table: str) -> None:
    """A database that is not what the application takes it for is a fault of the server, and no conflict."""
    with other.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO demo_gone"))

    assert 500 == move(client, "P-1", "ann", "bob", 1).status_code

    with other.begin() as connection:
        connection.execute(text(f"ALTER TABLE demo_gone RENAME TO {table}"))

    assert ["D-1"] == references(other)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_fault_that_only_the_commit_meets(client: httpx.Client, container: Bank, other: Engine) -> None:
    """What the database refused for a reason that is not known is no problem of the client either."""

    @container.handlers().before_commit(MoneyMoved)
    def fail(event: MoneyMoved, uow: port.Bank) -> None:
        raise DatabaseError("secret")

    response = move(client, "P-1", "ann", "bob", 1)

    assert 500 == response.status_code
    assert "secret" not in response.text
    assert ["D-1"] == references(other)


def test_what_fails_after_the_commit(
    client: httpx.Client, container: Bank, other: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The work is done, and the client is told so; what failed is in the log, and not in the answer."""

    @container.handlers().after_commit(MoneyMoved)
    def fail(event: MoneyMoved) -> None:
        raise RuntimeError("secret")

    response = move(client, "P-1", "ann", "bob", 1)

    assert {
        "title": "Done",
        "status": 500,
        "detail": "The work is done, but what follows it failed. Do not send it again.",
    } == response.json()
    assert (500, PROBLEM) == (response.status_code, response.headers["content-type"])
    assert ["D-1", "P-1"] == references(other)
    assert "RuntimeError: secret" in caplog.text
    assert 409 == move(client, "P-1", "ann", "bob", 1).status_code


# ----------------------------------------------------------------------------------------------------------- the server


def test_the_engine_lives_as_long_as_the_server(container: Bank, app: FastAPI) -> None:
    """The container's resources are made when the server starts, and disposed of when it stops."""
    assert not container.engine.initialized

    with running(app) as client:
        client.post("/accounts", json={"number": "ann"})
        pool: Any = container.engine().pool

        assert 1 == pool.checkedin()

    assert 0 == pool.checkedin()
    assert not container.engine.initialized


def test_the_fake_behind_the_web(tmp_path: Any) -> None:
    """One line puts the fake behind the web service too."""
    container = Container()
    container.config.database_url.from_value(f"sqlite:///{tmp_path / 'never.db'}")

    with (
        container.override_providers(bank=providers.Factory(FakeBank, make_store())),
        running(create_app(container)) as client,
    ):
        client.post("/accounts", json={"number": "ann"})
        answers = Counter(move(client, "D-1", None, "ann", 5).status_code for _ in range(2))

        assert {201: 1, 409: 1} == answers
        assert 5 == client.get("/accounts/ann").json()["balance"]

    assert [] == list(tmp_path.iterdir())
    container.unwire()


def test_serve(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the database; its tables are made."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'bank.db'}")

    with running(serve()) as client:
        assert 201 == client.post("/accounts", json={"number": "ann"}).status_code
