"""
Specifications: what can be traced, what the errors say, and what expressions mean in plain Python.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from uow.domain import (
    Attribute,
    Constant,
    Operation,
    Order,
    SpecificationError,
    asc,
    between,
    desc,
    equalities,
    evaluate,
    is_in,
    is_null,
    like,
    matches,
    not_,
    ordered,
    trace,
    trace_order,
    translate_pattern,
)

Spec = Callable[[Any], object]


class Account:
    """What the specifications are about; nothing is read from it but its name."""


NAMES = ("number", "owner", "balance", "active", "limit")

IN_SQL = "Say it in SQL, in an adapter's own repository."
NO_CRITERION = (
    "is no criterion. `is`, `in`, `and`, `or`, `not` cannot be traced: use is_null(), is_in(), &, |, not_(); "
    "and put each comparison into parentheses, as in (a.x == 1) & (a.y == 2)."
)
NO_VALUE = (
    "is a criterion, and used as a value. Join criteria with & and |, "
    "and put each comparison into parentheses, as in (a.x == 1) & (a.y == 2)."
)
TRUTH = "as and, or, not, in, if and chained comparisons do. Use &, |, not_(), is_in() and between() instead."
TEXT = "is made into text. It has no value yet: compare it as it is, or join texts with +."
DIVISION = (
    "meets /, //, % or **, on which databases disagree. "
    "Multiply the other side, as in a.x * 2 > a.y, or say it in SQL, in an adapter's own repository."
)
MIXED = "Databases disagree on types that do not fit: use values of one type, and booleans for what is true."


def traced(specification: Spec) -> Any:
    return trace(specification, Account, NAMES)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(SpecificationError) as caught:
        call()
    prefix, text = str(caught.value).split(": ", 1)

    assert "Cannot read the specification" == prefix

    return text


# ------------------------------------------------------------------------------------------------------------- tracing


@pytest.mark.parametrize(
    ("specification", "text"),
    [
        (lambda a: (a.balance < 0) & (a.owner == "Ann"), "balance < 0 and owner == 'Ann'"),
        (lambda a: 5 > a.balance, "balance < 5"),
        (
            lambda a: (a.balance != 1) | (a.balance <= a.limit) | (a.balance >= 3),
            "balance != 1 or balance <= limit or balance >= 3",
        ),
        (lambda a: a.balance > 1 + a.limit, "balance > 1 + limit"),
        (lambda a: -a.balance * (2 - (a.limit - 3)) >= Decimal(1), "(0 - balance) * (2 - (limit - 3)) >= Decimal('1')"),
        (lambda a: 2 * a.balance + a.limit < a.limit - 1, "2 * balance + limit < limit - 1"),
        (lambda a: a.active, "active"),
        (lambda a: a.active & ~a.active, "active and not active"),
        (lambda a: not_(a.active | (a.balance == 1)), "not (active or balance == 1)"),
        (lambda a: a.active & (a.active | a.active), "active and (active or active)"),
        (lambda a: a.owner == None, "owner is null"),  # noqa: E711
        (lambda a: None != a.owner, "not (owner is null)"),  # noqa: E711
        (lambda a: is_null(a.balance + 1), "balance + 1 is null"),
        (lambda a: is_in(a.owner, ["Ann", None]), "owner in ('Ann', None)"),
        (lambda a: is_in(a.owner, ()), "owner in ()"),
        (lambda a: like(a.owner, r"100\%"), r"owner like '100\\%'"),
        (lambda a: between(a.balance, 1, a.limit), "balance >= 1 and balance <= limit"),
        (lambda a: between(5, a.balance, a.limit), "5 >= balance and 5 <= limit"),
    ],
)
def test_in_words(specification: Spec, text: str) -> None:
    """An expression can be read: with parentheses where they matter."""
    assert text == str(traced(specification))


def test_expressions_are_values() -> None:
    """Expressions are compared and hashed by what they say."""
    first, second = traced(lambda a: a.balance < 0), traced(lambda a: a.balance < 0)

    assert Operation("<", (Attribute("balance"), Constant(0))) == first == second
    assert {first} == {second}


@pytest.mark.parametrize(
    ("specification", "text"),
    [
        (lambda a: a.balance < 0 and a.owner == "Ann", f"Python asks for the truth of `balance < 0`, {TRUTH}"),
        (lambda a: a.balance < 0 or a.owner == "Ann", f"Python asks for the truth of `balance < 0`, {TRUTH}"),
        (lambda a: not a.active, f"Python asks for the truth of `active`, {TRUTH}"),
        (lambda a: 0 < a.balance < 5, f"Python asks for the truth of `balance > 0`, {TRUTH}"),
        (lambda a: a.owner in ("Ann",), f"Python asks for the truth of `owner == 'Ann'`, {TRUTH}"),
        (lambda a: max(a.balance, 3) > 1, f"Python asks for the truth of `balance < 3`, {TRUTH}"),
        (lambda a: a.owner in (), f"False {NO_CRITERION}"),  # noqa: RUF060
        (lambda a: a.owner is None, f"False {NO_CRITERION}"),
        (lambda a: a.owner is not None, f"True {NO_CRITERION}"),
        (lambda a: None, f"None {NO_CRITERION}"),
        (lambda a: (a.balance < 0) & True, f"True {NO_CRITERION}"),
        (lambda a: a.owner == "Ann" & a.balance < 0, f"'Ann' {NO_CRITERION}"),
        (lambda a: a.owner == "Ann" | a.active, f"'Ann' {NO_CRITERION}"),
        (lambda a: a.balance + 1, f"`balance + 1` {NO_CRITERION}"),
        (lambda a: a, f"the Account itself {NO_CRITERION}"),
        (lambda a: not_("Ann"), f"'Ann' {NO_CRITERION}"),
        (lambda a: a.active & a.balance < 0, f"`active and balance` {NO_VALUE}"),
        (lambda a: (a.balance < 0) == True, f"`balance < 0` {NO_VALUE}"),  # noqa: E712
        (lambda a: is_null(a.balance < 0), f"`balance < 0` {NO_VALUE}"),
        (
            lambda a: "A" in a.owner,
            "`in` looks into `owner`. "
            "Use is_in(value, collection) to choose from values, like(value, pattern) to find a part of a text.",
        ),
        (lambda a: a.owner.name == "x", f"`owner` is asked for its attribute or method 'name'. {IN_SQL}"),
        (lambda a: a.owner.lower() == "x", f"`owner` is asked for its attribute or method 'lower'. {IN_SQL}"),
        (lambda a: a.owner() == "x", f"`owner` is called. {IN_SQL}"),
        (lambda a: a.owner[0] == "x", f"`owner` is looked into. {IN_SQL}"),
        (lambda a: len(a.owner) == 3, f"`owner` is looked into. {IN_SQL}"),
        (lambda a: any(a.owner), f"`owner` is looked into. {IN_SQL}"),
        (lambda a: a.owner == f"{a.number}!", f"`number` {TEXT}"),
        (lambda a: a.owner == "%s" % a.number, f"`number` {TEXT}"),  # noqa: UP031
        (lambda a: a.owner == str(a.number), f"`number` {TEXT}"),
        (lambda a: a.balance / 2 > 1, f"`balance` {DIVISION}"),
        (lambda a: a.balance // 2 > 1, f"`balance` {DIVISION}"),
        (lambda a: a.balance % 2 > 1, f"`balance` {DIVISION}"),
        (lambda a: 2**a.balance > 1, f"`balance` {DIVISION}"),
        (lambda a: abs(a.balance) > 1, f"a function of Python is applied to `balance`. {IN_SQL}"),
        (lambda a: math.floor(a.balance) > 1, f"a function of Python is applied to `balance`. {IN_SQL}"),
        (
            lambda a: re.match("x", a.owner),
            "Python says that expected string or bytes-like object, got 'Symbol'. "
            "Use attributes, constants and operators only.",
        ),
        (lambda a: a == 5, "the Account itself is used. Use its attributes, as in lambda a: a.x == 1."),
        (lambda a: a.owner == a, "the Account itself is used as a value. Use an attribute, as in a.x."),
        (
            lambda a: a.balance < None,
            "`balance < None` is NULL, whatever the row. Leave it out where there is no value.",
        ),
        (
            lambda a: None + a.balance,
            "`None + balance` is NULL, whatever the row. Leave it out where there is no value.",
        ),
        (
            lambda a: between(a.balance, 1, None),
            "`balance <= None` is NULL, whatever the row. Leave it out where there is no value.",
        ),
        (
            lambda a: a.ownr == 1,
            "Account stores no attribute 'ownr'. Did you mean 'owner'? It has number, owner, balance, active, limit.",
        ),
        (
            lambda a: a.zzz == 1,
            "Account stores no attribute 'zzz'. It has number, owner, balance, active, limit.",
        ),
        (lambda a: is_in(a.owner, "Ann"), "is_in() is given 'Ann'. Give it a list, a tuple or a set of values."),
        (lambda a: is_in("x", a.owner), "is_in() is given `owner`. Give it a list, a tuple or a set of values."),
        (
            lambda a: is_in(a.owner, [a.number]),
            "is_in() is given (`number`,). Join comparisons with |, as in (a.x == a.y) | …",
        ),
        (lambda a: is_in(5, [5]), "is_in() is given 5. Give it an attribute first, as in is_in(a.x)."),
        (lambda a: is_null(None), "is_null() is given None. Give it an attribute first, as in is_null(a.x)."),
        (
            lambda a: like(a.owner, a.number),
            "like() is given the pattern `number`. Give it a text that is known beforehand.",
        ),
        (lambda a: like(a.owner, "a\\"), r"the pattern 'a\\' ends in its escape. Write \\ for a backslash."),
    ],
)
def test_refused(specification: Spec, text: str) -> None:
    """What cannot be traced is an error that says what to write instead."""
    assert text == refused(lambda: traced(specification))


def test_symbols_can_be_looked_at() -> None:
    """Debuggers and collections find ordinary objects: with a repr, a hash, and no surprising special methods."""
    seen: list[object] = []

    def look(a: Any) -> object:
        seen.extend([a, a.owner])
        return a.active

    traced(look)

    assert ["the Account itself", "`owner`"] == [repr(symbol) for symbol in seen]
    assert 2 == len({hash(symbol) for symbol in seen})
    assert not any(hasattr(symbol, "__array__") for symbol in seen)


# ------------------------------------------------------------------------------------------------------------- meaning

U = None  # unknown: SQL's NULL
LOGIC = [True, False, U]


def meaning(specification: Spec, **values: object) -> object:
    return evaluate(traced(specification), SimpleNamespace(**values))


def test_three_valued_logic() -> None:
    """AND, OR and NOT follow SQL's tables."""
    both = [(x, y) for x, y in product(LOGIC, LOGIC)]

    assert [True, False, U, False, False, False, U, False, U] == [
        meaning(lambda a: a.active & a.limit, active=x, limit=y) for x, y in both
    ]
    assert [True, True, True, True, False, U, True, U, U] == [
        meaning(lambda a: a.active | a.limit, active=x, limit=y) for x, y in both
    ]
    assert [False, True, U] == [meaning(lambda a: ~a.active, active=x) for x in LOGIC]


