"""
The unit of work in memory.
"""

from typing import Any

from uow import AsyncUnitOfWork, Options, Outcomes, Resource, UnitOfWork
from uow.errors import ConfigurationError

from ._resource import FakeResource
from ._store import Store
from ._transaction import FakeTransaction
from ._views import LEVELS

__all__ = ["AsyncFakeUnitOfWork", "FakeUnitOfWork"]


class FakeUnitOfWork(UnitOfWork):
    """
    A unit of work without a database, for fast tests: ``class FakeBank(FakeUnitOfWork, Bank): ...``.

    Args:
        store: The database that it stands on; one of its own by default.

        resource: What distributed transactions call the store: 1 to 12 letters, digits, ``-`` and ``_``. By default it
            has a number.

        options: What every unit takes: see `UnitOfWork`.

    Raises:
        ConfigurationError: There is no such isolation level.
    """

    def __init__(self, store: Store | None = None, *, resource: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(store, Store | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"{store!r} is no Store", "Pass Store(), or nothing for one of its own.")
        self.store = Store() if store is None else store
        self._resource_name = self.store.name if resource is None else resource
        self._demand_possible()

    def _check(self, options: Options) -> None:
        """Refuse a level that is not known; the fake never waits, so the rest asks nothing of it."""
        if options.isolation not in (None, *LEVELS):
            raise ConfigurationError(
                f"the fake has no isolation level {options.isolation!r}", f"Use one of {', '.join(LEVELS)}."
            )

    def _begin(self) -> FakeTransaction:
        return FakeTransaction(self.store, self._settings.options)

    def _database(self) -> object:
        return self.store

    def _place(self) -> object:
        return self.store

    def _outcomes(self) -> Outcomes:
        return self.store.outcomes

    def _resource(self) -> Resource:
        return FakeResource(self.store, self._resource_name)


class AsyncFakeUnitOfWork(AsyncUnitOfWork):
    """
    An asynchronous unit of work without a database: ``class AsyncFakeBank(AsyncFakeUnitOfWork, AsyncBank): ...``.

    Args:
        store: The database that it stands on, of synchronous units too; one of its own by default.

        resource: What distributed transactions call the store: see `FakeUnitOfWork`.

        options: What every unit takes: see `UnitOfWork`.
    """

    _adapter = FakeUnitOfWork

    def __init__(self, store: Store | None = None, *, resource: str | None = None, **options: Any) -> None:
        super().__init__(store, resource=resource, **options)
