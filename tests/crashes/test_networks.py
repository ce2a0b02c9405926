"""
A network that fails at each statement which ends a branch: commit() tells its caller what all databases have.
"""

import re
from collections.abc import Callable

import pytest

from uow.testing import Fault, FaultProxy

from .transfers import World, told, transfer

DECISION = re.compile(rb"^COMMIT$")
STATEMENTS = [
    ("postgresql+postgresql", "stock", b"PREPARE TRANSACTION"),
    ("postgresql+mariadb", "stock", b"XA PREPARE"),
    ("postgresql+mariadb", "bank", DECISION),
    ("mariadb+mariadb", "bank", DECISION),
    ("postgresql+postgresql", "stock", b"COMMIT PREPARED"),
    ("postgresql+mariadb", "stock", b"XA COMMIT"),
]
FAULTS: dict[str, Callable[[FaultProxy, "bytes | re.Pattern[bytes]"], Fault]] = {
    "request lost": lambda proxy, statement: proxy.drop_request(statement),
    "reply lost": lambda proxy, statement: proxy.drop_reply(statement),
    "reset, and late": lambda proxy, statement: proxy.delay(statement, None, reset=True),
    "slow": lambda proxy, statement: proxy.delay(statement, 0.2),
    "half open": lambda proxy, statement: proxy.half_open(statement),
}


@pytest.mark.parametrize(
    ("world", "name", "statement"),
    STATEMENTS,
    indirect=["world"],
    ids=lambda value: getattr(value, "pattern", value) if not isinstance(value, bytes) else value.decode(),
)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("recovers", [False, True], ids=["alone", "recovered before it arrives"])
def test_a_network_fails(
    world: World, name: str, statement: "bytes | re.Pattern[bytes]", fault: str, recovers: bool
) -> None:
    """Also if a recovery runs before a late statement arrives."""
    urls, domain, payment = world.order()
    with FaultProxy.to(urls[name]) as proxy:
        armed = FAULTS[fault](proxy, statement)
        urls = {**urls, name: proxy.url(urls[name]).render_as_string(hide_password=False)}
        answer = told(lambda: transfer(urls, domain, payment))
        if recovers:
            world.recover()
        armed.release()
        armed.wait()

        assert answer is not None
        assert answer == world.settled(payment)
        if fault == "slow":
            assert answer
