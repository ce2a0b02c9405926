"""
Other units of work, where they are installed: ``uv sync --group peers``.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from .contestants import Orm
from .model import Item, new

PEERS: list[type[Any]] = []

if find_spec("advanced_alchemy"):
    from advanced_alchemy.repository import SQLAlchemySyncRepository  # type: ignore[import-not-found]

    class Items(SQLAlchemySyncRepository[Item]):  # type: ignore[misc]
        model_type = Item

    class AdvancedAlchemy(Orm):
        """Its repositories flush and read again with each add; nesting is the session's own."""

        name = "advanced-alchemy"

        def add_one(self, key: int) -> None:
            with self.sessions.begin() as session:
                Items(session=session).add(new(key))

        def change(self, key: int) -> None:
            with self.sessions.begin() as session:
                found = Items(session=session).get(key)
                found.quantity += 1
                Items(session=session).update(found)

        def add_many(self, keys: Sequence[int]) -> None:
            with self.sessions.begin() as session:
                repository = Items(session=session)
                for key in keys:
                    repository.add(new(key))

        def read(self, key: int) -> int:
            with self.sessions() as session:
                found: Item = Items(session=session).get(key)
                return found.quantity

    PEERS.append(AdvancedAlchemy)
