"""
Section 4 of the design: the states of a scope, the transitions between them, and what each refuses.
"""

from collections.abc import Callable
from contextlib import suppress

import pytest

from uow import REFUSALS, TRANSITIONS, State, Transition, Verb, table
from uow.errors import CommitOutcomeUnknown, DatabaseError, Misuse, NotNullViolation, UnitOfWorkError
from uow.testing._harness import Harness
from uow.testing._model import Account, Bank

from ._status import StatusRules
from ._steps import Oops, execute, fail

__all__ = ["LifecycleRules"]


def _committed(harness: Harness, bank: Bank) -> None:
    with bank:
        bank.before_commit(lambda: bank.accounts.add(Account("B", "Bob")))
        with bank.nested():
            bank.accounts.add(Account("A", "Ann"))
        bank.commit()


def _rolled_back(harness: Harness, bank: Bank) -> None:
    with bank:
        with bank.nested() as nested:
            nested.rollback()
        bank.rollback()


def _broken(harness: Harness, bank: Bank) -> None:
    with bank:
        bank.accounts.add(Account("A", None))
        bank.flush()


def _doomed(harness: Harness, bank: Bank) -> None:
    with bank:
        harness.kill(bank)
        with bank.nested():
            bank.accounts.add(Account("A", "Ann"))
            bank.flush()


def _broken_and_then_doomed(harness: Harness, bank: Bank) -> None:
    with bank, bank.nested():
        kill = harness.killer(bank)
        with suppress(NotNullViolation):
            if harness.statements is None:
                bank.accounts.add(Account("E", None))
                bank.flush()
            else:  # a flush that fails would send ROLLBACK TO SAVEPOINT itself
                execute(bank, "INSERT INTO accounts (number, balance) VALUES ('E', 0)")
        kill()
        raise Oops


def _broken_by_a_hook(harness: Harness, bank: Bank) -> None:
    with bank:
        bank.before_commit(lambda: bank.accounts.add(Account("A", None)))
        bank.commit()


def _doomed_by_a_hook(harness: Harness, bank: Bank) -> None:
    def hook() -> None:
        harness.kill(bank)
        bank.accounts.add(Account("A", "Ann"))

    with bank:
        bank.before_commit(hook)
        bank.commit()


def _stopped_by_a_hook(harness: Harness, bank: Bank) -> None:
    with bank:
        bank.before_commit(fail)
        bank.commit()


def _in_doubt(harness: Harness, bank: Bank) -> None:
    with bank:
        bank.accounts.add(Account("D", "Dan"))
        bank.flush()
        harness.lose_answer(bank)
        bank.commit()


STORIES: dict[Callable[[Harness, Bank], None], State] = {
    _committed: State.COMMITTED,
    _rolled_back: State.ROLLED_BACK,
    _broken: State.ROLLED_BACK,
    _doomed: State.ROLLED_BACK,
    _broken_and_then_doomed: State.ROLLED_BACK,
    _broken_by_a_hook: State.ROLLED_BACK,
    _doomed_by_a_hook: State.ROLLED_BACK,
    _stopped_by_a_hook: State.ROLLED_BACK,
    _in_doubt: State.IN_DOUBT,
}


LEGAL = {
    State.NEW: {Verb.ENTER: State.ACTIVE},
    State.ACTIVE: {
        Verb.WORK: State.ACTIVE,
        Verb.BREAK: State.BROKEN,
        Verb.DOOM: State.DOOMED,
        Verb.COMMIT: State.COMMITTING,
        Verb.RELEASE: State.RELEASED,
        Verb.ROLLBACK: State.ROLLED_BACK,
    },
    State.BROKEN: {Verb.DOOM: State.DOOMED, Verb.ROLLBACK: State.ROLLED_BACK},
    State.DOOMED: {Verb.ROLLBACK: State.ROLLED_BACK},
    State.COMMITTING: {
        Verb.WORK: State.COMMITTING,
        Verb.BREAK: State.BROKEN,
        Verb.DOOM: State.DOOMED,
        Verb.DURABLE: State.COMMITTED,
        Verb.DOUBT: State.IN_DOUBT,
        Verb.ROLLBACK: State.ROLLED_BACK,
    },
}


class LifecycleRules(StatusRules):
    """
    States and transitions, and how to see them.
    """

    def test_lifecycle_every_transition_happens_and_no_other(self, harness: Harness) -> None:
        """Each transition of the table can be reached, each leads where the table says, and nothing else happens."""
        seen: list[Transition] = []
        ends = []
        for story in STORIES:
            bank = harness.bank(observers=[seen.append])
            with suppress(UnitOfWorkError, Oops):
                story(harness, bank)
            ends.append(bank.state)
        steps = {(step.before, step.verb): step.after for step in seen}
        legal = {(before, verb): after for before, verbs in LEGAL.items() for verb, after in verbs.items()}
        expected = {rule: after for rule, after in legal.items() if rule[1] is not Verb.WORK}

        assert list(STORIES.values()) == ends
        assert expected == steps
        assert legal == {rule: TRANSITIONS[rule].after for rule in TRANSITIONS}

    @pytest.mark.parametrize("state", State)
    def test_lifecycle_what_a_state_refuses(self, harness: Harness, state: State) -> None:
        """What no transition allows raises the refusal of the state, and says what the database said, if it did."""
        bank = harness.bank()
        with pytest.raises(Misuse) as raised:
            _refused(harness, bank, state)
        refusal, error = REFUSALS[state], raised.value

        said = f" ({error.__cause__})" if isinstance(error.__cause__, DatabaseError) else ""
        reason = f"{refusal.reason}{said}"

        assert (refusal.error, reason, refusal.hint) == (type(error), error.reason, error.hint)
        assert str(error).endswith(f"{error.operation} on {error.unit}: {reason}. {refusal.hint}")
        assert type(bank).__name__ in error.unit

    def test_lifecycle_the_table_is_printed(self, harness: Harness) -> None:
        """The documentation's table has a row for each transition and for each state's refusal."""
        rows = table().splitlines()

        assert len(TRANSITIONS) + len(REFUSALS) + 5 == len(rows)
        assert "| ACTIVE | roll back | ROLLED_BACK | ROLLBACK | ROLLBACK TO SAVEPOINT |" in rows
        assert set(State) == set(REFUSALS)


def _refused(harness: Harness, bank: Bank, state: State) -> None:
    """Bring *bank* into *state*, and do what it refuses there."""
    match state:
        case State.NEW:
            bank.accounts.count()
        case State.ACTIVE:
            with bank, bank:
                pass
        case State.BROKEN | State.DOOMED:
            with bank:
                if state is State.DOOMED:
                    harness.kill(bank)
                bank.accounts.add(Account("A", None))
                with suppress(DatabaseError):
                    bank.flush()
                bank.accounts.count()
        case State.COMMITTING:
            with bank:
                bank.before_commit(bank.commit)
                bank.commit()
        case State.RELEASED:
            with bank, bank.nested() as nested:
                nested.commit()
                nested.accounts.count()
        case State.COMMITTED | State.ROLLED_BACK:
            with bank:
                (bank.commit if state is State.COMMITTED else bank.rollback)()
                bank.accounts.count()
        case State.IN_DOUBT:
            with bank:
                bank.accounts.add(Account("A", "Ann"))
                bank.flush()
                harness.lose_answer(bank)
                with suppress(CommitOutcomeUnknown):
                    bank.commit()
                bank.accounts.count()
