"""
Containers: what they make, what they dispose of, and what they refuse.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from attrs import frozen
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject
from sqlalchemy import URL, Column, Integer, String, Table, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session, registry
from sqlalchemy.pool import QueuePool

from uow import AsyncRepository, AsyncUnitOfWork, Repository, UnitOfWork, entity, transactional
from uow.adapters.dependency_injector import AsyncSqlAlchemyContainer, SqlAlchemyContainer, check_units
from uow.adapters.memory import FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlAlchemyUnitOfWork
from uow.errors import ConfigurationError, DefinitionError, UnitOfWorkRolledBack


@entity
class Account:
    owner: str
    id: int | None = None


@entity
class Entry:
    said: str
    id: int | None = None


mapping = registry()
for kind, column in ((Account, "owner"), (Entry, "said")):
    columns = Column("id", Integer, primary_key=True), Column(column, String(20), nullable=False)
    mapping.map_imperatively(kind, Table(f"di_{column}s", mapping.metadata, *columns))


class Bank(UnitOfWork):
    accounts: Repository[Account]
    entries: Repository[Entry]


class SqlBank(SqlAlchemyUnitOfWork, Bank):
    pass


class FakeBank(FakeUnitOfWork, Bank):
    pass


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank):
    pass


@frozen
class Ledger:
    uow: Bank

    @transactional
    def note(self, said: str) -> Session | None:
        self.uow.entries.add(Entry(said))
        return getattr(self.uow, "session", None)


@frozen
class Branch:
    uow: Bank
    ledger: Ledger

    def open(self, owner: str) -> Sequence[Session | None]:
        with self.uow.joined() as uow:
            uow.accounts.add(Account(owner))
            sessions = (getattr(uow, "session", None), self.ledger.note(f"opened {owner}"))
            uow.commit()
        return sessions


class Container(SqlAlchemyContainer):
    bank = providers.Factory(SqlBank, SqlAlchemyContainer.engine, strict=SqlAlchemyContainer.config.unit.strict)
    ledger = providers.Factory(Ledger, uow=bank)
    branch = providers.Factory(Branch, uow=bank, ledger=ledger)


class AsyncContainer(AsyncSqlAlchemyContainer):
    bank = providers.Factory(AsyncSqlBank, AsyncSqlAlchemyContainer.engine)


class Replicated(containers.DeclarativeContainer):
    """One that composes."""

    config = providers.Configuration()
    primary = providers.Container(SqlAlchemyContainer, config=config.primary)
    replica = providers.Container(SqlAlchemyContainer, config=config.replica)
    bank = providers.Factory(SqlBank, primary.engine, replica=replica.engine)


@inject
def count_accounts(bank: Bank = Provide[Container.bank]) -> int:
    with bank as uow:
        return uow.accounts.count()


@inject
async def count_accounts_async(bank: AsyncBank = Provide[AsyncContainer.bank]) -> int:
    async with bank as uow:
        return await uow.accounts.count()


@inject
async def inject_engine(engine: AsyncEngine = Provide[AsyncContainer.engine]) -> AsyncEngine:
    return engine


@pytest.fixture
def url(sqlite_url: URL) -> Iterator[URL]:
    engine = create_engine(sqlite_url)
    mapping.metadata.create_all(engine)
    yield sqlite_url
    mapping.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def container(url: URL) -> Iterator[Container]:
    container = Container()
    container.config.database_url.from_value(url)
    yield container
    container.unwire()
    container.shutdown_resources()


def async_container(url: URL) -> AsyncContainer:
    container = AsyncContainer()
    container.config.database_url.from_value(url.set(drivername="sqlite+aiosqlite"))
    return container


# --------------------------------------------------------------------------------------------------------- a use case


def test_a_use_case_shares_a_session_and_the_next_has_another(container: Container) -> None:
    """Two services with a handle each and two repositories work in one session; the next use case has a new one."""
    branch, other = container.branch(), container.branch()

    first = branch.open("ann")
    second = branch.open("bob")
    third = other.open("zoe")

    assert branch.uow is not branch.ledger.uow
    assert first[0] is first[1]
    assert second[0] is second[1]
    assert third[0] is third[1]
    assert 3 == len({id(sessions[0]) for sessions in (first, second, third)})
    with container.bank() as uow:
        assert (3, 3) == (uow.accounts.count(), uow.entries.count())


def test_the_services_of_a_use_case_fail_together(container: Container) -> None:
    """What one service did is lost with what another one could not do: it is one transaction."""
    branch = container.branch()

    with pytest.raises(UnitOfWorkRolledBack), container.bank() as uow:
        branch.open("ann")
        with pytest.raises(ValueError, match="no more"), uow.joined():
            raise ValueError("no more")
        uow.commit()

    with container.bank() as uow:
        assert (0, 0) == (uow.accounts.count(), uow.entries.count())


def test_the_override_with_the_fake_ends_with_the_test(container: Container) -> None:
    """One line puts the fake behind every service, and behind none of them afterwards."""
    with container.bank.override(providers.Factory(FakeBank, Store())):
        container.branch().open("ann")

        assert isinstance(container.branch().ledger.uow, FakeBank)
        assert 1 == container.bank().run(lambda: 1)
        with container.bank() as uow:
            assert 1 == uow.accounts.count()

    assert isinstance(container.branch().uow, SqlBank)
    with container.bank() as uow:
        assert 0 == uow.accounts.count()


def test_options_of_units_come_from_the_configuration(container: Container) -> None:
    """A unit's option is an argument of its factory, and so an option of the configuration."""
    container.config.unit.strict.from_value(True)

    with pytest.raises(UnitOfWorkRolledBack), container.bank() as uow:
        uow.accounts.add(Account("ann"))


