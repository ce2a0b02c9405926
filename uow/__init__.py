"""
A unit of work that keeps its word.
"""

from uow.domain import (
    Aggregate,
    DomainService,
    Event,
    Lock,
    Repository,
    asc,
    between,
    current,
    desc,
    entity,
    is_in,
    is_null,
    like,
    not_,
)

from ._async import AsyncUnitOfWork
from ._async_repositories import AsyncRepository, awaited
from ._bridges import directly, inside
from ._hooks import Handlers
from ._options import Options
from ._retries import Retry
from ._scope import Observer, Status, Transition
from ._states import REFUSALS, TRANSITIONS, State, Verb, table
from ._steps import Bridge, Steps, finish
from ._transaction import Changes, Transaction, Watcher
from ._transactional import Propagation, transactional
from ._unit import UnitOfWork

__all__ = [
    "REFUSALS",
    "TRANSITIONS",
    "Aggregate",
    "AsyncRepository",
    "AsyncUnitOfWork",
    "Bridge",
    "Changes",
    "DomainService",
    "Event",
    "Handlers",
    "Lock",
    "Observer",
    "Options",
    "Propagation",
    "Repository",
    "Retry",
    "State",
    "Status",
    "Steps",
    "Transaction",
    "Transition",
    "UnitOfWork",
    "Verb",
    "Watcher",
    "asc",
    "awaited",
    "between",
    "current",
    "desc",
    "directly",
    "entity",
    "finish",
    "inside",
    "is_in",
    "is_null",
    "like",
    "not_",
    "table",
    "transactional",
]
