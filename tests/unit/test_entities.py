"""
Entities, and what the framework reads of classes that are none of its own.
"""

import copy
import pickle

import pytest
from attrs import frozen
from sqlalchemy import Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from uow import Aggregate, Event, entity
from uow.domain import attributes_of, key_names_of, version_name_of


@frozen
class Said(Event):
    what: str


@entity
class Speaker(Aggregate):
    id: int


class Base(DeclarativeBase):
    pass


class Declared(Base):
    __tablename__ = "declared"

    number: Mapped[int] = mapped_column("no", Integer, primary_key=True)
    text: Mapped[str] = mapped_column(String(10))
    changes: Mapped[int] = mapped_column(Integer)
    __mapper_args__ = {"version_id_col": changes}  # noqa: RUF012


class Plain:
    number: int
    text: str


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_of_an_aggregate_has_events_of_its_own(clone: object) -> None:
    """A copy starts with what was recorded so far, and shares nothing."""
    speaker = Speaker(1)
    speaker.record(Said("once"))
    other = clone(speaker)  # type: ignore[operator]
    other.record(Said("twice"))

    assert (Said("once"),) == speaker.pending_events
    assert (Said("once"), Said("twice")) == other.pending_events


@pytest.mark.parametrize("options", [{"key": "number"}, {"key": ("id", "number")}, {"version": "number"}])
def test_an_entity_names_attributes_that_it_has(options: dict[str, str]) -> None:
    """A key or version that is no attribute is refused, with the attributes there are."""
    with pytest.raises(TypeError, match=r"Cannot make Thing an entity: it has no attribute 'number', only id, text\."):

        @entity(**options)  # type: ignore[call-overload, untyped-decorator]
        class Thing:
            id: int
            text: str


def test_a_declared_class_tells_by_its_mapping() -> None:
    """Attributes, key and version of a mapped class are those of its mapping, by attribute name."""
    assert ("number", "text", "changes") == attributes_of(Declared)
    assert ("number",) == key_names_of(Declared)
    assert "changes" == version_name_of(Declared)


def test_a_plain_class_tells_by_its_annotations() -> None:
    """Attributes of a class that is neither attrs nor mapped are what it annotates; it has no key."""
    assert ("number", "text") == attributes_of(Plain)
    assert () == key_names_of(Plain)
    assert version_name_of(Plain) is None


def test_a_declared_class_is_no_entity_of_ours() -> None:
    """@entity on a mapped class is refused, with what to do."""
    with pytest.raises(TypeError, match=r"Declared an entity: it is mapped already.*Leave @entity away"):
        entity(Declared)
