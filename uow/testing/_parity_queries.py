"""
Queries that the parity machine makes up: their text is what a user would write, their meaning is the same on each side.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeAlias

from attrs import field, frozen
from hypothesis import strategies as st

from uow import asc, desc, is_in, is_null, like, not_
from uow.domain import Order

__all__ = ["Criterion", "Found", "Kind", "Ordering", "Question", "Translate", "findings", "questions"]

Translate: TypeAlias = Callable[[str, Any], Any]
"""Takes an attribute and a value of the program, and returns the value on one side."""

_ORDERED = (int, float, Decimal, str, date, datetime, time)
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}


@frozen(eq=False)
class Kind:
    """
    What the machine knows of one repository's entities.

    Args:
        name: The repository's name in the unit.

        entity: The entities' class.

        attributes: The names of what is stored.

        key: The names of the key's parts.

        version: The attribute that counts changes.

        generated: Whether the database makes the key.

        surrogates: The attributes whose values the database makes, and the class that they are keys of.

        templates: Makes entities.

        related: The repositories whose tables this one's refers to, or that refer to it.
    """

    name: str
    entity: type
    attributes: tuple[str, ...]
    key: tuple[str, ...]
    version: str | None
    generated: bool
    surrogates: Mapping[str, type]
    templates: st.SearchStrategy[Any]
    related: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return self.name

    def values(self, attribute: str) -> st.SearchStrategy[Any]:
        """Make values for *attribute*, out of those that made-up entities have."""
        if attribute in self.surrogates:
            return st.integers(1, 4)
        if attribute == self.version:
            return st.integers(1, 3)
        return self.templates.map(lambda template: getattr(template, attribute))


@frozen
class Criterion:
    """
    A specification, its text, and what makes it on one side.
    """

    text: str
    strength: int = field(repr=False)
    build: Callable[[Any, Translate], Any] = field(repr=False)

    def on(self, translate: Translate) -> Callable[[Any], Any]:
        """Return the specification for one side."""
        return lambda entity: self.build(entity, translate)

    def __repr__(self) -> str:
        return f"lambda e: {self.text}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@frozen
class Ordering:
    """
    What to sort by: attributes, and whether the greatest comes first.
    """

    terms: tuple[tuple[str, bool], ...]

    def __call__(self, entity: Any) -> tuple[Order, ...]:
        return tuple((desc if down else asc)(getattr(entity, name)) for name, down in self.terms)

    def __repr__(self) -> str:
        terms = [f"desc(e.{name})" if down else f"e.{name}" for name, down in self.terms]
        return f"lambda e: ({', '.join(terms)},)"


@frozen
class Found:
    """
    A ``get()``, ``get_or_none()``, ``list()`` or ``first()``, with its arguments.
    """

    kind: Kind
    verb: str
    key: Any = None
    where: Criterion | None = None
    order_by: Ordering | None = None
    limit: int | None = None
    offset: int = 0

    @property
    def unordered(self) -> bool:
        """Whether it lists in the order that the database likes."""
        return self.verb == "list" and self.order_by is None

    def on(self, scope: Any, translate: Translate) -> Any:
        """Find it on one side."""
        repository = getattr(scope, self.kind.name)
        if self.verb != "list":
            parts = self.key if len(self.kind.key) > 1 else (self.key,)
            key = tuple(translate(name, part) for name, part in zip(self.kind.key, parts, strict=True))
            return getattr(repository, self.verb)(key)
        where = None if self.where is None else self.where.on(translate)
        return repository.list(where, order_by=self.order_by, limit=self.limit, offset=self.offset)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print it as a call; Hypothesis asks for it."""
        given = {"order_by": self.order_by, "limit": self.limit, "offset": self.offset or None}
        arguments = [repr(self.key)] if self.verb != "list" else [repr(self.where)] if self.where else []
        arguments += [f"{name}={value!r}" for name, value in given.items() if value is not None]
        printer.text(f"{self.kind.name}.{self.verb}({', '.join(arguments)})")


# --------------------------------------------------------------------------------------------------------- criteria


def specifications(kind: Kind) -> st.SearchStrategy[Criterion]:
    """Make specifications over the stored attributes of *kind*."""
    leaf = st.one_of(*(_leaves(kind, name) for name in kind.attributes))
    some = st.one_of(leaf, leaf, leaf.map(_negated))
    signs = st.sampled_from("&|")
    joined = st.builds(_joined, signs, some, some)
    return st.one_of(some, some, joined, joined.map(_negated))


