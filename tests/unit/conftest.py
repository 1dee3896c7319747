"""Property tests that are the same in every run, and waits between tries that cost no time."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from include.log_rollup import limits
from tests.support.hour_in_memory import Unwatched

settings.register_profile(
    "log-rollup",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("log-rollup")


@pytest.fixture(autouse=True, scope="module")
def short_waits() -> Iterator[None]:
    """The packer's waits, a thousandth as long."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REQUEST_FIRST_WAIT_SECONDS", "REQUEST_LONGEST_WAIT_SECONDS"):
            patch.setattr(limits, name, getattr(limits, name) / 1000)
        yield


@pytest.fixture(scope="module")
def unwatched() -> Iterator[None]:
    """For tests of thousands of runs: no thread that watches open files, which has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.log_rollup.steps.pack_shard.Monitor", Unwatched)
        yield
