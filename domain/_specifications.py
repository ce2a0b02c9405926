"""
Specifications: plain lambdas that say which entities are meant, and in which order.

A specification is typed as if it took an entity: ``lambda a: (a.balance < 0) & (a.owner == "Ann")``. It is called once,
with a symbolic entity; the operators of its attributes build an expression instead of computing an answer. What Python
does not hand to an operator, such as ``and`` and ``is``, cannot be traced: it raises `SpecificationError`, with what to
write instead.
"""

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, cast

from ._errors import SpecificationError
from ._expressions import Attribute, Constant, Expression, Operation, Order

__all__ = [
    "Order",
    "Symbol",
    "asc",
    "between",
    "desc",
    "is_in",
    "is_null",
    "like",
    "not_",
    "trace",
    "trace_order",
]

E = TypeVar("E")

_TEXT_METHODS = ("startswith", "endswith", "find", "count")
_IN_SQL = "Say it in SQL, in an adapter's own repository."
_PARENTHESES = "put each comparison into parentheses, as in (a.x == 1) & (a.y == 2)"

# ------------------------------------------------------------------------------------------------------------- symbols


def _refusal(problem: str, hint: str) -> Callable[..., Any]:
    """Make a method that raises; *problem* shows the symbol as ``{}``."""

    def refuse(symbol: object, *_: object) -> NoReturn:
        raise SpecificationError(problem.format(repr(symbol)), hint)

    return refuse


def _operator(operator: str, *, reflected: bool = False) -> Callable[..., Any]:
    """Make the method behind a binary *operator* on values; *reflected* swaps the sides."""

    def operate(this: object, other: object) -> "Symbol":
        return _binary(operator, other, this) if reflected else _binary(operator, this, other)

    return operate


def _junction(operator: str, *, reflected: bool = False) -> Callable[[Any, object], "Symbol"]:
    """Make the method behind a binary *operator* on criteria; *reflected* swaps the sides."""

    def join(this: object, other: object) -> "Symbol":
        left, right = (other, this) if reflected else (this, other)
        return Symbol(Operation(operator, (_criterion(left), _criterion(right))))

    return join


class Symbol:
    """
    A value or a criterion inside a specification: something to compare, to calculate with, or to join with ``& | ~``.

    Args:
        expression: What it stands for.
    """

    __slots__ = ("__expression__",)

    def __init__(self, expression: Expression) -> None:
        self.__expression__ = expression

    def __repr__(self) -> str:
        return f"`{self.__expression__}`"

    __and__ = _junction("and")
    __or__ = _junction("or")
    __rand__ = _junction("and", reflected=True)
    __ror__ = _junction("or", reflected=True)

    def __invert__(self) -> "Symbol":
        return not_(self)

    __hash__ = object.__hash__
    __eq__ = _operator("==")
    __ne__ = _operator("!=")
    __lt__ = _operator("<")
    __le__ = _operator("<=")
    __gt__ = _operator(">")
    __ge__ = _operator(">=")
    __add__ = _operator("+")
    __sub__ = _operator("-")
    __mul__ = _operator("*")
    __radd__ = _operator("+", reflected=True)
    __rsub__ = _operator("-", reflected=True)
    __rmul__ = _operator("*", reflected=True)

    def __neg__(self) -> "Symbol":
        return _binary("-", 0, self)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python and debuggers look for these, and take no for an answer.
            raise AttributeError(name)
        hint = (
            f'Use like(), as in like({self.__expression__}, "...%"), or say it in SQL, in an adapter\'s own repository.'
        )
        raise SpecificationError(
            f"{self!r} is asked for its attribute or method {name!r}", hint if name in _TEXT_METHODS else _IN_SQL
        )

    __bool__ = _refusal(
        "Python asks for the truth of {}, as and, or, not, in, if and chained comparisons do",
        "Use &, |, not_(), is_in() and between() instead.",
    )
    __contains__ = _refusal(
        "`in` looks into {}",
        "Use is_in(value, collection) to choose from values, like(value, pattern) to find a part of a text.",
    )
    __str__ = __format__ = _refusal(
        "{} is made into text", "It has no value yet: compare it as it is, or join texts with +."
    )
    __iter__ = __len__ = __getitem__ = _refusal("{} is looked into", _IN_SQL)
    __call__ = _refusal("{} is called", _IN_SQL)
    __truediv__ = __floordiv__ = __mod__ = __pow__ = __divmod__ = _refusal(
        "{} meets /, //, % or **, on which databases disagree",
        "Multiply the other side, as in a.x * 2 > a.y, or say it in SQL, in an adapter's own repository.",
    )
    __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = __rdivmod__ = __truediv__
    __abs__ = __round__ = __trunc__ = __floor__ = __ceil__ = __int__ = __float__ = __complex__ = __index__ = _refusal(
        "a function of Python is applied to {}", _IN_SQL
    )


