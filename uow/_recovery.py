"""
Recovery: finish what a process left in doubt that died, or lost its connections, in a distributed commit.

Any number of processes may do it, at any time, also while the coordinators are alive: the last agent alone decides,
each branch is ended as was decided, and whoever comes second finds nothing to do.
"""

import logging
import math
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TypeAlias

from attrs import define, evolve, field, frozen

from ._branches import Decision, Finished, Heuristic, Resource, demand_name, id_prefix, last_agent_of
from ._points import reached
from ._states import State
from .errors import ConnectionLost, ConnectionUnavailable, InvalidArgument, UnitOfWorkError

__all__ = ["Doubt", "Recovery", "Unreachable", "recover"]

logger = logging.getLogger("uow")

Branch: TypeAlias = tuple[str, str]

_PATIENCE = 5.0
_PAUSE = 0.1
_BATCH = 500


# ---------------------------------------------------------------------------------------------------------- the report


@frozen
class Doubt:
    """
    A branch that was in doubt, and what became of it.

    Args:
        id: The distributed transaction.

        resource: The name of the database.

        since: When it was prepared, or at least when its transaction was given its id.

        state: COMMITTED or ROLLED_BACK if recovery ended it; IN_DOUBT if it is left.

        problem: Why it is left.
    """

    id: str
    resource: str
    since: datetime
    state: State = State.IN_DOUBT
    problem: str = ""


@frozen
class Unreachable:
    """
    A database that could not be asked.

    Args:
        resource: Its name.

        problem: Why not.
    """

    resource: str
    problem: str


@frozen
class Recovery:
    """
    What recovery found, what it did about it, and what is left.

    Args:
        doubts: The branches that were in doubt, but for those that somebody else was faster to end.

        heuristics: The branches that somebody else ended in another way than was decided. They stay until people have
            put them right.

        unreachable: The databases that could not be asked.

        purged: How many outcome rows were removed because they had expired.
    """

    doubts: Sequence[Doubt]
    heuristics: Sequence[Heuristic]
    unreachable: Sequence[Unreachable]
    purged: int

    @property
    def left(self) -> Sequence[Doubt]:
        """The branches that are in doubt still."""
        return tuple(doubt for doubt in self.doubts if doubt.state is State.IN_DOUBT)

    @property
    def clean(self) -> bool:
        """Whether nothing is left: no doubt, no heuristic outcome, and every database was asked."""
        return not (self.left or self.heuristics or self.unreachable)


# -------------------------------------------------------------------------------------------------------- the algorithm


def recover(*resources: Resource, domain: str = "uow", grace: float = 10.0, dry_run: bool = False) -> Recovery:
    """
    Finish what distributed transactions left in doubt, and remove what nobody needs any more.

    Each prepared branch is ended as its last agent decided; if that has not decided, it cannot commit any more. What
    cannot be finished now is left for the next time and reported. Synchronous: a program that is asynchronous otherwise
    calls it in a thread, with synchronous engines.

    Args:
        resources: All databases of the domain, such as `uow.adapters.sqlalchemy.SqlResource`.

        domain: The domain; transactions of others are left alone.

        grace: How old a branch or decision must be, in seconds: the younger ones are on their way, and need no help. A
            session that still keeps a branch so long after the decision is ended.

        dry_run: Only look, and change nothing.

    Raises:
        InvalidArgument: No resource, two of one name, or a *grace* that is no time.
        ConfigurationError: The domain is no name.
    """
    by_name = {resource.name: resource for resource in resources}
    demand_name("domain", domain)
    if not by_name or len(by_name) < len(resources):
        names = ", ".join(resource.name for resource in resources) or "none"
        raise InvalidArgument("recover()", f"the resources are {names}", "Pass each database of the domain once.")
    if not (grace >= 0 and math.isfinite(grace)):
        raise InvalidArgument("recover()", f"grace is {grace}", "Pass a number of seconds.")
    return _Run(by_name, domain, grace, dry_run).report()


