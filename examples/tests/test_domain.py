import pytest

from uow.examples.bank.domain import Account, AccountOpened, MoneyMoved, Overdrawn, Transfer, in_words


def test_money_moves() -> None:
    """A transfer takes an amount from one account and puts it into another."""
    ann, bob = Account("ann", 100), Account("bob")

    transfer = Transfer.move("P-1", ann, bob, 30)

    assert (70, 30) == (ann.balance, bob.balance)
    assert ("P-1", "ann", "bob", 30) == (transfer.reference, transfer.source, transfer.target, transfer.amount)
    assert (MoneyMoved("P-1", "ann", "bob", 30),) == transfer.pending_events


def test_money_is_paid_in() -> None:
    """Without a source the money comes from outside."""
    ann = Account.open("ann")

    transfer = Transfer.move("D-1", None, ann, 30)

    assert 30 == ann.balance
    assert transfer.source is None
    assert (AccountOpened("ann"),) == ann.pending_events


def test_an_account_is_never_overdrawn() -> None:
    """What an account does not hold cannot be taken from it, and then nothing has moved."""
    ann, bob = Account("ann", 100), Account("bob")

    with pytest.raises(Overdrawn) as caught:
        Transfer.move("P-1", ann, bob, 101)

    assert "account 'ann' holds 1.00 and cannot pay 1.01" == str(caught.value)
    assert (100, 0) == (ann.balance, bob.balance)


@pytest.mark.parametrize(("cents", "words"), [(0, "0.00"), (5, "0.05"), (1250, "12.50"), (100_000, "1000.00")])
def test_amounts_in_words(cents: int, words: str) -> None:
    """Cents are shown as people write them."""
    assert words == in_words(cents)
