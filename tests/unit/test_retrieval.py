"""Archived parts are named, their retrieval is requested once, and a second call continues from there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import ClientError

from include.log_rollup.errors import (
    AccessError,
    ArchivedError,
    ConfigurationError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.prices import Prices, load_prices
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.retrieval import (
    ArchivedPart,
    Tier,
    check_tier,
    estimate,
    find_archived,
    needed_parts,
    request_retrieval,
)
from include.log_rollup.storage.protocol import Location
from include.log_rollup.units import GIB
from log_rollup_plugin.cli import grep, main, objects, restore
from log_rollup_plugin.s3.hook import PooledS3Hook
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import MARKER, make_stream, produce, run_hour
from tests.support.raw_hours import AGGREGATED, HOUR, RAW

STREAM = make_stream(storage_class="GLACIER")
OBJECTS = {f"{number}.log": b"line %d\n" % number * 8 for number in range(6)}
TEXT = f"{HOUR:%Y-%m-%dT%H}"


def part_of(storage_class: str, size: int = 0, *, waiting: bool = False) -> ArchivedPart:
    return ArchivedPart(HOUR, Location("logs", f"{storage_class}-{size}"), size, storage_class, waiting)


def retrieved(store: FakeStore) -> list[tuple[str, str]]:
    """Return name and arguments of each retrieval that was requested."""
    return [(one.name, one.detail) for one in store.log if one.kind == "RETRIEVE"]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Commands:
    """Runs commands on a complete hour whose parts are archived and whose raw objects have expired."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.store = FakeStore()
        self._capfd = capfd
        produce(self.store, OBJECTS)
        run_hour(self.store, STREAM)
        for key in self.store.listing(RAW):
            self.store.vanish(key)
        self.parts = self.store.listing(AGGREGATED + "part-")
        self.store.log.clear()

        @contextmanager
        def opened(*_: Any) -> Iterator[FakeStore]:
            yield self.store

        for module in (restore, grep, objects):
            monkeypatch.setattr(module, "open_store", opened)
            monkeypatch.setattr(module, "find_stream", lambda _: STREAM)

    def run(self, *arguments: str) -> Result:
        # Other tests of the process may have configured Airflow's log, which prints what was done before.
        self._capfd.readouterr()
        code = main.main(arguments)
        out, err = self._capfd.readouterr()
        return Result(code, out, err)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


# -- the query ---------------------------------------------------------------------------------------------


def test_only_needed_and_archived_parts_are_found(commands: Commands) -> None:
    store = commands.store
    chosen = ObjectFilter(STREAM, ["3.log"])
    (needed,) = needed_parts(store, STREAM, [HOUR, HOUR + timedelta(hours=1)], chosen)
    (found,) = find_archived(store, [needed])
    assert (found.hour, found.place, found.storage_class) == (HOUR, needed[1], "GLACIER")
    assert not found.is_being_retrieved
    store.retrievals[found.place.key] = True
    store.vanish(commands.parts[0])
    everything = needed_parts(store, STREAM, [HOUR], ObjectFilter(STREAM))
    assert [part.place.key for part in find_archived(store, everything)] == [
        key for key in commands.parts[1:] if key != found.place.key
    ]


def test_incomplete_hour_is_left_out_unless_it_is_wanted(commands: Commands) -> None:
    commands.store.vanish(MARKER)
    chosen = ObjectFilter(STREAM)
    assert list(needed_parts(commands.store, STREAM, [HOUR], chosen)) == []
    found = needed_parts(commands.store, STREAM, [HOUR], chosen, incomplete=True)
    assert len(list(found)) == len(commands.parts)


def test_retrieval_is_requested_once_for_each_part(commands: Commands) -> None:
    store = commands.store
    store.on("RETRIEVE", commands.parts[-1], TransientError("later"))
    needed = list(needed_parts(store, STREAM, [HOUR], ObjectFilter(STREAM)))
    with pytest.raises(TransientError):
        request_retrieval(store, find_archived(store, needed), Tier.BULK, 3)
    store.log.clear()
    assert request_retrieval(store, find_archived(store, needed), Tier.BULK, 3) >= 1
    assert set(retrieved(store)) <= {(key.rpartition("/")[2], "Bulk 3") for key in commands.parts}
    store.log.clear()
    assert request_retrieval(store, find_archived(store, needed), Tier.BULK, 3) == 0
    assert retrieved(store) == []
    assert store.retrievals.keys() == set(commands.parts)


