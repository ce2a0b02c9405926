"""
The primitives of a repository, on a SQLAlchemy session.
"""

from collections.abc import Collection, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, func, inspect, literal, select, tuple_
from sqlalchemy.orm import Mapper, Session, make_transient

from uow.domain import Expression, Lock, Query, Repository
from uow.errors import ConfigurationError, UnmappedEntity

from ._criteria import compile_criterion, compile_order

__all__ = ["SqlAlchemyGateway", "SqlAlchemyRepository"]

E = TypeVar("E")


class SqlAlchemyGateway(Generic[E]):
    """
    What a repository of *entity* needs from a session.

    Args:
        entity: The mapped class.

        session: The unit's session.

        plain: The same session without the unit's rules, which were kept already.

        dialect: The name of the dialect.
    """

    def __init__(self, entity: type[E], session: Session, plain: Any, dialect: str) -> None:
        mapper: Mapper[E] | None = inspect(entity, raiseerr=False)
        if mapper is None:
            raise UnmappedEntity(
                entity,
                "SQLAlchemy has no mapping for it",
                "Map it with registry.map_imperatively(), or declare it on a DeclarativeBase, before the unit is used.",
            )
        version = getattr(entity, "__uow_version__", None)
        column = mapper.version_id_col
        counted = None if column is None else mapper.get_property_by_column(column).key
        if version is not None and counted != version:
            raise UnmappedEntity(
                entity,
                f"its version {version!r} is not counted by its mapping",
                f"Map it with version_id_col=table.c.{version}.",
            )
        self.entity = entity
        self.attributes: Collection[str] = mapper.column_attrs.keys()
        self.key = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        self.session = session
        self._plain = plain
        self._dialect = dialect

    def add(self, entities: Sequence[E], /) -> None:
        """Take new entities into the session; one that was removed before is new again."""
        for entity in entities:
            if inspect(entity).was_deleted or inspect(entity).deleted:
                make_transient(entity)
        self._plain.add_all(entities)

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
        found: E | None = self._plain.get(
            self.entity, key, with_for_update=_for_update(lock), populate_existing=lock is not None
        )
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
        number: int = self._plain.scalar(self._where(select(func.count()).select_from(self.entity), where))
        return number

    def exists(self, where: Expression | None, /) -> bool:
        """Tell whether any entity matches."""
        statement = self._where(select(literal(1)).select_from(self.entity), where).limit(1)
        return self._plain.scalar(statement) is not None

    def _where(self, statement: Select[Any], where: Expression | None) -> Select[Any]:
        if where is None:
            return statement
        criterion: ColumnElement[bool] = compile_criterion(where, self.entity, self._dialect)
        return statement.where(criterion)

    def _all(self, statement: Select[Any]) -> Sequence[E]:
        found: Sequence[E] = self._plain.scalars(statement).unique().all()
        return found


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
