"""
How costs grow: with scopes beside and inside each other, with loaded objects, with stored entities.

``uv run --group benchmarks --group peers python -m benchmarks.growth`` measures, writes benchmarks/results/growth.json
and draws docs/images/growth-*.svg. Contestants take turns in one process; a point is the median of the rounds,
in processor time: nothing here waits.
"""

import argparse
import gc
import json
import statistics
import sys
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from time import process_time
from typing import Any

from attrs import field, frozen
from sqlalchemy import select

from .fakes import FAKES, MISSING, OurFake, SessionOnSqlite, UnitOnSqlite
from .model import Item, new
from .report import machine

RESULTS = Path(__file__).with_name("results") / "growth.json"
SCOPES = (1, 3, 10, 30, 100, 300, 1_000)
LOADED = (0, 10, 100, 1_000, 10_000, 100_000)
STORED = (100, 1_000, 10_000, 100_000, 1_000_000)
_TOO_SLOW = 0.1
"""Seconds for one unit, above which a contestant is not measured with more entities."""

_Points = dict[str, dict[int, list[float]]]


@frozen
class Plot:
    """
    Args:
        title: What grows.

        across: What it is measured against.

        measure: Called with a number of rounds, returns microseconds or bytes by line and number.

        unit: Of what is measured.
    """

    title: str
    across: str
    measure: Callable[[int], _Points] = field(repr=False)
    unit: str = "µs"


# ------------------------------------------------------------------------------------------------------------- scopes


class OurScopes:
    """Nested scopes of a unit."""

    def __init__(self, side: OurFake | UnitOnSqlite) -> None:
        self.name, self.ready, self.unit = side.name, side.ready, side.unit

    def nested(self, unit: Any) -> Any:
        return unit.nested()

    def add(self, unit: Any, item: Item) -> None:
        unit.items.add(item)

    def load(self, unit: Any, count: int) -> list[Item]:
        return list(unit.items.list(limit=count))


class SessionScopes(OurScopes):
    """Nested transactions of SQLAlchemy's Session."""

    def nested(self, unit: Any) -> Any:
        return unit.begin_nested()

    def add(self, unit: Any, item: Item) -> None:
        unit.add(item)

    def load(self, unit: Any, count: int) -> list[Item]:
        return list(unit.scalars(select(Item).limit(count)))


def _sides() -> list[OurScopes]:
    return [OurScopes(OurFake()), OurScopes(UnitOnSqlite()), SessionScopes(SessionOnSqlite())]


def _beside(side: OurScopes, number: int) -> float:
    """Return the time per nested scope, one after the other; each adds an entity that stays in use."""
    kept: list[Item] = []
    with side.unit() as unit:
        began = process_time()
        for key in range(1, number + 1):
            with side.nested(unit):
                kept.append(new(key))
                side.add(unit, kept[-1])
        took = process_time() - began
        unit.rollback()
    return took / number


def _inside(side: OurScopes, number: int) -> float:
    """Return the time per nested scope, one inside the other."""
    kept: list[Item] = []
    with side.unit() as unit:
        began = process_time()
        with ExitStack() as stack:
            for key in range(1, number + 1):
                stack.enter_context(side.nested(unit))
                kept.append(new(key))
                side.add(unit, kept[-1])
        took = process_time() - began
        unit.rollback()
    return took / number