def _leaves(kind: Kind, name: str) -> st.SearchStrategy[Criterion]:
    values, named = kind.values(name), st.just(name)
    signs = ["==", "!="] if name in kind.surrogates else [*_COMPARISONS]
    compared = st.builds(_compared, named, st.sampled_from(signs), values)
    chosen = st.builds(_chosen, named, st.lists(values, max_size=3))
    return st.one_of(compared, compared, chosen, st.just(_missing(name)), st.builds(_alike, named, values))


def _compared(name: str, sign: str, value: Any) -> Criterion:
    if value is None or type(value) is bool or not isinstance(value, _ORDERED):
        sign = "!=" if sign in ("!=", "<", ">") else "=="
    if value is None:
        return _missing(name) if sign == "==" else _negated(_missing(name))
    compare = _COMPARISONS[sign]
    return Criterion(f"e.{name} {sign} {value!r}", 1, lambda e, t: compare(getattr(e, name), t(name, value)))


def _chosen(name: str, values: Sequence[Any]) -> Criterion:
    return Criterion(
        f"is_in(e.{name}, {values!r})", 2, lambda e, t: is_in(getattr(e, name), [t(name, value) for value in values])
    )


def _missing(name: str) -> Criterion:
    return Criterion(f"is_null(e.{name})", 2, lambda e, t: is_null(getattr(e, name)))


def _alike(name: str, value: Any) -> Criterion:
    if not isinstance(value, str):
        return _compared(name, "==", value)
    pattern = f"{value[:1]}%"
    return Criterion(f"like(e.{name}, {pattern!r})", 2, lambda e, t: like(getattr(e, name), pattern))


def _negated(criterion: Criterion) -> Criterion:
    return Criterion(f"not_({criterion.text})", 2, lambda e, t: not_(criterion.build(e, t)))


def _joined(sign: str, left: Criterion, right: Criterion) -> Criterion:
    def build(entity: Any, translate: Translate) -> Any:
        one, two = left.build(entity, translate), right.build(entity, translate)
        return one & two if sign == "&" else one | two

    return Criterion(f"{_enclosed(left)} {sign} {_enclosed(right)}", 1, build)


def _enclosed(criterion: Criterion) -> str:
    return criterion.text if criterion.strength > 1 else f"({criterion.text})"


# --------------------------------------------------------------------------------------------------- keys and listings


def findings(kind: Kind) -> st.SearchStrategy[Found]:
    """
    Make what finds entities of *kind*.

    What is ordered is ordered by the key in the end: the order of rows that tie is the database's choice by right.
    """
    this, where = st.just(kind), st.none() | specifications(kind)
    one = kind.values(kind.key[0]) if len(kind.key) == 1 else st.tuples(*map(kind.values, kind.key))
    terms = st.lists(st.tuples(st.sampled_from(kind.attributes), st.booleans()), min_size=1, max_size=2)
    order = terms.map(lambda chosen: Ordering((*chosen, *((name, False) for name in kind.key))))
    limits, offsets = st.sampled_from([None, None, 1, 2, 3, 0]), st.sampled_from([0, 0, 0, 1, 2])
    ordered = st.builds(Found, this, st.just("list"), where=where, order_by=order, limit=limits, offset=offsets)
    return st.one_of(
        st.builds(Found, this, st.just("list")),
        st.builds(Found, this, st.sampled_from(["get", "get_or_none"]), one),
        st.builds(Found, this, st.just("list"), where=where),
        ordered,
        ordered,
    )


# ----------------------------------------------------------------------------------------------------------- questions


@frozen
class Question:
    """
    What a repository is asked whose answer is no list of entities: a verb, and whatever it takes.
    """

    kind: Kind
    verb: str
    where: Criterion | None
    batch_size: int

    def on(self, scope: Any, translate: Translate) -> Any:
        """Ask one side."""
        where = None if self.where is None else self.where.on(translate)
        ask = getattr(getattr(scope, self.kind.name), self.verb)
        return [*ask(where, batch_size=self.batch_size)] if self.verb == "iterate" else ask(where)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        where = "" if self.where is None else repr(self.where)
        size = f", batch_size={self.batch_size}" if self.verb == "iterate" else ""
        printer.text(f"{self.kind.name}.{self.verb}({where}{size})".replace("(, ", "("))


def questions(kind: Kind) -> st.SearchStrategy[Question]:
    """Make questions about *kind*."""
    where = st.none() | specifications(kind)
    verbs = st.sampled_from(["count", "exists", "iterate"])
    return st.builds(Question, st.just(kind), verbs, where, st.integers(1, 3))