def test_retrieval_of_intelligent_tiering_has_no_days() -> None:
    store = FakeStore()
    assert request_retrieval(store, [part_of("INTELLIGENT_TIERING")], Tier.STANDARD, 3) == 1
    assert retrieved(store) == [("INTELLIGENT_TIERING-0", "Standard None")]


def test_tier_that_a_class_lacks_is_refused_before_any_request() -> None:
    store = FakeStore()
    parts = [part_of("GLACIER"), part_of("DEEP_ARCHIVE")]
    with pytest.raises(
        ConfigurationError, match=r"DEEP_ARCHIVE cannot be .* 'expedited'; use 'bulk' or 'standard'"
    ):
        request_retrieval(store, parts, Tier.EXPEDITED, 3)
    assert retrieved(store) == []
    check_tier(parts, Tier.BULK)


@pytest.mark.parametrize(
    ("storage_class", "tier", "amount", "hours"),
    [
        # 1,000 parts of 1 GiB: requests, retrieval, and copies in STANDARD for 73 days, 2.4 months.
        ("GLACIER", Tier.STANDARD, 0.05 + 10 + 55.2, 5),
        ("GLACIER", Tier.BULK, 55.2, 12),
        ("GLACIER", Tier.EXPEDITED, 10 + 30 + 55.2, 1 / 12),
        ("DEEP_ARCHIVE", Tier.STANDARD, 0.1 + 20 + 55.2, 12),
        ("DEEP_ARCHIVE", Tier.BULK, 0.025 + 2.5 + 55.2, 48),
        ("INTELLIGENT_TIERING", Tier.BULK, None, 48),
    ],
)
def test_cost_of_a_retrieval(storage_class: str, tier: Tier, amount: float | None, hours: float) -> None:
    # The prices of the file may change; those of the test don't.
    prices = Prices.model_validate(
        load_prices().model_dump()
        | {
            "classes": load_prices().model_dump()["classes"]
            | {
                "STANDARD": {"storage": 0.023, "put": 0.0, "get": 0.0},
                "GLACIER": {
                    "storage": 0.0, "put": 0.0, "get": 0.0, "retrieval": 0.01, "restore": 0.05,
                    "bulk": {"retrieval": 0.0, "restore": 0.0},
                    "expedited": {"retrieval": 0.03, "restore": 10.0},
                },
                "DEEP_ARCHIVE": {
                    "storage": 0.0, "put": 0.0, "get": 0.0, "retrieval": 0.02, "restore": 0.1,
                    "bulk": {"retrieval": 0.0025, "restore": 0.025},
                },
            }
        }
    )  # fmt: skip
    found = estimate([part_of(storage_class, GIB)] * 1000, tier, 73, prices)
    assert (found.requests, found.size) == (1000, 1000 * GIB)
    assert found.amount == (None if amount is None else pytest.approx(amount))
    assert found.longest == timedelta(hours=hours)
    assert estimate([part_of("GLACIER")], tier, 7, None).amount is None


# -- the commands ------------------------------------------------------------------------------------------


def test_restore_names_archived_parts_and_reads_nothing(commands: Commands, tmp_path: Path) -> None:
    result = commands.run("restore", "app", TEXT, "--to", f"{tmp_path}/copy")
    assert result.code == 4
    assert f"{len(commands.parts)} parts of " in result.err
    assert f"cannot be read ({len(commands.parts)} in GLACIER)" in result.err
    assert f"s3://logs/{commands.parts[0]}" in result.err
    for tier in ("bulk", "standard", "expedited"):
        assert f"--retrieve {tier}: {len(commands.parts)} requests, " in result.err
    assert "usually within 12h; less than 0.01 USD" in result.err
    assert retrieved(commands.store) == []
    assert not [one for one in commands.store.log if one.kind == "RANGE"]
    assert not list(tmp_path.rglob("*.log"))


