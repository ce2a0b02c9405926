"""
Named points of the commit protocols, at which a test can stop, kill or watch a process.
"""

from collections.abc import Callable

__all__ = ["reached"]

listener: Callable[[str], None] | None = None
"""Who is told; only a test sets it."""


def reached(name: str) -> None:
    """
    Tell a test that the point of this name is reached.

    Args:
        name: The step, such as ``commit.sent``.
    """
    if listener is not None:
        listener(name)
