"""
The command ``uow demo``: import a file of payments, and show what the unit of work did.
"""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from attrs import Factory, define
from dependency_injector import providers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from rich.tree import Tree
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

from uow import Event, Transition, Verb
from uow.errors import ConfigurationError

from .adapters import FakeBank, MalformedFile, make_store, make_tables, read_lines, with_driver
from .container import Container
from .domain import in_words
from .service import FileRefused, Line, Report

__all__ = ["Story", "demo"]

PAYMENTS = Path(__file__).with_name("payments.csv")
KEPT_SHOWN, REFUSED_SHOWN, ACCOUNTS_SHOWN = 3, 20, 5
WIDTH_OF_A_FILE = 160


def demo(
    file: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            show_default="the payments.csv of the example",
            help="The payments: CSV with the columns reference, source, target and amount. Without a source the money "
            "is paid in, and the account is opened if need be.",
        ),
    ] = PAYMENTS,
    database_url: Annotated[
        str | None,
        typer.Option(
            show_default="a new SQLite file",
            help="SQLAlchemy's URL of the database: sqlite:///bank.db, postgresql+psycopg://..., or "
            "mariadb+pymysql://... Its tables demo_accounts and demo_transfers keep what was imported, so the same "
            "file once more is full of payments that were made before.",
        ),
    ] = None,
    fake: Annotated[bool, typer.Option("--fake", help="Run on the fake, in memory, instead of a database.")] = False,
    atomic: Annotated[bool, typer.Option("--atomic", help="Import nothing if any line is bad.")] = False,
    show: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=f"{KEPT_SHOWN} good and {REFUSED_SHOWN} bad ones",
            help="How many good lines, and how many bad ones, to show.",
        ),
    ] = None,
) -> None:
    """
    Import a file of payments into a bank, and show what the unit of work did.

    The file is one unit and each of its lines a nested one. A good line is kept; a bad one is rolled back alone and
    reported. The whole is committed once. The exit status is 0 if it was, 1 if the file was refused (see --atomic), and
    2 if the import could not begin.
    """
    if fake and database_url:
        raise typer.BadParameter("The fake has no database: give --fake or --database-url.", param_hint="--fake")
    # A terminal tells its own width, and a file has none.
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE, highlight=False)
    story = Story(*(KEPT_SHOWN, REFUSED_SHOWN) if show is None else (show, show))
    container = Container(observers=(story.observe,))
    container.handlers().after_commit(Event)(story.publish)

    with _bank(container, database_url, fake, story):
        try:
            report = _run(container, file, atomic, story)
        except FileRefused as refused:
            report = refused.report
        except MalformedFile as error:
            _stop(f"Cannot import {file}: {error}. Nothing was imported.", 2)
        except BaseException:
            console.print(story.finish())
            raise
        console.print(story.finish())
        console.print()
        _print_report(console, report, atomic, story.refused_shown)
        _print_balances(console, container)
        if database_url is None and not fake:
            url = container.config.database_url()
            console.print(
                Text(f"The database was made for this run. To go on with it: --database-url {url}"), soft_wrap=True
            )
    if atomic and report.refused:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------------- the run


@contextmanager
def _bank(container: Container, database_url: str | None, fake: bool, story: "Story") -> Generator[None]:
    """Give the container the database that was asked for."""
    if fake:
        story.tree.label = Text("FakeBank in memory, which sends no statements", "bold")
        parts = {"handlers": container.handlers, "observers": container.observers}
        with container.override_providers(bank=providers.Factory(FakeBank, make_store(), **parts)):
            yield
        return
    url = database_url or f"sqlite:///{Path(tempfile.mkdtemp(prefix='uow-demo-'), 'bank.db')}"
    container.config.database_url.from_value(with_driver(url))
    engine = _open(container)
    story.tree.label = Text(f"SqlBank on {engine.url.render_as_string()}", "bold")
    story.listen(engine)
    try:
        yield
    finally:
        container.shutdown_resources()


def _open(container: Container) -> Engine:
    """Connect to the database and make its tables, or say why that cannot be."""
    try:
        engine = container.engine()
        make_tables(engine)
    except ModuleNotFoundError as error:
        _stop(f"Cannot use --database-url: {error}. Install uow[postgresql] or uow[mariadb].", 2)
    except ConfigurationError as error:
        _stop(f"Cannot use the database that --database-url names: {error.problem}", 2)
    except (SQLAlchemyError, ValueError) as error:
        reason = str(getattr(error, "orig", error)).strip()
        _stop(f"Cannot use the database that --database-url names: {reason}", 2)
    return engine


