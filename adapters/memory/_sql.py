"""
Criteria in SQL text, as far as they say what a specification says.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from uow.domain import Attribute, Constant, Expression, Operation

__all__ = ["Unreadable", "read_constant", "read_criterion"]

_TOKEN = re.compile(
    r"""\s*(?: (?P<number>\d+(?:\.\d+)?)
             | (?P<text>'(?:[^']|'')*')
             | (?P<quoted>"(?:[^"]|"")+")
             | (?P<word>[^\W\d]\w*)
             | (?P<sign><>|!=|<=|>=|[=<>+\-*(),.])
             | (?P<end>$) )""",
    re.VERBOSE,
)
_COMPARISONS = {"=": "==", "<>": "!=", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_CONSTANTS = {"true": True, "false": False, "null": None}
_RESERVED = frozenset({"and", "or", "not", "is", "in", "between", "like", *_CONSTANTS})


class Unreadable(Exception):
    """
    The text says something that the fake cannot evaluate.
    """


def read_criterion(text: str, columns: Mapping[str, str]) -> Expression:
    """
    Read a criterion: comparisons, ``IS NULL``, ``IN``, ``BETWEEN``, ``LIKE``, ``AND``, ``OR``, ``NOT``, ``+ - *``.

    Args:
        text: What stands in a CHECK constraint.

        columns: The attribute of each column.

    Raises:
        Unreadable: It says anything else.
    """
    reader = _Reader(text, columns)
    criterion = _criterion(reader.disjunction())
    reader.expect("")
    return criterion


def read_constant(text: str) -> Any:
    """
    Read a number, a text, TRUE, FALSE or NULL.

    Raises:
        Unreadable: It is anything else.
    """
    reader = _Reader(text, {})
    value = reader.sum()
    reader.expect("")
    if not isinstance(value, Constant):
        raise Unreadable(text)
    return value.value


class _Reader:
    """
    Reads one text from left to right, one method for each level of precedence.
    """

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self._text = text
        self._columns = columns
        self._folded = {column.lower(): attribute for column, attribute in columns.items()}
        self._end = 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        if match is None or match.lastgroup is None:
            raise Unreadable(self._text)
        self._kind, self._value, self._end = match.lastgroup, match[match.lastgroup], match.end()
        if self._kind == "word" and self._value.lower() in _RESERVED:
            self._kind, self._value = "reserved", self._value.lower()

    def _take(self, *tokens: str) -> str | None:
        """Take the next token if it is one of *tokens*."""
        if self._kind not in ("sign", "reserved", "end") or self._value not in tokens:
            return None
        found = self._value
        if self._kind != "end":
            self._advance()
        return found

    def expect(self, token: str) -> None:
        """Take *token*, which must come now; the empty one is the end."""
        if self._take(token) is None:
            raise Unreadable(self._text)

    def disjunction(self) -> Expression:
        left = self._conjunction()
        while self._take("or"):
            left = Operation("or", (_criterion(left), _criterion(self._conjunction())))
        return left

    def _conjunction(self) -> Expression:
        left = self._negation()
        while self._take("and"):
            left = Operation("and", (_criterion(left), _criterion(self._negation())))
        return left

    def _negation(self) -> Expression:
        if self._take("not"):
            return Operation("not", (_criterion(self._negation()),))
        return self._predicate()

    def _predicate(self) -> Expression:
        left = self.sum()
        if sign := self._take(*_COMPARISONS):
            return Operation(_COMPARISONS[sign], (_value(left), _value(self.sum())))
        if self._take("is"):
            negated = self._take("not")
            self.expect("null")
            return _unless(negated, Operation("is null", (_value(left),)))
        negated = self._take("not")
        if word := self._take("in", "between", "like"):
            return _unless(negated, getattr(self, f"_{word}")(_value(left)))
        if negated:
            raise Unreadable(self._text)
        return left

    def _in(self, left: Expression) -> Expression:
        self.expect("(")
        options = [self._constant()]
        while self._take(","):
            options.append(self._constant())
        self.expect(")")
        return Operation("in", (left, Constant(tuple(options))))

    def _between(self, left: Expression) -> Expression:
        low = _value(self.sum())
        self.expect("and")
        high = _value(self.sum())
        return Operation("and", (Operation(">=", (left, low)), Operation("<=", (left, high))))

    def _like(self, left: Expression) -> Expression:
        return Operation("like", (left, Constant(self._constant())))

    def _constant(self) -> Any:
        value = self.sum()
        if not isinstance(value, Constant):
            raise Unreadable(self._text)
        return value.value

    def sum(self) -> Expression:
        left = self._product()
        while sign := self._take("+", "-"):
            left = Operation(sign, (_value(left), _value(self._product())))
        return left

    def _product(self) -> Expression:
        left = self._factor()
        while self._take("*"):
            left = Operation("*", (_value(left), _value(self._factor())))
        return left

    def _factor(self) -> Expression:
        if self._take("-"):
            factor = self._factor()
            if isinstance(factor, Constant) and isinstance(factor.value, int | Decimal):
                return Constant(-factor.value)
            return Operation("-", (Constant(0), _value(factor)))
        if self._take("("):
            inner = self.disjunction()
            self.expect(")")
            return inner
        if word := self._take(*_CONSTANTS):
            return Constant(_CONSTANTS[word])
        return self._leaf()

    def _leaf(self) -> Expression:
        kind, value = self._kind, self._value
        if kind in ("word", "quoted"):
            return self._attribute()
        if kind not in ("number", "text"):
            raise Unreadable(self._text)
        self._advance()
        if kind == "text":
            return Constant(value[1:-1].replace("''", "'"))
        return Constant(Decimal(value) if "." in value else int(value))

    def _attribute(self) -> Expression:
        """Read the name of a column, perhaps behind that of its table."""
        kind, value = self._kind, self._value
        self._advance()
        if self._take("."):
            return self._leaf()
        exact = value[1:-1].replace('""', '"')
        name = self._columns.get(exact) if kind == "quoted" else self._folded.get(value.lower())
        if name is None:
            raise Unreadable(self._text)
        return Attribute(name)


def _unless(negated: object, criterion: Expression) -> Expression:
    return Operation("not", (criterion,)) if negated else criterion


def _criterion(candidate: Expression) -> Expression:
    """Take *candidate* for a criterion; a bare column stands for its truth."""
    if isinstance(candidate, Attribute):
        return Operation("truth", (candidate,))
    if isinstance(candidate, Operation) and candidate.is_criterion:
        return candidate
    raise Unreadable(str(candidate))


def _value(candidate: Expression) -> Expression:
    """Take *candidate* for a value to compare or to calculate with."""
    if isinstance(candidate, Operation) and candidate.is_criterion:
        raise Unreadable(str(candidate))
    return candidate
