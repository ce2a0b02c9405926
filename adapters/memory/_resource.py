"""
A store in distributed transactions: its prepared branches, decisions and witnesses.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from attrs import field, frozen

from uow import KEPT, Decision, Finished, Heuristic, Outcome, Prepared, demand_name, id_prefix

from ._store import Store

__all__ = ["FakeResource"]


@frozen
class FakeResource:
    """
    A store of distributed transactions.

    Args:
        store: The store.

        name: What the ids of distributed transactions call it.

    Raises:
        ConfigurationError: That is no name for an id.
    """

    store: Store
    name: str = field()
    rank: int = field(default=2, init=False)

    def __attrs_post_init__(self) -> None:
        demand_name("resource", self.name)

    @property
    def modes(self) -> Collection[Outcome]:
        """The ways to find out what became of a unit."""
        return self.store.outcomes.modes

    def settle(self, token: str, timeout: float) -> bool:
        """Tell whether the transaction was decided to be committed; from now on it cannot be any more."""
        return self.store.outcomes.settle(token, timeout)

    def demand_ready(self, *, prepares: bool) -> None:
        """Nothing stands in the way."""

    def prepared(self, domain: str) -> Sequence[Prepared]:
        """Return the branches of that domain that are prepared and not ended."""
        with self.store.mutex:
            return Prepared.of(domain, [(id, branch.since) for id, branch in self.store.prepared.items()])

    def finish(self, id: str, *, commit: bool) -> Finished:
        """Commit a prepared branch, or roll it back."""
        with self.store.mutex:
            branch = self.store.prepared.pop(id, None)
            if branch is None:
                return Finished.UNKNOWN
            branch.end(commit)
            if commit:
                self.store.witnesses[id] = datetime.now(UTC)
            return Finished.DONE

    def disown(self, id: str) -> None:
        """Do nothing: a prepared branch belongs to the store."""

    def witnessed(self, ids: Collection[str]) -> Collection[str]:
        """Return those whose branch was committed here."""
        with self.store.mutex:
            return self.store.witnesses.keys() & set(ids)

    def witnesses(self, domain: str) -> Collection[str]:
        """Return those whose branch was committed here, longer ago than an outcome is kept."""
        prefix, since = id_prefix(domain), datetime.now(UTC) - KEPT
        with self.store.mutex:
            return [id for id, at in self.store.witnesses.items() if id.startswith(prefix) and at < since]

    def decisions(self, domain: str, *, grace: float) -> Sequence[Decision]:
        """Return what was decided here to be committed, at least *grace* seconds ago, and was not forgotten."""
        prefix, until = id_prefix(domain, self.name), datetime.now(UTC) - timedelta(seconds=grace)
        with self.store.mutex:
            known = self.store.outcomes.decisions.values()
            return [one for one in known if one.id.startswith(prefix) and one.decided_at <= until]

    def complete(self, ids: Collection[str]) -> None:
        """Take decisions off the list."""
        with self.store.mutex:
            self.store.outcomes.complete(ids)

    def forget(self, ids: Collection[str]) -> None:
        """Remove decisions whose branches are all committed."""
        with self.store.mutex:
            self.store.outcomes.forget(ids)

    def forget_witnesses(self, ids: Collection[str]) -> None:
        """Remove what shows that branches were committed."""
        with self.store.mutex:
            for id in ids:
                self.store.witnesses.pop(id, None)

    def note(self, heuristic: Heuristic) -> None:
        """Keep a heuristic outcome for people to see; once for each branch."""
        with self.store.mutex:
            self.store.heuristics.setdefault((heuristic.id, heuristic.resource), heuristic)

    def heuristics(self) -> Sequence[Heuristic]:
        """Return the heuristic outcomes that were noted and not removed by people."""
        with self.store.mutex:
            return list(self.store.heuristics.values())

    def purge(self, domain: str, listed: Collection[str]) -> int:
        """Remove nothing: a store does not live as long as an outcome is kept."""
        return 0
