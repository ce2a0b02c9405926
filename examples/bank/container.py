"""
The composition root: how the parts are put together.
"""

from dependency_injector import providers

from uow import Handlers, Retry
from uow.adapters.dependency_injector import AsyncSqlAlchemyContainer, SqlAlchemyContainer

from .adapters import AsyncSqlBank, SqlBank
from .service import Balances, PaymentImport
from .teller import Teller

__all__ = ["AsyncContainer", "Container"]


class Container(SqlAlchemyContainer):
    """
    The application on the database that ``config.database_url`` names; a test overrides ``bank`` with the fake.
    """

    handlers = providers.Singleton(Handlers)
    observers = providers.Object(())
    retry = providers.Singleton(Retry)
    bank = providers.Factory(SqlBank, SqlAlchemyContainer.engine, handlers=handlers, observers=observers, retry=retry)
    payment_import = providers.Factory(PaymentImport, uow=bank)
    balances = providers.Factory(Balances, uow=bank)
    teller = providers.Factory(Teller)


class AsyncContainer(AsyncSqlAlchemyContainer):
    """
    The application with a unit that is awaited; its services are the same.
    """

    handlers = providers.Singleton(Handlers)
    retry = providers.Singleton(Retry)
    bank = providers.Factory(AsyncSqlBank, AsyncSqlAlchemyContainer.engine, handlers=handlers, retry=retry)
    teller = providers.Factory(Teller)
