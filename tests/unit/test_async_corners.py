"""
The asynchronous face in detail: what stays readable without `await`, mixed hooks, its synchronous side, its engines.

Everything here is an ordinary coroutine, as an application writes it. So an attribute that asks the database when it is
read is the error that an application would get, SQLAlchemy's ``MissingGreenlet``.
"""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define
from sqlalchemy import Engine, ForeignKey, String, create_engine, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from uow import (
    AsyncRepository,
    AsyncUnitOfWork,
    DomainService,
    Handlers,
    Options,
    Retry,
    State,
    current,
)
from uow._steps import shielded
from uow.adapters import sqlalchemy as adapter
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store
from uow.adapters.sqlalchemy import AsyncSqlAlchemyUnitOfWork, SqlAlchemyUnitOfWork
from uow.errors import (
    AfterCommitFailed,
    AfterRollbackFailed,
    ConfigurationError,
    DatabaseError,
    Deadlock,
    DefinitionError,
    InvalidArgument,
    Misuse,
    OutsideUnitOfWork,
    ScopeBroken,
    StaleVersion,
    UniqueViolation,
    UnitOfWorkError,
    UnitOfWorkRolledBack,
    WrongTask,
)
from uow.testing._model import Account, Bank, MoneyMoved
from uow.testing._sqlalchemy import metadata

DRIVERS = {"aiosqlite": "sqlite", "psycopg": "postgresql", "asyncpg": "postgresql", "aiomysql": "mysql"}


class Oops(Exception):
    """What goes wrong in the application itself."""


# -------------------------------------------------------------------------------------------------- what stays readable


class Base(DeclarativeBase):
    pass


class Remark(Base):
    __tablename__ = "remarks"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(40))
    ticket: Mapped[int | None] = mapped_column(ForeignKey("tickets.id"))


class Ticket(Base):
    """Its key and status come from the database, its version from the mapping."""

    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str | None] = mapped_column(String(40))
    status: Mapped[str] = mapped_column(String(40), server_default="open")
    version: Mapped[int] = mapped_column()
    remarks: Mapped[list[Remark]] = relationship(lazy="selectin", cascade="all, delete-orphan", order_by=Remark.text)

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Desk(AsyncUnitOfWork):
    tickets: AsyncRepository[Ticket]


class SqlDesk(AsyncSqlAlchemyUnitOfWork, Desk): ...


Values = dict[str, Any]
Work = Callable[[SqlDesk], Awaitable[None]]
OnDesk = Callable[[Work], None]


@pytest.fixture(params=DRIVERS)
def on_desk(request: pytest.FixtureRequest, polite_psycopg: None) -> Iterator[OnDesk]:
    """Awaits what is to be done with three stored tickets, on each asynchronous driver."""
    driver: str = request.param
    name = {"mysql": "mariadb"}.get(DRIVERS[driver], DRIVERS[driver])
    beside = create_engine(request.getfixturevalue(f"{name}_url"))
    Base.metadata.drop_all(beside)
    Base.metadata.create_all(beside)

    async def run(work: Work) -> None:
        engine = create_async_engine(beside.url.set(drivername=f"{DRIVERS[driver]}+{driver}"))
        try:
            async with SqlDesk(engine) as uow:
                for title in ("kept", "changed", "removed"):
                    uow.tickets.add(Ticket(title=title, remarks=[Remark(text="1"), Remark(text="2")]))
                await uow.commit()
            await work(SqlDesk(engine))

            assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
        finally:
            await engine.dispose()

    yield lambda work: asyncio.run(run(work))
    Base.metadata.drop_all(beside)
    beside.dispose()


@define
class Held:
    """The entities that an application holds."""

    kept: Ticket
    changed: Ticket
    removed: Ticket
    added: Ticket

    @property
    def values(self) -> dict[str, Values]:
        """Every mapped attribute of each, read here and now."""
        return {name: read(getattr(self, name)) for name in ("kept", "changed", "removed", "added")}


def read(entity: object) -> Values:
    found = {key: getattr(entity, key) for key in inspect(type(entity)).attrs.keys()}  # noqa: SIM118
    return found | {"remarks": [read(remark) for remark in found["remarks"]]} if "remarks" in found else found


async def hold(uow: Desk) -> Held:
    kept, changed, removed = await uow.tickets.list(order_by=lambda ticket: ticket.id)
    return Held(kept, changed, removed, Ticket(title="added", remarks=[Remark(text="1")]))


async def meddle(uow: Desk, held: Held) -> None:
    held.changed.owner = "Ann"
    held.changed.remarks[0].text = "other"
    held.changed.remarks.append(Remark(text="3"))
    await uow.tickets.remove(held.removed)
    uow.tickets.add(held.added)


def ticket(number: int | None, title: str, *remarks: Values, **others: Any) -> Values:
    """The values of a ticket, by default as the fixture stored them."""
    return {"id": number, "title": title, "owner": None, "status": "open", "version": 1, "remarks": [*remarks]} | others


def remark(number: int | None, text: str, ticket: int | None) -> Values:
    return {"id": number, "text": text, "ticket": ticket}


KEPT = ticket(1, "kept", remark(1, "1", 1), remark(2, "2", 1))
CHANGED = ticket(2, "changed", remark(3, "1", 2), remark(4, "2", 2))
REMOVED = ticket(3, "removed", remark(5, "1", 3), remark(6, "2", 3))
NEW = ticket(None, "added", remark(None, "1", None), status=None, version=None)
OUTER = {"kept": KEPT, "changed": CHANGED, "removed": REMOVED, "added": NEW}
INNER = OUTER | {
    "changed": ticket(
        2, "changed", remark(3, "other", 2), remark(4, "2", 2), remark(7, "3", 2), owner="Ann", version=2
    ),
    "added": ticket(4, "added", remark(8, "1", 4)),
}
"""What `meddle` and a flush make of it; a removed entity keeps its values."""


