"""
Scopes in reach, awaited: `current`, `DomainService` and `transactional` on asynchronous units.
"""

import asyncio
from functools import partial
from typing import Any

import pytest
from attrs import frozen

from uow import (
    AsyncRepository,
    AsyncUnitOfWork,
    DomainService,
    Event,
    Handlers,
    Propagation,
    Repository,
    Retry,
    UnitOfWork,
    current,
    entity,
    transactional,
)
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store
from uow.errors import (
    ContradictoryOptions,
    DefinitionError,
    Misuse,
    OutsideUnitOfWork,
    SerializationFailure,
    UnitOfWorkActive,
    UnitOfWorkRolledBack,
)


@entity(key="number")
class Account:
    number: str
    balance: int = 0


@frozen
class Charged(Event):
    number: str


class Bank(UnitOfWork):
    accounts: Repository[Account]


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class FakeBank(FakeUnitOfWork, Bank): ...


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


class Charges(DomainService[AsyncBank]):
    async def charge(self, number: str) -> None:
        (await self.uow.accounts.get(number)).balance -= 1


@frozen
class Inner:
    uow: AsyncBank

    @transactional
    async def join(self, number: str, error: Exception | None = None) -> str:
        self.uow.accounts.add(Account(number))
        if error is not None:
            raise error
        return self.uow.status().name

    @transactional(propagation=Propagation.NESTED)
    async def nest(self, number: str, error: Exception | None = None) -> int:
        self.uow.accounts.add(Account(number))
        if error is not None:
            raise error
        return self.uow.status().depth

    @transactional(propagation=Propagation.REQUIRES_NEW)
    async def begin(self, number: str) -> int:
        self.uow.accounts.add(Account(number))
        return self.uow.status().depth

    @transactional(propagation=Propagation.MANDATORY)
    async def demand(self, number: str) -> None:
        self.uow.accounts.add(Account(number))

    @transactional(propagation=Propagation.NEVER)
    async def refuse(self) -> str:
        return "alone"

    @transactional(read_only=True)
    async def read(self) -> int:
        return await self.uow.accounts.count()


def banks(same: bool) -> tuple[AsyncFakeBank, AsyncFakeBank]:
    store = Store()
    bank = AsyncFakeBank(store)
    return bank, bank if same else AsyncFakeBank(store)


async def numbers(bank: AsyncFakeBank) -> list[str]:
    async with bank.independent() as unit:
        return sorted([account.number async for account in unit.accounts.iterate()])


@pytest.mark.parametrize("same", [True, False], ids=["the same handle", "another handle"])
def test_each_propagation_alone_and_inside(same: bool) -> None:
    """Alone each opens a unit and commits it; inside each does what its word says."""

    async def main() -> None:
        bank, other = banks(same)
        inner = Inner(other)

        assert ("Inner.join", 0, 0, "alone", 3) == (
            await inner.join("A"),
            await inner.nest("B"),
            await inner.begin("C"),
            await inner.refuse(),
            await inner.read(),
        )
        with pytest.raises(OutsideUnitOfWork, match=r"call Inner\.demand"):
            await inner.demand("D")
        async with bank as uow:
            assert ("Inner.join", 1, 0) == (await inner.join("E"), await inner.nest("F"), await inner.begin("G"))
            with pytest.raises(ValueError, match="no"):
                await inner.nest("H", ValueError("no"))
            with pytest.raises(UnitOfWorkActive, match="must never run inside"):
                await inner.refuse()
            with pytest.raises(ContradictoryOptions, match="read_only=True"):
                await inner.read()
            await inner.demand("I")
            uow.accounts.add(Account("J"))
            await uow.commit()

        assert ["A", "B", "C", "E", "F", "G", "I", "J"] == await numbers(bank)

    asyncio.run(main())


def test_a_failure_that_is_swallowed_dooms_the_whole() -> None:
    """The root's error names the joined scope and carries its error."""

    async def main() -> None:
        bank, other = banks(same=False)
        error = ValueError("no")
        with pytest.raises(UnitOfWorkRolledBack, match=r"the joined scope 'root > Inner\.join' failed") as raised:
            async with bank as uow:
                with pytest.raises(ValueError, match="no"):
                    await Inner(other).join("A", error)
                await uow.commit()

        assert error is raised.value.__cause__
        assert [] == await numbers(bank)

    asyncio.run(main())


def test_functions_and_partials() -> None:
    """A coroutine function that is given the unit, and a partial of one, commit."""

    async def open_account(uow: AsyncBank, number: str) -> bool:
        uow.accounts.add(Account(number))
        return current(AsyncBank) is not uow

    async def main() -> None:
        bank, _ = banks(same=True)
        bound: Any = transactional(partial(open_account, bank))

        assert await bound("A")
        assert await transactional(open_account)(bank, number="B")
        assert asyncio.iscoroutinefunction(bound)
        assert ["A", "B"] == await numbers(bank)

    asyncio.run(main())


