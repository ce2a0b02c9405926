"""
What is sent to a database, for assertions.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["record_statements"]


@contextmanager
def record_statements(engine: Engine | AsyncEngine) -> Generator[list[str]]:
    """
    Give a list that grows with what is sent on *engine*: statements, SAVEPOINT and its like, COMMIT and ROLLBACK.

    A BEGIN that the driver sends by itself, as all but SQLite's do, is not among them.

    .. code-block:: python

        with record_statements(engine) as sent:
            service.move("A-1", "B-2", 30)

        assert 5 == len(sent)

    Args:
        engine: The engine; other connections of it are heard too.
    """
    target = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    sent: list[str] = []

    def statement(connection: Any, cursor: Any, text: str, *rest: object) -> None:
        sent.append(text)

    def commit(connection: Any) -> None:
        sent.append("COMMIT")

    def rollback(connection: Any) -> None:
        sent.append("ROLLBACK")

    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": statement,
        "commit": commit,
        "rollback": rollback,
    }
    for name, listener in listeners.items():
        event.listen(target, name, listener)
    try:
        yield sent
    finally:
        for name, listener in listeners.items():
            event.remove(target, name, listener)
