"""The command doctor: checks everything that the Dags need, and says how to fix what fails."""

import argparse
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from include.log_rollup import crc, limits
from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    CredentialsError,
    NotFoundError,
    ProofError,
    ResourceLimitError,
    RollupError,
    UnsupportedOperationError,
)
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.monitor import OTHER_FILES, check_open_file_limit, open_files
from include.log_rollup.steps.expire_hour import probe_of, require_conditions
from include.log_rollup.storage.protocol import Downloaded, ListPage, Location, ObjectInfo, Transfer, Uploaded
from include.log_rollup.storage_options import describe_class
from include.log_rollup.streams import (
    INCLUDE,
    POOL,
    Stream,
    check_pool,
    load_late_schedule,
    load_streams,
    pool_slots,
    streams_path,
)
from include.log_rollup.units import MIB, format_duration
from log_rollup_plugin.cli.arguments import find_stream
from log_rollup_plugin.cli.output import Answer
from log_rollup_plugin.cli.store import load_airflow, open_store

if TYPE_CHECKING:
    from log_rollup_plugin.s3.stream_store import StreamStore

T = TypeVar("T")

# The packages whose versions matter most.
_PACKAGES = (
    "apache-airflow", "apache-airflow-providers-amazon", "boto3", "botocore", "awscrt", "h11",
)  # fmt: skip
# S3 refuses a request whose time is off by more than this, with RequestTimeTooSkewed.
_SKEW_LIMIT = timedelta(minutes=15)
_SKEW_TOLERATED = timedelta(minutes=1)
# The largest raw object that is read as a test.
_LARGEST_READ = 32 * MIB
_PROBE = b"log-rollup doctor\n"
# An ETag that no object has.
_OTHER_ETAG = "0" * 32
_WITHOUT_COPIES = (
    "without copies an hour is published less safely while two runs of it compete (docs/RELIABILITY.md)"
)
_WITHOUT_LARGE_OBJECTS = ", and raw objects larger than 'part_size' cannot be rolled up"
_WITHOUT_CONDITIONS = (
    "without conditional deletes a run may remove the claim of another one, which matters only while two runs of "
    "an hour compete (docs/RELIABILITY.md)"
)
_REFUSES_TO_EXPIRE = (
    "until then the expiry deletes nothing of this stream, and its task fails; a server that enforces conditional "
    "deletes needs no 'unconditional' (docs/RETENTION.md)"
)
_UNREACHABLE = "check that the connection's endpoint is right and can be reached from here; then try again"


class Outcome(StrEnum):
    """The outcome of a check; only FAIL makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    :param stream: the stream that was checked; None if the check is about all streams
    :param found: what was found
    :param remedy: how to fix it; None if nothing is wrong or ``found`` says how
    :param unsupported: whether the store does not support the operation
    """

    check: str
    stream: str | None
    state: Outcome
    found: str
    remedy: str | None = None
    unsupported: bool = False


def doctor(options: argparse.Namespace, answer: Answer) -> bool:
    """check streams, connections, permissions, pool, limits, clock and versions"""
    checks = []
    for check in _checks(options.stream):
        checks.append(check)
        if not options.json:
            answer.lines(*_report(check))
    ok = all(check.state is not Outcome.FAIL for check in checks)
    if options.json:
        answer.json({"ok": ok, "checks": [_document(check) for check in checks]})
    return ok


def _document(check: Check) -> dict[str, str | None]:
    document = asdict(check)
    del document["unsupported"]
    return document


def _report(check: Check) -> Sequence[str]:
    about = f"{check.stream}: {check.check}" if check.stream else check.check
    lines = [f"{check.state:<5}{about}: {check.found}"]
    if check.remedy:
        lines.append(f"     -> {check.remedy}")
    return lines


