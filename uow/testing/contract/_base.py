"""
What every group of the contract suite builds on.
"""

import gc
from collections.abc import Iterator

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

    @pytest.fixture(autouse=True)
    def swift_collection(self) -> Iterator[None]:
        """Let the garbage collector see only what the test makes: some tests call it often."""
        gc.freeze()
        yield
        gc.unfreeze()
