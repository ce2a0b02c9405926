"""
What SQLAlchemy's metadata say about a table, in the words of the store.

SQLAlchemy is not imported: its objects are told apart by the names that its own compilers use.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import Any

from uow.domain import Attribute, Constant, Expression, Operation
from uow.errors import ConfigurationError, UnmappedEntity

from ._sql import Unreadable, read_constant, read_criterion
from ._tables import Check, ForeignKey, Table, Unique, Values

__all__ = ["read_schema"]

Maker = Callable[[Values], Any]
Declare = Callable[[ForeignKey], None]

_CLOCK = frozenset({"now()", "current_timestamp", "current_timestamp()", "localtimestamp", "current_date"})
_ON_DELETE = {None: None, "no action": None, "restrict": None, "cascade": "cascade", "set null": "set null"}


def read_schema(table: Table, schemas: Collection[Any], unchecked: Collection[str], declare: Declare) -> None:
    """
    Read the rules of *table* from the metadata that its class is mapped with.

    Args:
        table: The store's, still without rules.

        schemas: The store's ``MetaData``.

        unchecked: The names of rules to leave out.

        declare: What takes its foreign keys.

    Raises:
        ConfigurationError: The class is mapped with other metadata, or has another key than its table.

        UnmappedEntity: It inherits its table, or is mapped to a join.
    """
    mapper = getattr(table.entity, "__mapper__", None)
    if mapper is None:
        return
    if mapper.inherits is not None or not hasattr(mapper.local_table, "constraints"):
        raise UnmappedEntity(
            table.entity, "it is not mapped to one table of its own, and the fake knows no other", "Test it on SQLite."
        )
    if mapper.local_table.metadata not in schemas:
        raise ConfigurationError(
            f"{table.entity.__name__} is mapped to a table of other MetaData than the Store was made with",
            "Give the Store both: Store(metadata, other).",
        )
    _Reader(table, mapper, declare).read()
    for name in unchecked:
        table.unread.pop(name, None)


def _attributes_of(mapper: Any) -> dict[Any, str]:
    """Return the attribute of each column."""
    return {column: prop.key for prop in mapper.column_attrs for column in prop.columns}


class _Reader:
    """
    Reads one table.
    """

    def __init__(self, table: Table, mapper: Any, declare: Declare) -> None:
        self._table = table
        self._mapper = mapper
        self._source = mapper.local_table
        self._declare = declare
        self._attributes = _attributes_of(mapper)
        self._types = {name: _python_type(column) for column, name in self._attributes.items()}
        self._names: set[str] = set()

    def read(self) -> None:
        """Read everything."""
        table, source = self._table, self._source
        table.name = source.name
        table.columns = {name: column.name for column, name in self._attributes.items()}
        key = tuple(self._attributes[column] for column in self._mapper.primary_key)
        if key != table.key:
            raise ConfigurationError(
                f"the key of {table.entity.__name__} is {', '.join(table.key)}, and that of its table {', '.join(key)}",
                "Name the attributes of the primary key in @entity(key=...).",
            )
        table.generated = self._attributes.get(source.autoincrement_column)
        for column in source.columns:
            self._column(column)
        for constraint in self._constraints():
            self._constraint(constraint)
        for index in sorted(source.indexes, key=lambda index: str(index.name)):
            if index.unique:
                self._unique_index(index)

    def _constraints(self) -> Iterator[Any]:
        for column in self._source.columns:
            yield from sorted(column.constraints, key=_age)
        yield from sorted(self._source.constraints, key=_age)

    def _constraint(self, constraint: Any) -> None:
        kind = constraint.__visit_name__
        if kind == "primary_key_constraint":
            self._table.key_name = self._name(constraint, "pkey")
        elif kind == "unique_constraint":
            self._unique(constraint)
        elif kind == "foreign_key_constraint":
            self._foreign_key(constraint)
        elif not kind.endswith("check_constraint"):
            self._unread(self._name(constraint, kind), f"a {kind.replace('_', ' ')}")
        elif not getattr(constraint, "_type_bound", False):  # what a type refuses, it refuses in Python too
            self._check(constraint)

    # ------------------------------------------------------------------------------------------------------- columns

    def _column(self, column: Any) -> None:
        name = self._attributes.get(column)
        made = column.default is not None or column.server_default is not None
        label = f"{self._table.name}.{column.name}"
        if name is None:
            if not column.nullable and not made:
                self._unread(label, "NOT NULL, without an attribute or a default")
            return
        if not column.nullable:
            self._table.not_null.append(name)
        if name == self._table.generated:
            return
        try:
            if made:
                source = column.default if column.default is not None else column.server_default
                self._table.defaults[name] = self._maker(column, source)
            if column.onupdate is not None or column.server_onupdate is not None:
                source = column.onupdate if column.onupdate is not None else column.server_onupdate
                self._table.updates[name] = self._maker(column, source)
        except Unreadable as error:
            self._unread(label, f"a value that the database makes, {error}")

    def _maker(self, column: Any, source: Any) -> Maker:
        """Return what makes a value of *source*, a default of any kind."""
        argument = getattr(source, "arg", None)
        if getattr(source, "is_scalar", False):
            return lambda _: argument
        if getattr(source, "is_callable", False):
            return lambda values: source.arg(self._context(values))
        if argument is None:  # a sequence, an identity, a trigger
            raise Unreadable(getattr(source, "__visit_name__", type(source).__name__))
        type_ = _python_type(column)
        if isinstance(argument, str):
            value = _from_text(argument, type_)
            return lambda _: value
        text = _text(argument)
        if text.lower() in _CLOCK and isinstance(type_, type) and issubclass(type_, date):
            return _clock(type_, aware=bool(getattr(column.type, "timezone", False)))
        constant = _fit(read_constant(text), type_)
        return lambda _: constant

    def _context(self, values: Values) -> Any:
        """Return what SQLAlchemy gives to a default that looks at the other values."""
        parameters = {column.key: values.get(name) for column, name in self._attributes.items()}
        return SimpleNamespace(
            current_parameters=parameters, get_current_parameters=lambda isolate_multiinsert_groups=True: parameters
        )

    # ---------------------------------------------------------------------------------------------------- constraints

    def _unique(self, constraint: Any) -> None:
        columns = list(constraint.columns)
        name = self._name(constraint, "key", columns)
        options = constraint.dialect_options["postgresql"]
        if options.get("nulls_not_distinct"):
            self._unread(name, "NULLS NOT DISTINCT")
        elif (attributes := self._of(columns, name)) is not None:
            self._add_unique(Unique(name, attributes, _deferred(constraint)))

    def _unique_index(self, index: Any) -> None:
        name = str(index.name)
        options = [index.dialect_options[dialect] for dialect in ("postgresql", "sqlite")]
        criteria = [option["where"] for option in options if option.get("where") is not None]
        if options[0].get("nulls_not_distinct"):
            self._unread(name, "NULLS NOT DISTINCT")
        elif len(index.columns) != len(index.expressions) or any(
            expression not in self._source.columns.values() for expression in index.expressions
        ):
            self._unread(name, "a unique index on an expression")
        elif (attributes := self._of(index.columns, name)) is not None:
            try:
                self._add_unique(Unique(name, attributes, where=self._criterion(criteria[0]) if criteria else None))
            except Unreadable:
                self._unread(name, f"unique where {_text(criteria[0])}")

    def _add_unique(self, unique: Unique) -> None:
        self._table.uniques.append(unique)
        self._table.index(unique.attributes)

    def _check(self, constraint: Any) -> None:
        columns = list(constraint.columns)
        text = _text(constraint.sqltext)
        try:
            criterion = self._criterion(constraint.sqltext)
        except Unreadable:
            name = self._name(constraint, "check", columns if len(columns) == 1 else ())
            self._unread(name, f"check {text}")
            return
        named = _attributes_in(criterion)
        columns = [column for column, name in self._attributes.items() if name in named]
        name = self._name(constraint, "check", columns if len(columns) == 1 else ())
        self._table.checks.append(Check(name, criterion))

    def _foreign_key(self, constraint: Any) -> None:
        columns = [element.parent for element in constraint.elements]
        name = self._name(constraint, "fkey", columns)
        on_delete, on_update = (_lower(option) for option in (constraint.ondelete, constraint.onupdate))
        targets = [m for m in self._mapper.registry.mappers if m.local_table is constraint.referred_table]
        target = next((mapper for mapper in targets if mapper.inherits is None), None)
        if target is None:
            self._unread(name, f"a foreign key to {constraint.referred_table.name!r}, which no class is mapped to")
        elif on_delete not in _ON_DELETE:
            self._unread(name, f"ON DELETE {constraint.ondelete}")
        elif on_update not in (None, "no action", "restrict"):
            self._unread(name, f"ON UPDATE {constraint.onupdate}")
        elif _lower(constraint.match) not in (None, "simple") and len(columns) > 1:
            self._unread(name, f"MATCH {constraint.match}")
        elif (attributes := self._of(columns, name)) is not None:
            known = _attributes_of(target)
            wanted = tuple(known[element.column] for element in constraint.elements)
            self._declare(
                ForeignKey(
                    name,
                    self._table.entity,
                    attributes,
                    target.class_,
                    wanted,
                    _ON_DELETE[on_delete],
                    _deferred(constraint),
                )
            )

    def _of(self, columns: Iterable[Any], name: str) -> tuple[str, ...] | None:
        """Return the attributes of *columns*; None, and the rule *name* is unread, if one has none."""
        columns = list(columns)
        if any(column not in self._attributes for column in columns):
            self._unread(name, "a column without an attribute")
            return None
        return tuple(self._attributes[column] for column in columns)

    def _criterion(self, clause: Any) -> Expression:
        columns = {column.name: name for column, name in self._attributes.items()}
        return _fitted(read_criterion(_text(clause), columns), self._types)

    def _unread(self, name: str, why: str) -> None:
        self._table.unread[name] = why

    def _name(self, constraint: Any, suffix: str, columns: Iterable[Any] = ()) -> str:
        """Return the constraint's name, or else the one that PostgreSQL gives it."""
        if isinstance(constraint.name, str):
            return str(constraint.name)
        made = "_".join([self._table.name, *(column.name for column in columns), suffix])
        name = next(n for n in (made, *(f"{made}{number}" for number in range(1, 1000))) if n not in self._names)
        self._names.add(name)
        return name