@pytest.mark.parametrize(
    ("specification", "values", "expected"),
    [
        (lambda a: a.balance < 1, {"balance": 0}, True),
        (lambda a: a.balance < 1, {"balance": None}, U),
        (lambda a: a.balance <= Decimal("0.5"), {"balance": 0.5}, True),
        (lambda a: a.balance >= a.limit, {"balance": 1, "limit": None}, U),
        (lambda a: a.balance == a.limit, {"balance": None, "limit": None}, U),
        (lambda a: a.balance != a.limit, {"balance": 1, "limit": 2}, True),
        (lambda a: a.balance > a.limit, {"balance": 1, "limit": 2}, False),
        (lambda a: a.balance * 2 - a.limit + 1 == 0, {"balance": 1, "limit": 3}, True),
        (lambda a: -a.balance == 0, {"balance": None}, U),
        (lambda a: "Ms " + a.owner == "Ms Ann", {"owner": "Ann"}, True),
        (lambda a: is_null(a.owner), {"owner": None}, True),
        (lambda a: a.owner != None, {"owner": None}, False),  # noqa: E711
        (lambda a: is_in(a.balance, [1, 2]), {"balance": 2}, True),
        (lambda a: is_in(a.balance, [1, 2]), {"balance": 3}, False),
        (lambda a: is_in(a.balance, [1, 2]), {"balance": None}, U),
        (lambda a: is_in(a.balance, [1, None]), {"balance": 1}, True),
        (lambda a: is_in(a.balance, [1, None]), {"balance": 3}, U),
        (lambda a: is_in(a.balance, []), {"balance": None}, False),
        (lambda a: not_(is_in(a.balance, [])), {"balance": None}, True),
        (lambda a: between(a.balance, 1, a.limit), {"balance": 0, "limit": None}, False),
        (lambda a: between(a.balance, 1, a.limit), {"balance": 1, "limit": None}, U),
        (lambda a: like(a.owner, "A%"), {"owner": "Ann\n"}, True),
        (lambda a: like(a.owner, "a%"), {"owner": "Ann"}, False),
        (lambda a: like(a.owner, "_n_"), {"owner": "Ann"}, True),
        (lambda a: like(a.owner, "A.*"), {"owner": "Ann"}, False),
        (lambda a: like(a.owner, r"\%\_\\\a"), {"owner": "%_\\a"}, True),
        (lambda a: like(a.owner, "%"), {"owner": None}, U),
        (lambda a: a.active, {"active": None}, U),
    ],
)
def test_meaning(specification: Spec, values: dict[str, object], expected: bool | None) -> None:
    """An expression means what it means in SQL; only what is true matches."""
    assert expected is meaning(specification, **values)
    assert (expected is True) is matches(traced(specification), SimpleNamespace(**values))


