"""
What is left of a specification once it is traced: expressions, and what they mean.

The meaning is SQL's, and the same on every backend: a comparison with NULL is neither true nor false, but NULL. A
database adapter compiles an expression to SQL; `evaluate` computes it in plain Python, for the fake.
"""

import operator as python
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from numbers import Number
from typing import Any, TypeAlias, TypeVar

from attrs import frozen

from ._errors import SpecificationError

__all__ = [
    "Attribute",
    "Constant",
    "Expression",
    "Operation",
    "Order",
    "equalities",
    "evaluate",
    "matches",
    "ordered",
    "translate_pattern",
]

R = TypeVar("R")


@frozen
class Attribute:
    """
    The value of an entity's attribute.

    Args:
        name: The attribute's name.
    """

    name: str

    def __str__(self) -> str:
        return self.name


@frozen
class Constant:
    """
    A value that the specification brought along.

    Args:
        value: The value; the tuple of them for ``in``, the pattern for ``like``.
    """

    value: object

    def __str__(self) -> str:
        return repr(self.value)


@frozen
class Operation:
    """
    An operator and what it is applied to.

    Args:
        operator: A sign (``+ - *``, ``== != < <= > >=``) or one of the words ``in``, ``like``, ``is null``, ``not``,
            ``and``, ``or``, and ``truth``, which makes a criterion of a boolean attribute.

        operands: One or two expressions.
    """

    operator: str
    operands: "tuple[Expression, ...]"

    @property
    def is_criterion(self) -> bool:
        """Whether it is true, false or NULL, and no value to calculate with."""
        return self.operator not in ("+", "-", "*")

    def __str__(self) -> str:
        # A right operand needs parentheses against its like: x - (y - z).
        texts = [
            f"({operand})" if _strength(operand) < _strength(self) + place else f"{operand}"
            for place, operand in enumerate(self.operands)
        ]
        return _TEXTS.get(self.operator, f"{{}} {self.operator} {{}}").format(*texts)


@frozen
class Order:
    """
    One key to sort by.

    Args:
        expression: What to sort by; NULL counts as its smallest value, on every backend.

        descending: Whether the greatest comes first.
    """

    expression: "Expression"
    descending: bool = False

    def __str__(self) -> str:
        return f"{self.expression} desc" if self.descending else f"{self.expression}"


Expression: TypeAlias = Attribute | Constant | Operation

_WRONG_TYPES = "Databases disagree on types that do not fit: use values of one type, and booleans for what is true."

_TEXTS = {"truth": "{}", "not": "not {}", "is null": "{} is null"}
_STRENGTHS = {"or": 1, "and": 2, "+": 4, "-": 4, "*": 5, "not": 6}


def _strength(expression: Expression) -> int:
    """Say how tightly *expression* binds: what binds less stands in parentheses inside what binds more."""
    if isinstance(expression, Operation) and expression.operator != "truth":
        return _STRENGTHS.get(expression.operator, 3)
    return 7


# ------------------------------------------------------------------------------------------------------ in plain Python


def evaluate(expression: Expression, row: object) -> object:
    """
    Compute *expression* for *row*, as SQL would.

    Args:
        expression: A criterion or a value.

        row: Any object that has the attributes.

    Returns:
        The value; for a criterion True, False, or None where SQL says NULL.

    Raises:
        SpecificationError: Values that have nothing in common meet, such as a text and a number.
    """
    if isinstance(expression, Attribute):
        return getattr(row, expression.name)
    if isinstance(expression, Constant):
        return expression.value
    values = [evaluate(operand, row) for operand in expression.operands]
    try:
        return _MEANINGS[expression.operator](*values)
    except TypeError as error:
        met = " and ".join(f"{value!r} ({type(value).__name__})" for value in values)
        raise SpecificationError(f"`{expression}` meets {met}", _WRONG_TYPES) from error


