"""
What tests need: databases, a sandbox, recorders; and the contract suite, for adapters and repositories of your own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._crash import ChildProcess, Pause, crash_at, pause_at, record_points, run_killed
from ._databases import DATABASES, Unavailable, open_database, require_or_skip
from ._harness import Harness
from ._proxy import Fault, FaultProxy
from ._recorder import Recorder
from ._servers import DatabaseServer, MariaDbServer, PostgresServer

if TYPE_CHECKING:
    from ._sandbox import sandbox
    from ._statements import record_statements

__all__ = [
    "DATABASES",
    "ChildProcess",
    "DatabaseServer",
    "Fault",
    "FaultProxy",
    "Harness",
    "MariaDbServer",
    "Pause",
    "PostgresServer",
    "Recorder",
    "Unavailable",
    "crash_at",
    "open_database",
    "pause_at",
    "record_points",
    "record_statements",
    "require_or_skip",
    "run_killed",
    "sandbox",
]

_NEEDS_SQLALCHEMY = {"record_statements": "._statements", "sandbox": "._sandbox"}


def __getattr__(name: str) -> Any:
    """Import what needs SQLAlchemy when it is first asked for: the fake's tests do without."""
    if name not in _NEEDS_SQLALCHEMY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEEDS_SQLALCHEMY[name], __name__), name)
