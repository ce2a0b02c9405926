"""
Transfers, recoveries, and SIGKILL at random moments, for a while.

Bank decides, and pays into stock, into till, or into both.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from attrs import asdict, define, frozen
from sqlalchemy import create_engine, make_url

from uow import distributed

from .transfers import ACCOUNTS, DOMAIN, SqlBank, Urls, World, pay, told

_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from tests.crashes.soak import main; main()"
_GROUPS = {"s": ("bank", "stock"), "t": ("bank", "till"), "a": ("bank", "stock", "till")}
"""The databases of a payment, by the first letter of its name."""
_GRACES = (0.0, 0.2, 1.0)
_BETWEEN_KILLS = 0.3
_PATIENCE = 60.0


@frozen
class Figures:
    """
    What came out.

    Args:
        seconds: How long it took.

        committed: Payments that are in all of their databases.

        aborted: Payments of which commit() said that they are in none.

        unknown: Payments of which it said that nobody knows.

        kills: How many processes were killed, those of recoveries included.

        recoveries: How many recoveries ran to their end.

        recovered: How many branches they ended.

        divergence: Payments that are in some of their databases only.

        lies: Payments of which commit() said what is not true.

        in_doubt: What is prepared still.

        heuristic: What was ended in another way than was decided.

        errors: What else went wrong.
    """

    seconds: float
    committed: int
    aborted: int
    unknown: int
    kills: int
    recoveries: int
    recovered: int
    divergence: int
    lies: int
    in_doubt: int
    heuristic: int
    errors: list[str]


def run(urls: Urls, seconds: float, *, workers: int = 4, recoverers: int = 2, seed: int = 0) -> Figures:
    """
    Do it in a process of its own, which has no threads and so can be forked.

    Args:
        urls: Those of bank, stock and till, with the tables of a `World`.

        seconds: How long processes are killed.

        workers: How many processes transfer at a time.

        recoverers: How many processes recover at a time.

        seed: Of the random moments.
    """
    order = json.dumps({"urls": dict(urls), "seconds": seconds, "workers": workers, "recoverers": recoverers,
                        "seed": seed})  # fmt: skip
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", _PROGRAM, root, order], check=True, stdout=subprocess.PIPE)
    return Figures(**json.loads(done.stdout))


def main() -> None:
    """Do what `run` orders."""
    print(json.dumps(asdict(_Soak(**json.loads(sys.argv[2])).figures())))


@define
class _Soak:
    urls: Urls
    seconds: float
    workers: int
    recoverers: int
    seed: int

    def figures(self) -> Figures:
        """Let it run, and look."""
        world = World.opened(**{name: make_url(url) for name, url in self.urls.items()})
        with tempfile.NamedTemporaryFile() as log:
            started = time.monotonic()
            kills = self._kill_at_random(_Log(log.name), started + self.seconds)
            seconds = time.monotonic() - started
            lines = [line.split("\t") for line in Path(log.name).read_text().splitlines()]
        errors = [text for kind, text in lines if kind == "error"]
        last = [world.recover(), world.recover()]
        errors += [repr(found) for found in last if not found.clean]
        told = {kind: {text for known, text in lines if known == kind} for kind in ("True", "False", "None")}
        have = {place.name: place.payments() for place in world.places}
        names = set[str]().union(*have.values(), *told.values())
        in_all = {name for name in names if all(name in have[place] for place in _GROUPS[name[0]])}
        in_none = {name for name in names if not any(name in has for has in have.values())}
        ended = [int(text) for kind, text in lines if kind == "recovered"]
        return Figures(
            seconds=round(seconds, 1),
            committed=len(in_all),
            aborted=len(told["False"]),
            unknown=len(told["None"]),
            kills=kills,
            recoveries=len(ended) + len(last),
            recovered=sum(ended) + sum(len(found.doubts) for found in last),
            divergence=len(names - in_all - in_none),
            lies=len(told["True"] - in_all) + len(told["False"] - in_none),
            in_doubt=sum(len(place.prepared()) for place in world.places),
            heuristic=sum(place.rows("uow_heuristic") for place in world.places),
            errors=errors,
        )

    def _kill_at_random(self, log: "_Log", deadline: float) -> int:
        """Start processes, kill them and start others; return how many were killed."""
        chance, numbers, kills = random.Random(self.seed), count(1), 0
        running: dict[int, Callable[..., None]] = {}

        def start(work: Callable[..., None], until: float) -> None:
            running[_forked(log, work, self.urls, next(numbers), until, log)] = work

        for work in [_transfer_until] * self.workers + [_recover_until] * self.recoverers:
            start(work, deadline)
        while time.monotonic() < deadline:
            time.sleep(chance.uniform(0, 2 * _BETWEEN_KILLS))
            victim = chance.choices(list(running), [_RISKS[work] for work in running.values()])[0]
            work = running.pop(victim)
            os.kill(victim, signal.SIGKILL)
            kills += os.waitpid(victim, 0)[1] == signal.SIGKILL
            start(work, deadline)
        start(_recover_until, deadline + _PATIENCE)  # a transfer may wait for the lock of one that was killed
        *others, helper = running
        for pid in others:
            os.waitpid(pid, 0)
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)
        return kills


@frozen
class _Log:
    """
    A file to which processes append lines that a kill does not tear apart.
    """

    path: str

    def write(self, kind: object, text: object) -> None:
        line = f"{kind}\t{text}".replace("\n", " ")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


def _forked(log: _Log, work: Callable[..., None], *arguments: Any) -> int:
    if child := os.fork():
        return child
    try:
        work(*arguments)
    except BaseException:
        log.write("error", traceback.format_exc().replace("\t", " "))
    finally:
        os._exit(0)


def _transfer_until(urls: Urls, worker: int, deadline: float, log: _Log) -> None:
    chance = random.Random(worker)
    engines = {name: create_engine(url) for name, url in urls.items()}
    groups: dict[str, Any] = {
        letter: distributed(*(SqlBank(engines[name], resource=name) for name in names), domain=DOMAIN)
        for letter, names in _GROUPS.items()
    }
    for number in count():
        if time.monotonic() > deadline:
            return
        letter = chance.choice(list(groups))
        name = f"{letter}-{worker}-{number}"
        log.write(told(lambda both=groups[letter], name=name: _transfer(both, name, chance)), name)


def _transfer(group: Any, name: str, chance: random.Random) -> None:
    with group as banks:
        pay(banks, name, chance.randrange(ACCOUNTS), chance.randint(1, 100))
        group.commit()


def _recover_until(urls: Urls, worker: int, deadline: float, log: _Log) -> None:
    chance = random.Random(worker)
    world = World.opened(**{name: make_url(url) for name, url in urls.items()})
    while time.monotonic() < deadline:
        found = world.recover(grace=chance.choice(_GRACES))
        log.write("recovered", len(found.doubts) - len(found.left))
        for heuristic in found.heuristics:
            log.write("error", heuristic)
        for one in found.unreachable:
            log.write("error", one)
        time.sleep(chance.uniform(0, 0.2))


_RISKS = {_transfer_until: 5, _recover_until: 1}
"""How likely one is killed, beside another one; recoveries take longer."""
