"""
The documentation's reference pages say what the code does.
"""

import re
from pathlib import Path

import pytest

import uow
from uow import errors

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="reads the documentation of a checkout")


def test_the_lifecycle_page_prints_the_table_that_the_code_obeys() -> None:
    """The documented transitions are the ones in the code, word for word."""
    assert uow.table() in (DOCS / "lifecycle.md").read_text()


def test_the_errors_page_has_every_error_and_no_other() -> None:
    """Whoever meets an error finds it on the page."""
    page = (DOCS / "errors.md").read_text()
    named = set(re.findall(r"`([A-Z]\w+)`", page))

    assert set(errors.__all__) == named


@pytest.mark.parametrize("name", [n for n in errors.__all__ if issubclass(getattr(errors, n), errors.DatabaseError)])
def test_the_errors_page_tells_what_is_transient_and_what_dooms(name: str) -> None:
    """The two columns of the last table are the classes' own."""
    error = getattr(errors, name)
    rows = [row for row in (DOCS / "errors.md").read_text().splitlines() if f"`{name}`" in row and row.count("|") == 5]
    if name == "DatabaseError":
        rows = [f"| `{name}` | no | no | |"]

    told = [cell.strip() for cell in rows[-1].split("|")[2:4]]
    assert [("no", "yes")[flag] for flag in (error.is_transient, error.is_dooming)] == told