# -------------------------------------------------------------------------------------------------------------- wiring


def test_wiring(container: Container) -> None:
    """A function that is injected gets a unit of its own at each call, and the fake while it overrides."""
    container.wire(modules=[__name__])
    container.branch().open("ann")

    assert (1, 1) == (count_accounts(), count_accounts())
    with container.bank.override(providers.Factory(FakeBank)):
        assert 0 == count_accounts()
    assert 1 == count_accounts()


def test_wiring_of_coroutines(container: Container, url: URL) -> None:
    """A coroutine function gets an asynchronous unit, and two at once one each; nothing else is awaited."""
    container.branch().open("ann")

    async def main() -> None:
        container = async_container(url)
        container.wire(modules=[__name__])
        assert [1, 1] == await asyncio.gather(count_accounts_async(), count_accounts_async())
        assert isinstance(container.bank(), AsyncSqlBank)
        assert container.engine() is await inject_engine()
        container.unwire()
        await container.shutdown_resources()

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------- the engine


def test_the_engine_is_made_once(container: Container) -> None:
    """Asked for it from many threads at once, the container makes one engine."""
    another = threading.Event()
    made: list[QueuePool] = []

    class Slow(QueuePool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)
            if len(made) > 1:
                another.set()
            another.wait(0.2)  # the time for others to come in, if they could

    container.config.engine.from_value({"poolclass": Slow})

    with ThreadPoolExecutor(4) as threads:
        engines = list(threads.map(lambda _: container.engine(), range(4)))

    assert 1 == len(made)
    assert 1 == len({id(engine) for engine in engines})


def test_the_engine_is_disposed_of(container: Container) -> None:
    """At the end no connection is open, and the next engine is another one."""
    engine = container.engine()
    pool: Any = engine.pool
    container.branch().open("ann")

    assert 1 == pool.checkedin()
    container.shutdown_resources()
    assert 0 == pool.checkedin()
    assert not container.engine.initialized
    assert container.engine() is not engine


def test_an_engine_that_overrides_is_its_owners(container: Container, url: URL) -> None:
    """What the container disposes of is what it made."""
    own: Any = container.engine().pool
    container.branch().open("ann")
    theirs = create_engine(url)
    their_pool: Any = theirs.pool

    with container.engine.override(providers.Object(theirs)):
        container.branch().open("bob")
        container.shutdown_resources()

    assert (0, 1) == (own.checkedin(), their_pool.checkedin())
    theirs.dispose()


def test_an_asynchronous_engine_is_disposed_of(url: URL) -> None:
    """Its shutdown is awaited, whether it was initialised beforehand, on demand, or never."""

    async def main() -> None:
        container = async_container(url)
        await container.shutdown_resources()
        for initialise in (True, False):
            if initialise:
                await container.init_resources()
            async with container.bank() as uow:
                await uow.accounts.count()
            pool: Any = container.engine().pool
            assert 1 == pool.checkedin()
            await container.shutdown_resources()
            assert 0 == pool.checkedin()
            assert not container.engine.initialized

    asyncio.run(main())


def test_arguments_of_the_engine(container: Container) -> None:
    """``config.engine`` has what ``create_engine()`` takes."""
    container.config.engine.from_value({"pool_size": 3})
    pool: Any = container.engine().pool

    assert 3 == pool.size()


def test_a_container_that_composes(url: URL) -> None:
    """A container may have several engines, each with its part of the configuration."""
    container = Replicated()
    container.config.from_dict({"primary": {"database_url": f"{url}"}, "replica": {"database_url": "sqlite://"}})

    assert f"{url}" == f"{container.primary.engine().url}"
    assert "sqlite://" == f"{container.replica.engine().url}"
    assert isinstance(container.bank(), SqlBank)
    container.shutdown_resources()
    assert not container.primary.engine.initialized
    assert not container.replica.engine.initialized


