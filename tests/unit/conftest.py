"""Property tests with the same examples in every run, and short waits between tries."""

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
    """Make the waits of packing and planning a thousand times shorter."""
    names = (
        "REQUEST_FIRST_WAIT_SECONDS", "REQUEST_LONGEST_WAIT_SECONDS",
        "PLAN_FIRST_WAIT_SECONDS", "LATE_LISTING_FIRST_WAIT_SECONDS",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(limits, name, getattr(limits, name) / 1000)
        yield


@pytest.fixture(scope="module")
def unwatched() -> Iterator[None]:
    """Pack without counting open files, for tests of thousands of runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("include.log_rollup.steps.pack_shard.Monitor", Unwatched)
        patch.setattr("include.log_rollup.steps.pack_shard.check_open_file_limit", lambda _: None)
        yield
