"""Which objects of a raw hour are its input, and in which encoding their bytes are."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from include.log_rollup.storage.protocol import ObjectInfo

PLAIN = ""
# Formats in which concatenated files are a valid file with the concatenated contents.
ENCODINGS = (".gz", ".zst", ".bz2", ".xz", ".lz4")
# Containers: of concatenated files, a reader would see only the first or the last.
NOT_JOINABLE = (".zip", ".7z", ".parquet", ".orc", ".avro")
# Endings of files that are not text. They never share a part with text and get no newline. Concatenated, some of
# them can only be separated by the offsets in the manifest.
OPAQUE = frozenset(
    (
        *(".snappy", ".sz", ".zz", ".zlib", ".deflate", ".br", ".z", ".lzo", ".lzma", ".lz", ".lzf", ".bz"),
        *(".gzip", ".zstd", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tar", ".rar", ".xlsx", ".jar"),
        *(".arrow", ".arrows", ".feather", ".pb", ".protobuf", ".msgpack", ".cbor", ".bson", ".avsc", ".rdb"),
        *(".hsnappy", ".binpb"),
        *(".pcap", ".pcapng", ".evtx", ".gpg", ".pgp", ".age", ".enc", ".bin", ".db", ".sqlite"),
    )
)
_NOT_TEXT = frozenset((*ENCODINGS, *NOT_JOINABLE, *OPAQUE))

# What happens to containers: planning fails, they are left out, or each becomes a part of its own.
Unjoinable = Literal["stop", "skip", "copy"]


def encoding_of(key: str) -> str:
    """The encoding of an object by its name: ``.gz``, ``.zst``, … or empty for plain text.

    The encoding of a known binary format (:data:`OPAQUE`) or container (:data:`NOT_JOINABLE`) is its ending.
    """
    ending = key[key.rfind(".") :].lower()
    if ending in _NOT_TEXT:
        return ending
    if "-" in ending and "/" not in ending:
        # Fluent Bit appends random letters to names: `2026.log.gz-apwgylqg`.
        start = ending[: ending.index("-")]
        return start if start in _NOT_TEXT else PLAIN
    return PLAIN


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Number of listed objects that are not input.

    :param hidden: a step of the name begins with ``_`` or ``.``
    :param placeholders: empty objects for folders
    :param markers: the ready object
    :param excluded: the stream's ``include`` or ``exclude`` leaves them out
    :param unjoinable: containers, which the stream skips
    :param unmatched: objects that belong to no hour, as their folder has another day than their name
    """

    hidden: int = 0
    placeholders: int = 0
    markers: int = 0
    excluded: int = 0
    unjoinable: int = 0
    unmatched: int = 0

    def __add__(self, other: "LeftOut") -> "LeftOut":
        return LeftOut(
            self.hidden + other.hidden,
            self.placeholders + other.placeholders,
            self.markers + other.markers,
            self.excluded + other.excluded,
            self.unjoinable + other.unjoinable,
            self.unmatched + other.unmatched,
        )

    def __str__(self) -> str:
        counts = (
            (self.hidden, "hidden"),
            (self.placeholders, "folder placeholders"),
            (self.markers, "ready objects"),
            (self.excluded, "excluded"),
            (self.unjoinable, "unjoinable"),
            (self.unmatched, "unmatched"),
        )
        # The first three are always given.
        return ", ".join(
            f"{count:,} {kind}" for place, (count, kind) in enumerate(counts) if count or place < 3
        )


