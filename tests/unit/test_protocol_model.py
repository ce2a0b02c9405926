"""
A model of the distributed commit, searched exhaustively: every interleaving of a coordinator, two recoveries, the
network and the clock, with crashes anywhere.

One state is one moment. A process that was stopped, however long, is one that takes no step while the others do.
Databases do not lie and keep what they committed; everything else may happen in any order. Planted mistakes show that
the search finds what it looks for.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

OPEN, SENT, PREPARED, COMMITTED, ABORTED = "open", "sent", "prepared", "committed", "aborted"
WRITTEN, ENDED = "written", "ended"
EARLY, LATE, EXPIRED = range(3)
"""The last agent's clock: before the deadline; after it; after the time that an outcome is kept."""

Recovery = tuple[str, int, str]
IDLE: Recovery = ("idle", 0, "")
Branches = tuple[str, str]
Pair = tuple[bool, bool]


class State(NamedTuple):
    coordinator: str = "prepare 0"
    transaction: str = OPEN  # the coordinator's, in the last agent
    row: str = ""  # what is committed in uow_outcome
    branches: Branches = (OPEN, OPEN)
    witnesses: Pair = (False, False)
    clock: int = EARLY
    recoveries: tuple[Recovery, Recovery] = (IDLE, IDLE)
    missed: bool = False  # the coordinator could not finish every branch
    told: str = ""  # what the caller was told
    decided: bool = False  # the last agent has ever committed
    alarm: bool = False  # a heuristic outcome was reported


Step = tuple[str, State]


def changed(pair: tuple[object, ...], index: int, value: object) -> tuple[object, ...]:
    return (value, pair[1]) if index == 0 else (pair[0], value)


