"""The plan of an hour: which raw object lies in which part, and which shard packs it."""

import hashlib
import secrets
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

from include.log_rollup.errors import ListingError, UnsupportedInputError
from include.log_rollup.hour.layout import part_name, part_name_of_format_1, split_name
from include.log_rollup.storage.protocol import ObjectInfo
from include.log_rollup.units import format_size

# Raised whenever plan files are written in another form: a plan of another version is never packed, its hour is
# planned again.
PLAN_FORMAT = 2
# Raised whenever the same raw objects and options give other bytes.
FINGERPRINT_FORMAT = 1

PLAIN = ""
# Formats whose files, laid end to end, are again a file of the format that holds the contents end to end.
ENCODINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4")
# Containers, of which a reader would see the first or the last only.
NOT_JOINABLE = (".zip", ".7z", ".parquet", ".orc", ".avro")
# Endings of files that are not text: they never share a part with text and get no newline. Laid end to end, some
# of them can only be taken apart again by the offsets in the manifest.
OPAQUE = frozenset(
    (
        *(".snappy", ".sz", ".zz", ".zlib", ".deflate", ".br", ".z", ".lzo", ".lzma", ".lz", ".lzf", ".bz"),
        *(".gzip", ".zstd", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tar", ".rar", ".xlsx", ".jar"),
        *(".arrow", ".arrows", ".feather", ".pb", ".protobuf", ".msgpack", ".cbor", ".bson", ".avsc", ".rdb"),
        *(".pcap", ".pcapng", ".evtx", ".gpg", ".pgp", ".age", ".enc", ".bin", ".db", ".sqlite"),
    )
)
# A copy costs a task a request and the wait for it: an hour of copies is spread over shards by their number.
COPIES_PER_SHARD = 64
# A shard's files are read whole by its task and by validation, so tiny objects are spread by their number.
OBJECTS_PER_SHARD = 25_000


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How parts are written, as far as it decides what is written.

    :param ensure_newline: end each plain object with a newline, adding one where it is missing
    :param storage_class: of the parts; None for the bucket's own
    """

    ensure_newline: bool = False
    storage_class: str | None = None

    def room_for_newline(self, encoding: str) -> int:
        """How many bytes may be added behind each object of this encoding."""
        return 1 if self.ensure_newline and encoding == PLAIN else 0

    def describe(self, encoding: str, copied: bool) -> str:
        """The part of a fingerprint that is the same for all objects."""
        room = self.room_for_newline(encoding)
        return f"{FINGERPRINT_FORMAT} {encoding} {copied} {room} {self.storage_class}\n"


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part: whole raw objects end to end. ``copied`` says that S3 copies its one, oversize object.

    ``fingerprint`` is a digest of all that decides the part's bytes: its raw objects (key, size, ETag, in order)
    and the write options. The name holds the first 8 of its digits, so two parts of different content never have
    one name. ``split_of`` names the planned part of which this one was split off, if it was.
    """

    name: str
    encoding: str
    size: int
    copied: bool
    fingerprint: str
    objects: tuple[ObjectInfo, ...]
    split_of: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many listed objects are no input, by reason."""

    hidden: int = 0
    placeholders: int = 0
    markers: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts of an hour.

    :param content_id: the same if and only if the same parts would be written
    :param digests: of the raw objects of each encoding, in key order; see :class:`ObjectDigests`
    """

    content_id: str
    parts: tuple[PlannedPart, ...]
    left_out: LeftOut
    digests: Mapping[str, str]

    @property
    def objects(self) -> int:
        """How many raw objects the plan packs."""
        return sum(len(part.objects) for part in self.parts)

    @property
    def bytes_in(self) -> int:
        """How many bytes the raw objects have."""
        return sum(item.size for part in self.parts for item in part.objects)


@dataclass(frozen=True, slots=True)
class ShardRef:
    """What a mapped task is handed: never keys, only where to read them and what to expect."""

    stream: str
    hour: str
    plan_id: str
    shard: int
    first_part: int
    parts: int
    objects: int
    bytes: int

    @property
    def title(self) -> str:
        """The shard by name, for the grid."""
        last = self.first_part + self.parts - 1
        span = f"part {last}" if self.parts == 1 else f"parts {self.first_part}-{last}"
        return f"{span}: {self.objects:,} objects, {format_size(self.bytes)}"


class ObjectDigests:
    """Digests of raw objects, one for each encoding, from rows in key order.

    The planner makes them from its listing, the validator from its own: where they are equal, the raw hour is what
    was planned, without holding both in memory.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, hashlib.blake2b] = {}

    def add(self, rows: Iterable[ObjectInfo]) -> None:
        """Take rows of any encodings, in key order."""
        texts: dict[str, list[str]] = {}
        for row in rows:
            texts.setdefault(encoding_of(row.key), []).append(_row_text(row))
        for encoding, rows_text in texts.items():
            self.add_text(encoding, "".join(rows_text))

    def add_text(self, encoding: str, text: str) -> None:
        """Take rows of one encoding as :func:`_row_text` writes them."""
        if encoding not in self._hashes:
            self._hashes[encoding] = hashlib.blake2b(digest_size=16)
        self._hashes[encoding].update(text.encode())

    def result(self) -> dict[str, str]:
        """The digest of each encoding that occurred, in hexadecimal."""
        return {encoding: found.hexdigest() for encoding, found in sorted(self._hashes.items())}


def _row_text(row: ObjectInfo) -> str:
    # Length first, so that no two lists of keys can give the same text.
    return f"{len(row.key)} {row.key} {row.size} {row.etag}\n"


def encoding_of(key: str) -> str:
    """The encoding of an object by its name: ``.gz``, ``.zst``, … or the empty string for plain.

    Objects of an ending that is known not to be text (:data:`OPAQUE`) have that ending as their encoding.

    :raises UnsupportedInputError: for containers, which cannot be joined end to end
    """
    ending = key[key.rfind(".") :].lower()
    if ending in ENCODINGS or ending in OPAQUE:
        return ending
    if ending in NOT_JOINABLE:
        raise UnsupportedInputError(
            f"{key}: {ending} files cannot be joined end to end; move the object out of the raw prefix, or give "
            f"it a name that begins with '_' to have it left out"
        )
    return PLAIN


class InputFilter:
    """Separates the objects of an hour from what is not input, and counts the latter.

    :param prefix: raw prefix of the hour
    :param ready_object: name of the stream's ready object below it, if it has one
    """

    def __init__(self, prefix: str, ready_object: str | None) -> None:
        self._start = len(prefix)
        self._ready_object = ready_object
        self._hidden = self._placeholders = self._ready_objects = 0

    def keep(self, rows: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        """The input among some listed objects.

        Left out are hidden ones (a step of the path begins with ``_`` or ``.``), empty folder placeholders, and
        the ready object.
        """
        kept: list[ObjectInfo] = []
        for item in rows:
            name = item.key[self._start :]
            if name == self._ready_object:
                self._ready_objects += 1
            elif is_hidden(name):
                self._hidden += 1
            elif item.size == 0 and (name.endswith("/") or not name):
                self._placeholders += 1
            else:
                kept.append(item)
        return kept

    @property
    def left_out(self) -> LeftOut:
        """How many objects were left out so far, by reason."""
        return LeftOut(self._hidden, self._placeholders, self._ready_objects)


def select(
    listed: Sequence[ObjectInfo], prefix: str, ready_object: str | None
) -> tuple[Sequence[ObjectInfo], LeftOut]:
    """The input of an hour, and how many objects were left out; see :class:`InputFilter`.

    :param listed: in key order, as :mod:`include.log_rollup.storage.listing` returns them
    """
    wanted = InputFilter(prefix, ready_object)
    chosen = wanted.keep(listed)
    return listed if len(chosen) == len(listed) else chosen, wanted.left_out


def is_hidden(name: str) -> bool:
    """Whether Spark, Hive, Athena and Trino would pass an object of this relative name over."""
    return name.startswith(("_", ".")) or "/_" in name or "/." in name


def make_plan(
    chosen: Sequence[ObjectInfo],
    left_out: LeftOut,
    part_size: int,
    options: WriteOptions,
    *,
    kept_names: Mapping[tuple[int, str], str] | None = None,
    taken: Container[str] = (),
) -> Plan:
    """Fill parts in key order, the objects of each encoding into parts of their own.

    :param chosen: the input in key order
    :param part_size: of a part, in bytes; a larger object becomes a part by itself
    :param kept_names: names of parts that are there already, by index and fingerprint
    :param taken: names that no part may get: they belong to somebody else, or are about to be deleted
    :raises ListingError: if a key is there twice
    :raises UnsupportedInputError: if an object cannot be joined end to end
    """
    _refuse_twice(chosen)
    encodings = {encoding_of(item.key) for item in chosen}
    digests = ObjectDigests()
    parts: list[PlannedPart] = []
    usual = True
    digest = hashlib.blake2b(f"{FINGERPRINT_FORMAT}\n".encode(), digest_size=10)
    for encoding in sorted(encodings):
        room = options.room_for_newline(encoding)
        # A list of a million objects is not copied where that can be avoided.
        one_encoding = len(encodings) == 1
        items = chosen if one_encoding else [item for item in chosen if encoding_of(item.key) == encoding]
        for members, copied in _fill(items, part_size, room):
            index = len(parts)
            text = "".join(map(_row_text, members))
            digests.add_text(encoding, text)
            fingerprint = _fingerprint(options, encoding, copied, text)
            name = (kept_names or {}).get((index, fingerprint))
            if name is None or name in taken:
                name = _free_name(index, encoding, fingerprint, taken)
            usual = usual and name == part_name(index, encoding, fingerprint[:8])
            # The name of format 1, so that the same content has the same plan in both.
            digest.update(f"{part_name_of_format_1(index, encoding)} {fingerprint}\n".encode())
            size = sum(item.size for item in members)
            parts.append(PlannedPart(name, encoding, size, copied, fingerprint, tuple(members)))
    if not usual:
        digest.update("".join(f"{part.name}\n" for part in parts).encode())
    return Plan(digest.hexdigest(), tuple(parts), left_out, digests.result())


def new_plan_id(content_id: str) -> str:
    """An id for the files of a plan, which no other try to plan the hour uses: ``<content_id>-5b0e66aa``.

    So what an earlier run deletes or writes late never hits the files of this one.
    """
    return f"{content_id}-{secrets.token_hex(4)}"


def content_id_of(plan_id: str) -> str:
    """The part of a plan's id that says which parts it has."""
    return plan_id.partition("-")[0]


def _refuse_twice(chosen: Sequence[ObjectInfo]) -> None:
    for before, item in pairwise(chosen):
        if before.key >= item.key:
            raise ListingError(
                f"the key {item.key!r} was listed twice, so the plan would pack it twice. The listing of this "
                f"server cannot be trusted: repair or update the server, then clear the task."
            )


def _fingerprint(options: WriteOptions, encoding: str, copied: bool, rows_text: str) -> str:
    text = options.describe(encoding, copied) + rows_text
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _free_name(index: int, encoding: str, fingerprint: str, taken: Container[str]) -> str:
    name = part_name(index, encoding, fingerprint[:8])
    for attempt in count(1):
        if name not in taken:
            break
        tag = hashlib.blake2b(f"{fingerprint} {attempt}".encode(), digest_size=4).hexdigest()
        name = part_name(index, encoding, tag)
    return name


def split_part(
    part: PlannedPart, options: WriteOptions, groups: Iterable[Sequence[ObjectInfo]]
) -> list[PlannedPart]:
    """The parts that hold the objects of one part between them, each group in a part of its own.

    :param part: as planned
    :param groups: all of its objects, each in one group
    """
    parts = []
    for members in groups:
        # With the name of the planned part, so that no other part is ever split into parts of the same names.
        text = "".join((f"{part.name}\n", *map(_row_text, members)))
        fingerprint = _fingerprint(options, part.encoding, False, text)
        name = split_name(part.name, fingerprint[:8])
        size = sum(item.size for item in members)
        parts.append(PlannedPart(name, part.encoding, size, False, fingerprint, tuple(members), part.name))
    return parts


def _fill(
    items: Sequence[ObjectInfo], part_size: int, slack: int
) -> Iterator[tuple[Sequence[ObjectInfo], bool]]:
    members: list[ObjectInfo] = []
    used = 0
    for item in items:
        # An empty object gets no newline, so it needs no room for one.
        room = item.size + slack if item.size else 0
        if used + room > part_size and members:
            yield members, False
            members, used = [], 0
        if room > part_size:
            yield [item], True
        else:
            members.append(item)
            used += room
    if members:
        yield members, False


def make_shards(plan: Plan, shard_size: int, max_shards: int) -> list[Sequence[PlannedPart]]:
    """Cut the parts into runs of about equal bytes; of about equal numbers of objects, where those are tiny.

    :param shard_size: bytes that one task is to pack, about
    :param max_shards: the most runs there may be
    :returns: runs of parts in order, none empty
    """
    if not plan.parts:
        return []
    # No bytes of a copied part pass through the task, so its size does not count.
    copy_weight = max(1, shard_size // COPIES_PER_SHARD)
    weights = [copy_weight if part.copied else max(part.size, 1) for part in plan.parts]
    by_bytes = -(-sum(weights) // shard_size)
    by_objects = -(-plan.objects // OBJECTS_PER_SHARD)
    if by_objects > by_bytes:
        weights = [len(part.objects) for part in plan.parts]
    total = sum(weights)
    wanted = max(1, min(max_shards, len(plan.parts), max(by_bytes, by_objects)))
    edges = [0]
    done = 0
    for index, weight in enumerate(weights):
        # A part goes where its middle lies on the line of all bytes.
        if (done + weight / 2) * wanted >= len(edges) * total and index > edges[-1]:
            edges.append(index)
        done += weight
    edges.append(len(plan.parts))
    return [plan.parts[start:end] for start, end in pairwise(edges)]


def shard_refs(
    stream: str, hour: str, plan_id: str, shards: Sequence[Sequence[PlannedPart]]
) -> list[ShardRef]:
    """One small reference for each shard."""
    refs = []
    first_part = 0
    for number, parts in enumerate(shards):
        objects = sum(len(part.objects) for part in parts)
        size = sum(part.size for part in parts)
        refs.append(ShardRef(stream, hour, plan_id, number, first_part, len(parts), objects, size))
        first_part += len(parts)
    return refs