def lost(held: Held, *, version: int = 1) -> dict[str, Values]:
    """What stays in memory when the whole unit is rolled back: all but what the database gave to what was added."""
    remarks = remark(3, "other", 2), remark(4, "2", 2), remark(None, "3", None)
    changed = ticket(2, "changed", *remarks, owner="Ann", version=version)
    return OUTER | {"changed": changed, "added": NEW | {"title": held.added.title}}


flushed = pytest.mark.parametrize("flushed", [True, False], ids=["written", "not written"])


def test_what_is_held_can_be_read_after_a_commit(on_desk: OnDesk) -> None:
    """What the database generates can be read after the flush, and everything after the commit and the block."""

    async def work(desk: SqlDesk) -> None:
        async with desk as uow:
            held = await hold(uow)

            assert OUTER == held.values

            await meddle(uow, held)
            await uow.flush()

            assert INNER == held.values

            await uow.commit()

            assert INNER == held.values

        assert INNER == held.values

    on_desk(work)


@flushed
def test_what_is_held_can_be_read_after_a_release(on_desk: OnDesk, flushed: bool) -> None:
    """A released scope leaves nothing to be read again, behind it and after the commit."""

    async def work(desk: SqlDesk) -> None:
        async with desk as uow:
            held = await hold(uow)
            async with uow.nested() as nested:
                await meddle(nested, held)
                if flushed:
                    await nested.flush()

            assert INNER == held.values

            await uow.commit()

        assert INNER == held.values

    on_desk(work)


@flushed
def test_what_is_held_can_be_read_after_a_nested_rollback(on_desk: OnDesk, flushed: bool) -> None:
    """What a rolled-back scope changed, removed and added has its outer values, behind it and after the commit."""

    async def work(desk: SqlDesk) -> None:
        async with desk as uow:
            held = await hold(uow)
            with suppress(Oops):
                async with uow.nested() as nested:
                    await meddle(nested, held)
                    if flushed:
                        await nested.flush()
                    raise Oops

            assert OUTER == held.values

            await uow.commit()

        assert OUTER == held.values

    on_desk(work)


@pytest.mark.parametrize("verb", [True, False], ids=["asked for", "by an exception"])
@flushed
def test_what_is_held_can_be_read_after_a_rollback(on_desk: OnDesk, flushed: bool, verb: bool) -> None:
    """When the whole unit is rolled back, what was added is new again and the rest is as it was in memory."""

    async def work(desk: SqlDesk) -> None:
        with suppress(Oops):
            async with desk as uow:
                held = await hold(uow)
                await meddle(uow, held)
                if flushed:
                    await uow.flush()
                if not verb:
                    raise Oops
                await uow.rollback()

                assert lost(held) == held.values

        assert lost(held) == held.values

    on_desk(work)


async def take_a_title(uow: SqlDesk, held: Held) -> None:
    held.added.title = "kept"
    await meddle(uow, held)


async def be_overtaken(uow: SqlDesk, held: Held) -> None:
    """Let the version in the database be another one, past the mapping."""
    await uow.session.execute(text("UPDATE tickets SET version = 9 WHERE title = 'changed'"))
    await meddle(uow, held)


fails = pytest.mark.parametrize(
    ("spoil", "error"), [(take_a_title, UniqueViolation), (be_overtaken, StaleVersion)], ids=["unique", "stale"]
)
Spoil = Callable[[SqlDesk, Held], Awaitable[None]]


@fails
def test_what_is_held_can_be_read_after_a_failed_scope(
    on_desk: OnDesk, spoil: Spoil, error: type[DatabaseError]
) -> None:
    """A flush that fails in a nested scope is undone with it in memory too."""

    async def work(desk: SqlDesk) -> None:
        async with desk as uow:
            held = await hold(uow)
            with pytest.raises(error):
                async with uow.nested() as nested:
                    await spoil(nested, held)
                    await nested.flush()
            held.added.title = "added"

            assert OUTER == held.values

            await uow.commit()

        assert OUTER == held.values

    on_desk(work)


@fails
def test_what_is_held_can_be_read_behind_a_failed_flush(
    on_desk: OnDesk, spoil: Spoil, error: type[DatabaseError]
) -> None:
    """A flush that fails at the root leaves everything readable, at once and when the unit was rolled back."""

    async def work(desk: SqlDesk) -> None:
        with pytest.raises(UnitOfWorkRolledBack) as caught:
            async with desk as uow:
                held = await hold(uow)
                await spoil(uow, held)
                with pytest.raises(error):
                    await uow.flush()

                assert lost(held, version=2) == held.values

                await uow.commit()

        assert error is type(caught.value.__cause__)
        assert lost(held) == held.values

    on_desk(work)


def test_what_is_not_loaded_is_never_asked_for_in_secret(on_desk: OnDesk) -> None:
    """An attribute that has to be loaded says what to do instead, and `run()` loads it; after the unit it raises."""

    async def work(desk: SqlDesk) -> None:
        async with desk as uow:
            held = await hold(uow)
            held.kept.owner = Ticket.title + "!"  # type: ignore[assignment]
            held.changed.owner = Ticket.title + "?"  # type: ignore[assignment]
            await uow.flush()
            with pytest.raises(OutsideUnitOfWork, match=r"with `await uow\.run\(\.\.\.\)`"):
                _ = held.kept.owner

            assert "kept!" == await uow.run(getattr, held.kept, "owner")

            await uow.commit()

        assert "kept!" == held.kept.owner

        with pytest.raises(DetachedInstanceError):
            _ = held.changed.owner

    on_desk(work)


# -------------------------------------------------------------------------------------------- cancelled before it began


