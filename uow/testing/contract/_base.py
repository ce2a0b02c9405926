"""
What every group of the contract suite builds on.
"""

import pytest

from uow.testing._harness import Harness

__all__ = ["Contract"]


class Contract:
    """
    Base of the groups. A test class for an adapter inherits them and provides the ``harness`` fixture.
    """

    @pytest.fixture
    def harness(self) -> Harness:
        """The adapter under test, with an empty database."""
        msg = f"{type(self).__name__} needs a `harness` fixture: a uow.testing.Harness on an empty database."
        raise NotImplementedError(msg)
