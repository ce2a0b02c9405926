"""
``uow demo``, from its arguments to what it prints and its exit status.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from uow.adapters.cli import application

HEADER = "reference,source,target,amount\n"


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``uow demo`` with these arguments; files it makes by itself go to *tmp_path*."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(application(), ["demo", *map(str, arguments)])

    return run


@pytest.fixture
def payments(tmp_path: Path) -> Callable[..., Path]:
    """Makes a payments file of these lines."""

    def write(*lines: str) -> Path:
        file = tmp_path / "mine.csv"
        file.write_text(HEADER + "".join(f"{line}\n" for line in lines), "utf-8")
        return file

    return write


def report_of(output: str) -> str:
    """What stands below the tree, without the path of the database."""
    return output.partition("\n\n")[2].partition("The database was made")[0]


REPORT = """\
Imported 11 payments. Rolled back 9 bad lines, each alone:
  line  8  account 'bob' holds 57.50 and cannot pay 900.00
  line  9  there is no account 'zoe'
  line 10  there is no account 'yan'
  line 11  payment 'P-1' was made before
  line 12  amount 'ten' is not a sum of money such as 12.50
  line 13  amount '-5.00' is not a sum of money such as 12.50
  line 14  3 fields instead of 4
  line 17  there is no account 'dan'
  line 21  account 'dan' holds 0.00 and cannot pay 0.01
Who has most now: cleo 213.25, ann 146.00, bob 50.25, dan 0.00
"""


def test_the_shipped_file(demo: Callable[..., Result]) -> None:
    """Without arguments the shipped file is imported into a new SQLite file: every kind of bad line is in it."""
    result = demo()

    assert 0 == result.exit_code
    assert REPORT == report_of(result.output)


def test_the_fake_reports_the_same(demo: Callable[..., Result]) -> None:
    """On the fake the report is the same, word for word; its tree has no statements."""
    result = demo("--fake")

    assert 0 == result.exit_code
    assert REPORT == report_of(result.output)
    assert "FakeBank in memory, which sends no statements" in result.output
    assert "SAVEPOINT" not in result.output


def test_the_tree(demo: Callable[..., Result], payments: Callable[..., Path]) -> None:
    """The tree has the unit, its savepoints with their statements, what was rolled back and why, and the events.

    A savepoint that was rolled back to serves for the next line: that of line 3 is line 5's, too.
    """
    file = payments(
        "D-1,,ann,1.00", "D-1,,ann,1.00", "P-1,ann,bob,x", "D-2,,bob,1.00", "D-3,,bob,1.00", "D-4,,bob,1.00"
    )

    result = demo("--file", file, "--show", 2)

    tree = re.sub(r"SELECT .*|(?<=sqlite:///).*", "~", result.output.partition("\n\n")[0])
    assert (
        """\
