"""
The primitives of a unit, on a SQLAlchemy session.
"""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, inspect
from sqlalchemy.orm import InstanceState, make_transient, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.util.concurrency import in_greenlet

from uow import Changes, Options, Watcher
from uow.errors import AfterCommitFailed, ConfigurationError, DatabaseError

from ._backend import Backend
from ._gateway import SqlAlchemyGateway
from ._journal import Added, Level, make_new
from ._session import UnitSession

__all__ = ["SqlAlchemyTransaction"]

E = TypeVar("E")


class SqlAlchemyTransaction:
    """
    One transaction on one connection, taken from the pool with the first statement.

    Args:
        engine: The engine.

        backend: What its database needs.

        make_session: Makes the session.

        options: What the unit asks of its transaction.
    """

    watcher: Watcher

    def __init__(
        self, engine: Engine, backend: Backend, make_session: Callable[[], UnitSession], options: Options
    ) -> None:
        self.engine = engine
        self.options = options
        self.backend = backend
        self.session = make_session()
        self.session.unit = self
        self.plain: Any = super(UnitSession, self.session)
        self.checked_out: Connection | None = None
        self.levels = [Level()]
        self.exposed = False
        self.met_error = False
        self.doom: DatabaseError | None = None
        self.versions: dict[InstanceState[Any], Any] = {}
        self.loaded_values: list[tuple[Any, dict[str, Any]]] = []
        self.durable = False

    def watch(self, watcher: Watcher, /) -> None:
        """Remember whom to tell."""
        self.watcher = watcher

    def connect(self) -> Connection:
        """Return the connection; check one out and begin if there is none yet."""
        for level in reversed(self.levels):
            if level.sent:
                break
            level.sent = True
        if self.checked_out is None:
            if self.engine.dialect.is_async and not in_greenlet():
                raise ConfigurationError(
                    f"{self.engine.dialect.driver} is an asynchronous driver, and the unit is synchronous",
                    "Use AsyncSqlAlchemyUnitOfWork with create_async_engine(), or another driver.",
                )
            self.checked_out = self.backend.connect(self.engine, self, self.options)
        return self.checked_out

    def gateway(self, entity: type[E], /) -> SqlAlchemyGateway[E]:
        """Return the primitives of the repository of *entity*."""
        return SqlAlchemyGateway(entity, self.session, self.plain, self.engine.dialect.name)

    # ---------------------------------------------------------------------------------------------- the transaction

    @property
    def begun(self) -> bool:
        """Whether the database has begun a transaction."""
        return self.checked_out is not None

    @property
    def isolation(self) -> str | None:
        """The isolation level that was asked for, or that the engine was made with."""
        set_on_connect: str | None = getattr(self.engine.dialect, "_on_connect_isolation_level", None)
        engine_level = self.engine.get_execution_options().get("isolation_level", set_on_connect)
        return self.options.isolation or engine_level

    def savepoint_name(self, depth: int, /) -> str | None:
        """Return the name of the savepoint at that depth, None before it was sent."""
        savepoint: Any = self.checked_out and self.checked_out.get_nested_transaction()
        for level in self.levels[:depth:-1]:
            savepoint = savepoint._previous_nested if level.sent else savepoint
        return savepoint._savepoint if savepoint is not None and self.levels[depth].sent else None

    def flush(self) -> None:
        """Write what is pending."""
        self.session.flush()

    def pending(self) -> Changes:
        """Count what is not written yet."""
        session = self.session
        changed = sum(session.is_modified(entity) for entity in session.dirty)
        return Changes(len(session.new), changed, len(session.deleted))

    def savepoint(self) -> None:
        """Begin a nested scope; SQLAlchemy sends SAVEPOINT with its first statement."""
        self.session.flush()
        self.levels.append(Level(self.plain.begin(nested=True)))
        if self.exposed:  # statements on that connection pass by the session, which would send SAVEPOINT with its own
            self.plain.connection()
            self._taint()

    def release(self) -> None:
        """Release the savepoint, once the database still has the transaction."""
        self.session.flush()
        level = self.levels[-1]
        if level.sent:
            self._confirm_open()
        assert level.handle is not None
        try:
            level.handle.commit()
        except BaseException:
            level.unsettled = level.sent
            raise
        self.levels.pop().merge_into(self.levels[-1])

    def rollback_to_savepoint(self) -> None:
        """Roll back to the savepoint and put the outer values back."""
        level = self.levels[-1]
        assert level.handle is not None
        try:
            level.handle.rollback()
        finally:
            self.levels.pop()
        if level.unsettled:
            raise DatabaseError("RELEASE SAVEPOINT failed half-way, so the scope cannot be undone alone")
        level.restore(self.session, self.plain)

    def confirm(self) -> None:
        """Write what is pending and ask whether the database still has the transaction."""
        self.session.flush()
        self._confirm_open()

    def commit(self) -> None:
        """Commit; what the session's own listeners raise after the database confirmed is no failure of it."""
        try:
            self.plain.commit()
        except Exception as error:
            if self.durable:
                raise AfterCommitFailed("A listener of the session failed", [error]) from error
            raise

    def rollback(self) -> None:
        """Roll back at the root; what was added is new again, everything else stays as it is in memory."""
        added = [entry for level in self.levels for entry in level.added]
        self.plain.expunge_all()
        try:
            if not self.met_error:  # after one the database may have ended the transaction by right
                self._confirm_open()
        finally:
            self._roll_back(added)

    def _roll_back(self, added: list[Added]) -> None:
        try:
            transaction = None if self.checked_out is None else self.checked_out.get_transaction()
            if transaction is not None:
                transaction.rollback()
        finally:
            for reference, _ in added:
                if (entity := reference()) is not None:
                    make_transient(entity)
            for reference in (reference for level in self.levels for reference in level.removed):
                if (entity := reference()) is not None and inspect(entity).was_deleted:
                    make_transient(entity)
                    make_transient_to_detached(entity)
            make_new(added)
            self._restore_versions()

    def _restore_versions(self) -> None:
        """Let no entity say that it is newer than it is: another unit may give its row that very version."""
        for state, version in self.versions.items():
            if (entity := state.obj()) is not None and state.key is not None:  # else it is new again, and has none
                set_committed_value(entity, _version_of(state), version)

    def _confirm_open(self) -> None:
        """Raise if something ended the transaction behind the unit's back."""
        if self.checked_out is not None:
            self.backend.confirm(self.checked_out, wrote=any(level.wrote for level in self.levels))

    def close(self, *, broken: bool = False) -> None:
        """Close the session and give the connection back, or throw it away."""
        connection, self.checked_out = self.checked_out, None
        try:
            if broken and connection is not None and not connection.closed:
                connection.invalidate()
            self.plain.close()
        finally:
            if connection is not None:
                self.backend.release(connection)

    # ----------------------------------------------------------------------------------------- what the session reports

    def failed(self, error: DatabaseError) -> None:
        """Tell the unit of an error that a statement met."""
        self.met_error = True
        if error.dooms and self.doom is None:
            self.doom = error
        self.watcher.failed(error)

    def past_the_orm(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do what SQLAlchemy does not track: remember everything loaded first, in case it is rolled back."""
        self._taint()
        result: Any = call(*args, **kwargs)
        self.exposed = self.exposed or isinstance(result, Connection)
        if _wrote_rows(result) or any(getattr(arg, "is_dml", False) for arg in args):
            self.levels[-1].wrote = True
            self.watcher.flushed(Changes(statements=1))
        return result

    def _taint(self) -> None:
        level = self.levels[-1]
        if level.handle is not None and not level.tainted:
            level.tainted = True
            level.note_outer(self.session.identity_map.values())

    def loaded(self, entity: object) -> None:
        """Take note of an entity that came from the database."""
        for level in self.levels:
            if level.tainted:
                level.note_unsure(entity)
        self.watcher.loaded(entity)

    def took_in(self, entity: object) -> None:
        """Take note of an entity that was added."""
        self.levels[-1].note_added(entity)
        self.watcher.added(entity)

    def about_to_flush(self) -> None:
        """Remember the outer values of what is about to be written, and count it."""
        level, session = self.levels[-1], self.session
        if level.handle is not None:
            level.note_outer(session.dirty)
            level.note_outer(session.deleted)
        for state in map(inspect, session.dirty):
            if state.mapper.version_id_col is not None:
                self.versions.setdefault(state, state.dict.get(_version_of(state)))
        if session.deleted:  # a new entity may take the row of a removed one, in an UPDATE that counts on
            for state in map(inspect, session.new):
                if state.mapper.version_id_col is not None and state.dict.get(_version_of(state), ...) is None:
                    del state.dict[_version_of(state)]
                    state.committed_state.pop(_version_of(state), None)
        level.removed.extend(weakref.ref(entity) for entity in session.deleted)
        if changes := self.pending():
            level.wrote = True
            self.watcher.flushed(changes)

    def flushing(self) -> None:
        """Remember what the flush itself changed, such as a reference that it cleared."""
        level = self.levels[-1]
        if level.handle is not None:
            for entity in self.session.dirty:
                level.note_unsure(entity)

    def rolling_back(self) -> None:
        """Remember what was changed and never written, before SQLAlchemy forgets it."""
        level = self.levels[-1]
        if level.handle is not None:
            level.note_outer(self.session.dirty)
            level.note_outer(self.session.deleted)
        else:  # a flush failed at the root, and the session ended the transaction; what is loaded stays readable
            self.met_error = True
            gone = (reference() for level in self.levels for reference in level.removed)
            for entity in (*self.session.identity_map.values(), *gone):
                if entity is not None:
                    self.loaded_values.append((entity, dict(inspect(entity).dict)))
            self.plain.expunge_all()

    def keep_readable(self) -> None:
        """Put back what SQLAlchemy expired after a failed flush: what had been removed, or had got another key."""
        for entity, values in self.loaded_values:
            for name in values.keys() - inspect(entity).dict.keys():
                set_committed_value(entity, name, values[name])
        self.loaded_values.clear()


def _version_of(state: InstanceState[Any]) -> str:
    column = state.mapper.version_id_col
    assert column is not None
    return state.mapper.get_property_by_column(column).key


def _wrote_rows(result: object) -> bool:
    return isinstance(result, CursorResult) and not result.returns_rows and result.rowcount > 0
