"""
The command: ``uv run python -m benchmarks``.
"""

import argparse
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from uow.testing._databases import Unavailable

from .databases import NAMES, Database, opened
from .report import report
from .rounds import contestants
from .scenarios import SCENARIOS


def main() -> None:
    arguments = _arguments()
    records: list[dict[str, Any]] = []
    for name in arguments.databases.split(","):
        try:
            with opened(name) as database:
                for number in range(arguments.rounds):
                    for names in _faces(arguments, name):
                        records += _round(database, names, number, arguments)
        except Unavailable as unavailable:
            print(f"{name} is left out: {unavailable.reason}", file=sys.stderr)
        text = report(records, "python -m benchmarks " + " ".join(sys.argv[1:]))
        if arguments.output is not None:  # now: what comes after may fail
            arguments.output.write_text(text + "\n")
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--databases", default=",".join(NAMES), help="which, with commas between")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="which, with commas between")
    parser.add_argument("--contestants", default=",".join(contestants()), help="which, with commas between")
    parser.add_argument("--faces", default="sync,async", help="sync, async or both")
    parser.add_argument("--rounds", type=int, default=5, help="how many fresh processes")
    parser.add_argument("--seconds", type=float, default=0.02, help="how long one block takes")
    parser.add_argument("--save", dest="output", action="store_const", help="write benchmarks/results/<today>.md",
                        const=Path(__file__).with_name("results") / f"{date.today()}.md")  # fmt: skip
    return parser.parse_args()


def _faces(arguments: argparse.Namespace, database: str) -> list[list[str]]:
    """Return the contestants of each face; asyncpg has one face only."""
    kinds, asked = contestants(), arguments.contestants.split(",")
    faces = [face for face in arguments.faces.split(",") if face == "async" or not database.startswith("asyncpg")]
    chosen = [[name for name in asked if kinds[name].asynchronous is (face == "async")] for face in faces]
    return [names for names in chosen if names]


def _round(database: Database, names: list[str], number: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    asked = {
        "database": database.name,
        "url": database.url,
        "contestants": names,
        "scenarios": arguments.scenarios.split(","),
        "round": number,
        "seconds": arguments.seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rounds", json.dumps(asked)], check=True, stdout=subprocess.PIPE, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
