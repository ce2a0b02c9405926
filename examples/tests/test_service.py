"""
The use cases on the fake: nothing to install, nothing to clean up, and the rules of a database.
"""

from collections.abc import Callable, Iterator, Sequence

import pytest

from uow import Event
from uow.examples.bank.container import Container
from uow.examples.bank.domain import AccountOpened, MoneyMoved
from uow.examples.bank.service import FileRefused, Line, MalformedLine, Payment, Refusal

Lines = Callable[..., Sequence[Line]]


def balances(container: Container) -> dict[str, int]:
    return {account.number: account.balance for account in container.balances().richest(10)}


def test_a_file_is_imported(fake: Container, lines: Lines) -> None:
    """The first money paid in opens an account; payments move it."""
    report = fake.payment_import().run(lines("D-1,,ann,100.00", "D-2,,bob,5", "D-3,,ann,1.00", "P-1,ann,bob,30.50"))

    assert (4, []) == (report.imported, report.refused)
    assert {"ann": 7050, "bob": 3550} == balances(fake)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("P-9,ann,bob,70.01", "account 'ann' holds 70.00 and cannot pay 70.01"),
        ("P-9,zoe,bob,1.00", "there is no account 'zoe'"),
        ("P-9,ann,zoe,1.00", "there is no account 'zoe'"),
        ("P-1,ann,bob,1.00", "payment 'P-1' was made before"),
        ("D-1,,zoe,1.00", "payment 'D-1' was made before"),
        ("P-9,ann,bob,ten", "amount 'ten' is not a sum of money such as 12.50"),
        ("P-9,ann,bob", "3 fields instead of 4"),
    ],
)
def test_a_bad_line_is_rolled_back_alone(fake: Container, lines: Lines, line: str, reason: str) -> None:
    """A bad line is reported with its number and reason, leaves no trace, and the lines around it are kept."""
    report = fake.payment_import().run(
        lines("D-1,,ann,100.00", "D-2,,bob,5.00", "P-1,ann,bob,30.00", line, "P-2,bob,ann,35.00")
    )

    assert 4 == report.imported
    assert [Refusal(5, reason)] == report.refused
    assert {"ann": 10500, "bob": 0} == balances(fake)


def test_a_refused_reference_can_be_used_again(fake: Container, lines: Lines) -> None:
    """A payment that was rolled back was never made."""
    report = fake.payment_import().run(lines("D-1,,ann,1.00", "P-1,ann,bob,1.00", "D-2,,bob,1.00", "P-1,ann,bob,1.00"))

    assert [Refusal(3, "there is no account 'bob'")] == report.refused
    assert {"ann": 0, "bob": 200} == balances(fake)


def test_the_same_file_twice(fake: Container, lines: Lines) -> None:
    """The second time every payment was made before."""
    file = lines("D-1,,ann,1.00", "D-2,,bob,1.00")
    fake.payment_import().run(file)

    report = fake.payment_import().run(file)

    assert 0 == report.imported
    assert ["payment 'D-1' was made before", "payment 'D-2' was made before"] == [
        refusal.reason for refusal in report.refused
    ]
    assert {"ann": 100, "bob": 100} == balances(fake)


def test_an_atomic_import_is_all_or_nothing(fake: Container, lines: Lines) -> None:
    """One bad line refuses the file, and every bad line is reported all the same."""
    with pytest.raises(FileRefused) as caught:
        fake.payment_import().run(lines("D-1,,ann,1.00", "P-1,ann,bob,1", "P-2,bob,ann,1"), atomic=True)

    assert "the file was refused; bad lines in it: 2" == str(caught.value)
    assert [3, 4] == [refusal.line for refusal in caught.value.report.refused]
    assert {} == balances(fake)


def test_an_atomic_import_of_good_lines(fake: Container, lines: Lines) -> None:
    """A file without a bad line is imported."""
    report = fake.payment_import().run(lines("D-1,,ann,1.00"), atomic=True)

    assert 1 == report.imported
    assert {"ann": 100} == balances(fake)


def test_only_what_was_kept_is_published(fake: Container, lines: Lines) -> None:
    """Events live and die with their line's nested scope, and are published after the commit."""
    published: list[Event] = []
    fake.handlers().after_commit(Event)(published.append)
    bank = fake.bank(handlers=fake.handlers())

    fake.payment_import(uow=bank).run(lines("D-1,,ann,1.00", "D-1,,bob,1.00", "P-1,ann,zoe,1.00"))

    assert [AccountOpened("ann"), MoneyMoved("D-1", None, "ann", 100)] == published


def test_an_interrupted_import_keeps_nothing(fake: Container, lines: Lines) -> None:
    """A file that cannot be read to its end is not imported."""

    def broken() -> Iterator[Line]:
        yield from lines("D-1,,ann,1.00")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fake.payment_import().run(broken())

    assert {} == balances(fake)


# ---------------------------------------------------------------------------------------------------------- parsing


def test_fields_may_have_space_around_them() -> None:
    """Space around a field does not count."""
    assert Payment("P-1", "ann", "bob", 1250) == Payment.parse([" P-1", "ann ", " bob ", " 12.50 "])


@pytest.mark.parametrize(("text", "cents"), [("1", 100), ("0.01", 1), ("007.10", 710), ("999999999999.99", 10**14 - 1)])
def test_amounts(text: str, cents: int) -> None:
    """An amount is whole, or has two decimals."""
    assert cents == Payment.parse(["P-1", "ann", "bob", text]).amount


@pytest.mark.parametrize("text", ["", "0", "0.00", "-1", "+1", "1.5", "1.005", "1,50", "1e3", "ten", "٣", "1" * 13])
def test_malformed_amounts(text: str) -> None:
    """Anything else is refused, a sum of nothing too."""
    with pytest.raises(MalformedLine) as caught:
        Payment.parse(["P-1", "ann", "bob", text])

    assert f"amount {text!r} is not a sum of money such as 12.50" == str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], "0 fields instead of 4"),
        (["P-1", "ann", "bob", "1", ""], "5 fields instead of 4"),
        (["", "ann", "bob", "1"], "reference '' is not a name of 1 to 40 characters"),
        (["P-1", "ann", " ", "1"], "target '' is not a name of 1 to 40 characters"),
        (["P-1", "ann", "b" * 41, "1"], f"target '{'b' * 41}' is not a name of 1 to 40 characters"),
        (["P-1", "a\x1bnn", "bob", "1"], "source 'a\\x1bnn' is not a name of 1 to 40 characters"),
        (["P-1", "a\0nn", "bob", "1"], "source 'a\\x00nn' is not a name of 1 to 40 characters"),
    ],
)
def test_malformed_lines(fields: list[str], reason: str) -> None:
    """A line that no database should see is refused before one does."""
    with pytest.raises(MalformedLine) as caught:
        Payment.parse(fields)

    assert reason == str(caught.value)
