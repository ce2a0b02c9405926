"""
The contract on the fake.
"""

import pytest

from uow.testing._memory import FakeHarness
from uow.testing.contract import ContractSuite


class TestFake(ContractSuite):
    """
    Every rule in memory.
    """

    @pytest.fixture
    def harness(self) -> FakeHarness:
        """The bank in memory."""
        return FakeHarness()
