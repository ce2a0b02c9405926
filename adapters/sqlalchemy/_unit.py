"""
The unit of work on SQLAlchemy.
"""

from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine
from sqlalchemy.orm import Session, sessionmaker

from uow import Options, Outcomes, Resource, UnitOfWork
from uow.errors import ConfigurationError

from ._backends import backend_of
from ._outcomes import SqlOutcomes
from ._resource import SqlResource
from ._session import UnitSession, session_class
from ._transaction import SqlAlchemyTransaction

__all__ = ["SqlAlchemyUnitOfWork"]

_IN_MEMORY = (None, "", ":memory:")
_OURS = frozenset({"bind", "binds", "expire_on_commit", "join_transaction_mode", "twophase", "autobegin"})


class SqlAlchemyUnitOfWork(UnitOfWork):
    """
    A unit of work on a database: ``class SqlBank(SqlAlchemyUnitOfWork, Bank): ...``.

    Args:
        bind: An engine, or a ``sessionmaker`` whose session class, options and events the unit's session then has.
            The unit itself sees to the transaction: entities are not expired when it ends.

        replica: Where read-only units go instead: the engine of a replica of the same database.

        resource: What distributed transactions call the database: 1 to 12 letters, digits, ``-`` and ``_``, always the
            same. By default the database's own name; SQLite's is that of the file.

        options: What every unit takes: see `UnitOfWork`.

    Raises:
        ConfigurationError: An engine is none or in AUTOCOMMIT, or the ``sessionmaker`` is not for one engine, or the
            database cannot do what the options ask for.
    """

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        *,
        replica: Engine | None = None,
        resource: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        engine, base, arguments = _take_apart(bind)
        self._primary = engine
        self._replica = replica
        self._resource_name = resource
        if replica is not None:
            check_replica(replica, Engine, "create_engine")
            backend_of(replica)
        self._session_class: type[UnitSession] = session_class(base)
        self._session_arguments = arguments
        self._demand_possible()

    def _check(self, options: Options) -> None:
        """Raise what the engine of such a unit cannot do."""
        backend_of(self._engine_for(options)).check(options)

    def _engine_for(self, options: Options) -> Engine:
        return self._replica if options.read_only and self._replica is not None else self._primary

    @property
    def session(self) -> Session:
        """
        The session, for SQL that repositories do not say; the unit's rules hold for it.

        Raises:
            uow.errors.OutsideUnitOfWork: No scope is open.
        """
        transaction = self._usable("use the session").transaction
        assert isinstance(transaction, SqlAlchemyTransaction)
        return transaction.session

    def _begin(self) -> SqlAlchemyTransaction:
        options = self._settings.options
        engine = self._engine_for(options)
        return SqlAlchemyTransaction(engine, backend_of(engine), self._make_session, options)

    def _database(self) -> object:
        return self._primary

    def _outcomes(self) -> Outcomes:
        return SqlOutcomes(self._primary)

    def _resource(self) -> Resource:
        name = _database_name(self._primary.url) if self._resource_name is None else self._resource_name
        return SqlResource(self._primary, name)

    def _place(self) -> object:
        engine, url = self._primary, self._primary.url
        if engine.dialect.name != "sqlite":
            return engine.dialect.name, url.host, url.port, dict(url.query).get("host"), url.database
        return engine if url.database in _IN_MEMORY else Path(str(url.database)).resolve()

    def _make_session(self) -> UnitSession:
        return self._session_class(
            expire_on_commit=False, join_transaction_mode="control_fully", **self._session_arguments
        )


def _database_name(url: URL) -> str:
    if url.database in _IN_MEMORY:
        return "memory"
    return Path(url.database).stem if url.get_backend_name() == "sqlite" else str(url.database)


def check_replica(replica: object, kind: type, function: str) -> None:
    """Raise unless *replica* is an engine of that kind."""
    if not isinstance(replica, kind):
        raise ConfigurationError(f"the replica {replica!r} is no {kind.__name__}", f"Pass {function}(...).")


def _take_apart(bind: Any) -> tuple[Engine, type[Session], dict[str, Any]]:
    """Return the engine, the session class and the session's options that *bind* stands for."""
    if isinstance(bind, Engine):
        return bind, Session, {}
    if not isinstance(bind, sessionmaker):
        raise ConfigurationError(
            f"{bind!r} is neither an Engine nor a sessionmaker", "Pass create_engine(...) or sessionmaker(engine)."
        )
    engine = bind.kw.get("bind")
    if not isinstance(engine, Engine) or bind.kw.get("binds") or bind.kw.get("twophase"):
        raise ConfigurationError(
            "the sessionmaker is not bound to one engine for one transaction",
            "Bind it to an engine: sessionmaker(engine), without binds and twophase.",
        )
    factory = cast("sessionmaker[Session]", bind)
    return engine, factory.class_, {name: value for name, value in factory.kw.items() if name not in _OURS}
