"""
Parity by machine: made-up programs run on a fake and on a database, and must do the same on both.
"""

try:
    import hypothesis
except ModuleNotFoundError as error:
    msg = "uow.testing.parity needs Hypothesis, which is not installed. Install uow[testing]."
    raise ModuleNotFoundError(msg, name=error.name) from error

import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine, MetaData
from sqlalchemy import inspect as inspect_mapped
from sqlalchemy.exc import SAWarning

from uow.adapters.memory import FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork

from ._parity_machine import Machine
from ._parity_rules import Strategies, machine_of
from ._parity_sides import Different, facts_of, kinds_of

__all__ = ["Different", "ParitySuite"]

_ROUND = 10


class ParitySuite:
    """
    Made-up programs that must do the same on a fake and on a database. Inherit it in a test class.

    It needs an ``engine`` fixture: a SQLAlchemy engine for a database that may be emptied. Its tables are made if they
    are not there.

    Args:
        fake: The port's adapter on the fake.

        real: Its adapter on SQLAlchemy.

        entities: By repository, the Hypothesis strategy that makes its entities. Few different values find the most.

        methods: By repository, the methods of its entities that programs call, each with a strategy for its arguments.

        queries: By repository, its named queries, each with a strategy for its arguments.

        settings: For Hypothesis: how many programs, and of how many steps.
    """

    fake: ClassVar[type[FakeUnitOfWork]]
    real: ClassVar[type[SqlAlchemyUnitOfWork]]
    entities: ClassVar[Strategies]
    methods: ClassVar[Mapping[str, Strategies]] = {}
    queries: ClassVar[Mapping[str, Strategies]] = {}
    settings: ClassVar[hypothesis.settings] = hypothesis.settings(
        max_examples=120,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        report_multiple_bugs=False,
        phases=[phase for phase in Phase if phase is not Phase.explain],  # tracing makes it ten times slower
    )

    @pytest.fixture
    def seed(self, request: pytest.FixtureRequest) -> int:
        """Where the made-up programs begin: ``--hypothesis-seed``, or anywhere."""
        given = request.config.getoption("--hypothesis-seed", None)
        if given is not None:
            return int(given)
        return 0 if self.settings.derandomize else secrets.randbits(32)

    def store(self) -> Store:
        """Return a fresh store; by default one with the constraints of the tables."""
        return Store(*self._metadata())

    def empty(self, engine: Engine) -> None:
        """Empty the tables, before each program."""
        with engine.begin() as connection:
            for metadata in self._metadata():
                for table in reversed(metadata.sorted_tables):
                    connection.execute(table.delete())

    def test_the_fake_does_what_the_database_does(self, engine: Engine, seed: int) -> None:
        """Whatever a program does, the fake and the database answer the same."""
        for metadata in self._metadata():
            metadata.create_all(engine)
        machines, facts = self._machines(), facts_of(engine)

        def program(machine: type[Machine]) -> Machine:
            self.empty(engine)
            store = self.store()
            makers = (lambda **options: self.fake(store, **options), lambda **options: self.real(engine, **options))
            return machine(makers, facts)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # programs do what it warns of; what comes of it is compared
            try:
                self._run_rounds([partial(program, machine) for machine in machines], seed)
            except Different as error:
                error.add_note(f"The same programs again: pytest --hypothesis-seed={seed}")
                raise

    def _machines(self) -> list[type[Machine]]:
        """Return a machine for each repository with those related to it, and one for all: few are used the more."""
        kinds = kinds_of({name: getattr(self.fake, name).entity for name in self.entities}, self.entities)
        groups = dict.fromkeys([*(frozenset({kind.name, *kind.related}) for kind in kinds.values()), frozenset(kinds)])
        return [
            machine_of(
                type(self).__name__,
                {name: kind for name, kind in kinds.items() if name in group},
                self.methods,
                self.queries,
            )
            for group in groups
        ]

    def _run_rounds(self, programs: Sequence[Callable[[], Machine]], seed: int) -> None:
        """
        Run a few programs of each machine in turn.

        After a dozen programs Hypothesis would rather vary those that it has than make up new ones, which find more.
        """
        for number, done in enumerate(range(0, self.settings.max_examples, _ROUND)):
            few = min(_ROUND, self.settings.max_examples - done)
            settings = hypothesis.settings(self.settings, max_examples=few, derandomize=False)
            program: Any = partial(programs[number % len(programs)])
            run_state_machine_as_test(hypothesis.seed(seed + number)(program), settings=settings)

    def _metadata(self) -> list[MetaData]:
        entities = (getattr(self.fake, name).entity for name in self.entities)
        return [*{inspect_mapped(entity).local_table.metadata: None for entity in entities}]
