"""
The same application on each database, and the file that payments come in.
"""

from collections.abc import Callable, Sequence

import pytest

from uow.errors import CheckViolation
from uow.examples.bank.adapters import MalformedFile, read_lines
from uow.examples.bank.container import Container
from uow.examples.bank.domain import Account
from uow.examples.bank.service import FileRefused, Line

Lines = Callable[..., Sequence[Line]]

FILE = (
    "D-1,,ann,100.00",
    "P-1,ann,bob,1.00",  # there is no bob yet
    "D-2,,bob,10.00",
    "P-1,ann,bob,1.00",
    "P-1,ann,bob,1.00",
    "P-2,bob,ann,11.01",
    "D-1,,zoe,1.00",
    "P-3,bob,ann,1O",
    "P-4,Bob,ann,1.00",
    "P-5,bob,ann,11.00",
)


def balances(container: Container) -> dict[str, int]:
    return {account.number: account.balance for account in container.balances().richest(10)}


def test_a_database_reports_what_the_fake_does(database: Container, fake: Container, lines: Lines) -> None:
    """The service neither knows nor shows what it runs on."""
    for _ in range(2):
        assert fake.payment_import().run(lines(*FILE)) == database.payment_import().run(lines(*FILE))
        assert {"ann": 11000, "bob": 0} == balances(fake) == balances(database)


def test_an_atomic_import_leaves_a_database_as_it_was(database: Container, lines: Lines) -> None:
    """Nothing is kept of a refused file."""
    with pytest.raises(FileRefused):
        database.payment_import().run(lines(*FILE), atomic=True)

    assert {} == balances(database)


def test_a_database_holds_what_was_kept(database: Container, lines: Lines) -> None:
    """Only the transfers of good lines are stored."""
    database.payment_import().run(lines(*FILE))

    with database.bank() as bank:
        stored = bank.transfers.list(order_by=lambda transfer: transfer.reference)

    assert ["D-1", "D-2", "P-1", "P-5"] == [transfer.reference for transfer in stored]


@pytest.mark.parametrize("kind", ["fake", "database"])
def test_no_store_takes_an_overdrawn_account(kind: str, fake: Container, database: Container) -> None:
    """Should the domain ever fail to see it, the store would."""
    with pytest.raises(CheckViolation) as caught, (fake if kind == "fake" else database).bank() as bank:
        bank.accounts.add(Account("ann", -1))
        bank.commit()

    assert "account_not_overdrawn" == caught.value.constraint


# --------------------------------------------------------------------------------------------------------- the file


def test_lines_are_numbered_as_in_an_editor() -> None:
    """The header is line 1; empty lines count and are passed over."""
    lines = list(read_lines(["Reference, Source,target,amount\n", "\n", "P-1,ann,bob,1\n", '"P-2",,bob\n']))

    assert [Line(3, ["P-1", "ann", "bob", "1"]), Line(4, ["P-2", "", "bob"])] == lines


@pytest.mark.parametrize(("text", "found"), [("", "''"), ("a,b\n", "'a,b'"), ("\n", "''")])
def test_a_file_begins_with_the_header(text: str, found: str) -> None:
    """A file without the header is none of ours."""
    with pytest.raises(MalformedFile) as caught:
        list(read_lines(text.splitlines()))

    assert f"its first line must be 'reference,source,target,amount', and is {found}" == str(caught.value)


def test_a_file_that_is_no_csv() -> None:
    """What cannot be read any further says behind which line."""
    with pytest.raises(MalformedFile, match="cannot be read as CSV in UTF-8 near line 3: field larger than"):
        list(read_lines(["reference,source,target,amount\n", "P-1,ann,bob,1\n", "x" * 200_000]))
