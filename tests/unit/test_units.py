"""Sizes and durations are read in the usual forms; other text is refused with the expected form."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.log_rollup.units import (
    GIB,
    KIB,
    MIB,
    TIB,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("6h", 21600), ("2d", 172800), ("1h30m", 5400), (" 1h 30 m ", 5400)],
)
def test_duration_is_read_with_its_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


def test_timedelta_is_kept() -> None:
    assert parse_duration(timedelta(minutes=3)) == timedelta(minutes=3)


@given(st.integers(0, 10**8))
def test_formatted_duration_is_read_back(seconds: int) -> None:
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


def test_duration_is_formatted_with_its_units() -> None:
    assert format_duration(timedelta(hours=2)) == "2h"
    assert format_duration(timedelta(days=1, minutes=30)) == "1d30m"
    assert format_duration(timedelta(0)) == "0s"


@pytest.mark.parametrize("value", ["", "10", 10, "10 minutes", "m", "-5m", "1.5h", "5M", None, True, "1h30"])
def test_other_text_is_no_duration_and_shows_the_form(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not a duration; write it like 90s, 10m, 6h, 2d or 1h30m"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["999999999999d", "9" * 30 + "s"])
def test_too_large_duration_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("32MiB", 32 * MIB),
        ("1GiB", GIB),
        ("500MB", 500_000_000),
        ("33554432", 33554432),
        (5, 5),
        ("1 KiB", KIB),
    ],
)
def test_size_is_read_with_its_unit(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "big", "32 XiB", None, [], "MiB", "0x20", {}])
def test_other_text_is_no_size_and_shows_the_form(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like 32MiB, 1GiB or 33554432"):
        parse_size(value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf", "1e400"])
def test_number_that_is_no_byte_count_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (31.94 * MIB, "31.9 MiB"),
        (16.2 * GIB, "16.2 GiB"),
        (2 * TIB, "2.0 TiB"),
    ],
)
def test_size_is_formatted_with_a_binary_unit(size: float, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**50))
def test_formatted_size_is_read_back_within_its_precision(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06, abs=1)
