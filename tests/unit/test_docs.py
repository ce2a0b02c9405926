"""
What the documentation shows is run: code blocks of the README and docs/, and the examples in docstrings.

In a document, ``python`` blocks are run in order in one module, and ``pycon`` blocks in between have their output
compared. A block that must not run says so after the language: ```` ```python no-run ````. Doctests are found by
import name: collected by file, a module of ``domain/`` would be imported a second time under another name.
"""

import doctest
import importlib
import pkgutil
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_ONLY_FIRST_FAILURE
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>python|pycon)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)


def module_names() -> Iterator[str]:
    for package in PACKAGES:
        yield package
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if not module.ispkg:
                yield module.name


def run_examples(test: doctest.DocTest, namespace: dict[str, Any]) -> None:
    """Run the examples of *test*, and fail with doctest's report where one does not print what it shows."""
    report: list[str] = []
    test.globs = namespace
    runner = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
    runner.run(test, out=report.append, clear_globs=False)
    if report:
        pytest.fail("".join(report), pytrace=False)


def run_document(text: str, name: str, namespace: dict[str, Any]) -> None:
    """Run the blocks of a document; a traceback shows its lines."""
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        code = textwrap.dedent(block["code"])
        if block["language"] == "python":
            exec(compile("\n" * line + code, name, "exec"), namespace)
        else:
            run_examples(doctest.DocTestParser().get_doctest(code, {}, name, name, line), namespace)


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a module that can be found by name, as annotations are; it works in a folder of its own."""
    module = ModuleType("documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    return vars(module)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_documents_run(document: Path, namespace: dict[str, Any]) -> None:
    """What the README and the documentation show works."""
    run_document(document.read_text("utf-8"), str(document), namespace)


@pytest.mark.parametrize("name", list(module_names()))
def test_docstrings_run(name: str, namespace: dict[str, Any]) -> None:
    """What a docstring shows works with the names it imports itself."""
    names = dict(namespace)
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name, globs={}):
        namespace.clear()
        namespace.update(names)
        run_examples(test, namespace)


def test_a_wrong_block_fails(namespace: dict[str, Any]) -> None:
    """Blocks share their names, and a ``pycon`` block that shows another output than it has is found."""
    document = "```python\na = 1\n```\n\n- indented:\n\n  ```pycon\n  >>> a\n  2\n\n  ```\n"

    with pytest.raises(pytest.fail.Exception, match=r"Expected:\s+2\s+Got:\s+1"):
        run_document(document, "document", namespace)


def test_a_block_can_be_left_out(namespace: dict[str, Any]) -> None:
    """A block that says ``no-run`` is shown but not run."""
    run_document("```python no-run\nraise AssertionError\n```\n", "document", namespace)
