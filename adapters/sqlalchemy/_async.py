"""
The asynchronous unit of work on SQLAlchemy.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_session, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from uow import AsyncUnitOfWork, Steps, directly, finish, inside
from uow.errors import ConfigurationError

from ._unit import SqlAlchemyUnitOfWork, check_replica

__all__ = ["AsyncSqlAlchemyUnitOfWork"]

R = TypeVar("R")


class _GreenletBridge:
    """
    SQLAlchemy's bridge: what synchronous code does to the database is awaited outside.
    """

    async def call(self, call: Callable[..., R], /, *args: Any, **kwargs: Any) -> R:
        """Call it in a greenlet."""
        return await greenlet_spawn(call, *args, **kwargs)

    async def drive(self, steps: Steps[R], /) -> R:
        """Take the steps in a greenlet."""
        return cast("R", await greenlet_spawn(finish, steps))

    async def wait(self, awaitable: Awaitable[Any], /) -> object:
        """Let it be awaited outside; the steps of a fake in the same group may be awaited as they are."""
        return await_only(awaitable) if in_greenlet() else await awaitable

    def inside(self) -> bool:
        """Tell whether this code was called through the bridge, or an `AsyncSession`'s own."""
        return inside() or in_greenlet()


class AsyncSqlAlchemyUnitOfWork(AsyncUnitOfWork):
    """
    An asynchronous unit of work on a database: ``class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...``.

    Args:
        bind: An ``AsyncEngine``, or an ``async_sessionmaker``: see `SqlAlchemyUnitOfWork`.

        replica: Where read-only units go instead: the engine of a replica of the same database.

        resource: What distributed transactions call the database: see `SqlAlchemyUnitOfWork`.

        options: What every unit takes: see `uow.UnitOfWork`.

    Raises:
        ConfigurationError: See `SqlAlchemyUnitOfWork`.
    """

    _adapter = SqlAlchemyUnitOfWork
    _bridge = _GreenletBridge()

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any],
        *,
        replica: AsyncEngine | None = None,
        resource: str | None = None,
        **options: Any,
    ) -> None:
        self._session_class, core_bind = _take_apart(bind)
        if replica is not None:
            check_replica(replica, AsyncEngine, "create_async_engine")
        super().__init__(core_bind, replica=replica and replica.sync_engine, resource=resource, **options)

    @property
    def session(self) -> AsyncSession:
        """
        The session, for SQL that repositories do not say; the unit's rules hold for it.

        Raises:
            uow.errors.OutsideUnitOfWork: No scope is open.
        """
        assert isinstance(self._core, SqlAlchemyUnitOfWork)
        session: Session = directly(getattr, self._core, "session")

        def the_session(**arguments: Any) -> Session:
            return session

        return async_session(session) or self._session_class(sync_session_class=cast("type[Session]", the_session))


def _take_apart(bind: Any) -> tuple[type[AsyncSession], Any]:
    """Return the class of the session that users see, and what the synchronous core is made with."""
    if isinstance(bind, AsyncEngine):
        return AsyncSession, bind.sync_engine
    if not isinstance(bind, async_sessionmaker):
        raise ConfigurationError(
            f"{bind!r} is neither an AsyncEngine nor an async_sessionmaker",
            "Pass create_async_engine(...) or async_sessionmaker(engine).",
        )
    factory = cast("async_sessionmaker[AsyncSession]", bind)
    arguments = dict(factory.kw)
    engine = arguments.get("bind")
    made = arguments.pop("sync_session_class", factory.class_.sync_session_class)
    if not isinstance(engine, AsyncEngine):
        raise ConfigurationError(
            "the async_sessionmaker is not bound to an asynchronous engine",
            "Bind it to one: async_sessionmaker(create_async_engine(...)).",
        )
    arguments["bind"] = engine.sync_engine
    return factory.class_, sessionmaker(class_=made, **arguments)
