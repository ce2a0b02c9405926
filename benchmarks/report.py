"""
Records made into tables, with what is needed to believe them.
"""

import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .rounds import contestants
from .scenarios import SCENARIOS

_PACKAGES = (
    "uow",
    "sqlalchemy",
    "psycopg",
    "psycopg-binary",
    "asyncpg",
    "aiosqlite",
    "pymysql",
    "aiomysql",
    "advanced-alchemy",
    "zope.sqlalchemy",
    "pyuow",
    "django",
)
_Times = dict[tuple[str, str, int], float]


def report(records: Sequence[dict[str, Any]], command: str) -> str:
    """
    Write the tables in Markdown.

    A cell is the median over the rounds of a contestant's time by the baseline's of the same round. ``±`` is half of
    what the rounds' ratios span.
    """
    lines = ["# Results", "", f"`{command}`, {_rounds(records)} rounds, each in a fresh process.", "", *machine(), ""]
    for database in dict.fromkeys(record["database"] for record in records):
        for asynchronous in (False, True):
            lines += _table(database, [one for one in records if one["database"] == database], asynchronous)
    return "\n".join(lines)


def _rounds(records: Iterable[dict[str, Any]]) -> int:
    return len({record["round"] for record in records})


def machine() -> list[str]:
    """Say what was measured with and on."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = processors[0].partition(":")[2].strip() if processors else platform.processor()
    return [
        f"{', '.join(versions)}.",
        "",
        f"{platform.system()} {platform.machine()}, {len(processors)} processors: {model}.",
    ]


def _table(database: str, records: list[dict[str, Any]], asynchronous: bool) -> list[str]:
    kinds = contestants()
    met = {record["contestant"] for record in records if kinds[record["contestant"]].asynchronous is asynchronous}
    names = [name for name in kinds if name in met]
    if not names:
        return []
    times: _Times = {(one["contestant"], one["scenario"], one["round"]): one["seconds"] for one in records}
    scenarios = [key for key in SCENARIOS if any(one["scenario"] == key for one in records)]
    lines = [
        f"## {database}, {'awaited' if asynchronous else 'synchronous'}",
        "",
        f"| scenario | {' | '.join(names)} | {names[0]}, µs |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for key in scenarios:
        cells = [_cell(times, name, names[0], key) for name in names]
        base = statistics.median(
            [seconds for (name, one, _), seconds in times.items() if (name, one) == (names[0], key)]
        )
        lines.append(f"| {key} {SCENARIOS[key].title} | {' | '.join(cells)} | {base * 1e6:,.0f} |")
    return [*lines, ""]


def _cell(times: _Times, name: str, baseline: str, key: str) -> str:
    by_round: dict[int, dict[str, float]] = defaultdict(dict)
    for (contestant, scenario, number), seconds in times.items():
        if scenario == key:
            by_round[number][contestant] = seconds
    ratios = [one[name] / one[baseline] for one in by_round.values() if name in one]
    if not ratios:
        return "-"
    spread = (max(ratios) - min(ratios)) / 2
    return f"{statistics.median(ratios):.2f} ± {spread:.2f}"
