"""
The composition root: how the parts are put together.
"""

from dependency_injector import containers, providers

from uow import Handlers

from .adapters import SqlBank, make_engine
from .service import Balances, PaymentImport

__all__ = ["Container"]


class Container(containers.DeclarativeContainer):
    """
    The application on a database; a test overrides ``bank`` with the fake.
    """

    config = providers.Configuration()
    engine = providers.Singleton(make_engine, config.database_url)
    handlers = providers.Singleton(Handlers)
    observers = providers.Object(())
    bank = providers.Factory(SqlBank, engine, handlers=handlers, observers=observers)
    payment_import = providers.Factory(PaymentImport, uow=bank)
    balances = providers.Factory(Balances, uow=bank)
