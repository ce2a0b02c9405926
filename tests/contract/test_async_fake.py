"""
The contract on the fake, awaited.
"""

import pytest

from uow.testing._async_memory import AsyncFakeHarness
from uow.testing.contract import AsyncContractSuite


class TestAsyncFake(AsyncContractSuite):
    """
    Every rule in memory.
    """

    @pytest.fixture
    def harness(self) -> AsyncFakeHarness:
        """The bank in memory."""
        return AsyncFakeHarness()
