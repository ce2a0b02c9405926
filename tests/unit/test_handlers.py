"""
Handlers, before any event is there.
"""

from typing import Any

import pytest

from uow import Event, Handlers
from uow.errors import ConfigurationError, DefinitionError, InvalidArgument
from uow.testing._memory import FakeBank
from uow.testing._model import Account


@pytest.mark.parametrize(("kind", "handler"), [("before_commit", lambda event: None), ("after_commit", lambda e, u: 0)])
def test_a_handler_that_cannot_be_called_is_refused_at_once(kind: str, handler: Any) -> None:
    """A wrong signature is found when the handler is registered, not after the commit."""
    with pytest.raises(DefinitionError, match=rf"the {kind} handler .*cannot be called with \(event.*unit has ended"):
        getattr(Handlers(), kind)(Event)(handler)


def test_a_handler_without_a_signature_is_taken_at_its_word() -> None:
    """Some builtins have none."""
    handlers = Handlers()
    handlers.after_commit(Event)(dict[str, int].update)

    assert [dict.update] == list(handlers.after(Event()))


@pytest.mark.parametrize("kind", ["before_commit", "after_commit"])
@pytest.mark.parametrize("event", [int, "Opened", lambda event: None])
def test_a_handler_of_something_else_is_refused(kind: str, event: Any) -> None:
    """Who forgets to name the event, or names what is none, learns it at once, and not by silence."""
    with pytest.raises(DefinitionError, match=f"is no subclass of Event. Name the event .*@handlers.{kind}"):
        getattr(Handlers(), kind)(event)


def test_what_is_no_event_cannot_be_recorded() -> None:
    """A unit and an aggregate take events only."""
    with FakeBank() as bank:
        for recorder in (bank, Account("A-1", "Ann")):
            with pytest.raises(InvalidArgument, match=r"Cannot call record\(\): 'paid' is no Event"):
                recorder.record("paid")  # type: ignore[arg-type]


def test_a_unit_is_made_with_what_it_needs() -> None:
    """A slip in what a unit is made with is found when it is made."""
    with pytest.raises(ConfigurationError, match=r"retry is 3. Pass Retry\(attempts=3\)"):
        FakeBank(retry=3)
    with pytest.raises(ConfigurationError, match=r"'sqlite://' is no Store. Pass Store\(\)"):
        FakeBank("sqlite://")  # type: ignore[arg-type]
