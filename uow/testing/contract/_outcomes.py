"""
Rule 20: what became of a COMMIT whose answer was lost, and work that is done at most once.
"""

import asyncio
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from uow import Handlers, Retry, State
from uow.errors import (
    AlreadyDone,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    ContradictoryOptions,
    InvalidArgument,
    LockTimeout,
    OutsideUnitOfWork,
    ReadOnlyUnitOfWork,
    ScopeBroken,
    UnitOfWorkError,
)
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank, Document, MoneyMoved

from ._base import Contract
from ._interrupts import works
from ._steps import Oops, fail, told

__all__ = ["OutcomeRules"]

EAGER = Retry(wait_initial=0, wait_jitter=0)
UNUSED = "01ARZ3NDEKTSV4RRFFQ69G5FAV"  # from the year 2016
INTERRUPTS = [KeyboardInterrupt, SystemExit, asyncio.CancelledError]
LOST = "the connection was lost while COMMIT was on its way"


def commit_cut(harness: Harness, bank: Bank, number: str = "A-1", **how: Any) -> Account:
    """Add an account in *bank* and commit, which is cut off; return the account if the commit returns."""
    account = Account(number, "Ann", 10)
    with bank:
        bank.accounts.add(account)
        bank.flush()
        harness.cut_commit(bank, **how)
        bank.commit()
    return account


def in_doubt(harness: Harness, *, kept: bool, number: str = "A-1") -> str:
    """Commit a unit whose outcome nobody can tell at first; return its token."""
    bank = harness.bank(outcome="row")
    with pytest.raises(CommitOutcomeUnknown) as caught:
        commit_cut(harness, bank, number, kept=kept, unanswered=True)
    harness.answer_again()

    assert State.IN_DOUBT is bank.state
    assert caught.value.token is not None
    return caught.value.token


def once(harness: Harness, key: str, number: str, **options: Any) -> None:
    """Add an account under a key."""
    with harness.bank(**options) as bank:
        bank.once(key)
        bank.accounts.add(Account(number, "Ann"))
        bank.commit()


