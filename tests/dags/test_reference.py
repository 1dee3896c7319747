"""docs/REFERENCE.md matches the code."""

import pytest

from dev.reference import pages
from include.log_rollup.streams import Stream


def test_reference_matches_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOG_ROLLUP_STREAMS", raising=False)
    assert pages.TARGET.read_text(encoding="utf-8") == pages.render(), "run make docs"


@pytest.mark.parametrize("key", Stream.model_fields)
def test_every_stream_key_has_a_description(key: str) -> None:
    assert Stream.model_fields[key].description, (
        f"give {key} a docstring below it, in include/log_rollup/streams.py"
    )
