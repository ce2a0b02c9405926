"""
The primitives of a unit, on a SQLAlchemy session.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import CursorResult, Engine, inspect
from sqlalchemy.orm import InstanceState, make_transient, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.util.concurrency import in_greenlet

from uow import Changes, Claim, Options, Outcome, Watcher
from uow.errors import (
    AfterCommitFailed,
    ConfigurationError,
    DatabaseError,
    OutsideUnitOfWork,
    SerializationFailure,
    UniqueViolation,
)

from ._backend import Backend, Branch
from ._connection import UnitConnection
from ._gateway import SqlAlchemyGateway
from ._journal import Added, Level, make_new
from ._outcomes import answered, ledger_of, table_demanded, time_at
from ._session import UnitSession

__all__ = ["SqlAlchemyTransaction"]

E = TypeVar("E")
_NOTHING = Changes()


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
        self.session.take(self)
        self.plain: Any = super(UnitSession, self.session)
        self.checked_out: UnitConnection | None = None
        self.levels = [Level()]
        self.exposed = False
        self.met_error = False
        self.doom: DatabaseError | None = None
        self.versions: dict[InstanceState[Any], Any] = {}
        self.loaded_values: list[tuple[Any, dict[str, Any]]] = []
        self.durable = False
        self.marked: str | None = None
        self.branch: Branch | None = None
        self.decides = self.prepared = self.unsure = False
        self.deadline = 0.0

    def watch(self, watcher: Watcher, /) -> None:
        """Remember whom to tell."""
        self.watcher = self.session.watcher = watcher

    def connect(self) -> UnitConnection:
        """Return the connection; check one out and begin if there is none yet."""
        if self.durable:
            raise OutsideUnitOfWork(
                "send a statement",
                "a listener of the session",
                "the transaction was committed",
                "Do it in another unit, from an after_commit hook of this one.",
            )
        if not self.levels[-1].sent:
            self.open_levels()
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
            self.checked_out = self._connect()
        return self.checked_out

    def _connect(self) -> UnitConnection:
        connection = self.backend.connect(self.engine, self, self.options)
        if self.branch is not None and not self.decides:
            try:
                self.backend.join(connection, self.branch)
            except BaseException as error:
                if not isinstance(error, ConfigurationError):  # which comes before anything was sent
                    connection.invalidate()
                self.backend.release(connection)
                raise
        return connection

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

    @property
    def at_rest(self) -> bool:
        """Whether nothing is pending, and nobody passes by the session."""
        return self.session.is_clean and not self.exposed

    def savepoint_name(self, depth: int, /) -> str | None:
        """Return the name of the savepoint at that depth, None before it was sent."""
        return f"uow_{depth}" if self.levels[depth].sent else None

    def flush(self) -> None:
        """Write what is pending."""
        self.session.write()

    def pending(self) -> Changes:
        """Count what is not written yet."""
        session = self.session
        if session.is_clean:
            return _NOTHING
        changed = sum(session.is_modified(entity) for entity in session.dirty)
        return Changes(len(session.new), changed, len(session.deleted))

    def savepoint(self) -> None:
        """Begin a nested scope. SQLAlchemy hears of it with its first work: an empty one costs nothing."""
        self.session.write()
        self.levels.append(Level(nested=True))
        if self.exposed:  # statements on that connection pass by the session, which would send SAVEPOINT with its own
            self.plain.connection()
            self._taint()

    def open_levels(self) -> None:
        """Let SQLAlchemy begin the savepoints that were put off; it sends SAVEPOINT with the next statement."""
        first = len(self.levels)
        while first > 1 and self.levels[first - 1].handle is None:
            first -= 1
        for level in self.levels[first:]:
            level.handle = self.session.begin_savepoint()

    def release(self) -> None:
        """Release the savepoint, once the database still has the transaction."""
        self.session.write()
        level = self.levels[-1]
        if level.sent:
            self._confirm_open()
        if level.handle is not None:
            try:
                level.handle.commit()
            except BaseException:
                level.unsettled = level.sent
                raise
        self.levels.pop().merge_into(self.levels[-1])

    def rollback_to_savepoint(self) -> None:
        """Roll back to the savepoint and put the outer values back."""
        level = self.levels[-1]
        session = self.session
        if level.handle is None and (session.new or session.dirty or session.deleted):
            self.open_levels()
        try:
            if level.handle is not None:
                session.roll_back_to(level.handle)
        finally:
            self.levels.pop()
        if level.unsettled:
            raise DatabaseError("RELEASE SAVEPOINT failed half-way, so the scope cannot be undone alone")
        level.restore(self.session, self.plain)

    def confirm(self) -> None:
        """Write what is pending and ask whether the database still has the transaction."""
        self.session.write()
        self._confirm_open()

    def claim(self, key: str, token: str, /) -> Claim | None:
        """Insert a row with the key; one that is there by now is another unit's."""
        connection = self.plain.connection()
        self.levels[-1].wrote = True
        return ledger_of(connection).claim(connection, key, token)

    def mark(self, outcome: Outcome, token: str, /) -> str:
        """Insert a row with the token, or remember the transaction's number."""
        connection = self.connect()
        self.marked = token if outcome == "row" else None
        return ledger_of(connection).mark(connection, outcome, token)

    def commit(self) -> None:
        """Commit; what the session's own listeners raise after the database confirmed is no failure of it."""
        try:
            if not self.prepared:
                self._tell_before_commit()
            self._commit()
        except Exception as error:
            if self.durable:
                raise AfterCommitFailed("A listener of the session failed", [error]) from error
            raise

    # ------------------------------------------------------------------------- as a branch of a distributed transaction

    def enlist(self, id: str, name: str, /, *, decides: bool) -> None:
        """Remember what the connection is to be told before its first statement."""
        self.branch, self.decides = Branch(id, name), decides

    def may_have_written(self) -> bool:
        """Tell whether anything was written, or statements of unknown effect were sent; else ask."""
        if self.unsure or any(level.wrote for level in self.levels):
            return True
        return self.checked_out is not None and self.backend.may_have_written(self.checked_out)

    def give_time(self, seconds: float, /) -> None:
        """Begin, and look at the database's clock."""
        self.deadline = time_at(self.connect()) + seconds

    def prepare(self) -> None:
        """Write the witness row and prepare; what listens to the session's commit is told before."""
        assert self.branch is not None
        self._tell_before_commit()
        connection = self.connect()
        witness = ledger_of(connection).witness(self.branch.id)
        try:
            with table_demanded():
                self.backend.prepare_branch(connection, self.branch, witness)
        except BaseException:
            self.met_error = True
            raise
        self.prepared = True

    def decide(self, branches: Sequence[str], /) -> None:
        """Write the outcome row, unless it is too late."""
        assert self.branch is not None
        connection = self.connect()
        try:
            in_time = ledger_of(connection).decide(connection, self.branch.id, branches, self.deadline)
        except UniqueViolation as error:
            raise SerializationFailure("recovery found it prepared for long, and has aborted it") from error
        if not in_time:
            raise SerializationFailure("it took so long to prepare that recovery may have aborted it")

    def _tell_before_commit(self) -> None:
        self.session.dispatch.before_commit(self.session)
        self.session.write()

    def _commit(self) -> None:
        """Do what the session's own commit() does; most of that one is for sessions that go on."""
        if self.prepared:
            assert self.checked_out is not None
            self._end_branch(commit=True)
            self.durable = True
            self.checked_out.announce_commit()
            self.checked_out.end_committed()
        elif self.checked_out is not None and (transaction := self.checked_out.get_transaction()) is not None:
            self.backend.commit(self.checked_out, transaction)
        self.durable = True
        for reference in (reference for level in self.levels for reference in level.removed):
            if (entity := reference()) is not None and inspect(entity).deleted:  # not yet, with what it was part of
                self.plain.expunge(entity)
        self.session.dispatch.after_commit(self.session)

    def _end_branch(self, *, commit: bool) -> None:
        assert self.checked_out is not None
        assert self.branch is not None
        self.prepared = False
        self.backend.end_branch(self.checked_out, self.branch, commit=commit)

    def abandon(self) -> None:
        """Throw the connection away; its place in the pool is free for one that asks what became of COMMIT."""
        self.met_error = True
        assert self.checked_out is not None
        self.checked_out.invalidate()

    def rollback(self) -> None:
        """Roll back at the root; what was added is new again, everything else stays as it is in memory."""
        added: Added = {}
        for level in reversed(self.levels):  # the outermost has the last word
            added |= level.added
        if added or any(level.removed for level in self.levels):
            self.plain.expunge_all()
        try:
            # After an error the database may have ended the transaction by right.
            if not (self.met_error or self.prepared or self.durable):
                self._confirm_open()
        finally:
            self._roll_back(added)

    def _roll_back(self, added: Added) -> None:
        try:
            if self.prepared:
                self._end_branch(commit=False)
            transaction = None if self.checked_out is None else self.checked_out.get_transaction()
            if transaction is not None and self.checked_out is not None:
                self.checked_out.forget()
                transaction.rollback()
                self.checked_out.note_end(transaction)
        finally:
            for state in added:
                if (entity := state.obj()) is not None:
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
            self.levels.clear()
            del self.session, self.plain, self.watcher  # in a circle, they would wait for the garbage collector
        if self.durable and self.marked is not None:
            answered(self.engine, self.marked)

    # ----------------------------------------------------------------------------------------- what the session reports

    def failed(self, error: DatabaseError) -> None:
        """Tell the unit of an error that a statement met."""
        self.met_error = True
        if error.dooms and self.doom is None:
            self.doom = error
        self.watcher.failed(error)

    def past_the_orm(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do what SQLAlchemy does not track: remember everything loaded first, in case it is rolled back."""
        self.open_levels()  # before SQLAlchemy begins something of its own, around which it would be too late
        self._taint()
        self.unsure = True
        result: Any = call(*args, **kwargs)
        if isinstance(result, UnitConnection):
            self.exposed = True
            result.expose()
        if _wrote_rows(result) or any(getattr(arg, "is_dml", False) for arg in args):
            self.levels[-1].wrote = True
            self.watcher.flushed(Changes(statements=1))
        return result

    def _taint(self) -> None:
        level = self.levels[-1]
        if level.nested and not level.tainted:
            level.tainted = True
            level.note_outer(self.session.identity_map.values())

    def loaded(self, entity: object) -> None:
        """Take note of an entity that came from the database."""
        for level in self.levels:
            if level.tainted:
                level.note_unsure(entity)
        self.watcher.loaded(entity)

    def took_in(self, state: InstanceState[Any]) -> None:
        """Take note of an entity that was added."""
        entity = state.obj()
        self.levels[-1].note_added(state, entity)
        self.watcher.added(entity)

    def about_to_flush(self) -> None:
        """Remember the outer values of what is about to be written, and count it."""
        self.open_levels()
        level, session = self.levels[-1], self.session
        dirty, deleted = session.dirty, session.deleted
        if level.nested:
            level.note_outer(dirty)
            level.note_outer(deleted)
        for state in map(inspect, dirty):
            if state.mapper.version_id_col is not None:
                self.versions.setdefault(state, state.dict.get(_version_of(state)))
        if deleted:  # a new entity may take the row of a removed one, in an UPDATE that counts on
            _demand_one_heir(session.new, deleted)
            for state in map(inspect, session.new):
                if state.mapper.version_id_col is not None and state.dict.get(_version_of(state), ...) is None:
                    del state.dict[_version_of(state)]
                    state.committed_state.pop(_version_of(state), None)
        level.removed.extend(weakref.ref(entity) for entity in deleted)
        changed = sum(session.is_modified(entity) for entity in dirty)
        if changes := Changes(len(session.new), changed, len(deleted)):
            level.wrote = True
            self.watcher.flushed(changes)

    def about_to_write(self, changes: Changes, changed: Iterable[object]) -> None:
        """Remember the outer values of what was *changed*, and count what is about to be written past a flush."""
        self.open_levels()
        level = self.levels[-1]
        if level.nested:
            level.note_outer(changed)
        level.wrote = True
        self.watcher.flushed(changes)

    def flushing(self) -> None:
        """Remember what the flush itself changed, such as a reference that it cleared."""
        level = self.levels[-1]
        if level.nested:
            for entity in self.session.dirty:
                level.note_unsure(entity)

    def touched(self) -> Iterable[InstanceState[Any]] | None:
        """Return what a rollback of the innermost savepoint may have to undo; None at the root: everything."""
        level = self.levels[-1]
        return map(inspect, [*level.touched(), *self.session.dirty]) if level.nested else None

    def rolling_back(self) -> None:
        """Remember what was changed and never written, before SQLAlchemy forgets it."""
        level = self.levels[-1]
        if level.nested:
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


def _demand_one_heir(new: Iterable[Any], deleted: Iterable[Any]) -> None:
    """Raise as a database does for a second INSERT: SQLAlchemy gives the row of a removed entity to each new one."""
    free, taken = {inspect(entity).key for entity in deleted}, set[Any]()
    for entity in new:
        mapper = inspect(entity).mapper
        key = mapper.identity_key_from_instance(entity)
        if key in taken:
            columns = tuple(column.name for column in mapper.primary_key)
            detail = f"several new entities have the key {key[1]}"
            raise UniqueViolation(detail, table=mapper.local_table.name, columns=columns)
        if key in free:
            taken.add(key)


def _version_of(state: InstanceState[Any]) -> str:
    column = state.mapper.version_id_col
    assert column is not None
    return state.mapper.get_property_by_column(column).key


def _wrote_rows(result: object) -> bool:
    return isinstance(result, CursorResult) and not result.returns_rows and result.rowcount > 0
