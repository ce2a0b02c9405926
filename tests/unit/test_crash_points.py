"""
A process that is watched, held and killed at its named points.
"""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from uow import _points
from uow._points import reached
from uow.testing import ChildProcess, crash_at, pause_at, record_points, run_killed


class Note(str):
    """An argument whose class is this module's."""


DONE = Note("done")


def protocol(path: Path, note: Note = DONE) -> None:
    """Write a line after each of its points."""
    for name in ("prepare", "prepare", "commit"):
        reached(name)
        with path.open("a") as file:
            file.write(f"{name} {note}\n")


def fail() -> None:
    raise ValueError("no such branch")


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_without_a_test_a_point_is_nothing(tmp_path: Path) -> None:
    """Nobody listens before a test, and nobody after it."""
    protocol(tmp_path / "log")
    with record_points():
        assert _points.listener is not None
    assert _points.listener is None


def test_points_are_recorded_with_their_turn(tmp_path: Path) -> None:
    """They enumerate the steps, and each recorder has its own."""
    with record_points() as all_points:
        with record_points() as first:
            protocol(tmp_path / "log")
        reached("forget")
    assert [("prepare", 1), ("prepare", 2), ("commit", 1)] == first
    assert [*first, ("forget", 1)] == all_points


def test_a_process_is_killed_at_every_point(tmp_path: Path) -> None:
    """What was done before the point is done, and nothing after it."""
    with record_points() as points:
        protocol(tmp_path / "log")
    for done, (at, nth) in enumerate(points):
        path = tmp_path / f"log {done}"
        assert run_killed(protocol, path, Note("killed"), at=at, nth=nth)
        assert done == lines(path)


def test_a_process_that_does_not_come_there_is_not_killed(tmp_path: Path) -> None:
    """It does all of its work, and the test is told."""
    assert not run_killed(protocol, tmp_path / "log", at="prepare", nth=3)
    assert 3 == lines(tmp_path / "log")


def test_a_process_that_fails_tells_how() -> None:
    """Its traceback is the message."""
    with pytest.raises(RuntimeError, match=r"(?s)child process failed.*ValueError: no such branch"):
        run_killed(fail, at="commit")
    with ChildProcess(fail, at="commit") as child:
        with pytest.raises(RuntimeError, match="ValueError: no such branch"):
            child.wait_reached()


def test_a_function_of_an_installed_module_is_called_too() -> None:
    """It is imported by its name."""
    assert not run_killed(os.path.join, "a", "b", at="commit")


def test_a_function_of_a_file_that_no_path_leads_to_is_called_too(tmp_path: Path) -> None:
    """As of a test, which pytest imports from its file, and so its arguments."""
    file = tmp_path / "work.py"
    file.write_text("class Name(str): pass\ndef work(name): open(name, 'x').close()\n")
    spec = spec_from_file_location("off.the_path.work", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patches:
        patches.setitem(sys.modules, "off", ModuleType("off"))  # as pytest does
        patches.setitem(sys.modules, "off.the_path", ModuleType("off.the_path"))
        patches.setitem(sys.modules, "off.the_path.work", module)
        assert not run_killed(module.work, module.Name(tmp_path / "done"), at="commit")
    assert (tmp_path / "done").exists()


def test_a_process_is_held_and_goes_on(tmp_path: Path) -> None:
    """It stands at the point until it is released."""
    with ChildProcess(protocol, tmp_path / "log", at="commit") as child:
        assert child.wait_reached()
        assert 2 == lines(tmp_path / "log")
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.01)
        child.release()
        child.wait()
        assert not child.wait_reached()
    assert 3 == lines(tmp_path / "log")


def test_a_process_that_is_held_can_be_killed(tmp_path: Path) -> None:
    """By the test, or at the end of the block."""
    with ChildProcess(protocol, tmp_path / "log", at="prepare", nth=2) as child:
        assert child.wait_reached()
        child.kill()
        child.wait()
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
    with ChildProcess(protocol, tmp_path / "log", at="prepare") as child:
        assert child.wait_reached()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    assert 1 == lines(tmp_path / "log")


def test_a_process_that_is_stopped_neither_comes_nor_ends(tmp_path: Path) -> None:
    """The wait for it ends with an error."""
    with ChildProcess(protocol, tmp_path / "log", at="prepare") as child:
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError, match=r"neither reached 'prepare' nor ended in 0.1 s"):
            child.wait_reached(0.1)


def test_a_thread_is_held_and_others_pass(tmp_path: Path) -> None:
    """One coordinator stands at a point while another one passes it."""
    with pause_at("prepare") as pause, ThreadPoolExecutor(1) as pool:
        held = pool.submit(protocol, tmp_path / "held")
        pause.wait_reached()
        protocol(tmp_path / "passes")

        assert not held.done()
        assert (0, 3) == (lines(tmp_path / "held"), lines(tmp_path / "passes"))
        pause.release()
        held.result(30)
    assert 3 == lines(tmp_path / "held")


def test_a_thread_is_let_go_at_the_end_of_the_block(tmp_path: Path) -> None:
    """A test that fails does not leave a thread behind."""
    with pause_at("commit") as pause:
        thread = threading.Thread(target=protocol, args=[tmp_path / "log"])
        thread.start()
        pause.wait_reached()
    thread.join(30)
    assert 3 == lines(tmp_path / "log")


def test_a_point_that_no_thread_reaches_is_an_error() -> None:
    """The wait for it ends."""
    with pause_at("commit") as pause, pytest.raises(TimeoutError, match=r"No thread reached the point in 0.01 s"):
        pause.wait_reached(0.01)


def test_a_crash_is_a_kill_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the nth time, and at no other."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    with crash_at("prepare", nth=2):
        reached("prepare")
        assert not killed
        reached("prepare")
        reached("prepare")
    assert [(os.getpid(), signal.SIGKILL)] == killed