SqlBank on sqlite:///~
├── BEGIN
├── line 2: D-1,,ann,1.00
│   ├── SAVEPOINT uow_1
│   ├── ~
│   ├── INSERT INTO demo_accounts (number, balance) VALUES (?, ?)  ('ann', 100)
│   ├── INSERT INTO demo_transfers (reference, source, target, amount) VALUES (?, ?, ?, ?)  ('D-1', None, 'ann', 100)
│   ├── RELEASE SAVEPOINT uow_1
│   └── kept
├── line 3: D-1,,ann,1.00
│   ├── SAVEPOINT uow_1
│   ├── ~
│   ├── UPDATE demo_accounts SET balance=? WHERE demo_accounts.number = ?  (200, 'ann')
│   ├── INSERT INTO demo_transfers (reference, source, target, amount) VALUES (?, ?, ?, ?)  ('D-1', None, 'ann', 100)
│   ├── ROLLBACK TO SAVEPOINT uow_1
│   └── rolled back: UniqueViolation: A unique value is taken [SQLITE_CONSTRAINT_UNIQUE]: UNIQUE constraint failed: demo_transfers.reference
├── line 4: P-1,ann,bob,x
│   └── rolled back: MalformedLine: amount 'x' is not a sum of money such as 12.50
├── line 5: D-2,,bob,1.00
│   ├── ~
│   ├── INSERT INTO demo_accounts (number, balance) VALUES (?, ?)  ('bob', 100)
│   ├── INSERT INTO demo_transfers (reference, source, target, amount) VALUES (?, ?, ?, ?)  ('D-2', None, 'bob', 100)
│   ├── RELEASE SAVEPOINT uow_1
│   └── kept
├── ... more lines: 2 kept
├── COMMIT
├── committed
└── published after the commit: 2 AccountOpened, 4 MoneyMoved
    ├── AccountOpened(number='ann')
    ├── MoneyMoved(reference='D-1', source=None, target='ann', amount=100)
    └── ... 4 more"""  # noqa: E501
        == tree
    )


def test_the_tree_of_a_refused_file(demo: Callable[..., Result], payments: Callable[..., Path]) -> None:
    """With --atomic one bad line rolls everything back, nothing is published, and the exit status is 1."""
    result = demo("--atomic", "--file", payments("D-1,,ann,1.00", "P-1,ann,bob,0.50"))

    assert 1 == result.exit_code
    assert "├── ROLLBACK\n└── rolled back: FileRefused: the file was refused; bad lines in it: 1\n" in result.output
    assert "published" not in result.output
    assert (
        "Imported nothing: --atomic allows no bad line, and the file has 1:\n  line 3  there is no account 'bob'\n"
        == report_of(result.output)
    )


def test_an_atomic_import_of_good_lines(demo: Callable[..., Result], payments: Callable[..., Path]) -> None:
    """With --atomic a file without a bad line is imported."""
    result = demo("--atomic", "--file", payments("D-1,,ann,1.00"))

    assert 0 == result.exit_code
    assert "Imported 1 payment.\nWho has most now: ann 1.00\n" == report_of(result.output)


def test_a_database_is_kept(demo: Callable[..., Result], payments: Callable[..., Path], tmp_path: Path) -> None:
    """The same file into the same database is full of payments that were made before."""
    arguments = "--file", payments("D-1,,ann,1.00"), "--database-url", f"sqlite:///{tmp_path / 'kept.db'}"

    first, second = demo(*arguments), demo(*arguments)

    assert [0, 0] == [first.exit_code, second.exit_code]
    assert "Imported 0 payments. Rolled back 1 bad line," in second.output
    assert "  line 2  payment 'D-1' was made before\n" in second.output
    assert "The database was made for this run" not in second.output


def test_the_default_database_can_be_used_again(demo: Callable[..., Result]) -> None:
    """The new SQLite file is named as the option that goes on with it."""
    url = re.search(r"--database-url (\S+)\n", demo().output)
    assert url is not None

    assert "Imported 0 payments. Rolled back 20 bad lines" in demo("--database-url", url[1]).output


def test_a_long_file(demo: Callable[..., Result], payments: Callable[..., Path]) -> None:
    """A long file gives a short tree: what is not shown is counted."""
    good = [f"D-{number},,ann,1.00" for number in range(2000)]
    bad = [f"P-{number},bob,ann,1.00" for number in range(500)]

    result = demo("--file", payments(*good[:1000], *bad, *good[1000:]))

    assert 0 == result.exit_code
    assert "├── ... more lines: 997 kept\n" in result.output
    assert "├── ... more lines: 480 rolled back, 1,000 kept\n" in result.output
    assert "published after the commit: 1 AccountOpened, 2,000 MoneyMoved\n" in result.output
    assert "Imported 2,000 payments. Rolled back 500 bad lines, each alone:\n" in result.output
    assert "  line 1002  there is no account 'bob'\n" in result.output
    assert "  ... and 480 more. See them with --show 500\n" in result.output
    assert 200 > result.output.count("\n")


def test_output_to_a_file_is_plain(demo: Callable[..., Result], payments: Callable[..., Path]) -> None:
    """There is no colour, no progress bar, and no control character of the file in the output."""
    result = demo("--file", payments("D-1,,\x1b[31mann,1.00", "D-2,,[red]bob,1.00"))

    assert "\x1b" not in result.output
    assert "line 3: D-2,,[red]bob,1.00\n" in result.output
    assert "Importing" not in result.output


# ------------------------------------------------------------------------------------------- what cannot be begun


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "missing.csv"], "file 'missing.csv' does not exist"),
        (["--nonsense"], "No such option: --nonsense"),
        (["--show", "-1"], "greater than or equal to 0"),
        (["--fake", "--database-url", "sqlite://"], "give --fake or"),
        (["--database-url", "nonsense"], "that --database-url names: Container.config.database_url is no database URL"),
        (["--database-url", "nosuch://bank"], "Can't load plugin: sqlalchemy.dialects:nosuch"),
        (["--database-url", "sqlite:////missing/bank.db"], "names: unable to open database file"),
        (["--database-url", "oracle://bank"], "No module named 'oracledb'. Install uow[postgresql] or uow[mariadb]."),
        (["--database-url", "postgresql+psycopg://127.0.0.1:1/bank"], "Connection refused"),
        (["--database-url", "mariadb://127.0.0.1:1/bank"], "Connection refused"),
    ],
)
def test_what_cannot_begin(demo: Callable[..., Result], arguments: list[str], message: str) -> None:
    """An error of usage has exit status 2 and says what is wrong, without a traceback."""
    result = demo(*arguments)

    assert 2 == result.exit_code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its first line must be 'reference,source,target,amount', and is ''. Nothing was imported.\n"),
        (b"a;b\n", "its first line must be 'reference,source,target,amount', and is 'a;b'. Nothing was imported.\n"),
        (b"\xff\xfe", "it cannot be read as CSV in UTF-8 near line 0: 'utf-8' codec can't decode byte 0xff in"),
    ],
)
def test_a_malformed_file(demo: Callable[..., Result], tmp_path: Path, content: bytes, message: str) -> None:
    """A file that is no payments file is named, with what is wrong."""
    file = tmp_path / "mine.csv"
    file.write_bytes(content)

    result = demo("--file", file)

    assert 2 == result.exit_code
    assert result.stderr.startswith(f"Cannot import {file}: {message}")
    assert "" == result.stdout


def test_a_file_from_a_spreadsheet(demo: Callable[..., Result], tmp_path: Path) -> None:
    """A byte order mark and Windows' line ends are fine."""
    file = tmp_path / "mine.csv"
    file.write_bytes(b"\xef\xbb\xbf" + HEADER.encode().replace(b"\n", b"\r\n") + b"D-1,,ann,1.00\r\n")

    assert "Imported 1 payment.\n" in demo("--file", file).output
