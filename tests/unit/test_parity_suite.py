"""
The parity suite, apart from what its programs find: see tests/stateful.
"""

import subprocess
import sys

import pytest
from hypothesis import Phase
from sqlalchemy import URL

from uow.adapters.memory import Store
from uow.testing._parity_bank import BankParity, hurried_engine
from uow.testing.parity import Different


class TestDerandomized(BankParity):
    settings = BankParity.settings.__class__(BankParity.settings, derandomize=True)
    test_the_fake_does_what_the_database_does = None  # type: ignore[assignment]

    def test_the_programs_are_the_same_each_time(self, seed: int) -> None:
        """Where Hypothesis is to be deterministic, the programs begin at the same place."""
        assert 0 == seed


class Unconstrained(BankParity):
    settings = BankParity.settings.__class__(
        BankParity.settings, max_examples=30, database=None, phases=[Phase.generate]
    )

    def store(self) -> Store:
        return Store()


def test_a_difference_says_how_to_see_it_again(sqlite_url: URL) -> None:
    """What the programs began with stands beside what they found."""
    engine = hurried_engine(sqlite_url)
    with pytest.raises(Different) as found:
        Unconstrained().test_the_fake_does_what_the_database_does(engine, seed=0)
    engine.dispose()

    assert "The same programs again: pytest --hypothesis-seed=0" in found.value.__notes__


@pytest.mark.parametrize("given", [[], ["--hypothesis-seed=5"]])
def test_the_seed_may_be_given(pytester: pytest.Pytester, given: list[str]) -> None:
    """What a failure says to pass makes the same programs again; without it they begin anywhere."""
    pytester.makepyfile(
        """
        from uow.testing.parity import ParitySuite

        class TestSeed(ParitySuite):
            test_the_fake_does_what_the_database_does = None

            def test_seed(self, seed):
                print(f"seed: {seed}.")
        """
    )
    output = pytester.runpytest_subprocess("-s", *given).stdout.str()

    assert bool(given) == ("seed: 5." in output)
    assert "seed: " in output


def test_without_hypothesis_the_error_names_the_extra() -> None:
    """Importing the suite without Hypothesis says what to install."""
    program = "import sys; sys.modules['hypothesis'] = None; import uow.testing.parity"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    assert "uow.testing.parity needs Hypothesis, which is not installed. Install uow[testing]." in done.stderr