@pytest.mark.parametrize(
    ("where", "state"),
    [
        ("before the task's first step", State.NEW),
        ("before the block", State.ROLLED_BACK),
        ("in the block", State.ROLLED_BACK),
        ("before a nested block", State.ROLLED_BACK),
    ],
)
def test_a_cancellation_that_waits_for_the_first_suspension(on_desk: OnDesk, where: str, state: State) -> None:
    """A task that is cancelled before it waits for anything takes no connection with it, and its unit can be used."""

    async def work(desk: SqlDesk) -> None:
        async def use() -> None:
            cancel_at("before the block")
            async with desk as uow:
                cancel_at("in the block")
                uow.tickets.add(Ticket(title="added"))
                cancel_at("before a nested block")
                async with uow.nested():
                    pytest.fail("nothing may come after a cancellation")

        def cancel_at(place: str) -> None:
            if where == place:
                task.cancel()

        task = asyncio.create_task(use())
        cancel_at("before the task's first step")
        await asyncio.wait([task])

        assert task.cancelled()
        assert state is desk.state

        async with desk as uow:
            assert 3 == await uow.tickets.count()

    on_desk(work)


# ------------------------------------------------------------------------------------------- on the fake and a database


class AsyncBank(AsyncUnitOfWork):
    sync: Bank
    accounts: AsyncRepository[Account]


class SqlBank(SqlAlchemyUnitOfWork, Bank): ...


class AsyncSqlBank(AsyncSqlAlchemyUnitOfWork, AsyncBank): ...


class FakeBank(FakeUnitOfWork, Bank): ...


class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...


MakeBank = Callable[..., AsyncBank]
InBank = Callable[[Callable[[MakeBank], Awaitable[None]]], None]
AT_ONCE = Retry(wait_initial=0, wait_jitter=0)


@pytest.fixture
def beside(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An SQLite file with the bank's tables."""
    engine = create_engine(request.getfixturevalue("sqlite_url"))
    metadata.drop_all(engine)
    metadata.create_all(engine)
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture(params=["fake", "aiosqlite"])
def in_bank(request: pytest.FixtureRequest) -> InBank:
    """Awaits what is to be done with a bank that has one account with 10, on each of the two bridges."""
    if request.param == "fake":
        store = Store()
        return lambda work: asyncio.run(begin(partial(AsyncFakeBank, store), work))
    url = request.getfixturevalue("beside").url.set(drivername="sqlite+aiosqlite")

    async def main(work: Callable[[MakeBank], Awaitable[None]]) -> None:
        engine = create_async_engine(url)
        try:
            await begin(partial(AsyncSqlBank, engine), work)

            assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]
        finally:
            await engine.dispose()

    return lambda work: asyncio.run(main(work))


async def begin(make_bank: MakeBank, work: Callable[[MakeBank], Awaitable[None]]) -> None:
    async with make_bank() as uow:
        uow.accounts.add(Account("A-1", "Ann", 10))
        await uow.commit()
    await work(make_bank)


async def balance(make_bank: MakeBank) -> int:
    async with make_bank() as uow:
        return (await uow.accounts.get("A-1")).balance


# -------------------------------------------------------------------------------------------------------- uow.run(work)


class Fees(DomainService[Bank]):
    def charge(self, number: str, fee: int = 1) -> int:
        account = self.uow.accounts.get(number)
        account.balance -= fee
        self.uow.flush()
        return account.balance


def charge(number: str, fee: int = 1) -> int:
    with current(Bank).nested() as nested:
        account = nested.accounts.one(lambda a: a.number == number)
        account.balance -= fee
    return account.balance


async def charge_async(number: str, fee: int = 1) -> int:
    account = await current(AsyncBank).accounts.get(number)
    account.balance -= fee
    await current(AsyncBank).flush()
    return account.balance


class Charge:
    async def __call__(self, number: str, fee: int = 1) -> int:
        return await charge_async(number, fee)

    async def method(self, number: str, fee: int = 1) -> int:
        return await charge_async(number, fee)


Charges = Callable[..., Any]
PLAIN: dict[str, Charges] = {
    "function": charge,
    "partial": partial(charge, fee=1),
    "bound method": Fees().charge,
    "partial of a bound method": partial(Fees().charge, fee=1),
    "lambda": lambda number: charge(number),
}
ASYNCHRONOUS: dict[str, Charges] = {
    "coroutine function": charge_async,
    "partial of one": partial(charge_async, fee=1),
    "bound coroutine method": Charge().method,
    "object with one": Charge(),
}


@pytest.mark.parametrize("work", PLAIN.values(), ids=PLAIN)
def test_run_inside_calls_synchronous_code_in_the_unit(in_bank: InBank, work: Charges) -> None:
    """Inside the block `run()` calls any synchronous callable in the innermost scope, and returns what it returned."""

    async def main(make_bank: MakeBank) -> None:
        async with make_bank() as uow:
            assert 9 == await uow.run(work, "A-1")

            with suppress(Oops):
                async with uow.nested() as nested:
                    assert 8 == await nested.run(work, "A-1")

                    raise Oops

            assert 8 == await uow.run(work, number="A-1")
            assert State.ACTIVE is uow.state

            await uow.commit()

        assert 8 == await balance(make_bank)

    in_bank(main)


@pytest.mark.parametrize("work", [*PLAIN.values(), *ASYNCHRONOUS.values()], ids=[*PLAIN, *ASYNCHRONOUS])
def test_run_outside_is_a_whole_unit(in_bank: InBank, work: Charges) -> None:
    """Outside the block `run()` does any callable, coroutine functions too, as one unit and commits it."""

    async def main(make_bank: MakeBank) -> None:
        bank = make_bank()

        assert 9 == await bank.run(work, "A-1")
        assert State.COMMITTED is bank.state
        assert 8 == await bank.run(work, number="A-1")
        assert 8 == await balance(make_bank)

    in_bank(main)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["function", "coroutine function"])