class OutcomeRules(Contract):
    """
    Commits that are certain.
    """

    @pytest.fixture(autouse=True)
    def short_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a commit give up soon where the database does not answer at all."""
        monkeypatch.setattr("uow._commit._PATIENCE", 0.2)

    # ----------------------------------------------------------------------------------------- a COMMIT that is cut off

    def test_rule_20_a_commit_whose_answer_was_lost_is_found_out(self, harness: Harness) -> None:
        """Where the work is durable although the connection was lost, commit() returns and all goes on as ever."""
        seen: list[Any] = []
        handlers = Handlers()
        handlers.after_commit(MoneyMoved)(seen.append)
        bank = harness.bank(outcome="row", handlers=handlers)
        account = Account("A-1", "Ann", 10)
        with bank:
            bank.accounts.add(account)
            account.withdraw(3)
            bank.after_commit(told(seen, "committed"))
            bank.after_rollback(told(seen, "rolled back"))
            bank.flush()
            harness.cut_commit(bank, kept=True)
            bank.commit()

        assert State.COMMITTED is bank.state
        assert ["committed", MoneyMoved("A-1", 3)] == seen
        assert harness.idle()
        assert ["A-1"] == harness.numbers()
        assert works(harness)

    def test_rule_20_entities_of_a_commit_that_was_found_out(self, harness: Harness) -> None:
        """Entities are as after any commit: another unit takes them in, and writes what changed."""
        document = Document(1, "one")
        with harness.bank(outcome="row") as bank:
            bank.documents.add(document)
            bank.flush()
            harness.cut_commit(bank, kept=True)
            bank.commit()
        with harness.bank() as bank:
            bank.documents.add(document)
            document.title = "two"
            bank.commit()
        with harness.bank() as bank:
            found = bank.documents.get(1)
            facts = (found.title, found.version, document.version)

        assert ("two", 2, 2) == facts

    def test_rule_20_a_commit_that_did_not_arrive(self, harness: Harness) -> None:
        """Where nothing was committed, commit() raises ConnectionLost, which is transient, and says that it is sure."""
        seen: list[str] = []
        bank = harness.bank(outcome="row")
        account = Account("A-1", "Ann")
        with pytest.raises(ConnectionLost) as caught, bank:
            bank.accounts.add(account)
            bank.after_commit(told(seen, "committed"))
            bank.after_rollback(told(seen, "rolled back"))
            bank.flush()
            harness.cut_commit(bank, kept=False)
            bank.commit()

        assert caught.value.transient
        assert "COMMIT was cut off; the database was asked, and " in caught.value.__notes__[0]
        assert caught.value.__notes__[0].endswith("(root) is rolled back.")
        assert State.ROLLED_BACK is bank.state
        assert ["rolled back"] == seen
        assert harness.idle()
        assert [] == harness.numbers()

        with harness.bank() as bank:
            bank.accounts.add(account)  # it is new again
            bank.commit()

        assert ["A-1"] == harness.numbers()

    @pytest.mark.parametrize("kept", [False, True])
    def test_rule_20_work_is_done_again_exactly_when_it_was_lost(self, harness: Harness, kept: bool) -> None:
        """attempts() does the work again after a COMMIT that did not arrive, and never after one that did."""
        pytest.importorskip("stamina")
        done: list[Bank] = []
        with harness.bank() as bank:
            bank.accounts.add(Account("A-1", "Ann", 10))
            bank.commit()
        for attempt in harness.bank(outcome="row", retry=EAGER).attempts():
            with attempt as bank:
                bank.accounts.get("A-1").balance += 1
                bank.flush()
                if not done:
                    harness.cut_commit(bank, kept=kept)
                done.append(bank)
                bank.commit()
        with harness.bank() as bank:
            balance = bank.accounts.get("A-1").balance

        assert 11 == balance
        assert (1 if kept else 2) == len(done)

    # -------------------------------------------------------------------------------------------------- nobody can tell

    @pytest.mark.parametrize("kept", [False, True])
    def test_rule_20_a_token_tells_later(self, harness: Harness, kept: bool) -> None:
        """Unresolved, it is CommitOutcomeUnknown with a token; resolve() of any unit tells later, and stays with it."""
        seen: list[str] = []
        bank = harness.bank(outcome="row")
        with pytest.raises(CommitOutcomeUnknown) as caught, bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.after_commit(told(seen, "committed"))
            bank.after_rollback(told(seen, "rolled back"))
            bank.flush()
            harness.cut_commit(bank, kept=kept, unanswered=True)
            bank.commit()
        harness.answer_again()
        token = caught.value.token

        assert not caught.value.transient
        assert token is not None
        assert f"resolve({token!r}) finds out" in str(caught.value)
        assert State.IN_DOUBT is bank.state
        assert [] == seen
        assert harness.idle()

        expected = State.COMMITTED if kept else State.ROLLED_BACK
        answers = [harness.bank().resolve(token) for _ in range(3)]
        answers.append(harness.elsewhere(lambda: harness.bank().resolve(token)))
        with harness.bank() as another:
            answers.append(another.resolve(token, timeout=1))
            another.rollback()

        assert [expected] * 5 == answers
        assert (["A-1"] if kept else []) == harness.numbers()

    def test_rule_20_a_doubt_is_not_done_again(self, harness: Harness) -> None:
        """attempts() lets CommitOutcomeUnknown go on to the caller: nobody knows whether it would do the work twice."""
        pytest.importorskip("stamina")
        done: list[Bank] = []
        with pytest.raises(CommitOutcomeUnknown):
            for attempt in harness.bank(outcome="row", retry=EAGER).attempts():
                with attempt as bank:
                    done.append(bank)
                    bank.accounts.add(Account("A-1", "Ann"))
                    bank.flush()
                    harness.cut_commit(bank, kept=False, unanswered=True)
                    bank.commit()
        harness.answer_again()

        assert 1 == len(done)

    def test_rule_20_an_answer_binds_a_unit_on_its_way(self, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever asks for a token before its unit commits rules that out: the commit fails, and the answer stays."""
        token = in_doubt(harness, kept=False)
        monkeypatch.setattr("uow._commit.new_token", lambda: token)

        assert State.ROLLED_BACK is harness.bank().resolve(token)

        with pytest.raises(UnitOfWorkError), harness.bank(outcome="row") as bank:
            bank.accounts.add(Account("B-2", "Bob"))
            bank.commit()

        assert State.ROLLED_BACK is bank.state
        assert State.ROLLED_BACK is harness.bank().resolve(token)
        assert [] == harness.numbers()

    def test_rule_20_nothing_to_find_out_by(self, harness: Harness) -> None:
        """With outcome='none' it is CommitOutcomeUnknown at once, without a token, and with a hint."""
        bank = harness.bank(outcome="none")
        with pytest.raises(CommitOutcomeUnknown, match=LOST) as caught:
            commit_cut(harness, bank, kept=True)

        assert caught.value.token is None
        assert "outcome='row'" in str(caught.value)
        assert State.IN_DOUBT is bank.state
        assert harness.idle()
        assert ["A-1"] == harness.numbers()
        assert 0 == harness.outcome_rows()

    # ------------------------------------------------------------------------------------------------------- interrupts

    @pytest.mark.parametrize("interrupt", INTERRUPTS)
    @pytest.mark.parametrize("kept", [False, True])
    def test_rule_20_an_interrupt_while_commit_is_on_its_way(
        self, harness: Harness, interrupt: type[BaseException], kept: bool
    ) -> None:
        """It goes on to the caller; before that the unit finds out, and does what a commit or rollback does."""
        error = interrupt()
        seen: list[str] = []
        bank = harness.bank(outcome="row")
        with pytest.raises(interrupt) as caught, bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.after_commit(told(seen, "committed"))
            bank.after_rollback(told(seen, "rolled back"))
            bank.flush()
            harness.cut_commit(bank, kept=kept, by=error)
            bank.commit()

        expected = "committed" if kept else "rolled back"

        assert error is caught.value
        assert any("COMMIT was cut off" in note and f"is {expected}" in note for note in error.__notes__)
        assert expected == bank.state.value
        assert [expected] == seen
        assert harness.idle()
        assert (["A-1"] if kept else []) == harness.numbers()
        assert works(harness)

    def test_rule_20_a_hook_does_not_replace_an_interrupt(self, harness: Harness) -> None:
        """What hooks raise after a commit that was interrupted is the interrupt's cause; all of them run."""
        seen: list[str] = []
        error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt) as caught, harness.bank(outcome="row") as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.after_commit(fail)
            bank.after_commit(told(seen, "committed"))
            bank.flush()
            harness.cut_commit(bank, kept=True, by=error)
            bank.commit()

        assert error is caught.value
        assert isinstance(error.__cause__, ExceptionGroup)
        assert [Oops] == [type(each) for each in error.__cause__.exceptions]
        assert ["committed"] == seen
        assert State.COMMITTED is bank.state

    @pytest.mark.parametrize("outcome", ["row", "none"])
    def test_rule_20_an_interrupt_of_which_nobody_can_tell(self, harness: Harness, outcome: Any) -> None:
        """It goes on to the caller, and leaves the unit in doubt; with a token, a note tells it."""
        if harness.name == "fake" and outcome == "row":
            pytest.skip("the fake always answers")
        error = KeyboardInterrupt()
        bank = harness.bank(outcome=outcome)
        with pytest.raises(KeyboardInterrupt) as caught:
            commit_cut(harness, bank, kept=True, by=error, unanswered=True)
        harness.answer_again()

        assert error is caught.value
        assert State.IN_DOUBT is bank.state
        assert (outcome == "row") == any("resolve('" in note for note in getattr(error, "__notes__", []))
        assert harness.idle()
        assert ["A-1"] == harness.numbers()

    def test_rule_20_an_interrupt_while_the_database_is_asked(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It goes on to the caller with a note that has the token, and leaves the unit in doubt."""
        tokens: list[str] = []
        error = KeyboardInterrupt()

        def interrupted(outcomes: object, unit: str, token: str, timeout: float) -> State:
            tokens.append(token)
            raise error

        bank = harness.bank(outcome="row")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
            patch.setattr("uow._commit.resolve", interrupted)
            commit_cut(harness, bank, kept=True)

        assert error is caught.value
        assert [f"resolve({tokens[0]!r}) finds out" in note for note in error.__notes__] == [True]
        assert State.IN_DOUBT is bank.state
        assert State.COMMITTED is harness.bank().resolve(tokens[0])
        assert harness.idle()

    # --------------------------------------------------------------------------------------------- who leaves something

    def test_rule_20_units_that_leave_nothing(self, harness: Harness) -> None:
        """A unit that did nothing, was rolled back or is read-only leaves nothing behind; one that wrote does."""
        with harness.bank(outcome="row") as bank:
            bank.commit()
        with harness.bank(outcome="row") as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            bank.rollback()
        with harness.bank(outcome="row", read_only=True) as bank:
            bank.accounts.count()
            bank.commit()
        with suppress(Oops), harness.bank(outcome="row") as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.before_commit(fail)
            bank.commit()

        assert 0 == harness.outcome_rows()

        with harness.bank(outcome="row") as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert 1 == harness.outcome_rows()

    def test_rule_20_a_lost_connection_before_commit_is_certain(self, harness: Harness) -> None:
        """A database that disappears before COMMIT is ConnectionLost, and nobody is asked."""
        with pytest.raises(UnitOfWorkError) as caught, harness.bank(outcome="row") as bank:
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            harness.kill(bank)
            bank.commit()

        assert not isinstance(caught.value, CommitOutcomeUnknown)
        assert State.ROLLED_BACK is bank.state
        assert [] == harness.numbers()

    def test_rule_20_a_joined_unit(self, harness: Harness) -> None:
        """A joined unit is kept or lost with the one around it, so it may ask for what that one has, and no more."""
        with harness.bank(outcome="row") as bank:
            for outcome in ("row", "none"):
                with harness.bank(outcome=outcome).joined() as joined:
                    joined.accounts.add(Account(outcome, "Ann"))
            bank.commit()

        assert ["none", "row"] == harness.numbers()

        with harness.bank() as bank:
            with pytest.raises(ContradictoryOptions, match="outcome='row', which that one does not have"):
                with harness.bank(outcome="row").joined():
                    pass
            with pytest.raises(ContradictoryOptions), harness.bank(outcome="row").joined():
                pass

    # ----------------------------------------------------------------------------------------------- what is not a mode

    @pytest.mark.parametrize("outcome", ["Row", "", None, 1])
    def test_rule_20_a_mode_that_there_is_not(self, harness: Harness, outcome: Any) -> None:
        """Anything else than the three is a ConfigurationError that names them."""
        with pytest.raises(ConfigurationError, match="Pass one of 'row', 'xid', 'none'"):
            harness.bank(outcome=outcome)

    def test_rule_20_a_mode_that_the_database_does_not_have(self, harness: Harness) -> None:
        """outcome='xid' is for PostgreSQL; elsewhere it is a ConfigurationError, and so is what it gives as a token."""
        if harness.name == "postgresql":
            harness.bank(outcome="xid")
            return

        with pytest.raises(ConfigurationError, match=r"outcome='xid' is not to be had here.*'row', 'none'"):
            harness.bank(outcome="xid")
        with pytest.raises(InvalidArgument, match="the database that it is from"):
            harness.bank().resolve(f"xid.711.7300000000000000000-00000001-1700000000.{UNUSED}")

    @pytest.mark.parametrize(
        "token",
        [
            "",
            "A",
            UNUSED.lower(),
            UNUSED[1:],
            f"{UNUSED}0",
            f" {UNUSED}",
            f"xid.{UNUSED}",
            f"xid.x.y.{UNUSED}",
            None,
            7,
        ],
    )
    def test_rule_20_what_is_no_token(self, harness: Harness, token: Any) -> None:
        """resolve() refuses what cannot be a token, and asks nobody."""
        with pytest.raises(InvalidArgument, match=r"is no token\. Pass what CommitOutcomeUnknown\.token is"):
            harness.bank().resolve(token)

        assert 0 == harness.outcome_rows()

    def test_rule_20_a_token_that_is_too_old(self, harness: Harness) -> None:
        """A token older than outcomes are kept cannot be told any more, as its row may be gone."""
        with pytest.raises(CommitOutcomeUnknown, match="older than outcomes are kept") as caught:
            harness.bank().resolve(UNUSED)

        assert caught.value.token is None
        assert 0 == harness.outcome_rows()

    # ------------------------------------------------------------------------------------------------------------- once

    def test_rule_20_work_under_a_key_is_done_once(self, harness: Harness) -> None:
        """once() lets the first unit go on; after its commit a duplicate is AlreadyDone, which tells of the first."""
        before = datetime.now(UTC) - timedelta(seconds=5)  # a server's clock may differ
        once(harness, "payments:4711", "A-1")
        moments = []
        for _ in range(2):
            with pytest.raises(AlreadyDone, match=r"was not done: another one was committed under .*4711") as caught:
                once(harness, "payments:4711", "B-2")
            moments.append(caught.value.decided_at)

            assert "payments:4711" == caught.value.key
            assert caught.value.unit in str(caught.value)
            assert not caught.value.transient

        assert before < moments[0] == moments[1] < datetime.now(UTC) + timedelta(seconds=5)
        assert ["A-1"] == harness.numbers()
        assert harness.idle()

    def test_rule_20_keys_are_exact(self, harness: Harness) -> None:
        """Keys that differ in case, in an accent or in a space at the end are different."""
        keys = ["a", "A", "á", "a ", " a", "ä", "ae", "ß", "ss", "k" * 200, "k" * 199, "\U0001f600" * 200]
        for number, key in enumerate(keys):
            once(harness, key, f"A-{number}")
        for key in keys:
            with pytest.raises(AlreadyDone):
                once(harness, key, "B-2")

        assert len(keys) == len(harness.numbers())

    @pytest.mark.parametrize("key", ["", "k" * 201, None, 7, b"k"])
    def test_rule_20_what_is_no_key(self, harness: Harness, key: Any) -> None:
        """A key that cannot be kept is refused, and the unit goes on."""
        with harness.bank() as bank:
            with pytest.raises(InvalidArgument, match="Pass a text of 1 to 200 characters"):
                bank.once(key)
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert ["A-1"] == harness.numbers()

    def test_rule_20_a_rollback_frees_the_key(self, harness: Harness) -> None:
        """A unit that was rolled back has done nothing, so the next one with its key does the work."""
        with harness.bank() as bank:
            bank.once("k")
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            bank.rollback()
        with suppress(Oops), harness.bank() as bank:
            bank.once("k")
            fail()
        once(harness, "k", "B-2")

        assert ["B-2"] == harness.numbers()

    def test_rule_20_a_nested_rollback_frees_the_key(self, harness: Harness) -> None:
        """The key belongs to the scope that took it: rolled back it is free, released it is the outer one's."""
        with harness.bank() as bank:
            with suppress(Oops), bank.nested() as nested:
                nested.once("k")
                fail()
            with bank.nested() as nested:
                nested.once("k")
                nested.accounts.add(Account("A-1", "Ann"))
            with pytest.raises(AlreadyDone), bank.nested() as nested:
                nested.once("k")
            bank.accounts.add(Account("B-2", "Bob"))
            bank.commit()

        assert ["A-1", "B-2"] == harness.numbers()
        with pytest.raises(AlreadyDone):
            once(harness, "k", "C-3")

    def test_rule_20_a_released_key_is_lost_with_the_outer_scope(self, harness: Harness) -> None:
        """A key that a nested scope took and handed over is free again when the root is rolled back."""
        with harness.bank() as bank:
            with bank.nested() as nested:
                nested.once("k")
            bank.rollback()
        once(harness, "k", "A-1")

        assert ["A-1"] == harness.numbers()

    def test_rule_20_a_key_twice_in_one_unit(self, harness: Harness) -> None:
        """The second once() with the same key is AlreadyDone too; other keys are free, and the unit goes on."""
        with harness.bank() as bank:
            bank.once("k")
            with pytest.raises(AlreadyDone):
                bank.once("k")
            bank.once("l")
            bank.accounts.add(Account("A-1", "Ann"))
            bank.commit()

        assert ["A-1"] == harness.numbers()
        for key in ("k", "l"):
            with pytest.raises(AlreadyDone):
                once(harness, key, "B-2")

    def test_rule_20_a_batch_skips_what_was_done(self, harness: Harness) -> None:
        """AlreadyDone costs the nested scope that it leaves, and the others are kept."""
        once(harness, "message:2", "A-2")
        skipped = []
        with harness.bank() as bank:
            for number in range(1, 4):
                try:
                    with bank.nested() as nested:
                        nested.once(f"message:{number}")
                        nested.accounts.add(Account(f"B-{number}", "Bob"))
                except AlreadyDone as done:
                    skipped.append(done.key)
            bank.commit()

        assert ["message:2"] == skipped
        assert ["A-2", "B-1", "B-3"] == harness.numbers()

    @pytest.mark.parametrize("kept", [True, False])
    def test_rule_20_a_duplicate_at_the_same_time(self, harness: Harness, kept: bool) -> None:
        """A second unit waits for the first: AlreadyDone if that one commits, else its own work; the fake waits not."""
        ended: list[str] = []

        def second() -> None:
            try:
                once(harness, "k", "B-2")
            except UnitOfWorkError as error:
                ended.append(type(error).__name__)
            else:
                ended.append("done")

        with harness.bank() as bank:
            bank.once("k")
            bank.accounts.add(Account("A-1", "Ann"))
            thread = harness.meanwhile(second)
            if harness.name == "fake":
                thread.join()
            if kept:
                bank.commit()
            else:
                bank.rollback()
        thread.join()
        expected = ("AlreadyDone" if kept else "done") if harness.name != "fake" else "LockTimeout"

        assert [expected] == ended
        assert {"AlreadyDone": ["A-1"], "done": ["B-2"]}.get(expected, ["A-1"] if kept else []) == harness.numbers()

    def test_rule_20_a_duplicate_that_does_not_wait_long(self, harness: Harness) -> None:
        """Where the first unit takes longer than lock_timeout allows, the second is LockTimeout, which is transient."""
        harness.hurry()
        limit = {} if harness.name in ("fake", "sqlite") else {"lock_timeout": 1}
        with harness.bank() as bank:
            bank.once("k")
            with pytest.raises(LockTimeout) as caught, harness.bank(**limit) as second:
                second.once("k")
            bank.commit()

        assert caught.value.transient
        with pytest.raises(AlreadyDone):
            once(harness, "k", "B-2")

    def test_rule_20_a_key_where_nothing_can_be_written(self, harness: Harness) -> None:
        """once() needs an active scope that can write."""
        with harness.bank(read_only=True) as bank, pytest.raises(ReadOnlyUnitOfWork):
            bank.once("k")
        bank = harness.bank()
        with pytest.raises(OutsideUnitOfWork):
            bank.once("k")
        with bank:
            bank.commit()
        with pytest.raises(OutsideUnitOfWork):
            bank.once("k")
        with suppress(UnitOfWorkError), bank:
            bank.accounts.add(Account("A-1", None))
            with suppress(UnitOfWorkError):
                bank.flush()
            with pytest.raises(ScopeBroken):
                bank.once("k")

        assert 0 == harness.outcome_rows()

    @pytest.mark.parametrize("kept", [True, False])
    def test_rule_20_a_key_of_a_commit_that_was_cut_off(self, harness: Harness, kept: bool) -> None:
        """A key is taken exactly when the work under it is durable, whoever heard of it."""
        bank = harness.bank(outcome="row")
        with suppress(ConnectionLost), bank:
            bank.once("k")
            bank.accounts.add(Account("A-1", "Ann"))
            bank.flush()
            harness.cut_commit(bank, kept=kept)
            bank.commit()
        with pytest.raises(AlreadyDone) if kept else nullcontext():
            once(harness, "k", "B-2")

        assert (["A-1"] if kept else ["B-2"]) == harness.numbers()
