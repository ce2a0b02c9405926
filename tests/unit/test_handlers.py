"""
Handlers, before any event is there.
"""

from typing import Any

import pytest

from uow import Event, Handlers
from uow.errors import DefinitionError


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