@define
class _Run:
    """
    One recovery, and what it found so far; a branch is known by the distributed transaction and the database.
    """

    resources: dict[str, Resource]
    domain: str
    grace: float
    dry_run: bool
    listed: set[str] = field(factory=set[str], init=False)
    doubts: dict[Branch, Doubt] = field(factory=dict[Branch, Doubt], init=False)
    outcomes: dict[str, bool | str] = field(factory=dict[str, bool | str], init=False)
    """What was decided, or why nobody tells."""
    heuristics: dict[Branch, Heuristic] = field(factory=dict[Branch, Heuristic], init=False)
    unreachable: dict[str, str] = field(factory=dict[str, str], init=False)
    purged: int = field(default=0, init=False)

    def report(self) -> Recovery:
        """Do all of it."""
        for name in self.resources:
            self._look(name)
        reached("recover:listed")
        if not self.dry_run:
            self._settle()
        for name in self.resources:
            self._complete(name)
        if not (self.dry_run or self.unreachable):
            self._purge()
        return Recovery(
            tuple(self.doubts.values()),
            tuple(self.heuristics.values()),
            tuple(Unreachable(name, problem) for name, problem in self.unreachable.items()),
            self.purged,
        )

    @contextmanager
    def _asking(self, name: str) -> Generator[Resource]:
        """Give a database that is to be asked; one that does not answer must not block the others."""
        try:
            yield self.resources[name]
        except UnitOfWorkError as error:
            self.unreachable.setdefault(name, f"{error}")

    def _out_of_reach(self, name: str) -> str:
        """Return why a database cannot be asked, if so."""
        if name not in self.resources:
            return f"{name!r} is not among the resources"
        return f"{name!r} cannot be asked" if name in self.unreachable else ""

    # ------------------------------------------------------------------------------------------------ prepared branches

    def _look(self, name: str) -> None:
        """Find the branches that are in doubt."""
        with self._asking(name) as resource:
            prepared = resource.prepared(self.domain)
            before = datetime.now(UTC) - timedelta(seconds=self.grace)
            self.listed.update(branch.id for branch in prepared)
            self.doubts |= {
                (branch.id, name): Doubt(branch.id, name, branch.since) for branch in prepared if branch.since <= before
            }

    def _settle(self) -> None:
        """End the branches in doubt as was decided; wait for sessions that keep theirs, and end these at last."""
        kept = [branch for branch in list(self.doubts) if self._end(branch) is Finished.OWNED]
        patient_until = time.monotonic() + self.grace
        while kept and time.monotonic() < patient_until + _PATIENCE:
            if time.monotonic() >= patient_until:
                for id, name in kept:
                    with self._asking(name) as resource:
                        resource.disown(id)
            time.sleep(_PAUSE)
            kept = [branch for branch in kept if self._end(branch) is Finished.OWNED]

    def _end(self, branch: Branch) -> Finished | None:
        """Tell a branch what was decided; None if it could not be told."""
        id, name = branch
        if isinstance(decided := self._decided(id), str):
            self._leave(branch, decided)
            return None
        if problem := self._out_of_reach(name):
            self._leave(branch, problem)
            return None
        try:
            finished = self.resources[name].finish(id, commit=decided)
        except UnitOfWorkError as error:
            if isinstance(error, ConnectionLost | ConnectionUnavailable):
                self.unreachable.setdefault(name, f"{error}")
            self._leave(branch, f"it could not be told what was decided: {error}")
            return None
        reached(f"recover:finished:{name}")
        if finished is Finished.OWNED:
            self._leave(branch, "the session that prepared it is alive and keeps it")
        elif finished is Finished.UNKNOWN:  # somebody else was faster; if against the decision, that is found out later
            del self.doubts[branch]
        else:
            became = State.COMMITTED if decided else State.ROLLED_BACK
            self.doubts[branch] = evolve(self.doubts[branch], state=became, problem="")
            logger.info("Recovery: the branch of %s in %r is %s", id, name, became.value)
        return finished

    def _leave(self, branch: Branch, problem: str) -> None:
        self.doubts[branch] = evolve(self.doubts[branch], problem=problem)

    def _decided(self, id: str) -> bool | str:
        """Return what was decided, which cannot change any more, or why nobody tells."""
        if id not in self.outcomes:
            self.outcomes[id] = self._ask(id)
        return self.outcomes[id]

    def _ask(self, id: str) -> bool | str:
        last = last_agent_of(id)
        if problem := self._out_of_reach(last):
            return f"its last agent {problem}"
        try:
            decided = self.resources[last].settle(id, _PATIENCE)
        except UnitOfWorkError as error:
            return f"its last agent {last!r} does not tell what was decided: {error}"
        reached("recover:settled")
        return decided

    # -------------------------------------------------------------------------------------------------------- decisions

    def _complete(self, last: str) -> None:
        """See to the decisions of a last agent: take off the list what all branches follow, report what does not."""
        if last in self.unreachable:
            return
        with self._asking(last) as resource:
            for heuristic in resource.heuristics():
                if heuristic.id.startswith(id_prefix(self.domain, last)):
                    self.heuristics[heuristic.id, heuristic.resource] = heuristic
            decisions = iter(resource.decisions(self.domain, grace=self.grace))
            while some := list(islice(decisions, _BATCH)):
                self._complete_some(resource, some)

    def _complete_some(self, last: Resource, decisions: list[Decision]) -> None:
        open_branches = {decision.id: set(decision.branches) for decision in decisions}
        names = sorted(set[str]().union(*open_branches.values()))
        for name in names:
            for id in self._committed(last, name, [one for one in decisions if name in one.branches]):
                open_branches[id].discard(name)
        done = [id for id, still_open in open_branches.items() if not still_open]
        if done and not self.dry_run:
            last.complete(done)  # and not forgotten: a caller who was left in doubt may ask for it
            reached("recover:completed")
            for name in names:  # later: a decision whose witnesses are gone would look as if a branch was lost
                with self._asking(name) as resource:
                    resource.forget_witnesses([one.id for one in decisions if one.id in done and name in one.branches])

    def _committed(self, last: Resource, name: str, decisions: list[Decision]) -> Collection[str]:
        """Return which of those are committed in that database; report what is neither committed nor prepared."""
        if problem := self._out_of_reach(name):
            for one in decisions:
                doubt = Doubt(one.id, name, one.decided_at, problem=f"{problem}, which may have it prepared still")
                self.doubts.setdefault((one.id, name), doubt)
            return ()
        ids, committed = {one.id for one in decisions}, set[str]()
        with self._asking(name) as resource:
            committed |= set(resource.witnessed(ids))
            known = {id for id, noted in self.heuristics if noted == name}
            for id in self._lost(last, resource, ids - committed - known):
                self._alarm((id, name), "it was rolled back by somebody, although it was decided to commit")
        return committed

    def _lost(self, last: Resource, resource: Resource, ids: Collection[str]) -> Collection[str]:
        """
        Return those that are neither prepared nor committed, although it was decided to commit them.

        The order matters. What is not listed any more has left its witness, and the witness goes after the decision.
        """
        lost = set(ids)
        if lost:
            lost -= {branch.id for branch in resource.prepared(self.domain)}
        if lost:
            lost -= set(resource.witnessed(lost))
        remembered = set[str]()
        if lost:
            with self._asking(last.name):
                remembered |= {decision.id for decision in last.decisions(self.domain, grace=0)}
        return lost & remembered

    def _alarm(self, branch: Branch, problem: str) -> None:
        """Report a branch that does not follow the decision, and keep it for people to see."""
        id, name = branch
        heuristic = self.heuristics[branch] = Heuristic(id, name, problem)
        if not self.dry_run:
            with self._asking(last_agent_of(id)) as last:
                last.note(heuristic)
            logger.error("Recovery: the branch of %s in %r: %s. Put it right by hand", id, name, problem)

    # -------------------------------------------------------------------------------------------------------- leftovers

    def _purge(self) -> None:
        """Remove what has expired, unless it is needed: it takes the answers of all databases to know."""
        needed = self.listed | {id for id, _ in self.heuristics}
        for name in self.resources:
            with self._asking(name) as resource:
                needed.update(decision.id for decision in resource.decisions(self.domain, grace=0))
        if self.unreachable:
            return
        for name in self.resources:
            with self._asking(name) as resource:
                self.purged += resource.purge(self.domain, needed)
                old = [id for id in resource.witnesses(self.domain) if id not in needed]
                resource.forget_witnesses([id for id in old if last_agent_of(id) in self.resources])
