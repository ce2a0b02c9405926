"""
What a type checker knows of the code that users write; checked, never run.
"""

from collections.abc import Iterator, Sequence
from typing import assert_type

from attrs import frozen
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from uow import Aggregate, Event, Handlers, Lock, Repository, State, Status, UnitOfWork, desc, entity, is_in, like, not_
from uow.adapters.memory import FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import SqlAlchemyRepository, SqlAlchemyUnitOfWork


@frozen
class Opened(Event):
    number: str


@entity(key="number")
class Account(Aggregate):
    number: str
    owner: str | None
    balance: int = 0


class Accounts(Repository[Account]):
    def overdrawn(self) -> Sequence[Account]:
        return self.list(lambda a: a.balance < 0, order_by=lambda a: (desc(a.balance), a.number))


class SqlAccounts(SqlAlchemyRepository[Account], Accounts):
    def vacuum(self) -> None:
        assert_type(self.session, Session)


class Bank(UnitOfWork):
    accounts: Accounts


class SqlBank(SqlAlchemyUnitOfWork, Bank):
    accounts: SqlAccounts  # pyright: ignore[reportIncompatibleVariableOverride]


class FakeBank(FakeUnitOfWork, Bank): ...


def made_as_the_class_says(engine: Engine) -> None:
    Account("A-1", "Ann")
    Account("A-1", "Ann", 5)
    Account(1, "Ann")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Account("A-1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    SqlBank(engine)
    FakeBank()
    FakeBank(Store(), strict=True)


def a_port_has_typed_repositories(uow: Bank) -> None:
    with uow as unit:
        assert_type(unit, Bank)
        assert_type(unit.accounts.get("A-1"), Account)
        assert_type(unit.accounts.get_or_none("A-1", lock=Lock.UPDATE), Account | None)
        assert_type(unit.accounts.first(), Account | None)
        assert_type(unit.accounts.one(lambda a: like(a.number, "A-%")), Account)
        assert_type(unit.accounts.list(lambda a: is_in(a.owner, ["Ann"]) & not_(a.balance == 0)), Sequence[Account])
        assert_type(unit.accounts.iterate(batch_size=10), Iterator[Account])
        assert_type(unit.accounts.count(), int)
        assert_type(unit.accounts.exists(lambda a: (a.balance < 0) & (a.owner == "Ann")), bool)
        with unit.nested("step") as nested:
            assert_type(nested, Bank)
            assert_type(nested.state, State)
            assert_type(nested.status(), Status)
        unit.accounts.add("no account")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        unit.accounts.list(lambda a: a.blance)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        unit.commit()


def an_adapter_narrows(uow: SqlBank) -> None:
    with uow:
        assert_type(uow.accounts, SqlAccounts)
        assert_type(uow.session, Session)
        with uow.nested() as nested:
            assert_type(nested, SqlBank)


def hooks_keep_their_type(uow: Bank, handlers: Handlers) -> None:
    @uow.after_commit
    def later() -> int:
        return 1

    assert_type(later(), int)

    @handlers.after_commit(Opened)
    def publish(event: Opened) -> str:
        return event.number

    assert_type(publish(Opened("A-1")), str)