def _age(constraint: Any) -> Any:
    """Return what sorts constraints as they were made, which is how SQLAlchemy writes them."""
    return constraint._creation_order


def _lower(option: str | None) -> str | None:
    return None if option is None else option.lower()


def _deferred(constraint: Any) -> bool:
    return bool(constraint.deferrable) and _lower(constraint.initially) == "deferred"


def _text(clause: Any) -> str:
    """Return the SQL of *clause*."""
    return str(clause.compile(compile_kwargs={"literal_binds": True}))


def _attributes_in(expression: Expression) -> set[str]:
    match expression:
        case Attribute(name):
            return {name}
        case Operation(_, operands):
            return {name for operand in operands for name in _attributes_in(operand)}
        case _:
            return set()


# ------------------------------------------------------------------------------------------------------------- values


def _python_type(column: Any) -> Any:
    """Return the class of the column's values, None where its type does not say."""
    try:
        return column.type.python_type
    except NotImplementedError:
        return None


def _fitted(expression: Expression, types: dict[str, Any]) -> Expression:
    """Return *expression* with its constants in the types of the columns that they meet."""
    if not isinstance(expression, Operation):
        return expression
    operands = expression.operands
    met = [types[operand.name] for operand in operands if isinstance(operand, Attribute)]
    if not met:
        return Operation(expression.operator, tuple(_fitted(operand, types) for operand in operands))
    return Operation(
        expression.operator,
        tuple(
            Constant(_fit_all(operand.value, met[0])) if isinstance(operand, Constant) else _fitted(operand, types)
            for operand in operands
        ),
    )


