"""
The primitives of a repository, on a SQLAlchemy session.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, TypeVar

from attrs import frozen
from sqlalchemy import ColumnElement, Select, bindparam, func, inspect, literal, select, tuple_
from sqlalchemy.orm import Mapper, Session, make_transient
from sqlalchemy.orm.attributes import instance_state

from uow import Conflict
from uow.domain import Expression, Lock, Query, Repository
from uow.errors import ConfigurationError, UnmappedEntity

from ._criteria import compile_criterion, compile_order
from ._loading import reader_of
from ._mappings import kept
from ._session import UnitSession

__all__ = ["SqlAlchemyGateway", "SqlAlchemyRepository"]

E = TypeVar("E")
R = TypeVar("R")


@frozen
class _Known:
    """
    What every unit asks of a mapping.

    Args:
        mapper: The mapping.

        attributes: The names of those that are stored.

        key: The names of those that are the key.

        by_key: The query for one entity; always the same object, which SQLAlchemy has compiled then.

        alone: Whether no relationship leads to others, which are added with an entity.
    """

    mapper: Mapper[Any]
    attributes: Collection[str]
    key: tuple[str, ...]
    by_key: Select[Any]
    alone: bool


class SqlAlchemyGateway(Generic[E]):
    """
    What a repository of *entity* needs from a session.

    Args:
        entity: The mapped class.

        session: The unit's session.

        plain: The same session without the unit's rules, which were kept already.

        dialect: The name of the dialect.
    """

    def __init__(self, entity: type[E], session: UnitSession, plain: Any, dialect: str) -> None:
        self.entity = entity
        self._known = _described(entity)
        self.attributes, self.key = self._known.attributes, self._known.key
        self.session = session
        self._plain = plain
        self._take = plain.add
        self._take_alone = plain._save_or_update_impl
        self._alone = self._known.alone and getattr(plain.add, "__func__", None) is Session.add
        self._dialect = dialect

    def add(self, entities: Sequence[E], /) -> None:
        """Take new entities into the session; one that was removed before is new again."""
        for entity in entities:
            state: Any = instance_state(entity)
            if state.key is not None and (state.was_deleted or state.deleted):
                make_transient(entity)
            if self._alone and state.mapper is self._known.mapper:
                state._orphaned_outside_of_session = False
                self._take_alone(state)  # what add() does, but for a walk over relationships
            else:
                self._take(entity)  # add_all() would call the session's own add(), with its rules

    def conflict(self, entity: E, /) -> Conflict | None:
        """Tell whether this session holds another object under its identity, or another session holds *entity*."""
        state = instance_state(entity)
        if state.key is not None and not (state.deleted or state.was_deleted):
            held = self.session.identity_map.get(state.key)
            if held is not None and held is not entity:
                return "twin"
        session = state.session
        if session is None or session is self.session:
            return None
        gone = state.deleted and not session.in_transaction()  # what was removed stays in a session that has ended
        return None if gone else "elsewhere"

    def remove(self, entity: E, /) -> bool:
        """Remove *entity*; forget it if it was not written yet."""
        state = inspect(entity)
        if state.pending:
            self.session.expunge(entity)
        elif state.key is None or state.deleted or state.was_deleted:
            return False
        else:
            self._plain.delete(entity)
        return True

    def get(self, key: tuple[object, ...], lock: Lock | None, /) -> E | None:
        """Return the entity with that key, or None."""
        found: E | None
        if lock is None and self._known.mapper.identity_key_from_primary_key(key) not in self.session.identity_map:
            found = self._read(self._one, dict(zip(self.key, key, strict=True)))
        else:
            found = self._read(
                self._plain.get, self.entity, key, with_for_update=_for_update(lock), populate_existing=lock is not None
            )
        return found

    def _one(self, key: dict[str, object]) -> E | None:
        """Do what the session's own get() does for an entity that it does not hold; that one makes the query anew."""
        reader = reader_of(self._known.mapper, self.session)
        entities: list[E] | None = None if reader is None else reader.read(self.session, self._plain, key)
        if entities is not None:
            return entities[0] if entities else None
        found: E | None = self._plain.scalars(self._known.by_key, key).unique().one_or_none()
        return found

    def select(self, query: Query, /) -> Sequence[E]:
        """Return the entities that *query* describes."""
        statement = self._where(select(self.entity), query.where)
        statement = statement.order_by(*compile_order(query.order, self.entity, self._dialect))
        if query.limit is not None:
            statement = statement.limit(query.limit)
        if query.offset:
            if query.limit is None and self._dialect != "postgresql":
                statement = statement.limit(2**62)
            statement = statement.offset(query.offset)
        if query.lock is not None:
            statement = statement.with_for_update(**_for_update(query.lock)).execution_options(populate_existing=True)
        return self._all(statement)

    def pages(self, where: Expression | None, size: int, after: E | None, /) -> Sequence[E]:
        """Return a page of entities in key order."""
        columns = [getattr(self.entity, name) for name in self.key]
        statement = self._where(select(self.entity), where)
        if after is not None:
            values = [getattr(after, name) for name in self.key]
            behind = columns[0] > values[0] if len(columns) == 1 else tuple_(*columns) > tuple_(*values)
            statement = statement.where(behind)
        return self._all(statement.order_by(*columns).limit(size))

    def count(self, where: Expression | None, /) -> int:
        """Count the entities that match."""
        number: int = self._read(self._plain.scalar, self._where(select(func.count()).select_from(self.entity), where))
        return number

    def exists(self, where: Expression | None, /) -> bool:
        """Tell whether any entity matches."""
        statement = self._where(select(literal(1)).select_from(self.entity), where).limit(1)
        return self._read(self._plain.scalar, statement) is not None

    def _where(self, statement: Select[Any], where: Expression | None) -> Select[Any]:
        if where is None:
            return statement
        criterion: ColumnElement[bool] = compile_criterion(where, self.entity, self._dialect)
        return statement.where(criterion)

    def _all(self, statement: Select[Any]) -> Sequence[E]:
        found: Sequence[E] = self._read(self._all_of, statement)
        return found

    def _all_of(self, statement: Select[Any]) -> Any:
        return self._plain.scalars(statement).unique().all()

    def _read(self, call: Callable[..., R], /, *args: Any, **kwargs: Any) -> R:
        """Read under the rules that the unit has kept, and after what it has flushed."""
        before, self.session.rules_kept = self.session.rules_kept, True
        try:
            return call(*args, **kwargs)
        finally:
            self.session.rules_kept = before


