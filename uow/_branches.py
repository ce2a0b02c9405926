"""
What a database does for a distributed transaction, asked from outside a unit: recovery does it, and a group's end.
"""

import os
import re
import socket
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from enum import Enum
from typing import Protocol

from attrs import frozen

from ._outcomes import Outcomes, made_at, new_token
from .errors import ConfigurationError

__all__ = [
    "Decision",
    "Finished",
    "Heuristic",
    "Prepared",
    "Resource",
    "demand_name",
    "domain_of",
    "id_prefix",
    "last_agent_of",
    "new_id",
]

_PREFIX = "u1"
_LONGEST_NAME = 12


def new_id(domain: str, last_agent: str) -> str:
    """
    Return the id of a distributed transaction: ``u1.<domain>.<last agent>.<node>.<token>``, 64 characters at most.

    It says where to ask for the decision. The node is for people: the host's name, cut short, and the process.
    """
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())
    return f"{_PREFIX}.{domain}.{last_agent}.{f'{host[:1]}{os.getpid()}'[:8]}.{new_token()}"


def domain_of(id: str) -> str | None:
    """Return the domain that a transaction belongs to; None if it is none of ours."""
    parts = id.split(".")
    return parts[1] if len(parts) == 5 and parts[0] == _PREFIX and made_at(id) is not None else None


def id_prefix(domain: str, last_agent: str = "") -> str:
    """Return what the ids of a domain begin with, or those of which one database decides."""
    return f"{_PREFIX}.{domain}." + (f"{last_agent}." if last_agent else "")


def last_agent_of(id: str) -> str:
    """Return the name of the database that decides."""
    return id.split(".")[2]


def demand_name(what: str, name: object) -> None:
    """Raise unless *name* can be part of an id."""
    fits = isinstance(name, str) and name.isascii() and name.replace("_", "a").replace("-", "a").isalnum()
    if not fits or not len(str(name)) <= _LONGEST_NAME:
        raise ConfigurationError(
            f"the {what} is called {name!r}",
            f"Give it a name of 1 to {_LONGEST_NAME} letters, digits, '-' and '_', that no other one has.",
        )


class Finished(Enum):
    """
    What a database answered when it was told how a branch ends.
    """

    DONE = "done"
    UNKNOWN = "not listed"
    OWNED = "a session that is alive still has it"


@frozen
class Prepared:
    """
    A branch that waits for the decision.

    Args:
        id: The distributed transaction.

        since: When it was prepared, or at least when its transaction was given its id.
    """

    id: str
    since: datetime

    @classmethod
    def of(cls, domain: str, listed: Iterable[tuple[str, datetime | None]]) -> list["Prepared"]:
        """
        Return which of those that a database has *listed* are of that domain.

        Where it does not tell since when, the id does: when it was made.
        """
        ours = ((id, since or made_at(id)) for id, since in listed if domain_of(id) == domain)
        return [cls(id, since) for id, since in ours if since is not None]


@frozen
class Decision:
    """
    A distributed transaction that the last agent has decided to commit.

    Args:
        id: The distributed transaction.

        branches: The names of the other databases.

        decided_at: When, by the last agent's clock.
    """

    id: str
    branches: Sequence[str]
    decided_at: datetime


@frozen
class Heuristic:
    """
    A branch that somebody else ended, in another way than was decided.

    Args:
        id: The distributed transaction.

        resource: The name of the database.

        problem: What was found.
    """

    id: str
    resource: str
    problem: str


class Resource(Outcomes, Protocol):
    """
    One database of distributed transactions. Every call is a short transaction of its own, on a fresh connection.

    `Outcomes.settle` is how the last agent is asked for its decision: it fences the id.
    """

    @property
    def name(self) -> str:
        """What the ids call it."""
        ...

    @property
    def rank(self) -> int:
        """How well it can be the last agent, 0 best: 0 cannot prepare, 1 PostgreSQL, 2 MariaDB and others."""
        ...

    def demand_ready(self, *, prepares: bool) -> None:
        """
        Raise what stands in the way of its part: to prepare, or else to decide.

        Raises:
            ConfigurationError: A setting is too weak, or a table is missing; it says what to set.
        """
        ...

    def prepared(self, domain: str) -> Sequence[Prepared]:
        """Return the branches of that domain that this database has prepared and not ended."""
        ...

    def finish(self, id: str, *, commit: bool) -> Finished:
        """Commit a prepared branch, or roll it back."""
        ...

    def disown(self, id: str) -> None:
        """End the session that keeps a prepared branch for itself and does nothing with it."""
        ...

    def witnessed(self, ids: Collection[str]) -> Collection[str]:
        """Return those whose branch was committed here: a row that was written in the branch is there."""
        ...

    def witnesses(self, domain: str) -> Collection[str]:
        """Return the ids of that domain whose branch was committed here longer ago than an outcome is kept."""
        ...

    def decisions(self, domain: str, *, grace: float) -> Sequence[Decision]:
        """Return what this database decided to commit, at least *grace* seconds ago, and was not forgotten."""
        ...

    def complete(self, ids: Collection[str]) -> None:
        """Take decisions off the list whose branches are all committed; `settle` knows them until they expire."""
        ...

    def forget(self, ids: Collection[str]) -> None:
        """Remove decisions whose branches are all committed, and for which nobody will ask any more."""
        ...

    def forget_witnesses(self, ids: Collection[str]) -> None:
        """Remove the rows that show that branches were committed, once their decisions are forgotten."""
        ...

    def note(self, heuristic: Heuristic) -> None:
        """Keep a heuristic outcome for people to see; once for each branch."""
        ...

    def heuristics(self) -> Sequence[Heuristic]:
        """Return the heuristic outcomes that were noted and not removed by people."""
        ...

    def purge(self, domain: str, listed: Collection[str]) -> int:
        """
        Remove outcome rows that have expired: of units, and of that domain's transactions that were aborted.

        Args:
            domain: The domain.

            listed: The ids that some database has prepared still; they are spared.

        Returns:
            How many were removed.
        """
        ...
