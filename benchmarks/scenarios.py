"""
The scenarios: a method of a contestant, and what it is called with.
"""

from attrs import frozen


@frozen
class Scenario:
    """
    Args:
        key: What the tables call it.

        title: What one operation does.

        method: The contestant's method.

        feed: What it is given: ``new`` keys, ``known`` keys, or nothing but a ``count``.

        count: How many keys, or scopes, one operation has.

        grows: How many rows one operation leaves behind.

        held: How many loaded entities an open unit holds meanwhile; None where each operation is a unit of its own.
    """

    key: str
    title: str
    method: str
    feed: str
    count: int = 1
    grows: int = 0
    held: int | None = None


SCENARIOS = {
    scenario.key: scenario
    for scenario in (
        Scenario("S1", "add one row, commit", "add_one", "new", grows=1),
        Scenario("S2", "get, change, commit", "change", "known"),
        Scenario("S3", "add 100 rows, commit", "add_many", "new", 100, grows=100),
        Scenario("S9", "get, no commit", "read", "known"),
        Scenario("S4/100", "100 nested scopes, a row each, released", "released", "new", 100, grows=100),
        Scenario("S5/100", "100 nested scopes, every second rolled back", "half", "new", 100, grows=50),
        Scenario("S6/100", "100 empty nested scopes", "empty", "count", 100),
        Scenario("S7b/0", "nested scope, a row, rolled back; nothing loaded", "undone", "new", held=0),
        Scenario("S7b/10000", "the same with 10,000 entities loaded", "undone", "new", held=10_000),
    )
}