@dataclass(frozen=True)
class InputRules:
    """Which objects of a raw hour are its input.

    A pattern is compared with the whole name below the hour, as ``aws s3 sync --include`` does: ``*`` matches any
    characters, also ``/``; ``?`` matches one; ``[abc]`` one of several. Case matters.

    :param ready_object: name of the object that the producer writes last; None if there is none
    :param include: if not empty, only names that match one of these patterns are input
    :param exclude: names that match one of these patterns are not
    :param begins_step: whether the names begin a step of the key; False if the stream's template ends within one
    :param finds_unmatched: whether listings of the hour may have objects that belong to no hour
    """

    ready_object: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    unjoinable: Unjoinable = "stop"
    begins_step: bool = True
    finds_unmatched: bool = False

    @cached_property
    def _included(self) -> re.Pattern[str] | None:
        return _any_of(self.include)

    @cached_property
    def _excluded(self) -> re.Pattern[str] | None:
        return _any_of(self.exclude)

    @property
    def has_patterns(self) -> bool:
        """Whether there are patterns at all."""
        return bool(self.include or self.exclude)

    def excludes(self, name: str) -> bool:
        """Whether the patterns leave out an object with this name below the hour."""
        included, excluded = self._included, self._excluded
        return bool(
            (included is not None and not included.match(name))
            or (excluded is not None and excluded.match(name))
        )


def _any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(fnmatch.translate, patterns))) if patterns else None


class InputFilter:
    """Selects the input among the listed objects of an hour, and counts the others.

    :param name_of: the name below the hour of an object with a given key; the whole key if it belongs to no hour
    """

    def __init__(self, name_of: Callable[[str], str], rules: InputRules) -> None:
        self._name_of = name_of
        self._rules = rules
        self._hidden = self._placeholders = self._ready_objects = self._excluded = self._unjoinable = 0
        self._unmatched = 0

    def keep(self, rows: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        """The input among some listed objects; see :class:`LeftOut` for the others."""
        if self._rules.finds_unmatched:
            rows = self._keep_matched(rows)
        kept: list[ObjectInfo] = []
        ready_object, name_of = self._rules.ready_object, self._name_of
        begins_step = self._rules.begins_step
        for item in rows:
            name = name_of(item.key)
            if name == ready_object:
                self._ready_objects += 1
            elif is_hidden(name, begins_step):
                self._hidden += 1
            elif item.size == 0 and (name.endswith("/") or not name):
                self._placeholders += 1
            else:
                kept.append(item)
        if self._rules.has_patterns:
            kept = self._keep_matching(kept)
        if self._rules.unjoinable == "skip":
            kept = self._keep_joinable(kept)
        return kept

    def _keep_matched(self, rows: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        listed, name_of = list(rows), self._name_of
        kept = [item for item in listed if name_of(item.key) != item.key]
        self._unmatched += len(listed) - len(kept)
        return kept

    def _keep_matching(self, rows: list[ObjectInfo]) -> list[ObjectInfo]:
        name_of, excludes = self._name_of, self._rules.excludes
        kept = [item for item in rows if not excludes(name_of(item.key))]
        self._excluded += len(rows) - len(kept)
        return kept

    def _keep_joinable(self, rows: list[ObjectInfo]) -> list[ObjectInfo]:
        kept = [item for item in rows if encoding_of(item.key) not in NOT_JOINABLE]
        self._unjoinable += len(rows) - len(kept)
        return kept

    @property
    def left_out(self) -> LeftOut:
        """Number of objects that were left out so far."""
        return LeftOut(
            self._hidden,
            self._placeholders,
            self._ready_objects,
            self._excluded,
            self._unjoinable,
            self._unmatched,
        )


def select(
    listed: Sequence[ObjectInfo], name_of: Callable[[str], str], rules: InputRules
) -> tuple[Sequence[ObjectInfo], LeftOut]:
    """The input of an hour, and the number of objects that were left out.

    :param listed: in key order
    :param name_of: the name below the hour of an object with a given key
    """
    input_filter = InputFilter(name_of, rules)
    chosen = input_filter.keep(listed)
    return listed if len(chosen) == len(listed) else chosen, input_filter.left_out


def is_hidden(name: str, begins_step: bool = True) -> bool:
    """Whether Spark, Hive, Athena and Trino ignore an object with this relative name.

    :param begins_step: whether the name begins a step of the key; in ``web_08_host.log``, ``_host.log`` does not
    """
    return (begins_step and name.startswith(("_", "."))) or "/_" in name or "/." in name
