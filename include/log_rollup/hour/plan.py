"""The plan of an hour: which part holds which raw objects, and which shard packs it."""

import hashlib
import json
import math
import secrets
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from urllib.parse import quote, urlencode

from include.log_rollup import compression
from include.log_rollup.compression import Codec, codec_of
from include.log_rollup.decompression import COMPRESSED_ENCODINGS
from include.log_rollup.errors import ListingError, UnsupportedInputError
from include.log_rollup.hour.layout import (
    folder_of,
    part_index,
    part_name,
    part_name_of_format_1,
    split_name,
)
from include.log_rollup.hour.selection import NOT_JOINABLE, PLAIN, LeftOut, Unjoinable, encoding_of
from include.log_rollup.newlines import newline_of
from include.log_rollup.storage.protocol import ObjectInfo
from include.log_rollup.storage_options import ARCHIVE_CLASSES
from include.log_rollup.units import MIB, format_size

# Increase it when the form of plan files changes. A plan of another format is never packed; its hour is planned
# again.
PLAN_FORMAT = 2
# Increase it when the same raw objects and options give other bytes.
FINGERPRINT_FORMAT = 1

# A copy costs a task one request and the wait for it, so copies are spread over shards by their number.
COPIES_PER_SHARD = 64
# The files of a shard are read into memory, so tiny objects are spread over shards by their number.
OBJECTS_PER_SHARD = 25_000
# Parts of raw bytes are held in memory as a whole, compressed parts only frame by frame.
LARGEST_UNCOMPRESSED_PART_BYTES = 32 * MIB
ROWS_PER_DIGEST_UPDATE = 10_000


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """The settings that determine the bytes of a part and how it is stored, besides its raw objects.

    :param ensure_newline: whether a newline is added after each object whose content does not end with one
    :param storage_class: of the parts; None for the bucket's default
    :param tags: of the parts, sorted by key
    :param kms_key_id: KMS key that encrypts the parts; None for the bucket's default encryption
    :param compression: of the parts that hold plain objects: zstd, gzip, or empty for none
    :param compression_level: None for the format's default
    :param recompress: whether compressed objects are decompressed and share compressed parts with plain ones
    """

    ensure_newline: bool = False
    storage_class: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    kms_key_id: str | None = None
    compression: str = ""
    compression_level: int | None = None
    recompress: bool = False

    @property
    def codec(self) -> Codec | None:
        """What compresses the parts of plain objects; None if nothing does."""
        return codec_of(self.compression, self.compression_level) if self.compression else None

    def compresses(self, encoding: str) -> bool:
        """Whether objects of this encoding are compressed."""
        return bool(self.compression) and encoding == PLAIN

    def encoding_in_part(self, item: ObjectInfo, part_size: int) -> str:
        """The encoding of a raw object in its part: that of its name, or plain if it is recompressed.

        :param part_size: of the stream
        """
        encoding = encoding_of(item.key)
        if not (self.recompress and encoding in COMPRESSED_ENCODINGS):
            return encoding
        most = min(compression.LARGEST_RECOMPRESSED_BYTES, part_size)
        return PLAIN if item.size <= most else encoding

    def part_bytes(self, encoding: str, part_size: int) -> int:
        """The maximum size of a part of this encoding: of its raw objects, in bytes.

        :param part_size: of the stream
        """
        if not self.compression or self.compresses(encoding):
            return part_size
        return min(part_size, LARGEST_UNCOMPRESSED_PART_BYTES)

    def largest_object(self, encoding: str, part_size: int) -> int:
        """The largest object that shares a part with others; a larger one is copied to a part of its own."""
        most = self.part_bytes(encoding, part_size)
        return min(most, compression.LARGEST_FRAME_BYTES) if self.compresses(encoding) else most

    def room_for_newline(self, encoding: str) -> int:
        """Number of bytes that may be added after each object of this encoding."""
        return len(newline_of(encoding)) if self.ensure_newline else 0

    def describe(self, encoding: str, copied: bool, recompressed: bool = False) -> str:
        """The text of a fingerprint before the raw objects.

        :param recompressed: whether the part has recompressed objects
        """
        # Nothing is added to a copied object. With the room for a newline, as earlier versions wrote it for plain
        # ones, so that they keep their fingerprint.
        room = self.room_for_newline(encoding) if encoding == PLAIN or not copied else 0
        # Only if they are set: parts that were written before these options existed keep their fingerprint.
        more = f" tags={json.dumps(self.tags)}" if self.tags else ""
        more += f" kms_key_id={json.dumps(self.kms_key_id)}" if self.kms_key_id else ""
        codec = self.codec
        if codec is not None and not copied and self.compresses(encoding):
            more += f" compression={codec.describe()} {compression.FRAME_BYTES}"
        if recompressed:
            more += f" recompress={compression.RECOMPRESSION_FORMAT} {compression.LARGEST_FRAME_BYTES}"
        return f"{FINGERPRINT_FORMAT} {encoding} {copied} {room} {self.storage_class}{more}\n"

    @property
    def is_archived(self) -> bool:
        """Whether parts are written to a class whose objects cannot be read at once."""
        return self.storage_class in ARCHIVE_CLASSES

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request that creates a part: PutObject, CopyObject or CreateMultipartUpload."""
        headers = {}
        if self.storage_class:
            headers["x-amz-storage-class"] = self.storage_class
        if self.tags:
            headers["x-amz-tagging"] = urlencode(self.tags, quote_via=quote)
        if self.kms_key_id:
            headers["x-amz-server-side-encryption"] = "aws:kms"
            headers["x-amz-server-side-encryption-aws-kms-key-id"] = self.kms_key_id
        return headers


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part: whole raw objects, concatenated.

    :param size: of its raw objects, in bytes
    :param copied: whether S3 copies its only object, which is larger than a part
    :param fingerprint: digest of everything that determines its bytes: raw objects (key, size, ETag, in order) and
        write options. The name has its first 8 digits, so parts of different content have different names.
    :param split_of: name of the planned part that this one was split off; empty if it was not
    :param compression: of the part, besides that of its raw objects: zstd, gzip, or empty for none
    :param recompressed: whether its compressed objects are decompressed before they are packed
    """

    name: str
    encoding: str
    size: int
    copied: bool
    fingerprint: str
    objects: tuple[ObjectInfo, ...]
    split_of: str = ""
    compression: str = ""
    recompressed: bool = False

    def is_recompressed(self, item: ObjectInfo) -> bool:
        """Whether one of its raw objects is decompressed before it is packed."""
        return self.recompressed and item.size > 0 and encoding_of(item.key) in COMPRESSED_ENCODINGS

    def planned_content(self, item: ObjectInfo) -> int:
        """The assumed size of the content of one of its raw objects, in bytes."""
        return item.size * compression.PLANNED_RATIO if self.is_recompressed(item) else item.size


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts of an hour.

    :param content_id: equal for two plans if and only if they have the same parts
    :param digests: of the listed input; see :class:`ObjectDigests`
    :param in_key_order: whether the objects of each encoding of each group are in key order over all parts
    :param kept: names of the parts that exist already and stay as they are
    """

    content_id: str
    parts: tuple[PlannedPart, ...]
    left_out: LeftOut
    digests: Mapping[str, str]
    in_key_order: bool = True
    kept: frozenset[str] = frozenset()

    @property
    def objects(self) -> int:
        """Number of raw objects."""
        return sum(len(part.objects) for part in self.parts)

    @property
    def bytes_in(self) -> int:
        """Size of the raw objects, in bytes."""
        return sum(item.size for part in self.parts for item in part.objects)


@dataclass(frozen=True, slots=True)
class ShardRef:
    """The argument of a mapped task: no keys, only where to read them, and totals. The size is in bytes.

    The totals are those of the parts to pack, without the parts that are kept.

    :param first_part: index of the first part; -1 if the indices of the parts do not follow each other
    :param groups: number of groups of its parts; 0 for a stream without groups
    """

    stream: str
    hour: str
    plan_id: str
    shard: int
    first_part: int
    parts: int
    objects: int
    bytes: int
    groups: int = 0

    @property
    def title(self) -> str:
        """The name of the shard in Airflow's grid."""
        last = self.first_part + self.parts - 1
        if self.groups:
            # The parts are numbered within each group.
            span = f"{_counted(self.parts, 'part')} of {_counted(self.groups, 'group')}"
        elif self.first_part < 0:
            span = _counted(self.parts, "part")
        else:
            span = f"part {last}" if self.parts == 1 else f"parts {self.first_part}-{last}"
        return f"{span}: {self.objects:,} objects, {format_size(self.bytes)}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class ObjectDigests:
    """Digests of raw objects, one for each encoding of each group.

    Planning and validation each digest their own listing. If the digests are equal, the raw hour is what was
    planned; so the two listings need not be in memory at the same time.
    """

    def __init__(self, folder_of_key: Callable[[str], str] | None = None) -> None:
        self._folder_of_key = folder_of_key
        self._hashes: dict[str, hashlib.blake2b] = {}

    def add(self, rows: Iterable[ObjectInfo]) -> None:
        """Add rows of any encodings, in key order."""
        remaining = iter(rows)
        folder_of_key = self._folder_of_key
        # The text of a million rows at once would take 300 MiB.
        while some := list(islice(remaining, ROWS_PER_DIGEST_UPDATE)):
            texts: dict[str, list[str]] = {}
            for row in some:
                kind = encoding_of(row.key)
                if folder_of_key is not None:
                    kind = folder_of_key(row.key) + kind
                texts.setdefault(kind, []).append(_row_text(row))
            for kind, rows_text in texts.items():
                self.add_text(kind, "".join(rows_text))

    def add_text(self, kind: str, text: str) -> None:
        """Add rows of one group and encoding, as :func:`_row_text` writes them.

        :param kind: folder of the group and encoding
        """
        if kind not in self._hashes:
            self._hashes[kind] = hashlib.blake2b(digest_size=16)
        self._hashes[kind].update(text.encode())

    def result(self) -> dict[str, str]:
        """The digests in hexadecimal, by folder and encoding."""
        return {kind: found.hexdigest() for kind, found in sorted(self._hashes.items())}


