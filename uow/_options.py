"""
What a unit asks of its transaction.
"""

from collections.abc import Mapping
from math import inf
from typing import Any, TypedDict

from attrs import field, fields, frozen

from .errors import ConfigurationError

__all__ = ["OptionValues", "Options"]


class OptionValues(TypedDict, total=False):
    """
    The arguments of `Options`, for methods that take them.
    """

    isolation: str | None
    read_only: bool
    deferrable: bool
    statement_timeout: float | None
    lock_timeout: float | None


def _level(value: Any) -> Any:
    return value.upper().replace("_", " ") if isinstance(value, str) else value


def _flag(value: Any) -> Any:
    return False if value is None else value  # None is how configurations say that nothing was said


@frozen
class Options:
    """
    What a unit asks of its transaction; the adapter refuses what its database cannot do.

    Args:
        isolation: The isolation level, such as ``SERIALIZABLE`` or ``REPEATABLE READ``; None for the engine's own.

        read_only: Refuse every write.

        deferrable: Wait at the start until the unit can run without a serialization failure; for units that are both
            SERIALIZABLE and read-only.

        statement_timeout: How long one statement may take, in seconds.

        lock_timeout: How long a statement may wait for a lock, in seconds.
    """

    isolation: str | None = field(default=None, converter=_level)
    read_only: bool = field(default=False, converter=_flag)
    deferrable: bool = field(default=False, converter=_flag)
    statement_timeout: float | None = None
    lock_timeout: float | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.isolation, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"isolation is {self.isolation!r}", "Pass the name of a level, or None.")
        for name in ("read_only", "deferrable"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}", "Pass True or False.")
        for name in ("statement_timeout", "lock_timeout"):
            seconds = getattr(self, name)
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if seconds is not None and not (number and 0 < seconds < inf):
                raise ConfigurationError(f"{name} is {seconds!r}", "Pass a number of seconds above 0, or None.")
        if self.deferrable and not (self.read_only and self.isolation == "SERIALIZABLE"):
            raise ConfigurationError(
                "deferrable has no effect on this unit",
                "Pass isolation='SERIALIZABLE' and read_only=True with it, or leave it out.",
            )

    def asked(self) -> dict[str, Any]:
        """Return what was asked for, without the defaults."""
        return {a.name: getattr(self, a.name) for a in fields(Options) if getattr(self, a.name) != a.default}

    @staticmethod
    def words(asked: Mapping[str, Any]) -> str:
        """Write what was asked for."""
        return ", ".join(f"{name}={value!r}" for name, value in asked.items()) or "no options"
