"""
Scopes in reach: `current()`, `DomainService` and `@transactional` on synchronous units.
"""

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

import pytest
from attrs import define, field, frozen
from sqlalchemy import URL, create_engine

from uow import DomainService, Handlers, Propagation, Repository, Retry, State, UnitOfWork, current, transactional
from uow.adapters.memory import AsyncFakeUnitOfWork, FakeUnitOfWork, Store
from uow.errors import (
    ConfigurationError,
    ContradictoryOptions,
    DefinitionError,
    InvalidArgument,
    Misuse,
    NotNullViolation,
    OutsideUnitOfWork,
    ReadOnlyUnitOfWork,
    SerializationFailure,
    UniqueViolation,
    UnitOfWorkActive,
    UnitOfWorkEnded,
    UnitOfWorkRolledBack,
    WrongTask,
)
from uow.testing import Harness
from uow.testing._memory import FakeBank, FakeHarness
from uow.testing._model import Account, Bank, MoneyMoved
from uow.testing._sqlalchemy import SqlAlchemyHarness

AT_ONCE = Retry(attempts=3, wait_initial=0, wait_max=0, wait_jitter=0)
U = TypeVar("U")


class Oops(Exception):
    """What goes wrong in the application itself."""


class Shop(UnitOfWork):
    """Another port."""

    accounts: Repository[Account]


class FakeShop(FakeUnitOfWork, Shop): ...


class AsyncFakeBank(AsyncFakeUnitOfWork): ...


@pytest.fixture(params=["fake", "sqlite"])
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """A bank in memory, and one on SQLite."""
    made: Harness = FakeHarness()
    if request.param == "sqlite":
        url: URL = request.getfixturevalue("sqlite_url")
        made = SqlAlchemyHarness(create_engine(url))
    yield made
    made.close()


def add(uow: Bank, number: str = "A-1") -> int:
    """Add an account and say how deep."""
    uow.accounts.add(Account(number, "Ann"))
    return uow.status().depth


@frozen
class Ledger:
    """An application service that does everything in every way."""

    uow: Bank

    @transactional
    def required(self, number: str, error: BaseException | None = None) -> int:
        return self.work(number, error)

    @transactional(propagation=Propagation.NESTED)
    def nested(self, number: str, error: BaseException | None = None) -> int:
        return self.work(number, error)

    @transactional(propagation=Propagation.REQUIRES_NEW)
    def requires_new(self, number: str, error: BaseException | None = None) -> int:
        return self.work(number, error)

    @transactional(propagation=Propagation.MANDATORY)
    def mandatory(self, number: str, error: BaseException | None = None) -> int:
        return self.work(number, error)

    @transactional(propagation=Propagation.NEVER)
    def never(self) -> State:
        return self.uow.state

    def work(self, number: str, error: BaseException | None) -> int:
        depth = add(self.uow, number)
        if error is not None:
            raise error
        return depth


# -------------------------------------------------------------------------------------------- what can be transactional


class Caller:
    """A callable object that is given the unit."""

    def __call__(self, uow: Bank) -> int:
        return add(uow)


@frozen
class Holder:
    """A callable object that has the unit."""

    uow: Bank

    def __call__(self, number: str = "A-1") -> int:
        return add(self.uow, number)


class Methods:
    """Methods of every kind, decorated."""

    uow: Bank

    def __init__(self, uow: Bank) -> None:
        self.uow = type(self).uow = uow

    @transactional
    def plain(self) -> int:
        return add(self.uow)

    @transactional
    def given(self, uow: Bank) -> int:
        return add(uow)

    @transactional
    def by_keyword(self, *, number: str = "A-1", uow: Bank) -> int:
        return add(uow, number)

    @classmethod
    @transactional
    def of_the_class(cls) -> int:
        return add(cls.uow)

    @staticmethod
    @transactional
    def static(uow: Bank) -> int:
        return add(uow)

    def undecorated(self, number: str = "A-1") -> int:
        return add(self.uow, number)


@transactional
def decorated(uow: Bank, number: str = "A-1") -> int:
    return add(uow, number)


@transactional
def keyword_only(*, number: str = "A-1", uow: Bank) -> int:
    return add(uow, number)


