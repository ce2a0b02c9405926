from dependency_injector import providers
from sqlalchemy import create_engine

from uow.examples.bank.adapters import FakeBank, SqlBank, make_engine, make_store
from uow.examples.bank.container import Container
from uow.examples.bank.service import PaymentImport


def test_the_application_runs_on_a_database() -> None:
    """Without an override the bank is the database that the configuration names; each service has a unit of its own."""
    container = Container()
    container.config.database_url.from_value("sqlite://")

    first, second = container.payment_import(), container.payment_import()

    assert isinstance(first, PaymentImport)
    assert isinstance(first.uow, SqlBank)
    assert first.uow is not second.uow
    assert container.engine() is container.engine()
    container.engine().dispose()


def test_a_test_overrides_the_bank() -> None:
    """One line puts the fake in the database's place, for as long as the block lasts."""
    container = Container()
    container.config.database_url.from_value("sqlite://")

    with container.override_providers(bank=providers.Factory(FakeBank, make_store())):
        assert isinstance(container.payment_import().uow, FakeBank)

    assert isinstance(container.payment_import().uow, SqlBank)
    container.engine().dispose()


def test_mariadb_has_a_driver_by_default() -> None:
    """The driver that ``uow[mariadb]`` installs is taken unless the URL says otherwise."""
    assert "mariadb+pymysql" == make_engine("mariadb://root@localhost/bank").url.drivername
    assert "mysql+pymysql" == make_engine("mysql://root@localhost/bank").url.drivername
    assert create_engine("sqlite://").url == make_engine("sqlite://").url
