"""
What several files of tests here need.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

R = TypeVar("R")


class PostgresqlDrive:
    """Runs a function on a fresh engine of one driver; for an asynchronous one as the asynchronous face would."""

    def __init__(self, url: URL, driver: str) -> None:
        self.driver = driver
        self.url = url.set(drivername=f"postgresql+{driver.partition(' ')[0]}")

    def __call__(self, work: Callable[[Engine], R], /, **options: Any) -> R:
        limit: dict[str, Any] = {"options": "-c lock_timeout=20s"}
        if self.driver == "asyncpg":
            limit = {"server_settings": {"lock_timeout": "20s"}}
        options["connect_args"] = limit | options.get("connect_args", {})
        if self.driver == "psycopg":
            engine = create_engine(self.url, **options)
            try:
                return work(engine)
            finally:
                engine.dispose()

        async def run() -> R:
            engine = create_async_engine(self.url, **options)
            try:
                return await greenlet_spawn(work, engine.sync_engine)
            finally:
                await engine.dispose()

        return asyncio.run(run())


@pytest.fixture
def polite_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let psycopg suspend a task at each call, so that it can be cut off there.

    Otherwise it does so if the last time was a while ago, as on a busy machine.
    """
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", -1, raising=False)


@pytest.fixture(params=["psycopg", "psycopg async", "asyncpg"])
def drive(request: pytest.FixtureRequest, postgresql_url: URL) -> PostgresqlDrive:
    """Each of PostgreSQL's drivers."""
    return PostgresqlDrive(postgresql_url, request.param)