class Level(Enum):
    """A value without an order."""

    LOW = "low"


NAIVE, AWARE = datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("specification", "value", "text"),
    [
        (lambda a: a.limit == 1, "1", "`limit == 1` meets '1' (str) and 1 (int)"),
        (lambda a: a.limit != "1", 1, "`limit != '1'` meets 1 (int) and '1' (str)"),
        (lambda a: a.limit < 1, True, "`limit < 1` meets True (bool) and 1 (int)"),
        (
            lambda a: a.limit > date(2024, 1, 1),
            NAIVE,
            f"`limit > {date(2024, 1, 1)!r}` meets {NAIVE!r} (datetime) and {date(2024, 1, 1)!r} (date)",
        ),
        (
            lambda a: a.limit == NAIVE,
            AWARE,
            f"`limit == {NAIVE!r}` meets {AWARE!r} (datetime) and {NAIVE!r} (datetime)",
        ),
        (
            lambda a: a.limit < Level.LOW,
            Level.LOW,
            f"`limit < {Level.LOW!r}` meets {Level.LOW!r} (Level) and {Level.LOW!r} (Level)",
        ),
        (lambda a: is_in(a.limit, [1, "2"]), 1, "`limit in (1, '2')` meets 1 (int) and (1, '2') (tuple)"),
        (lambda a: like(a.limit, "1%"), 1, "`limit like '1%'` meets 1 (int) and '1%' (str)"),
        (lambda a: like(a.limit, "1%"), b"1", "`limit like '1%'` meets b'1' (bytes) and '1%' (str)"),
        (lambda a: a.limit * 2 == "aa", "a", "`limit * 2` meets 'a' (str) and 2 (int)"),
        (lambda a: a.limit - "b" == "a", "a", "`limit - 'b'` meets 'a' (str) and 'b' (str)"),
        (lambda a: a.limit + 0.1 == 1, Decimal(1), "`limit + 0.1` meets Decimal('1') (Decimal) and 0.1 (float)"),
        (lambda a: a.limit, 1, "`limit` meets 1 (int)"),
    ],
)
def test_types_that_do_not_fit(specification: Spec, value: object, text: str) -> None:
    """Values on which databases disagree are an error, and no silent answer."""
    assert f"{text}. {MIXED}" == refused(lambda: meaning(specification, limit=value))


