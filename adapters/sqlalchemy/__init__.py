"""
Units of work on SQLAlchemy: PostgreSQL, MariaDB, SQLite.
"""

try:
    from ._async import AsyncSqlAlchemyUnitOfWork
    from ._gateway import SqlAlchemyRepository
    from ._resource import SqlResource
    from ._tables import uow_metadata
    from ._unit import SqlAlchemyUnitOfWork
except ModuleNotFoundError as error:
    if error.name not in ("sqlalchemy", "sqlalchemy.ext"):
        raise
    msg = "uow.adapters.sqlalchemy needs SQLAlchemy, which is not installed. Install uow[sqlalchemy]."
    raise ModuleNotFoundError(msg, name=error.name) from error

__all__ = ["AsyncSqlAlchemyUnitOfWork", "SqlAlchemyRepository", "SqlAlchemyUnitOfWork", "SqlResource", "uow_metadata"]