CALLS: dict[str, Callable[[Bank], Callable[[], int]]] = {
    "function": lambda bank: partial(decorated, bank),
    "function by keyword": lambda bank: partial(decorated, number="A-1", uow=bank),
    "keyword only": lambda bank: partial(keyword_only, uow=bank),
    "partial of a decorated function": lambda bank: partial(decorated, bank),
    "decorated partial": lambda bank: transactional(partial(add, bank)),
    "decorated partial by keyword": lambda bank: transactional(partial(add, uow=bank)),
    "decorated partial of a partial": lambda bank: transactional(partial(partial(add, bank), number="A-1")),
    "decorated partial without the unit": lambda bank: partial(transactional(partial(add, number="A-1")), bank),
    "lambda": lambda bank: partial(transactional(lambda uow: add(uow)), bank),
    "callable object": lambda bank: partial(transactional(Caller()), bank),
    "callable object with a unit": lambda bank: transactional(Holder(bank)),
    "method": lambda bank: Methods(bank).plain,
    "method that is given the unit": lambda bank: partial(Methods(FakeBank()).given, bank),
    "method that is given the unit by keyword": lambda bank: partial(Methods(FakeBank()).by_keyword, uow=bank),
    "class method": lambda bank: Methods(bank).of_the_class,
    "static method": lambda bank: partial(Methods.static, bank),
    "decorated bound method": lambda bank: transactional(Methods(bank).undecorated),
    "decorated partial of a bound method": lambda bank: transactional(partial(Methods(bank).undecorated, "A-1")),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_it_commits_when_it_returns(harness: Harness, call: Callable[[Bank], Callable[[], int]]) -> None:
    """Whatever is decorated, and however it gets its unit: the result comes back and the work is durable."""
    bank = harness.bank()

    assert 0 == call(bank)()
    assert State.NEW is bank.state
    assert ["A-1"] == harness.numbers()
    assert harness.idle()


@pytest.mark.parametrize("error", [Oops(), KeyboardInterrupt(), GeneratorExit()], ids=lambda e: type(e).__name__)
def test_it_rolls_back_when_it_raises(harness: Harness, error: BaseException) -> None:
    """The very exception reaches the caller, nothing is stored, and the handle is free again."""
    bank = harness.bank()
    with pytest.raises(type(error)) as caught:
        Ledger(bank).required("A-1", error)

    assert error is caught.value
    assert (None, None) == (error.__cause__, error.__context__)
    assert State.NEW is bank.state
    assert harness.idle()
    assert 0 == Ledger(bank).required("B-2")
    assert ["B-2"] == harness.numbers()


def test_a_failed_commit_is_the_callers(harness: Harness) -> None:
    """What the commit meets is raised from the call, and there is no result."""
    Ledger(harness.bank()).required("A-1")
    with pytest.raises(UniqueViolation):
        Ledger(harness.bank()).required("A-1")

    assert harness.idle()


def test_a_swallowed_database_error_is_not(harness: Harness) -> None:
    """A function that swallows a database error and returns does not commit a part: UnitOfWorkRolledBack."""

    @transactional
    def swallow(uow: Bank) -> None:
        uow.accounts.add(Account("A-1", None))
        with suppress(NotNullViolation):
            uow.flush()

    with pytest.raises(UnitOfWorkRolledBack) as caught:
        swallow(harness.bank())

    assert isinstance(caught.value.__cause__, NotNullViolation)
    assert [] == harness.numbers()


def test_it_keeps_what_says_what_it_is() -> None:
    """Name, module, docstring, signature, annotations and attributes are the function's."""

    def move(uow: Bank, source: str, *, amount: int = 3) -> str:
        """Move it."""
        return source

    move.price = 5  # type: ignore[attr-defined]
    made = transactional(propagation=Propagation.NESTED)(move)

    assert (move.__name__, move.__qualname__, move.__module__, move.__doc__, move.__annotations__) == (
        made.__name__,
        made.__qualname__,
        made.__module__,
        made.__doc__,
        made.__annotations__,
    )
    assert inspect.signature(move) == inspect.signature(made)
    assert move is inspect.unwrap(made)
    assert 5 == made.price  # type: ignore[attr-defined]
    assert not inspect.iscoroutinefunction(made)
    assert inspect.signature(partial(move, source="A")) == inspect.signature(transactional(partial(move, source="A")))


def test_it_does_not_change_arguments(harness: Harness) -> None:
    """Positional, keyword and variadic arguments arrive as they were given."""

    @transactional
    def collect(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
        return args, kwargs

    bank = harness.bank()

    assert ((1, bank, 2), {"a": 3, "uow": 4}) == collect(1, bank, 2, a=3, uow=4)


# ------------------------------------------------------------------------------------------------------------ refused


def _generator(uow: Bank) -> Generator[int]:
    yield uow.accounts.count()


async def _async_generator(uow: Bank) -> Any:
    yield uow.accounts.count()


class _Yields:
    def __call__(self, uow: Bank) -> Generator[int]:
        yield uow.accounts.count()

    def method(self, uow: Bank) -> Generator[int]:
        yield uow.accounts.count()


@pytest.mark.parametrize(
    "function",
    [
        _generator,
        _async_generator,
        partial(_generator),
        partial(partial(_async_generator)),
        _Yields(),
        _Yields().method,
    ],
)
@pytest.mark.parametrize("options", [{}, {"propagation": Propagation.NEVER}], ids=["bare", "with arguments"])
def test_a_generator_is_refused(function: Any, options: dict[str, Any]) -> None:
    """A generator's body would run after the scope: an error where it is decorated, with the reason."""
    with pytest.raises(DefinitionError, match=r"it is a generator, whose body would run after the scope has ended"):
        (transactional(**options) if options else transactional)(function)


def test_a_function_that_returns_its_work_undone_is_refused(harness: Harness) -> None:
    """A generator or coroutine that a function returns would run after the scope, so nothing is committed."""

    async def later() -> None: ...

    for function in (lambda uow: (a for a in uow.accounts.list()), lambda uow: _generator(uow), lambda uow: later()):
        bank = harness.bank()
        with pytest.raises(InvalidArgument, match="which has not done anything yet"):
            transactional(function)(bank)

        assert State.NEW is bank.state
    assert harness.idle()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (3, "3 is no function"),
        (Account, "Account'> is no function"),
        (staticmethod(add), "Put @staticmethod above @transactional"),
        (classmethod(add), "Put @classmethod above @transactional"),
    ],
)
def test_what_is_no_function_is_refused(function: Any, text: str) -> None:
    """An error where it is decorated says what to do."""
    with pytest.raises(DefinitionError, match=text):
        transactional(function)


def test_a_call_without_a_unit_is_refused() -> None:
    """There must be a unit among the arguments or in the first one's `uow`."""
    for call in (partial(decorated, 3), decorated, partial(Methods.plain, object()), partial(keyword_only, uow=None)):
        with pytest.raises(DefinitionError, match="no argument is a unit, and the first has no attribute `uow`"):
            call()  # type: ignore[operator]


def test_a_synchronous_function_and_an_asynchronous_unit() -> None:
    """The error says which is which, and the two ways out."""
    bank = AsyncFakeBank()
    with pytest.raises(Misuse) as caught:
        decorated(bank)  # type: ignore[arg-type]

    assert (
        "Cannot call decorated on <AsyncFakeBank: new>: it is an ordinary function, and the unit is asynchronous. "
        "Make it a coroutine function, or pass uow.sync."
    ) == str(caught.value)
    with pytest.raises(Misuse, match="Make it a coroutine function"):
        Ledger(bank).required("A-1")  # type: ignore[arg-type]


