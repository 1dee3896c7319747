"""The streams file: its keys, their ranges and defaults, and how it is read."""

import difflib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from include.log_rollup import limits
from include.log_rollup.compression import Compression, codec_of
from include.log_rollup.errors import ConfigurationError
from include.log_rollup.expiry_options import ExpireRaw, check_late_days, parse_expire_raw
from include.log_rollup.hour.layout import check_hour, floor_hour
from include.log_rollup.hour.local_hours import check_zone
from include.log_rollup.hour.overlap import example_without_overlap, find_overlap
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import WriteOptions
from include.log_rollup.hour.selection import InputRules, Unjoinable
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate, Template, check_pair
from include.log_rollup.storage.protocol import Location
from include.log_rollup.storage_options import (
    StorageClass,
    check_kms_key,
    check_tags,
    class_warnings,
    supported_class,
)
from include.log_rollup.units import GIB, MIB, Duration, Size, format_size
from include.log_rollup.yaml_file import parse_yaml

log = logging.getLogger(__name__)

INCLUDE = Path(__file__).resolve().parent.parent
# With compression, a part of so many raw bytes has about as many bytes as one without.
COMPRESSED_PART_SIZE = 256 * MIB
POOL = "s3_connections"
# Default schedule of log_rollup_late: once a day, at a time of little traffic.
LATE_SCHEDULE = "0 5 * * *"
# Default schedule of log_rollup_expire: after the reruns of late hours have begun.
EXPIRE_SCHEDULE = "0 7 * * *"
# Streams of these names would have the id of another Dag.
_RESERVED = ("late", "expire")

# A rough check only; Airflow reports which field is wrong.
_CRON = re.compile(r"@[a-z]+|\S+(\s+\S+){4}")
_CLASS = re.compile(r"([A-Za-z_]\w*\.)+[A-Za-z_]\w*")
_NOTIFIER = "{class: airflow.providers.smtp.notifications.smtp.SmtpNotifier, to: oncall@example.com}"
_ARN = re.compile(r"s3://arn:|arn:")

# Requests to these buckets are signed for a service other than s3, or with a session that expires after five
# minutes. botocore's endpoint rules recognise them by these suffixes.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_OTHER_BUCKETS = {
    "--x-s3": "is a directory bucket (S3 Express One Zone)",
    "--xa-s3": "is an access point of a directory bucket (S3 Express One Zone)",
    "--op-s3": "is an access point of a bucket on Outposts",
}


def _check_bucket(template: str) -> None:
    """Refuse URLs of buckets that are not supported.

    :raises ValueError: if it is an ARN, or the bucket is a directory bucket or on an Outpost
    """
    if _ARN.match(template):
        raise ValueError(
            f"{template!r} is an ARN, which is not supported; write the bucket's name, or the alias of the access "
            f"point, which ends in -s3alias, like s3://my-bucket/raw/app/"
        )
    bucket = template.removeprefix("s3://").partition("/")[0]
    for suffix, kind in _OTHER_BUCKETS.items():
        if bucket.endswith(suffix):
            raise ValueError(
                f"bucket {bucket!r} {kind}, which is not supported; use a general purpose bucket"
            )


def parse_raw(value: Any, zone: str) -> RawTemplate:
    """Parse a template of raw objects; see :mod:`include.log_rollup.hour.template`.

    :param zone: IANA name of the time zone of its directives
    :raises ValueError: if it is none, or the kind of bucket is not supported
    """
    if isinstance(value, RawTemplate):
        return value
    _check_bucket(str(value))
    return RawTemplate.parse(str(value), zone)


def parse_aggregated(value: Any) -> AggregatedTemplate:
    """The same for the template of the parts."""
    if isinstance(value, AggregatedTemplate):
        return value
    _check_bucket(str(value))
    template = AggregatedTemplate.parse(str(value))
    _fits_a_uri(template.root)
    return template