class SymbolicEntity:
    """
    The entity that a specification is traced with.

    Args:
        entity_type: The class that it stands for.

        attributes: The names of the attributes that are stored.
    """

    __slots__ = ("__attributes__", "__entity__")

    def __init__(self, entity_type: type, attributes: Collection[str]) -> None:
        self.__entity__ = entity_type
        self.__attributes__ = attributes

    def __repr__(self) -> str:
        return f"the {self.__entity__.__name__} itself"

    def __getattr__(self, name: str) -> Symbol:
        if name in self.__attributes__:
            return Symbol(Attribute(name))
        if name.startswith("__"):
            raise AttributeError(name)
        close = "".join(f"Did you mean {match!r}? " for match in get_close_matches(name, self.__attributes__, n=1))
        known = ", ".join(self.__attributes__)
        raise SpecificationError(f"{self.__entity__.__name__} stores no attribute {name!r}", f"{close}It has {known}.")

    __hash__ = object.__hash__
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __str__ = __format__ = __call__ = _refusal(
        "{} is used", "Use its attributes, as in lambda a: a.x == 1."
    )
    __and__ = __rand__ = __or__ = __ror__ = __invert__ = __contains__ = __iter__ = __len__ = __getitem__ = __eq__


def _criterion(candidate: object) -> Expression:
    """Take *candidate* for something that is true, false or NULL; a bare attribute stands for its truth."""
    match candidate:
        case Symbol(__expression__=Attribute() as attribute):
            return Operation("truth", (attribute,))
        case Symbol(__expression__=Operation(is_criterion=True) as operation):
            return operation
        case _:
            raise SpecificationError(
                f"{candidate!r} is no criterion",
                "`is`, `in`, `and`, `or`, `not` cannot be traced: use is_null(), is_in(), &, |, not_(); "
                f"and {_PARENTHESES}.",
            )


def _value(candidate: object) -> Expression:
    """Take *candidate* for a value to compare or to calculate with."""
    match candidate:
        case Symbol(__expression__=Operation(is_criterion=True)):
            raise SpecificationError(
                f"{candidate!r} is a criterion, and used as a value", f"Join criteria with & and |, and {_PARENTHESES}."
            )
        case Symbol(__expression__=expression):
            return expression
        case SymbolicEntity() | Order():
            raise SpecificationError(f"{candidate!r} is used as a value", "Use an attribute, as in a.x.")
        case _:
            return Constant(candidate)


def _binary(operator: str, left: object, right: object) -> Symbol:
    """Apply a binary *operator* to two values."""
    if right is None and operator in ("==", "!="):
        return is_null(left) if operator == "==" else not_(is_null(left))
    operands = _value(left), _value(right)
    if left is None or right is None:
        text = Operation(operator, operands)
        raise SpecificationError(f"`{text}` is NULL, whatever the row", "Leave it out where there is no value.")
    return Symbol(Operation(operator, operands))


def _function(operator: str, helper: str, value: object, *constants: object) -> Symbol:
    """Apply an *operator* that has a name instead of a sign to a *value* that is traced."""
    if not isinstance(value, Symbol):
        raise SpecificationError(f"{helper}() is given {value!r}", f"Give it an attribute first, as in {helper}(a.x).")
    return Symbol(Operation(operator, (_value(value), *map(Constant, constants))))


# ------------------------------------------------------------------------------------------------------------- helpers


