"""
Stop, kill and watch a process at the named points of the commit protocols.
"""

import base64
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from select import select
from types import ModuleType, TracebackType

from uow import _points

__all__ = ["ChildProcess", "Pause", "crash_at", "pause_at", "record_points", "run_killed"]

_CHILD = "from uow.testing import _crash; _crash._run_child()"

_lock = threading.Lock()
_listeners: list[Callable[[str], None]] = []


# ------------------------------------------------------------------------------------------------------ in one process


@contextmanager
def record_points() -> Generator[list[tuple[str, int]]]:
    """
    List the points that are reached, in any thread: a name, and 1 for its first time, 2 for its second.

    It enumerates the steps of a protocol, each of which `run_killed` can take::

        with record_points() as points:
            transfer()
        for at, nth in points:
            assert run_killed(transfer, at=at, nth=nth)
    """
    points: list[tuple[str, int]] = []
    counted = threading.Lock()

    def record(name: str) -> None:
        with counted:
            points.append((name, 1 + sum(name == earlier for earlier, _ in points)))

    with _listening(record):
        yield points


@contextmanager
def crash_at(name: str, nth: int = 1) -> Generator[None]:
    """
    Kill this process by SIGKILL when it reaches a point.

    Args:
        name: The point.

        nth: 1 for the first time that any thread reaches it, 2 for the second.
    """
    with _listening(_at(name, nth, lambda: os.kill(os.getpid(), signal.SIGKILL))):
        yield


class Pause:
    """
    A point at which `pause_at` holds a thread.
    """

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._released = threading.Event()

    def wait_reached(self, timeout: float = 30.0) -> None:
        """
        Wait until a thread is held.

        Args:
            timeout: The longest wait, in seconds.

        Raises:
            TimeoutError: No thread came.
        """
        if not self._reached.wait(timeout):
            raise TimeoutError(f"No thread reached the point in {timeout} s.")

    def release(self) -> None:
        """Let the thread go on, or not be held at all."""
        self._released.set()

    def _hold(self) -> None:
        self._reached.set()
        self._released.wait()


@contextmanager
def pause_at(name: str, nth: int = 1) -> Generator[Pause]:
    """
    Hold the thread that reaches a point, until the test releases it or leaves the block. Others pass.

    An asynchronous unit holds its event loop: run that in a thread of its own.

    Args:
        name: The point.

        nth: 1 to hold the first that reaches it, 2 for the second.
    """
    pause = Pause()
    with _listening(_at(name, nth, pause._hold)):
        try:
            yield pause
        finally:
            pause.release()


@contextmanager
def _listening(listener: Callable[[str], None]) -> Generator[None]:
    """Tell a listener every point that is reached; several take turns."""
    with _lock:
        _listeners.append(listener)
        _points.listener = _tell
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)
            if not _listeners:
                _points.listener = None


def _tell(name: str) -> None:
    with _lock:
        listeners = list(_listeners)
    for listener in listeners:
        listener(name)


def _at(name: str, nth: int, act: Callable[[], None]) -> Callable[[str], None]:
    """Listen for one point and act when it is reached for the nth time."""
    times = 0

    def listener(reached: str) -> None:
        nonlocal times
        if reached != name:
            return
        with _lock:
            times += 1
            now = times == nth
        if now:
            act()

    return listener


# ------------------------------------------------------------------------------------------------- in another process


