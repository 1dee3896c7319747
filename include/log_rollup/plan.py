"""The plan of an hour: which raw object lies in which part, and which shard packs it."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from include.log_rollup.errors import UnsupportedInputError
from include.log_rollup.hours import part_name
from include.log_rollup.store import ObjectInfo
from include.log_rollup.units import format_size

# Raised whenever the same listing would give another plan, or plan files are written in another form: a
# plan of another version is never read, its hour is planned anew.
PLAN_FORMAT = 1

PLAIN = ""
# Formats whose files, laid end to end, are again a file of the format that holds the contents end to end.
ENCODINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4")
# Containers, of which a reader would see the first or the last only.
NOT_JOINABLE = (".zip", ".7z", ".parquet", ".orc", ".avro")


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part: whole raw objects end to end. ``copied`` says that S3 copies its one, oversize object.

    ``fingerprint`` is a digest of all that decides the part's bytes, its name apart.
    """

    name: str
    encoding: str
    size: int
    copied: bool
    fingerprint: str
    objects: tuple[ObjectInfo, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many listed objects are no input, by reason."""

    hidden: int = 0
    placeholders: int = 0
    markers: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts of an hour; ``plan_id`` is the same if and only if the same parts would be written."""

    plan_id: str
    parts: tuple[PlannedPart, ...]
    left_out: LeftOut

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


def encoding_of(key: str) -> str:
    """The encoding of an object by its name: ``.gz``, ``.zst``, … or the empty string for plain.

    :raises UnsupportedInputError: for containers, which cannot be joined end to end
    """
    ending = key[key.rfind(".") :].lower()
    if ending in ENCODINGS:
        return ending
    if ending in NOT_JOINABLE:
        raise UnsupportedInputError(
            f"{key}: {ending} files cannot be joined end to end; move the object out of the raw prefix, or give "
            f"it a name that begins with '_' to have it left out"
        )
    return PLAIN


def select(listed: Iterable[ObjectInfo], prefix: str, marker: str | None) -> tuple[list[ObjectInfo], LeftOut]:
    """Part the objects of an hour from what is not input.

    :param listed: everything under the raw prefix of the hour
    :param prefix: that prefix
    :param marker: name of the stream's marker object below it, if it has one
    :returns: the input in key order, and how many were left out: hidden ones (a step of the path begins
        with ``_`` or ``.``), empty folder placeholders, the marker
    """
    chosen: list[ObjectInfo] = []
    hidden = placeholders = markers = 0
    for item in listed:
        name = item.key[len(prefix) :]
        if name == marker:
            markers += 1
        elif is_hidden(name):
            hidden += 1
        elif item.size == 0 and (name.endswith("/") or not name):
            placeholders += 1
        else:
            chosen.append(item)
    # Python compares code points, which is the order of UTF-8 bytes, which is S3's.
    chosen.sort(key=lambda item: item.key)
    return chosen, LeftOut(hidden, placeholders, markers)


def is_hidden(name: str) -> bool:
    """Whether Spark, Hive, Athena and Trino would pass an object of this relative name over."""
    return name.startswith(("_", ".")) or "/_" in name or "/." in name


def make_plan(
    chosen: Sequence[ObjectInfo],
    left_out: LeftOut,
    part_size: int,
    separators: bool,
    storage_class: str | None,
) -> Plan:
    """Fill parts in key order, the objects of each encoding into parts of their own.

    :param chosen: the input in key order
    :param part_size: of a part, in bytes; a larger object becomes a part by itself
    :param separators: whether a newline may have to follow each plain object, so that room is left for it
    :param storage_class: of the parts, which is part of what is written
    """
    by_encoding: dict[str, list[ObjectInfo]] = {}
    for item in chosen:
        by_encoding.setdefault(encoding_of(item.key), []).append(item)
    parts: list[PlannedPart] = []
    for encoding in sorted(by_encoding):
        slack = 1 if separators and encoding == PLAIN else 0
        for members, copied in _fill(by_encoding[encoding], part_size, slack):
            written_as = f"{PLAN_FORMAT} {encoding} {copied} {slack} {storage_class}\n"
            parts.append(_part(len(parts), encoding, members, copied, written_as))
    digest = hashlib.blake2b(f"{PLAN_FORMAT}\n".encode(), digest_size=10)
    for part in parts:
        digest.update(f"{part.name} {part.fingerprint}\n".encode())
    return Plan(digest.hexdigest(), tuple(parts), left_out)


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


def _part(
    index: int, encoding: str, members: Sequence[ObjectInfo], copied: bool, written_as: str
) -> PlannedPart:
    # Lengths first, so that no two lists of keys can give the same text.
    told = [f"{len(item.key)} {item.key} {item.size} {item.etag}\n" for item in members]
    digest = hashlib.blake2b((written_as + "".join(told)).encode(), digest_size=16)
    size = sum(item.size for item in members)
    return PlannedPart(part_name(index, encoding), encoding, size, copied, digest.hexdigest(), tuple(members))


def make_shards(plan: Plan, shard_size: int, max_shards: int) -> list[Sequence[PlannedPart]]:
    """Cut the parts into runs of about equal bytes.

    :param shard_size: bytes that one task is to pack, about
    :param max_shards: the most runs there may be
    :returns: runs of parts in order, none empty
    """
    if not plan.parts:
        return []
    # Copied parts cost the worker nothing; a byte each keeps their order in the balance.
    weights = [1 if part.copied else max(part.size, 1) for part in plan.parts]
    total = sum(weights)
    wanted = max(1, min(max_shards, len(plan.parts), -(-total // shard_size)))
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