def test_run_outside_is_done_again(in_bank: InBank, asynchronous: bool) -> None:
    """After a transient error the whole is done again, and what the first attempt did is gone."""
    tries: list[int] = []

    def fail_once() -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            raise Deadlock("made up")

    def work() -> int:
        left = charge("A-1")
        fail_once()
        return left

    async def work_async() -> int:
        left = await charge_async("A-1")
        fail_once()
        return left

    async def main(make_bank: MakeBank) -> None:
        charged: Charges = work_async if asynchronous else work

        assert 9 == await make_bank(retry=AT_ONCE).run(charged)
        assert [0, 1] == tries
        assert 9 == await balance(make_bank)

    in_bank(main)


@pytest.mark.parametrize("work", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_run_inside_refuses_what_is_asynchronous_itself(in_bank: InBank, work: Charges) -> None:
    """Inside the block a coroutine function is awaited, not run; nothing of it is called, and the unit goes on."""

    async def main(make_bank: MakeBank) -> None:
        async with make_bank() as uow:
            with pytest.raises(Misuse) as caught:
                await uow.run(work, "A-1")
            await uow.commit()

        assert (
            f"Cannot call run() on <{type(uow).__name__} (root): active>: {work!r} is a coroutine function. "
            "Await it: it is inside the unit."
        ) == str(caught.value)
        assert 10 == await balance(make_bank)

    in_bank(main)


def test_run_inside_hands_an_error_over(in_bank: InBank) -> None:
    """What the work raises inside the block can be caught there, and the unit goes on."""

    def work() -> None:
        charge("A-1")
        raise Oops

    async def main(make_bank: MakeBank) -> None:
        async with make_bank() as uow:
            with pytest.raises(Oops):
                await uow.run(work)

            assert State.ACTIVE is uow.state

            await uow.commit()

        assert 9 == await balance(make_bank)

        with pytest.raises(Oops):
            await uow.run(work)

        assert State.ROLLED_BACK is uow.state
        assert 9 == await balance(make_bank)

    in_bank(main)


def test_run_outside_refuses_work_that_is_not_done(in_bank: InBank) -> None:
    """A plain function that returns a coroutine has done nothing yet: the unit is rolled back, and says so."""

    async def main(make_bank: MakeBank) -> None:
        bank = make_bank()
        with pytest.raises(InvalidArgument, match=r"the work returned .*which has not done anything yet.*"):
            await bank.run(lambda: charge_async("A-1"))

        assert State.ROLLED_BACK is bank.state
        assert 10 == await balance(make_bank)

    in_bank(main)


def test_run_inside_refuses_work_that_is_not_done(in_bank: InBank) -> None:
    """Inside the block it is the same error, and the unit goes on."""

    async def main(make_bank: MakeBank) -> None:
        async with make_bank() as uow:
            with pytest.raises(InvalidArgument, match=r"the work returned .*which has not done anything yet.*"):
                await uow.run(lambda: charge_async("A-1"))

            assert State.ACTIVE is uow.state

    in_bank(main)


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("commit()", lambda unit: unit.commit()),
        ("rollback()", lambda unit: unit.rollback()),
        ("leave the block", lambda unit: unit.__exit__(None, None, None)),
    ],
)
def test_the_synchronous_side_ends_nothing_outside_run(
    in_bank: InBank, words: str, end: Callable[[Any], object]
) -> None:
    """Neither the unit nor a nested one is ended where nobody could await it; it costs nothing."""

    async def main(make_bank: MakeBank) -> None:
        async with make_bank() as uow:
            (await uow.accounts.get("A-1")).balance -= 1
            await uow.flush()
            async with uow.nested() as nested:
                for unit in (uow, nested):
                    with pytest.raises(OutsideUnitOfWork, match="this is its synchronous side") as caught:
                        end(unit.sync)

                    assert words == caught.value.operation
                    assert State.ACTIVE is unit.state
            await uow.commit()

        assert 9 == await balance(make_bank)

    in_bank(main)


# --------------------------------------------------------------------------------------------------- hooks and handlers


Hook = Callable[[], object]


