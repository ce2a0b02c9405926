"""
Who may use a unit: the thread and asyncio task that entered it.
"""

import asyncio
import threading

from attrs import define, field

__all__ = ["Owner"]


def _here() -> tuple[int, object]:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task


@define(eq=False)
class Owner:
    """
    The thread and task that entered a unit, or with *handoff* whichever one uses it now.
    """

    handoff: bool
    home: tuple[int, object] = field(factory=_here)
    busy: threading.RLock = field(factory=threading.RLock)

    def stranger(self) -> str | None:
        """Return who is here, in words, if it is not the owner."""
        if self.handoff:
            return None
        here = _here()
        if here == self.home:
            return None
        if here[0] != self.home[0]:
            return f"it was entered in another thread than {threading.current_thread().name}"
        return "it was entered in another asyncio task"
