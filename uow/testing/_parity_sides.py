"""
The two sides of the parity machine, and how what they do is compared.

Where a database may differ from the fake by right, the difference is made good here or avoided in the machine; each
such place says so with the word *by right*, and docs/parity.md lists them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import define, field, frozen
from sqlalchemy import Engine, Table
from sqlalchemy import inspect as inspect_mapped
from sqlalchemy.orm import Mapper

from uow import Aggregate, Event, Handlers, State, UnitOfWork
from uow.domain import attributes_of, key_names_of, version_name_of
from uow.errors import IntegrityViolation, StaleVersion, UnitOfWorkError

from ._parity_queries import Kind

__all__ = [
    "FAKE",
    "REAL",
    "REFUSALS",
    "Different",
    "Facts",
    "Held",
    "Keys",
    "Marked",
    "Mistake",
    "Outcome",
    "Schema",
    "Side",
    "Unit",
    "attempt",
    "chain",
    "commit",
    "copied",
    "demand_same",
    "facts_of",
    "fail",
    "is_aggregate",
    "key_of",
    "kinds_of",
    "leave",
]

FAKE, REAL = 0, 1
BROKEN = (State.BROKEN, State.DOOMED)
REFUSALS = (IntegrityViolation, StaleVersion)
"""What a flush meets."""


class Different(AssertionError):
    """
    The fake and the database did not do the same.
    """


class Mistake(Exception):
    """
    What hooks, handlers and blocks of a program raise.
    """


@frozen
class Marked(Event):
    """
    An event of a program; the handler that it names fails.
    """

    label: int
    fails: str | None = None


@frozen
class Facts:
    """
    What a database does by right, and the fake does not.

    Args:
        one_writer: It lets one unit work at a time; another one would wait for it to end.

        reuses_keys: It makes a key again that a rollback discarded.
    """

    one_writer: bool
    reuses_keys: bool


def facts_of(engine: Engine) -> Facts:
    """Return what is known of the database behind *engine*."""
    sqlite = engine.dialect.name == "sqlite"
    return Facts(one_writer=sqlite, reuses_keys=sqlite)


def demand_same(what: str, fake: object, real: object) -> None:
    """Raise unless both sides gave the same."""
    if fake != real:
        raise Different(f"{what} differs.\n  fake:     {fake!r}\n  database: {real!r}")


# ------------------------------------------------------------------------------------------------------------- sides


class Side:
    """
    The fake, or the database, and what hooks and handlers wrote down there.
    """

    def __init__(self, make: Callable[..., UnitOfWork]) -> None:
        self.make = make
        self.log: list[object] = []
        self.handlers = Handlers()
        self.handlers.before_commit(Event)(self._inside)
        self.handlers.after_commit(Event)(self._after)

    def unit(self) -> Any:
        """Return a new unit."""
        return self.make(handlers=self.handlers)

    def _inside(self, event: Event, uow: object) -> None:
        self._note("handler inside", event)

    def _after(self, event: Event) -> None:
        self._note("handler after the commit", event)

    def _note(self, place: str, event: Event) -> None:
        self.log.append((place, event))
        if isinstance(event, Marked) and event.fails == place:
            raise Mistake(event.label)

    def hook(self, kind: str, label: int, *, fails: bool) -> Callable[[], None]:
        """Return a hook that writes down that it ran."""

        def hook() -> None:
            self.log.append((kind, label))
            if fails:
                raise Mistake(label)

        return hook


@define(eq=False)
class Unit:
    """
    A unit on both sides, entered when it is first used, and again after its end.

    Args:
        name: How the program calls it.

        handles: The unit on each side.

        scopes: The open scopes on each side, outermost first.

        block: How often it was entered.

        touched: The rows that it may have written.

        undone: Whether it undid something: it removed an entity, or rolled a nested scope back.

        swallows: Whether the next error stays in its block.

        unwritten: The repositories whose entities it has not flushed yet.
    """

    name: str
    handles: tuple[Any, Any]
    scopes: tuple[list[Any], list[Any]] = field(factory=lambda: ([], []))
    block: int = 0
    touched: set[tuple[type, Any]] = field(factory=set)
    undone: bool = False
    swallows: bool = False
    unwritten: set[str] = field(factory=set)

    def __str__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the name; Hypothesis asks for it."""
        printer.text(self.name)

    @property
    def open(self) -> bool:
        """Whether its block was entered and not left."""
        return bool(self.scopes[FAKE])

    @property
    def nested(self) -> bool:
        """Whether a nested scope is open in it."""
        return len(self.scopes[FAKE]) > 1

    @property
    def broken(self) -> bool:
        """Whether a database error broke its innermost scope."""
        return self.open and self.scopes[FAKE][-1].state in BROKEN

    @property
    def begun(self) -> bool:
        """Whether it has a transaction in the database, and so perhaps locks."""
        return self.open and self.scopes[REAL][0].status().begun

    def enter(self) -> None:
        """Enter both sides, unless they are."""
        if not self.open:
            self.block += 1
            self.touched.clear()
            self.unwritten.clear()
            self.undone = False
            for side in (FAKE, REAL):
                self.scopes[side].append(self.handles[side].__enter__())


