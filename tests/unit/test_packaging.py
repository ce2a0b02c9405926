"""
What is shipped is what is there, and what can be imported is what was meant to be.
"""

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SETUPTOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]

in_checkout = pytest.mark.skipif(not (ROOT / "domain").is_dir(), reason="reads the folders of a checkout")


def shipped_modules() -> list[str]:
    """Name every module of every package; an editable install cannot be walked from the top."""
    return [
        name
        for package in SETUPTOOLS["packages"]
        for name in (
            package,
            *(
                f"{package}.{module.name}"
                for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
                if not module.ispkg
            ),
        )
    ]


def is_public(module: str) -> bool:
    return not any(part.startswith("_") for part in module.split("."))


def run_python(code: str, directory: Path) -> str:
    """Run *code* in a fresh interpreter, in a *directory* that holds none of our folders."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=directory, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr

    return done.stdout


@in_checkout
def test_every_package_is_listed() -> None:
    """A package on disk stands in pyproject.toml's list, without which it would be lost in the wheel."""
    on_disk = {
        ".".join((prefix, *init.parent.relative_to(ROOT / folder).parts))
        for prefix, folder in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }

    assert sorted(on_disk) == sorted(SETUPTOOLS["packages"])


@in_checkout
def test_every_folder_with_modules_is_a_package() -> None:
    """A folder with modules has an ``__init__.py``; without one it would be in no list. Tests are not shipped."""
    without = {
        module.parent.relative_to(ROOT).as_posix()
        for folder in FOLDERS.values()
        for module in (ROOT / folder).rglob("*.py")
        if not (module.parent / "__init__.py").exists() and not is_test(module)
    }

    assert set() == without


@in_checkout
def test_every_public_module_has_its_stub() -> None:
    """Type checkers find a folder under its import name by a one-line stub for each package and public module."""
    expected: dict[str, str] = {}
    for prefix, folder in FOLDERS.items():
        if prefix == folder:
            continue
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            module = ".".join(part for part in parts if part != "__init__")
            if is_public(module) and not is_test(file):
                stub = Path(*prefix.split("."), *parts).with_suffix(".pyi")
                expected[stub.as_posix()] = f"from {'.'.join(filter(None, (folder, module)))} import *\n"

    typings = ROOT / "typings"

    assert {
        stub.relative_to(typings).as_posix(): stub.read_text("utf-8") for stub in typings.rglob("*.pyi")
    } == expected


def is_test(file: Path) -> bool:
    return file.stem.startswith("test_") or file.stem == "conftest"


@pytest.mark.parametrize("name", [*filter(is_public, shipped_modules())])
def test_public_names_are_exported(name: str) -> None:
    """``__all__`` is sorted, each of its names exists, and what a public module defines is in it."""
    module = importlib.import_module(name)
    exported = list(getattr(module, "__all__", ()))

    assert exported == sorted(exported, key=isort_key)
    assert [] == [name for name in exported if not hasattr(module, name)]
    assert set() == defined_in(module) - set(exported)


def isort_key(name: str) -> tuple[int, str]:
    """Order as ruff does: constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def defined_in(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type | FunctionType) and value.__module__ == module.__name__ and is_public(name)
    }


@pytest.mark.parametrize("name", ["uow", "uow.domain", "uow.errors", "uow.adapters", "uow.adapters.memory"])
def test_the_core_needs_attrs_alone(name: str, tmp_path: Path) -> None:
    """Importing the core or the fake imports no library that is an extra."""
    extras = {"dependency_injector", "psycopg", "pymysql", "pytest", "rich", "sqlalchemy", "typer"}

    imported = run_python(f"import sys, {name}; print(*sys.modules)", tmp_path).split()

    assert name in imported
    assert set() == extras.intersection(imported)


@pytest.mark.parametrize("folder", ["adapters", "domain", "examples", "testing", "tests"])
def test_no_generic_name_is_taken_at_the_top_level(folder: str, tmp_path: Path) -> None:
    """The folders of the repository have no import name of their own, so a user's own ones are safe."""
    ours = f"{folder}.{'bank' if folder == 'examples' else 'cli' if folder == 'adapters' else '_errors'}"
    look = f"""
from importlib.util import find_spec
try:
    print(find_spec({ours!r}))
except ModuleNotFoundError:
    print(None)
"""

    assert run_python(look, tmp_path).strip() == "None"  # another library may well have taken the folder's own name


def test_no_test_is_shipped() -> None:
    """Tests stay out of the packages; those of the examples stand in ``examples/tests``, which is none."""
    assert [] == [name for name in shipped_modules() if is_test(Path(name.rpartition(".")[2]))]


def test_types_are_shipped() -> None:
    """The marker that lets type checkers read the package is installed with it."""
    spec = find_spec("uow")

    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").is_file()


@in_checkout
def test_ci_runs_the_command_of_the_readme() -> None:
    """Each test command that the README shows is a line of ``.ci/run``."""
    ci = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    fences = re.findall(
        r"^```(?:sh|shell|bash|console)\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    commands = [line.removeprefix("$ ") for fence in fences for line in fence.splitlines() if "uv run pytest" in line]

    assert [] == [command for command in commands if command not in ci]
