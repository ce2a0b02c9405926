"""
The unit of work in memory.
"""

from typing import Any

from uow import UnitOfWork

from ._store import Store
from ._transaction import FakeTransaction

__all__ = ["FakeUnitOfWork"]


class FakeUnitOfWork(UnitOfWork):
    """
    A unit of work without a database, for fast tests: ``class FakeBank(FakeUnitOfWork, Bank): ...``.

    Args:
        store: The database that it stands on; one of its own by default.

        options: What every unit takes: see `UnitOfWork`.
    """

    def __init__(self, store: Store | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.store = Store() if store is None else store

    def _begin(self) -> FakeTransaction:
        return FakeTransaction(self.store)
