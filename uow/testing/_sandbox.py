"""
A sandbox on a real database: the code under test commits, and nothing of it is left.

One connection is in one transaction for the whole time. On the engine that the code under test is given, BEGIN is
SAVEPOINT, COMMIT is RELEASE and ROLLBACK is ROLLBACK TO.
"""

import copy
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, NoReturn, overload

from attrs import evolve
from sqlalchemy import Connection, Engine, RootTransaction, StaticPool
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from uow import Options
from uow.adapters.sqlalchemy._backend import Backend, Branch, raw_of  # type: ignore[import-not-found]
from uow.adapters.sqlalchemy._backends import backend_of, serve  # type: ignore[import-not-found]
from uow.errors import ConfigurationError, DatabaseError

__all__ = ["sandbox"]

_OUTER, _UNIT = "uow_sandbox", "uow_sandbox_unit"
# What is deferred to COMMIT is checked; rolled back to, the constraints are as deferred as before.
_CHECKS = {
    "postgresql": (
        "SAVEPOINT uow_sandbox_check",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "ROLLBACK TO SAVEPOINT uow_sandbox_check",
    )
}
_NO_TWO_PHASES = ConfigurationError("there is no two-phase commit in a sandbox", "Test it on the engine itself.")
_READ_ONLY = {"postgresql": ("SET TRANSACTION READ ONLY", ""), "sqlite": ("PRAGMA query_only=1", "PRAGMA query_only=0")}


@overload
def sandbox(engine: Engine, *, isolation: str | None = None) -> AbstractContextManager[Engine]: ...
@overload
def sandbox(engine: AsyncEngine, *, isolation: str | None = None) -> AbstractAsyncContextManager[AsyncEngine]: ...
def sandbox(engine: Any, *, isolation: str | None = None) -> Any:
    """
    Give an engine on which everything is committed as usual, and undone when the block ends.

    .. code-block:: python

        with sandbox(engine) as inside:
            service = Transfers(SqlBank(inside))
            ...

    An ``AsyncEngine`` is entered with ``async with``. There is one connection: a second unit or connection while
    another one is in its transaction is an error.

    Args:
        engine: The database. Listeners on this engine hear nothing of what happens on the other one.

        isolation: The level of the one transaction; units inside may ask for that level and no other.

    Raises:
        uow.errors.ConfigurationError: The engine cannot serve a unit; when the block ends: something ended the
            transaction, or somebody still holds the connection.
    """
    return _asynchronous(engine, isolation) if isinstance(engine, AsyncEngine) else _synchronous(engine, isolation)


@contextmanager
def _synchronous(engine: Engine, isolation: str | None) -> Generator[Engine]:
    box = _Sandbox(engine, isolation)
    try:
        yield box.engine
    except BaseException:
        box.end()
        raise
    box.end()
    box.complain()


@asynccontextmanager
async def _asynchronous(engine: AsyncEngine, isolation: str | None) -> AsyncGenerator[AsyncEngine]:
    box = await greenlet_spawn(_Sandbox, engine.sync_engine, isolation)
    try:
        yield AsyncEngine(box.engine)
    except BaseException:
        await greenlet_spawn(box.end)
        raise
    await greenlet_spawn(box.end)
    box.complain()


class _Sandbox:
    """
    One connection of *engine* in one transaction, and an engine that works in it.
    """

    def __init__(self, engine: Engine, isolation: str | None) -> None:
        options = Options(isolation=isolation)
        self.backend = backend_of(engine)
        self.backend.check(options)
        self.outer = self.backend.connect(engine, self, options)
        self.isolation = "SERIALIZABLE" if engine.dialect.name == "sqlite" else isolation
        self.complaint: ConfigurationError | None = None
        self.ended = False
        self.in_unit = False
        try:
            self.outer.exec_driver_sql(f"SAVEPOINT {_OUTER}")
            self.engine = self._engine(engine)
            serve(self.engine, _backend_class(type(self.backend))(self.engine, self))
        except BaseException:
            self.backend.release(self.outer)
            raise

    def _engine(self, engine: Engine) -> Engine:
        dialect = copy.copy(engine.dialect)
        vars(dialect).pop("dispatch", None)  # listeners of the original, shared by the copy
        vars(dialect).update(
            do_begin=self._begin,
            do_commit=self._commit,
            do_rollback=self._rollback,
            do_begin_twophase=self._refuse_two_phases,
            set_isolation_level=self._set_isolation,
            reset_isolation_level=lambda raw: None,
        )
        self.pool = _OneConnection(_given_once(raw_of(self.outer)), dialect=dialect)
        execution_options = {
            name: value for name, value in engine.get_execution_options().items() if name != "isolation_level"
        }
        return Engine(self.pool, dialect, engine.url, execution_options=execution_options)

    def failed(self, error: DatabaseError) -> None:
        """Be told by the backend what a statement of the sandbox's own met; it is raised anyway."""

    def end(self) -> None:
        """Undo everything and give the connection back; throw it away where the test must be told of something."""
        self.ended, self.in_unit = True, False
        try:
            self.outer.exec_driver_sql(f"RELEASE SAVEPOINT {_OUTER}")
            self.outer.rollback()
        except Exception as error:  # drivers answer for a closed connection with errors of many kinds
            self.complaint = ConfigurationError(
                "something ended the sandbox's transaction, and what was done before may be in the database",
                "On MariaDB CREATE TABLE and its like do that, and a deadlock; everywhere COMMIT and ROLLBACK as "
                "statements, and a connection that is thrown away. Test that on the engine itself.",
            )
            self.complaint.__cause__ = error
        if self.pool.taken.locked():
            self.complaint = self.complaint or ConfigurationError(
                "the sandbox was left while somebody still holds its connection",
                "Leave every unit, and close every session and connection, before.",
            )
        try:
            if self.complaint is not None:
                self.outer.invalidate()
        finally:
            self.backend.release(self.outer)

    def complain(self) -> None:
        """Raise what the test must be told."""
        if self.complaint is not None:
            raise self.complaint

    # ---------------------------------------------------------------------------------- what the engine's dialect does

    def _begin(self, raw: Any) -> None:
        self._demand_open()
        self._rollback(raw)  # after a COMMIT that failed nobody else does
        _send(raw, f"SAVEPOINT {_UNIT}")
        self.in_unit = True

    def _commit(self, raw: Any) -> None:
        self._demand_open()
        for statement in (*_CHECKS.get(self.engine.dialect.name, ()), f"RELEASE SAVEPOINT {_UNIT}"):
            _send(raw, statement)
        self.in_unit = False

    def _rollback(self, raw: Any) -> None:
        if self.in_unit:
            self.in_unit = False
            _send(raw, f"ROLLBACK TO SAVEPOINT {_UNIT}")

    def _demand_open(self) -> None:
        if self.ended:
            raise ConfigurationError("the sandbox was left, and its engine with it", "Work inside its block.")

    def _refuse_two_phases(self, connection: object, xid: object) -> NoReturn:
        raise _NO_TWO_PHASES

    def _set_isolation(self, raw: object, level: str) -> None:
        if level != self.isolation:
            raise _other_level(level, self.isolation)


