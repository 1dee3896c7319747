"""Which parts of a manifest a rerun keeps: :func:`read_proven_parts`."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from include.log_rollup.hour.changes import AbsentObjects, KeyIndex, expired_keys
from include.log_rollup.hour.expiry_record import ExpiryRecord
from include.log_rollup.hour.layout import folder_of, has_tag
from include.log_rollup.hour.manifest import ManifestReader
from include.log_rollup.hour.parts import is_as_written
from include.log_rollup.hour.plan import NOTHING_KEPT, KeptParts, PlannedPart, WriteOptions, is_planned_again
from include.log_rollup.hour.records import PackedPart, compressed_row
from include.log_rollup.hour.selection import NOT_JOINABLE
from include.log_rollup.storage.protocol import ObjectInfo

# With ``late_merge``: more small parts of one kind than this are packed again together with new objects.
SMALL_PARTS = 4


@dataclass(frozen=True, slots=True)
class KeepRules:
    """What decides which parts are kept, besides the raw objects.

    :param part_size: of the stream, in bytes
    :param options: with which new parts are written
    :param folder_of_key: the folder of the group of a key; None without groups
    :param find_folder: the folder of the group of a key, empty without groups; None if it is not one of the hour
    :param repack: keep only parts with expired raw objects
    :param merge: pack small parts again together with new objects, see :data:`SMALL_PARTS`
    """

    part_size: int
    options: WriteOptions
    folder_of_key: Callable[[str], str] | None = None
    find_folder: Callable[[str], str | None] = lambda _: ""
    repack: bool = False
    merge: bool = False


@dataclass(frozen=True, slots=True)
class ProvenParts:
    """The parts of the manifest, compared with the raw hour.

    :param rows: fingerprint and row of a receipt of each part that exists as the manifest says, by name
    :param gone: keys of the raw objects that have vanished; not those that a part with expired ones holds
    :param left_out: keys of the raw objects that exist and are left out, in parts that are not kept
    :param misplaced: keys that are not of this hour by the stream's present templates, and those next to expired
        objects that are of another group
    :param objects: number of raw objects in the manifest
    :param damaged: what is wrong with parts that were announced in the record of expired raw objects, exist
        otherwise than they were proven, and are not packed again as they were, by name
    """

    kept: KeptParts = NOTHING_KEPT
    rows: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    gone: Sequence[str] = ()
    left_out: Sequence[str] = ()
    misplaced: Sequence[str] = ()
    objects: int = 0
    damaged: Mapping[str, str] = field(default_factory=dict)


def read_proven_parts(
    manifest: ManifestReader,
    parts: Mapping[str, ObjectInfo],
    listed: Sequence[ObjectInfo],
    chosen: Sequence[ObjectInfo],
    expiry: ExpiryRecord | None,
    taken: Container[str],
    rules: KeepRules,
    problem_of: Callable[[PlannedPart, PackedPart], str | None],
) -> ProvenParts:
    """Compare the parts of a manifest with the raw hour, and choose those that a rerun keeps.

    - A part stays if it exists as the manifest says, and its raw objects are unchanged.
    - A part with expired raw objects stays whatever happened to the others: nothing else has their bytes. It stays
      although a removal record names it: the run that wrote the record has died, or a later claim stops it. If the
      part was written again, its bytes are compared with the manifest.
    - A part that is lost or damaged is packed again as it was, if its raw objects are unchanged and the present
      options give the same bytes.
    - The raw objects of all other parts are packed like new ones.

    :param parts: the listed parts, by name
    :param listed: the raw hour, including what is left out
    :param chosen: the input
    :param taken: names that no new part may get
    :param problem_of: reads a part, and says what is wrong with it; None if it has the bytes that were proven
    """
    comparison = _Comparison(listed, chosen, expiry, rules)
    rows: dict[str, tuple[str, bytes]] = {}
    damaged: dict[str, str] = {}
    objects = 0
    for planned, packed in manifest.parts():
        objects += len(planned.objects)
        exists = is_as_written(packed, parts)
        problem = None
        if not exists and packed.name in parts and expired_keys(planned, expiry):
            # It was written again. Proven without its raw objects, it may stay.
            packed = replace(packed, etag=parts[packed.name].etag, proof=None)
            problem = problem_of(planned, packed)
            exists = problem is None
        if exists:
            rows[packed.name] = packed.fingerprint, compressed_row(packed)
        is_planned = comparison.add(planned, exists, packed.name in taken)
        # No run removes it: it would stay outside the manifest.
        if problem and not is_planned and (has_tag(packed.name) or not comparison.lists_announced(planned)):
            damaged[packed.name] = problem
    if rules.merge:
        comparison.merge_small_parts()
    return replace(comparison.result(rows, objects), damaged=damaged)


class _Comparison:
    """Compares parts with the raw hour, one after the other, in the order of the manifest."""

    def __init__(
        self,
        listed: Sequence[ObjectInfo],
        chosen: Sequence[ObjectInfo],
        expiry: ExpiryRecord | None,
        rules: KeepRules,
    ) -> None:
        self._chosen = chosen
        self._index = KeyIndex(chosen)
        self._left_out: Container[str] = ()
        if len(listed) > len(chosen):
            self._left_out = {item.key for item in listed if self._index.place(item.key) is None}
        self._expiry = expiry
        self._rules = rules
        self._stay: list[PlannedPart] = []
        self._again: list[PlannedPart] = []
        # Whether a kept part holds the object of the input with this index.
        self._held = bytearray(len(chosen))
        self._absent = AbsentObjects()
        self._fixed: set[str] = set()
        self._replaced_left_out: list[str] = []
        self._misplaced: list[str] = []

    def lists_announced(self, planned: PlannedPart) -> bool:
        """Whether all raw objects of a part that were announced for deletion exist as they were packed."""
        announced = expired_keys(planned, self._expiry)
        places = ((self._index.place(item.key), item) for item in planned.objects if item.key in announced)
        return all(place is not None and self._chosen[place] == item for place, item in places)

    def add(self, planned: PlannedPart, exists: bool, is_taken: bool) -> bool:
        """Add a part.

        :param exists: whether it exists as the manifest says
        :param is_taken: whether the plan may use its name only if raw objects in it have expired
        :returns: whether it stays, or is packed again as it was
        """
        expired = expired_keys(planned, self._expiry) if exists else ()
        find_folder = self._rules.find_folder
        same: list[int] = []
        older: list[int] = []
        for item in planned.objects:
            place = self._index.place(item.key)
            if place is not None:
                (same if self._chosen[place] == item else older).append(place)
            elif item.key not in self._left_out:
                self._absent.add(item.key, expired)
                if not expired and find_folder(item.key) is None:
                    self._misplaced.append(item.key)
            elif not expired:
                self._replaced_left_out.append(item.key)
        if expired:
            folder = folder_of(planned.name)
            self._misplaced += [item.key for item in planned.objects if find_folder(item.key) != folder]
            self._stay.append(planned)
            self._fixed.add(planned.name)
            self._set_held(same, 1)
            # A version in an earlier part is not the newest one, even if the object has its content again.
            self._set_held(older, 0)
            return True
        if len(same) == len(planned.objects) and not self._rules.repack and self._is_in_its_group(planned):
            # With the listed objects: those of the manifest need not stay in memory.
            kept = replace(planned, objects=tuple(self._chosen[place] for place in same))
            if exists and not is_taken:
                self._stay.append(kept)
            elif is_planned_again(kept, self._rules.part_size, self._rules.options):
                self._again.append(kept)
            else:
                return False
            self._set_held(same, 1)
            return True
        return False

    def _set_held(self, places: Iterable[int], held: int) -> None:
        for place in places:
            self._held[place] = held

    def _is_in_its_group(self, planned: PlannedPart) -> bool:
        if not planned.objects:
            return False
        if self._rules.folder_of_key is None:
            return True
        folder, find_folder = folder_of(planned.name), self._rules.find_folder
        return all(find_folder(item.key) == folder for item in planned.objects)

    def merge_small_parts(self) -> None:
        """Don't keep parts smaller than half of a part, if there are many of a kind that gets new objects."""
        rules = self._rules
        folder_of_key = rules.folder_of_key or (lambda _: "")
        new = {
            (folder_of_key(item.key), rules.options.encoding_in_part(item, rules.part_size))
            for item in self._not_held()
        }
        small: dict[tuple[str, str], list[PlannedPart]] = {}
        for part in self._stay:
            kind = folder_of(part.name), part.encoding
            size = sum(map(part.planned_content, part.objects)) if part.recompressed else part.size
            is_small = 2 * size < rules.options.part_bytes(part.encoding, rules.part_size)
            can_merge = not part.copied and part.encoding not in NOT_JOINABLE and part.name not in self._fixed
            if is_small and can_merge and kind in new:
                small.setdefault(kind, []).append(part)
        merged = [part for parts in small.values() if len(parts) > SMALL_PARTS for part in parts]
        names = {part.name for part in merged}
        self._stay = [part for part in self._stay if part.name not in names]
        for part in merged:
            places = (self._index.place(item.key) for item in part.objects)
            self._set_held((place for place in places if place is not None), 0)

    def _not_held(self) -> list[ObjectInfo]:
        return [item for item, held in zip(self._chosen, self._held, strict=True) if not held]

    def result(self, rows: Mapping[str, tuple[str, bytes]], objects: int) -> ProvenParts:
        """What was found; see :class:`ProvenParts`."""
        return ProvenParts(
            KeptParts(tuple(self._stay), tuple(self._again), self._not_held()),
            rows,
            self._absent.vanished(),
            self._replaced_left_out,
            self._misplaced,
            objects,
        )
