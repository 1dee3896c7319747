"""What the command says besides its answer, and how it takes what people write."""

import argparse
from datetime import UTC, datetime

import pytest

from log_rollup_plugin.cli import output
from log_rollup_plugin.cli.arguments import hour
from log_rollup_plugin.cli.output import Progressing, table


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T08:00:00Z", "2026-11-23T08:59:59Z", "2026-11-23T08", "2026-11-23 08:30", "20261123T08",
        "20261123/08", "20261123/08/", "2026-11-23T10:00+02:00",
    ],
)  # fmt: skip
def test_an_hour_may_be_written_in_any_usual_way_and_is_utc_unless_it_says_otherwise(text: str) -> None:
    assert hour(text) == datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "08", "2026-11-23", "20261123", "20261123/24", "20261123/8", "now"])
def test_what_is_no_hour_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        hour(text)


def test_a_table_is_aligned_and_has_no_blanks_at_the_ends_of_lines() -> None:
    assert table(("hour", "n", "how"), [("08", "1,000", "x"), ("09", "-", "read-back")], (0, 2)) == [
        "hour      n  how",
        "----  -----  ---------",
        "08    1,000  x",
        "09        -  read-back",
    ]


def test_off_a_terminal_progress_is_a_line_now_and_then_and_none_where_nothing_is_to_be_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    with Progressing("reading") as progress:
        progress(1024, 4096)
    with Progressing("reading", shown=False) as progress:
        progress(2048, 4096)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "reading: 1.0 KiB of 4.0 KiB\n")
