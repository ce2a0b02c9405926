"""
Specifications in SQL: expressions compiled to SQLAlchemy's, with one meaning on every backend.

Constants become bind parameters, so that SQLAlchemy's statement cache sees one statement per specification.
"""

import operator as python
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Boolean, ColumnElement, String, and_, literal, not_, or_
from sqlalchemy.sql.operators import in_op

from uow.domain import Attribute, Constant, Expression, Operation, Order, SpecificationError, translate_pattern

__all__ = ["compile_criterion", "compile_order"]

_OPERATORS: dict[str, Callable[..., Any]] = {
    "+": python.add,
    "-": python.sub,
    "*": python.mul,
    "==": python.eq,
    "!=": python.ne,
    "<": python.lt,
    "<=": python.le,
    ">": python.gt,
    ">=": python.ge,
    "in": in_op,
    "and": and_,
    "or": or_,
    "not": not_,
}


def compile_criterion(expression: Expression, entity_type: type, dialect_name: str) -> ColumnElement[bool]:
    """
    Say *expression* in SQL.

    Args:
        expression: A traced criterion.

        entity_type: The mapped class whose attributes it names.

        dialect_name: The name of the engine's dialect, such as ``postgresql``.

    Raises:
        SpecificationError: An attribute stands for its truth, and its column is no Boolean.
    """
    criterion: ColumnElement[bool] = _compile(expression, entity_type, dialect_name)
    return criterion


def compile_order(orders: Iterable[Order], entity_type: type, dialect_name: str) -> list[ColumnElement[Any]]:
    """
    Say *orders* in SQL, with NULL as the smallest value.

    PostgreSQL takes it for the greatest, and is told otherwise where there can be one; an index on a column that is
    not nullable still serves.

    Args:
        orders: Traced sort keys.

        entity_type: The mapped class whose attributes they name.

        dialect_name: The name of the engine's dialect, such as ``postgresql``.
    """
    keys: list[ColumnElement[Any]] = []
    for order in orders:
        value = _compile(order.expression, entity_type, dialect_name)
        key = value.desc() if order.descending else value.asc()
        if dialect_name == "postgresql" and _nullable(order.expression, entity_type):
            key = key.nulls_last() if order.descending else key.nulls_first()
        keys.append(key)
    return keys


def _compile(expression: Expression, entity_type: type, dialect_name: str) -> Any:
    if isinstance(expression, Attribute):
        return getattr(entity_type, expression.name)
    if isinstance(expression, Constant):
        # SQLAlchemy would write a bare bool into the statement.
        return literal(expression.value) if isinstance(expression.value, bool) else expression.value
    values = [_compile(operand, entity_type, dialect_name) for operand in expression.operands]
    match expression.operator:
        case "truth":
            return _truth(expression, *values)
        case "is null":
            return values[0].is_(None)
        case "like":
            return _like(dialect_name, *values)
        case operator:
            return _OPERATORS[operator](*values)


def _like(dialect_name: str, value: Any, pattern: str) -> ColumnElement[bool]:
    """Compare with a *pattern*, in a way that tells upper from lower case."""
    if dialect_name == "sqlite":
        # Its LIKE takes `a` for `A` unless a PRAGMA says otherwise; its GLOB never does, and can use an index.
        glob = translate_pattern(pattern, "*", "?", lambda char: f"[{char}]" if char in "*?[" else char)
        matched: ColumnElement[bool] = value.op("GLOB", is_comparison=True)(literal(glob, String()))
        return matched
    sought = literal(pattern, String())
    liked: ColumnElement[bool] = value.like(sought, escape="\\")
    if dialect_name in ("mysql", "mariadb"):
        # The exact comparison alone could not use an index of another collation.
        liked &= value.like(sought.collate("utf8mb4_bin"), escape="\\")
    return liked


def _truth(expression: Expression, column: Any) -> Any:
    """Take *column* for a criterion; SQLite and MariaDB would do so with a number too, PostgreSQL would not."""
    type_: object = column.type
    if not isinstance(getattr(type_, "impl_instance", type_), Boolean):  # what a TypeDecorator decorates
        raise SpecificationError(
            f"`{expression}` is a column of type {type_}, and no criterion", "Compare it, as in a.x != 0."
        )
    return column


def _nullable(expression: Expression, entity_type: type) -> bool:
    """Say whether *expression* can be NULL."""
    if isinstance(expression, Operation):
        return any(_nullable(operand, entity_type) for operand in expression.operands)
    return isinstance(expression, Attribute) and getattr(getattr(entity_type, expression.name), "nullable", True)