def is_in(value: object, collection: Iterable[object]) -> Symbol:
    """
    Say that *value* is one of *collection*; of an empty one it never is.

    As in SQL, a None in *collection* is equal to nothing, and a *value* that is None is in no collection; to find it,
    say ``is_null(a.x) | is_in(a.x, …)``.

    Raises:
        SpecificationError: *collection* is a text, or attributes are in it.
    """
    if isinstance(collection, str | bytes | Symbol):
        raise SpecificationError(f"is_in() is given {collection!r}", "Give it a list, a tuple or a set of values.")
    options = tuple(collection)
    if any(isinstance(option, Symbol | SymbolicEntity) for option in options):
        raise SpecificationError(f"is_in() is given {options!r}", "Join comparisons with |, as in (a.x == a.y) | …")
    return _function("in", "is_in", value, options)


def like(value: object, pattern: str) -> Symbol:
    """
    Say that the text *value* looks like *pattern*: ``%`` stands for any text, ``_`` for one character.

    Upper and lower case differ on every backend, also where the database's own LIKE ignores them. A backslash takes
    the next character as it is: ``like(a.discount, r"100\\%")``.

    Raises:
        SpecificationError: *pattern* is no text, or ends in a backslash that escapes nothing.
    """
    if not isinstance(pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SpecificationError(f"like() is given the pattern {pattern!r}", "Give it a text that is known beforehand.")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise SpecificationError(f"the pattern {pattern!r} ends in its escape", r"Write \\ for a backslash.")
    return _function("like", "like", value, pattern)


def is_null(value: object) -> Symbol:
    """
    Say that *value* is None, which is NULL in a database; the same as ``value == None``.
    """
    return _function("is null", "is_null", value)


def between(value: object, low: object, high: object) -> Symbol:
    """
    Say that *value* is at least *low* and at most *high*.
    """
    return _binary(">=", value, low) & _binary("<=", value, high)


def not_(criterion: object) -> Symbol:
    """
    Say the opposite of *criterion*, as ``~`` does; where it is NULL, so is the opposite.
    """
    return Symbol(Operation("not", (_criterion(criterion),)))


def asc(value: object) -> Order:
    """
    Sort by *value*, the smallest first, and None before all others.
    """
    return Order(_value(value))


def desc(value: object) -> Order:
    """
    Sort by *value*, the greatest first, and None after all others.
    """
    return Order(_value(value), descending=True)


# ------------------------------------------------------------------------------------------------------------- tracing


def trace(specification: Callable[[E], object], entity_type: type[E], attributes: Collection[str]) -> Expression:
    """
    Find out what *specification* says.

    Args:
        specification: Takes an entity and returns a criterion.

        entity_type: The entity's class.

        attributes: The names of the attributes that are stored.

    Raises:
        SpecificationError: It says something that cannot be traced.
    """
    return _criterion(_call(specification, entity_type, attributes))


def trace_order(
    order_by: Callable[[E], object], entity_type: type[E], attributes: Collection[str]
) -> tuple[Order, ...]:
    """
    Find out what *order_by* says.

    Args:
        order_by: Takes an entity and returns what to sort by: an attribute, `asc()`, `desc()`, or several of them.

        entity_type: The entity's class.

        attributes: The names of the attributes that are stored.

    Raises:
        SpecificationError: It says something that cannot be traced.
    """
    answer = _call(order_by, entity_type, attributes)
    keys = cast("Iterable[object]", answer if isinstance(answer, tuple | list) else [answer])
    orders = tuple(key if isinstance(key, Order) else asc(key) for key in keys)
    for order in orders:
        if isinstance(order.expression, Constant):
            raise SpecificationError(
                f"{order.expression} is nothing to order by",
                "Return an attribute, desc(attribute), or a tuple of them.",
            )
    return orders


def _call(function: Callable[[E], object], entity_type: type[E], attributes: Collection[str]) -> object:
    if not callable(function):
        raise SpecificationError(
            f"{function!r} is no function", f"Pass a function of the {entity_type.__name__}, such as lambda e: e.name."
        )
    try:
        return function(cast(E, SymbolicEntity(entity_type, attributes)))
    except SpecificationError:
        raise
    except TypeError as error:
        raise SpecificationError(
            f"Python says that {error}", "Use attributes, constants and operators only."
        ) from error