class ChildProcess:
    """
    A Python process that calls a function and is held at a point of it.

    A context manager, which kills what still runs at its end::

        with ChildProcess(transfer, url, at="branch.prepared") as child:
            assert child.wait_reached()
            ...                            # race it, os.kill(child.pid, signal.SIGSTOP), child.kill()
            child.release()
            child.wait()

    Args:
        function: What to call: a function at the top of a module, or of a class there.

        arguments: What to call it with; they are pickled.

        at: The point.

        nth: 1 for the first time that it is reached, 2 for the second.

        crash: Let the process kill itself at the point instead.
    """

    def __init__(
        self, function: Callable[..., object], *arguments: object, at: str, nth: int = 1, crash: bool = False
    ) -> None:
        module = sys.modules[function.__module__]
        where = (module.__name__, getattr(module, "__file__", None), function.__qualname__)
        # The arguments are unpickled after the module is imported, which may define their classes.
        self._order = pickle.dumps((sys.path, where, pickle.dumps(arguments), at, nth, crash))
        self._at = at

    def __enter__(self) -> "ChildProcess":
        self._errors = tempfile.TemporaryFile()
        self._news, news = os.pipe()
        order = base64.b64encode(self._order).decode()
        command = [sys.executable, "-c", _CHILD, str(news), order]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=self._errors, pass_fds=[news], bufsize=0
            )
        finally:
            os.close(news)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.close(self._news)
        self._errors.close()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def wait_reached(self, timeout: float = 60.0) -> bool:
        """
        Wait until the process is held at the point, and tell ``False`` if it ended before.

        Args:
            timeout: The longest wait, in seconds.

        Raises:
            TimeoutError: It did neither.

            RuntimeError: The function raised; the message has its traceback.
        """
        if not select([self._news], [], [], timeout)[0]:
            raise TimeoutError(f"The process neither reached {self._at!r} nor ended in {timeout} s.")
        if os.read(self._news, 1):
            return True
        self.wait(timeout)
        return False

    def release(self) -> None:
        """Let the process go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def kill(self) -> None:
        """Kill the process by SIGKILL, and wait until it is gone; one that has ended stays as it is."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def wait(self, timeout: float = 60.0) -> None:
        """
        Wait until the process has ended, by itself or by `kill`.

        Args:
            timeout: The longest wait, in seconds.

        Raises:
            subprocess.TimeoutExpired: It has not.

            RuntimeError: The function raised; the message has its traceback.
        """
        if self._process.wait(timeout) not in {0, -signal.SIGKILL}:
            self._errors.seek(0)
            raise RuntimeError(f"The child process failed:\n{self._errors.read().decode(errors='replace')}")


def run_killed(
    function: Callable[..., object], *arguments: object, at: str, nth: int = 1, timeout: float = 60.0
) -> bool:
    """
    Call a function in a Python process of its own, which is killed by SIGKILL when it reaches a point.

    Args:
        function: What to call: a function at the top of a module, or of a class there.

        arguments: What to call it with; they are pickled.

        at: The point.

        nth: 1 for the first time that it is reached, 2 for the second.

        timeout: The longest wait, in seconds.

    Returns:
        Whether it was killed there; if not, the function has returned.

    Raises:
        RuntimeError: The function raised; the message has its traceback.

        subprocess.TimeoutExpired: It neither came there nor ended.
    """
    with ChildProcess(function, *arguments, at=at, nth=nth, crash=True) as child:
        child.wait(timeout)
        return child._process.returncode != 0


def _run_child() -> None:
    """Do what a `ChildProcess` orders."""
    news, order = int(sys.argv[1]), base64.b64decode(sys.argv[2])
    path, (name, file, function), arguments, at, nth, crash = pickle.loads(order)
    sys.path.extend(entry for entry in path if entry not in sys.path)
    call: Callable[..., object] = attrgetter(function)(_module(name, file))

    def hold() -> None:
        os.write(news, b"\n")
        sys.stdin.readline()

    with crash_at(at, nth) if crash else _listening(_at(at, nth, hold)):
        call(*pickle.loads(arguments))


def _module(name: str, file: str | None) -> ModuleType:
    """Import a module by its name, or from its file if no path leads to it, as to a test's."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        for length, letter in enumerate(name):  # unpickling asks for the packages around it
            if letter == "." and name[:length] not in sys.modules:
                sys.modules[name[:length]] = ModuleType(name[:length])
        spec = spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
