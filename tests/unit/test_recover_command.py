"""
The command ``uow recover``: what it reads, what it shows, and what its exit status says.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import URL, NullPool, create_engine, delete, insert
from typer.testing import CliRunner, Result

import uow.adapters.sqlalchemy._recover as command
from uow import recover
from uow._branches import new_id
from uow.adapters.sqlalchemy import SqlResource, uow_metadata

OUTCOME, BRANCH, HEURISTIC = (uow_metadata.tables[f"uow_{name}"] for name in ("outcome", "branch", "heuristic"))
ID = "u1.shop.bank.v1.01M7ZPYMT1TRATA9Q0S78J2VXX"
Run = Callable[..., Result]


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[SqlResource]:
    engine = create_engine(f"sqlite:///{tmp_path / 'bank.db'}", poolclass=NullPool)
    uow_metadata.create_all(engine)
    yield SqlResource(engine, "bank")
    engine.dispose()


@pytest.fixture
def config(tmp_path: Path, bank: SqlResource) -> Path:
    file = tmp_path / "uow.toml"
    file.write_text(f'domain = "shop"\n[resources]\nbank = "{bank.engine.url}"\n')
    return file


@pytest.fixture
def run(config: Path) -> Run:
    app = typer.Typer()
    app.command()(command.recover)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--config", str(config), *arguments])

    return run


def decide(bank: SqlResource, id: str = ID, branches: str = "bank", **moments: datetime) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=8)
    moments = {"decided_at": long_ago, "expires_at": long_ago} | moments
    with bank.engine.begin() as connection:
        connection.execute(insert(OUTCOME).values(id=id, outcome="C", branches=branches, **moments))


def test_nothing_is_left(run: Run) -> None:
    result = run()

    assert (result.exit_code, result.output) == (0, "Nothing is left in doubt.\n")


def test_a_heuristic_outcome_is_reported_until_people_have_put_it_right(run: Run, bank: SqlResource) -> None:
    decide(bank)

    for _ in range(2):
        result = run()

        assert result.exit_code == 1
        assert result.stdout.splitlines() == [
            f"HEURISTIC: {ID} in bank: it was rolled back by somebody, although it was decided to commit.",
            "  Do its work there by hand, and insert its id into uow_branch in the same transaction. "
            "Then delete it from uow_heuristic in bank.",
            "Left: 1 heuristic.",
        ]
    with bank.engine.begin() as connection:
        connection.execute(insert(BRANCH).values(id=ID, at=datetime.now(UTC)))
        connection.execute(delete(HEURISTIC))
    assert run().exit_code == 0


def test_what_has_expired_is_counted(run: Run, bank: SqlResource) -> None:
    for number in range(2):
        decide(bank, f"UNIT{number}")

    assert run().output == "Removed 2 expired outcomes.\nNothing is left in doubt.\n"


def test_what_is_in_doubt_is_shown(run: Run, bank: SqlResource) -> None:
    decide(bank, branches="stock", decided_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    result = run()

    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert words.startswith("in doubt since (UTC) transaction database now ")
    assert f"2026-01-02 03:04:05 {ID} stock in doubt: 'stock' is not among the resources" in words
    assert words.endswith(" Left: 1 in doubt.")


def test_a_database_that_is_down(run: Run, config: Path) -> None:
    with config.open("a") as file:
        file.write('stock = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1"\n')

    result = run()

    assert result.exit_code == 1
    assert result.stdout.startswith("NOT ASKED: stock: ")
    assert result.stdout.endswith("Left: 1 not asked.\n")


def test_json(run: Run, bank: SqlResource) -> None:
    decide(bank, branches="bank,stock", decided_at=datetime(2026, 1, 2, tzinfo=UTC))

    result = run("--json", "--grace", "0")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "doubts": [
            {
                "id": ID,
                "resource": "stock",
                "since": "2026-01-02T00:00:00+00:00",
                "state": "in doubt",
                "problem": "'stock' is not among the resources, which may have it prepared still",
            }
        ],
        "heuristics": [
            {
                "id": ID,
                "resource": "bank",
                "problem": "it was rolled back by somebody, although it was decided to commit",
            }
        ],
        "unreachable": [],
        "purged": 0,
        "clean": False,
    }


def test_a_dry_run(run: Run, bank: SqlResource) -> None:
    decide(bank)

    assert run("--dry-run").exit_code == 1
    assert bank.heuristics() == []


def test_branches_of_both_servers(
    run: Run, config: Path, postgresql_url: URL, mariadb_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever driver a URL names, of an asynchronous one too, the synchronous one of its database is used."""
    places = {"ledger": postgresql_url.set(drivername="postgresql+asyncpg"), "stock": mariadb_url}
    id = new_id("shop", "bank")
    engine = create_engine(postgresql_url, poolclass=NullPool)
    for url in (postgresql_url, mariadb_url):
        uow_metadata.create_all(create_engine(url, poolclass=NullPool))
    with engine.connect() as connection:
        connection.execute(insert(BRANCH).values(id=id, at=datetime.now(UTC)))
        connection.exec_driver_sql(f"PREPARE TRANSACTION '{id}/ledger'")
    for name, url in places.items():
        monkeypatch.setenv(f"{name.upper()}_URL", url.render_as_string(hide_password=False))
    with config.open("a") as file:
        file.writelines(f'{name} = {{ env = "{name.upper()}_URL" }}\n' for name in places)

    listed = run("--grace", "0", "--dry-run")
    done = run("--grace", "0")

    assert (listed.exit_code, done.exit_code) == (1, 0), (listed.output, done.output)
    assert f"{id} ledger in doubt Left: 1 in doubt." in " ".join(listed.stdout.split())
    assert f"{id} ledger rolled back Nothing is left in doubt." in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("domain =", "it is not TOML ("),
        ("[resource]", "it has 'resource', which means nothing. Write domain and [resources] alone."),
        ('domain = "shop"', 'it names no database. Add a table [resources], with a line such as bank = "URL".'),
        ("[resources]", "it names no database."),
        ('resources = "x"', "it names no database."),
        ('domain = "a.b"\n[resources]\nbank = "sqlite://"', "the domain is called 'a.b'."),
        ('[resources]\n"a b" = "sqlite://"', "the resource is called 'a b'."),
        ("[resources]\nbank = 5", "the resource 'bank' is 5. Write its URL, or { env = \"VARIABLE\" }."),
        (
            '[resources]\nbank = { env = "NOT_SET" }',
            "the resource 'bank' is in the variable NOT_SET, which is not",
        ),
        ('[resources]\nbank = "nonsense"', "the resource 'bank' has no URL that can be read."),
        ('[resources]\nbank = "oracle://x/y"', "the resource 'bank' is of another kind than is known."),
    ],
)
def test_a_configuration_that_cannot_be_used(run: Run, config: Path, content: str, problem: str) -> None:
    config.write_text(content)

    result = run()

    assert result.exit_code == 2
    assert result.stderr.startswith(f"Cannot use {config}: {problem}"), result.stderr
    assert result.stdout == ""


