"""
What a type checker knows of the errors; never run.
"""

from typing import assert_type

from uow import errors
from uow.domain import EntityNotFound, UnitOfWorkError


def one_class_one_name(found: errors.EntityNotFound) -> EntityNotFound:
    """`uow.errors` and `uow.domain` name the same class."""
    return found


def caught_by_the_base(error: UnitOfWorkError) -> None:
    """Every error is a `UnitOfWorkError`, and its facts keep their types when it is narrowed."""
    assert_type(error.transient, bool)

    if isinstance(error, errors.DatabaseError):
        assert_type(error.dooms, bool)
        assert_type(error.code, str | int | None)

    if isinstance(error, errors.UniqueViolation):
        assert_type(error.columns, tuple[str, ...])


def hooks_fail_together(work: errors.AfterCommitFailed) -> None:
    """The errors of failed hooks are exceptions, not base exceptions."""
    for failure in work.exceptions:
        assert_type(failure, Exception | ExceptionGroup[Exception])