def test_options_that_could_not_apply_are_refused() -> None:
    """NEVER opens no unit to which they could apply; MANDATORY opens none that could be done again."""
    for wrong in ({"read_only": True}, {"isolation": "SERIALIZABLE"}, {"retry": AT_ONCE}):
        with pytest.raises(DefinitionError, match="there is no unit to which its options could apply"):
            transactional(propagation=Propagation.NEVER, **wrong)(add)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError):
        transactional(propagation=Propagation.MANDATORY, retry=AT_ONCE)(add)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"propagation": "REQUIRED"}, DefinitionError, "'REQUIRED' is no Propagation"),
        ({"retry": 3}, DefinitionError, r"retry is 3. Pass Retry\(attempts=3\)"),
        ({"isolaton": "SERIALIZABLE"}, TypeError, "isolaton"),
        ({"lock_timeout": -1}, ConfigurationError, "lock_timeout is -1"),
    ],
)
def test_what_means_nothing_is_refused_at_once(wrong: dict[str, Any], error: type[Exception], text: str) -> None:
    """A slip is an error where the function is decorated, not where it is called, or never."""
    with pytest.raises(error, match=text):
        transactional(**wrong)(add)


def test_the_unit_among_the_arguments_comes_first(harness: Harness) -> None:
    """A unit that is an argument, given or by default, is the one; the first argument's `uow` is not even looked at."""
    bank = harness.bank()

    @transactional
    def charge(fees: Fees, uow: Bank) -> int:
        return uow.status().depth

    @transactional
    def by_default(fees: Fees, *, uow: Bank = bank) -> int:
        return uow.status().depth

    assert (0, 0) == (charge(Fees(), bank), by_default(Fees()))


# ------------------------------------------------------------------------------------------ commit(), rollback() inside


def test_commit_in_the_body(harness: Harness) -> None:
    """A function may commit by itself: the work is kept whatever follows, and more work is refused."""

    @transactional
    def work(uow: Bank) -> str:
        add(uow)
        uow.commit()
        with pytest.raises(UnitOfWorkEnded):
            add(uow, "B-2")
        return "done"

    @transactional
    def fail(uow: Bank) -> None:
        add(uow, "C-3")
        uow.commit()
        raise Oops

    assert "done" == work(harness.bank())
    with pytest.raises(Oops):
        fail(harness.bank())

    assert ["A-1", "C-3"] == harness.numbers()


def test_rollback_in_the_body(harness: Harness) -> None:
    """A function may roll back its own unit by itself, and return."""

    @transactional
    def work(uow: Bank) -> str:
        add(uow)
        uow.rollback()
        return "done"

    assert "done" == work(harness.bank())
    assert [] == harness.numbers()


def test_commit_and_rollback_in_a_joined_body(harness: Harness) -> None:
    """Joined, commit() leaves the decision to the unit around, and rollback() dooms it."""

    @transactional
    def work(uow: Bank, end: str) -> None:
        add(uow, end)
        getattr(uow, end)()

    with harness.bank() as bank:
        work(bank, "commit")
        bank.rollback()

    assert [] == harness.numbers()
    with pytest.raises(UnitOfWorkRolledBack, match=r"the joined scope 'root > .*work'"), harness.bank() as bank:
        work(bank, "rollback")
        bank.commit()

    assert [] == harness.numbers()


def test_the_same_handlers_through_another_handle(harness: Harness) -> None:
    """Two unit objects made with the same Handlers join each other."""
    handlers = Handlers()
    handlers.after_commit(MoneyMoved)(print)
    with harness.bank(handlers=handlers):
        assert 1 == Ledger(harness.bank(handlers=handlers)).required("A-1")


def test_hooks_and_events_in_the_body(harness: Harness) -> None:
    """What is registered and recorded in the body belongs to its scope and runs with the unit's commit."""
    seen: list[object] = []
    handlers = Handlers()

    @handlers.before_commit(MoneyMoved)
    def inside(event: MoneyMoved, uow: Bank) -> None:
        seen.append(event.amount)
        add(uow, "B-2")

    @transactional
    def work(uow: Bank) -> None:
        account = Account("A-1", "Ann", 5)
        uow.accounts.add(account)
        account.withdraw(2)
        uow.after_commit(lambda: seen.append("after"))

    work(harness.bank(handlers=handlers))

    assert [2, "after"] == seen
    assert ["A-1", "B-2"] == harness.numbers()


# --------------------------------------------------------------------------------------------------------- propagation


def other_handle(harness: Harness, bank: Bank, same: bool) -> Ledger:
    """Return a service with the caller's unit object, or with another one on the same database."""
    return Ledger(bank if same else harness.bank())


SAME = pytest.mark.parametrize("same", [True, False], ids=["same handle", "another handle"])


@SAME
def test_required_joins(harness: Harness, same: bool) -> None:
    """Inside a unit it joins: kept with its commit, lost with its rollback; the caller's handle is what it was."""
    for end, expected in (("rollback", []), ("commit", ["A-1", "B-2"])):
        with harness.bank() as bank:
            before = bank.status().name

            assert 1 == other_handle(harness, bank, same).required("A-1")
            assert (before, 0) == (bank.status().name, bank.status().depth)

            add(bank, "B-2")
            getattr(bank, end)()

        assert expected == harness.numbers()


@SAME
@pytest.mark.parametrize("method", ["required", "mandatory"])
def test_a_joined_failure_dooms_the_caller(harness: Harness, same: bool, method: str) -> None:
    """The root's error names the function and carries its exception."""
    error = Oops("no")
    with pytest.raises(UnitOfWorkRolledBack, match=f"the joined scope '.*Ledger.{method}' failed") as caught:
        with harness.bank() as bank:
            with pytest.raises(Oops):
                getattr(other_handle(harness, bank, same), method)("A-1", error)

            assert State.DOOMED is bank.state

            bank.commit()

    assert error is caught.value.__cause__
    assert [] == harness.numbers()


@SAME
def test_services_that_call_services(harness: Harness, same: bool) -> None:
    """Each one joins the outermost, whose return commits all; a swallowed failure anywhere loses all."""
    bank = harness.bank()
    inner = other_handle(harness, bank, same)

    @frozen
    class Outer:
        uow: Bank

        @transactional
        def go(self, *, swallow: bool) -> int:
            add(self.uow, f"outer {swallow}")
            depth = inner.required(f"inner {swallow}")
            with suppress(Oops):
                inner.nested("lost", Oops())
            if swallow:
                with suppress(Oops):
                    inner.required("lost", Oops())
            else:
                assert 0 == self.uow.status().depth
            return depth

    assert 1 == Outer(bank).go(swallow=False)
    with pytest.raises(UnitOfWorkRolledBack, match=r"the joined scope '.*Ledger\.required' failed"):
        Outer(bank).go(swallow=True)

    assert ["inner False", "outer False"] == harness.numbers()
    assert harness.idle()


