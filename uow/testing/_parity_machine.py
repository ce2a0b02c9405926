"""
The parity machine: how a step is done on both sides, and what must be the same after it. Its rules are elsewhere.

Where a database may differ from the fake by right, the difference is made good or avoided in one place, which says so
with the words *by right*; docs/parity.md lists them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from hypothesis.stateful import MultipleResults, RuleBasedStateMachine, multiple

from uow import State, UnitOfWork
from uow.domain import journal_of
from uow.errors import EntityNotFound, IntegrityViolation, LockTimeout

from ._parity_queries import Found, Kind, Translate
from ._parity_sides import (
    FAKE,
    REAL,
    REFUSALS,
    Different,
    Facts,
    Held,
    Keys,
    Outcome,
    Schema,
    Side,
    Unit,
    attempt,
    chain,
    commit,
    copied,
    demand_same,
    fail,
    is_aggregate,
    key_of,
    leave,
)

__all__ = ["Call", "Machine"]

Call: TypeAlias = Callable[[int, Any], Any]
"""Takes a side and the innermost scope there."""


class Machine(RuleBasedStateMachine):
    """
    One program, on the fake and on a database.

    Args:
        makers: Make a unit, on each side; both are empty.

        facts: What the database does by right.
    """

    kinds: ClassVar[Mapping[str, Kind]] = {}
    schema: ClassVar[Schema]

    def __init__(self, makers: tuple[Callable[..., UnitOfWork], Callable[..., UnitOfWork]], facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.sides = (Side(makers[FAKE]), Side(makers[REAL]))
        self.units = [Unit(name, (self.sides[FAKE].unit(), self.sides[REAL].unit())) for name in ("first", "second")]
        self.keys = Keys(facts)
        self.held: list[Held] = []
        self.known: tuple[dict[int, Held], dict[int, Held]] = ({}, {})
        self.serials: Counter[tuple[type, Any]] = Counter()
        self.removed: set[tuple[type, Any]] = set()
        self.labels = 0
        self.committed: dict[str, dict[Any, Any]] | None = None
        self.written = False

    def teardown(self) -> None:
        """Leave what is still open."""
        for unit in self.units:
            for scopes in unit.scopes:
                while scopes:
                    attempt(leave, scopes.pop(), fail)

    def label(self) -> int:
        """Return the number of a new hook or event."""
        self.labels += 1
        return self.labels

    # ------------------------------------------------------------------------------------------------ who can do what

    def working(self) -> Sequence[Unit]:
        """
        Return the units that can talk to the database.

        By right a database that lets one unit work at a time keeps the other one waiting: it does not get here.
        """
        units: Sequence[Unit] = self.units
        if self.facts.one_writer:
            units = [unit for unit in units if unit.begun] or units
        return [unit for unit in units if not unit.broken] or units

    def idle(self) -> Sequence[Unit]:
        """Return the units that can work and were not entered."""
        return [unit for unit in self.working() if not unit.open]

    def ending(self) -> Sequence[Unit]:
        """Return the units whose innermost block can end."""
        working = self.working()
        return [unit for unit in self.units if unit.open and (unit.broken or unit in working)]

    def may_write(self, held: Held) -> bool:
        """
        Tell whether the program may write what it holds.

        By right the fake refuses a lost update without a version, which a database lets happen: it is avoided. So is
        one with a version where the row was removed since and added again: its versions begin anew.
        """
        if held.kind.version is not None:
            return not self.removed & held.names or all(self.serials[name] == held.serial for name in held.names)
        others = [unit for unit in self.units if unit.open and not (unit is held.unit and not held.free)]
        return not any(
            self.serials[name] != held.serial or any(name in unit.touched for unit in others) for name in held.names
        )

    # ----------------------------------------------------------------------------------------------------- one step

    def step(self, unit: Unit, call: Call) -> tuple[Outcome, Outcome]:
        """Do the same on both sides; an error that breaks a scope leaves its block, unless it is swallowed."""
        unit.enter()
        done = self.both(unit, call)
        if unit.unwritten and not (unit.open and unit.scopes[FAKE][0].status().pending):
            unit.unwritten.clear()
            self.written = True
        if unit.broken and done[FAKE].error is not None:
            if not unit.swallows:
                self.end(unit, *(each.again for each in done))
            unit.swallows = False
        return done

    def both(self, unit: Unit, call: Call) -> tuple[Outcome, Outcome]:
        """Do the same on both sides and compare."""
        pending = unit.scopes[FAKE][0].status().pending
        # What broke the scope was compared when it came; here it may leave the block.
        several = unit.broken or pending.added + pending.changed + pending.removed > 1
        real = attempt(lambda: call(REAL, unit.scopes[REAL][-1]))
        if isinstance(real.error, LockTimeout):
            self.lose(unit, real)
            return real, real
        fake = attempt(lambda: call(FAKE, unit.scopes[FAKE][-1]))
        self.compare(fake, real, several=several)
        return fake, real

    def compare(self, fake: Outcome, real: Outcome, *, several: bool = False) -> None:
        """
        Raise unless both sides met the same error, or none.

        By right a database chooses which of *several* violations, or stale versions, it meets first.
        """
        if fake.error is None and real.error is None:
            return
        both = f"\n  fake:     {fake}\n  database: {real}"
        if several and isinstance(fake.error, REFUSALS) and isinstance(real.error, REFUSALS):
            return
        if [*chain(fake.error)] != [*chain(real.error)]:
            raise Different(f"The step ended differently.{both}") from (real.error or fake.error)
        if isinstance(fake.error, IntegrityViolation):
            for name, ours, theirs in self.schema.told(fake.error, real.error):
                if ours != theirs:
                    raise Different(f"The error's {name} differs: {ours!r}, {theirs!r}.{both}") from real.error
        if isinstance(fake.error, EntityNotFound) and isinstance(real.error, EntityNotFound):
            demand_same("The entity of the error", fake.error.entity, real.error.entity)

    def lose(self, unit: Unit, waited: Outcome) -> None:
        """
        End a unit that waits for the other one in the database: by right the fake never waits.

        The other one goes first. If both wrote the same row, the fake must refuse this one then, at the latest at its
        commit. Nothing else of it is compared.
        """
        other = next(each for each in self.units if each is not unit)
        while unit.scopes[REAL]:
            attempt(leave, unit.scopes[REAL].pop(), waited.again)
        while other.open:
            self.end(other, commit)
        won = other.handles[FAKE].state is State.COMMITTED
        must_lose = won and other.touched & unit.touched and not (other.undone or unit.undone)
        lost = Outcome() if must_lose else waited
        while unit.scopes[FAKE]:
            lost = attempt(leave, unit.scopes[FAKE].pop(), lost.again if lost.error else commit)
        if lost.error is None:
            raise Different(f"{other} and {unit} wrote the same row, and both committed on the fake.") from waited.error
        for held in self.held:
            held.lost |= held.unit is unit and held.block == unit.block
        for side in self.sides:
            side.log.clear()

    # ------------------------------------------------------------------------------------------------ ending a scope

    def end(self, unit: Unit, *acts: Callable[[Any], object]) -> None:
        """Do the act, or that of each side, at the end of the innermost block of *unit*, and leave it."""

        def call(side: int, scope: Any) -> None:
            unit.scopes[side].pop()
            leave(scope, acts[side % len(acts)])

        ending = unit.scopes[FAKE][-1]
        try:
            self.both(unit, call)
        finally:
            if not unit.open:
                self.committed = None
        unit.undone |= ending.state is State.ROLLED_BACK
        if not unit.open:
            self.settle(unit, committed=ending.state is State.COMMITTED)

    def settle(self, unit: Unit, *, committed: bool) -> None:
        """
        Take note of what became of the rows that a unit touched.

        By right an entity that was written in a unit that rolled back keeps values that no row has: the program does
        not bring it to another unit, unless it is new again.
        """
        if committed:
            self.serials.update(unit.touched)
        for held in self.held:
            if held.unit is unit and held.block == unit.block and held.names & unit.touched:
                if committed:
                    held.new, held.stored = False, key_of(held.kind, held.sides[FAKE])
                    held.serial = self.serials[held.kind.entity, held.stored]
                held.spoiled = not committed and not held.new

    # ----------------------------------------------------------------------------------------------- writing, reading

    def put(self, unit: Unit, kind: Kind, template: Any) -> Held | None:
        """Add a new entity like *template*."""
        if not self.ordered(unit, kind):
            return None
        sides = (copied(template), copied(template))
        for name in kind.surrogates:
            setattr(sides[REAL], name, self.translated(kind, REAL)(name, getattr(template, name)))
        unit.enter()
        held = self.hold(Held(self, kind, sides, unit, unit.block, key_of(kind, sides[FAKE]), new=True))
        self.write(unit, held, "add")
        return held

    def commit_new(self, kind: Kind, template: Any) -> Held:
        """Add a new entity in a unit of its own, which the constraints may refuse."""
        held = self.put(self.units[0], kind, template)
        assert held is not None
        self.end(self.units[0], commit)
        self.entities_agree()
        return held

    def write(self, unit: Unit, held: Held, verb: str) -> None:
        """Add or remove an entity."""
        if not held.free:
            unit = held.unit
        if not self.ordered(unit, held.kind):
            return
        fake, _ = self.step(unit, lambda side, scope: getattr(getattr(scope, held.kind.name), verb)(held.sides[side]))
        if fake.error is None:
            if verb == "remove":
                unit.undone = held.removed = True
                self.removed |= held.names
            unit.unwritten.add(held.kind.name)
            held.unit, held.block = unit, unit.block
            unit.touched |= held.names

    def alter(self, held: Held, call: Callable[[Any, int], Any]) -> None:
        """Change an entity, which its unit finds out by itself."""
        if not held.free and not self.ordered(held.unit, held.kind):
            return
        names = held.names
        self.compare(*(attempt(call, held.sides[side], side) for side in (FAKE, REAL)))
        if not held.free:
            held.unit.touched |= names | held.names
            held.unit.unwritten.add(held.kind.name)

    def ordered(self, unit: Unit, kind: Kind) -> bool:
        """
        Tell whether the unit can write a *kind* now; what it refers to is flushed first.

        By right the order in which one flush writes classes that refer to each other is the mapper's: where no
        relationship is mapped, a foreign key does not tell it.
        """
        if not unit.open or not unit.unwritten & kind.related:
            return True
        return unit in self.working() and self.step(unit, lambda side, scope: scope.flush())[FAKE].error is None

    def ask(self, unit: Unit, kind: Kind, call: Call) -> MultipleResults[Held]:
        """
        Ask both sides, and return the entities among their answers that are new to the program.

        What is pending may be known by a generated key: it is written, and looked at, before the question.
        """
        if kind.surrogates and unit.open and unit.unwritten:
            if self.step(unit, lambda side, scope: scope.flush())[FAKE].error is not None:
                return multiple()
            self.entities_agree()
        fake, real = self.step(unit, call)
        if fake.error is not None:
            return multiple()
        answers = (fake.value, real.value)
        if any(isinstance(answer, Sequence) for answer in answers):
            return multiple(*self.adopt(unit, kind, *answers))
        if any(isinstance(answer, kind.entity) for answer in answers):
            return multiple(*self.adopt(unit, kind, *([answer] for answer in answers)))
        demand_same("The answer", *answers)
        return multiple()

    def find(self, unit: Unit, query: Found) -> MultipleResults[Held]:
        """Get or list; by right the order is the database's choice where none is asked for."""
        kind = query.kind

        def place(side: int, entity: Any) -> str:
            values = self.values(kind, side, entity)
            return repr([values[name] for name in kind.key])

        def call(side: int, scope: Any) -> Any:
            found = query.on(scope, self.translated(kind, side))
            return sorted(found, key=lambda entity: place(side, entity)) if query.unordered else found

        return self.ask(unit, kind, call)

    def translated(self, kind: Kind, side: int) -> Translate:
        """Return what turns a value of the program into the one that stands for it on a side."""

        def translate(name: str, value: Any) -> Any:
            if side == REAL and name in kind.surrogates:
                return self.keys.on_real(kind.surrogates[name], value)
            return value

        return translate

    # ------------------------------------------------------------------------------------------- what the program holds

    def adopt(self, unit: Unit, kind: Kind, fake: Sequence[Any], real: Sequence[Any]) -> list[Held]:
        """Pair the entities that both sides returned, and return the pairs that are new."""
        if [each is None for each in fake] != [each is None for each in real]:
            raise Different(f"The answers differ.\n  fake:     {fake!r}\n  database: {real!r}")
        return [held for pair in zip(fake, real, strict=True) if (held := self.pair(unit, kind, *pair)) is not None]

    def pair(self, unit: Unit, kind: Kind, fake: Any, real: Any) -> Held | None:
        """Pair two entities; return the pair if it is new."""
        known = self.known[FAKE].get(id(fake)), self.known[REAL].get(id(real))
        if known[FAKE] is not known[REAL]:
            raise Different(f"One side alone returned an object that it had returned before: {fake!r}, {real!r}.")
        if known[FAKE] is not None or fake is None:
            return None
        number = key_of(kind, fake)[0] if kind.generated else None
        return self.hold(Held(self, kind, (fake, real), unit, unit.block, key_of(kind, fake), number=number))

    def hold(self, held: Held) -> Held:
        """Hold a new pair."""
        held.serial = self.serials[held.kind.entity, held.stored]
        self.held.append(held)
        for side in (FAKE, REAL):
            self.known[side][id(held.sides[side])] = held
        self.look_at(held)
        return held

    # ------------------------------------------------------------------------------------------- what must be the same

    def demand_parity(self) -> None:
        """Raise unless everything that a program can see is the same."""
        self.entities_agree()
        self.scopes_agree()
        demand_same("What hooks and handlers did", *(side.log for side in self.sides))
        self.fresh_units_agree()

    def entities_agree(self) -> None:
        """Raise unless the attributes of every entity that the program holds are the same."""
        for held in self.held:
            self.look_at(held)

    def look_at(self, held: Held) -> None:
        """
        Raise unless an entity is the same on both sides.

        By right what a flush that failed left half done, or unreadable, counts once the broken scope has ended.
        """
        if held.lost or (not held.free and held.unit.broken):
            return
        kind, (fake, real) = held.kind, held.sides
        for name in kind.attributes:
            ours, theirs = attempt(getattr, fake, name), attempt(getattr, real, name)
            if (
                theirs.error is not None
                or ours.error is not None
                or not self.alike(held, name, ours.value, theirs.value)
            ):
                raise Different(f"{kind.entity.__name__}.{name} differs.\n  fake:     {ours}\n  database: {theirs}")
        if is_aggregate(kind):
            demand_same("What waits in an aggregate", *(list(journal_of(side).pending) for side in held.sides))

    def alike(self, held: Held, name: str, fake: Any, real: Any) -> bool:
        """Tell whether an attribute has the same value, or a key that stands for the same row."""
        kind = held.kind
        if name not in kind.surrogates:
            return bool(fake == real)
        if kind.generated and name == kind.key[0]:
            if fake is not None and held.number is None:
                self.keys.made(kind.entity, fake)
            if fake is None and held.number is not None:
                self.keys.unmade(kind.entity, held.number)
            held.number = fake
        return self.keys.same(kind.surrogates[name], fake, real)

    def scopes_agree(self) -> None:
        """
        Raise unless the state and status of every scope are the same.

        By right savepoints have other names, a transaction begins in the database with the first statement, and what a
        flush left undone when it failed need not be pending any more.
        """

        def seen(unit: Unit, scope: Any) -> object:
            status = scope.status()
            pending = None if unit.broken else status.pending
            return status.state, status.name, status.depth, pending, status.written, status.isolation

        for unit in self.units:
            demand_same(f"{unit}.state", *(handle.state for handle in unit.handles))
            for scopes in zip(*unit.scopes, strict=True):
                demand_same(f"{unit}.status()", *(seen(unit, scope) for scope in scopes))

    def fresh_units_agree(self) -> None:
        """Raise unless the committed rows are the same. They are looked at after something was written or ended."""
        if self.committed is None:
            self.committed = self.rows(REAL)
        elif not self.written:
            return
        self.written = False
        demand_same("What a fresh unit sees", self.rows(FAKE), self.committed)

    def rows(self, side: int) -> dict[str, dict[Any, Any]]:
        """Return what a fresh unit sees, by repository and key, in the fake's numbers."""
        seen: dict[str, dict[Any, Any]] = {}
        with self.sides[side].make(read_only=True) as unit:
            for kind in self.kinds.values():
                rows = [self.values(kind, side, entity) for entity in getattr(unit, kind.name).list()]
                seen[kind.name] = {tuple(row[name] for name in kind.key): row for row in rows}
        return seen

    def values(self, kind: Kind, side: int, entity: Any) -> dict[str, Any]:
        """Return the attributes of an entity, in the fake's numbers."""
        values: dict[str, Any] = {}
        for name in kind.attributes:
            value = getattr(entity, name)
            if side == REAL and name in kind.surrogates and value is not None:
                value = self.keys.on_fake(kind.surrogates[name], value)
            values[name] = value
        return values