def test_restore_requests_the_retrieval_and_resumes(commands: Commands, tmp_path: Path) -> None:
    arguments = ("restore", "app", TEXT, "--to", f"{tmp_path}/copy", "--retrieve", "Bulk", "--yes")
    first = commands.run(*arguments, "--json")
    assert first.code == 4
    assert {detail for _, detail in retrieved(commands.store)} == {"Bulk 7"}
    archived = first.document["archived"]
    count = len(commands.parts)
    assert (first.document["ok"], first.document["restored"]) == (False, None)
    assert (archived["parts"], archived["requested"], archived["being_retrieved"]) == (count, count, count)
    assert archived["hours"] == {f"{TEXT}:00:00Z": [f"s3://logs/{key}" for key in commands.parts]}
    commands.store.log.clear()
    second = commands.run(*arguments)
    assert (second.code, retrieved(commands.store)) == (4, [])
    assert f"{count} of them are being retrieved" in second.err
    commands.store.end_retrievals()
    third = commands.run(*arguments)
    assert third.code == 0, third.err
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.log")} == OBJECTS


@pytest.mark.parametrize("extra", ["--dry-run", ""])
def test_nothing_is_requested_without_yes(commands: Commands, tmp_path: Path, extra: str) -> None:
    given = [extra] if extra else []
    result = commands.run("restore", "app", TEXT, "--to", f"{tmp_path}/c", "--retrieve", "standard", *given)
    assert result.code == 4
    assert "retrieval with the tier standard" in result.err
    assert "nothing was requested" in result.err
    assert ("add --yes" in result.err) == (not extra)
    assert retrieved(commands.store) == []


@pytest.mark.parametrize(("reply", "requested"), [("y\n", True), ("\n", False), ("", False)])
def test_terminal_is_asked(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str, requested: bool
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(reply))
    result = commands.run("restore", "app", TEXT, "--to", f"{tmp_path}/c", "--retrieve", "standard")
    assert (result.code, bool(retrieved(commands.store))) == (4, requested)
    assert "request it? [y/N]" in result.err


def test_restore_reads_the_rest_if_one_part_is_archived(commands: Commands, tmp_path: Path) -> None:
    store = commands.store
    store.retrievals = dict.fromkeys(commands.parts[:-1], True)
    result = commands.run("restore", "app", TEXT, "--to", f"{tmp_path}/copy")
    assert result.code == 1
    assert "FAILED: raw/app/20261123/08/5.log" in result.out
    assert "the object is archived" in result.out
    assert len(list(tmp_path.rglob("*.log"))) == len(OBJECTS) - 1
    result = commands.run("restore", "app", TEXT, "--to", f"{tmp_path}/copy", "--retrieve", "bulk", "--yes")
    assert (result.code, [name for name, _ in retrieved(store)]) == (
        4,
        [commands.parts[-1].rpartition("/")[2]],
    )


def test_restore_asks_one_part_of_an_hour_that_can_be_read(commands: Commands, tmp_path: Path) -> None:
    commands.store.retrievals = dict.fromkeys(commands.parts, True)
    assert commands.run("restore", "app", TEXT, "--to", f"{tmp_path}/copy").code == 0
    heads = [one.key for one in commands.store.log if one.kind == "HEAD"]
    assert heads == [commands.parts[0]]


def test_grep_requests_the_retrieval_and_resumes(commands: Commands) -> None:
    plain = commands.run("grep", "line 3", "app", "--since", TEXT, "--match", "3.log")
    assert plain.code == 2
    assert "it is archived; see --retrieve" in plain.err
    arguments = ("grep", "line 3", "app", "--since", TEXT, "--match", "3.log", "--retrieve", "bulk", "--yes")
    first = commands.run(*arguments, "--json")
    assert (first.code, len(retrieved(commands.store))) == (4, 1)
    assert first.document["archived"]["requested"] == 1
    commands.store.end_retrievals()
    second = commands.run(*arguments, "-c")
    assert (second.code, second.out) == (0, f"{RAW}3.log:8\n")


