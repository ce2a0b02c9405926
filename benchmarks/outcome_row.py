"""
The price of knowing what became of a COMMIT: ``outcome="row"`` and ``"xid"`` beside ``"none"``.

Each unit adds one account and commits. The contestants take turns, one unit each, in one process and on one engine,
in an order that rotates; the figures are medians over all units, and of the ratios of neighbours. Run it with
``python -m benchmarks.outcome_row [units]``.
"""

import itertools
import statistics
import sys
import time
from contextlib import AbstractContextManager

from sqlalchemy import URL, Engine, create_engine

from uow.adapters.sqlalchemy import uow_metadata
from uow.testing import DATABASES, Unavailable
from uow.testing._model import Account
from uow.testing._sqlalchemy import SqlBank, metadata

MODES = {"sqlite": ("none", "row"), "mariadb": ("none", "row"), "postgresql": ("none", "row", "xid")}
WARM_UP = 50


def unit(engine: Engine, outcome: str, number: int) -> float:
    """Do one unit; return how long it took, in seconds."""
    began = time.perf_counter()
    with SqlBank(engine, outcome=outcome) as bank:
        bank.accounts.add(Account(f"{outcome}-{number}", "Ann"))
        bank.commit()
    return time.perf_counter() - began


def measured(engine: Engine, modes: tuple[str, ...], units: int) -> dict[str, list[float]]:
    """Let the modes take turns."""
    orders = itertools.cycle([modes[at:] + modes[:at] for at in range(len(modes))])
    taken: dict[str, list[float]] = {mode: [] for mode in modes}
    for number in range(WARM_UP + units):
        for mode in next(orders):
            taken[mode].append(unit(engine, mode, number))
    return {mode: seconds[WARM_UP:] for mode, seconds in taken.items()}


def report(name: str, opened: AbstractContextManager[URL], units: int) -> None:
    """Measure on one database and print its lines."""
    with opened as url:
        engine = create_engine(url)
        for tables in (metadata, uow_metadata):
            tables.create_all(engine)
        taken = measured(engine, MODES[name], units)
        engine.dispose()
    for mode, seconds in taken.items():
        ratio = statistics.median(one / none for one, none in zip(seconds, taken["none"], strict=True))
        print(f"{name:12}{mode:6}{statistics.median(seconds) * 1000:9.3f} ms{ratio:7.2f}")


def main() -> None:
    units = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{'database':12}{'mode':6}{'median':>12}{'ratio':>7}")
    for name, opened in DATABASES.items():
        try:
            report(name, opened(), units)
        except Unavailable as unavailable:
            print(f"{name:12}{unavailable.reason}")


if __name__ == "__main__":
    main()
