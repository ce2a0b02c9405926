"""
The command ``uow recover``: finish what distributed transactions left in doubt.
"""

import json
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from attrs import asdict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from uow import Recovery, State, demand_name, last_agent_of
from uow import recover as recover_all
from uow.errors import ConfigurationError

from ._resource import SqlResource

__all__ = ["recover"]

WIDTH_OF_A_FILE = 160
CONNECT_TIMEOUT = 5
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mariadb+pymysql", "mariadb": "mariadb+pymysql"}


def recover(
    config: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            help='What to recover: a TOML file with domain = "shop" and a table \\[resources], in which each database '
            'has its name and its URL, or the variable of the environment that holds it: bank = "postgresql://..." or '
            'bank = { env = "BANK_URL" }.',
        ),
    ],
    watch: Annotated[
        float | None,
        typer.Option(
            min=0.1, show_default="once", metavar="SECONDS", help="Do it again after so long, until SIGINT or SIGTERM."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is in doubt, and change nothing.")] = False,
    grace: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Leave alone what is younger: its process may be alive."),
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object a run, on one line.")] = False,
) -> None:
    """
    Finish what distributed transactions left in doubt.

    Any number of these may run at any time, beside live processes too. Branches that somebody else ended in another way
    than was decided are reported, and left for people to put right. The exit status is 0 if nothing is left, 1 if
    something is in doubt or wrong, or a database could not be asked (in the last run), and 2 if it could not begin.
    """
    try:
        domain, resources = _configured(config)
    except ConfigurationError as error:
        _stop(f"Cannot use {config}: {error.problem}. {error.hint}")
    # A terminal tells its own width, and a file has none.
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE, highlight=False)
    with _until_stopped() as stopped:
        while True:
            found = recover_all(*resources, domain=domain, grace=grace, dry_run=dry_run)
            if as_json:
                typer.echo(json.dumps(_plain(found)))
            elif watch is None or found.doubts or not found.clean:
                _print(console, found)
            if watch is None or stopped.wait(watch):
                break
    if not found.clean:
        raise typer.Exit(1)


@contextmanager
def _until_stopped() -> Generator[threading.Event]:
    """Give an event that is set when the process is to end, so that it does not end amid a run."""
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield stopped
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------- the configuration


def _configured(config: Path) -> tuple[str, list[SqlResource]]:
    """Read the domain and the databases."""
    try:
        content = tomllib.loads(config.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"it is not TOML ({error})", "Correct it.") from error
    if unknown := sorted(content.keys() - {"domain", "resources"}):
        raise ConfigurationError(f"it has {unknown[0]!r}, which means nothing", "Write domain and [resources] alone.")
    domain = content.get("domain", "uow")
    demand_name("domain", domain)
    if not (isinstance(resources := content.get("resources"), dict) and resources):
        raise ConfigurationError("it names no database", 'Add a table [resources], with a line such as bank = "URL".')
    return domain, [_resource(*item) for item in cast("dict[str, object]", resources).items()]


def _resource(name: str, value: object) -> SqlResource:
    match value:
        case str(url):
            pass
        case {"env": str(variable)}:
            url = os.environ.get(variable, "")
            if not url:
                raise ConfigurationError(
                    f"the resource {name!r} is in the variable {variable}, which is not set", "Set it to the URL."
                )
        case _:
            raise ConfigurationError(f"the resource {name!r} is {value!r}", 'Write its URL, or { env = "VARIABLE" }.')
    try:
        address = make_url(url)
        backend = address.get_backend_name()
        if backend == "sqlite":
            return SqlResource(create_engine(address.set(drivername="sqlite"), poolclass=NullPool), name)
        address = address.set(drivername=_DRIVERS[backend])
        limit = {"connect_timeout": CONNECT_TIMEOUT} if "connect_timeout" not in address.query else {}
        return SqlResource(create_engine(address, poolclass=NullPool, connect_args=limit), name)
    except ArgumentError:
        problem, hint = "has no URL that can be read", "Write one, such as postgresql://user@host/database."
    except KeyError:
        problem, hint = "is of another kind than is known", "PostgreSQL, MariaDB and SQLite are."
    except ModuleNotFoundError as error:
        problem, hint = f"needs {error.name}", "Install uow[postgresql] or uow[mariadb]."
    raise ConfigurationError(f"the resource {name!r} {problem}", hint)


# ----------------------------------------------------------------------------------------------------------- the report


def _plain(found: Recovery) -> Mapping[str, Any]:
    """Return what JSON can say."""
    plain = asdict(found, value_serializer=lambda _, __, value: _as_text(value))
    return {**plain, "clean": found.clean}


def _as_text(value: Any) -> Any:
    if isinstance(value, State):
        return value.value
    return value.astimezone(UTC).isoformat() if hasattr(value, "astimezone") else value


def _print(console: Console, found: Recovery) -> None:
    if found.doubts:
        table = Table("in doubt since (UTC)", "transaction", "database", "now", box=SIMPLE_HEAD)
        for doubt in found.doubts:
            now = doubt.state.value + (f": {doubt.problem}" if doubt.problem else "")
            since = doubt.since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
            table.add_row(since, Text(doubt.id, overflow="fold"), doubt.resource, Text(now))
        console.print(table)
    for heuristic in found.heuristics:
        console.print(Text(f"HEURISTIC: {heuristic.id} in {heuristic.resource}: {heuristic.problem}.", "red"))
        console.print(
            "  Do its work there by hand, and insert its id into uow_branch in the same transaction. "
            f"Then delete it from uow_heuristic in {last_agent_of(heuristic.id)}."
        )
    for one in found.unreachable:
        console.print(Text(f"NOT ASKED: {one.resource}: {one.problem}", "red"))
    if found.purged:
        console.print(f"Removed {found.purged:,} expired outcomes.")
    console.print("Nothing is left in doubt." if found.clean else _summary(found))


def _summary(found: Recovery) -> str:
    counts = {
        "in doubt": len(found.left),
        "heuristic": len(found.heuristics),
        "not asked": len(found.unreachable),
    }
    return "Left: " + ", ".join(f"{number:,} {what}" for what, number in counts.items() if number) + "."


def _stop(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    raise typer.Exit(2)
