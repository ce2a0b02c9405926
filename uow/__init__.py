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
from ._branches import Decision, Finished, Heuristic, Prepared, Resource, demand_name, id_prefix, last_agent_of
from ._bridges import directly, inside
from ._distributed import AsyncDistributed, Distributed, DistributedStatus, distributed
from ._hooks import Handlers
from ._options import Options
from ._outcomes import KEPT, Claim, Outcome, Outcomes
from ._points import reached
from ._recovery import Doubt, Recovery, Unreachable, recover
from ._retries import Retry
from ._scope import Observer, Status, Transition, merged
from ._states import REFUSALS, TRANSITIONS, State, Verb, table
from ._steps import Bridge, Steps, finish
from ._transaction import Changes, Conflict, NativeGateway, Transaction, Watcher
from ._transactional import Propagation, transactional
from ._unit import UnitOfWork

__all__ = [
    "KEPT",
    "REFUSALS",
    "TRANSITIONS",
    "Aggregate",
    "AsyncDistributed",
    "AsyncRepository",
    "AsyncUnitOfWork",
    "Bridge",
    "Changes",
    "Claim",
    "Conflict",
    "Decision",
    "Distributed",
    "DistributedStatus",
    "DomainService",
    "Doubt",
    "Event",
    "Finished",
    "Handlers",
    "Heuristic",
    "Lock",
    "NativeGateway",
    "Observer",
    "Options",
    "Outcome",
    "Outcomes",
    "Prepared",
    "Propagation",
    "Recovery",
    "Repository",
    "Resource",
    "Retry",
    "State",
    "Status",
    "Steps",
    "Transaction",
    "Transition",
    "UnitOfWork",
    "Unreachable",
    "Verb",
    "Watcher",
    "asc",
    "awaited",
    "between",
    "current",
    "demand_name",
    "desc",
    "directly",
    "distributed",
    "entity",
    "finish",
    "id_prefix",
    "inside",
    "is_in",
    "is_null",
    "last_agent_of",
    "like",
    "merged",
    "not_",
    "reached",
    "recover",
    "table",
    "transactional",
]