@dataclass(frozen=True)
class SizeRange:
    """Bounds of a size in bytes; call it to check a size."""

    low: int
    high: int

    def __call__(self, size_bytes: int) -> int:
        if not self.low <= size_bytes <= self.high:
            raise ValueError(
                f"{format_size(size_bytes)} is out of range; give {format_size(self.low)} to "
                f"{format_size(self.high)}"
            )
        return size_bytes


@dataclass(frozen=True)
class DurationRange:
    """Bounds of a duration; call it to check a duration."""

    low: timedelta
    # Ten years: added to any hour, it still gives a valid time.
    high: timedelta = timedelta(days=3650)

    def __call__(self, duration: timedelta) -> timedelta:
        if duration < self.low:
            raise ValueError(f"{duration} is too short; give at least {self.low}")
        if duration > self.high:
            raise ValueError(f"{duration} is too long; give at most {self.high.days}d")
        return duration


def _between(low: int, high: int) -> AfterValidator:
    return AfterValidator(SizeRange(low, high))


def _at_least(low: timedelta) -> AfterValidator:
    return AfterValidator(DurationRange(low))


def _not_reserved(name: str) -> str:
    if name in _RESERVED:
        raise ValueError(f"log_rollup_{name} is another Dag of this project; choose another name")
    if name in (".", ".."):
        raise ValueError(f"{name!r} is a step of a path, not a name; choose another name")
    return name


def _whole_hour(start: datetime) -> datetime:
    if start.tzinfo is None:
        raise ValueError("has no offset from UTC; write it like 2026-11-01T00:00:00Z")
    check_hour(start)
    if start.astimezone(UTC) != floor_hour(start):
        raise ValueError(f"{start} is not a whole hour; write it like 2026-11-01T00:00:00Z")
    return floor_hour(start)


def _fits_a_uri(aggregated: Location) -> None:
    """Refuse ``#`` and ``?``: Airflow drops what follows ``#`` in an asset's URI, and sorts what follows ``?``."""
    for character in "?#":
        if character in aggregated.key:
            raise ValueError(
                f"{aggregated} contains {character!r}, at which Airflow cuts off the URIs of the stream's assets; "
                f"choose a prefix without it"
            )


Pattern = Annotated[str, Field(min_length=1)]


def _parse_patterns(patterns: Any) -> Any:
    """Accept a single pattern without a list."""
    return (patterns,) if isinstance(patterns, str) else patterns


@dataclass(frozen=True, slots=True)
class Notifier:
    """An entry of ``notify``: the class of an Airflow notifier, and its arguments."""

    path: str
    arguments: Mapping[str, Any]


