"""
One transfer over several databases, for tests to crash, and what they look at afterwards.

Run as a program, it forks a process for each crash: to start one anew would take longer than all that it does.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from types import TracebackType
from typing import Any

from attrs import define, field
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import registry

from uow import Aggregate, Recovery, Repository, UnitOfWork, _group, distributed, entity, recover
from uow.adapters.sqlalchemy import SqlAlchemyUnitOfWork, SqlResource, uow_metadata
from uow.errors import CommitOutcomeUnknown, UnitOfWorkError
from uow.testing import crash_at

DOMAIN = f"c{os.getpid()}"
"""Of this process: others may have branches on the same server."""
ACCOUNTS = 20

_numbers = count(1)

# ------------------------------------------------------------------------------------------------------------ the model


@entity(key="number")
class Account(Aggregate):
    number: int
    balance: int = 0


@entity(key="name")
class Payment(Aggregate):
    name: str
    amount: int


class Bank(UnitOfWork):
    accounts: Repository[Account]
    payments: Repository[Payment]


class SqlBank(SqlAlchemyUnitOfWork, Bank): ...


_registry = registry()
metadata: MetaData = _registry.metadata
accounts = Table(
    "crash_account",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("balance", Integer, nullable=False),
)
payments = Table(
    "crash_payment", metadata, Column("name", String(40), primary_key=True), Column("amount", Integer, nullable=False)
)
_registry.map_imperatively(Account, accounts)
_registry.map_imperatively(Payment, payments)

# --------------------------------------------------------------------------------------------------------- the transfer

Urls = Mapping[str, str]
"""The URLs of databases by the names that distributed transactions call them."""


def transfer(urls: Urls, domain: str, name: str, account: int = 1) -> None:
    """
    Pay from the first database into the others.

    Args:
        urls: The databases.

        domain: Of the distributed transaction.

        name: Of the payment.

        account: Which account it changes in each database.
    """
    with ExitStack() as stack:
        engines = {place: create_engine(url) for place, url in urls.items()}
        for engine in engines.values():
            stack.callback(engine.dispose)
        both: Any = distributed(*(SqlBank(engine, resource=place) for place, engine in engines.items()), domain=domain)
        with both as banks:
            pay(banks, name, account)
            both.commit()


def transfer_within(seconds: float, *order: Any) -> None:
    """Pay, with another limit of the time that it may take to decide."""
    _group.WINDOW = seconds
    transfer(*order)


def pay(banks: Sequence[Bank], name: str, account: int = 1, amount: int = 1) -> None:
    """Do a transfer's work."""
    for number, bank in enumerate(banks):
        change = amount if number else -amount * (len(banks) - 1)
        bank.accounts.get(account).balance += change
        bank.payments.add(Payment(name, change))


def told(call: Callable[[], object]) -> bool | None:
    """Return what a commit tells its caller: kept, not kept, or that nobody knows."""
    try:
        call()
    except CommitOutcomeUnknown:
        return None
    except UnitOfWorkError:
        return False
    return True


def recover_all(urls: Urls, domain: str) -> None:
    """Do what a process does that recovers."""
    recover(*(SqlResource(create_engine(url, poolclass=NullPool), place) for place, url in urls.items()), domain=domain,
            grace=0)  # fmt: skip


# ------------------------------------------------------------------------------------------------- what came out of it


