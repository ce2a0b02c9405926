"""
What is found out about a mapping once, and kept with it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.orm import Mapper

__all__ = ["kept"]

R = TypeVar("R")


def kept(mapper: Mapper[Any], examine: Callable[[Mapper[Any]], R]) -> R:
    """
    Return what *examine* says of *mapper*; asked again when that has got another attribute.
    """
    everything: dict[object, tuple[int, Any]] = vars(mapper).setdefault("_uow_kept", {})  # there, it goes with it
    count, found = everything.get(examine, (-1, None))
    if count != len(mapper.attrs):
        found = examine(mapper)
        everything[examine] = len(mapper.attrs), found
    result: R = found
    return result