@define(eq=False)
class Held:
    """
    An entity that the program holds on both sides.

    Args:
        machine: That holds it.

        kind: Of its repository.

        sides: The entity on each side.

        unit: The unit that it is in, or was in.

        block: The block of that unit.

        stored: The key that it was stored under when the program first met it.

        serial: How often its row had been committed when it was read.

        number: The generated key that it had when last looked at.

        named: Whether the program has a name for it.

        new: Whether it was added, and not committed yet.

        spoiled: Whether it was written in a unit that rolled back.

        lost: Whether its unit lost to one that it waited for.

        removed: Whether it was removed at some time.
    """

    machine: Any
    kind: Kind
    sides: tuple[Any, Any]
    unit: Unit
    block: int
    stored: Any
    serial: int = 0
    number: int | None = None
    named: bool = True
    new: bool = False
    spoiled: bool = False
    lost: bool = False
    removed: bool = False

    @property
    def free(self) -> bool:
        """Whether the block that it was in has ended."""
        return not (self.unit.open and self.unit.block == self.block)

    @property
    def usable(self) -> bool:
        """Whether the block that it is in can work."""
        return not self.free and not self.unit.broken

    @property
    def names(self) -> set[tuple[type, Any]]:
        """The rows that it stands for."""
        now = key_of(self.kind, self.sides[FAKE])
        return {(self.kind.entity, self.stored), (self.kind.entity, now)}


def key_of(kind: Kind, entity: Any) -> Any:
    """Return the key that an entity has now."""
    return tuple(getattr(entity, name) for name in kind.key)


def copied(template: Any) -> Any:
    """Return a new entity like *template*, which the program made for both sides."""
    made = inspect_mapped(type(template)).class_manager.new_instance()
    for name, value in vars(template).items():
        if not name.startswith("_sa_"):
            setattr(made, name, copy.deepcopy(value))
    return made


# --------------------------------------------------------------------------------------------------------- the schema


def kinds_of(entities: Mapping[str, type], templates: Mapping[str, Any]) -> dict[str, Kind]:
    """Return what the machine needs to know of the repositories."""
    tables: dict[str, Table] = {name: inspect_mapped(entity).local_table for name, entity in entities.items()}
    kinds: dict[str, Kind] = {}
    for name, entity in entities.items():
        related = {
            other
            for other, table in tables.items()
            if any(key.column.table is table for key in tables[name].foreign_keys)
            or any(key.column.table is tables[name] for key in table.foreign_keys)
        }
        kinds[name] = _kind_of(name, entity, templates[name], frozenset(related))
    return kinds


def _kind_of(name: str, entity: type, templates: Any, related: frozenset[str]) -> Kind:
    mapper: Mapper[Any] = inspect_mapped(entity)
    table: Any = mapper.local_table
    generated = table.autoincrement_column is not None
    surrogates: dict[str, type] = {}
    for attribute in mapper.column_attrs:
        for column in attribute.columns:
            target = _refers_to(mapper, column)
            if column is table.autoincrement_column:
                surrogates[attribute.key] = entity
            elif target is not None:
                surrogates[attribute.key] = target
    return Kind(
        name=name,
        entity=entity,
        attributes=tuple(attributes_of(entity)),
        key=tuple(key_names_of(entity)),
        version=version_name_of(entity),
        generated=generated,
        surrogates=surrogates,
        templates=templates,
        related=related,
    )


def _refers_to(mapper: Any, column: Any) -> type | None:
    """Return the class whose generated key *column* refers to."""
    for foreign in column.foreign_keys:
        for other in mapper.registry.mappers:
            if foreign.column is other.local_table.autoincrement_column:
                found: type = other.class_
                return found
    return None


