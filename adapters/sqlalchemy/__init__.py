"""
Units of work on SQLAlchemy: PostgreSQL, MariaDB, SQLite.
"""

try:
    import sqlalchemy  # noqa: F401
except ImportError as error:  # pragma: no cover - shown by a test in a process of its own
    msg = "uow.adapters.sqlalchemy needs SQLAlchemy, which is not installed. Install uow[sqlalchemy]."
    raise ImportError(msg) from error

from ._gateway import SqlAlchemyRepository
from ._unit import SqlAlchemyUnitOfWork

__all__ = ["SqlAlchemyRepository", "SqlAlchemyUnitOfWork"]
