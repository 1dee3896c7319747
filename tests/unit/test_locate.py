"""A raw object is found in its part and read from there, and is never returned with wrong bytes."""

import pytest

from include.log_rollup.errors import ConfigurationError, NotFoundError, ProofError, TransientError
from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.queries.locate import locate, read_object
from include.log_rollup.steps.plan_hour import plan_hour
from tests.support.fake_store import Effect, FakeStore
from tests.support.hour_in_memory import MARKER, make_stream, produce, run_hour
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

pytestmark = pytest.mark.usefixtures("unwatched")

RAW_HOUR = {
    **{f"{letter}.log": letter.encode() * 29 for letter in "abcdef"},
    "deep/er/space in name 100%.log": b"odd",
    "grüße-\u2028.log": "grüße".encode(),
    "empty.log": b"",
    "large.log": b"l" * 100 + b"!",
    "packed.gz": b"z" * 30,
}
STREAM = make_stream(ensure_newline=True)


@pytest.fixture
def store() -> FakeStore:
    """Return a store with a complete hour whose raw objects have expired."""
    store = FakeStore()
    produce(store, RAW_HOUR)
    run_hour(store, STREAM)
    for name in RAW_HOUR:
        store.vanish(RAW + name)
    store.log.clear()
    return store


@pytest.mark.parametrize("name", RAW_HOUR)
def test_every_object_is_read_from_its_part_after_expiry(store: FakeStore, name: str) -> None:
    found = locate(store, STREAM, RAW + name)
    assert (found.key, found.hour, found.length, found.complete) == (
        RAW + name,
        HOUR,
        len(RAW_HOUR[name]),
        True,
    )
    assert (
        store.body(found.part.key)[found.place.offset : found.place.offset + found.length] == RAW_HOUR[name]
    )
    assert b"".join(read_object(store, found)) == RAW_HOUR[name]
    assert store.writes() == []


def test_object_takes_one_ranged_request_unless_empty(store: FakeStore) -> None:
    for name, requests in (("b.log", ["30+29"]), ("empty.log", [])):
        store.log.clear()
        list(read_object(store, locate(store, STREAM, RAW + name)))
        assert [operation.detail for operation in store.log if operation.kind == "RANGE"] == requests


