"""
The lifecycle of a scope: its states, the transitions between them in one table, and the refusal that each state gives.

The code obeys this table and the documentation prints it.
"""

import enum
from types import MappingProxyType

from attrs import frozen

from .errors import Misuse, OutsideUnitOfWork, ScopeBroken, UnitOfWorkActive, UnitOfWorkEnded

__all__ = ["REFUSALS", "TRANSITIONS", "Refusal", "Rule", "State", "Verb", "table"]


class State(enum.Enum):
    """
    Where a scope is in its life.
    """

    NEW = "new"
    ACTIVE = "active"
    BROKEN = "broken"
    DOOMED = "doomed"
    COMMITTING = "committing"
    COMMITTED = "committed"
    RELEASED = "released"
    ROLLED_BACK = "rolled back"
    IN_DOUBT = "in doubt"

    __hash__ = object.__hash__  # a member is itself alone; Enum's own is Python, and called at every step

    @property
    def open(self) -> bool:
        """Whether the scope has begun and not ended."""
        return self in _OPEN


_OPEN = frozenset({State.ACTIVE, State.BROKEN, State.DOOMED, State.COMMITTING})


class Verb(enum.Enum):
    """
    What can happen to a scope.
    """

    ENTER = "enter the block"
    WORK = "work"
    BREAK = "database error"
    DOOM = "dooming database error"
    COMMIT = "commit()"
    RELEASE = "release"
    ROLLBACK = "roll back"
    DURABLE = "COMMIT confirmed"
    DOUBT = "answer to COMMIT lost"

    __hash__ = object.__hash__  # see State


@frozen
class Rule:
    """
    One legal transition.

    Args:
        before: The state it starts from.

        verb: What happens.

        after: The state it leads to.

        sql: What the database is sent, at the root.

        nested_sql: What it is sent in a nested scope.
    """

    before: State
    verb: Verb
    after: State
    sql: str = ""
    nested_sql: str = ""


@frozen
class Refusal:
    """
    Why a state refuses what no rule allows.
    """

    error: type[Misuse]
    reason: str
    hint: str


_WITH_WORK = "BEGIN, with the first statement"
_SAVEPOINT = "SAVEPOINT, with the first statement"
_RELEASE = "what is pending, RELEASE SAVEPOINT (on PostgreSQL with the next statement)"

TRANSITIONS = MappingProxyType(
    {
        (rule.before, rule.verb): rule
        for rule in (
            Rule(State.NEW, Verb.ENTER, State.ACTIVE, _WITH_WORK, _SAVEPOINT),
            Rule(State.ACTIVE, Verb.WORK, State.ACTIVE, "SELECT, INSERT, …", "SELECT, INSERT, …"),
            Rule(State.ACTIVE, Verb.BREAK, State.BROKEN),
            Rule(State.ACTIVE, Verb.DOOM, State.DOOMED),
            Rule(State.ACTIVE, Verb.COMMIT, State.COMMITTING, "what is pending"),
            Rule(State.ACTIVE, Verb.RELEASE, State.RELEASED, "", _RELEASE),
            Rule(State.ACTIVE, Verb.ROLLBACK, State.ROLLED_BACK, "ROLLBACK", "ROLLBACK TO SAVEPOINT"),
            Rule(State.BROKEN, Verb.DOOM, State.DOOMED),
            Rule(State.BROKEN, Verb.ROLLBACK, State.ROLLED_BACK, "ROLLBACK", "ROLLBACK TO SAVEPOINT"),
            Rule(State.DOOMED, Verb.ROLLBACK, State.ROLLED_BACK, "ROLLBACK", "ROLLBACK TO SAVEPOINT, if it exists"),
            Rule(State.COMMITTING, Verb.WORK, State.COMMITTING, "what handlers and hooks do"),
            Rule(State.COMMITTING, Verb.BREAK, State.BROKEN),
            Rule(State.COMMITTING, Verb.DOOM, State.DOOMED),
            Rule(State.COMMITTING, Verb.DURABLE, State.COMMITTED, "COMMIT"),
            Rule(State.COMMITTING, Verb.DOUBT, State.IN_DOUBT, "COMMIT"),
            Rule(State.COMMITTING, Verb.ROLLBACK, State.ROLLED_BACK, "ROLLBACK"),
        )
    }
)

_LEAVE = "Leave the block; a new `with` opens a fresh scope."
_NESTED = "Put a step that may fail into a nested() scope and let its error leave that block: the outer scope goes on."

REFUSALS = MappingProxyType(
    {
        State.NEW: Refusal(OutsideUnitOfWork, "no scope of it is open", "Do it inside `with uow:`, through that unit."),
        State.ACTIVE: Refusal(
            UnitOfWorkActive,
            "it is active already",
            "Use `with uow.nested():` for a scope inside it, or give each use case a unit of its own.",
        ),
        State.BROKEN: Refusal(ScopeBroken, "the database reported an error in this scope", _NESTED),
        State.DOOMED: Refusal(
            ScopeBroken,
            "the database reported an error that the whole unit cannot survive",
            "Leave the block and do the whole unit again in a fresh one.",
        ),
        State.COMMITTING: Refusal(
            UnitOfWorkEnded, "its commit() is under way", "Raise an exception in the handler or hook to stop it."
        ),
        State.COMMITTED: Refusal(UnitOfWorkEnded, "it was committed and has ended", _LEAVE),
        State.RELEASED: Refusal(UnitOfWorkEnded, "it was released and has ended", _LEAVE),
        State.ROLLED_BACK: Refusal(UnitOfWorkEnded, "it was rolled back and has ended", _LEAVE),
        State.IN_DOUBT: Refusal(UnitOfWorkEnded, "the answer to its COMMIT was lost, and it has ended", _LEAVE),
    }
)


def table() -> str:
    """
    Return the transitions and the refusals as two Markdown tables.
    """
    rows = [
        "| from | what happens | to | SQL at the root | SQL in a nested scope |",
        "|---|---|---|---|---|",
        *(
            f"| {rule.before.name} | {rule.verb.value} | {rule.after.name} | {rule.sql} | {rule.nested_sql} |"
            for rule in TRANSITIONS.values()
        ),
        "",
        "| in state | anything else raises | because | what to do |",
        "|---|---|---|---|",
        *(
            f"| {state.name} | `{refusal.error.__name__}` | {refusal.reason} | {refusal.hint} |"
            for state, refusal in REFUSALS.items()
        ),
    ]
    return "\n".join(rows)
