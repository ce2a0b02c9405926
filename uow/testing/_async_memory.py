"""
The contract suite's bank in memory, awaited.
"""

from typing import Any

from uow.adapters.memory import AsyncFakeUnitOfWork

from ._async import AsyncBank, AsyncHarness
from ._memory import FakeHarness

__all__ = ["AsyncFakeBank", "AsyncFakeHarness"]


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank):
    """
    The bank in memory, awaited.
    """


class AsyncFakeHarness(AsyncHarness, FakeHarness):
    """
    The asynchronous face of the bank in memory.
    """

    def unit(self, **options: Any) -> AsyncFakeBank:
        """Return a new unit on the store, to be awaited."""
        return AsyncFakeBank(self.store, **options)