def _parse_notifiers(entries: Any) -> tuple[Notifier, ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError(f"{entries!r} is not a list; give one entry for each notifier, like {_NOTIFIER}")
    return tuple(_parse_notifier(entry, number) for number, entry in enumerate(entries, 1))


def _parse_notifier(entry: Any, number: int) -> Notifier:
    if isinstance(entry, Notifier):
        return entry
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
        raise ValueError(f"entry {number} has no 'class'; write it like {_NOTIFIER}")
    path = entry["class"]
    if not _CLASS.fullmatch(path):
        raise ValueError(
            f"entry {number}: {path!r} is not the full name of a class; write it like {_NOTIFIER}"
        )
    arguments = {str(name): value for name, value in entry.items() if name != "class"}
    try:
        # Airflow stores them as JSON, with the deadline.
        json.dumps(arguments)
    except TypeError as error:
        raise ValueError(f"entry {number}: {error}; put dates and times in quotes") from None
    return Notifier(path, arguments)


class Stream(BaseModel):
    """One log source and its settings; sizes are in bytes, durations are timedeltas.

    ``docs/REFERENCE.md`` shows the docstrings below the fields.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$"), AfterValidator(_not_reserved)]
    """Name of the stream and of its Dag, `log_rollup_<name>`. Letters, digits, `_`, `.`, `-`; not `late`,
    `expire`, `.` or `..`."""
    raw: RawTemplate
    """Where the raw objects are: `s3://bucket/` and a template of the beginning of their keys. `%Y %y %m %d %H %j`
    stand for the hour, `{name}` for one step of the path, of any value. Without any of the first, `%Y%m%d/%H/` is
    appended. What follows in a key, also subfolders, is the object's name."""
    aggregated: AggregatedTemplate
    """Where the parts are: a template like `raw`, in UTC. No key may fit two templates of any streams."""
    timezone: str = "UTC"
    """Time zone of the hours in the keys of the raw objects, like `Europe/Berlin`. A folder belongs to the UTC
    hour in which it ends. Runs, parts and records are always in UTC."""
    start: Annotated[datetime, AfterValidator(_whole_hour)]
    """First hour of the schedule, with its offset from UTC. A backfill may start earlier."""
    aws_conn_id: str = "aws_default"
    """Airflow connection to S3. Without `target_conn_id`, it is used for both prefixes."""
    target_conn_id: Annotated[str, Field(min_length=1)] | None = None
    """Airflow connection for all that is below `aggregated`, if it is in another account, region or at another
    endpoint. Objects larger than a part then pass through the worker instead of being copied by S3."""
    # At least 5 MiB, the minimum of a part of an S3 multipart upload. At most 1 GiB, because a task holds parts in
    # memory.
    part_size: Annotated[Size, _between(5 * MIB, GIB)] = 32 * MIB
    """Maximum size of a part, in bytes of its raw objects; with `compression` the default is 256 MiB. A raw object
    that is larger becomes a part by itself, copied by S3."""
    shard_size: Annotated[Size, _between(5 * MIB, 1024 * GIB)] = GIB
    """Approximate number of bytes that one mapped task packs; not below `part_size`."""
    # 1024 is Airflow's core.max_map_length.
    max_shards: Annotated[int, Field(ge=1, le=1024)] = 64
    """Maximum number of mapped tasks of an hour. At this number, each packs more than `shard_size`."""
    # At least 4: two for boto3 and two for bodies, if raw and aggregated are on two hosts.
    max_connections: Annotated[int, Field(ge=4, le=1000)] = limits.DEFAULT_MAX_CONNECTIONS
    """Maximum number of connections to S3 of one packing task, and the slots of the pool that it takes. Not more
    than the pool has."""
    max_active_runs: Annotated[int, Field(ge=1, le=1000)] = 4
    """Maximum number of hours that are rolled up at the same time."""
    # 42 days have 1,008 hours; core.max_map_length allows 1,024 reruns.
    late_days: Annotated[int, Field(ge=0, le=42)] = 3
    """Number of days back that `log_rollup_late` checks for late objects; 0 for no check."""
    late_merge: bool = False
    """Whether small parts of late objects are packed again together with further late objects, once an hour has
    more than 4 parts below half of `part_size`. Only parts whose raw objects all still exist are. By default late
    objects only get new parts."""
    quiet_period: Annotated[Duration, _at_least(timedelta(seconds=1))] = timedelta(minutes=10)
    """An hour is settled once it has ended and its newest object is this old, by the clock of S3."""
    poll_interval: Annotated[Duration, _at_least(timedelta(seconds=1))] = timedelta(minutes=1)
    """Interval at which an hour that is not settled is listed again, give or take a fifth."""
    timeout: Annotated[Duration, _at_least(timedelta(seconds=1))] = timedelta(hours=6)
    """Time after which `wait_for_raw_hour` fails if the hour is not settled. For an empty hour it counts from the
    end of the hour."""
    task_timeout: Annotated[Duration, _at_least(timedelta(minutes=1))] = timedelta(hours=1)
    """Time limit of planning, of packing one shard, and of validating."""
    connect_timeout: Annotated[Duration, _at_least(timedelta(seconds=1))] = limits.DEFAULT_CONNECT_TIMEOUT
    """Time limit of connecting to S3; the TLS handshake gets as long again."""
    response_timeout: Annotated[Duration, _at_least(timedelta(seconds=1))] = limits.DEFAULT_RESPONSE_TIMEOUT
    """Time limit of waiting for the first byte of an object, and between any two bytes."""
    ready_object: Annotated[str, Field(min_length=1)] | None = None
    """Name, below the hour's folder, of the object that the producer writes last. If given, only its presence
    settles the hour. The old name of this key, `marker`, is still accepted."""
    include: Annotated[tuple[Pattern, ...], BeforeValidator(_parse_patterns)] = ()
    """Patterns of the names, below the hour's folder, of the objects to pack; by default all. `*` stands for any
    characters, also `/`; `?` for one; `[abc]` for one of several. The others are counted in `left_out`."""
    exclude: Annotated[tuple[Pattern, ...], BeforeValidator(_parse_patterns)] = ()
    """Patterns of the names of objects to leave out, also of those that `include` matches."""
    unjoinable: Unjoinable = "stop"
    """What happens to containers, which cannot be joined end to end (`.parquet`, `.orc`, `.avro`, `.zip`, `.7z`):
    `stop` fails the hour, `skip` leaves them out and counts them in `left_out`, `copy` gives each a part of its
    own."""
    allow_empty: bool = False
    """Whether an hour without objects is completed, without parts, instead of failing."""
    ensure_newline: bool = False
    """Whether a newline is added in the part after each object whose last line has none. After a compressed object
    (`.gz`, `.zst`, `.bz2`, `.xz`, `.lz4`) it is a frame with just a newline; to find out, such objects are
    decompressed in memory while they are packed, which costs CPU time. Objects of other encodings (`.lzo`,
    `.snappy`, …), damaged ones, and those that are larger than a part get none."""
    check_encoding: bool = False
    """Whether each compressed object (`.gz`, `.zst`, `.bz2`, `.xz`, `.lz4`) is decompressed in memory while it is
    packed. An object that is damaged or cut off is reported with its key and gets its own part, so that the others
    stay readable. It costs CPU time and does not change any object's bytes."""
    compression: Compression = "none"
    """Compression of the parts that hold plain objects: `none`, `zstd` or `gzip`. Each part is a sequence of
    frames that hold whole objects. Objects of more than 32 MiB, and those that are compressed already, keep their
    bytes; of the latter see `recompress`."""
    compression_level: int | None = None
    """Level of the compression: 1 to 19 for zstd, 3 by default; 1 to 9 for gzip, 6 by default."""
    recompress: bool = False
    """Whether raw objects that are compressed themselves (`.gz`, `.zst`, `.bz2`, `.xz`, `.lz4`) are decompressed
    first, and share compressed parts with plain ones; needs `compression`. The parts then have their content,
    proven as all bytes are, and **not the original bytes**: these cannot be restored once raw objects have
    expired. Objects of more than 2 MiB are joined as they are. One that cannot be decompressed, or has more than
    32 MiB of content, keeps its bytes in a part of its own and counts as `damaged`. `part_size` and `shard_size`
    count such an object 8 times, which is about the size of its content."""
    storage_class: Annotated[StorageClass | None, BeforeValidator(supported_class)] = None
    """Storage class of the parts; the default is the bucket's. Parts in `GLACIER` and `DEEP_ARCHIVE` have to be
    retrieved before they can be read, and the store has to keep their CRC64-NVME, as S3 does. Records stay in the
    bucket's class."""
    tags: Annotated[Mapping[str, str], BeforeValidator(check_tags)] = {}
    """Tags of the parts, like `{team: search, cost-center: '42'}`: up to 10, keys of up to 128 characters, values
    of up to 256. Records get none."""
    kms_key_id: Annotated[str, BeforeValidator(check_kms_key)] | None = None
    """KMS key that encrypts parts and records: its ARN, id or alias. The default is the bucket's encryption."""
    expire_raw: Annotated[ExpireRaw | None, BeforeValidator(parse_expire_raw)] = None
    """When the raw objects of complete hours are deleted, like `{after: 14d, mode: report}`; by default never. An
    hour is proven again before, and objects that came late or changed stay."""
    owner: str = "log-rollup"
    """Owner of the Dag's tasks in Airflow's UI."""
    notify: Annotated[tuple[Notifier, ...], BeforeValidator(_parse_notifiers)] = ()
    """Notifications of failed runs and missed deadlines: a list of Airflow notifiers, each with its `class` and
    its arguments."""
    deadline: Annotated[Duration, _at_least(timedelta(seconds=1))] | None = None
    """A run that has not ended this long after it was queued is reported through `notify`; by default none is."""

    @model_validator(mode="before")
    @classmethod
    def _templates(cls, values: Any) -> Any:
        zone = values.get("timezone", "UTC")
        try:
            check_zone(zone)
        except ValueError as error:
            raise ValueError(f"timezone: {error}") from None
        parsed: dict[str, Any] = {}
        for key, parse in (("raw", partial(parse_raw, zone=zone)), ("aggregated", parse_aggregated)):
            if key in values:
                try:
                    parsed[key] = parse(values[key])
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from None
        if parsed.keys() == {"raw", "aggregated"}:
            try:
                check_pair(parsed["raw"], parsed["aggregated"])
            except ValueError as error:
                raise ValueError(f"aggregated: {error}") from None
        return {**values, **parsed}

    @model_validator(mode="before")
    @classmethod
    def _part_size_of_compression(cls, values: Any) -> Any:
        if values.get("compression", "none") == "none" or "part_size" in values:
            return values
        return {**values, "part_size": COMPRESSED_PART_SIZE}

    @model_validator(mode="after")
    def _compression_exists(self) -> "Stream":
        if self.compression == "none":
            if self.compression_level is not None:
                raise ValueError("compression_level: nothing is compressed; give 'compression' too")
            if self.recompress:
                raise ValueError("recompress: nothing is compressed; give 'compression' too")
        else:
            codec_of(self.compression, self.compression_level)
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Stream":
        if self.shard_size < self.part_size:
            raise ValueError(
                f"shard_size: {format_size(self.shard_size)} is less than part_size "
                f"{format_size(self.part_size)}; a shard holds at least one part"
            )
        return self

    @model_validator(mode="after")
    def _raw_expires_after_late_check(self) -> "Stream":
        check_late_days(self.expire_raw, self.late_days)
        return self

    @model_validator(mode="after")
    def _deadline_is_reported(self) -> "Stream":
        if self.deadline is not None and not self.notify:
            raise ValueError("deadline: no notifier would report it; give 'notify' too")
        return self

    @cached_property
    def input_rules(self) -> InputRules:
        """Which objects of a raw hour are its input."""
        return InputRules(
            self.ready_object,
            self.include,
            self.exclude,
            self.unjoinable,
            self.raw.text.endswith("/"),
            self.raw.finds_unmatched,
        )

    @property
    def connection_of_aggregated(self) -> str:
        """The Airflow connection for parts and records."""
        return self.target_conn_id or self.aws_conn_id

    @property
    def has_two_connections(self) -> bool:
        """Whether raw objects and parts have different Airflow connections."""
        return self.connection_of_aggregated != self.aws_conn_id

    @property
    def for_expiry(self) -> "Stream":
        """This stream with the Airflow connection that may delete raw objects."""
        conn_id = self.expire_raw.conn_id if self.expire_raw else None
        return self if conn_id is None else self.model_copy(update={"aws_conn_id": conn_id})

    @property
    def wait_connections(self) -> int:
        """Connections of the task that waits for a raw hour."""
        if self.raw.next_level({}) is None:
            return limits.WAIT_CONNECTIONS
        return min(limits.GROUP_WAIT_CONNECTIONS, self.max_connections)

    @property
    def control_connections(self) -> int:
        """Connections of a task that lists and writes records. Groups are listed one by one, so they take more."""
        more = min(limits.GROUP_CONTROL_CONNECTIONS, self.max_connections) if self.raw.captures else 0
        return max(limits.CONTROL_CONNECTIONS, more)

    @property
    def write_options(self) -> WriteOptions:
        """How the parts are written."""
        return WriteOptions(
            self.ensure_newline,
            self.storage_class,
            tuple(sorted(self.tags.items())),
            self.kms_key_id,
            "" if self.compression == "none" else self.compression,
            self.compression_level,
            self.recompress,
        )

    @cached_property
    def storage_warnings(self) -> Sequence[str]:
        """What does not go with the minimum duration and size of the storage class, each with its key."""
        return class_warnings(
            self.storage_class,
            self.part_size,
            has_groups=bool(self.aggregated.captures),
            late_merge=self.late_merge,
        )

    def at(self, hour: datetime) -> HourPaths:
        """The prefixes and keys of an hour."""
        return HourPaths(self.raw, hour, self.aggregated, self.name)


def streams_path() -> Path:
    """Path of the streams file: LOG_ROLLUP_STREAMS, or ``include/streams.yaml``."""
    return Path(os.environ.get("LOG_ROLLUP_STREAMS") or INCLUDE / "streams.yaml")


def load_streams(path: Path | None = None) -> list[Stream]:
    """Read and check the streams file.

    :param path: the file; the default is :func:`streams_path`
    :raises ConfigurationError: with the file, the stream, the key and the fix
    """
    path = path or streams_path()
    try:
        return list(parse_streams(_read(path)))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def load_late_schedule(path: Path | None = None) -> str:
    """The schedule of log_rollup_late: a cron expression in UTC.

    :param path: the streams file; the default is :func:`streams_path`
    :raises ConfigurationError: with the file, the key and the fix
    """
    return _load_schedule("late_schedule", LATE_SCHEDULE, path or streams_path())


def load_expire_schedule(path: Path | None = None) -> str:
    """The same of log_rollup_expire."""
    return _load_schedule("expire_schedule", EXPIRE_SCHEDULE, path or streams_path())


def _load_schedule(key: str, default: str, path: Path) -> str:
    try:
        schedule = _document(_parse_yaml(_read(path))).get(key, default)
        if not isinstance(schedule, str) or not _CRON.fullmatch(schedule):
            raise ConfigurationError(
                f"{key}: {schedule!r} is not a cron expression; write it like '{default}'"
            )
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return schedule


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"cannot be read ({reason}); LOG_ROLLUP_STREAMS has to name a readable file"
        ) from None


