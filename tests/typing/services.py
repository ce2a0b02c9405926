"""
What a type checker sees of asynchronous units, services and scopes.
"""

from collections.abc import Sequence
from typing import assert_type

from uow import (
    AsyncRepository,
    AsyncUnitOfWork,
    DomainService,
    Repository,
    UnitOfWork,
    awaited,
    current,
    entity,
    transactional,
)


@entity(key="number")
class Account:
    number: str


class Accounts(Repository[Account]):
    def named(self, name: str) -> Sequence[Account]:
        return self.list(lambda a: a.number == name)


class AsyncAccounts(AsyncRepository[Account]):
    named = awaited(Accounts.named)


class Bank(UnitOfWork):
    accounts: Accounts


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncAccounts


class Service(DomainService[Bank]):
    def check(self) -> None:
        assert_type(self.uow, Bank)


@transactional
def move(uow: Bank, amount: int) -> str:
    return str(amount)


@transactional(read_only=True)
async def read(uow: AsyncBank, amount: int) -> str:
    return str(amount)


def scopes(bank: Bank) -> None:
    assert_type(bank.nested(), Bank)
    assert_type(bank.joined(read_only=True), Bank)
    assert_type(bank.independent(isolation="SERIALIZABLE"), Bank)
    assert_type(current(Bank), Bank)
    assert_type(move(bank, 1), str)
    assert_type(bank.run(move, bank, 1), str)
    for attempt in bank.attempts():
        with attempt as uow:
            assert_type(uow, Bank)
    move(bank, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bank.joined(level=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def awaited_scopes(bank: AsyncBank) -> None:
    async with bank as uow, uow.nested() as nested:
        assert_type(nested, AsyncBank)
        assert_type(await uow.accounts.get("A"), Account)
        assert_type(await uow.accounts.named("A"), Sequence[Account])
        assert_type(uow.sync, Bank)
        assert_type(await uow.run(uow.sync.accounts.named, "A"), Sequence[Account])
        assert_type(await read(uow, 1), str)
    async for attempt in bank.attempts():
        async with attempt as again:
            assert_type(again, AsyncBank)
