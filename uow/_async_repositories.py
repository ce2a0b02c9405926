"""
The asynchronous face of a repository.
"""

import builtins
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import update_wrapper
from itertools import islice
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar

from uow.domain import Lock, Repository, Specification, type_argument

from ._bridges import directly
from ._steps import Bridge

__all__ = ["AsyncRepository", "awaited"]

E = TypeVar("E")
P = ParamSpec("P")
R = TypeVar("R")


class AsyncRepository(Generic[E]):
    """
    A collection of entities inside an asynchronous unit: a `Repository` whose reads are awaited.

    Named queries are written once, in the synchronous repository, and named here with `awaited`.
    """

    entity: ClassVar[type[Any] | None] = None
    """The entity's class, read from ``AsyncRepository[Account]``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.entity = type_argument(cls, AsyncRepository) or cls.entity

    def __init__(self, sync: Repository[E], bridge: Bridge) -> None:
        self._sync = sync
        self._bridge = bridge

    def add(self, entity: E) -> None:
        """
        Add a new *entity*; see `Repository.add`. Nothing is sent yet, so there is nothing to await.
        """
        directly(self._sync.add, entity)

    def add_all(self, entities: Iterable[E]) -> None:
        """
        Add several new *entities*; see `Repository.add_all`.
        """
        directly(self._sync.add_all, entities)

    async def remove(self, entity: E) -> None:
        """
        Remove *entity*; see `Repository.remove`.
        """
        await self._bridge.call(self._sync.remove, entity)

    async def get(self, key: object, *, lock: Lock | None = None) -> E:
        """
        Return the entity with that *key*; see `Repository.get`.
        """
        return await self._bridge.call(self._sync.get, key, lock=lock)

    async def get_or_none(self, key: object, *, lock: Lock | None = None) -> E | None:
        """
        Return the entity with that *key*, or None.
        """
        return await self._bridge.call(self._sync.get_or_none, key, lock=lock)

    async def one(self, specification: Specification[E]) -> E:
        """
        Return the only entity that matches; see `Repository.one`.
        """
        return await self._bridge.call(self._sync.one, specification)

    async def first(
        self,
        specification: Specification[E] | None = None,
        *,
        order_by: Specification[E] | None = None,
        lock: Lock | None = None,
    ) -> E | None:
        """
        Return the first entity that matches, or None.
        """
        return await self._bridge.call(self._sync.first, specification, order_by=order_by, lock=lock)

    async def list(
        self,
        specification: Specification[E] | None = None,
        *,
        order_by: Specification[E] | None = None,
        limit: int | None = None,
        offset: int = 0,
        lock: Lock | None = None,
    ) -> Sequence[E]:
        """
        Return the entities that match; see `Repository.list`.
        """
        return await self._bridge.call(
            self._sync.list, specification, order_by=order_by, limit=limit, offset=offset, lock=lock
        )

    def iterate(self, specification: Specification[E] | None = None, *, batch_size: int = 500) -> AsyncIterator[E]:
        """
        Go through all entities that match with ``async for``; see `Repository.iterate`.
        """
        return self._batches(self._sync.iterate(specification, batch_size=batch_size), batch_size)

    async def count(self, specification: Specification[E] | None = None) -> int:
        """
        Count the entities that match.
        """
        return await self._bridge.call(self._sync.count, specification)

    async def exists(self, specification: Specification[E] | None = None) -> bool:
        """
        Tell whether any entity matches.
        """
        return await self._bridge.call(self._sync.exists, specification)

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return await self._bridge.call(getattr(self._sync, name), *args, **kwargs)

    async def _batches(self, entities: Iterator[E], size: int) -> AsyncIterator[E]:
        while batch := await self._bridge.call(_take, entities, size):
            for entity in batch:
                yield entity


def _take(entities: Iterator[E], size: int) -> builtins.list[E]:
    return list(islice(entities, size))


def awaited(
    query: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[AsyncRepository[Any], P], Coroutine[Any, Any, R]]:
    """
    Make a query of a synchronous repository one of an asynchronous repository.

    .. code-block:: python

        class AsyncAccounts(AsyncRepository[Account]):
            overdrawn = awaited(Accounts.overdrawn)

    Args:
        query: The method. The unit's ``sync`` port must name a repository that has it.
    """
    name = query.__name__

    async def method(self: AsyncRepository[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = await self._call(name, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]
        return result

    update_wrapper(method, query)
    return method
