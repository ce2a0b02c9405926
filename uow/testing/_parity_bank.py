"""
The parity machine on the contract suite's bank.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from hypothesis import strategies as st
from sqlalchemy import URL, Engine, create_engine, event

from ._memory import FakeBank
from ._model import Account, Document, Line, Transfer
from ._parity_rules import Strategies
from ._sqlalchemy import SqlBank
from .parity import ParitySuite

__all__ = ["BankParity", "hurried_engine"]

NUMBERS = st.sampled_from(["A", "B", "C"])


class BankParity(ParitySuite):
    """
    Programs on accounts, transfers, documents and lines.
    """

    fake = FakeBank
    real = SqlBank
    entities: ClassVar[Strategies] = {
        "accounts": st.builds(
            Account,
            number=NUMBERS,
            owner=st.sampled_from([*["Ann", "Bob"] * 4, None]),
            balance=st.sampled_from([*[0, 1, -1] * 4, -1001]),
            note=st.sampled_from([None, "a", "b"]),
        ),
        "transfers": st.builds(Transfer, source=NUMBERS, amount=st.integers(1, 3)),
        "documents": st.builds(Document, id=st.integers(1, 3), title=st.sampled_from(["x", "y"])),
        "lines": st.builds(
            Line, order=st.sampled_from(["p", "q"]), line=st.integers(1, 2), text=st.sampled_from([None, "a", "b"])
        ),
    }
    methods: ClassVar[Mapping[str, Strategies]] = {"accounts": {"withdraw": st.tuples(st.integers(1, 3))}}
    queries: ClassVar[Mapping[str, Strategies]] = {"accounts": {"overdrawn": st.tuples()}}


def hurried_engine(url: URL) -> Engine:
    """Return an engine that does not wait: SQLite not for the disk, PostgreSQL hardly for a lock."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url)
        event.listen(engine, "connect", _hurry)
        return engine
    return create_engine(url, connect_args={"options": "-c lock_timeout=50ms"})


def _hurry(connection: Any, record: object) -> None:
    for pragma in ("synchronous = OFF", "journal_mode = MEMORY", "busy_timeout = 0"):
        connection.execute(f"PRAGMA {pragma}")
