"""
Programs that do not depend on the tests before them.
"""

import pytest
from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants


@pytest.fixture(autouse=True)
def same_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis draws constants from the modules that are loaded, too: a seed would mean something else each time."""
    monkeypatch.setattr(providers, "_get_local_constants", Constants)
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", LRUCache(1024))
