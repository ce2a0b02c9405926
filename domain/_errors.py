"""
The errors a domain model can meet; `uow.errors` lists them with all the others.
"""

from attrs import define

__all__ = [
    "EntityNotFound",
    "InvalidArgument",
    "Misuse",
    "MultipleEntitiesFound",
    "OutsideUnitOfWork",
    "SpecificationError",
    "UnitOfWorkError",
]


class UnitOfWorkError(Exception):
    """
    Base of every error of this framework.

    Catch it to catch them all; an application service never has to import a database library for that.
    """

    @property
    def transient(self) -> bool:
        """Whether the same work, done again in a fresh unit, may succeed."""
        return False


@define(slots=False)
class Misuse(UnitOfWorkError, RuntimeError):
    """
    An operation that the unit refuses in the state it is in.

    Args:
        operation: What was asked for, such as ``commit()`` or ``accounts.get()``.

        unit: The unit and its scope, such as ``SqlBank (root > line 3)``.

        reason: What stands in the way.

        hint: What to do instead.
    """

    operation: str
    unit: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"Cannot {_words(self.operation)} on {self.unit}: {self.reason}. {self.hint}"


class OutsideUnitOfWork(Misuse):
    """
    A unit, its session or one of its repositories was used outside the unit's ``with`` block.
    """


@define(slots=False)
class EntityNotFound(UnitOfWorkError, LookupError):
    """
    No entity answers to the key or the specification that was asked for.

    Args:
        entity: The entity's class.

        key: The key, or the specification in words.

        operation: What was asked for, ``get`` or ``remove``.
    """

    entity: type
    key: object
    operation: str = "get"

    def __str__(self) -> str:
        hint = "Use get_or_none() or first() where a missing one is expected."
        if self.operation == "remove":
            hint = "Only what this unit loaded or added can be removed."
        return f"Cannot {self.operation} {self.entity.__name__} {self.key!r}: there is none. {hint}"


@define(slots=False)
class MultipleEntitiesFound(UnitOfWorkError, LookupError):
    """
    `one()` found more than one entity.

    Args:
        entity: The entity's class.

        criteria: The specification in words.
    """

    entity: type
    criteria: object

    def __str__(self) -> str:
        return (
            f"Cannot get one {self.entity.__name__} where {self.criteria}: more than one matches. "
            f"Narrow the specification, or use first() with order_by or list()."
        )


@define(slots=False)
class SpecificationError(UnitOfWorkError, TypeError):
    """
    A specification says something that cannot be traced from a lambda.

    Args:
        problem: What was found.

        hint: What to write instead.
    """

    problem: str
    hint: str

    def __str__(self) -> str:
        return f"Cannot read the specification: {self.problem}. {self.hint}"


@define(slots=False)
class InvalidArgument(UnitOfWorkError, ValueError):
    """
    A repository was given something it cannot use.

    Args:
        operation: What was asked for, such as ``Accounts.get()``.

        problem: What is wrong, with the value.

        hint: What to pass instead.
    """

    operation: str
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"Cannot {_words(self.operation)}: {self.problem}. {self.hint}"


def _words(operation: str) -> str:
    return operation if " " in operation else f"call {operation}"