def test_recursion(harness: Harness) -> None:
    """A function that calls itself joins itself, and its handle stands for the innermost scope at each step."""
    depths: list[int] = []

    @transactional
    def down(uow: Bank, levels: int) -> None:
        depths.append(add(uow, f"A-{levels}"))
        if levels:
            down(uow, levels - 1)
        depths.append(uow.status().depth)

    down(harness.bank(), 3)

    assert [0, 1, 2, 3, 3, 2, 1, 0] == depths
    assert ["A-0", "A-1", "A-2", "A-3"] == harness.numbers()


@SAME
def test_nested_fails_alone(harness: Harness, same: bool) -> None:
    """NESTED has a savepoint in the caller's unit: its failure costs its own work, and its success is the caller's."""
    error = Oops()
    with harness.bank() as bank:
        ledger = other_handle(harness, bank, same)
        add(bank)
        with pytest.raises(Oops) as caught:
            ledger.nested("B-2", error)

        assert error is caught.value
        assert (State.ACTIVE, 0) == (bank.state, bank.status().depth)
        assert 1 == ledger.nested("C-3")

        bank.commit()

    assert ["A-1", "C-3"] == harness.numbers()


def test_nested_in_the_innermost_scope(harness: Harness) -> None:
    """The savepoint is in the innermost scope, and named after the function."""
    names: list[str] = []

    @transactional(propagation=Propagation.NESTED)
    def step(uow: Bank) -> None:
        names.append(repr(uow))

    with harness.bank() as bank, bank.joined("pay"), bank.nested("line") as line:
        step(line)

    assert [True] == ["(root > pay > line > test_nested_in_the_innermost_scope.<locals>.step)" in n for n in names]


@pytest.mark.parametrize("method", ["required", "nested", "requires_new"])
def test_without_a_unit_it_is_a_root(harness: Harness, method: str) -> None:
    """With nothing open around, REQUIRED, NESTED and REQUIRES_NEW are units of their own."""
    assert 0 == getattr(Ledger(harness.bank()), method)("A-1")
    with pytest.raises(Oops):
        getattr(Ledger(harness.bank()), method)("B-2", Oops())

    assert ["A-1"] == harness.numbers()
    assert harness.idle()


@SAME
@pytest.mark.parametrize("fail", [False, True])
def test_requires_new_is_independent(harness: Harness, same: bool, fail: bool) -> None:
    """Inside, the handle is the new unit; afterwards it is the old one, which the new one's end costs nothing."""
    with harness.bank() as bank:
        ledger = other_handle(harness, bank, same)
        add(bank, "outer")
        if fail:
            with pytest.raises(Oops):
                ledger.requires_new("inner", Oops())
        else:
            assert 0 == ledger.requires_new("inner")

        assert (State.ACTIVE, 0, 1) == (bank.state, bank.status().depth, bank.status().pending.added)

        add(bank, "outer too")
        if fail:
            bank.commit()
        else:
            bank.rollback()

    assert (["outer", "outer too"] if fail else ["inner"]) == harness.numbers()
    assert harness.idle()


def test_requires_new_sees_a_unit_of_its_own(harness: Harness) -> None:
    """Inside it, handle, current() and what is joined are the new unit; nothing of the outer one is seen."""

    @transactional(propagation=Propagation.REQUIRES_NEW)
    def work(uow: Bank) -> None:
        inner = current(Bank)

        assert outer_scope != id(inner.accounts)
        assert inner.accounts is uow.accounts
        assert not uow.accounts.exists()

        Ledger(bank).required("inner")

        assert 1 == uow.accounts.count()
        assert 1 == Ledger(bank).nested("nested")

    with harness.bank() as bank:
        add(bank, "outer")
        outer_scope = id(bank.accounts)
        work(bank)

        assert bank is current(Bank)
        assert outer_scope == id(bank.accounts)

        bank.rollback()

    assert ["inner", "nested"] == harness.numbers()


def test_requires_new_after_its_own_commit(harness: Harness) -> None:
    """After commit() in the body the handle is not the outer unit by accident."""

    @transactional(propagation=Propagation.REQUIRES_NEW)
    def work(uow: Bank) -> None:
        add(uow, "inner")
        uow.commit()
        with pytest.raises(UnitOfWorkEnded):
            add(uow, "lost")

    with harness.bank() as bank:
        work(bank)
        bank.rollback()

    assert ["inner"] == harness.numbers()


def test_mandatory_without_a_unit(harness: Harness) -> None:
    """MANDATORY joins; where there is nothing to join it says so and does nothing."""
    bank = harness.bank()
    with pytest.raises(OutsideUnitOfWork) as caught:
        Ledger(bank).mandatory("A-1")

    assert (
        f"Cannot call Ledger.mandatory on {type(bank).__name__}: it joins a unit, and this task has none open. "
        "Call it inside one."
    ) == str(caught.value)
    with harness.bank() as other:
        assert 1 == Ledger(bank).mandatory("A-1")

        other.commit()

    assert ["A-1"] == harness.numbers()


def test_never_inside_a_unit(harness: Harness) -> None:
    """NEVER runs with nothing open; inside a unit of that class and database it is refused."""
    bank = harness.bank()

    assert State.NEW is Ledger(bank).never()
    with harness.bank() as open_one:
        for unit in (bank, open_one):
            with pytest.raises(UnitOfWorkActive) as caught:
                Ledger(unit).never()
        with FakeBank():
            with pytest.raises(UnitOfWorkActive):
                Ledger(bank).never()
        open_one.commit()

    assert (
        f"Cannot call Ledger.never on {type(bank).__name__} (root): it must never run inside a unit. Call it outside."
    ) == str(caught.value)