def test_translate_pattern() -> None:
    """A pattern can be said in other languages; what is escaped is no wildcard there."""
    assert "<*>a<?>\\%_" == translate_pattern(r"%a_\\\%\_", "<*>", "<?>", str)


# --------------------------------------------------------------------------------------------------------------- order


def orders(order_by: Spec) -> tuple[Order, ...]:
    return trace_order(order_by, Account, NAMES)


def test_trace_order() -> None:
    """One key, or several in a tuple or a list."""
    owner, balance = Attribute("owner"), Attribute("balance")

    assert (Order(owner),) == orders(lambda a: a.owner)
    assert (Order(owner), Order(balance, descending=True)) == orders(lambda a: (asc(a.owner), desc(a.balance)))
    assert (Order(balance), Order(owner)) == orders(lambda a: [a.balance, a.owner])
    assert () == orders(lambda a: ())
    assert ["owner", "0 - balance desc"] == [str(order) for order in orders(lambda a: (a.owner, desc(-a.balance)))]


@pytest.mark.parametrize(
    ("order_by", "text"),
    [
        (
            lambda a: "owner",
            "'owner' is nothing to order by. Return an attribute, desc(attribute), or a tuple of them.",
        ),
        (
            lambda a: (a.owner, None),
            "None is nothing to order by. Return an attribute, desc(attribute), or a tuple of them.",
        ),
        (lambda a: a, "the Account itself is used as a value. Use an attribute, as in a.x."),
        (
            lambda a: desc(desc(a.owner)),
            "Order(expression=Attribute(name='owner'), descending=True) is used as a value. "
            "Use an attribute, as in a.x.",
        ),
        (lambda a: a.active & a.active, f"`active and active` {NO_VALUE}"),
        (lambda a: a.owner or a.number, f"Python asks for the truth of `owner`, {TRUTH}"),
    ],
)
def test_order_refused(order_by: Spec, text: str) -> None:
    """What is nothing to order by is an error that says what is."""
    assert text == refused(lambda: orders(order_by))


