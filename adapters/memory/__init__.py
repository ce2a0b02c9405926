"""
The fake: units of work in memory that keep the same rules as a database.
"""

from ._store import Store
from ._unit import AsyncFakeUnitOfWork, FakeUnitOfWork

__all__ = ["AsyncFakeUnitOfWork", "FakeUnitOfWork", "Store"]