def test_never_may_open_its_own(harness: Harness) -> None:
    """The body opens and commits units itself."""

    @transactional(propagation=Propagation.NEVER)
    def import_all(uow: Bank) -> None:
        for number in ("A-1", "B-2"):
            decorated(uow, number)
            with uow:
                uow.rollback()

    import_all(harness.bank())

    assert ["A-1", "B-2"] == harness.numbers()


def test_a_unit_on_another_store_or_of_another_class_is_not_joined() -> None:
    """Only a unit of the same class on the same database is around."""
    store = Store()
    for outer in (FakeBank(), FakeShop(store)):
        with outer:
            assert 0 == Ledger(FakeBank(store)).required(type(outer).__name__)
            assert 0 == Ledger(FakeBank(store)).nested("nested " + type(outer).__name__)
            assert State.NEW is Ledger(FakeBank(store)).never()
            with pytest.raises(OutsideUnitOfWork):
                Ledger(FakeBank(store)).mandatory("A-1")
    with FakeBank(store) as bank:
        assert 4 == bank.accounts.count()


def test_two_databases_at_once() -> None:
    """Of two open units the one is joined that the service's handle is like, however deep it is."""
    one, two = Store(), Store()
    with FakeBank(one) as first, FakeBank(two) as second:
        assert 1 == Ledger(FakeBank(one)).required("A-1")
        assert 1 == Ledger(FakeBank(two)).required("B-2")
        assert 1 == Ledger(first).nested("C-3")

        first.commit()
        second.rollback()

    with FakeBank(one) as bank:
        assert 2 == bank.accounts.count()
    with FakeBank(two) as bank:
        assert 0 == bank.accounts.count()


# ------------------------------------------------------------------------------------------------------------- options


def test_options_of_a_function(harness: Harness) -> None:
    """They are those of the unit that it opens; a unit around must have been made with them."""

    @transactional(read_only=True, isolation="serializable")
    def report(uow: Bank) -> str | None:
        with pytest.raises(ReadOnlyUnitOfWork):
            add(uow)
        return uow.status().isolation

    @transactional(propagation=Propagation.NESTED, read_only=True)
    def part(uow: Bank) -> int:
        return uow.status().depth

    @transactional(propagation=Propagation.REQUIRES_NEW, read_only=True)
    def apart(uow: Bank) -> int:
        with pytest.raises(ReadOnlyUnitOfWork):
            add(uow)
        return uow.status().depth

    assert "SERIALIZABLE" == report(harness.bank())
    with harness.bank() as bank:
        add(bank)
        for function in (report, part):
            with pytest.raises(ContradictoryOptions, match=r"it asks for .*read_only=True"):
                function(bank)

        assert State.ACTIVE is bank.state
        assert 0 == apart(bank)

        bank.commit()
    with harness.bank(read_only=True, isolation="SERIALIZABLE") as bank:
        assert "SERIALIZABLE" == report(bank)
        assert 1 == part(bank)
        assert 0 == apart(bank)

    assert ["A-1"] == harness.numbers()


def test_options_without_a_meaning(harness: Harness) -> None:
    """They are a ConfigurationError, at the latest when the function is called, before it runs."""
    ran: list[object] = []
    with pytest.raises(ConfigurationError):
        transactional(lock_timeout=-1)(lambda uow: ran.append(uow))(harness.bank())

    assert [] == ran


# ------------------------------------------------------------------------------------------------------------- retries


def test_retry_does_the_whole_again() -> None:
    """After a transient error the function runs again, in a fresh scope of the same handle, and its result counts."""
    store, states = Store(), list[tuple[State, int]]()

    @transactional(retry=AT_ONCE)
    def work(uow: Bank) -> int:
        states.append((uow.state, uow.accounts.count()))
        add(uow)
        return len(states)

    for failures in (0, 2):
        store = Store()
        states.clear()
        for _ in range(failures):
            store.fail_next("commit", SerializationFailure)

        assert failures + 1 == work(FakeBank(store))
        assert [(State.ACTIVE, 0)] * (failures + 1) == states
        with FakeBank(store) as bank:
            assert 1 == bank.accounts.count()


def test_retry_gives_up() -> None:
    """The last attempt's error reaches the caller; what is not transient does at once."""
    runs: list[int] = []
    store = Store()
    for _ in range(3):
        store.fail_next("commit", SerializationFailure)

    @transactional(retry=AT_ONCE)
    def work(uow: Bank, error: Exception | None = None) -> None:
        runs.append(1)
        if error is not None:
            raise error

    bank = FakeBank(store)
    with pytest.raises(SerializationFailure):
        work(bank)

    assert 3 == len(runs)
    with pytest.raises(Oops):
        work(bank, Oops())

    assert 4 == len(runs)
    assert State.NEW is bank.state
    assert store.idle()


def test_retry_of_a_swallowed_transient_error_in_a_joined_function() -> None:
    """A transient error that a joined function failed with and somebody swallowed does the whole again."""
    store, runs = Store(), list[int]()

    @transactional
    def inner(uow: Bank) -> None:
        add(uow)
        uow.flush()

    @transactional(retry=AT_ONCE)
    def outer(uow: Bank) -> int:
        runs.append(1)
        with suppress(SerializationFailure):
            inner(uow)
        return len(runs)

    store.fail_next("flush", SerializationFailure)

    assert 2 == outer(FakeBank(store))
    with FakeBank(store) as bank:
        assert 1 == bank.accounts.count()


@pytest.mark.parametrize("propagation", [Propagation.REQUIRED, Propagation.NESTED, Propagation.REQUIRES_NEW])
@pytest.mark.parametrize("around", ["the unit itself", "another unit", "another port"])
def test_retry_is_refused_inside_a_unit(propagation: Propagation, around: str) -> None:
    """Another attempt could not do the outer unit's work again: refused before the function runs."""
    ran: list[object] = []
    store = Store()
    bank = FakeBank(store)
    work = transactional(propagation=propagation, retry=AT_ONCE)(lambda uow: ran.append(uow))
    outer = {"the unit itself": bank, "another unit": FakeBank(store), "another port": FakeShop()}[around]
    with outer:
        with pytest.raises(UnitOfWorkActive, match="Retry the outermost unit"):
            work(bank)

        assert State.ACTIVE is outer.state

    assert [] == ran


