"""
The rules that the programs of the parity machine are made of.

Each repository has rules of its own, so that a program reads like one that a user would write.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, initialize, multiple, precondition
from hypothesis.stateful import rule as hypothesis_rule

from ._parity_machine import Machine
from ._parity_queries import Found, Kind, Question, findings, questions
from ._parity_sides import Held, Marked, Schema, Unit, commit, fail, is_aggregate

__all__ = ["Strategies", "machine_of"]

Strategies: TypeAlias = Mapping[str, st.SearchStrategy[Any]]


def machine_of(
    name: str, kinds: Mapping[str, Kind], methods: Mapping[str, Strategies], queries: Mapping[str, Strategies]
) -> type[Machine]:
    """
    Return the machine for these repositories.

    Args:
        name: What a failing program calls it.

        kinds: The repositories.

        methods: By repository, the methods of its entities, and what makes their arguments.

        queries: By repository, its named queries, and what makes their arguments.
    """
    rules = _scope_rules()
    for kind in kinds.values():
        rules |= _entity_rules(kind)
        rules |= _user_rules(kind, methods.get(kind.name, {}), queries.get(kind.name, {}))
    return type(name, (Machine,), {"kinds": kinds, "schema": Schema(kinds), **rules})


# ------------------------------------------------------------------------------------------------------------ plumbing


def _rules(name: str, weight: int, function: Any, **arguments: Any) -> dict[str, Any]:
    """
    Make a rule, after which everything must be the same. (As an invariant that were a line of each program.)

    Hypothesis chooses a rule the more often, the more names it finds it under.
    """

    @functools.wraps(function)
    def checked(self: Machine, **values: Any) -> Any:
        result = function(self, **values)
        self.demand_parity()
        return result

    checked.__name__ = checked.__qualname__ = name
    decorate: Any = hypothesis_rule(**arguments)
    rule = decorate(checked)
    return {f"do_{name}_{number}": rule for number in range(weight)}


def _brief(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return the same strategy with a short repr: Hypothesis writes it for every rule."""
    return st.deferred(lambda: strategy)