class Callbacks:
    """Hooks of every kind; each tells its name."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def plain(self, name: str) -> None:
        self.told.append(name)

    async def awaited(self, name: str) -> None:
        await asyncio.sleep(0)
        self.told.append(name)

    async def __call__(self) -> None:
        await self.awaited("object")

    def hooks(self) -> dict[str, Hook]:
        """One of each, plain and awaited in turn."""

        async def coroutine_function() -> None:
            await self.awaited("coroutine function")

        return {
            "plain": lambda: self.plain("plain"),
            "coroutine function": coroutine_function,
            "partial": partial(self.plain, "partial"),
            "partial of a coroutine function": partial(self.awaited, "partial of a coroutine function"),
            "returns a coroutine": lambda: self.awaited("returns a coroutine"),
            "another plain": lambda: self.plain("another plain"),
            "object": self,
            "returns a future": lambda: asyncio.ensure_future(self.awaited("returns a future")),
        }


@pytest.mark.parametrize("kind", ["before_commit", "after_commit", "after_rollback"])
def test_hooks_of_every_kind_run_in_order(in_bank: InBank, kind: str) -> None:
    """Plain hooks, coroutine functions and what returns something to await run in the order of registration."""

    async def main(make_bank: MakeBank) -> None:
        callbacks = Callbacks()
        async with make_bank() as uow:
            for hook in callbacks.hooks().values():
                assert hook is getattr(uow, kind)(hook)
            await uow.accounts.count()
            await (uow.rollback() if kind == "after_rollback" else uow.commit())

        assert [*callbacks.hooks()] == callbacks.told

    in_bank(main)


def test_handlers_of_every_kind_run_in_order(in_bank: InBank) -> None:
    """A handler that is a coroutine function is given the unit, any other its synchronous side; all in order."""
    handlers = Handlers()
    told: list[tuple[str, bool]] = []

    @handlers.before_commit(MoneyMoved)
    def plain(event: MoneyMoved, bank: Bank) -> None:
        told.append(("plain", isinstance(bank, Bank)))
        bank.accounts.get(event.number).balance -= 1

    @handlers.before_commit(MoneyMoved)
    async def awaited(event: MoneyMoved, bank: AsyncBank) -> None:
        told.append(("awaited", isinstance(bank, AsyncBank)))
        (await bank.accounts.get(event.number)).balance -= 1

    @handlers.before_commit(MoneyMoved)
    def returns_a_coroutine(event: MoneyMoved, bank: Bank) -> object:
        told.append(("returns a coroutine", isinstance(bank, Bank)))
        return charge_async(event.number)

    @handlers.after_commit(MoneyMoved)
    async def awaited_after(event: MoneyMoved) -> None:
        await asyncio.sleep(0)
        told.append(("awaited after", True))

    handlers.after_commit(MoneyMoved)(lambda event: told.append(("plain after", True)))

    async def main(make_bank: MakeBank) -> None:
        async with make_bank(handlers=handlers) as uow:
            (await uow.accounts.get("A-1")).withdraw(1)
            await uow.commit()

        assert [
            (name, True) for name in ("plain", "awaited", "returns a coroutine", "awaited after", "plain after")
        ] == told
        assert 6 == await balance(make_bank)

    in_bank(main)


@pytest.mark.parametrize("kind", ["before_commit", "after_commit", "after_rollback"])
@pytest.mark.parametrize("name", ["coroutine function", "partial of a coroutine function", "object"])
def test_a_synchronous_unit_takes_no_coroutine_function(kind: str, name: str) -> None:
    """It is an error when the hook is registered, and the unit goes on without it."""
    callbacks = Callbacks()
    hook = callbacks.hooks()[name]
    with FakeBank() as uow:
        with pytest.raises(DefinitionError) as caught:
            getattr(uow, kind)(hook)
        uow.commit()

    assert (
        f"Cannot define the hook {hook!r} of FakeBank: it has to be awaited, and the unit is synchronous. "
        "Use an AsyncUnitOfWork, or a plain function."
    ) == str(caught.value)
    assert [] == callbacks.told


class Later:
    """Something to await that is no coroutine."""

    def __await__(self) -> Generator[Any, None, None]:
        yield


@pytest.mark.parametrize(
    ("kind", "group", "state"),
    [
        ("before_commit", None, State.ROLLED_BACK),
        ("after_commit", AfterCommitFailed, State.COMMITTED),
        ("after_rollback", AfterRollbackFailed, State.ROLLED_BACK),
    ],
)
@pytest.mark.parametrize("returned", ["coroutine", "awaitable"])
def test_a_synchronous_unit_awaits_nothing(
    kind: str, group: type[ExceptionGroup[Exception]] | None, state: State, returned: str
) -> None:
    """A hook that returns something to await is an error when it is called; no coroutine is left behind."""
    callbacks = Callbacks()
    hooks: dict[str, Hook] = {"coroutine": lambda: callbacks.awaited("never"), "awaitable": Later}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(group or DefinitionError) as caught:
            with FakeBank() as uow:
                getattr(uow, kind)(hooks[returned])
                uow.rollback() if kind == "after_rollback" else uow.commit()
        gc.collect()
    error: Any = caught.value
    errors: Sequence[Exception] = [error] if group is None else error.exceptions

    assert [DefinitionError] == [type(error) for error in errors]
    assert "it has to be awaited, and the unit is synchronous" in str(errors[0])
    assert state is uow.state
    assert [] == [warning.message for warning in warned]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupt_among_hooks_after_the_commit(interrupt: type[BaseException]) -> None:
    """Every other hook runs; the interrupt comes out with the other errors as notes, and the commit stands."""
    told: list[str] = []
    bank = FakeBank()
    with pytest.raises(interrupt) as caught:
        with bank as uow:
            uow.accounts.add(Account("A-1", "Ann"))
            for hook in interrupted(interrupt, told):
                uow.after_commit(hook)
            uow.commit()

    assert ["first", "second", "third"] == told
    assert OTHER_ERRORS == caught.value.__notes__
    assert State.COMMITTED is bank.state


def test_two_interrupts_among_hooks_after_the_commit() -> None:
    """The first comes out, and tells of the second."""

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(KeyboardInterrupt) as caught, FakeBank() as uow:
        uow.after_commit(partial(fail, KeyboardInterrupt()))
        uow.after_commit(partial(fail, SystemExit(3)))
        uow.commit()

    assert ["Another interrupt in the hooks: SystemExit(3)"] == caught.value.__notes__


def test_a_generator_function_is_no_hook() -> None:
    """Called, it would do nothing at all."""

    def hook() -> Iterator[None]:
        yield

    async def awaited_hook() -> AsyncIterator[None]:
        yield

    with FakeBank() as uow:
        for wrong in (hook, awaited_hook):
            with pytest.raises(DefinitionError, match="it is a generator function, which does nothing"):
                uow.before_commit(wrong)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "awaited"])
def test_an_interrupt_among_awaited_hooks_after_the_commit(
    in_bank: InBank, interrupt: type[BaseException], asynchronous: bool
) -> None:
    """It is the same where the hooks are awaited; a cancellation also says what became of the unit."""

    async def main(make_bank: MakeBank) -> None:
        told: list[str] = []
        with pytest.raises(interrupt) as caught:
            async with make_bank() as uow:
                await uow.accounts.count()
                for hook in interrupted(interrupt, told):
                    uow.after_commit(partial(after_a_moment, hook) if asynchronous else hook)
                await uow.commit()
        words = [f"<{type(uow).__name__} (root): committed>"] if interrupt is asyncio.CancelledError else []

        assert ["first", "second", "third"] == told
        assert OTHER_ERRORS + words == caught.value.__notes__
        assert State.COMMITTED is uow.state

    in_bank(main)


OTHER_ERRORS = [f"Another error in the hooks: {error!r}" for error in (Oops("early"), Oops("late"))]


def interrupted(interrupt: type[BaseException], told: list[str]) -> list[Hook]:
    def fail(error: BaseException) -> None:
        raise error

    return [
        lambda: told.append("first"),
        lambda: fail(Oops("early")),
        lambda: told.append("second"),
        lambda: fail(interrupt()),
        lambda: fail(Oops("late")),
        lambda: told.append("third"),
    ]


async def after_a_moment(hook: Hook) -> None:
    await asyncio.sleep(0)
    hook()


# ------------------------------------------------------------------------------------------------- the synchronous side


def use_a_scope(bank: AsyncBank, hook: Hook = lambda: None) -> None:
    """Let synchronous code end a nested scope that has *hook*."""
    with bank.sync.nested() as nested:
        nested.accounts.get("A-1").balance -= 1
        nested.after_rollback(hook)
        nested.rollback()


@pytest.mark.parametrize(
    ("words", "attempt"),
    [
        ("use 'accounts'", lambda bank, kept: bank.sync.accounts),
        ("accounts.count()", lambda bank, kept: kept.count()),
        ("accounts.add()", lambda bank, kept: kept.add(Account("A-2", "Bob"))),
        ("flush()", lambda bank, kept: bank.sync.flush()),
        ("record()", lambda bank, kept: bank.sync.record(MoneyMoved("A-1", 1))),
        ("register a hook with after_commit()", lambda bank, kept: bank.sync.after_commit(lambda: None)),
        ("open a nested() scope", lambda bank, kept: use_a_scope(bank)),
        ("use 'accounts'", lambda bank, kept: Fees().charge("A-1")),
    ],
)
def test_the_synchronous_side_works_inside_run_alone(
    in_bank: InBank, words: str, attempt: Callable[[AsyncBank, Any], object]
) -> None:
    """In a coroutine, what belongs into `run()` says so; it costs nothing."""

    async def main(make_bank: MakeBank) -> None:
        async with make_bank() as uow:
            kept = await uow.run(lambda: current(Bank).accounts)
            with pytest.raises(OutsideUnitOfWork) as caught:
                attempt(uow, kept)
            await uow.run(attempt, uow, kept)

            assert State.ACTIVE is uow.state

        assert words == caught.value.operation
        assert (
            f" on {type(uow).__name__} (root): the unit is asynchronous and this is its synchronous side. "
            "Await the unit's own methods, or call synchronous code with `await uow.run(...)`."
        ) in str(caught.value)

    in_bank(main)


def test_two_operations_at_once_are_two_tasks(in_bank: InBank) -> None:
    """`asyncio.gather()` makes a task of each operation, and neither owns the unit, which goes on."""

    async def main(make_bank: MakeBank) -> None:
        async with make_bank() as uow:
            errors = await asyncio.gather(uow.accounts.count(), uow.accounts.get("A-1"), return_exceptions=True)

            assert [WrongTask, WrongTask] == [type(error) for error in errors]
            assert "another asyncio task" in str(errors[0])
            assert 1 == await uow.accounts.count()

    in_bank(main)


def use_a_unit(bank: AsyncBank, hook: Hook) -> None:
    """Let synchronous code commit a unit of its own that has *hook*."""
    with bank.sync.independent() as unit:
        unit.accounts.get("A-1")
        unit.before_commit(hook)
        unit.commit()


uses = pytest.mark.parametrize("use", [use_a_scope, use_a_unit])
Use = Callable[[AsyncBank, Hook], None]


@uses
@pytest.mark.parametrize("where", ["run", "hook"])
def test_synchronous_code_may_end_scopes_with_awaited_hooks(beside: Engine, use: Use, where: str) -> None:
    """On a database a hook that is awaited runs, although synchronous code ended its scope."""
    told: list[str] = []

    async def main() -> None:
        engine = create_async_engine(beside.url.set(drivername="sqlite+aiosqlite"))
        try:
            await begin(partial(AsyncSqlBank, engine), work)
        finally:
            await engine.dispose()

    async def work(make_bank: MakeBank) -> None:
        hook = partial(after_a_moment, lambda: told.append("hook"))
        async with make_bank() as uow:
            if where == "run":
                await uow.run(use, uow, hook)
            else:
                uow.before_commit(partial(use, uow, hook))
            await uow.commit()

    asyncio.run(main())

    assert ["hook"] == told


@uses
@pytest.mark.parametrize("where", ["run", "hook"])
def test_synchronous_code_on_the_fake_cannot_wait(use: Use, where: str) -> None:
    """Without a database nothing can wait there, and the error says so; a hook that waits for nothing runs."""
    told: list[str] = []

    async def at_once() -> None:
        told.append("at once")

    async def work(hook: Hook) -> None:
        async with AsyncFakeBank(store) as uow:
            uow.after_commit(lambda: told.append("committed"))
            if where == "run":
                await uow.run(use, uow, hook)
            else:
                uow.before_commit(partial(use, uow, hook))
            await uow.commit()

    store = Store()
    asyncio.run(begin(partial(AsyncFakeBank, store), lambda _: work(at_once)))

    assert ["at once", "committed"] == told

    with pytest.raises(UnitOfWorkError) as caught:
        asyncio.run(work(partial(after_a_moment, lambda: told.append("never"))))
    error: BaseException = caught.value
    if isinstance(error, AfterRollbackFailed):
        (error,) = error.exceptions

    assert isinstance(error, ConfigurationError)
    assert "synchronous code reached a hook that has to be awaited" == error.problem
    assert "make the hook a plain function, or end the scope with await" in error.hint
    assert ["at once", "committed"] == told
    assert store.idle()


# --------------------------------------------------------------------------------------------- what a unit is made with


class AsyncMine(AsyncSession):
    def shout(self) -> str:
        return "!"


class Mine(Session):
    pass


class AsyncMineOnMine(AsyncMine):
    sync_session_class = Mine


@pytest.mark.parametrize(
    ("classes", "expected", "inner"),
    [
        ({}, AsyncSession, Session),
        ({"class_": AsyncMine}, AsyncMine, Session),
        ({"sync_session_class": Mine}, AsyncSession, Mine),
        ({"class_": AsyncMine, "sync_session_class": Mine}, AsyncMine, Mine),
        ({"class_": AsyncMineOnMine}, AsyncMineOnMine, Mine),
    ],
    ids=["neither", "class_", "sync_session_class", "both", "class_ that names it"],
)
def test_an_async_sessionmaker_gives_the_session_its_classes(
    beside: Engine, classes: dict[str, Any], expected: type[AsyncSession], inner: type[Session]
) -> None:
    """The session is of the factory's class, the one behind it of that one's, and its options hold."""

    async def main() -> None:
        engine = create_async_engine(beside.url.set(drivername="sqlite+aiosqlite"))
        factory: Any = async_sessionmaker(engine, info={"mine": True}, autoflush=False, **classes)
        try:
            async with AsyncSqlBank(factory) as uow:
                uow.accounts.add(Account("A-1", "Ann"))
                session = uow.session

                assert expected is type(session)
                assert session is uow.session
                assert isinstance(session.sync_session, inner)
                assert ({"mine": True}, False) == (session.info, session.autoflush)

                await session.flush()

                assert 1 == (await session.execute(text("SELECT count(*) FROM accounts"))).scalar_one()

                await uow.commit()
        finally:
            await engine.dispose()

    asyncio.run(main())

    with SqlBank(beside) as bank:
        assert ["A-1"] == [account.number for account in bank.accounts.list()]


NOT_BOUND = "the sessionmaker is not bound to one engine for one transaction"
NOT_ASYNCHRONOUS = "the async_sessionmaker is not bound to an asynchronous engine"
NEITHER = (
    r"is neither an AsyncEngine nor an async_sessionmaker. Pass create_async_engine\(...\) or async_sessionmaker\("
)


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (lambda engine: async_sessionmaker(), NOT_ASYNCHRONOUS),
        (lambda engine: async_sessionmaker(engine.sync_engine), NOT_ASYNCHRONOUS),
        (lambda engine: async_sessionmaker(engine, binds={Account: engine.sync_engine}), NOT_BOUND),
        (lambda engine: async_sessionmaker(engine, twophase=True), NOT_BOUND),
        (lambda engine: engine.sync_engine, NEITHER),
        (lambda engine: sessionmaker(engine.sync_engine), NEITHER),
        (lambda engine: AsyncSession(engine), NEITHER),
        (lambda engine: "sqlite+aiosqlite://", NEITHER),
    ],
    ids=["no bind", "a synchronous bind", "binds", "two-phase", "engine", "sessionmaker", "session", "URL"],
)
def test_an_asynchronous_unit_is_made_with_an_engine_of_its_kind(
    beside: Engine, bind: Callable[[AsyncEngine], Any], words: str
) -> None:
    """What is no asynchronous engine, or not bound to one alone, is refused when the unit is made."""
    engine = create_async_engine(beside.url.set(drivername="sqlite+aiosqlite"))
    with pytest.raises(ConfigurationError, match=words):
        AsyncSqlBank(bind(engine))


def test_a_synchronous_unit_cannot_wait_for_an_asynchronous_driver(beside: Engine) -> None:
    """It is refused, itself when the unit is made, and the engine behind it at the first statement."""
    engine = create_async_engine(beside.url.set(drivername="sqlite+aiosqlite"))
    with pytest.raises(ConfigurationError, match="is neither an Engine nor a sessionmaker"):
        SqlBank(engine)  # type: ignore[arg-type]
    with SqlBank(engine.sync_engine) as bank:
        with pytest.raises(ConfigurationError) as caught:
            bank.accounts.count()

    assert "aiosqlite is an asynchronous driver, and the unit is synchronous" == caught.value.problem
    assert "Use AsyncSqlAlchemyUnitOfWork with create_async_engine(), or another driver." == caught.value.hint
    assert 0 == engine.sync_engine.pool.checkedout()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------- a database of no renown


@pytest.fixture
def unknown(beside: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A database that the adapter knows nothing special of."""
    monkeypatch.delitem(adapter._backends._BACKENDS, "sqlite")  # type: ignore[attr-defined]
    return beside


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"read_only": True}, "read_only"),
        ({"isolation": "SERIALIZABLE", "lock_timeout": 1.0}, "isolation, lock_timeout"),
    ],
)
def test_an_unknown_database_takes_no_options(unknown: Engine, options: dict[str, Any], words: str) -> None:
    """Nobody knows how to say them there."""
    with pytest.raises(ConfigurationError) as caught:
        SqlBank(unknown, **options)

    assert (f"sqlite takes no {words} from a unit", "Leave it out.") == (caught.value.problem, caught.value.hint)


