"""
Which database an engine is for.
"""

import weakref

from sqlalchemy import Engine

from ._backend import Backend
from ._mariadb import MariaDb
from ._postgresql import PostgreSql
from ._sqlite import Sqlite

__all__ = ["backend_of", "serve"]

_BACKENDS: dict[str, type[Backend]] = {
    "postgresql": PostgreSql,
    "mysql": MariaDb,
    "mariadb": MariaDb,
    "sqlite": Sqlite,
}
_known: weakref.WeakKeyDictionary[Engine, Backend] = weakref.WeakKeyDictionary()


def backend_of(engine: Engine) -> Backend:
    """
    Return the backend of *engine*, made once for each.

    Raises:
        ConfigurationError: The engine cannot serve a unit.
    """
    backend = _known.get(engine)
    if backend is None:
        backend = _known[engine] = _BACKENDS.get(engine.dialect.name, Backend)(engine)
    return backend


def serve(engine: Engine, backend: Backend) -> None:
    """
    Let units on *engine* stand on *backend* instead of the one that its dialect has.
    """
    _known[engine] = backend