def _rarely(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Choose what is usual, and one of the *others* now and then."""
    return st.sampled_from([*[usual] * 5 * len(others), *others])


def _units(among: Callable[[Machine], Sequence[Unit]]) -> st.SearchStrategy[Unit]:
    """Choose one of the units that can do something now, the first one more often."""

    def chosen(drawn: tuple[Any, int]) -> Unit:
        units = among(drawn[0])
        return units[drawn[1] % len(units)]

    return st.tuples(st.runner(), st.sampled_from([0, 0, 0, 1])).map(chosen)


_ANY = _units(lambda self: self.units)
_WORKING = _units(lambda self: self.working())
_ENDING = _units(lambda self: self.ending())

# -------------------------------------------------------------------------------------------------- units and scopes

_HOOKS = ("after_commit", "after_rollback", "before_commit")
_HANDLERS = ("handler inside", "handler after the commit")


def _scope_rules() -> dict[str, Any]:
    """Make the rules about units, their scopes, and the hooks and events in them."""

    def mark(self: Machine, unit: Unit, fails: str | None) -> None:
        """Register a hook of each kind and record an event; one of the hooks, or a handler of the event, may fail."""
        label = self.label()

        def call(side: int, scope: Any) -> None:
            for kind in _HOOKS:
                getattr(scope, kind)(self.sides[side].hook(kind, label, fails=kind == fails))
            scope.record(Marked(label, fails))

        self.step(unit, call)

    def nest(self: Machine, unit: Unit, marked: bool) -> None:
        """Open a nested scope, and perhaps leave a mark in it."""
        self.step(unit, lambda side, scope: unit.scopes[side].append(scope.nested().__enter__()))
        if marked and unit.nested:
            mark(self, unit, None)

    def flush(self: Machine, unit: Unit) -> None:
        """Write what is pending."""
        self.step(unit, lambda side, scope: scope.flush())

    def swallow(self: Machine, unit: Unit) -> None:
        """Let the next error that breaks a scope not leave its block, so that the program goes on in a broken one."""
        unit.swallows = True

    return {
        **_end_rules("commit", 4, commit),  # or release
        **_end_rules("leave", 1, lambda scope: None),
        **_end_rules("fail", 1, fail),
        **_end_rules("rollback", 1, lambda scope: scope.rollback()),
        **_rules("nest", 4, nest, unit=_WORKING, marked=st.booleans()),
        **_rules("mark", 3, mark, unit=_ANY, fails=_rarely(None, *_HOOKS, *_HANDLERS)),
        **_rules("flush", 1, flush, unit=_WORKING),
        **_rules("swallow", 1, swallow, unit=_ANY),
    }


def _end_rules(verb: str, weight: int, act: Callable[[Any], object]) -> dict[str, Any]:
    """Make the rules that end the innermost scope, and all scopes of a unit, in one way."""

    def end(self: Machine, unit: Unit) -> None:
        self.end(unit, act)

    def end_all(self: Machine, unit: Unit) -> None:
        while unit.open:
            self.end(unit, act)

    rules = _rules(verb, weight, end, unit=_ENDING) | _rules(f"{verb}_all", 1, end_all, unit=_ENDING)
    return {name: precondition(lambda self: bool(self.ending()))(rule) for name, rule in rules.items()}


# ------------------------------------------------------------------------------------------------- the entities of one


def _entity_rules(kind: Kind) -> dict[str, Any]:
    """Make the rules about the entities of one repository."""
    name = kind.name
    bundle: Any = Bundle(name)
    # By right versions are counted by the database, and SQLAlchemy takes an object for its old key until the flush.
    fixed = {kind.version, *kind.key}
    changes = _brief(
        st.one_of(*(st.tuples(st.just(each), kind.values(each)) for each in kind.attributes if each not in fixed))
    )
    found, question = _brief(findings(kind)), _brief(questions(kind))

    def begin_with(self: Machine, rows: Sequence[Any]) -> MultipleResults[Held]:
        """Begin with committed rows: those that the constraints let in."""
        held = [self.commit_new(kind, row) for row in rows]
        self.demand_parity()
        return multiple(*(each for each in held if not each.new))

    def add(self: Machine, unit: Unit, entity: Any) -> Held | MultipleResults[Held]:
        """Add a new entity."""
        return self.put(unit, kind, entity) or multiple()

    def add_again(self: Machine, unit: Unit, entity: Held, attribute: tuple[str, Any] | None) -> None:
        """Add an entity of an earlier unit to *unit*, or to its own one if it was removed from that; then change it."""
        self.write(unit, entity, "add")
        if attribute is not None and _writable(entity):
            change(self, entity, attribute)

    def overtake(self: Machine, entity: Held, theirs: tuple[str, Any], ours: tuple[str, Any]) -> MultipleResults[Held]:
        """Let another unit change the row of an entity and commit first, and write the entity then."""
        other = self.idle()[0]
        key = entity.stored if len(kind.key) > 1 else entity.stored[0]
        found = self.find(other, Found(kind, "get_or_none", key))
        for each in found.values:
            change(self, each, theirs)
        if other.open:  # it may have been kept waiting
            self.end(other, commit)
        if _returnable(entity):
            self.write(other, entity, "add")
        if _writable(entity):
            change(self, entity, ours)
            self.step(entity.unit, lambda side, scope: scope.flush())
        return found

    def remove(self: Machine, unit: Unit, entity: Held) -> None:
        """Remove an entity from its unit, or one of an earlier unit from *unit*."""
        self.write(unit, entity, "remove")

    def change(self: Machine, entity: Held, attribute: tuple[str, Any]) -> None:
        """Set an attribute."""
        key, value = attribute
        self.alter(entity, lambda each, side: setattr(each, key, self.translated(kind, side)(key, value)))

    def record(self: Machine, entity: Held) -> None:
        """Let an aggregate record an event."""
        event = Marked(self.label())
        self.alter(entity, lambda each, side: each.record(event))

    def find(self: Machine, unit: Unit, query: Found) -> MultipleResults[Held]:
        """Get an entity by its key, or list what a made-up specification describes."""
        return self.find(unit, query)

    def ask(self: Machine, unit: Unit, question: Question) -> None:
        """Count, ask whether there is any, or go through all."""
        for held in self.ask(unit, kind, lambda side, scope: question.on(scope, self.translated(kind, side))).values:
            held.named = False

    own, some, one = {"target": bundle}, {"attribute": changes}, {"attribute": st.none() | changes}
    rules = {
        f"begin_with_{name}": _initial(f"begin_with_{name}", begin_with, bundle, kind.templates),
        **_rules(f"add_{name}", 4, add, unit=_ANY, entity=kind.templates, **own),
        **_rules(f"find_{name}", 4, find, unit=_WORKING, query=found, **own),
        **_rules(f"ask_{name}", 1, ask, unit=_WORKING, question=question),
        **_about(kind, "add_again", 2, add_again, _addable, unit=_ANY, **one),
        **_about(kind, "remove", 2, remove, _removable, unit=_ANY),
        **_about(kind, "change", 4, change, _alterable, **some),
    }
    if kind.version is not None:
        rules |= _about(kind, "overtake", 4, overtake, _behind, theirs=changes, ours=changes, **own)
    if is_aggregate(kind):
        rules |= _about(kind, "record", 1, record, _alterable)
    return rules


def _user_rules(kind: Kind, methods: Strategies, queries: Strategies) -> dict[str, Any]:
    """Make the rules about the methods and queries that the user names."""
    rules: dict[str, Any] = {}
    for method, arguments in methods.items():

        def call(self: Machine, entity: Held, arguments: tuple[Any, ...], method: str = method) -> None:
            self.alter(entity, lambda each, side: getattr(each, method)(*arguments))

        rules |= _about(kind, method, 1, call, _alterable, arguments=arguments)
    for query, arguments in queries.items():

        def ask(self: Machine, unit: Unit, arguments: tuple[Any, ...], query: str = query) -> MultipleResults[Held]:
            return self.ask(unit, kind, lambda side, scope: getattr(getattr(scope, kind.name), query)(*arguments))

        bundle: Any = Bundle(kind.name)
        rules |= _rules(f"{query}_{kind.name}", 1, ask, target=bundle, unit=_WORKING, arguments=arguments)
    return rules


def _initial(name: str, function: Any, bundle: Any, templates: st.SearchStrategy[Any]) -> Any:
    """Make a rule that a program begins with."""
    function.__name__ = function.__qualname__ = name
    decorate: Any = initialize(target=bundle, rows=st.lists(templates, max_size=4))
    return decorate(function)


def _about(
    kind: Kind, verb: str, weight: int, function: Any, wanted: Callable[[Held], bool], **arguments: Any
) -> dict[str, Any]:
    """Make a rule about an entity that the program holds, for when there is one that is *wanted*."""
    bundle: Any = Bundle(kind.name)

    def there(self: Machine) -> bool:
        return any(held.named and held.kind is kind and wanted(held) for held in self.held)

    rules = _rules(f"{verb}_{kind.name}", weight, function, entity=bundle.filter(wanted), **arguments)
    return {name: precondition(there)(rule) for name, rule in rules.items()}


# ------------------------------------------------------------------------------------------ what can be done with what


def _writable(held: Held) -> bool:
    """Tell whether the program may write what it holds in its own unit."""
    return held.usable and not held.lost and held.machine.may_write(held)


def _returnable(held: Held) -> bool:
    """Tell whether the program may bring what it holds to another unit."""
    return held.free and not held.lost and not held.spoiled and held.machine.may_write(held)


def _any_writable(held: Held) -> bool:
    return any(other.named and other.kind is held.kind and _writable(other) for other in held.machine.held)


def _addable(held: Held) -> bool:
    """
    Tell whether it may be added again.

    In its own unit that means something if it was removed there. By right it is added with the key that it had, which
    is avoided where the database makes keys. So is one that is new in a nested scope: SQLAlchemy loses it where a scope
    that added, removed and added it again is rolled back.
    """
    if not held.removed:
        return _returnable(held)
    again = _writable(held) and not (held.new and held.unit.nested)
    return not held.kind.generated and (again or _returnable(held))


def _behind(held: Held) -> bool:
    """Tell whether another unit may overtake it: it stands for a row, and there is a unit to do it."""
    return not held.new and (_writable(held) or _returnable(held)) and bool(held.machine.idle())


def _removable(held: Held) -> bool:
    """Tell whether it may be removed, rather from its own unit than from another."""
    return _writable(held) or (_returnable(held) and not _any_writable(held))


def _alterable(held: Held) -> bool:
    """Tell whether it may be changed, rather in a unit than outside."""
    return _writable(held) or (held.free and not held.lost and not _any_writable(held))