class Protocol:
    """
    Section 3 of the design: who may do what next.

    Args:
        mistake: What is done wrongly.
    """

    def __init__(self, mistake: str = "") -> None:
        self.mistake = mistake

    def steps(self, state: State) -> Iterator[Step]:
        """Yield what can happen next."""
        yield from self.coordinator(state)
        yield from self.without_coordinator(state)

    def without_coordinator(self, state: State) -> Iterator[Step]:
        """Yield what can happen next if the coordinator never does anything again."""
        yield from self.world(state)
        for number, recovery in enumerate(state.recoveries):
            for what, after, now in self.recovery(state, recovery):
                mine = sorted((now, state.recoveries[1 - number]))  # they are alike
                yield f"recovery: {what}", after._replace(recoveries=(mine[0], mine[1]))

    # ------------------------------------------------------------------------------------------------ the coordinator

    def coordinator(self, state: State) -> Iterator[Step]:
        at, _, rest = state.coordinator.partition(" ")
        if at in ("done", "crashed"):
            return
        yield "the coordinator crashes", state._replace(coordinator="crashed")
        for what, after in getattr(self, f"_{at}")(state, int(rest or 0)):
            yield f"coordinator: {what}", after

    def _prepare(self, state: State, index: int) -> Iterator[Step]:
        if state.branches[index] == OPEN:
            yield f"PREPARE {index}", _branch(state, index, SENT)._replace(coordinator=f"await {index}")

    def _await(self, state: State, index: int) -> Iterator[Step]:
        if state.branches[index] == PREPARED:
            yield f"{index} is prepared", state._replace(coordinator="insert" if index else "prepare 1")
        yield f"no answer to PREPARE {index}", state._replace(coordinator="abort")

    def _insert(self, state: State, _: int) -> Iterator[Step]:
        in_time = state.clock == EARLY or self.mistake == "no deadline"
        if state.transaction == OPEN and in_time and not state.row:
            yield "INSERT 'C'", state._replace(coordinator="commit", transaction=WRITTEN)
        else:
            yield "too late, or fenced", state._replace(coordinator="abort")

    def _commit(self, state: State, _: int) -> Iterator[Step]:
        if state.transaction == WRITTEN:
            then = "finish 0" if self.mistake == "finish before decide" else "answer"
            yield "COMMIT", state._replace(coordinator=then, transaction=SENT)
        else:
            yield "the session is gone", state._replace(coordinator="ask")

    def _answer(self, state: State, _: int) -> Iterator[Step]:
        if state.transaction == ENDED and state.row == "C":
            yield "COMMIT is answered", _tell(state, "C")._replace(coordinator="finish 0")
        yield "no answer to COMMIT", state._replace(coordinator="ask")

    def _ask(self, state: State, _: int) -> Iterator[Step]:
        for after, outcome in self.resolve(state):
            then = "finish 0" if outcome == "C" else "abort"
            yield f"the outcome is {outcome}", _tell(after, outcome)._replace(coordinator=then)
        yield from self.hang_up(state)
        yield "nobody tells", state._replace(coordinator="doubt")

    def _doubt(self, state: State, _: int) -> Iterator[Step]:
        """The caller asks later, as often as it likes."""
        for after, outcome in self.resolve(state):
            yield f"the caller is told {outcome}", _tell(after, outcome)
        yield from self.hang_up(state)

    def _finish(self, state: State, index: int) -> Iterator[Step]:
        then = "forget" if index else "finish 1"
        yield f"COMMIT PREPARED {index}", _finish(state, index, "C")._replace(coordinator=then)
        yield f"{index} is not reached", state._replace(coordinator=then, missed=True)

    def _forget(self, state: State, step: int) -> Iterator[Step]:
        if state.missed:
            yield "leaves it to recovery", state._replace(coordinator="done")
        else:
            yield "forgets", self.forget(state, step)._replace(coordinator="done" if step else "forget 1")

    def _abort(self, state: State, step: int) -> Iterator[Step]:
        if step == 0:
            yield "rolls back", _tell(state, "A")._replace(coordinator="abort 1", transaction=ENDED)
            return
        then = "abort 2" if step == 1 else "done"
        index = step - 1
        known = state.branches[index] in (OPEN, PREPARED)
        after = _branch(state, index, ABORTED) if known else state
        yield f"rolls back {index}", after._replace(coordinator=then)
        yield f"{index} is not reached", state._replace(coordinator=then)

    # ------------------------------------------------------------------------------------------------ what both do

    def fence(self, state: State) -> Iterator[tuple[State, str]]:
        """Insert 'A' unless there is an outcome; wait for one on its way."""
        if self.mistake == "look":
            yield state, state.row or "A"
        elif state.transaction not in (WRITTEN, SENT):
            yield state._replace(row=state.row or "A"), state.row or "A"

    def resolve(self, state: State) -> Iterator[tuple[State, str]]:
        """Fence, unless the token is so old that its outcome may have been forgotten."""
        if state.clock != EXPIRED:
            yield from self.fence(state)

    def hang_up(self, state: State) -> Iterator[Step]:
        """End a session that is in the way; a COMMIT that arrives afterwards finds none."""
        if state.transaction in (WRITTEN, SENT) and self.mistake != "never hang up":
            yield "the session is ended", state._replace(transaction=ENDED)

    def forget(self, state: State, step: int) -> State:
        """Remove the decision, then the witnesses."""
        if (step == 0) != (self.mistake == "forget witness before decision"):
            return state._replace(row="" if state.row == "C" else state.row)
        return state._replace(witnesses=(False, False))

    # -------------------------------------------------------------------------------------------------- the recovery

    def recovery(self, state: State, recovery: Recovery) -> Iterator[tuple[str, State, Recovery]]:
        at, index, outcome = recovery
        if at != "idle":
            yield "crashes", state, IDLE
        if at == "idle":
            for number, branch in enumerate(state.branches):
                if branch == PREPARED:
                    yield f"lists {number}", state, ("fence", number, "")
            if state.row == "C":
                yield "reads the decision", state, self.audit(0)
            purged = state.clock >= LATE or self.mistake == "purge before the deadline"
            if state.row == "A" and purged and PREPARED not in state.branches:
                yield "purges 'A'", state._replace(row=""), IDLE
        elif at == "fence":
            for after, found in self.fence(state):
                yield f"fences: {found}", after, ("finish", index, found)
            for what, after in self.hang_up(state):
                yield what, after, recovery
        elif at == "finish":
            yield f"finishes {index}: {outcome}", _finish(state, index, outcome), IDLE
        elif at == "forget":
            yield "forgets", self.forget(state, index), IDLE if index else ("forget", 1, "")
        else:
            yield from self.audited(state, at, index)

    def audit(self, index: int) -> Recovery:
        """Begin to look after one branch of a decision: is it listed, else is the witness there?"""
        return ("witness" if self.mistake == "witness before list" else "list", index, "")

    def audited(self, state: State, at: str, index: int) -> Iterator[tuple[str, State, Recovery]]:
        then = self.audit(1) if index == 0 else ("idle", 0, "")
        if index and (state.clock == EXPIRED or self.mistake == "forget while a caller may ask"):
            then = ("forget", 0, "")
        again = "alarm" if self.mistake == "alarm at once" else "again"
        first = self.mistake != "witness before list"
        if at == "list":
            if state.branches[index] == PREPARED:
                yield f"finishes {index}: C", _finish(state, index, "C"), then
            else:
                yield f"{index} is not listed", state, ("witness" if first else again, index, "")
        elif at == "witness":
            if state.witnesses[index]:
                yield f"the witness of {index} is there", state, then
            else:
                yield f"no witness of {index}", state, (again if first else "list", index, "")
        elif at == "alarm" or state.row == "C":
            yield f"reports {index}", state._replace(alarm=True), IDLE
        else:
            yield "the decision was forgotten meanwhile", state, IDLE

    # -------------------------------------------------------------------------------------------- the rest of the world

    def world(self, state: State) -> Iterator[Step]:
        if state.clock < EXPIRED:
            yield "time passes", state._replace(clock=state.clock + 1)
        for index, branch in enumerate(state.branches):
            if branch == SENT:
                yield f"PREPARE {index} arrives", _branch(state, index, PREPARED)
                yield f"PREPARE {index} is lost", _branch(state, index, ABORTED)
        if state.transaction == SENT:
            yield "COMMIT arrives", state._replace(transaction=ENDED, row="C", decided=True)
            yield "COMMIT is lost", state._replace(transaction=ENDED)
        if state.coordinator in ("crashed", "done", "doubt"):
            if state.transaction in (OPEN, WRITTEN):
                yield "the last agent notices", state._replace(transaction=ENDED)
            for index, branch in enumerate(state.branches):
                if branch == OPEN:
                    yield f"{index} notices", _branch(state, index, ABORTED)