def test_a_driver_that_is_missing(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    config.write_text('[resources]\nbank = "postgresql://x/y"')

    result = run()

    assert result.exit_code == 2
    assert "the resource 'bank' needs psycopg. Install uow[postgresql] or uow[mariadb]." in result.stderr


def test_a_file_that_is_not_there(run: Run, config: Path) -> None:
    config.unlink()

    assert run().exit_code == 2


def test_watching_tells_what_happens_until_it_is_stopped(
    run: Run, bank: SqlResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that finds nothing says nothing. A signal does not cut a run off, and the last one gives the status."""
    runs: list[Any] = []

    def counted(*resources: Any, **options: Any) -> Any:
        runs.append(recover(*resources, **options))
        if len(runs) == 2:
            decide(bank)
        if len(runs) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return runs[-1]

    monkeypatch.setattr(command, "recover_all", counted)
    before = signal.getsignal(signal.SIGTERM)

    result = run("--watch", "0.1")

    assert [found.clean for found in runs] == [True, True, False]
    assert result.exit_code == 1
    assert result.stdout.count("HEURISTIC") == 1
    assert "Nothing" not in result.stdout
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_installed_command(config: Path) -> None:
    """It is a command of ``uow``, and SIGINT ends it cleanly."""
    code = "import sys; from uow.adapters.cli import main; main()"
    watching = subprocess.Popen(
        [sys.executable, "-c", code, "recover", "--config", str(config), "--watch", "0.1", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["clean"] is True
        watching.send_signal(signal.SIGINT)

        assert watching.wait(timeout=60) == 0
    finally:
        watching.kill()
        watching.communicate()
