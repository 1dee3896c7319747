"""The reference is what the code gives."""

import pytest

from dev.reference import pages
from include.log_rollup.streams import Stream


def test_the_reference_is_in_step_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOG_ROLLUP_STREAMS", raising=False)
    assert pages.TARGET.read_text(encoding="utf-8") == pages.render(), "run make docs"


@pytest.mark.parametrize("key", Stream.model_fields)
def test_every_key_of_a_stream_says_what_it_means(key: str) -> None:
    assert Stream.model_fields[key].description, (
        f"give {key} a docstring below it, in include/log_rollup/streams.py"
    )
