"""
Wrapping the methods of classes.
"""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

__all__ = ["wrapping"]


def wrapping(wrapper: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """
    Return *wrapper*, a function that names ``__class__``, in the place of *method*.

    attrs makes a slotted class anew, and mends the ``__class__`` that ``super()`` reads in every function that it finds
    in the class. So that it finds that of the method, the wrapper has it too.
    """
    shared = dict(zip(_names(method), getattr(method, "__closure__", None) or (), strict=True)).get("__class__")
    if shared is not None and isinstance(wrapper, FunctionType):
        cells = dict(zip(_names(wrapper), wrapper.__closure__ or (), strict=True)) | {"__class__": shared}
        wrapper = FunctionType(
            wrapper.__code__, wrapper.__globals__, wrapper.__name__, wrapper.__defaults__, tuple(cells.values())
        )
    return functools.update_wrapper(wrapper, method)


def _names(function: Any) -> tuple[str, ...]:
    return function.__code__.co_freevars if isinstance(function, FunctionType) else ()