def matches(criterion: Expression, row: object) -> bool:
    """
    Say whether *criterion* is true for *row*: not false, and not NULL.
    """
    return evaluate(criterion, row) is True


def ordered(rows: Iterable[R], orders: Sequence[Order]) -> list[R]:
    """
    Sort *rows* by *orders*, the first of which weighs most; rows that tie keep their order.

    Raises:
        SpecificationError: The values of a key cannot be compared with each other.
    """
    result = list(rows)
    for order in reversed(orders):

        def key(row: R, by: Expression = order.expression) -> Any:
            value = evaluate(by, row)
            return (value is not None, value)

        try:
            result.sort(key=key, reverse=order.descending)
        except SpecificationError:
            raise
        except TypeError as error:
            raise SpecificationError(
                f"`{order.expression}` has values without an order, {error}", "Order by texts, numbers or dates."
            ) from error
    return result


def equalities(criterion: Expression) -> dict[str, object]:
    """
    Find what every match of *criterion* has in its attributes, so that an index can narrow the search.

    Returns:
        Attribute names and the values that they must equal. All of *criterion* still has to hold.
    """
    match criterion:
        case Operation("and", (left, right)):
            return equalities(right) | equalities(left)
        case Operation("==", (Attribute(name), Constant(value))):
            return {name: value}
        case Operation("truth", (Attribute(name),)):
            return {name: True}
        case _:
            return {}


def translate_pattern(pattern: str, any_text: str, one_character: str, literal: Callable[[str], str]) -> str:
    """
    Say the pattern of `like()` in another language.

    Args:
        pattern: The pattern, with ``%``, ``_`` and the escape ``\\``.

        any_text: What stands for ``%``.

        one_character: What stands for ``_``.

        literal: Writes any other character.
    """
    wildcards = {"%": any_text, "_": one_character}
    return re.sub(r"\\?(.)", lambda m: wildcards.get(m[0]) or literal(m[1]), pattern, flags=re.DOTALL)


@lru_cache(maxsize=256)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(translate_pattern(pattern, ".*", ".", re.escape), re.DOTALL)


def _kind(value: object) -> object:
    """Say what *value* can be compared with; Python would call ``1 == "1"`` merely false."""
    match value:
        case bool():
            return bool
        case int() | float() | Decimal():
            return Number
        case datetime():
            return datetime, value.tzinfo is None
        case str():
            return str
        case _:
            return type(value)


def _null_or(function: Callable[[Any, Any], Any], *kinds: object) -> Callable[[Any, Any], Any]:
    """Make NULL of NULL, and refuse operands of different kinds, or of other ones than *kinds*."""

    def apply(left: object, right: object) -> Any:
        if left is None or right is None:
            return None
        if _kind(left) != _kind(right) or (kinds and _kind(left) not in kinds):
            raise TypeError
        return function(left, right)

    return apply


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _or(*values: bool | None) -> bool | None:
    return True if True in values else None if None in values else False


def _in(value: object, options: Sequence[object]) -> bool | None:
    return _or(*(_equal(value, option) for option in options))


def _and(left: bool | None, right: bool | None) -> bool | None:
    return _not(_or(_not(left), _not(right)))


def _truth(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise TypeError


def _is_null(value: object) -> bool:
    return value is None


def _like(text: str, pattern: str) -> bool:
    return _regex(pattern).fullmatch(text) is not None


_equal = _null_or(python.eq)

_MEANINGS: dict[str, Callable[..., Any]] = {
    "+": _null_or(python.add, Number, str),
    "-": _null_or(python.sub, Number),
    "*": _null_or(python.mul, Number),
    "==": _equal,
    "!=": _null_or(python.ne),
    "<": _null_or(python.lt),
    "<=": _null_or(python.le),
    ">": _null_or(python.gt),
    ">=": _null_or(python.ge),
    "in": _in,
    "like": _null_or(_like, str),
    "is null": _is_null,
    "truth": _truth,
    "not": _not,
    "and": _and,
    "or": _or,
}
