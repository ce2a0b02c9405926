"""
What became of units, for assertions.
"""

from attrs import define, field

from uow import Event, State, Transition

__all__ = ["Recorder"]


@define(eq=False)
class Recorder:
    """
    An observer that remembers how units ended: ``FakeBank(store, observers=[recorder])``.

    A unit is written as in messages, such as ``FakeBank (root)``; a failed assertion shows the whole list.

    >>> from uow import Repository, UnitOfWork, entity
    >>> from uow.adapters.memory import FakeUnitOfWork
    >>> from uow.testing import Recorder
    >>> class FakeBank(FakeUnitOfWork): ...
    >>> recorder = Recorder()
    >>> with FakeBank(observers=[recorder]) as bank:
    ...     bank.commit()
    >>> recorder.committed
    ['FakeBank (root)']
    """

    committed: list[str] = field(factory=list[str], init=False)
    """The units whose commit was confirmed."""

    rolled_back: list[str] = field(factory=list[str], init=False)
    """The units and nested scopes that were rolled back."""

    in_doubt: list[str] = field(factory=list[str], init=False)
    """The units of which nobody knows."""

    events: list[Event] = field(factory=list[Event], init=False)
    """The events of committed units, in the order in which they were recorded."""

    def __call__(self, transition: Transition) -> None:
        """Take note of a step in a scope's life."""
        lists = {State.COMMITTED: self.committed, State.ROLLED_BACK: self.rolled_back, State.IN_DOUBT: self.in_doubt}
        if transition.after in lists:
            lists[transition.after].append(f"{transition.unit} ({transition.scope})")
        self.events.extend(transition.events)

    def clear(self) -> None:
        """Forget what was noted so far."""
        for noted in (self.committed, self.rolled_back, self.in_doubt, self.events):
            noted.clear()