def digest_of(digests: Mapping[str, str]) -> str:
    """One digest of a raw hour, from those of :class:`ObjectDigests`."""
    text = json.dumps(sorted(digests.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _row_text(row: ObjectInfo) -> str:
    # The length of the key comes first, so that different keys never give the same text.
    return f"{len(row.key)} {row.key} {row.size} {row.etag}\n"


@dataclass(frozen=True, slots=True)
class KeptParts:
    """The parts that a rerun takes from the manifest, each with its raw objects as they were packed.

    :param stay: parts that stay as they are, in the order of the manifest
    :param again: parts that are lost or damaged, and are packed again as they were
    :param rest: the input that none of these parts holds, in key order; None if no part is kept
    """

    stay: Sequence[PlannedPart] = ()
    again: Sequence[PlannedPart] = ()
    rest: Sequence[ObjectInfo] | None = None


NOTHING_KEPT = KeptParts()


def make_plan(
    chosen: Sequence[ObjectInfo],
    left_out: LeftOut,
    part_size: int,
    options: WriteOptions,
    *,
    unjoinable: Unjoinable = "stop",
    folder_of_key: Callable[[str], str] | None = None,
    kept_names: Mapping[tuple[str, int, str], str] | None = None,
    taken: Container[str] = (),
    kept: KeptParts = NOTHING_KEPT,
) -> Plan:
    """Fill parts in key order, separately for each group and encoding. A container gets a part of its own.

    Parts of the manifest may be kept. The other objects then go into parts with the next indices of their group,
    so that of two versions of a raw object the newer one is in the part with the higher index.

    :param chosen: the input in key order
    :param part_size: maximum size of the raw objects of a part, in bytes; a larger object gets a part of its own
    :param unjoinable: "stop" refuses containers
    :param folder_of_key: the folder of the group of a key; None without groups
    :param kept_names: names of existing parts, by folder, index and fingerprint
    :param taken: names that no part may get: of foreign objects, and of parts under removal
    :raises ListingError: if a key is listed twice
    :raises UnsupportedInputError: if an object cannot be concatenated
    """
    _refuse_duplicates(chosen)
    rest = chosen if kept.rest is None else kept.rest
    encodings = {encoding_of(item.key) for item in rest}
    if unjoinable == "stop" and not encodings.isdisjoint(NOT_JOINABLE):
        _refuse_unjoinable(rest)
    is_fresh = not (kept.stay or kept.again)
    digests = ObjectDigests(folder_of_key)
    naming = _Naming(kept_names or {}, taken)
    parts: list[PlannedPart] = [*kept.stay, *(naming.rename(part) for part in kept.again)]
    next_index = _next_indices(parts)
    for folder, encoding, items in _by_kind(rest, encodings, folder_of_key, part_size, options):
        codec = options.codec if options.compresses(encoding) else None
        index = next_index.get(folder, 0)
        for members, copied in _fill(items, encoding, part_size, options):
            extension = encoding if copied or codec is None else codec.extension
            text = "".join(map(_row_text, members))
            recompressed = encoding == PLAIN and options.recompress and _has_compressed(members)
            if is_fresh and not options.recompress:
                digests.add_text(folder + encoding, text)
            fingerprint = _fingerprint(options, encoding, copied, (text,), recompressed)
            name = naming.name(folder, index, extension, fingerprint)
            size = sum(item.size for item in members)
            format_of_part = "" if copied or codec is None else options.compression
            parts.append(
                PlannedPart(
                    name,
                    encoding,
                    size,
                    copied,
                    fingerprint,
                    tuple(members),
                    compression=format_of_part,
                    recompressed=recompressed,
                )
            )
            index += 1
        next_index[folder] = index
    if options.recompress or not is_fresh:
        digests.add(chosen)
    if not is_fresh:
        parts.sort(key=_place)
    return Plan(
        _content_id(parts),
        tuple(parts),
        left_out,
        digests.result(),
        is_fresh and not (options.recompress and _is_divided(parts)),
        frozenset(part.name for part in kept.stay),
    )


def _is_divided(parts: Iterable[PlannedPart]) -> bool:
    """Whether some of the compressed objects are recompressed and others are not, because of their size."""
    kinds = {
        part.recompressed for part in parts if part.recompressed or part.encoding in COMPRESSED_ENCODINGS
    }
    return len(kinds) > 1


@dataclass(frozen=True, slots=True)
class _Naming:
    """Gives parts their names.

    :param kept: names of existing parts, by folder, index and fingerprint
    :param taken: names that no part may get
    """

    kept: Mapping[tuple[str, int, str], str]
    taken: Container[str]

    def name(self, folder: str, index: int, extension: str, fingerprint: str) -> str:
        """The name of a part that is to be packed."""
        name = self.kept.get((folder, index, fingerprint))
        if name is None or name in self.taken:
            return _free_name(folder, index, extension, fingerprint, self.taken)
        return name

    def rename(self, part: PlannedPart) -> PlannedPart:
        """A part of the manifest that is packed again, perhaps with another name."""
        name = self.name(*_folder_index_extension(part.name), part.fingerprint)
        return part if name == part.name else replace(part, name=name)


def _folder_index_extension(name: str) -> tuple[str, int, str]:
    folder = folder_of(name)
    return folder, part_index(name) or 0, name[len(folder) :].partition(".log")[2]


def _place(part: PlannedPart) -> tuple[str, int]:
    """Where a part is in the order of a plan; parts that were split off one part keep their order."""
    return folder_of(part.name), part_index(part.name) or 0


def _next_indices(parts: Iterable[PlannedPart]) -> dict[str, int]:
    """The index of the next part of each folder that has parts."""
    found: dict[str, int] = {}
    for part in parts:
        folder, index = _place(part)
        found[folder] = max(found.get(folder, 0), index + 1)
    return found


def _content_id(parts: Sequence[PlannedPart]) -> str:
    digest = hashlib.blake2b(f"{FINGERPRINT_FORMAT}\n".encode(), digest_size=10)
    default_names = True
    for part in parts:
        folder, index, extension = _folder_index_extension(part.name)
        default_names = default_names and part.name == folder + part_name(
            index, extension, part.fingerprint[:8]
        )
        # With the name of format 1, so that the same content has the same id in both formats.
        name = folder + part_name_of_format_1(index, extension)
        digest.update(f"{name} {part.fingerprint}\n".encode())
    if not default_names:
        digest.update("".join(f"{part.name}\n" for part in parts).encode())
    return digest.hexdigest()


def _has_compressed(members: Iterable[ObjectInfo]) -> bool:
    return any(encoding_of(item.key) in COMPRESSED_ENCODINGS for item in members)


def _by_kind(
    chosen: Sequence[ObjectInfo],
    encodings: Collection[str],
    folder_of_key: Callable[[str], str] | None,
    part_size: int,
    options: WriteOptions,
) -> Iterator[tuple[str, str, Sequence[ObjectInfo]]]:
    """The objects of each group and encoding in the parts, with the folder and the encoding, in order."""
    recompress = options.recompress and not COMPRESSED_ENCODINGS.isdisjoint(encodings)
    if folder_of_key is None and len(encodings) == 1 and not recompress:
        # Don't copy a list of a million objects if there is only one encoding.
        yield "", next(iter(encodings)), chosen
        return
    kinds: dict[tuple[str, str], list[ObjectInfo]] = {}
    for item in chosen:
        folder = folder_of_key(item.key) if folder_of_key else ""
        encoding = options.encoding_in_part(item, part_size) if recompress else encoding_of(item.key)
        kinds.setdefault((folder, encoding), []).append(item)
    for (folder, encoding), items in sorted(kinds.items()):
        yield folder, encoding, items


def new_plan_id(content_id: str) -> str:
    """A unique id for a plan: its content id and 8 random digits, such as ``<content_id>-5b0e66aa``.

    So a late write or delete of an earlier run never hits the files of this plan.
    """
    return f"{content_id}-{secrets.token_hex(4)}"


def content_id_of(plan_id: str) -> str:
    """The content id of a plan, by its id; see :class:`Plan`."""
    return plan_id.partition("-")[0]


def without_folder(part: PlannedPart) -> PlannedPart:
    """A part with the names that it has in the manifest of its group."""
    start = len(folder_of(part.name))
    return replace(part, name=part.name[start:], split_of=part.split_of[start:])


def _refuse_duplicates(chosen: Sequence[ObjectInfo]) -> None:
    for before, item in pairwise(chosen):
        if before.key >= item.key:
            raise ListingError(
                f"the key {item.key!r} was listed twice, so the plan would pack it twice. The listing of this "
                f"server cannot be trusted: repair or update the server, then clear the task."
            )


def _refuse_unjoinable(chosen: Sequence[ObjectInfo]) -> None:
    key = next(item.key for item in chosen if encoding_of(item.key) in NOT_JOINABLE)
    raise UnsupportedInputError(
        f"{key}: {encoding_of(key)} files cannot be joined end to end. Set 'unjoinable: copy' for the stream to "
        f"give each of them a part of its own, or 'unjoinable: skip' to leave them out; or move the object out of "
        f"the raw prefix"
    )


def is_planned_with(part: PlannedPart, options: WriteOptions) -> bool:
    """Whether a planned part has the fingerprint that these options give."""
    return part.fingerprint == _fingerprint(
        options, part.encoding, part.copied, _row_texts(part.objects), part.recompressed
    )


def _row_texts(objects: Iterable[ObjectInfo]) -> Iterator[str]:
    """The text of the rows, in pieces: that of a part of a million tiny objects would take 100 MiB."""
    rows = iter(objects)
    while some := list(islice(rows, ROWS_PER_DIGEST_UPDATE)):
        yield "".join(map(_row_text, some))


def is_packed_as_planned(part: PlannedPart, options: WriteOptions) -> bool:
    """Whether these options give the bytes and the storage settings that a planned part is named by."""
    if is_planned_with(part, options):
        return True
    # An earlier version planned it: see gets_newlines().
    without_newlines = replace(options, ensure_newline=False)
    return options.ensure_newline and part.encoding != PLAIN and is_planned_with(part, without_newlines)


def is_planned_again(part: PlannedPart, part_size: int, options: WriteOptions) -> bool:
    """Whether a part of the manifest would be planned in the same way with these options.

    :param part_size: maximum size of the raw objects of a part, in bytes
    """
    codec = options.codec if options.compresses(part.encoding) and not part.copied else None
    if part.compression != (options.compression if codec else "") or not is_planned_with(part, options):
        return False
    if any(options.encoding_in_part(item, part_size) != part.encoding for item in part.objects):
        # Since then, recompression was turned on or off.
        return False
    return list(_fill(part.objects, part.encoding, part_size, options)) == [(list(part.objects), part.copied)]


def gets_newlines(part: PlannedPart, options: WriteOptions) -> bool:
    """Whether newlines are added to the objects of a part.

    They are not if an earlier version planned it, which added them to plain objects only: its name means those
    bytes.
    """
    if not options.room_for_newline(part.encoding):
        return False
    return part.encoding == PLAIN or not is_planned_with(part, replace(options, ensure_newline=False))


def _fingerprint(
    options: WriteOptions, encoding: str, copied: bool, row_texts: Iterable[str], recompressed: bool
) -> str:
    digest = hashlib.blake2b(options.describe(encoding, copied, recompressed).encode(), digest_size=16)
    for text in row_texts:
        digest.update(text.encode())
    return digest.hexdigest()


def _free_name(folder: str, index: int, extension: str, fingerprint: str, taken: Container[str]) -> str:
    name = folder + part_name(index, extension, fingerprint[:8])
    for attempt in count(1):
        if name not in taken:
            break
        tag = hashlib.blake2b(f"{fingerprint} {attempt}".encode(), digest_size=4).hexdigest()
        name = folder + part_name(index, extension, tag)
    return name


def split_part(
    part: PlannedPart, options: WriteOptions, groups: Iterable[Sequence[ObjectInfo]]
) -> list[PlannedPart]:
    """Split a part into several, one for each group of its objects.

    :param part: as planned
    :param groups: all its objects, each in one group
    """
    return [_split_off(part, options, members, part.encoding, part.compression) for members in groups]


def split_recompressed(
    part: PlannedPart, options: WriteOptions, kept: Iterable[ObjectInfo], others: Sequence[ObjectInfo]
) -> list[PlannedPart]:
    """Split a part: some objects of it keep their bytes, each in a part of its own encoding.

    :param part: as planned, with recompressed objects
    :param kept: the objects that keep their bytes
    :param others: all its other objects; their part comes last, if there are any
    """
    parts = [_split_off(part, options, [item], encoding_of(item.key), "") for item in kept]
    return parts + ([_split_off(part, options, others, part.encoding, part.compression)] if others else [])


def _split_off(
    part: PlannedPart,
    options: WriteOptions,
    members: Sequence[ObjectInfo],
    encoding: str,
    compression_of_part: str,
) -> PlannedPart:
    # Includes the name of the planned part: parts of different planned parts never get the same name.
    text = "".join((f"{part.name}\n", *map(_row_text, members)))
    recompressed = part.recompressed and encoding == part.encoding
    fingerprint = _fingerprint(options, encoding, False, (text,), recompressed)
    name = split_name(part.name, fingerprint[:8], None if encoding == part.encoding else encoding)
    size = sum(item.size for item in members)
    return PlannedPart(
        name, encoding, size, False, fingerprint, tuple(members), part.name,
        compression_of_part, recompressed,
    )  # fmt: skip


def _fill(
    items: Sequence[ObjectInfo], encoding: str, part_size: int, options: WriteOptions
) -> Iterator[tuple[Sequence[ObjectInfo], bool]]:
    """The objects of each part, and whether S3 copies it."""
    part_bytes = options.part_bytes(encoding, part_size)
    largest = options.largest_object(encoding, part_size)
    newline_room = options.room_for_newline(encoding)
    alone = encoding in NOT_JOINABLE
    recompress = options.recompress and encoding == PLAIN
    members: list[ObjectInfo] = []
    used = 0
    for item in items:
        # An empty object gets no newline.
        room = item.size + newline_room if item.size else 0
        is_large = room > largest
        if recompress and encoding_of(item.key) in COMPRESSED_ENCODINGS:
            room, is_large = item.size * compression.PLANNED_RATIO, False
        if members and (alone or is_large or used + room > part_bytes):
            yield members, False
            members, used = [], 0
        if is_large:
            yield [item], True
        else:
            members.append(item)
            used += room
    if members:
        yield members, False


def make_shards(plan: Plan, shard_size: int, max_shards: int) -> list[Sequence[PlannedPart]]:
    """Divide the parts into shards of about equal size, or of about equal numbers of objects if those are tiny.

    The size of a part that is kept does not count, because its bytes don't pass through a task.

    :param shard_size: target size of a shard, in bytes
    :param max_shards: maximum number of shards
    :returns: the parts of each shard, in order; no shard is empty
    """
    if not plan.parts:
        return []
    # The bytes of a copied part don't pass through the task, so its size does not count.
    copy_weight = max(1, shard_size // COPIES_PER_SHARD)
    weights: list[float] = [
        0 if part.name in plan.kept else copy_weight if part.copied else max(_bytes_to_pack(part), 1)
        for part in plan.parts
    ]
    by_bytes = -(-int(sum(weights)) // shard_size)
    by_objects = -(-plan.objects // OBJECTS_PER_SHARD)
    if plan.kept:
        # Kept parts have only objects, the others have bytes, too.
        weights = [
            weight / shard_size + len(part.objects) / OBJECTS_PER_SHARD
            for weight, part in zip(weights, plan.parts, strict=True)
        ]
        by_objects = max(by_objects, math.ceil(sum(weights)))
    elif by_objects > by_bytes:
        weights = [len(part.objects) for part in plan.parts]
    total = sum(weights)
    wanted = max(1, min(max_shards, len(plan.parts), max(by_bytes, by_objects)))
    edges = [0]
    done = 0.0
    for index, weight in enumerate(weights):
        # A part belongs to the shard in whose share of all bytes its middle lies.
        if (done + weight / 2) * wanted >= len(edges) * total and index > edges[-1]:
            edges.append(index)
        done += weight
    edges.append(len(plan.parts))
    return [plan.parts[start:end] for start, end in pairwise(edges)]


def _bytes_to_pack(part: PlannedPart) -> int:
    return sum(map(part.planned_content, part.objects)) if part.recompressed else part.size


def shard_refs(
    stream: str,
    hour: str,
    plan_id: str,
    shards: Sequence[Sequence[PlannedPart]],
    kept: Container[str] = frozenset(),
) -> list[ShardRef]:
    """One reference for each shard.

    :param stream: name of the stream
    :param kept: names of the parts that are kept; a shard that has no others gets a reference without parts
    """
    refs = []
    first_part = 0
    for number, shard in enumerate(shards):
        parts = [part for part in shard if part.name not in kept] if kept else shard
        objects = sum(len(part.objects) for part in parts)
        size = sum(part.size for part in parts)
        groups = len({folder_of(part.name) for part in parts} - {""})
        first = _first_index(parts) if kept else first_part
        refs.append(ShardRef(stream, hour, plan_id, number, first, len(parts), objects, size, groups))
        first_part += len(parts)
    return refs


def _first_index(parts: Sequence[PlannedPart]) -> int:
    indices = [part_index(part.name) or 0 for part in parts]
    follow = all(one + 1 == other for one, other in pairwise(indices))
    return indices[0] if indices and follow else -1
