from dependency_injector import providers

from uow.examples.bank.adapters import FakeBank, SqlBank, make_store, with_driver
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
    container.shutdown_resources()


def test_a_test_overrides_the_bank() -> None:
    """One line puts the fake in the database's place, for as long as the block lasts."""
    container = Container()
    container.config.database_url.from_value("sqlite://")

    with container.override_providers(bank=providers.Factory(FakeBank, make_store())):
        assert isinstance(container.payment_import().uow, FakeBank)

    assert isinstance(container.payment_import().uow, SqlBank)
    container.shutdown_resources()


def test_mariadb_has_a_driver_by_default() -> None:
    """The driver that ``uow[mariadb]`` installs is taken unless the URL says otherwise."""
    assert "mariadb+pymysql://root@localhost/bank" == with_driver("mariadb://root@localhost/bank")
    assert "mysql+pymysql://root@localhost/bank" == with_driver("mysql://root@localhost/bank")
    assert "postgresql://root@localhost/bank" == with_driver("postgresql://root@localhost/bank")