def _checks(name: str | None) -> Iterator[Check]:
    yield _versions()
    try:
        streams = load_streams()
        check_pool(streams, pool_slots())
        load_late_schedule()
        asked = streams if name is None else [find_stream(name)]
    except ConfigurationError as error:
        yield Check("streams file", None, Outcome.FAIL, str(error))
        yield Check("all else", None, Outcome.WARN, "not checked, because it needs the streams")
        return
    yield Check(
        "streams file", None, Outcome.OK, f"{streams_path()}: {', '.join(one.name for one in streams)}"
    )
    most = max((stream.max_connections for stream in streams), default=0)
    yield _open_files(most)
    load_airflow()
    yield _pool(most)
    for connection in sorted({name for stream in asked for name in _connection_names(stream)}):
        yield _connection(connection)
    for stream in asked:
        yield from _storage_class(stream)
        yield from _bucket(stream)


def _connection_names(stream: Stream) -> Iterable[str]:
    return (stream.aws_conn_id, stream.connection_of_aggregated, stream.for_expiry.aws_conn_id)


def _versions() -> Check:
    lock = INCLUDE.parent / "requirements.txt"
    locked = (
        dict(re.findall(r"^([a-z0-9-]+)==([^ ;\n]+)", lock.read_text(), re.MULTILINE))
        if lock.exists()
        else {}
    )
    found, other = [f"Python {python_version()}"], []
    for package in _PACKAGES:
        try:
            present = version(package)
        except PackageNotFoundError:
            present = "missing"
        found.append(f"{package} {present}")
        if present != locked.get(package, present):
            other.append(f"{package} {present}, locked is {locked[package]}")
    if other:
        return Check(
            "versions", None, Outcome.WARN, "; ".join(other),
            "install requirements.txt; in a checkout delete .venv and run make again",
        )  # fmt: skip
    compared = "as locked" if locked else f"not compared, because there is no {lock}"
    return Check("versions", None, Outcome.OK, f"{', '.join(found)}, {ssl.OPENSSL_VERSION}; {compared}")


def _open_files(most: int) -> Check:
    try:
        check_open_file_limit(most)
    except ResourceLimitError as error:
        return Check("open files", None, Outcome.FAIL, str(error))
    needed = open_files() + most + OTHER_FILES
    return Check(
        "open files", None, Outcome.OK, f"the limit here is enough for the {needed} that a task may need"
    )


def _pool(most: int) -> Check:
    from airflow.models.pool import Pool
    from sqlalchemy.exc import SQLAlchemyError

    try:
        pool = Pool.get_pool(POOL)
    except SQLAlchemyError as error:
        why = str(error).partition("\n")[0]
        return Check(
            "pool", None, Outcome.WARN, f"not checked: Airflow's metadata database does not answer here ({why})",
            "run it where the scheduler runs, or see Admin > Pools",
        )  # fmt: skip
    if pool is None:
        return Check(
            "pool", None, Outcome.FAIL, f"there is no pool {POOL!r}: tasks stay scheduled for ever",
            f"start the scheduler, which creates it, or: airflow pools set {POOL} {pool_slots()} 'S3 connections'",
        )  # fmt: skip
    if 0 <= pool.slots < most:
        return Check(
            "pool", None, Outcome.FAIL,
            f"{POOL!r} has {pool.slots} slots, and a stream's max_connections is {most}: its tasks wait for ever",
            f"give it at least {most} slots under Admin > Pools, or lower max_connections",
        )  # fmt: skip
    if pool.slots < 0:
        return Check(
            "pool", None, Outcome.WARN, f"{POOL!r} has no limit, so the connections of all tasks are not capped",
            f"set its slots under Admin > Pools to the most connections allowed; the default is {pool_slots()}",
        )  # fmt: skip
    return Check("pool", None, Outcome.OK, f"{POOL!r} has {pool.slots} slots, a task takes {most} at most")