def test_wrong_tier_and_days_exit_with_2(commands: Commands, capfd: pytest.CaptureFixture[str]) -> None:
    for extra, message in (
        (["--retrieve", "fast"], "is not a tier"),
        (["--retrieve-days", "0"], "give 1 to 365"),
    ):
        with pytest.raises(SystemExit) as caught:
            commands.run("grep", "x", "app", "--since", TEXT, *extra)
        assert caught.value.code == 2
        assert message in capfd.readouterr().err
    commands.store.archive(AGGREGATED + "part-", "DEEP_ARCHIVE")
    result = commands.run("grep", "x", "app", "--since", TEXT, "--retrieve", "expedited", "--yes")
    assert (result.code, retrieved(commands.store)) == (2, [])


def test_locate_shows_that_the_part_is_archived(commands: Commands) -> None:
    key = f"{RAW}3.log"
    assert "archived (GLACIER): retrieve it before" in commands.run("locate", "app", key).err
    commands.store.retrievals = dict.fromkeys(commands.parts, False)
    assert "archived (GLACIER): it is being retrieved" in commands.run("locate", "app", key).err
    assert commands.run("locate", "app", key, "--json").document["archived"] is True
    failed = commands.run("cat", "app", key)
    assert (failed.code, "is archived" in failed.err) == (1, True)
    commands.store.end_retrievals()
    assert commands.run("locate", "app", key, "--json").document["archived"] is False
    assert commands.run("cat", "app", key).out == OBJECTS["3.log"].decode()


# -- the request -------------------------------------------------------------------------------------------


class Client:
    """A boto3 client that answers RestoreObject with an error."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.requests: list[Any] = []

    def restore_object(self, **arguments: Any) -> None:
        self.requests.append(arguments)
        if self.code:
            meta = {"HTTPStatusCode": 403, "HTTPHeaders": {}}
            answer: Any = {"Error": {"Code": self.code, "Message": "why"}, "ResponseMetadata": meta}
            raise ClientError(answer, "RestoreObject")


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("", True),
        ("RestoreAlreadyInProgress", False),
        ("ObjectAlreadyInActiveTierError", False),
        ("AccessDenied", AccessError),
        ("GlacierExpeditedRetrievalNotAvailable", ArchivedError),
        ("NotImplemented", UnsupportedOperationError),
    ],
)
def test_answers_of_s3_to_a_retrieval(code: str, outcome: bool | type[Exception]) -> None:
    hook, client = PooledS3Hook(max_connections=2), Client(code)
    hook.__dict__["client"] = client
    place = Location("logs", "part")
    if isinstance(outcome, bool):
        assert hook.request_retrieval(place, "Bulk", None) is outcome
        assert client.requests == [
            {"Bucket": "logs", "Key": "part", "RestoreRequest": {"GlacierJobParameters": {"Tier": "Bulk"}}}
        ]
        return
    with pytest.raises(outcome) as caught:
        hook.request_retrieval(place, "Expedited", 3)
    assert client.requests[0]["RestoreRequest"]["Days"] == 3
    assert ("s3:RestoreObject" in str(caught.value)) == (code == "AccessDenied")


@pytest.mark.parametrize(
    ("stated", "is_archived", "is_being_retrieved"),
    [
        ({}, False, False),
        ({"StorageClass": "GLACIER_IR"}, False, False),
        ({"StorageClass": "GLACIER"}, True, False),
        ({"StorageClass": "DEEP_ARCHIVE", "Restore": 'ongoing-request="true"'}, True, True),
        ({"StorageClass": "GLACIER", "Restore": 'ongoing-request="false", expiry-date="x"'}, False, False),
        ({"StorageClass": "INTELLIGENT_TIERING"}, False, False),
        ({"StorageClass": "INTELLIGENT_TIERING", "ArchiveStatus": "ARCHIVE_ACCESS"}, True, False),
    ],
)
def test_head_shows_what_has_to_be_retrieved(
    stated: dict[str, str], is_archived: bool, is_being_retrieved: bool
) -> None:
    hook = PooledS3Hook(max_connections=2)
    answer = {"ContentLength": 1, "ETag": '"e"', **stated}
    hook.__dict__["client"] = SimpleNamespace(head_object=lambda **_: answer)
    head = hook.head(Location("logs", "part"))
    assert head is not None
    assert (head.is_archived, head.is_being_retrieved) == (is_archived, is_being_retrieved)
    assert head.storage_class == stated.get("StorageClass", "")
