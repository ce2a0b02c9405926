"""
Reading what a class says its generic base is about.
"""

from typing import Any, get_args, get_origin

__all__ = ["type_argument"]


def type_argument(cls: type, generic: type) -> type[Any] | None:
    """Return ``Account`` for a class written ``class Accounts(Repository[Account])``; None if it does not say."""
    for base in vars(cls).get("__orig_bases__", ()):
        origin, arguments = get_origin(base), get_args(base)
        if isinstance(origin, type) and issubclass(origin, generic) and isinstance(arguments[0], type):
            return arguments[0]
    return None