def _connection(name: str) -> Check:
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    title = f"connection {name}"
    try:
        Connection.get(name)
    except AirflowNotFoundException:
        return Check(
            title, None, Outcome.WARN, "Airflow does not know it here, so boto3's default credentials are used",
            f"set AIRFLOW_CONN_{name.upper()}, or create it under Admin > Connections",
        )  # fmt: skip
    return Check(title, None, Outcome.OK, "Airflow knows it")


def _storage_class(stream: Stream) -> Iterator[Check]:
    """What S3 bills for the stream's storage class, and what in the stream does not go with it."""
    terms = describe_class(stream.storage_class or "")
    if terms:
        yield Check("storage class", stream.name, Outcome.OK, terms)
    for warning in stream.storage_warnings:
        yield Check("storage class", stream.name, Outcome.WARN, warning)


def _bucket(stream: Stream) -> Iterator[Check]:
    """Try every operation that the tasks need of S3."""
    with open_store(stream, limits.DOCTOR_CONTROL_CONNECTIONS) as store:
        probe = _Probe(store, stream)
        listed = probe.check(
            "list raw", f"s3:ListBucket on {_arn(stream.raw.root, bucket=True)}", probe.list_raw
        )
        yield listed
        if listed.state is Outcome.FAIL and not probe.refused:
            yield Check(
                "all else", stream.name, Outcome.WARN, "not checked, because it would fail the same way"
            )
            return
        if probe.skew is not None:
            yield _clock(stream, probe.skew)
        raw, built = _arn(stream.raw.root), _arn(stream.aggregated.root)
        smallest = probe.smallest_raw()
        if smallest is None:
            why = "not tried: the first page of the listing has no suitable object"
            yield Check("read raw", stream.name, Outcome.WARN, why)
        else:
            yield probe.check("read raw", f"s3:GetObject on {raw}", partial(probe.read_raw, smallest))
        bucket = _arn(stream.aggregated.root, bucket=True)
        yield probe.check("list aggregated", f"s3:ListBucket on {bucket}", probe.list_aggregated)
        kms = _kms_actions(stream)
        put = f"s3:PutObject on {built}{kms}"
        put_part = f"s3:PutObject and s3:PutObjectTagging on {built}{kms}" if stream.tags else put
        written = [
            probe.check("write aggregated", put_part, probe.write),
            probe.check("write records", put, probe.write_record),
        ]
        yield from written
        if all(check.state is Outcome.OK for check in written):
            copying = f"s3:GetObject and s3:PutObject on {built}{kms}"
            yield probe.check("read aggregated", f"s3:GetObject on {built}{kms}", probe.read_back)
            yield _optional(probe.check("copy", copying, probe.copy), _without_copies(stream))
            if stream.has_two_connections:
                yield probe.check("large objects", put_part, probe.write_large)
            yield _optional(
                probe.check("conditional delete", f"s3:DeleteObject on {built}", probe.delete_on_condition),
                _WITHOUT_CONDITIONS,
            )
        if any(check.state is Outcome.OK for check in written):
            yield probe.check("remove aggregated", f"s3:DeleteObject on {built}", probe.remove)
            yield probe.check("CRC64-NVME", f"s3:DeleteObject on {built}", probe.crc)
        uploads = probe.check("open uploads", f"s3:ListBucketMultipartUploads on {bucket}", probe.uploads)
        # Hours can be completed without it.
        yield uploads if uploads.state is Outcome.OK else replace(uploads, state=Outcome.WARN)
    if stream.expire_raw is not None:
        yield from _expiry(stream.for_expiry, stream.expire_raw)