def test_a_configuration_of_its_own() -> None:
    """A subclass may declare its configuration anew, as for files that it is read from."""

    class Configured(SqlAlchemyContainer):
        config = providers.Configuration(default={"database_url": make_url("sqlite://")}, strict=True)

    container = Configured()

    assert "sqlite://" == f"{container.engine().url}"
    container.shutdown_resources()


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "Container.config.database_url is not set. Set it first: container.config.database_url.from_env("),
        ({"database_url": ""}, "Container.config.database_url is not set. "),
        ({"database_url": "postgresql//ann:secret@h/d"}, "Container.config.database_url is no database URL. Write "),
        ({"database_url": "postgresql://ann:p@ss:secret@h/d"}, "Container.config.database_url is no database URL. "),
        ({"database_url": "nosuch://ann:secret@h/d"}, "Container.config makes no engine: Can't load plugin: "),
        ({"database_url": "sqlite://", "engine": {"size": 3}}, "Container.config makes no engine: Invalid argument"),
    ],
)
def test_a_configuration_that_makes_no_engine(values: dict[str, Any], problem: str) -> None:
    """An option that is missing or wrong is named, with its container, and no password is shown."""
    container = Container(config=values)

    with pytest.raises(ConfigurationError) as caught:
        container.bank()

    assert f"{caught.value}".startswith(f"Wrong configuration: {problem}")
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert not container.engine.initialized


def test_an_asynchronous_engine_with_a_synchronous_driver() -> None:
    """A URL for the other face is refused when the engine is asked for."""
    with pytest.raises(
        ConfigurationError, match=r"AsyncContainer\.config makes no engine: The asyncio extension requires"
    ):
        AsyncContainer(config={"database_url": "sqlite://"}).bank()


def test_a_missing_option_of_a_container_that_composes() -> None:
    """The option is called what it is called outside."""
    with pytest.raises(ConfigurationError, match=r"config\.primary\.database_url is not set"):
        Replicated().bank()


@pytest.mark.parametrize(
    "provider",
    [
        providers.Singleton(SqlBank, SqlAlchemyContainer.engine),
        providers.ThreadLocalSingleton(SqlBank, SqlAlchemyContainer.engine),
        providers.ContextLocalSingleton(AsyncSqlBank),
        providers.Resource(FakeBank),
        providers.Object(FakeBank()),
    ],
    ids=lambda provider: type(provider).__name__,
)
def test_a_unit_that_is_shared(provider: providers.Provider[Any]) -> None:
    """A container with a unit in which use cases would meet cannot be instantiated; the provider is named."""

    class Sharing(SqlAlchemyContainer):
        bank = provider

    with pytest.raises(DefinitionError) as caught:
        Sharing()

    kind = type(provider).__name__
    assert (
        f"Cannot define Sharing.bank: it is a providers.{kind}, and a unit serves one use case at a time. "
        "Make it a providers.Factory: a unit is a cheap handle."
    ) == f"{caught.value}"


def test_a_unit_that_is_shared_by_an_override() -> None:
    """What a container is instantiated with is checked too."""
    with pytest.raises(DefinitionError, match=r"Container\.bank: it is a providers\.Object"):
        Container(bank=FakeBank())


def test_a_unit_that_is_shared_in_a_container_inside() -> None:
    """A container of another kind is checked by a function, with those that it is composed of."""

    class Inner(containers.DeclarativeContainer):
        bank = providers.Singleton(FakeBank)

    class Outer(containers.DeclarativeContainer):
        inner = providers.Container(Inner)

    check_units(Replicated())
    with pytest.raises(DefinitionError, match=r"Outer\.inner\.bank: it is a providers\.Singleton"):
        check_units(Outer())
    with pytest.raises(DefinitionError, match=r"the bank\.inner\.bank: it is"):
        check_units(Outer(), "the bank")


ENGINE = SqlAlchemyContainer.engine
SHARED_HINT = ", and a unit serves one use case at a time. Make it a providers.Factory: a unit is a cheap handle."
KEPT_HINT = (
    ", and a unit serves one use case at a time. "
    "Make it a providers.Factory, or let it take the .provider of the unit and make one a use case."
)


def make_bank(engine: Any) -> SqlBank:
    return SqlBank(engine)


def count(bank: Bank) -> int:
    return bank.run(bank.accounts.count)


def make_ledger(uow: "NotImported") -> "NotImported":  # type: ignore[name-defined]  # noqa: F821
    return Ledger(uow)


