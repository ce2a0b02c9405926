"""
Kill processes that transfer and recover, at random moments: ``uv run python -m benchmarks.soak``.

It starts two PostgreSQL servers and a MariaDB server of its own, which wait for the disk.
"""

import argparse
import platform
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from tests.crashes.soak import Figures, run
from tests.crashes.transfers import World
from uow.testing import DatabaseServer, MariaDbServer, PostgresServer

RESULTS = Path(__file__).with_name("results") / "soak.md"


def main() -> None:
    arguments = _arguments()
    with ExitStack() as stack:
        servers: dict[str, DatabaseServer] = {
            "bank": PostgresServer(max_prepared_transactions=50),
            "stock": MariaDbServer(),
            "till": PostgresServer(max_prepared_transactions=50),
        }
        urls = {name: stack.enter_context(server).url for name, server in servers.items()}
        world = World.of(**urls)
        figures = run(world.urls, arguments.seconds, workers=arguments.workers, seed=arguments.seed)
    text = _report(figures)
    print(text)
    if arguments.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text + "\n")
    if figures.errors or figures.divergence or figures.lies or figures.in_doubt or figures.heuristic:
        print("\n\n".join(figures.errors), file=sys.stderr)
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--workers", type=int, default=4, help="how many processes transfer at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.parent.name}/{RESULTS.name}")
    return parser.parse_args()


def _report(figures: Figures) -> str:
    rows = {
        "payments that all of their databases have": figures.committed,
        "payments that commit() rolled back: recovery was faster": figures.aborted,
        "payments whose commit() could not find out": figures.unknown,
        "processes killed by SIGKILL": figures.kills,
        "recoveries, up to two at a time": figures.recoveries,
        "branches that they ended": figures.recovered,
        "**payments that some of their databases have only**": figures.divergence,
        "**payments of which commit() did not tell the truth**": figures.lies,
        "**branches in doubt at the end**": figures.in_doubt,
        "**heuristic outcomes**": figures.heuristic,
        "**other errors**": len(figures.errors),
    }
    return "\n".join(
        [
            "# Random kills",
            "",
            f"`{' '.join(['python -m benchmarks.soak', *sys.argv[1:]])}`: {figures.seconds} s.",
            "Processes transfer between PostgreSQL and MariaDB, PostgreSQL and PostgreSQL, and all three; others",
            "recover, with a grace of 0, 0.2 and 1 s. One of them is killed every 0.3 s on average, and another one",
            "started. The servers wait for the disk.",
            "",
            "| | |",
            "|---|--:|",
            *(f"| {name} | {number:,} |" for name, number in rows.items()),
            "",
            f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in _PACKAGES) + ".",
        ]
    )


_PACKAGES = ("sqlalchemy", "psycopg", "pymysql")

if __name__ == "__main__":
    main()
