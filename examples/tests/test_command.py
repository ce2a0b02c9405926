"""
The ``uow`` command around its subcommands.
"""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, version

import pytest
import typer
from typer.testing import CliRunner

from uow.adapters import cli
from uow.errors import ConfigurationError

Install = Callable[..., None]
Main = Callable[..., tuple[object, str, str]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs these commands in place of the real ones."""

    def install(**commands: object) -> None:
        class Found(EntryPoint):
            def load(self) -> object:
                command = commands[self.name]
                if isinstance(command, Exception):
                    raise command
                return command

        def entry_points(group: str) -> list[Found]:
            return [Found(name, "somewhere:it", group) for name in commands]

        monkeypatch.setattr(cli, "entry_points", entry_points)

    return install


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs the command in this process; returns its exit status, output and errors."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["uow", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output, errors = capsys.readouterr()
        return caught.value.code, output, errors

    return run


def say(what: str = "hello") -> None:
    """Say something."""
    typer.echo(what)


def test_a_function_is_a_command(install: Install, main: Main) -> None:
    """An entry point that is a function is a command of that name."""
    install(say=say)

    assert (0, "bye\n", "") == main("say", "--what", "bye")


def test_an_application_is_a_group_of_commands(install: Install, main: Main) -> None:
    """An entry point that is a Typer has commands of its own."""
    group = typer.Typer()
    group.command("say")(say)
    group.command("shout")(say)
    install(words=group)

    assert (0, "hello\n", "") == main("words", "say")


def test_a_command_whose_libraries_are_missing(install: Install, main: Main) -> None:
    """It names the extra to install when it is called, whatever its arguments, and the others work."""
    install(demo=ModuleNotFoundError("No module named 'rich'", name="rich"), say=say)

    assert (2, "", "Cannot run `uow demo`: No module named 'rich'. Install uow[cli].\n") == main("demo", "--fake", "x")
    assert (0, "hello\n", "") == main("say")


def test_a_command_that_cannot_be_loaded(install: Install, main: Main) -> None:
    """It says why when it is called."""
    install(theirs=AttributeError("module 'theirs' has no attribute 'it'"))

    expected = "Cannot run `uow theirs`: module 'theirs' has no attribute 'it'. Update or remove what provides it.\n"

    assert (2, "", expected) == main("theirs")


def test_without_typer(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command names the extra that it needs."""
    monkeypatch.setitem(sys.modules, "typer", None)

    status, output, errors = main()

    assert (2, "") == (status, output)
    assert "The uow command needs typer, which is not installed. Install uow[cli].\n" == errors


def test_our_errors_are_shown_as_they_are(install: Install, main: Main) -> None:
    """An error of the framework says what is wrong and what to do; a traceback would only be in the way."""

    def fail() -> None:
        raise ConfigurationError("the sky is down", "Wait.")

    install(fail=fail, say=say)

    expected = "Wrong configuration: the sky is down. Wait.\nSet UOW_TRACEBACK=1 to see where it comes from.\n"

    assert (1, "", expected) == main("fail")


def test_other_errors_are_named(install: Install, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error is shown with its type, and with its traceback if asked for."""

    def fail() -> None:
        raise KeyError("ann")

    install(fail=fail, say=say)

    assert (1, "", "KeyError: 'ann'\nSet UOW_TRACEBACK=1 to see where it comes from.\n") == main("fail")

    monkeypatch.setenv("UOW_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main()


def test_the_version() -> None:
    """``uow --version`` tells what is installed."""
    result = CliRunner().invoke(cli.application(), ["--version"])

    assert (0, f"uow {version('uow')}\n") == (result.exit_code, result.output)


def test_the_installed_command() -> None:
    """The script finds the demo, and characters that the output cannot hold are replaced."""
    code = "import sys; sys.argv = ['uow', 'demo', '--fake']; from uow.adapters.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "ascii"},
    )

    assert (0, b"") == (done.returncode, done.stderr)
    assert b"+-- line 2: D-1,,ann,250.00" in done.stdout