def test_retries() -> None:
    """The whole is done again after a transient error, and not inside another unit."""

    async def main() -> None:
        bank, _ = banks(same=True)
        tries: list[int] = []

        @transactional(retry=Retry(wait_initial=0, wait_jitter=0))
        async def work(uow: AsyncBank) -> int:
            tries.append(len(tries))
            uow.accounts.add(Account("A"))
            return len(tries)

        bank.sync.store.fail_next("commit", SerializationFailure)  # type: ignore[attr-defined]

        assert 2 == await work(bank)
        assert ["A"] == await numbers(bank)

        async with bank:
            with pytest.raises(UnitOfWorkActive, match="Retry the outermost unit"):
                await work(bank)

    asyncio.run(main())


def test_the_wrong_kind_of_unit_is_refused() -> None:
    """A coroutine function needs an asynchronous unit, and an ordinary function a synchronous one."""

    @transactional
    async def awaited_work(uow: object) -> None: ...

    @transactional
    def work(uow: object) -> None: ...

    with pytest.raises(Misuse, match="a coroutine function, and the unit is synchronous"):
        asyncio.run(awaited_work(FakeBank()))
    with pytest.raises(Misuse, match="an ordinary function, and the unit is asynchronous"):
        work(AsyncFakeBank())


def test_domain_services_are_awaited() -> None:
    """A method that is a coroutine function looks for the unit when it is awaited, and finds the innermost."""

    async def main() -> None:
        bank, _ = banks(same=True)
        with pytest.raises(OutsideUnitOfWork, match=r"call Charges\.charge\(\)"):
            await Charges().charge("A")
        async with bank as uow:
            uow.accounts.add(Account("A", 10))
            async with uow.nested() as nested:
                assert nested is current(AsyncBank)
                await Charges().charge("A")
            with pytest.raises(OutsideUnitOfWork, match="may not use those of others"):
                await asyncio.create_task(Charges().charge("A"))

            assert 9 == (await uow.accounts.get("A")).balance

    asyncio.run(main())


def test_declarations_that_cannot_work() -> None:
    """The synchronous side is a unit, and has the repositories that are awaited."""
    with pytest.raises(DefinitionError, match=r"Wrong\.sync: it is annotated with .*which is no UnitOfWork"):

        class Wrong(AsyncUnitOfWork):
            sync: Account

    class Missing(AsyncUnitOfWork):
        sync: Bank
        people: AsyncRepository[Account]

    with pytest.raises(DefinitionError, match="has no repository of Account of that name"):

        class FakeMissing(AsyncFakeUnitOfWork, Missing): ...


def test_a_port_without_a_synchronous_side() -> None:
    """A port that is only awaited declares nothing twice."""

    class Only(AsyncUnitOfWork):
        accounts: AsyncRepository[Account]

    class FakeOnly(AsyncFakeUnitOfWork, Only): ...

    async def main() -> int:
        async with FakeOnly() as uow:
            uow.accounts.add_all([Account("A"), Account("B")])
            await uow.commit()
        async with FakeOnly() as uow:
            return await uow.accounts.count()

    assert 0 == asyncio.run(main())


def test_a_handler_of_a_unit_that_synchronous_code_opened() -> None:
    """What `independent()` opens in `run()` has an asynchronous face, for its handlers and for `current` to find."""
    store, handlers, seen = Store(), Handlers(), list[Any]()
    bank = AsyncFakeBank(store, handlers=handlers)

    @handlers.before_commit(Charged)
    async def charge(event: Charged, uow: AsyncBank) -> None:
        seen.append((uow, current(AsyncBank)))
        await Charges().charge(event.number)

    def service(number: str) -> None:
        with bank.sync.independent() as unit:
            unit.record(Charged(number))
            unit.commit()

    async def main() -> None:
        async with bank as uow:
            uow.accounts.add(Account("A-1", 10))
            await uow.commit()
        async with bank as uow:
            await uow.run(service, "A-1")
            assert uow is current(AsyncBank)
        async with bank as uow:
            assert 9 == (await uow.accounts.get("A-1")).balance

    asyncio.run(main())

    ((given, found),) = seen
    assert isinstance(given, AsyncFakeBank)
    assert given is found is not bank


def test_commit_in_an_awaited_body() -> None:
    """A coroutine function may commit by itself: the work is kept, and nothing is committed twice."""
    store = Store()

    @transactional
    async def work(uow: AsyncBank) -> str:
        uow.accounts.add(Account("A-1"))
        await uow.commit()
        return "done"

    assert "done" == asyncio.run(work(AsyncFakeBank(store)))
    assert ["A-1"] == asyncio.run(numbers(AsyncFakeBank(store)))
