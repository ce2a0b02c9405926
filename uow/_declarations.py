"""
What a unit's annotations declare: the repositories, checked when the class is made.
"""

import inspect
import typing
from collections.abc import Iterator
from typing import Any, ClassVar, get_args, get_origin

from attrs import Factory, field, frozen

from uow.domain import Repository

from .errors import DefinitionError

__all__ = ["RepositoryAttribute", "annotations_of", "attribute_for", "attributes_of_unit", "declare"]


@frozen(eq=False)
class RepositoryAttribute:
    """
    The descriptor behind an annotation such as ``accounts: Accounts``.

    Args:
        name: The attribute's name.

        repository: The repository's class.

        entity: The entity's class.
    """

    name: str
    repository: type[Any]
    entity: type[Any]
    operation: str = field(init=False, default=Factory(lambda self: f"use {self.name!r}", takes_self=True))
    """What errors call its use; kept, for it is used often."""

    def __get__(self, unit: Any, owner: type | None = None) -> Any:
        return self if unit is None else unit._repository(self)


def declare(cls: type, *, adapter: bool) -> None:
    """
    Put a descriptor on *cls* for each repository that it annotates.

    Raises:
        DefinitionError: An annotation is no repository; or *cls* is an *adapter* and a repository's method is abstract.
    """
    for name, annotation in annotations_of(cls):
        setattr(cls, name, attribute_for(cls, name, annotation, Repository))
    if adapter:
        for attribute in attributes_of_unit(cls):
            _demand_concrete(cls, attribute)


def annotations_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the names that the body of *cls* annotates and gives no value, with what they are annotated with."""
    for name, annotation in _own_annotations(cls).items():
        other = name.startswith("_") or get_origin(annotation) is ClassVar or annotation is ClassVar
        if not other and name not in vars(cls):
            yield name, annotation


def attributes_of_unit(cls: type) -> Iterator[RepositoryAttribute]:
    """Yield the repositories that *cls* has, inherited ones too."""
    for name in dir(cls):
        attribute = inspect.getattr_static(cls, name)
        if isinstance(attribute, RepositoryAttribute):
            yield attribute


def attribute_for(cls: type, name: str, annotation: object, base: type[Any]) -> RepositoryAttribute:
    """
    Return the descriptor for an annotation with a subclass of *base*.

    Raises:
        DefinitionError: It is none, or does not say what it holds.
    """
    subject = f"{cls.__name__}.{name}"
    repository = get_origin(annotation) or annotation
    if not isinstance(repository, type) or not issubclass(repository, base):
        raise DefinitionError(
            subject,
            f"it is annotated with {annotation!r}, which is no repository",
            f"Annotate it with a subclass of {base.__name__} or with {base.__name__}[Entity]; give it a value, a "
            "leading underscore or ClassVar if it is meant to be something else.",
        )
    arguments = get_args(annotation)
    entity: object = arguments[0] if arguments else getattr(repository, "entity", None)
    if not isinstance(entity, type):
        raise DefinitionError(
            subject,
            f"{repository.__name__} does not say which entity it holds",
            f"Write {base.__name__}[Account], or subclass {base.__name__}[Account].",
        )
    return RepositoryAttribute(name, repository, entity)


def _demand_concrete(cls: type, attribute: RepositoryAttribute) -> None:
    missing = sorted(attribute.repository.__abstractmethods__)
    if missing:
        repository = attribute.repository.__name__
        raise DefinitionError(
            f"{cls.__name__}.{attribute.name}",
            f"{repository} leaves {', '.join(f'{name}()' for name in missing)} abstract",
            f"Subclass {repository} for this adapter, implement it there, and annotate "
            f"{cls.__name__}.{attribute.name} with the subclass.",
        )


def _own_annotations(cls: type) -> dict[str, Any]:
    """Return what the body of *cls* annotates, resolved where it stands, so that local classes are found too."""
    annotations = inspect.get_annotations(cls)
    names: dict[str, Any] = {}
    frame = inspect.currentframe()
    while frame is not None and not names:
        if frame.f_globals.get("__name__") == cls.__module__:
            names = {**frame.f_globals, **frame.f_locals}
        frame = frame.f_back
    resolved: dict[str, Any] = {}
    for name, annotation in annotations.items():
        try:
            resolved[name] = eval(annotation, {**vars(typing), **names}) if isinstance(annotation, str) else annotation
        except Exception as error:
            raise DefinitionError(
                f"{cls.__name__}.{name}",
                f"its annotation {annotation!r} cannot be read ({error!r})",
                "Import the repository's class where the unit is defined, at run time too.",
            ) from error
    return resolved