def _described(entity: type[Any]) -> _Known:
    """
    Look at the mapping of *entity*.

    Raises:
        UnmappedEntity: It has no mapping, or one that does not count its version.
    """
    mapper: Mapper[Any] | None = inspect(entity, raiseerr=False)
    if mapper is None:
        raise UnmappedEntity(
            entity,
            "SQLAlchemy has no mapping for it",
            "Map it with registry.map_imperatively(), or declare it on a DeclarativeBase, before the unit is used.",
        )
    return kept(mapper, _examined)


def _examined(mapper: Mapper[Any]) -> _Known:
    entity: type[Any] = mapper.class_
    version = getattr(entity, "__uow_version__", None)
    column = mapper.version_id_col
    counted = None if column is None else mapper.get_property_by_column(column).key
    if version is not None and counted != version:
        raise UnmappedEntity(
            entity,
            f"its version {version!r} is not counted by its mapping",
            f"Map it with version_id_col=table.c.{version}.",
        )
    key = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
    by_key = select(entity).where(*(getattr(entity, name) == bindparam(name) for name in key))
    return _Known(mapper, mapper.column_attrs.keys(), key, by_key, not mapper.relationships)


def _for_update(lock: Lock | None) -> Any:
    if lock is None:
        return None
    return {"read": lock.shared, "nowait": lock.nowait, "skip_locked": lock.skip_locked}


class SqlAlchemyRepository(Repository[E]):
    """
    Base of an adapter's own repository, for queries that a specification cannot say.

    .. code-block:: python

        class SqlAccounts(SqlAlchemyRepository[Account], Accounts):
            def richest(self) -> Account | None:
                return self.session.scalars(select(Account).order_by(Account.balance.desc())).first()
    """

    @property
    def session(self) -> Session:
        """
        The unit's session, under the unit's rules.

        Raises:
            ConfigurationError: The unit is not one of SQLAlchemy's.
        """
        native = getattr(self._gateway, "native", None)
        if not isinstance(native, SqlAlchemyGateway):
            raise ConfigurationError(
                f"{type(self).__name__} speaks SQL, and its unit is not on SQLAlchemy",
                "Annotate the fake's repository with the port's own class.",
            )
        return native.session
