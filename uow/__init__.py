"""
A unit of work that keeps its word.
"""

from uow.domain import Aggregate, Event, Lock, Repository, asc, between, desc, entity, is_in, is_null, like, not_

from ._hooks import Handlers
from ._scope import Observer, Status, Transition
from ._states import REFUSALS, TRANSITIONS, State, Verb, table
from ._transaction import Changes, Transaction, Watcher
from ._unit import UnitOfWork

__all__ = [
    "REFUSALS",
    "TRANSITIONS",
    "Aggregate",
    "Changes",
    "Event",
    "Handlers",
    "Lock",
    "Observer",
    "Repository",
    "State",
    "Status",
    "Transaction",
    "Transition",
    "UnitOfWork",
    "Verb",
    "Watcher",
    "asc",
    "between",
    "desc",
    "entity",
    "is_in",
    "is_null",
    "like",
    "not_",
    "table",
]
