"""
The session of a unit: SQLAlchemy's own, with the unit's rules in front of it.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, cast

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstanceState, Session, SessionTransaction
from sqlalchemy.orm.exc import StaleDataError

from uow import Watcher
from uow.errors import DatabaseError, TransactionOwned, UnitOfWorkError

from ._errors import translate_orm
from ._shortcuts import Shortcut, shortcut_of

__all__ = ["UnitSession", "session_class"]

_READS = ("get", "get_one", "query", "refresh", "scalar", "scalars", "execute")
_WRITES = ("add", "add_all", "delete", "merge")
_PAST_THE_ORM = (
    "bulk_insert_mappings",
    "bulk_save_objects",
    "bulk_update_mappings",
    "connection",
)
_OWNED = {
    "begin": "enter the unit with `with uow:`",
    "begin_nested": "use `with uow.nested():`",
    "close": "leave the unit's block",
    "commit": "call uow.commit()",
    "invalidate": "let the error leave the unit's block",
    "prepare": "call uow.commit()",
    "reset": "leave the unit's block",
    "rollback": "call uow.rollback()",
}


class UnitSession(Session):
    """
    The session inside a unit's scope.

    It does what a `Session` does, but the unit owns its transaction: what would begin or end it raises
    `uow.errors.TransactionOwned`, and everything else follows the rules of the scope it is used in.
    """

    unit: Any
    """The `SqlAlchemyTransaction` that this session belongs to."""
    watcher: Watcher
    """The unit's rules."""
    rules_kept = False
    """Whether the unit's own operation is at work, which kept the rules: what it calls need not keep them again."""
    _beginning = False

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to write."""
        return not (self._new or self._deleted or self.identity_map.check_modified())

    def take(self, unit: Any) -> None:
        """Belong to *unit*."""
        self.unit = unit
        self.identity_map.__class__ = _IdentityMap  # made by SQLAlchemy, and empty yet

    def get_bind(self, *args: Any, **kwargs: Any) -> Connection:
        """Return the unit's connection; its transaction begins now if it has not yet."""
        return cast("Connection", self.unit.connect())

    def flush(self, objects: Any = None) -> None:
        """Write what is pending, and translate what stands in the way."""
        if self.rules_kept:
            self.write(objects)
        elif not self._beginning:  # begin(nested=True) flushes, and what is pending belongs inside
            self.watcher.run("session.flush()", self.write, objects)

    def begin_savepoint(self) -> SessionTransaction:
        """Begin a savepoint around what is pending."""
        self._beginning = True
        try:
            return super().begin(nested=True)
        finally:
            self._beginning = False

    def roll_back_to(self, savepoint: SessionTransaction) -> None:
        """Roll back to *savepoint*."""
        identity_map = cast("_IdentityMap", self.identity_map)
        identity_map.shown = self.unit.touched
        try:
            savepoint.rollback()
        finally:
            identity_map.shown = None

    def write(self, objects: Any = None) -> None:
        """Flush, for those who kept the rules already."""
        if self.is_clean:
            return
        identity_map = cast("_IdentityMap", self.identity_map)
        identity_map.shown = self.unit.touched
        try:
            shortcut = None if objects or self._flushing else shortcut_of(self)
            if shortcut is None:
                super().flush(objects)
            else:
                self._take(shortcut)
        except UnitOfWorkError as error:
            # The savepoint may have gone with the transaction, and what SQLAlchemy meets when it cleans up hides why.
            raise (self.unit.doom or error) from error.__cause__
        except StaleDataError as error:
            raise translate_orm(error) from error
        except SQLAlchemyError as error:
            raise DatabaseError(str(error)) from error
        except BaseException as error:
            if not self.is_active:  # a value that cannot be bound, say: the session has rolled back already
                self.watcher.failed(DatabaseError(f"The flush failed: {error!r}"))
            raise
        finally:
            identity_map.shown = None
            if self.unit.loaded_values:
                self.unit.keep_readable()

    def _take(self, shortcut: Shortcut) -> None:
        """Do what a flush would, with less."""
        self.unit.about_to_write(shortcut.changes, shortcut.changed)
        self._flushing = True
        try:
            shortcut.write(self, super().connection())
        finally:
            self._flushing = False


class _IdentityMap(type(Session().identity_map)):  # type: ignore[misc]
    """
    Shows, while a savepoint is rolled back, only what may have to be undone: SQLAlchemy looks at all that is loaded.
    """

    shown: Callable[[], Iterable[InstanceState[Any]] | None] | None = None

    def all_states(self) -> list[InstanceState[Any]]:
        """Return what is loaded, or what is of it to be shown."""
        few = None if self.shown is None else self.shown()
        return super().all_states() if few is None else [state for state in few if self.contains_state(state)]


def _guarded(name: str) -> Callable[..., Any]:
    original = getattr(Session, name)
    operation = f"session.{name}()"
    raw = name in _PAST_THE_ORM

    @functools.wraps(original)
    def guard(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        call = getattr(super(UnitSession, self), name)
        run = _directly if self.rules_kept else self.watcher.run
        statement = args[0] if args else kwargs.get("statement")
        if raw or (name in ("execute", "scalar", "scalars") and not getattr(statement, "is_select", False)):
            return run(operation, self.unit.past_the_orm, call, *args, **kwargs)
        return run(operation, call, *args, **kwargs)

    return guard


def _directly(operation: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return call(*args, **kwargs)


def _forbidden(name: str, instead: str) -> Callable[..., NoReturn]:
    @functools.wraps(getattr(Session, name))
    def refuse(self: UnitSession, *args: Any, **kwargs: Any) -> NoReturn:
        raise TransactionOwned(f"call session.{name}()", "the unit", "the unit owns the transaction", f"{instead}.")

    return refuse


for _name in (*_READS, *_WRITES, *_PAST_THE_ORM):
    setattr(UnitSession, _name, _guarded(_name))
for _name, _instead in _OWNED.items():
    setattr(UnitSession, _name, _forbidden(_name, _instead[0].upper() + _instead[1:]))


def session_class(base: type[Session]) -> type[UnitSession]:
    """
    Return a unit's session class that is also a *base*, the class of a user's ``sessionmaker``.
    """
    if issubclass(UnitSession, base):
        return UnitSession
    made: type[UnitSession] | None = vars(base).get("_uow_session_class")
    if made is None:
        made = type(base.__name__, (UnitSession, base), {})
        base._uow_session_class = made  # type: ignore[attr-defined]  # kept there, it goes with its base
    return made


@event.listens_for(UnitSession, "loaded_as_persistent")
@event.listens_for(UnitSession, "detached_to_persistent")
def _loaded(session: UnitSession, entity: object) -> None:
    session.unit.loaded(entity)


@event.listens_for(UnitSession, "transient_to_pending", raw=True)  # for each entity: SQLAlchemy would wrap it
def _pending(session: UnitSession, state: InstanceState[Any]) -> None:
    session.unit.took_in(state)


@event.listens_for(UnitSession, "before_flush")
def _before_flush(session: UnitSession, context: object, objects: object) -> None:
    session.unit.about_to_flush()


@event.listens_for(UnitSession, "after_flush")
def _after_flush(session: UnitSession, context: object) -> None:
    session.unit.flushing()


@event.listens_for(UnitSession, "after_rollback")
def _after_rollback(session: UnitSession) -> None:
    session.unit.rolling_back()
