"""
SIGKILL of each database server between every two steps of a distributed commit, and of its recovery.

The servers wait for the disk, and are there again when the next statement is sent, unless the test says otherwise.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from uow import _commit, _points
from uow.errors import CommitOutcomeUnknown
from uow.testing import DatabaseServer, open_database

from .transfers import Forks, World, told, transfer

POINTS = (
    "prepare:stock",
    "prepared:stock",
    "decide",
    "deciding",
    "decided",
    "finish:stock",
    "finished:stock",
    "forgotten",
    "done",
)
KINDS = {
    "postgresql+postgresql": {"bank": "postgresql", "stock": "another postgresql"},
    "postgresql+mariadb": {"bank": "postgresql", "stock": "mariadb"},
    "sqlite+postgresql": {"stock": "postgresql"},
}
KILLS = [(kind, name) for kind, places in KINDS.items() for name in places]
RECOVERIES = [
    (at, then)
    for at, thens in (
        ("deciding", ("recover:listed", "recover:settled", "recover:finished:stock")),
        ("decided", ("recover:listed", "recover:settled", "recover:finished:stock", "recover:completed")),
    )
    for then in thens
]


@pytest.fixture(scope="module")
def worlds_on_servers(servers: Callable[[str], DatabaseServer]) -> Iterator[Callable[[str], World]]:
    made: dict[str, World] = {}
    with ExitStack() as stack:

        def world(kind: str) -> World:
            if kind not in made:
                urls = {name: servers(server).url for name, server in KINDS[kind].items()}
                if "bank" not in urls:
                    urls = {"bank": stack.enter_context(open_database("sqlite")), **urls}
                made[kind] = World.of(**urls)
            return made[kind]

        yield world


class Case:
    """One kind of databases, and the server that is killed."""

    def __init__(self, world: World, server: DatabaseServer) -> None:
        self.world = world
        self.server = server

    @contextmanager
    def killing(self, at: str, *, restart: bool = True) -> Generator[None]:
        """Kill the server at a point, once."""
        waiting = [at]

        def listen(name: str) -> None:
            if name in waiting:
                waiting.remove(name)
                self.server.kill()
                if restart:
                    self.server.restart()

        before, _points.listener = _points.listener, listen
        try:
            yield
        finally:
            _points.listener = before
            self.server.start()
        assert not waiting, f"{at} was never reached"


@pytest.fixture
def case(
    request: pytest.FixtureRequest,
    worlds_on_servers: Callable[[str], World],
    servers: Callable[[str], DatabaseServer],
) -> Iterator[Case]:
    kind, name = request.param
    world = worlds_on_servers(kind)
    for place in world.places:  # one that another kind has been made on has other tables
        place.create()
    yield Case(world, servers(KINDS[kind][name]))
    world.clean_up()


on_each_server = pytest.mark.parametrize("case", KILLS, indirect=True, ids=lambda kill: " kills ".join(kill))


@on_each_server
@pytest.mark.parametrize("at", POINTS)
def test_a_server_is_killed(case: Case, at: str) -> None:
    """What commit() tells its caller is what all databases have, and recovery leaves nothing."""
    order = case.world.order()
    with case.killing(at):
        answer = told(lambda: transfer(*order))

    assert answer is not None
    assert answer == case.world.settled(order[2])


@pytest.mark.parametrize("case", KILLS[2:4], indirect=True, ids=lambda kill: " kills ".join(kill))
@pytest.mark.parametrize(("at", "then"), RECOVERIES)
def test_a_server_is_killed_while_it_is_recovered(case: Case, forks: Forks, at: str, then: str) -> None:
    """The next recovery ends what is left, as was decided."""
    order = case.world.order()
    assert forks.killed(transfer, *order, at=at)
    with case.killing(then):
        case.world.recover()

    assert (at == "decided") == case.world.settled(order[2])


@pytest.mark.parametrize("case", [("postgresql+mariadb", "bank")], indirect=True, ids=["bank"])
def test_the_last_agent_stays_away(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then; who asks later is told what all databases have, and until then recovery leaves the branch."""
    monkeypatch.setattr(_commit, "_PATIENCE", 0.2)
    order = case.world.order()
    with case.killing("deciding", restart=False):
        with pytest.raises(CommitOutcomeUnknown) as unknown:
            transfer(*order)
        meanwhile = case.world.recover()

        assert ["stock"] == [doubt.resource for doubt in meanwhile.left]
        assert ["bank"] == [one.resource for one in meanwhile.unreachable]

    assert unknown.value.token is not None
    assert case.world.place("bank").resource.settle(unknown.value.token, 5) is case.world.settled(order[2])


@pytest.mark.parametrize("case", [("postgresql+mariadb", "stock")], indirect=True, ids=["stock"])
@pytest.mark.parametrize(("at", "kept"), [("prepared:stock", True), ("decided", True)])
def test_a_branch_stays_away(case: Case, at: str, kept: bool) -> None:
    """Once it is prepared it hinders nobody: the work is committed, and recovery tells the branch when it is back."""
    order = case.world.order()
    with case.killing(at, restart=False):
        assert kept == told(lambda: transfer(*order))
        assert ["stock"] == [doubt.resource for doubt in case.world.recover().left]

    assert kept == case.world.settled(order[2])