def _run(container: Container, file: Path, atomic: bool, story: "Story") -> Report:
    """Import the file, with a progress bar if somebody watches."""
    columns = (TextColumn("Importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with (
        file.open(encoding="utf-8-sig", newline="") as text,
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress,
    ):
        lines = progress.track(read_lines(text), total=_count_lines(file) if errors.is_terminal else None)
        return container.payment_import().run(story.tell(lines), atomic=atomic)


def _count_lines(file: Path) -> int | None:
    """Count the lines behind the header; a pipe cannot be read twice."""
    if not file.is_file():
        return None
    with file.open("rb") as content:
        return sum(1 for _ in content) - 1


# ----------------------------------------------------------------------------------------------------- the story


@define(eq=False)
class Story:
    """
    What a unit did, told as a tree while it happens, in memory that does not grow with the file.

    Args:
        kept_shown: How many released savepoints to show.

        refused_shown: How many that were rolled back.
    """

    kept_shown: int
    refused_shown: int
    tree: Tree = Factory(lambda: Tree(""))
    ended: bool = False
    _line: Tree | None = None
    _fields: str = ""
    _seen: Counter[Verb] = Factory(Counter[Verb])
    _hidden: Counter[Verb] = Factory(Counter[Verb])
    _published: Counter[str] = Factory(Counter[str])
    _events: list[Event] = Factory(list[Event])

    def tell(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Pass *lines* through, and remember what the present one says."""
        for line in lines:
            self._fields = ",".join(line.fields)
            yield line

    def listen(self, engine: Engine) -> None:
        """Hear of what *engine* sends from now on."""
        event.listen(engine, "before_cursor_execute", self._on_statement)
        for name in ("begin", "commit", "rollback"):
            event.listen(engine, name, partial(self._on_control, name.upper()))

    def observe(self, transition: Transition) -> None:
        """Take note of a scope's transition; only of the first unit's."""
        if self.ended:
            return
        match transition.verb, transition.depth:
            case Verb.ENTER, depth if depth:
                title = transition.scope.rpartition(" > ")[2]
                fields = self._fields if self._fields.isprintable() else repr(self._fields)
                self._line = Tree(_one_line(f"{title}: {fields}", "bold"))
            case ((Verb.RELEASE | Verb.ROLLBACK), depth) if depth:
                self._end_line(transition.verb, transition.cause)
            case _, 0 if not transition.after.open:
                self._close_gap()
                self.tree.add(_verdict(transition.after.value, transition.cause))
                self.ended = True
            case _:
                pass

    def publish(self, event: Event) -> None:
        """Take note of an event that was published after the commit."""
        self._published[type(event).__name__] += 1
        if len(self._events) < self.kept_shown:
            self._events.append(event)

    def finish(self) -> Tree:
        """Return the tree, told to its end."""
        if self._published:
            kinds = ", ".join(f"{number:,} {name}" for name, number in sorted(self._published.items()))
            branch = self.tree.add(Text(f"published after the commit: {kinds}", "cyan"))
            for published in self._events:
                branch.add(_one_line(str(published)))
            if more := self._published.total() - len(self._events):
                branch.add(Text(f"... {more:,} more", "dim"))
        return self.tree

    def _end_line(self, verb: Verb, cause: BaseException | None) -> None:
        line, self._line = self._line, None
        assert line is not None
        self._seen[verb] += 1
        if self._seen[verb] > (self.kept_shown if verb is Verb.RELEASE else self.refused_shown):
            self._hidden[verb] += 1
            return
        self._close_gap()
        line.add(_verdict("kept" if verb is Verb.RELEASE else "rolled back", cause))
        self.tree.children.append(line)

    def _close_gap(self) -> None:
        """Sum up the lines that were passed over since the last one shown."""
        if self._hidden:
            words = {Verb.RELEASE: "kept", Verb.ROLLBACK: "rolled back"}
            counts = ", ".join(f"{number:,} {words[verb]}" for verb, number in self._hidden.items())
            self.tree.add(Text(f"... more lines: {counts}", "dim"))
            self._hidden.clear()

    def _on_statement(
        self, connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool
    ) -> None:
        # How the present line ends is not known yet, so its statements are kept as long as there is room for either.
        room = self._seen[Verb.RELEASE] < self.kept_shown or self._seen[Verb.ROLLBACK] < self.refused_shown
        if not self.ended and (room or self._line is None):
            text = re.sub(r"%\((\w+)\)s(?:::\w+)?", r":\1", " ".join(statement.split()))  # as short as can be
            self._send(f"{text}  {values}" if values else text)

    def _on_control(self, statement: str, connection: Any) -> None:
        if not self.ended:
            self._send(statement)

    def _send(self, statement: str) -> None:
        if self._line is None or statement.startswith("BEGIN"):
            self._close_gap()
            self.tree.add(_one_line(statement, "blue"))
        else:
            self._line.add(_one_line(statement, "blue"))


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _verdict(text: str, cause: BaseException | None) -> Text:
    if cause is None:
        return Text(text, "green")
    return Text(f"{text}: {type(cause).__name__}: {cause}", "red")


# ---------------------------------------------------------------------------------------------------- the report


def _print_report(console: Console, report: Report, atomic: bool, shown: int) -> None:
    refused = len(report.refused)
    if not refused:
        console.print(f"Imported {_counted(report.imported, 'payment')}.")
        return
    if atomic:
        console.print(f"Imported nothing: --atomic allows no bad line, and the file has {refused:,}:")
    else:
        imported = _counted(report.imported, "payment")
        console.print(f"Imported {imported}. Rolled back {_counted(refused, 'bad line')}, each alone:")
    width = len(str(report.refused[-1].line))
    for refusal in report.refused[:shown]:
        console.print(Text(f"  line {refusal.line:>{width}}  {refusal.reason}"))
    if refused > shown:
        console.print(f"  ... and {refused - shown:,} more. See them with --show {refused}")


def _print_balances(console: Console, container: Container) -> None:
    accounts = container.balances().richest(ACCOUNTS_SHOWN)
    if accounts:
        balances = ", ".join(f"{account.number} {in_words(account.balance)}" for account in accounts)
        console.print("Who has most now:", Text(balances))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _stop(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    raise typer.Exit(status)