def test_an_unknown_database_serves_units_without_options(unknown: Engine) -> None:
    """What SQLAlchemy does by itself is enough for a unit that commits and for one that is rolled back."""
    for number, verb in (("A-1", "commit"), ("A-2", "rollback")):
        with SqlBank(unknown) as bank:
            bank.accounts.add(Account(number, "Ann"))
            bank.flush()

            assert bank.accounts.exists(lambda a: a.number == number)  # noqa: B023

            getattr(bank, verb)()

    with SqlBank(unknown) as bank:
        assert ["A-1"] == [account.number for account in bank.accounts.list()]


@pytest.mark.parametrize("isolation", [5, b"SERIALIZABLE", ["SERIALIZABLE"]])
def test_an_isolation_level_is_a_name(isolation: Any) -> None:
    """Anything else is refused where it is said."""
    with pytest.raises(ConfigurationError) as caught:
        Options(isolation=isolation)

    assert f"isolation is {isolation!r}" == caught.value.problem
    assert "Pass the name of a level, or None." == caught.value.hint


@pytest.mark.parametrize(("error", "transient"), [(Deadlock, True), (UniqueViolation, False)])
def test_a_broken_scope_is_as_transient_as_what_broke_it(error: type[DatabaseError], transient: bool) -> None:
    """Whoever swallows a database error and goes on meets one that can be retried just as well."""
    store = Store()
    store.fail_next("flush", error)
    with pytest.raises(ScopeBroken) as caught:
        with FakeBank(store) as uow:
            flush_and_count(uow)

    assert transient is caught.value.transient
    assert error is type(caught.value.__cause__)