def _scopes(measure: Callable[[OurScopes, int], float], rounds: int) -> _Points:
    sides, points = _sides(), _points()
    for side in sides:
        side.ready(0)
        measure(side, 10)
    for _ in range(rounds):
        for number in SCOPES:
            for side in list(sides):
                gc.collect()
                try:
                    times = [measure(side, number) for _ in range(max(1, 300 // number))]
                except RecursionError:
                    print(f"{side.name} cannot nest {number} deep", file=sys.stderr)
                    sides.remove(side)
                else:
                    points[side.name][number].append(statistics.median(times) * 1e6)
    return points


def _undone(rounds: int) -> _Points:
    """Measure a nested scope that changes one entity and is rolled back, while others are loaded."""
    points = _points()
    for side in _sides():
        side.ready(max(LOADED) + 1)
        for loaded in LOADED:
            with side.unit() as unit:
                kept = side.load(unit, loaded + 1)
                for turn in range(4 * rounds + 1):
                    gc.collect(1)
                    began = process_time()
                    with side.nested(unit) as nested:
                        kept[0].quantity += 1
                        unit.flush()
                        nested.rollback()
                    if turn:
                        points[side.name][loaded].append((process_time() - began) * 1e6)
                unit.rollback()
    return points


# -------------------------------------------------------------------------------------------------------------- stores


def _added(rounds: int) -> _Points:
    """Measure a unit that adds one entity and commits."""
    fakes, points = [fake() for fake in FAKES], _points()
    for stored in STORED:
        taking_part = []
        for fake in [fake for fake in fakes if stored <= fake.most]:
            fake.ready(stored)
            began = process_time()
            fake.add(stored + 1)
            once = process_time() - began
            taking_part.append((fake, max(1, min(100, int(0.05 / once)))))
        keys = count(stored + 2)
        gc.collect()
        gc.freeze()  # what is stored is no garbage
        for _ in range(rounds):
            for fake, times in taking_part:
                began = process_time()
                for _ in range(times):
                    fake.add(next(keys))
                points[fake.name][stored].append((process_time() - began) / times * 1e6)
        gc.unfreeze()
        fakes = [fake for fake, _ in taking_part if statistics.median(points[fake.name][stored]) < _TOO_SLOW * 1e6]
    return points


def _steps(rounds: int) -> _Points:
    """Measure the steps of a unit of the fake; the sizes take turns."""
    fakes, points = {stored: OurFake() for stored in STORED}, _points()
    for stored, fake in fakes.items():
        fake.ready(stored)
    gc.collect()
    gc.freeze()
    for turn in range(20 * rounds):
        for stored, fake in fakes.items():
            for step, seconds in _one_unit(fake, stored + 2 * turn + 1):
                points[step][stored].append(seconds * 1e6)
    gc.unfreeze()
    return points


def _one_unit(fake: OurFake, key: int) -> Iterator[tuple[str, float]]:
    began = process_time()
    with fake.unit() as unit:
        unit.items.get_or_none(-1)
        yield "begin, and look for a key", process_time() - began
        began = process_time()
        unit.items.add(new(key))
        unit.flush()
        yield "add and flush", process_time() - began
        began = process_time()
        with unit.nested() as nested:
            unit.items.add(new(key + 1))
            unit.flush()
            nested.rollback()
        yield "nested: add, flush, roll back", process_time() - began
        began = process_time()
        unit.commit()
        yield "commit", process_time() - began


# -------------------------------------------------------------------------------------------------------------- memory


def _held(rounds: int) -> _Points:
    """Measure the bytes of a unit with one new entity, and of each of 100 open and 100 ended nested scopes."""
    points = _points()
    for side in _sides():
        side.ready(0)
        _of_one(side)  # what is made once
        for _ in range(rounds):
            for number, value in enumerate(_of_one(side)):
                points[side.name][number].append(value)
    return points


def _of_one(side: OurScopes) -> tuple[float, float, float]:
    before, kept = _bytes(), [new(1)]
    with side.unit() as unit:
        side.add(unit, kept[0])
        unit.flush()
        began = _bytes()
        with ExitStack() as scopes:
            for _ in range(100):
                scopes.enter_context(side.nested(unit))
            inside = _bytes()
        ended = _bytes()
        for _ in range(100):
            with side.nested(unit):
                kept[0].quantity += 1
        beside = _bytes()
        unit.rollback()
    return began - before, (inside - began) / 100, (beside - ended) / 100


def _bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _traced(rounds: int) -> _Points:
    tracemalloc.start()
    try:
        return _held(rounds)
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------------------- results


PLOTS = {
    "siblings": Plot("Nested scope that adds one entity", "nested scopes in the unit", partial(_scopes, _beside)),
    "depth": Plot("Nested scope inside the others", "depth", partial(_scopes, _inside)),
    "loaded": Plot("Nested scope that changes one entity and is rolled back", "loaded entities in use", _undone),
    "stored": Plot("Unit that adds one entity and commits", "stored entities", _added),
    "steps": Plot("Steps of a unit of the fake", "stored entities", _steps),
    "memory": Plot("Memory", "0: unit, 1: open nested scope, 2: ended nested scope", _traced, "bytes"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", default=",".join(PLOTS), help="which plots, with commas between; others are kept")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the results that there are")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"plots": {}}
    for name in () if arguments.draw else arguments.only.split(","):
        plot = PLOTS[name]
        print(f"{name}: {plot.title} ...", file=sys.stderr)
        points = plot.measure(arguments.rounds)
        results["plots"][name] = {
            "title": plot.title,
            "across": plot.across,
            "unit": plot.unit,
            "machine": machine(),
            "not installed": MISSING,
            "lines": {line: [_summary(number, values) for number, values in at.items()] for line, at in points.items()},
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(_table(results["plots"]))
    if MISSING:
        print(f"Not installed, and not measured: {', '.join(MISSING)}.")
    try:
        from .plots import draw
    except ImportError:
        print("matplotlib is not installed: nothing is drawn. Use uv run --group benchmarks.")
    else:
        draw(results["plots"])


def _summary(number: int, values: list[float]) -> list[float]:
    """Return where a point is, and the quartiles of what was measured there."""
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [number, round(middle, 2), round(lower, 2), round(upper, 2)]


def _table(plots: dict[str, Any]) -> str:
    lines: list[str] = []
    for plot in plots.values():
        numbers = sorted({point[0] for points in plot["lines"].values() for point in points})
        lines += [
            f"### {plot['title']} ({plot['unit']})",
            "",
            f"| {plot['across']} | {' | '.join(f'{number:,}' for number in numbers)} |",
            "|---|" + "---|" * len(numbers),
        ]
        for line, points in plot["lines"].items():
            at = {point[0]: f"{point[1]:,.0f}" for point in points}
            lines.append(f"| {line} | {' | '.join(at.get(number, '-') for number in numbers)} |")
        lines.append("")
    return "\n".join(lines)


def _points() -> _Points:
    return defaultdict(lambda: defaultdict(list))


if __name__ == "__main__":
    main()