@define(eq=False)
class Place:
    """
    A database, seen from outside.

    Args:
        name: What distributed transactions call it.

        url: Where it is.
    """

    name: str
    url: URL
    engine: Engine = field(init=False)
    resource: SqlResource = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.engine = create_engine(self.url, poolclass=NullPool)
        self.resource = SqlResource(self.engine, self.name)

    def create(self) -> None:
        """Make the tables anew."""
        for tables in (metadata, uow_metadata):
            tables.drop_all(self.engine)
            tables.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(insert(accounts), [{"number": number, "balance": 0} for number in range(ACCOUNTS)])

    def has(self, name: str) -> bool:
        """Tell whether a payment is there."""
        return name in self.payments()

    def payments(self) -> set[str]:
        """Return the payments that are there."""
        with self.engine.connect() as connection:
            return set(connection.scalars(select(payments.c.name)))

    def balance(self) -> int:
        """Return the sum of the balances."""
        with self.engine.connect() as connection:
            return sum(connection.scalars(select(accounts.c.balance)))

    def prepared(self, of: str = f"u1.{DOMAIN}.") -> Collection[str]:
        """Return what the server itself lists as prepared in this database, and begins with that."""
        with self.engine.connect() as connection:
            return [gid for gid in _listed(connection, self.name) if gid.startswith(of)]

    def rows(self, table: str, id: str = f"u1.{DOMAIN}.%") -> int:
        """Return how many rows of a transaction, or of this domain, there are in a table of the framework."""
        with self.engine.connect() as connection:
            count_ = text(f"SELECT count(*) FROM {table} WHERE id LIKE :id")
            found: int = connection.execute(count_, {"id": id}).scalar_one()
            return found

    def execute(self, *statements: str) -> None:
        """Send statements outside of any transaction."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.execute(text(statement))

    def end_by_hand(self, gid: str, *, commit: bool = False) -> None:
        """End a prepared branch, as a person would who does not ask the last agent."""
        verb = "COMMIT" if commit else "ROLLBACK"
        if self.engine.dialect.name == "postgresql":
            self.execute(f"{verb} PREPARED '{gid}'")
        else:
            self.execute(f"XA {verb} '{gid}','{self.name}'")


def _listed(connection: Connection, name: str) -> Collection[str]:
    match connection.dialect.name:
        case "postgresql":
            mine = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            return [gid for gid in connection.exec_driver_sql(mine).scalars() if gid.endswith(f"/{name}")]
        case "mysql" | "mariadb":
            found = connection.exec_driver_sql("XA RECOVER").all()
            parts = [(bytes(row.data[: row.gtrid_length]), bytes(row.data[row.gtrid_length :])) for row in found]
            return [gtrid.decode() for gtrid, bqual in parts if bqual.decode() == name]
    return ()


@define(eq=False)
class World:
    """
    The databases of a transfer; the first one pays.
    """

    places: Sequence[Place]

    @classmethod
    def opened(cls, **urls: URL) -> "World":
        """Look at databases by their names."""
        return cls([Place(name, url) for name, url in urls.items()])

    @classmethod
    def of(cls, **urls: URL) -> "World":
        """Make the tables in databases, by their names."""
        world = cls.opened(**urls)
        for place in world.places:
            place.create()
        return world

    @property
    def urls(self) -> Urls:
        """The addresses, as a child process is told."""
        return {place.name: place.url.render_as_string(hide_password=False) for place in self.places}

    def place(self, name: str) -> Place:
        """Return one of them."""
        return next(place for place in self.places if place.name == name)

    def order(self) -> tuple[Urls, str, str]:
        """Return the arguments of `transfer` for a new payment."""
        return self.urls, DOMAIN, f"payment {next(_numbers)}"

    def recover(self, grace: float = 0) -> Recovery:
        """Recover all databases."""
        return recover(*(place.resource for place in self.places), domain=DOMAIN, grace=grace)

    def kept(self, name: str) -> bool:
        """Tell whether a payment was kept: in all databases, or in none."""
        has = {place.name: place.has(name) for place in self.places}
        assert len(set(has.values())) == 1, f"{name} was kept in some databases only: {has}"
        return all(has.values())

    def settled(self, name: str) -> bool:
        """Recover twice, see that nothing is left, and tell whether a payment was kept."""
        first, second = self.recover(), self.recover()
        assert first.clean, first
        assert not second.doubts, second
        assert second.clean, second
        assert not {place.name: gids for place in self.places if (gids := place.prepared())}
        return self.kept(name)

    def clean_up(self) -> None:
        """Roll back what a test that failed has left prepared."""
        for place in self.places:
            with suppress(DBAPIError):
                for gid in place.prepared():
                    with suppress(DBAPIError):
                        place.end_by_hand(gid)


# ------------------------------------------------------------------------------------------------------------- crashes


class Forks:
    """
    A process that forks another one for each crash.
    """

    def __enter__(self) -> "Forks":
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def killed(self, function: Callable[..., object], *arguments: object, at: str, nth: int = 1) -> bool:
        """Call a function of this file in a process that is killed at a point; tell whether it came there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((function.__name__, arguments, at, nth), self._process.stdin)
        self._process.stdin.flush()
        status: int = pickle.load(self._process.stdout)
        assert status in (0, -signal.SIGKILL), "it failed before, as it says in its output"
        return status != 0


def serve() -> None:
    """Fork and wait, as `Forks` says."""
    _group._BATCH = 1  # to forget a decision is a step, too
    while sys.stdin.buffer.peek(1):
        name, arguments, at, nth = pickle.load(sys.stdin.buffer)
        if (child := os.fork()) == 0:
            try:
                with crash_at(at, nth):
                    globals()[name](*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        pickle.dump(os.waitstatus_to_exitcode(status), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
