"""
Servers that a test starts, kills and restarts.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from uow.testing import DatabaseServer, MariaDbServer, PostgresServer, Unavailable
from uow.testing import _databases as databases
from uow.testing import _servers as servers


def own_server(kind: str) -> DatabaseServer:
    if kind == "postgresql":
        return PostgresServer(max_prepared_transactions=7, fsync="off")
    return MariaDbServer(innodb_flush_log_at_trx_commit=2)


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    with own_server(request.param) as server:
        yield server


def run(server: DatabaseServer, statement: str) -> list[object]:
    with create_engine(server.url, poolclass=NullPool).begin() as connection:
        result = connection.execute(text(statement))
        return list(result.scalars()) if result.returns_rows else []


def test_settings_reach_the_server(server: DatabaseServer) -> None:
    """By their own names."""
    if server.name == "postgresql":
        assert ["7"] == run(server, "SHOW max_prepared_transactions")
    else:
        assert [2] == run(server, "SELECT @@innodb_flush_log_at_trx_commit")


def test_what_was_committed_survives_a_kill(server: DatabaseServer) -> None:
    """The server is gone with all of its sessions, and comes back under its address with its data."""
    run(server, "CREATE TABLE survivor (id INTEGER PRIMARY KEY)")
    run(server, "INSERT INTO survivor VALUES (1)")
    connection = create_engine(server.url, poolclass=NullPool).connect()
    connection.execute(text("INSERT INTO survivor VALUES (2)"))
    server.kill()
    with pytest.raises(DBAPIError):
        connection.commit()
    connection.close()
    assert server.pid is None
    with pytest.raises(DBAPIError):
        run(server, "SELECT 1")
    server.kill()
    server.restart()

    assert [1] == run(server, "SELECT id FROM survivor")


def test_a_stop_is_in_order(server: DatabaseServer) -> None:
    """A server that is stopped or started twice is no error, and a restart is another process."""
    first = server.pid
    server.restart()
    second = server.pid
    server.start()

    assert second == server.pid != first
    server.stop()
    server.stop()
    assert server.pid is None
    server.start()
    assert [1] == run(server, "SELECT 1")


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_server_that_does_not_start_is_a_skip_with_its_log(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server said is the reason; its files are removed."""
    monkeypatch.delenv(databases.REQUIRE_VARIABLE, raising=False)
    made = (PostgresServer if kind == "postgresql" else MariaDbServer)(no_such_setting=1)
    with pytest.raises(pytest.skip.Exception, match=r"(?s)does not start. Its log ends:.*no.such.setting"):
        with made:
            pass
    assert made._folder is None
    assert made.pid is None


def test_a_program_that_is_not_installed_is_a_skip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason names it."""
    monkeypatch.delenv(databases.REQUIRE_VARIABLE, raising=False)
    monkeypatch.setattr(servers, "_PROGRAMS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="mariadb: mariadb-install-db is not installed"):
        with MariaDbServer():
            pass


def test_a_folder_that_cannot_be_filled_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as on a full disk."""

    def refuse(folder: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(servers, "initialised_postgresql", refuse)
    server = PostgresServer()
    with pytest.raises(Unavailable, match="cannot be made, or it cannot be run: no space left"):
        server.start()
    server._remove()
    server._remove()


def test_a_server_that_does_not_stop_is_killed(server: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is told, and the server can be started again."""
    os.kill(server.pid or 0, signal.SIGSTOP)
    with monkeypatch.context() as patches, pytest.raises(subprocess.TimeoutExpired):
        patches.setattr(servers, "_PATIENCE", 0.01)
        server.stop()
    assert server.pid is None
    server.start()
    assert [1] == run(server, "SELECT 1")
