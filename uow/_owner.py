"""
Who may use a unit: the thread and asyncio task that entered it.
"""

import asyncio
import threading
from threading import get_ident

from attrs import define, field

__all__ = ["Owner", "here"]


# Asked twice in every operation; get_running_loop() would raise.
_running_loop = asyncio._get_running_loop


def here() -> tuple[int, object]:
    """Return the thread and task that runs this."""
    loop = _running_loop()
    return get_ident(), None if loop is None else asyncio.current_task(loop)


@define(eq=False)
class Owner:
    """
    The thread and task that entered a unit, or with *handoff* whichever one uses it now.
    """

    handoff: bool
    home: tuple[int, object] = field(factory=here)
    _lock: threading.RLock = field(factory=threading.RLock, init=False)
    _task: object = field(default=None, init=False)
    _depth: int = field(default=0, init=False)

    def stranger(self) -> str | None:
        """Return who is here, in words, if it is not the owner."""
        thread, task = self.home
        loop = _running_loop()
        now = None if loop is None else asyncio.current_task(loop)
        if (now is task and get_ident() == thread) or self.handoff:
            return None
        if get_ident() != thread:
            return f"it was entered in another thread than {threading.current_thread().name}"
        return "it was entered in another asyncio task"

    def take(self, wait: bool, /) -> bool:
        """
        Keep everybody else out until `give`; False if another thread or task is at work.

        Args:
            wait: Wait for another thread. Nobody can wait for another task of the same thread here.
        """
        if not self._lock.acquire(wait):
            return False
        if self.handoff or wait:  # else another task is a stranger, and refused for that
            task = here()[1]
            if self._depth and task is not (self._task if self.handoff else self.home[1]):
                self._lock.release()
                return False
            self._task = task
        self._depth += 1
        return True

    def __enter__(self) -> None:
        """Begin a block that was taken; its end gives."""

    def __exit__(self, *exc: object) -> None:
        self.give()

    def give(self) -> None:
        """Let others in again."""
        self._depth -= 1
        self._lock.release()
