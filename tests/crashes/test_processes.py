"""
SIGKILL of a process at every step of a distributed commit, and of its recovery.

The steps are written down, so that the tests of each can run apart from the others, and compared with what is reached.
"""

from collections.abc import Iterable, Sequence

import pytest

from uow.testing import record_points

from .transfers import DOMAIN, Forks, World, recover_all, transfer

BRANCHES = {
    "postgresql+postgresql": ["stock"],
    "postgresql+mariadb": ["stock"],
    "sqlite+postgresql": ["stock"],
    "postgresql+postgresql+mariadb": ["stock", "till"],
}
"""Of each kind of databases those that prepare, in order."""


def before(branches: Iterable[str]) -> list[str]:
    """Return the points up to the decision."""
    prepares = [f"{step}:{branch}" for branch in branches for step in ("prepare", "prepared")]
    return [*prepares, "decide", "deciding"]


def after(branches: Iterable[str]) -> list[str]:
    """Return the points from the decision on."""
    finishes = [f"{step}:{branch}" for branch in branches for step in ("finish", "finished")]
    return ["decided", *finishes, "forgotten", "done"]


def recovery(branches: Iterable[str], *, decided: bool) -> list[str]:
    """Return the points of a recovery that finds all branches prepared."""
    finishes = [f"recover:finished:{branch}" for branch in branches]
    return ["recover:listed", "recover:settled", *finishes, *(["recover:completed"] if decided else [])]


def on_all(steps: Sequence[tuple[str, ...]]) -> pytest.MarkDecorator:
    names = ["kept", "at", "then"][: len(steps[0]) - 1]
    return pytest.mark.parametrize(("world", *names), steps, indirect=["world"])


STEPS = [
    (kind, kept, at)
    for kind, branches in BRANCHES.items()
    for kept, points in ((False, before(branches)), (True, after(branches)))
    for at in points
]
RECOVERIES = [
    (kind, kept, at, then)
    for kind, branches in BRANCHES.items()
    for kept, at in ((False, "deciding"), (True, "decided"))
    for then in recovery(branches, decided=kept)
]


@pytest.mark.parametrize(("world", "branches"), BRANCHES.items(), indirect=["world"])
def test_the_steps_are_all_that_there_are(world: World, branches: list[str]) -> None:
    """What is reached is what the other tests crash at."""
    order = world.order()
    with record_points() as points:
        transfer(*order)

    assert [(at, 1) for at in (*before(branches), *after(branches))] == points
    assert world.settled(order[2])


@on_all(STEPS)
def test_a_process_is_killed(world: World, forks: Forks, kept: bool, at: str) -> None:
    """Until the decision is durable none of the databases has the work, afterwards all have it; nothing is left."""
    order = world.order()
    assert forks.killed(transfer, *order, at=at)

    assert kept == world.settled(order[2])
    assert [0] * len(world.places) == [place.rows("uow_heuristic") for place in world.places]


@on_all(RECOVERIES)
def test_recovery_is_killed(world: World, forks: Forks, kept: bool, at: str, then: str) -> None:
    """The next recovery ends what is left, as was decided."""
    order = world.order()
    assert forks.killed(transfer, *order, at=at)
    assert forks.killed(recover_all, world.urls, DOMAIN, at=then)

    assert kept == world.settled(order[2])


@pytest.mark.parametrize(("world", "branches"), BRANCHES.items(), indirect=["world"])
@pytest.mark.parametrize(("kept", "at"), [(False, "deciding"), (True, "decided")])
def test_the_steps_of_recovery_are_all_that_there_are(
    world: World, forks: Forks, branches: list[str], kept: bool, at: str
) -> None:
    """What is reached is what the other test crashes at."""
    order = world.order()
    assert forks.killed(transfer, *order, at=at)
    with record_points() as points:
        found = world.recover()

    assert recovery(branches, decided=kept) == list(dict.fromkeys(name for name, _ in points))
    assert set(branches) == {doubt.resource for doubt in found.doubts}
    assert kept == world.settled(order[2])
