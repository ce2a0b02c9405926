"""
Processes that transfer and recover, killed at random moments.
"""

from collections.abc import Callable

from .soak import run
from .transfers import World


def test_soak(worlds: Callable[[str], World]) -> None:
    """For 5 seconds: no payment is in some of its databases only, nothing is left, and no answer was wrong."""
    figures = run(worlds("postgresql+mariadb+postgresql").urls, 5.0)

    assert [] == figures.errors
    assert (0, 0, 0, 0) == (figures.divergence, figures.lies, figures.in_doubt, figures.heuristic)
    assert 0 < figures.committed
    assert 0 < figures.kills
