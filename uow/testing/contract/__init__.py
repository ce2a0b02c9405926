"""
The contract of the framework as tests: every rule, written once, for every adapter.

.. code-block:: python

    class TestMine(ContractSuite):
        @pytest.fixture
        def harness(self) -> Iterator[Harness]:
            harness = MyHarness()
            yield harness
            harness.close()
"""

import pytest

_MODULES = ("_nested", "_ownership", "_scopes")
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))

from ._base import Contract  # noqa: E402
from ._nested import NestedRules  # noqa: E402
from ._ownership import OwnershipRules  # noqa: E402
from ._scopes import ScopeRules  # noqa: E402

__all__ = ["Contract", "ContractSuite", "NestedRules", "OwnershipRules", "ScopeRules"]


class ContractSuite(ScopeRules, NestedRules, OwnershipRules):
    """
    Every group at once.
    """
