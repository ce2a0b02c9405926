"""
What became of a COMMIT whose answer was lost: the token that a unit leaves in its database, and whom to ask for it.
"""

import re
import secrets
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol, TypeAlias

from attrs import frozen

from .errors import ConfigurationError, InvalidArgument

__all__ = [
    "KEPT",
    "OUTCOMES",
    "Claim",
    "Outcome",
    "Outcomes",
    "age",
    "demand_key",
    "demand_outcome",
    "demand_token",
    "made_at",
    "new_token",
]

Outcome: TypeAlias = Literal["row", "xid", "none"]
OUTCOMES: tuple[Outcome, ...] = ("row", "xid", "none")

KEPT = timedelta(days=7)
"""How long an outcome row is kept, at least."""

_LONGEST_KEY = 200
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32, as in a ULID
_LENGTH, _TIME = 26, 10
_TOKEN = re.compile(
    rf"(?:(?P<xid>xid\.(?:none|\d+)\.[\w-]+\.)|(?!xid\.)(?:[\w-]+\.)*)[{_DIGITS}]{{{_LENGTH}}}", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@frozen
class Claim:
    """
    The unit that a key was taken by.

    Args:
        token: Its token.

        decided_at: When it took the key, by the database's clock.
    """

    token: str
    decided_at: datetime


class Outcomes(Protocol):
    """
    A database, asked from outside a unit what became of one.
    """

    @property
    def modes(self) -> Collection[Outcome]:
        """The ways to find out that it has."""
        ...

    def settle(self, token: str, timeout: float) -> bool:
        """
        Tell whether the transaction with *token* was committed, and see to it that the answer never changes again.

        Raises:
            UnitOfWorkError: Nobody can tell, or not within *timeout* seconds.
        """
        ...


def new_token() -> str:
    """Return a token that no other unit has: 48 bits of time in milliseconds, 80 of chance, as in a ULID."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return "".join(_DIGITS[number >> shift & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))


def age(token: str) -> timedelta:
    """
    Return how long ago a token was made, by this machine's clock.
    """
    moment = made_at(token)
    assert moment is not None, "demand_token() lets no other token in"
    return datetime.now(UTC) - moment


def made_at(token: str) -> datetime | None:
    """Return when a token was made, by the clock of the machine that made it; None if it is none."""
    made = token.rpartition(".")[2]
    if len(made) != _LENGTH or set(made) - set(_DIGITS):
        return None
    milliseconds = 0
    for digit in made[:_TIME]:
        milliseconds = milliseconds << 5 | _DIGITS.index(digit)
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def demand_token(token: object, modes: Collection[Outcome]) -> None:
    """Raise unless *token* is one that a database with these *modes* may have given."""
    match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
    if match is None:
        raise InvalidArgument("resolve()", f"{token!r} is no token", "Pass what CommitOutcomeUnknown.token is.")
    if match["xid"] and "xid" not in modes:
        raise InvalidArgument("resolve()", f"{token!r} is PostgreSQL's", "Ask a unit on the database that it is from.")


def demand_outcome(outcome: object) -> None:
    """Raise unless *outcome* is a way to find out."""
    if outcome not in OUTCOMES:
        known = ", ".join(map(repr, OUTCOMES))
        raise ConfigurationError(f"outcome is {outcome!r}", f"Pass one of {known}.")


def demand_key(key: object) -> None:
    """Raise unless *key* can be kept as it is."""
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY:
        raise InvalidArgument(
            "once()",
            f"the key is {key!r}",
            f"Pass a text of 1 to {_LONGEST_KEY} characters, such as 'payments:4711'.",
        )
