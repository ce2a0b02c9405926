"""
The committed rows of one entity class, and the rules that they keep.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field, frozen

from uow.domain import Expression, key_names_of
from uow.errors import ConfigurationError

__all__ = ["Check", "ForeignKey", "Key", "Row", "Table", "Unique", "Values", "pick"]

Key = tuple[object, ...]
Values = dict[str, Any]


@frozen
class Row:
    """
    A committed row; *revision* tells one state of it from the next.
    """

    values: Values
    revision: int


@frozen
class Unique:
    """
    No two rows, among those that match *where*, have the same values in *attributes*.
    """

    name: str
    attributes: tuple[str, ...]
    deferred: bool = False
    where: Expression | None = None


@frozen
class ForeignKey:
    """
    *attributes* of *entity* hold *target_attributes* of a *target*.
    """

    name: str
    entity: type
    attributes: tuple[str, ...]
    target: type
    target_attributes: tuple[str, ...]
    on_delete: str | None = None
    deferred: bool = False


@frozen
class Check:
    """
    A criterion that no row of an entity may make false.
    """

    name: str
    criterion: Expression


def _may_be_int(entity: type, name: str) -> bool:
    """Tell whether the attribute is declared as an integer, or not at all."""
    for base in entity.__mro__:
        annotation = vars(base).get("__annotations__", {}).get(name)
        if annotation is not None:
            return "int" in (annotation if isinstance(annotation, str) else repr(annotation))
    return True


@define(eq=False)
class Table:
    """
    The committed rows of one entity class and what is declared about them.

    Args:
        entity: The class.

        name: What errors call the table.

        key: The attributes of the primary key.

        key_name: What errors call the primary key.

        columns: The column of each attribute, where it has another name.

        generated: The attribute of the key that the store counts, if it is missing.

        defaults: What a missing value is when a row is added, made of the other values.

        updates: What a value becomes when a row is changed and this value is not.

        unread: The rules that were found in a schema and cannot be kept, with the reason.
    """

    entity: type
    name: str = field(init=False)
    key: tuple[str, ...] = field(init=False)
    key_name: str = "key"
    columns: dict[str, str] = field(factory=dict[str, str])
    generated: str | None = field(init=False)
    rows: dict[Key, Row] = field(factory=dict[Key, Row])
    last_id: int = 0
    uniques: list[Unique] = field(factory=list[Unique])
    indexes: dict[tuple[str, ...], dict[Key, set[Key]]] = field(factory=dict[tuple[str, ...], dict[Key, set[Key]]])
    not_null: list[str] = field(factory=list[str])
    checks: list[Check] = field(factory=list[Check])
    defaults: dict[str, Callable[[Values], Any]] = field(factory=dict[str, Callable[[Values], Any]])
    updates: dict[str, Callable[[Values], Any]] = field(factory=dict[str, Callable[[Values], Any]])
    unread: dict[str, str] = field(factory=dict[str, str])
    _sorted: list[Any] | None = None

    def __attrs_post_init__(self) -> None:
        self.name = self.entity.__name__
        self.key = key_names_of(self.entity)
        self.generated = self.key[0] if len(self.key) == 1 and _may_be_int(self.entity, self.key[0]) else None

    def column_names(self, attributes: Iterable[str]) -> tuple[str, ...]:
        """Return what errors call *attributes*."""
        return tuple(self.columns.get(attribute, attribute) for attribute in attributes)

    def demand_read(self) -> None:
        """Raise if the schema has rules that the fake would break."""
        if self.unread:
            rules = "; ".join(f"{name!r} ({why})" for name, why in self.unread.items())
            raise ConfigurationError(
                f"the fake cannot keep every rule of the table {self.name!r}: {rules}",
                "Declare a rule of that name on the Store, or let it be: Store(metadata, unchecked=[...]).",
            )

    def index(self, columns: tuple[str, ...]) -> None:
        """Keep an index on *columns*."""
        if columns in self.indexes:
            return
        index = self.indexes[columns] = {}
        for key, row in self.rows.items():
            index.setdefault(pick(columns, row.values), set()).add(key)

    def put(self, key: Key, row: Row | None) -> None:
        """Replace, add or (None) remove a row, and keep the indexes."""
        old = self.rows.pop(key, None)
        for columns, index in self.indexes.items():
            if old is not None:
                value = pick(columns, old.values)
                index[value].discard(key)
                if not index[value]:
                    del index[value]
            if row is not None:
                index.setdefault(pick(columns, row.values), set()).add(key)
        self._sort(key, was=old is not None, is_there=row is not None)
        if row is not None:
            self.rows[key] = row
            number = None if self.generated is None else row.values[self.generated]
            if isinstance(number, int):
                self.last_id = max(self.last_id, number)

    def keys_after(self, last: Any, size: int) -> list[Any]:
        """Return the next *size* keys behind *last*, in order; the first look sorts all keys, once."""
        if self._sorted is None:
            self._sorted = sorted(self.rows)
        start = 0 if last is None else bisect_right(self._sorted, last)
        return self._sorted[start : start + size]

    def _sort(self, key: Any, *, was: bool, is_there: bool) -> None:
        if self._sorted is None or was == is_there:
            return
        if is_there:
            insort(self._sorted, key)
        else:
            del self._sorted[bisect_left(self._sorted, key)]


def pick(columns: tuple[str, ...], values: Mapping[str, Any]) -> Key:
    """Return the values of *columns*."""
    return tuple(values[column] for column in columns)
