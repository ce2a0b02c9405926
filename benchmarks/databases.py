"""
The databases that are measured on, and one engine for everybody.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from uow.testing._databases import mariadb, postgresql

NAMES = ("sqlite-memory", "sqlite-file", "postgresql", "postgresql-1ms", "asyncpg", "asyncpg-1ms", "mariadb")
_ASYNC_DRIVERS = {"sqlite": "aiosqlite", "mysql": "aiomysql"}


@frozen
class Database:
    """
    Args:
        name: One of `NAMES`.

        url: Its address, as text: it travels to the processes of the rounds.
    """

    name: str
    url: str

    def engine(self, *, recipe: bool) -> Engine:
        return _prepared(create_engine(self.url), recipe=recipe)

    def async_engine(self, *, recipe: bool) -> AsyncEngine:
        url = make_url(self.url)
        driver = "asyncpg" if self.name.startswith("asyncpg") else _ASYNC_DRIVERS.get(url.get_backend_name())
        if driver is not None:
            url = url.set(drivername=f"{url.get_backend_name()}+{driver}")
        if driver == "asyncpg" and "sslmode" in url.query:
            url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
        engine = create_async_engine(url)
        _prepared(engine.sync_engine, recipe=recipe)
        return engine


def _prepared(engine: Engine, *, recipe: bool) -> Engine:
    if engine.dialect.name != "sqlite":
        return engine

    def connect(raw: Any, record: object) -> None:
        cursor = raw.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()
        if recipe:
            raw.isolation_level = None

    event.listen(engine, "connect", connect)
    if recipe:
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


@contextmanager
def opened(name: str) -> Iterator[Database]:
    """
    Open a database for some rounds.

    Raises:
        uow.testing._databases.Unavailable: It cannot be had here.
    """
    with ExitStack() as stack:
        url = _OPENERS[name.removesuffix("-1ms")](stack)
        if name.endswith("-1ms"):
            url = _delayed(stack, url, 0.001)
        yield Database(name, url.render_as_string(hide_password=False))


def _memory(stack: ExitStack) -> URL:
    return make_url("sqlite://")


def _file(stack: ExitStack) -> URL:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="uow-benchmark-", ignore_cleanup_errors=True))
    return make_url("sqlite://").set(database=str(Path(folder, "benchmark.db")))


def _postgresql(stack: ExitStack) -> URL:
    return stack.enter_context(postgresql())


def _mariadb(stack: ExitStack) -> URL:
    return stack.enter_context(mariadb())


_OPENERS: dict[str, Callable[[ExitStack], URL]] = {
    "sqlite-memory": _memory,
    "sqlite-file": _file,
    "postgresql": _postgresql,
    "asyncpg": _postgresql,
    "mariadb": _mariadb,
}


def _delayed(stack: ExitStack, url: URL, seconds: float) -> URL:
    """Return the address of a proxy, in a process of its own, that adds *seconds* to every round trip."""
    folder = url.query.get("host")
    target = f"{folder}/.s.PGSQL.{url.port or 5432}" if folder else f"{url.host}:{url.port or 5432}"
    proxy = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.proxy", target, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    stack.callback(proxy.wait)
    stack.callback(proxy.terminate)
    assert proxy.stdout is not None
    port = int(proxy.stdout.readline())
    return url.set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