def _expiry(stream: Stream, rules: ExpireRaw) -> Iterator[Check]:
    """What the expiry does with the stream's raw objects, and whether the store deletes them on condition.

    :param stream: with the connection of the expiry
    """
    yield Check("expire_raw", stream.name, Outcome.OK, _describe_rules(stream, rules))
    needed = (
        f"s3:PutObject and s3:DeleteObject on arn:aws:s3:::{probe_of(stream).bucket}/{probe_of(stream).key}"
    )
    with open_store(stream, limits.DOCTOR_CONTROL_CONNECTIONS) as store:
        probe = _Probe(store, stream)
        tried = probe.check("expiry deletes", needed, probe.delete_as_expiry)
    if tried.unsupported:
        tried = replace(tried, remedy=_REFUSES_TO_EXPIRE)
    if tried.state is Outcome.FAIL and rules.mode == "report":
        # Reports need none of it.
        tried = replace(tried, state=Outcome.WARN)
    yield tried


def _describe_rules(stream: Stream, rules: ExpireRaw) -> str:
    first = rules.since or stream.start
    hours = f"hours from {first:%Y-%m-%d %H:%M} on, {format_duration(rules.after)} after they have ended"
    approvals = ["its first deletion"] if rules.approve_first else []
    if rules.approve_above is not None:
        approvals.append(f"runs that would delete more than {rules.approve_above:,} objects")
    approval = f"a person has to approve {' and '.join(approvals)}" if approvals else "without any approval"
    if rules.mode == "report":
        return f"mode: report: only says what can be deleted of {hours}; with mode: delete, {approval}"
    return f"mode: delete: deletes the raw objects of {hours}; log_rollup_expire: {approval}"


def _optional(check: Check, without: str) -> Check:
    """Turn the failure of an operation that hours can be completed without into a warning, if it is unsupported.

    :param without: what the missing operation means for the user
    """
    return replace(check, state=Outcome.WARN, remedy=without) if check.unsupported else check


def _without_copies(stream: Stream) -> str:
    # With two connections, large objects pass through the worker.
    return _WITHOUT_COPIES if stream.has_two_connections else _WITHOUT_COPIES + _WITHOUT_LARGE_OBJECTS


def _clock(stream: Stream, skew: timedelta) -> Check:
    side = "ahead of" if skew > timedelta() else "behind"
    off = f"this machine's is {abs(skew.total_seconds()):.0f} s {side} S3's"
    if abs(skew) <= _SKEW_TOLERATED:
        return Check("clock", stream.name, Outcome.OK, off)
    state = Outcome.FAIL if abs(skew) >= _SKEW_LIMIT else Outcome.WARN
    return Check(
        "clock",
        stream.name,
        state,
        off,
        "set the clock (NTP); S3 refuses requests that are off by 15 minutes",
    )


def _kms_actions(stream: Stream) -> str:
    """What a stream's KMS key requires, to be appended to other permissions."""
    if not stream.kms_key_id:
        return ""
    return f", and kms:GenerateDataKey and kms:Decrypt on the key {stream.kms_key_id}"


def _arn(place: Location, bucket: bool = False) -> str:
    return f"arn:aws:s3:::{place.bucket}" if bucket else f"arn:aws:s3:::{place.bucket}/{place.key}*"