def _branch(state: State, index: int, now: str) -> State:
    return state._replace(branches=changed(state.branches, index, now))  # type: ignore[arg-type]


def _finish(state: State, index: int, outcome: str) -> State:
    """End a branch if it is prepared; otherwise somebody has."""
    if state.branches[index] != PREPARED:
        return state
    if outcome == "A":
        return _branch(state, index, ABORTED)
    after = _branch(state, index, COMMITTED)
    return after._replace(witnesses=changed(state.witnesses, index, True))  # type: ignore[arg-type]


def _tell(state: State, outcome: str) -> State:
    return state if outcome in state.told else state._replace(told=state.told + outcome)


# ---------------------------------------------------------------------------------------------------------- the search


def wrong(state: State) -> str | None:
    """Return which invariant does not hold."""
    if COMMITTED in state.branches and not state.decided:
        return "a branch was committed before the decision was durable"
    if ABORTED in state.branches and (state.decided or COMMITTED in state.branches):
        return "not all or nothing"
    if len(state.told) > 1:
        return "the answer changed"
    if state.told == ("A" if state.decided else "C"):
        return "the answer is wrong"
    if state.alarm:
        return "a false alarm"
    return None


def clean(state: State) -> bool:
    """Tell whether nothing is in doubt, and no lock is held by a prepared branch."""
    return PREPARED not in state.branches and SENT not in state.branches


class Found(NamedTuple):
    problem: str
    trail: list[str]


def search(protocol: Protocol) -> tuple[set[State], Found | None]:
    """Visit every reachable state; return them, and the shortest way to what is wrong."""
    start = State()
    came: dict[State, tuple[State, str] | None] = {start: None}
    before: dict[State, list[State]] = {}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        if problem := wrong(state):
            return set(came), Found(problem, trail(came, state))
        steps = list(protocol.coordinator(state))
        for what, after in protocol.without_coordinator(state):
            before.setdefault(after, []).append(state)
            steps.append((what, after))
        for what, after in steps:
            if after not in came:
                came[after] = (state, what)
                queue.append(after)
    finished = {state for state in came if clean(state)}
    queue.extend(finished)
    while queue:
        for earlier in before.get(queue.popleft(), ()):
            if earlier not in finished:
                finished.add(earlier)
                queue.append(earlier)
    for state in came:  # in the order of their distance
        if state not in finished:
            return set(came), Found("recovery does not finish", trail(came, state))
    return set(came), None


def trail(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    """Return what happened on the way to *state*."""
    steps: list[str] = []
    while (step := came[state]) is not None:
        state, what = step
        steps.append(what)
    return steps[::-1]


def test_the_protocol_keeps_its_word() -> None:
    """All or nothing, only after the decision, one true answer, no false alarm, and recovery alone always finishes."""
    states, found = search(Protocol())

    assert found is None, "\n".join((found.problem, *found.trail))
    assert len(states) > 9_000
    for told, fate in (("C", COMMITTED), ("A", ABORTED), ("", COMMITTED), ("", ABORTED)):  # it can end in every way
        assert any(state.branches == (fate, fate) and state.told == told for state in states)


@pytest.mark.parametrize(
    ("mistake", "problem"),
    [
        ("look", "not all or nothing|the answer is wrong|the answer changed"),
        ("purge before the deadline", "not all or nothing"),
        ("no deadline", "not all or nothing"),
        ("finish before decide", "a branch was committed before the decision was durable"),
        ("forget witness before decision", "a false alarm"),
        ("witness before list", "a false alarm"),
        ("alarm at once", "a false alarm"),
        ("forget while a caller may ask", "the answer changed|the answer is wrong"),
        ("never hang up", "recovery does not finish"),
    ],
)
def test_a_mistake_is_found(mistake: str, problem: str) -> None:
    """Each is found by the search, with the way that leads there."""
    _, found = search(Protocol(mistake))

    assert found is not None
    assert found.problem in problem.split("|"), "\n".join((found.problem, *found.trail))
    assert found.trail