# --------------------------------------------------------------------------------------------- threads, tasks, contexts


def test_a_service_shared_by_threads() -> None:
    """A handle stands for one thread's scope at a time: the second thread is told, the first goes on."""
    store = Store()
    ledger = Ledger(FakeBank(store))
    errors: list[Exception] = []

    def second() -> None:
        for call in (ledger.required, ledger.requires_new, ledger.nested):
            with pytest.raises(WrongTask, match="Give each thread and task a unit of its own") as caught:
                call("B-2")
            errors.append(caught.value)

    @transactional
    def first(uow: Bank) -> int:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(second).result()
        return add(uow)

    assert 0 == first(ledger.uow)
    assert 3 == len(errors)
    with FakeBank(store) as bank:
        assert ["A-1"] == [account.number for account in bank.accounts.list()]
    assert 0 == ledger.required("C-3")


def test_threads_with_services_of_their_own() -> None:
    """Each thread's function is a unit of its own, whatever is open in the others."""
    store, barrier = Store(), threading.Barrier(4)

    @transactional
    def work(uow: Bank, number: str) -> int:
        depth = add(uow, number)
        barrier.wait(10)
        return depth

    with ThreadPoolExecutor(4) as pool:
        assert [0] * 4 == list(pool.map(lambda n: work(FakeBank(store), f"A-{n}"), range(4)))
    with FakeBank(store) as bank:
        assert 4 == bank.accounts.count()


def test_a_unit_that_was_handed_over_is_joined() -> None:
    """An open unit that is passed to another thread is the one to join, although that thread's context knows it not."""
    store = Store()
    bank = FakeBank(store, handoff=True)
    with bank:
        with ThreadPoolExecutor(1) as pool:
            for method, depth in (("required", 1), ("mandatory", 1), ("nested", 1), ("requires_new", 0)):
                assert depth == pool.submit(getattr(Ledger(bank), method), method).result()
            with pytest.raises(UnitOfWorkActive):
                pool.submit(Ledger(bank).never).result()
        bank.rollback()
    with FakeBank(store) as bank:
        assert ["requires_new"] == [account.number for account in bank.accounts.list()]


def test_a_unit_that_was_handed_over_is_not_two_threads_at_once() -> None:
    """While a function of one thread has the handle, another thread's function cannot have it, too."""
    store = Store()
    bank = FakeBank(store, handoff=True)
    inside, go_on = threading.Event(), threading.Event()

    @transactional(propagation=Propagation.REQUIRES_NEW)
    def slow(uow: Bank) -> None:
        inside.set()
        go_on.wait(10)
        add(uow, "slow")

    @transactional(propagation=Propagation.REQUIRES_NEW)
    def fast(uow: Bank) -> None:
        go_on.set()
        thread.result()
        raise Oops

    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(slow, bank)
        inside.wait(10)
        with pytest.raises((Misuse, Oops)):
            fast(bank)
        go_on.set()
        thread.result()
    with FakeBank(store) as bank:
        assert ["slow"] == [account.number for account in bank.accounts.list()]


def test_an_open_unit_of_another_context_is_joined() -> None:
    """A unit that was entered in a copy of the context, as frameworks do, is the one to join when it is passed."""
    store = Store()
    bank = FakeBank(store)
    copy_context().run(bank.__enter__)

    assert 1 == Ledger(bank).required("A-1")
    with bank.joined() as unit:
        assert 1 == unit.status().depth

    bank.rollback()
    bank.__exit__(None, None, None)
    with FakeBank(store) as bank:
        assert 0 == bank.accounts.count()


def test_a_unit_of_another_context_is_found_where_it_was_joined() -> None:
    """Once a scope of it is open here, `current` and domain services find it."""
    bank = FakeBank()
    copy_context().run(bank.__enter__)

    @transactional
    def charge(uow: Bank) -> Bank:
        return Discounts().only_here()

    assert charge(bank) is not None
    with bank.joined() as unit:
        assert current(Bank) is unit

    bank.rollback()
    bank.__exit__(None, None, None)


def test_the_innermost_is_joined_whatever_the_context_knows() -> None:
    """A unit that was opened inside the one of another context is the one to join."""
    bank = FakeBank()
    copy_context().run(bank.__enter__)
    with bank.independent() as inner:
        with bank.joined() as unit:
            unit.accounts.add(Account("A-1", "Ann"))

        assert ("1 added", "nothing") == (str(inner.status().pending), str(bank.status().pending))
        inner.rollback()

    bank.rollback()
    bank.__exit__(None, None, None)


# ------------------------------------------------------------------------------------------------------------- current


def test_current_is_the_innermost(harness: Harness) -> None:
    """current() is the very object that the innermost block entered."""
    with harness.bank() as bank:
        assert bank is current(Bank) is current(type(bank)) is current(UnitOfWork)

        with bank.nested() as nested:
            assert nested is current(Bank)

            with nested.joined() as joined:
                assert joined is current(Bank)

            assert nested is current(Bank)

            with bank.independent() as other:
                assert other is current(Bank)

            assert nested is current(Bank)
        assert bank is current(Bank)


def test_current_with_nothing_open(harness: Harness) -> None:
    """Before, after, and in the block once the unit has ended it is OutsideUnitOfWork, which names the class."""
    for end in ("commit", "rollback"):
        with pytest.raises(OutsideUnitOfWork):
            current(Bank)
        with harness.bank() as bank:
            getattr(bank, end)()
            with pytest.raises(OutsideUnitOfWork, match="no Bank is open in this task"):
                current(Bank)
    with pytest.raises(OutsideUnitOfWork) as caught:
        current(Bank)

    assert str(caught.value).startswith("Cannot find the current unit on Bank: no Bank is open in this task")
    assert str(caught.value).endswith("Do it inside `with uow:`, in the thread and task that entered it.")


