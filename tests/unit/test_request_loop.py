"""The request limit falls when S3 throttles, and rises again with each success."""

from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.steps.request_loop import RequestLimit


@given(st.lists(st.sampled_from(["success", "throttled"]), max_size=200), st.integers(1, 40))
def test_limit_stays_between_one_and_its_maximum(answers: list[str], most: int) -> None:
    limit = RequestLimit(most)
    for now, answer in enumerate(answers):
        if answer == "success":
            limit.succeeded()
        else:
            limit.throttled(now, wait_seconds=0.5)
        assert 1 <= limit.value <= most
        assert limit.is_reduced or limit.value == most
        assert limit.allows(limit.value - 1, now + 1)
        assert not limit.allows(limit.value, now + 1)


def test_burst_of_throttled_answers_halves_the_limit_once() -> None:
    limit = RequestLimit(16)
    for _ in range(5):
        limit.throttled(now=100.0, wait_seconds=0.4)
    assert limit.value == 8
    assert not limit.allows(0, now=100.3)
    assert limit.allows(7, now=100.4)
    limit.throttled(now=100.4, wait_seconds=0.4)
    assert limit.value == 4


def test_pause_after_throttling_is_at_most_a_second() -> None:
    limit = RequestLimit(16)
    limit.throttled(now=100.0, wait_seconds=30.0)
    assert limit.pause_seconds(100.0) == 1.0


def test_successes_restore_the_limit() -> None:
    limit = RequestLimit(4)
    limit.throttled(now=0.0, wait_seconds=0.1)
    for _ in range(19):
        limit.succeeded()
    assert limit.is_reduced
    for _ in range(3):
        limit.succeeded()
    assert not limit.is_reduced
    assert limit.value == 4