class _OneConnection(StaticPool):
    """
    A pool of one connection, given to one at a time. It is not the pool's to close.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.taken = threading.Lock()

    def _do_get(self) -> Any:
        if not self.taken.acquire(blocking=False):
            raise ConfigurationError(
                "a sandbox has one connection, and another unit, session or connection is using it",
                "End that one first; what needs two at once, such as independent() inside a unit, is tested on the "
                "engine itself.",
            )
        try:
            return super()._do_get()
        except BaseException:
            self.taken.release()
            raise

    def _do_return_conn(self, record: Any) -> None:
        self.taken.release()

    def dispose(self) -> None:
        """Keep the connection: the sandbox gives it back."""

    def recreate(self) -> "_OneConnection":
        """Go on with this one, as ``Engine.dispose()`` asks for another."""
        return self


class _Inside(Backend):  # type: ignore[misc]
    """
    What the backends of sandboxes do in another way than those that they are derived from.
    """

    def __init__(self, engine: Engine, box: _Sandbox) -> None:
        super().__init__(engine)
        self.lets_wait = False  # what is sent here is what a unit outside sends
        self.box = box
        self.undo: weakref.WeakKeyDictionary[Connection, list[str]] = weakref.WeakKeyDictionary()

    def check(self, options: Options) -> None:
        """Refuse what the database does, and another isolation level than the sandbox has."""
        super().check(options)
        if options.isolation not in (None, self.box.isolation):
            raise _other_level(options.isolation, self.box.isolation)

    def connect(self, engine: Engine, listener: Any, options: Options) -> Connection:
        """Leave it to the pool to refuse a second one."""
        connection: Connection = Backend.connect(self, engine, listener, options)
        return connection

    def prepare(self, connection: Connection, options: Options) -> None:
        """Leave the driver as it is: the sandbox's transaction has begun."""

    def begin(self, connection: Connection, options: Options) -> None:
        """Say what can be said inside a transaction, and remember how it is taken back."""
        name = self.dialect
        undo = self.undo[connection] = []
        super().begin(connection, evolve(options, isolation=None, read_only=False, deferrable=False))
        if name == "postgresql":
            limits = [limit for limit in ("statement_timeout", "lock_timeout") if getattr(options, limit) is not None]
            undo += [f"SET LOCAL {limit} TO DEFAULT" for limit in limits]
        if options.read_only and name in _READ_ONLY:
            do, back = _READ_ONLY[name]
            connection.exec_driver_sql(do)
            undo += [back] if back else []

    def join(self, connection: Connection, branch: Branch) -> None:
        """Refuse what a savepoint cannot be."""
        raise _NO_TWO_PHASES

    def commit(self, connection: Connection, transaction: RootTransaction) -> None:
        """Leave it to the dialect: RELEASE SAVEPOINT of a failed transaction is an error."""
        Backend.commit(self, connection, transaction)

    def release(self, connection: Connection) -> None:
        """Take back what was said, then give the connection back."""
        try:
            for statement in self.undo.pop(connection, ()):
                if not (self.box.ended or connection.closed or connection.invalidated):
                    _send(raw_of(connection), statement)
        finally:
            super().release(connection)


def _backend_class(base: type[Backend]) -> type[_Inside]:
    return type(f"{base.__name__}InSandbox", (_Inside, base), {})


def _given_once(raw: Any) -> Callable[[], Any]:
    """Return what gives *raw* to the pool, which asks again when it was thrown away."""
    given: list[Any] = []

    def give() -> Any:
        if given:
            raise ConfigurationError(
                "the sandbox's connection was lost or thrown away, and its transaction with it",
                "Test that on the engine itself.",
            )
        given.append(raw)
        return raw

    return give


def _other_level(asked: str | None, given: str | None) -> ConfigurationError:
    level = "the database's default" if given is None else given
    return ConfigurationError(
        f"{asked} is asked for, and the sandbox's one transaction has begun with {level} as isolation level",
        f"Make it with sandbox(engine, isolation={asked!r}), or test it on the engine itself.",
    )


def _send(raw: Any, statement: str) -> None:
    cursor = raw.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()