def test_current_of_two_ports() -> None:
    """Of several open units the innermost of the kind that is asked for."""
    with FakeBank() as bank:
        with FakeShop() as shop:
            assert (bank, shop, shop) == (current(Bank), current(Shop), current(UnitOfWork))

            with FakeBank() as inner:
                assert (inner, shop) == (current(Bank), current(Shop))

            shop.commit()

            assert bank is current(UnitOfWork)
            with pytest.raises(OutsideUnitOfWork):
                current(Shop)
        with pytest.raises(OutsideUnitOfWork):
            current(FakeShop)


def test_current_during_hooks() -> None:
    """It is there before the commit, and gone after it."""
    seen: list[object] = []

    def look() -> None:
        try:
            seen.append(current(Bank))
        except OutsideUnitOfWork:
            seen.append(None)

    with FakeBank() as bank:
        bank.before_commit(look)
        bank.after_commit(look)
        bank.commit()
    with FakeBank() as second:
        second.after_rollback(look)

    assert [bank, None, None] == seen


def test_current_is_of_this_thread() -> None:
    """Another thread does not find it, not even with a copy of this one's context."""
    with FakeBank() as bank, ThreadPoolExecutor(1) as pool:
        with pytest.raises(OutsideUnitOfWork, match="no Bank is open in this task"):
            pool.submit(current, Bank).result()
        with pytest.raises(OutsideUnitOfWork, match="no Bank is open in this task, and it may not use those of others"):
            pool.submit(copy_context().run, current, Bank).result()

        assert bank is current(Bank)


def test_current_is_of_this_task() -> None:
    """A child task inherits the context and may not use what is open there."""

    async def child() -> None:
        with pytest.raises(OutsideUnitOfWork, match="no Bank is open in this task, and it may not use those of others"):
            current(Bank)
        with FakeBank() as own:
            await asyncio.sleep(0)

            assert own is current(Bank)

    async def parent() -> None:
        with FakeBank() as bank:
            await asyncio.gather(child(), child())
            await asyncio.create_task(child())

            assert bank is current(Bank)

    asyncio.run(parent())


def test_current_in_a_copy_of_the_context() -> None:
    """A copy finds what was open when it was made; what is entered in a copy stays there."""
    with FakeBank() as bank:
        copied = copy_context()

        assert bank is copied.run(current, Bank)

        inner = FakeBank()
        copied.run(inner.__enter__)

        assert inner is copied.run(current, Bank)
        assert bank is current(Bank)

        copied.run(inner.__exit__, None, None, None)

        assert bank is copied.run(current, Bank)
    with pytest.raises(OutsideUnitOfWork):
        copied.run(current, Bank)


def test_current_and_generators() -> None:
    """What a generator opens is found while it is open, also outside of it, and gone afterwards."""

    @contextmanager
    def opened(bank: FakeBank) -> Iterator[FakeBank]:
        with bank as uow:
            yield uow

    with opened(FakeBank()) as bank:
        assert bank is current(Bank)
        with opened(FakeBank()) as inner:
            assert inner is current(Bank)
        assert bank is current(Bank)
    with pytest.raises(OutsideUnitOfWork):
        current(Bank)


def test_current_with_blocks_left_out_of_order() -> None:
    """Whichever of two units ends first, the other one is found."""
    first, second = FakeBank().__enter__(), FakeBank().__enter__()
    first.__exit__(None, None, None)

    assert second is current(Bank)

    second.__exit__(None, None, None)
    with pytest.raises(OutsideUnitOfWork):
        current(Bank)


def let_go(units: list[FakeBank]) -> None:
    units.clear()
    gc.collect()


def test_current_keeps_nothing_alive() -> None:
    """A unit that nobody holds is collected although it is open, says so, and is not found any more."""
    units = [FakeBank().__enter__()]
    reference = weakref.ref(units[0])
    with FakeBank() as outer:
        with pytest.warns(ResourceWarning, match="was never left"):
            let_go(units)

        assert reference() is None
        assert outer is current(Bank)
    with pytest.raises(OutsideUnitOfWork):
        current(Bank)


def test_current_after_many_units() -> None:
    """Units that ended leave nothing behind in the context."""
    from uow.domain import open_units

    with FakeBank() as bank:
        for _ in range(100):
            with FakeBank() as inner:
                inner.commit()

        assert 1 == len(list(open_units()))
        assert bank is current(Bank)


# ------------------------------------------------------------------------------------------------------ domain services


class Fees(DomainService[Bank]):
    """A service with everything a class may have."""

    RATE = 3

    def charge(self, number: str, *, amount: int = 1) -> int:
        """Charge it."""
        self.uow.accounts.get(number).balance -= amount * self.RATE
        return self._rate()

    def _rate(self) -> int:
        return self.RATE

    def __call__(self) -> int:
        return self.RATE

    @property
    def rate(self) -> int:
        return self.RATE

    @staticmethod
    def double(amount: int) -> int:
        return amount * 2

    @classmethod
    def named(cls) -> str:
        return cls.__name__

    def numbers(self) -> Iterator[str]:
        for account in self.uow.accounts.list():
            yield account.number


class Discounts(Fees):
    """A service that extends another one."""

    def charge(self, number: str, *, amount: int = 1) -> int:
        return super().charge(number, amount=amount) - 1

    def only_here(self) -> Bank:
        return self.uow


@pytest.mark.parametrize("service", [Fees(), Discounts()])
def test_a_domain_service_outside_a_unit(service: Fees) -> None:
    """Its public methods name the service and the method; everything else works as it is."""
    name = type(service).__name__
    for call in (partial(service.charge, "A-1"), service.numbers):
        with pytest.raises(OutsideUnitOfWork) as caught:
            call()
        method = call.func.__name__ if isinstance(call, partial) else call.__name__

        assert str(caught.value).startswith(f"Cannot call {name}.{method}() on Bank: no Bank is open in this task")

    with pytest.raises(OutsideUnitOfWork, match="Cannot find the current unit on Bank"):
        _ = service.uow

    assert (3, 3, 3, 6, name) == (service._rate(), service(), service.rate, service.double(3), service.named())


