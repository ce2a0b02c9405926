"""
The session of a unit: SQLAlchemy's own, with the unit's rules in front of it.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn, cast

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from uow.errors import DatabaseError, TransactionOwned, UnitOfWorkError

from ._errors import translate_orm

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

    def get_bind(self, *args: Any, **kwargs: Any) -> Connection:
        """Return the unit's connection; its transaction begins now if it has not yet."""
        return cast("Connection", self.unit.connect())

    def flush(self, objects: Any = None) -> None:
        """Write what is pending, and translate what stands in the way."""
        self.unit.watcher.run("session.flush()", self._flush_translated, objects)

    def _flush_translated(self, objects: Any) -> None:
        try:
            super().flush(objects)
        except UnitOfWorkError as error:
            # The savepoint may have gone with the transaction, and what SQLAlchemy meets when it cleans up hides why.
            raise (self.unit.doom or error) from error.__cause__
        except StaleDataError as error:
            raise translate_orm(error) from error
        except SQLAlchemyError as error:
            raise DatabaseError(str(error)) from error
        except BaseException as error:
            if not self.is_active:  # a value that cannot be bound, say: the session has rolled back already
                self.unit.watcher.failed(DatabaseError(f"The flush failed: {error!r}"))
            raise
        finally:
            self.unit.keep_readable()


def _guarded(name: str) -> Callable[..., Any]:
    original = getattr(Session, name)
    operation = f"session.{name}()"
    raw = name in _PAST_THE_ORM

    @functools.wraps(original)
    def guard(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        call = getattr(super(UnitSession, self), name)
        statement = args[0] if args else kwargs.get("statement")
        if raw or (name in ("execute", "scalar", "scalars") and not getattr(statement, "is_select", False)):
            return self.unit.watcher.run(operation, self.unit.past_the_orm, call, *args, **kwargs)
        return self.unit.watcher.run(operation, call, *args, **kwargs)

    return guard


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


@event.listens_for(UnitSession, "transient_to_pending")
def _pending(session: UnitSession, entity: object) -> None:
    session.unit.took_in(entity)


@event.listens_for(UnitSession, "before_flush")
def _before_flush(session: UnitSession, context: object, objects: object) -> None:
    session.unit.about_to_flush()


@event.listens_for(UnitSession, "after_flush")
def _after_flush(session: UnitSession, context: object) -> None:
    session.unit.flushing()


@event.listens_for(UnitSession, "after_commit")
def _after_commit(session: UnitSession) -> None:
    """Come before the listeners of users, who may raise; SQLAlchemy calls it for a savepoint too."""
    session.unit.durable = not session.in_nested_transaction()


@event.listens_for(UnitSession, "after_rollback")
def _after_rollback(session: UnitSession) -> None:
    session.unit.rolling_back()
