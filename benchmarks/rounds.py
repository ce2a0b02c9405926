"""
One round: a fresh process in which all contestants take turns, block by block.

``python -m benchmarks.rounds JSON`` prints one JSON record per cell.
"""

import asyncio
import gc
import inspect
import itertools
import json
import statistics
import sys
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from uow import finish

from .async_contestants import ASYNC
from .contestants import SYNC
from .databases import Database
from .model import SEEDED
from .peers import PEERS
from .scenarios import SCENARIOS, Scenario

R = TypeVar("R")
_BLOCKS = 15
_HELD_BLOCKS = 7


def contestants() -> dict[str, type[Any]]:
    """Return everybody, the baseline of each face first."""
    return {kind.name: kind for kind in [*SYNC, *ASYNC, *PEERS]}


class Round:
    """
    Args:
        database: Where.

        names: Who, of one face.

        number: The round; who begins changes with it.

        seconds: How long a block should take.
    """

    def __init__(self, database: Database, names: list[str], number: int, seconds: float) -> None:
        self.runner = asyncio.Runner()
        self.keys = itertools.count(1_000_000)
        self.number = number
        self.seconds = seconds
        self.contestants = [contestants()[name](database) for name in names]

    def results(self, scenario: Scenario) -> Iterator[dict[str, Any]]:
        """Yield a record for each contestant that has the scenario."""
        taking_part = [one for one in self.contestants if getattr(one, scenario.method, None)]
        for one in taking_part:
            self._drive(one, self._prepare(one, scenario))
        times = self._take_turns(taking_part, scenario)
        for one in taking_part:
            yield {"contestant": one.name, "scenario": scenario.key, "seconds": statistics.median(times[one])}

    def close(self) -> None:
        for one in self.contestants:
            self._drive(one, _result(one.close()))
        self.runner.close()

    def _drive(self, one: Any, steps: Coroutine[Any, Any, R]) -> R:
        """Take the steps of a measurement, which nothing makes wait where the contestant is synchronous."""
        return self.runner.run(steps) if one.asynchronous else finish(steps)

    def _arguments(self, scenario: Scenario) -> object:
        if scenario.feed == "count":
            return scenario.count
        if scenario.feed == "known":
            return next(self.keys) % SEEDED + 1
        keys = [next(self.keys) for _ in range(scenario.count)]
        return keys if scenario.count > 1 else keys[0]

    async def _prepare(self, one: Any, scenario: Scenario) -> None:
        """Fill the table; do it twice and look whether the rows are there: who does less work would win."""
        await _result(one.ready(max(SEEDED, scenario.held or 0)))
        for _ in range(0 if scenario.held is not None else 2):
            before = await _result(one.rows())
            await _result(getattr(one, scenario.method)(self._arguments(scenario)))
            grown = await _result(one.rows()) - before
            assert grown == scenario.grows, f"{one.name} leaves {grown} rows behind in {scenario.key}"

    def _take_turns(self, taking_part: list[Any], scenario: Scenario) -> dict[Any, list[float]]:
        turn = self.number % len(taking_part)
        times: dict[Any, list[float]] = {one: [] for one in taking_part}
        operations = dict.fromkeys(taking_part, 0)
        for _ in range(_BLOCKS if scenario.held is None else _HELD_BLOCKS):
            for one in taking_part[turn:] + taking_part[:turn]:
                operations[one], seconds = self._drive(one, self._block(one, scenario, operations[one]))
                times[one].append(seconds)
        return times

    async def _block(self, one: Any, scenario: Scenario, operations: int) -> tuple[int, float]:
        """Return how many operations fill a block, which is found out if it is 0, and the seconds that one takes."""
        if scenario.held is not None:
            await _result(one.hold(scenario.held))
        if not operations:
            await self._timed(one, scenario, 3)
            operations = max(1, int(self.seconds / await self._timed(one, scenario, 3)))
        gc.collect()
        gc.freeze()
        seconds = await self._timed(one, scenario, operations)
        gc.unfreeze()
        if scenario.held is not None:
            await _result(one.let_go())
        return operations, seconds

    async def _timed(self, one: Any, scenario: Scenario, operations: int) -> float:
        work = getattr(one, scenario.method)
        fed = [self._arguments(scenario) for _ in range(operations)]
        start = time.perf_counter()
        if one.asynchronous:
            for argument in fed:
                await work(argument)
        else:
            for argument in fed:
                work(argument)
        return (time.perf_counter() - start) / operations


async def _result(returned: Any) -> Any:
    return await returned if inspect.iscoroutine(returned) else returned


def main() -> None:
    asked = json.loads(sys.argv[1])
    database = Database(asked["database"], asked["url"])
    one_round = Round(database, asked["contestants"], asked["round"], asked["seconds"])
    for key in asked["scenarios"]:
        for record in one_round.results(SCENARIOS[key]):
            print(json.dumps({**record, "database": database.name, "round": asked["round"]}), flush=True)
    one_round.close()


if __name__ == "__main__":
    main()