class Counter:
    """Takes what makes units, and no unit."""

    def __init__(self, make: Any) -> None:
        self.make = make


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        (providers.Singleton(make_bank, ENGINE), "it is a providers.Singleton" + SHARED_HINT),
        (
            providers.Selector(providers.Object("a"), a=providers.Singleton(SqlBank, ENGINE)),
            "it takes a providers.Singleton of SqlBank" + SHARED_HINT,
        ),
        (
            providers.Callable(count, providers.Singleton(SqlBank, ENGINE)),
            "it takes a providers.Singleton of SqlBank" + SHARED_HINT,
        ),
        (
            providers.Factory(Ledger, uow=providers.Object(FakeBank())),
            "it takes a providers.Object of FakeBank" + SHARED_HINT,
        ),
        (
            providers.Factory(Counter, providers.Singleton(FakeBank).provider),
            "it takes a providers.Singleton of FakeBank" + SHARED_HINT,
        ),
        (
            providers.Singleton(Ledger, uow=providers.Factory(SqlBank, ENGINE)),
            "it is a providers.Singleton that keeps the unit SqlBank" + KEPT_HINT,
        ),
        (
            providers.Factory(Counter, providers.Singleton(Ledger, uow=providers.Factory(make_bank, ENGINE))),
            "it takes a providers.Singleton of Ledger that keeps the unit SqlBank" + KEPT_HINT,
        ),
        (
            providers.Singleton(Counter, providers.List(providers.Factory(Ledger, uow=providers.Factory(FakeBank)))),
            "it is a providers.Singleton that keeps the unit FakeBank" + KEPT_HINT,
        ),
        (
            providers.ThreadSafeSingleton(Counter, providers.Factory(AsyncSqlBank)),
            "it is a providers.ThreadSafeSingleton that keeps the unit AsyncSqlBank" + KEPT_HINT,
        ),
    ],
)
def test_a_unit_that_is_shared_by_what_takes_it(provider: providers.Provider[Any], problem: str) -> None:
    """A unit is found wherever it stands among what a provider is made of, and in what is made once and keeps it."""

    class Sharing(SqlAlchemyContainer):
        service = provider

    with pytest.raises(DefinitionError) as caught:
        Sharing()

    assert f"Cannot define Sharing.service: {problem}" == f"{caught.value}"


@pytest.mark.parametrize(
    "provider",
    [
        providers.Factory(Ledger, uow=providers.Factory(make_bank, ENGINE)),
        providers.Singleton(Counter, providers.Factory(SqlBank, ENGINE).provider),
        providers.Singleton(Counter, providers.Callable(count, providers.Factory(FakeBank))),
        providers.Singleton(count, providers.Factory(FakeBank)),
        providers.Singleton(make_ledger, providers.Factory(FakeBank)),
        providers.Resource(count, providers.Factory(FakeBank)),
        providers.Singleton(Counter, providers.Factory(FakeBank).provided.state),
        providers.Object(SqlBank),
        providers.Dependency(instance_of=FakeBank),
    ],
)
def test_what_shares_no_unit(provider: providers.Provider[Any]) -> None:
    """What takes a provider of units may be made once, and so may what a function makes of a unit."""

    class Sharing(SqlAlchemyContainer):
        service = provider

    assert isinstance(Sharing(), containers.Container)


def test_a_unit_that_is_shared_no_more() -> None:
    """What is overridden is not what runs, neither in the container nor in what takes it."""

    class Sharing(containers.DeclarativeContainer):
        bank = providers.Singleton(FakeBank)
        ledger = providers.Factory(Ledger, uow=bank)

    check_units(Sharing(bank=providers.Factory(FakeBank)))


def test_providers_that_take_each_other() -> None:
    """A circle of providers is gone round once."""
    first: Any = providers.Factory(Counter)
    second = providers.Factory(Counter, first.provider)
    first.add_args(second.provider)

    class Circular(SqlAlchemyContainer):
        service = first

    assert isinstance(Circular(), containers.Container)


def test_an_override_that_came_later() -> None:
    """It is found when the instance is checked again."""
    container = Container()
    with (
        container.bank.override(providers.Singleton(FakeBank)),
        pytest.raises(DefinitionError, match=r"Container\.bank: it is a providers\.Singleton,"),
    ):
        check_units(container)


@pytest.mark.parametrize("library", ["dependency_injector", "sqlalchemy"])
def test_a_library_that_is_missing(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its libraries the adapter names the extra that brings them."""
    monkeypatch.delitem(sys.modules, "uow.adapters.dependency_injector")
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(ModuleNotFoundError) as caught:
        import uow.adapters.dependency_injector  # noqa: F401

    assert (
        f"uow.adapters.dependency_injector needs {library}, which is missing. Install uow[dependency-injector]."
    ) == f"{caught.value}"