def test_ordered() -> None:
    """NULL is the smallest value, the first key weighs most, and ties keep their order."""
    rows = [
        SimpleNamespace(number=number, owner=owner, balance=balance)
        for number, (owner, balance) in enumerate([("b", 1), (None, 2), ("a", None), ("a", 3), ("b", 1), (None, None)])
    ]

    def numbers(order_by: Spec) -> list[int]:
        return [row.number for row in ordered(iter(rows), orders(order_by))]

    assert [1, 5, 2, 3, 0, 4] == numbers(lambda a: a.owner)
    assert [0, 4, 2, 3, 1, 5] == numbers(lambda a: desc(a.owner))
    assert [5, 1, 2, 3, 0, 4] == numbers(lambda a: (a.owner, a.balance))
    assert [1, 5, 3, 2, 0, 4] == numbers(lambda a: (a.owner, desc(a.balance)))
    assert [0, 1, 2, 3, 4, 5] == numbers(lambda a: ())


def test_ordered_without_an_order() -> None:
    """Values that cannot be compared with each other are an error."""
    rows = [SimpleNamespace(owner=1, balance="x"), SimpleNamespace(owner="a", balance="y")]

    assert (
        "`owner` has values without an order, '<' not supported between instances of 'str' and 'int'. "
        "Order by texts, numbers or dates."
    ) == refused(lambda: ordered(rows, orders(lambda a: a.owner)))
    assert f"`0 - balance` meets 0 (int) and 'x' (str). {MIXED}" == refused(
        lambda: ordered(rows, orders(lambda a: -a.balance))
    )


# ---------------------------------------------------------------------------------------------------------- equalities


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        (lambda a: a.owner == "Ann", {"owner": "Ann"}),
        (
            lambda a: (a.owner == "Ann") & (a.balance < 0) & a.active & ("A-1" == a.number),
            {"owner": "Ann", "active": True, "number": "A-1"},
        ),
        (lambda a: (a.owner == "Ann") & (a.owner == "Bob"), {"owner": "Ann"}),
        (lambda a: (a.owner == "Ann") | (a.balance < 0), {}),
        (lambda a: ~(a.owner == "Ann") & (a.owner == a.number) & (a.balance + 1 == 2) & (a.owner == None), {}),  # noqa: E711
    ],
)
def test_equalities(specification: Spec, expected: dict[str, object]) -> None:
    """What all matches have in common can be looked up in an index."""
    assert expected == equalities(traced(specification))


@pytest.mark.parametrize("wrong", [True, "balance"])
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    """A comparison that Python has made already, or a name, is no specification."""
    assert f"{wrong!r} is no function. Pass a function of the Account, such as lambda e: e.name." == refused(
        lambda: traced(wrong)
    )


def test_a_method_of_texts_has_a_function_in_its_place() -> None:
    """Who asks a text how it begins reads what to call instead."""
    assert 'Use like(), as in like(owner, "...%"), or say it in SQL' in refused(
        lambda: traced(lambda a: a.owner.startswith("A"))
    )