class _Probe:
    """Tries operations of S3 one by one; writes small objects below the stream's ``_rollup/`` and removes them.

    :param refused: whether S3 accepted the credentials but refused an operation
    :param skew: how far this machine's clock is ahead of S3's; None until that is known
    """

    def __init__(self, store: "StreamStore", stream: Stream) -> None:
        self.refused = False
        self.skew: timedelta | None = None
        self._store = store
        self._stream = stream
        self._raw: ListPage | None = None
        # Not below an hour, where a run could take it for its own.
        self._object = stream.aggregated.root.child(f"_rollup/doctor-{uuid4().hex}")
        self._record, self._copied, self._absent, self._large = (
            self._object.at(f"{self._object.key}-{name}") for name in ("record", "copy", "absent", "large")
        )
        self._record_etag = ""

    def check(self, title: str, needed: str, ask: Callable[[], str]) -> Check:
        """Try an operation and report the outcome.

        :param needed: the permission that S3 requires for it
        :param ask: performs it, and returns what to report
        """
        from log_rollup_plugin.s3.error_mapping import is_unreachable

        name = self._stream.name
        try:
            return Check(title, name, Outcome.OK, ask())
        except CredentialsError as error:
            return Check(title, name, Outcome.FAIL, str(error))
        except AccessError as error:
            self.refused = True
            remedy = f"allow {needed} (deploy/{self._policy(title)})"
            return Check(title, name, Outcome.FAIL, str(error), remedy)
        except UnsupportedOperationError as error:
            return Check(title, name, Outcome.FAIL, str(error), unsupported=True)
        except RollupError as error:
            if is_unreachable(error):
                return Check(title, name, Outcome.FAIL, str(error), _UNREACHABLE)
            return Check(title, name, Outcome.FAIL, str(error))

    def _policy(self, title: str) -> str:
        if title == "expiry deletes":
            return "iam-policy-expire.json"
        if not self._stream.has_two_connections:
            return "iam-policy.json"
        return "iam-policy-raw.json" if "raw" in title.split() else "iam-policy-aggregated.json"

    def list_raw(self) -> str:
        meta = self._store.meta(self._stream.raw.root)
        before = datetime.now(UTC)
        self._raw = self._store.list_page(self._stream.raw.root)
        after = datetime.now(UTC)
        self.skew = before + (after - before) / 2 - self._raw.server_time
        return f"{self._stream.raw} at {meta.endpoint_url}, region {meta.region_name}"

    def smallest_raw(self) -> ObjectInfo | None:
        """The smallest listed object that is neither empty nor too large; if there are any, one of the stream."""
        rows = self._raw.objects if self._raw else ()
        fitting = [row for row in rows if 0 < row.size <= _LARGEST_READ]
        fitting = [row for row in fitting if self._stream.raw.match(row.key)] or fitting
        return min(fitting, key=lambda row: row.size, default=None)

    def read_raw(self, row: ObjectInfo) -> str:
        body = memoryview(bytearray(row.size))
        source = self._stream.raw.location(row.key)

        def get(transfer: Transfer, done: Callable[[Downloaded | Exception], None]) -> None:
            transfer.get(source, row.etag, body, done)

        got = self._through_transfer(get)
        kept = f"S3 keeps its {got.checksum.algorithm}" if got.checksum else "S3 keeps no CRC of it"
        return f"{source}, {row.size:,} bytes as the tasks read it; {kept}"

    def list_aggregated(self) -> str:
        self._store.list_page(self._stream.aggregated.root)
        # Without s3:ListBucket, or with a condition on it, S3 answers this with 403 instead of 404.
        self._store.head(self._object)
        if not self._stream.has_two_connections:
            return f"{self._stream.aggregated}"
        meta = self._store.meta(self._object)
        return f"{self._stream.aggregated} at {meta.endpoint_url}, region {meta.region_name}"

    def write(self) -> str:
        body = memoryview(_PROBE)
        headers = self._stream.write_options.headers

        def put(transfer: Transfer, done: Callable[[Uploaded | Exception], None]) -> None:
            transfer.put(self._object, body, crc.crc64(body), headers, done)

        self._through_transfer(put)
        return f"{self._object}, as the tasks write parts"

    def write_record(self) -> str:
        self._record_etag = self._store.write(self._record, _PROBE, "application/json")
        return f"{self._record}, as the tasks write plans and markers"

    def read_back(self) -> str:
        self._expect_written(self._object)
        self._expect_probe(self._record)
        return "it contains what was written"

    def _expect_written(self, place: Location) -> None:
        """Compare an object that was written as parts are; in an archive class, by the CRC that S3 states."""
        if not self._stream.write_options.is_archived:
            self._expect_probe(place)
            return
        head = self._store.head(place)
        if head is None or head.crc64nvme != crc.crc64(_PROBE):
            raise ProofError(
                f"{place}: the store does not state the CRC64-NVME of what has just been written"
            )

    def copy(self) -> str:
        """Copy as manifests and markers are published; copying an object that does not exist has to fail."""
        self._store.publish(self._record, self._copied)
        self._expect_probe(self._copied)
        try:
            self._store.publish(self._absent, self._copied)
        except NotFoundError:
            return "the server copies objects, and refuses to copy an object that does not exist"
        raise ProofError(
            f"the server reports that it copied {self._absent}, which does not exist: an overtaken run could "
            f"publish an hour there"
        )

    def write_large(self) -> str:
        """Write an object as large objects pass from one connection to the other: by a multipart upload."""
        body, value = memoryview(_PROBE), crc.crc64(_PROBE)
        headers = self._stream.write_options.headers
        upload_id = self._store.begin_upload(self._large, headers, with_crc=True)
        try:

            def put(transfer: Transfer, done: Callable[[Uploaded | Exception], None]) -> None:
                transfer.put_range(self._large, upload_id, 1, body, value, done)

            sent = self._through_transfer(put)
            self._store.finish_upload(self._large, upload_id, [sent.etag], value)
        except RollupError:
            self._store.abort_upload(self._large, upload_id)
            raise
        self._expect_written(self._large)
        return "the server takes them in ranges, as the tasks send them"

    def _expect_probe(self, place: Location) -> None:
        stored = self._store.read(place)
        if stored is None or stored.body != _PROBE:
            raise ProofError(f"{place} does not contain what has just been written")

    def delete_on_condition(self) -> str:
        if self._store.delete_if(self._record, _OTHER_ETAG):
            return f"the server ignores the ETag and deletes; {_WITHOUT_CONDITIONS}"
        if self._store.head(self._record) is None:
            raise ProofError(f"{self._record} is gone, although the server refused to delete it")
        if not self._store.delete_if(self._record, self._record_etag):
            raise ProofError(f"{self._record} could not be deleted, although its ETag is {self._record_etag}")
        return "the server deletes only objects with the given ETag"

    def delete_as_expiry(self) -> str:
        """Try conditional deletes as the expiry does before its first one; raw objects are not touched."""
        if not require_conditions(self._store, self._stream):
            return (
                "the server ignores the ETag and deletes, which 'unconditional: true' accepts: a raw object that "
                "is overwritten just before its deletion is lost"
            )
        return (
            f"the server deletes only objects with the given ETag, as was tried with {probe_of(self._stream)}; "
            f"whether raw objects may be deleted was not tried"
        )

    def remove(self) -> str:
        written = (self._object, self._record, self._copied, self._large)
        self._store.delete(self._object.bucket, [place.key for place in written])
        for place in written:
            if self._store.head(place) is not None:
                raise ProofError(f"{place} still exists after it was deleted; delete it by hand")
        return "the objects are removed"

    def crc(self) -> str:
        if self._store.refuses_wrong_crc(self._object):
            return "S3 refuses a wrong one: parts are proven by the CRC that it keeps"
        if self._stream.write_options.is_archived:
            raise ProofError(
                f"the store accepts a wrong one, so that parts in {self._stream.storage_class}, which cannot be "
                f"read back, could not be proven; remove 'storage_class' from the stream"
            )
        return "the store accepts a wrong one: parts are read back when an hour is validated"

    def uploads(self) -> str:
        self._store.list_uploads(self._object)
        return "unfinished uploads can be listed"

    def _through_transfer(self, ask: Callable[[Transfer, Callable[[T | Exception], None]], None]) -> T:
        answers: list[T | Exception] = []
        raw, aggregated = self._stream.raw.bucket, self._stream.aggregated.bucket
        with closing(self._store.open_transfer(raw, aggregated)) as transfer:
            ask(transfer, answers.append)
            while not answers:
                transfer.wait(1.0)
        (answer,) = answers
        if isinstance(answer, Exception):
            raise answer
        return answer
