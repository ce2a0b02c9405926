"""
The fake: units of work in memory that keep the same rules as a database.
"""

from ._resource import FakeResource
from ._store import Store
from ._unit import AsyncFakeUnitOfWork, FakeUnitOfWork

__all__ = ["AsyncFakeUnitOfWork", "FakeResource", "FakeUnitOfWork", "Store"]