def _fit_all(value: Any, type_: Any) -> Any:
    if not isinstance(value, tuple):
        return _fit(value, type_)
    return tuple(_fit(option, type_) for option in value)  # pyright: ignore[reportUnknownVariableType]


def _fit(value: Any, type_: Any) -> Any:
    """Return a constant as the type has it."""
    if value is None or type_ is None or isinstance(value, type_):
        return value
    if type_ is bool and value in (0, 1):
        return bool(value)
    if type_ in (int, float, Decimal) and isinstance(value, int | Decimal):
        return value
    if isinstance(value, str):
        return _from_text(value, type_)
    raise Unreadable(f"{value!r} is no {type_.__name__}")


def _from_text(text: str, type_: Any) -> Any:
    """Return what a database reads in *text* for a column of that type."""
    try:
        if type_ in (date, datetime, time):
            return type_.fromisoformat(text)
        if isinstance(type_, type) and issubclass(type_, Enum):
            return type_[text]
        if type_ is bool:
            return {"1": True, "0": False, "true": True, "false": False}[text.lower()]
        return {None: str, str: str, int: int, float: float, Decimal: Decimal}[type_](text)
    except (KeyError, ValueError, ArithmeticError):
        raise Unreadable(f"{text!r} is no {getattr(type_, '__name__', type_)}") from None


def _clock(type_: type, *, aware: bool) -> Maker:
    """Return what tells the time of day, or the day, in UTC."""
    if not issubclass(type_, datetime):
        return lambda _: datetime.now(UTC).date()
    return lambda _: datetime.now(UTC) if aware else datetime.now(UTC).replace(tzinfo=None)
