"""
The contract suite's bank on SQLAlchemy, awaited.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork

from ._async import AsyncBank, AsyncHarness, wait
from ._sqlalchemy import SqlAlchemyHarness

__all__ = ["AsyncSqlAlchemyHarness", "AsyncSqlBank"]


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank):
    """
    The bank on a database, awaited.
    """


class AsyncSqlAlchemyHarness(AsyncHarness, SqlAlchemyHarness):
    """
    The asynchronous face of the bank on a database.

    Args:
        engine: A synchronous engine for the same database, for the tables.

        make_engine: Makes an asynchronous one; a connection belongs to an event loop, so each loop has an engine.
    """

    def __init__(self, engine: Engine, make_engine: Callable[[], AsyncEngine]) -> None:
        super().__init__(engine)
        self._make_engine = make_engine
        self._engines: dict[asyncio.AbstractEventLoop, AsyncEngine] = {}

    def unit(self, **options: Any) -> AsyncSqlBank:
        """Return a new unit on the engine of this event loop, to be awaited."""
        loop = asyncio.get_running_loop()
        if loop not in self._engines:
            self._engines[loop] = self._make_engine()
            self._listen(self._engines[loop].sync_engine)
        return AsyncSqlBank(self._engines[loop], **options)

    async def dispose(self) -> None:
        """Close the connections that belong to the running event loop."""
        if (engine := self._engines.pop(asyncio.get_running_loop(), None)) is not None:
            await engine.dispose()

    def idle(self) -> bool:
        """Tell whether the pools have all their connections back."""
        return all(engine.pool.checkedout() == 0 for engine in [*self._engines.values()])  # type: ignore[attr-defined]

    def _closer(self, connection: Any) -> Callable[[], None]:
        raw = connection.get_raw_connection().dbapi_connection
        return lambda: wait(greenlet_spawn(raw.close))
