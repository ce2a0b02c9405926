"""
What a distributed commit costs beside two plain ones: ``uv run python -m benchmarks.distributed``.

Both do the same work in the same two databases, in turns. The servers are its own: two of PostgreSQL, and then
one of PostgreSQL and one of MariaDB, once waiting for the disk and once not.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from attrs import frozen
from sqlalchemy import URL, create_engine

from tests.crashes.transfers import SqlBank, World, pay
from uow import distributed
from uow.testing import DatabaseServer, FaultProxy, MariaDbServer, PostgresServer

RESULTS = Path(__file__).with_name("results") / "distributed.md"
WARM_UP = 150
Timed = tuple[float, float]
"""The seconds of a whole transfer, and of its commit."""


@frozen
class Row:
    """
    What was measured on one pair of servers; seconds, in the middle of all transfers.
    """

    servers: str
    disk: str
    plain: Timed
    both: Timed
    trips: tuple[float, float]

    @property
    def ratios(self) -> Timed:
        return self.both[0] / self.plain[0], self.both[1] / self.plain[1]


class Transfers:
    """
    The same work, committed in two ways.
    """

    def __init__(self, world: World, urls: dict[str, URL]) -> None:
        self.engines = {name: create_engine(url) for name, url in urls.items()}
        self.banks = [SqlBank(engine, resource=name) for name, engine in self.engines.items()]
        self.group: Any = distributed(
            *(SqlBank(engine, resource=name) for name, engine in self.engines.items()), domain="cost"
        )
        self.names = (f"payment {number}" for number in count())

    def plain(self) -> Timed:
        """Commit one after the other, which a crash may come between."""
        first, second = self.banks
        started = time.perf_counter()
        with first, second:
            self._work([first, second])
            ready = time.perf_counter()
            first.commit()
            second.commit()
            done = time.perf_counter()
        return time.perf_counter() - started, done - ready

    def both(self) -> Timed:
        """Commit as one."""
        started = time.perf_counter()
        with self.group as banks:
            self._work(banks)
            ready = time.perf_counter()
            self.group.commit()
            done = time.perf_counter()
        return time.perf_counter() - started, done - ready

    def _work(self, banks: Any) -> None:
        pay(banks, next(self.names))
        for bank in banks:
            bank.flush()

    def close(self) -> None:
        for engine in self.engines.values():
            engine.dispose()


def main() -> None:
    arguments = _arguments()
    rows = [row for disk in ("waited for", "not waited for") for row in _rows(disk, arguments.number)]
    text = _report(rows, arguments.number)
    print(text)
    if arguments.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--number", type=int, default=1500, help="how many transfers of each kind")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.parent.name}/{RESULTS.name}")
    return parser.parse_args()


def _rows(disk: str, number: int) -> Iterator[Row]:
    waits = disk == "waited for"
    postgresql: dict[str, Any] = {"max_prepared_transactions": 20}
    mariadb: dict[str, Any] = {}
    if not waits:
        postgresql |= {"fsync": "off", "uow.throwaway": "on"}
        mariadb = {"innodb_flush_method": "nosync"}
    with ExitStack() as stack:
        first: DatabaseServer = stack.enter_context(PostgresServer(**postgresql))
        others: dict[str, Callable[[], DatabaseServer]] = {
            "PostgreSQL + PostgreSQL": lambda: PostgresServer(**postgresql),
            "PostgreSQL + MariaDB": lambda: MariaDbServer(**mariadb),
        }
        for servers, start in others.items():
            with start() as second:
                yield _measured(servers, disk, {"bank": first.url, "stock": second.url}, number)


def _measured(servers: str, disk: str, urls: dict[str, URL], number: int) -> Row:
    world = World.of(**urls)
    transfers = Transfers(world, urls)
    times: dict[Callable[[], Timed], list[Timed]] = {transfers.plain: [], transfers.both: []}
    for turn in range(WARM_UP + number):
        ways = list(times)
        for way in ways if turn % 2 else reversed(ways):
            times[way].append(way())
    plain, both = (_middle(times[way][WARM_UP:]) for way in (transfers.plain, transfers.both))
    transfers.close()
    return Row(servers, disk, plain, both, _round_trips(world, urls))


def _middle(times: list[Timed]) -> Timed:
    return statistics.median(whole for whole, _ in times), statistics.median(commit for _, commit in times)


def _round_trips(world: World, urls: dict[str, URL]) -> tuple[float, float]:
    """Count how often the databases are waited for in each way, a hundredth of the forgetting included."""
    world.places[0].execute("DELETE FROM crash_payment")
    world.places[1].execute("DELETE FROM crash_payment")
    with ExitStack() as stack:
        proxies = {name: stack.enter_context(FaultProxy.to(url)) for name, url in urls.items()}
        transfers = Transfers(world, {name: proxies[name].url(url) for name, url in urls.items()})
        stack.callback(transfers.close)
        counted: list[float] = []
        for way in (transfers.plain, transfers.both):
            way()
            before = sum(proxy.round_trips for proxy in proxies.values())
            for _ in range(100):
                way()
            counted.append((sum(proxy.round_trips for proxy in proxies.values()) - before) / 100)
        return counted[0], counted[1]


def _report(rows: list[Row], number: int) -> str:
    return "\n".join(
        [
            "# Distributed commits",
            "",
            f"`python -m benchmarks.distributed`: {number:,} transfers of each kind, in turns. A transfer reads a row,",
            "changes it and inserts another one, in each of two databases. Milliseconds, in the middle (p50).",
            "",
            "| servers | disk | two plain commits | distributed | times | whole transfer, plain | distributed | times "
            "| round trips, plain | distributed |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *(
                f"| {row.servers} | {row.disk} | {row.plain[1] * 1000:.2f} | {row.both[1] * 1000:.2f} "
                f"| **{row.ratios[1]:.2f}** | {row.plain[0] * 1000:.2f} | {row.both[0] * 1000:.2f} "
                f"| **{row.ratios[0]:.2f}** | {row.trips[0]:.1f} | {row.trips[1]:.1f} |"
                for row in rows
            ),
            "",
            f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in _PACKAGES) + ".",
        ]
    )


_PACKAGES = ("sqlalchemy", "psycopg", "pymysql")

if __name__ == "__main__":
    main()