def test_a_domain_service_inside_a_unit(harness: Harness) -> None:
    """It works in the innermost open unit, whichever object entered that."""
    with harness.bank() as bank:
        bank.accounts.add(Account("A-1", "Ann", 10))

        assert bank is Fees().uow
        assert 3 == Fees().charge("A-1")
        assert 2 == Discounts().charge("A-1", amount=2)
        with suppress(Oops), bank.nested() as nested:
            assert nested is Discounts().only_here()

            Fees().charge("A-1")
            raise Oops
        assert ["A-1"] == list(Fees().numbers())
        assert 1 == bank.accounts.get("A-1").balance


def test_a_domain_service_keeps_what_says_what_it_is() -> None:
    """Name, docstring and signature of a method are the method's."""

    assert ("charge", "Charge it.") == (Fees.charge.__name__, Fees.charge.__doc__)
    assert ["self", "number", "amount"] == list(inspect.signature(Fees.charge).parameters)


def test_a_domain_service_does_no_half() -> None:
    """The unit is looked for before the method begins."""
    done: list[int] = []

    class Careless(DomainService[Bank]):
        def work(self) -> None:
            done.append(1)
            self.uow.accounts.count()

    with pytest.raises(OutsideUnitOfWork):
        Careless().work()

    assert [] == done


def test_a_domain_service_of_another_port() -> None:
    """A unit of another kind is none."""
    with FakeShop():
        with pytest.raises(OutsideUnitOfWork, match=r"Cannot call Fees\.charge\(\) on Bank"):
            Fees().charge("A-1")


def test_a_domain_service_without_a_kind() -> None:
    """A class that does not say its unit is told to."""

    class Vague(DomainService):  # type: ignore[type-arg]
        def work(self) -> None: ...

    with (
        FakeBank(),
        pytest.raises(TypeError, match=r"Vague does not say which unit it works in: subclass DomainService"),
    ):
        Vague().work()


def test_a_domain_service_whose_base_leaves_the_kind_open() -> None:
    """A generic base may leave the unit to its subclasses, and a subclass may narrow it."""

    class Base(DomainService[U], Generic[U]):
        def here(self) -> U:
            return self.uow

    class OfBank(Base[Bank]): ...

    class OfShop(Base[Shop]): ...

    class Narrow(OfBank, DomainService[FakeBank]): ...

    with FakeBank() as bank, FakeShop() as shop:
        assert (bank, shop, bank) == (OfBank().here(), OfShop().here(), Narrow().here())


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("decorate", [frozen, define])
def test_a_domain_service_as_an_attrs_class(decorate: Any, slots: bool) -> None:
    """attrs makes a slotted class anew: fields, super() and functions as defaults work all the same."""

    @decorate(slots=slots)
    class Base(DomainService[Bank]):
        rate: int = 2
        policy: Callable[[int], int] = lambda amount: amount + 1
        other: Callable[[int], int] = field(default=lambda amount: amount + 2)

        def fee(self, amount: int) -> int:
            return self.policy(amount) * self.rate

        @property
        def doubled(self) -> int:
            return self.rate * 2

    @decorate(slots=slots)
    class Sub(Base):
        extra: int = 100

        def fee(self, amount: int) -> int:
            return super().fee(amount) + self.extra + self.other(amount)

    service = Sub(3, extra=1000)

    assert hasattr(service, "__dict__") is not slots
    assert 6 == service.doubled
    with pytest.raises(OutsideUnitOfWork, match=r"Cannot call Sub\.fee\(\)"):
        service.fee(1)
    with FakeBank():
        assert 6 + 1000 + 3 == service.fee(1)


@pytest.mark.parametrize("slots", [True, False])
def test_an_application_service_as_an_attrs_class(slots: bool) -> None:
    """super() works in a decorated method of a slotted class, too."""

    @frozen(slots=slots)
    class Base:
        uow: Bank

        @transactional
        def work(self, number: str) -> int:
            return add(self.uow, number)

    @frozen(slots=slots)
    class Sub(Base):
        @transactional
        def work(self, number: str) -> int:
            return super().work(number) + 10 * add(self.uow, number + "'")

        @transactional(propagation=Propagation.NESTED)
        def nested(self) -> int:
            return super().work("nested")

    store = Store()

    assert 1 == Sub(FakeBank(store)).work("A-1")
    assert 1 == Sub(FakeBank(store)).nested()
    with FakeBank(store) as bank:
        assert 3 == bank.accounts.count()


def test_a_transactional_method_of_a_domain_service(harness: Harness) -> None:
    """It joins, or nests in, the unit that is open; without one it is OutsideUnitOfWork."""

    class Both(DomainService[Bank]):
        @transactional(propagation=Propagation.NESTED)
        def work(self, number: str, error: Exception | None = None) -> int:
            depth = add(self.uow, number)
            if error is not None:
                raise error
            return depth

    with pytest.raises(OutsideUnitOfWork, match=r"Cannot call Both\.work\(\) on Bank"):
        Both().work("A-1")
    with harness.bank() as bank:
        assert 1 == Both().work("A-1")
        with pytest.raises(Oops):
            Both().work("B-2", Oops())

        bank.commit()

    assert ["A-1"] == harness.numbers()


def test_a_domain_service_in_a_transactional_function(harness: Harness) -> None:
    """It works in the scope that the function opened, each time the innermost."""

    @transactional(propagation=Propagation.REQUIRES_NEW)
    def apart(uow: Bank) -> None:
        add(Discounts().only_here(), "apart")

    @transactional
    def work(uow: Bank) -> None:
        add(Discounts().only_here(), "work")
        apart(uow)
        raise Oops

    with pytest.raises(Oops):
        work(harness.bank())

    assert ["apart"] == harness.numbers()


def test_a_guarded_method_is_wrapped_once() -> None:
    """When attrs makes the class anew, there is still one look for the unit."""

    @frozen
    class Slotted(DomainService[Bank]):
        def work(self) -> None: ...

    assert not hasattr(Slotted.work.__wrapped__, "__wrapped__")  # type: ignore[attr-defined]