# Cached, because the api-server reads the file at each request, and a process that parses both Dag files reads it
# three times. The cache key is the content, so a change of the file takes effect at once.
@lru_cache(maxsize=2)
def _parse_yaml(content: bytes) -> Any:
    try:
        return parse_yaml(content.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # In one line, so that it is shown as one message.
        raise ConfigurationError(f"is not YAML: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=2)
def parse_streams(content: bytes) -> Sequence[Stream]:
    """The streams of a streams file.

    :raises ConfigurationError: with the stream, the key and the fix
    """
    streams = _parse(_parse_yaml(content))
    _refuse_equal_names(streams)
    _refuse_overlaps(streams)
    for stream in streams:
        for warning in stream.storage_warnings:
            log.warning("stream %r: %s", stream.name, warning)
    return tuple(streams)


def pool_slots(path: Path = INCLUDE / "pools.json") -> int:
    """Number of slots with which the pool is created: the cap on all connections of tasks to S3."""
    return int(json.loads(path.read_text(encoding="utf-8"))[POOL]["slots"])


def check_pool(streams: Iterable[Stream], slots: int) -> None:
    """Refuse streams whose tasks need more slots than the pool has, because they would wait for ever.

    :param slots: slots of the pool, as in ``include/pools.json``
    :raises ConfigurationError: with the stream and both numbers
    """
    for stream in streams:
        if stream.max_connections > slots:
            raise ConfigurationError(
                f"stream {stream.name!r}: max_connections: {stream.max_connections} is more than the "
                f"{slots} slots of the pool {POOL!r} in include/pools.json, so its tasks would wait for "
                f"ever; lower max_connections or give the pool more slots"
            )


def _document(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping) or not isinstance(content.get("streams"), list):
        raise ConfigurationError("needs a list under the key 'streams'")
    known = ("defaults", "expire_schedule", "late_schedule", "streams")
    for key in content:
        if key not in known:
            raise ConfigurationError(f"unknown key {key!r}; the keys at the top are {', '.join(known)}")
    return content


def _parse(content: Any) -> list[Stream]:
    document = _document(content)
    defaults = document.get("defaults") or {}
    if not isinstance(defaults, Mapping):
        raise ConfigurationError("'defaults' has to be a mapping of keys to values")
    return [_parse_stream(defaults, entry, number) for number, entry in enumerate(document["streams"], 1)]


def _parse_stream(defaults: Mapping[str, Any], entry: Any, number: int) -> Stream:
    if not isinstance(entry, Mapping):
        raise ConfigurationError(f"stream number {number}: has to be a mapping of keys to values")
    title = f"stream {entry['name']!r}" if "name" in entry else f"stream number {number}"
    try:
        return Stream.model_validate({**_with_new_keys(defaults), **_with_new_keys(entry)})
    except ValidationError as error:
        raise ConfigurationError(
            "; ".join(f"{title}: {_explain(problem)}" for problem in error.errors())
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"{title}: {error}") from None


def _with_new_keys(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the old key ``marker`` its present name, ``ready_object``.

    :raises ValueError: if both are given
    """
    if "marker" not in entry:
        return entry
    if "ready_object" in entry:
        raise ValueError("marker: it is the old name of 'ready_object', which is given too; remove 'marker'")
    return {("ready_object" if key == "marker" else key): value for key, value in entry.items()}


def _explain(problem: Any) -> str:
    key = ".".join(str(step) for step in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = Stream.model_fields if len(problem["loc"]) == 1 else ExpireRaw.model_fields
        near = difflib.get_close_matches(str(problem["loc"][-1]), fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(sorted(fields))}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        if len(problem["loc"]) > 1:
            return f"{key}: is missing; {problem['loc'][0]} needs it"
        return f"{key}: is missing; every stream needs it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def derived_names(stream: Stream) -> Mapping[str, Sequence[str]]:
    """The names that Airflow uses for a stream, by kind.

    They have to be unique: of two Dags with the same id only one is loaded, and a task that emits events of two
    assets with the same name fails.
    """
    dag = f"log_rollup_{stream.name}"
    return {
        "Dag": (dag,),
        "asset": (dag, f"{dag}_hours"),
        "task of log_rollup_late": (f"find_{stream.name}", f"rerun_{stream.name}"),
    }


def _refuse_equal_names(streams: Sequence[Stream]) -> None:
    counts = Counter(stream.name for stream in streams)
    for name, count in counts.items():
        if count > 1:
            raise ConfigurationError(f"stream {name!r}: there are {count} streams of this name; rename one")
    owners: dict[tuple[str, str], Stream] = {}
    for stream in streams:
        for kind, names in derived_names(stream).items():
            for name in names:
                other = owners.setdefault((kind, name), stream)
                if other is not stream:
                    raise ConfigurationError(
                        f"stream {stream.name!r}: name: its {kind} {name!r} has the same name as one of stream "
                        f"{other.name!r}; rename one of the two streams"
                    )


_RECORDS = "records of aggregated"


def _refuse_overlaps(streams: Sequence[Stream]) -> None:
    """Refuse templates that could match one key."""
    owners: list[tuple[Stream, str, Template]] = []
    exempt = set()
    for stream in streams:
        owners += [(stream, "raw", stream.raw), (stream, "aggregated", stream.aggregated)]
        if stream.aggregated.captures:
            # The template of the parts matches its own records by their form, but never takes them for parts.
            exempt.add((len(owners) - 1, len(owners)))
            owners.append((stream, _RECORDS, stream.aggregated.home_template(stream.name)))
    found = find_overlap([template for _, _, template in owners], exempt)
    if found is not None:
        one, key, template = owners[found.one]
        other, other_key, other_template = owners[found.other]
        example = (
            example_without_overlap(other_template, template, one.name)
            # The place of the records follows from other templates.
            if other_key == _RECORDS
            else example_without_overlap(template, other_template, other.name)
        )
        raise ConfigurationError(
            f"stream {one.name!r}: {key}: {template} overlaps with {other_key} {other_template} of stream "
            f"{other.name!r}: both could have s3://{template.bucket}/{found.key}; give each a prefix of its own"
            f"{example}"
        )
