"""
The ``uow`` command. Its subcommands are found in the entry-point group ``uow.commands``.
"""

import io
import os
import sys
from contextlib import suppress
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, NoReturn, cast

from uow.errors import UnitOfWorkError

if TYPE_CHECKING:  # a command without its libraries is to say so, and not to fail here
    import typer

__all__ = ["application", "main"]

GROUP = "uow.commands"
_TRACEBACK = "UOW_TRACEBACK"


def main() -> None:
    """
    Run the ``uow`` command and leave with its exit status, 0 for success.
    """
    with suppress(AttributeError):  # where the output is no file
        # That a terminal cannot show a name is no reason to fail.
        cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="replace")
    try:
        run = application()
    except ModuleNotFoundError as error:
        _stop(f"The uow command needs {error.name}, which is not installed. Install uow[cli].", 2)
    try:
        run()
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        told = f"{error}" if isinstance(error, UnitOfWorkError) else f"{type(error).__name__}: {error}"
        _stop(f"{told}\nSet {_TRACEBACK}=1 to see where it comes from.", 1)


def application() -> "typer.Typer":
    """
    Put the command together from what is installed.

    A command is an entry point of the group ``uow.commands``: a function, or a ``typer.Typer`` with commands of its
    own. One that cannot be loaded says so when it is called, and the others work.

    Raises:
        ModuleNotFoundError: Typer is not installed.
    """
    import typer

    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode="markdown"
    )

    @app.callback(invoke_without_command=True)
    def uow(show_version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
        """A unit of work that keeps its word."""
        if show_version:
            typer.echo(f"uow {version('uow')}")
            raise typer.Exit

    for entry_point in sorted(entry_points(group=GROUP)):
        try:
            command = entry_point.load()
        except Exception as error:
            _stand_in(app, entry_point.name, error)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry_point.name)
        else:
            app.command(entry_point.name)(command)
    return app


def _stand_in(app: "typer.Typer", name: str, error: Exception) -> None:
    """Stand in for a command that cannot be loaded, whatever arguments it is given."""
    hint = "Install uow[cli]." if isinstance(error, ModuleNotFoundError) else "Update or remove what provides it."
    message = f"Cannot run `uow {name}`: {error}. {hint}"

    @app.command(
        name,
        help=message,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def explain() -> None:
        _stop(message, 2)


def _stop(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(status)