def test_a_swallowed_deadlock_is_retried() -> None:
    """What was swallowed does not keep `run()` from doing the unit again."""
    store = Store()
    store.fail_next("flush", Deadlock)
    bank = FakeBank(store, retry=AT_ONCE)

    assert 1 == bank.run(lambda: flush_and_count(bank))


def flush_and_count(bank: Bank) -> int:
    bank.accounts.add(Account("A-1", "Ann"))
    with suppress(DatabaseError):
        bank.flush()
    return bank.accounts.count()


# ------------------------------------------------------------------------------------------------------ steps, shielded


def protected(steps: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Take *steps* in a task, all of them protected."""

    async def take() -> Any:
        return await shielded(steps, lambda: True)

    return asyncio.create_task(take())


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_protected_steps_are_taken_to_their_end(times: int, fails: bool) -> None:
    """A cancellation waits, whatever the steps wait for, and is then raised, because of their error if they had one."""
    told: list[str] = []

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def steps() -> None:
            await asyncio.sleep(0)
            told.append("gave way")
            await future
            told.append("waited")
            if fails:
                raise Oops

        task = protected(steps())
        for _ in range(times + 1):  # the first lets it begin
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)

        assert ["gave way"] == told

        future.set_result(None)
        with pytest.raises(asyncio.CancelledError) as caught:
            await task

        assert ["gave way", "waited"] == told
        assert (Oops if fails else type(None)) is type(caught.value.__cause__)

    asyncio.run(main())


def test_a_timeout_of_protected_steps_is_their_own() -> None:
    """A timeout inside the steps that comes too late to cut anything off is no cancellation of the task."""

    async def main() -> None:
        begun = asyncio.get_running_loop().create_future()
        end = asyncio.get_running_loop().create_future()

        async def steps() -> str:
            async with asyncio.timeout(0):
                begun.set_result(None)
                await end
            return "done"

        task = protected(steps())
        await begun
        while not task.cancelling():
            await asyncio.sleep(0)
        end.set_result(None)

        assert "done" == await task

    asyncio.run(main())


@pytest.mark.parametrize("end", [lambda future: future.cancel(), lambda future: future.set_exception(Oops())])
def test_what_protected_steps_wait_for_may_fail(end: Callable[["asyncio.Future[None]"], object]) -> None:
    """A future that somebody cancels, or that fails, is the steps' affair, and the task goes on."""

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def steps() -> str:
            with suppress(asyncio.CancelledError, Oops):
                await future
            return "done"

        task = protected(steps())
        await asyncio.sleep(0)
        end(future)

        assert "done" == await task

    asyncio.run(main())


def test_a_cancellation_that_the_steps_swallowed_does_not_come_back() -> None:
    """One that arrived while nothing was protected is over, even if others cancel a later, protected wait."""

    async def main() -> None:
        never, future = (asyncio.get_running_loop().create_future() for _ in range(2))
        shields: list[str] = []

        async def steps() -> str:
            with suppress(asyncio.CancelledError):
                await never
            shields.append("up")
            with suppress(asyncio.CancelledError):
                await future
            return "done"

        async def take() -> str:
            return await shielded(steps(), lambda: bool(shields))

        task = asyncio.create_task(take())
        await asyncio.sleep(0)
        task.cancel()
        while not shields:
            await asyncio.sleep(0)
        future.cancel()

        assert "done" == await task

    asyncio.run(main())


@pytest.mark.parametrize("sleeps", [False, True], ids=["waits", "lets others go first"])
def test_a_cancellation_that_had_to_wait_comes_with_the_next_wait(sleeps: bool) -> None:
    """Where steps go on behind what was protected, it cuts them off when they wait again, and says what came of it."""
    scope = SimpleNamespace(title="SqlBank (root)", state=State.COMMITTED)
    cut: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        protected, later = loop.create_future(), loop.create_future()
        shields = [scope]

        async def steps() -> None:
            await protected
            shields.clear()
            try:
                await (asyncio.sleep(0) if sleeps else later)
            finally:
                cut.append("cut")

        async def shielded_steps() -> None:
            await shielded(steps(), lambda: shields and shields[0], to_the_end=False)

        task = asyncio.create_task(shielded_steps())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)

        assert not task.done()

        protected.set_result(None)
        with pytest.raises(asyncio.CancelledError) as caught:
            await task

        assert ["<SqlBank (root): committed>"] == caught.value.__notes__
        assert later.cancelled() is not sleeps

    asyncio.run(main())

    assert ["cut"] == cut