def test_large_object_is_read_in_pieces(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.log_rollup.queries.locate.IN_ONE_PIECE_BYTES", 64)
    monkeypatch.setattr("include.log_rollup.hour.parts.READ_BACK_BYTES", 40)
    pieces = list(read_object(store, locate(store, STREAM, RAW + "large.log")))
    assert [len(piece) for piece in pieces] == [40, 40, 21]
    assert b"".join(pieces) == RAW_HOUR["large.log"]


def test_wrong_bytes_are_not_returned(store: FakeStore) -> None:
    found = locate(store, STREAM, RAW + "b.log")
    store.on("RANGE", found.part.key, Effect.WRONG_BYTES)
    pieces = read_object(store, found)
    with pytest.raises(ProofError, match=r"b\.log at 30 have the CRC64-NVME"):
        next(pieces)


def test_wrong_bytes_of_a_large_object_fail_at_its_end(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.log_rollup.queries.locate.IN_ONE_PIECE_BYTES", 64)
    found = locate(store, STREAM, RAW + "large.log")
    store.on("RANGE", found.part.key, Effect.WRONG_BYTES)
    with pytest.raises(ProofError, match=r"large\.log"):
        list(read_object(store, found))


def test_replaced_or_missing_part_is_an_error_with_the_fix(store: FakeStore) -> None:
    found = locate(store, STREAM, RAW + "b.log")
    store.corrupt(found.part.key)
    with pytest.raises(ProofError, match=r"PreconditionFailed.*clear the hour's run from plan_hour"):
        list(read_object(store, found))
    store.vanish(found.part.key)
    with pytest.raises(ProofError, match=r"NoSuchKey.*clear the hour's run from plan_hour"):
        list(read_object(store, found))


def test_network_error_is_raised_unchanged(store: FakeStore) -> None:
    found = locate(store, STREAM, RAW + "b.log")
    store.on("RANGE", found.part.key, TransientError("the connection broke"))
    with pytest.raises(TransientError):
        list(read_object(store, found))


def test_object_of_an_incomplete_hour_is_found(store: FakeStore) -> None:
    store.vanish(MARKER)
    found = locate(store, STREAM, RAW + "a.log")
    assert not found.complete
    assert b"".join(read_object(store, found)) == RAW_HOUR["a.log"]


def test_object_missing_in_the_manifest_is_not_found(store: FakeStore) -> None:
    with pytest.raises(NotFoundError, match="not among the 11 raw objects"):
        locate(store, STREAM, RAW + "late.log")


@pytest.mark.parametrize(("raw", "name"), [("", ""), ("", "y/"), ("raw/app-%Y%m%d%H", "raw/app-2026112308")])
def test_object_that_is_named_like_a_folder_is_found(raw: str, name: str) -> None:
    stream = make_stream(raw=RawTemplate.parse(f"s3://logs/{raw}")) if raw else STREAM
    key = name if raw else RAW + name
    store = FakeStore()
    store.produce(key, b"content of a placeholder\n")
    run_hour(store, stream)
    assert b"".join(read_object(store, locate(store, stream, key))) == b"content of a placeholder\n"


def test_empty_folder_placeholder_is_not_found(store: FakeStore) -> None:
    store.produce(RAW, b"")
    with pytest.raises(NotFoundError, match="not among the 11 raw objects"):
        locate(store, STREAM, RAW)


def test_hour_without_manifest_has_no_objects() -> None:
    store = FakeStore()
    produce(store, RAW_HOUR)
    plan_hour(store, STREAM, HOUR, "run")
    with pytest.raises(NotFoundError, match=r"there is no s3://logs/aggregated/app/20261123/08/_manifest"):
        locate(store, STREAM, RAW + "a.log")


@pytest.mark.parametrize(
    ("raw", "key", "why"),
    [
        ("", "raw/other/20261123/08/a.log", "it does not begin with 'raw/app/'"),
        ("", "raw/app/x/a.log", "behind 'raw/app/' it has 'x/a.log', which does not fit %Y%m%d/%H/"),
        (
            "",
            "raw/app/20261323/08/a",
            "behind 'raw/app/2026' it has '1323/08/a', which does not fit %m%d/%H/",
        ),
        ("", "raw/app/20260230/08/a.log", "20260230/08 is not a date and hour of the calendar"),
        ("", "raw/app/19691231/08/a.log", "19691231/08 is not in the years 1970 to 2999"),
        (
            "%Y/%m/%d/{lb}_%H",
            "2026/11/23/web",
            "behind '2026/11/23/' it has 'web', which does not fit {lb}_%H",
        ),
        ("{a}/%Y%m%d/%H/", "x", "it does not begin like {a}/%Y%m%d/%H/"),
        (
            "%Y/%m/%d/{lb}_%Y%m%dT%H",
            "2026/11/24/web_20261123T0805Z",
            "its dates 2026/11/24 and 20261123T08 do not agree (the folder may have the next day if the name has "
            "hour 21 or later, and the day before if it has hour 00)",
        ),
        ("%Y%m%d/%d-%H/", "20261124/23-08/a", "its dates 20261124/23-08 do not agree"),
        ("%Y%m%d/%H/", "20260329/02/a", "the clocks of Europe/Berlin skip the hour 2026-03-29 02:00"),
    ],
)
def test_refusal_says_why_a_key_is_in_no_hour(raw: str, key: str, why: str) -> None:
    stream = make_stream(raw=RawTemplate.parse(f"s3://logs/{raw}", "Europe/Berlin")) if raw else STREAM
    with pytest.raises(ConfigurationError) as caught:
        locate(FakeStore(), stream, key)
    start = f"{key!r} is not the key of a raw object of stream 'app': {why}. Keys of this stream look like "
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    "key",
    [
        "", "a.log", "raw/app/", "raw/app/20261123/08", "raw/app/20261323/08/a.log",
        "raw/app/20261123/24/a.log", "raw/other/20261123/08/a.log", "raw/app/x/20261123/08/a.log",
        f"{AGGREGATED}part-00000.log",
    ],
)  # fmt: skip
def test_key_outside_the_stream_is_refused_with_an_example(key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"raw/app/20261123/08/web-01/0001\.log"):
        locate(FakeStore(), STREAM, key)
