"""
The contract of the framework as tests: every rule, written once, for every adapter.

.. code-block:: python

    class TestMine(ContractSuite):
        @pytest.fixture
        def harness(self) -> Iterator[Harness]:
            harness = MyHarness()
            yield harness
            harness.close()
"""

import pkgutil

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from ._base import Contract  # noqa: E402
from ._corners import Corners  # noqa: E402
from ._events import EventRules  # noqa: E402
from ._examples import SeedExamples  # noqa: E402
from ._failures import FailureRules  # noqa: E402
from ._interrupts import InterruptRules  # noqa: E402
from ._joined import JoinedRules  # noqa: E402
from ._lifecycle import LifecycleRules  # noqa: E402
from ._misuse import Misuse  # noqa: E402
from ._nested import NestedRules  # noqa: E402
from ._objects import ObjectRules  # noqa: E402
from ._options import OptionRules  # noqa: E402
from ._outcomes import OutcomeRules  # noqa: E402
from ._ownership import OwnershipRules  # noqa: E402
from ._repositories import RepositoryRules  # noqa: E402
from ._scopes import ScopeRules  # noqa: E402
from ._sessions import SessionRules  # noqa: E402
from ._tasks import InTask, TaskRules  # noqa: E402

__all__ = [
    "AsyncContractSuite",
    "Contract",
    "ContractSuite",
    "Corners",
    "EventRules",
    "FailureRules",
    "InTask",
    "InterruptRules",
    "JoinedRules",
    "LifecycleRules",
    "Misuse",
    "NestedRules",
    "ObjectRules",
    "OptionRules",
    "OutcomeRules",
    "OwnershipRules",
    "RepositoryRules",
    "ScopeRules",
    "SeedExamples",
    "SessionRules",
    "TaskRules",
]


class ContractSuite(
    ScopeRules,
    NestedRules,
    JoinedRules,
    OptionRules,
    OutcomeRules,
    OwnershipRules,
    SessionRules,
    FailureRules,
    InterruptRules,
    ObjectRules,
    EventRules,
    LifecycleRules,
    RepositoryRules,
    Misuse,
    Corners,
    SeedExamples,
):
    """
    Every group at once.
    """


class AsyncContractSuite(TaskRules, ContractSuite):
    """
    Every group on the asynchronous face: the same tests, run in a task. The harness is a ``uow.testing.AsyncHarness``.
    """