class Schema:
    """
    The names of the database, for the errors that tell them.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._tables: dict[str, str] = {}
        self._columns: dict[tuple[str, str], str] = {}
        self._constraints: set[str] = set()
        for kind in kinds.values():
            mapper: Mapper[Any] = inspect_mapped(kind.entity)
            table: Any = mapper.local_table
            self._tables[kind.entity.__name__] = table.name
            self._constraints |= {str(each.name) for each in table.constraints if each.name}
            for attribute in mapper.column_attrs:
                self._columns[table.name, attribute.key] = attribute.columns[0].name

    def told(self, fake: Any, real: Any) -> Iterator[tuple[str, object, object]]:
        """
        Yield what both violations tell, and each calls it.

        By right not every database tells everything, and the fake calls a constraint that has no name as it likes.
        """
        ours, theirs = self._fields(fake), self._fields(real)
        return ((name, ours[name], theirs[name]) for name in ours if ours[name] and theirs[name])

    def _fields(self, error: IntegrityViolation) -> dict[str, object]:
        table = self._tables.get(error.table or "", error.table)
        columns = tuple(sorted(self._columns.get((table or "", name), name) for name in error.columns))
        constraint = error.constraint if error.constraint in self._constraints else None
        return {"constraint": constraint, "table": table, "columns": columns}


class Keys:
    """
    The generated keys of both sides, which need not be the same numbers.

    By right a database takes the number that it likes; which row has it is not its choice.
    """

    def __init__(self, facts: Facts) -> None:
        self._reuses = facts.reuses_keys
        self._used: set[tuple[type, int]] = set()
        self._real: dict[tuple[type, int], int] = {}
        self._fake: dict[tuple[type, int], list[int]] = {}

    def made(self, entity: type, fake: int) -> None:
        """Take note that the fake made a key: one that it never made before."""
        if (entity, fake) in self._used:
            raise Different(f"The fake made the key {fake} of {entity.__name__} again, which it never may.")
        self._used.add((entity, fake))

    def unmade(self, entity: type, fake: int) -> None:
        """Take note that what had a key was rolled back."""
        if (real := self._real.get((entity, fake))) is not None:
            self._fake[entity, real].remove(fake)

    def same(self, entity: type, fake: Any, real: Any) -> bool:
        """Tell whether the keys stand for the same row; those that were not seen before do from now on."""
        if fake is None or real is None:
            return fake is real
        taken = self._fake.setdefault((entity, real), [])
        if (entity, fake) not in self._real and (self._reuses or not taken):
            self._real[entity, fake] = real
            taken.append(fake)
        return bool(self._real.get((entity, fake), ...) == real)

    def on_real(self, entity: type, fake: Any) -> Any:
        """Return the database's number for the fake's, one that no row has if there is none."""
        if fake is None:
            return None
        real = self._real.get((entity, fake))
        return real if real is not None and self._fake[entity, real][-1:] == [fake] else 1_000_000 + fake

    def on_fake(self, entity: type, real: Any) -> Any:
        """Return the fake's number for the database's."""
        known = self._fake.get((entity, real))
        return known[-1] if known else ("unknown", real)


# ----------------------------------------------------------------------------------------------------------- outcomes


@frozen
class Outcome:
    """
    What a step returned, or the error that it raised.
    """

    value: Any = None
    error: Exception | None = None

    def __str__(self) -> str:
        if self.error is None:
            return f"returned {self.value!r}"
        return f"raised {type(self.error).__name__}: {self.error}"

    def again(self, scope: object) -> None:
        """Raise the error once more, at the end of a block."""
        if self.error is not None:
            raise self.error


def attempt(call: Callable[..., Any], *arguments: Any) -> Outcome:
    """Return what *call* does."""
    try:
        return Outcome(call(*arguments))
    except Exception as error:
        return Outcome(error=error)


def leave(scope: Any, act: Callable[[Any], object]) -> None:
    """Do *act* at the end of a block and leave it, as ``with`` does."""
    try:
        act(scope)
    except BaseException as error:
        if not scope.__exit__(type(error), error, error.__traceback__):
            raise
    else:
        scope.__exit__(None, None, None)


def commit(scope: Any) -> None:
    """Commit, or release a nested scope."""
    scope.commit()


def fail(scope: object) -> None:
    """Make a mistake at the end of a block."""
    raise Mistake()


def chain(error: BaseException | None) -> Iterator[str]:
    """
    Yield the class of *error*, and of the framework's errors behind it.

    What refused the flush that broke the scope was compared when it came; by right it may be one of several.
    """
    head = error
    while error is not None:
        yield "refusal" if isinstance(error, REFUSALS) and error is not head else type(error).__name__
        if isinstance(error, ExceptionGroup):
            yield from (type(inner).__name__ for inner in error.exceptions)
        error = error.__cause__ if isinstance(error.__cause__, UnitOfWorkError) else None


def is_aggregate(kind: Kind) -> bool:
    """Tell whether entities of *kind* record events."""
    return issubclass(kind.entity, Aggregate)
