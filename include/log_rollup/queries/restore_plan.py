"""Plans a restore: which raw objects of which hours, and which of them the target has already. Reads only."""

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from itertools import islice

from include.log_rollup.errors import UnreadableRecordError
from include.log_rollup.hour.manifest import ManifestReader
from include.log_rollup.hour.parts import held_size
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.reader import HourReader
from include.log_rollup.hour.records import READ_BY_ETAG, PackedPart
from include.log_rollup.parallel import in_parallel
from include.log_rollup.queries.batches import Batch, plan_batches
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.older_versions import find_older_versions
from include.log_rollup.queries.restore_targets import Presence, RestoredObject, Target
from include.log_rollup.queries.restored_names import names_of_conflicts, unpacked_name
from include.log_rollup.storage.protocol import ObjectStore
from include.log_rollup.streams import Stream

FEW = 20
"""Number of objects that a plan names of those that would be overwritten."""
MAX_OPEN_BATCHES = 8
"""The most batches that are held in memory until all their objects come in key order; 64 MiB."""


class HourState(Enum):
    """Whether an hour can be restored."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    NO_MANIFEST = "no-manifest"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Failure:
    """A raw object that was not restored.

    :param part: name of its part
    """

    hour: datetime
    key: str
    part: str
    reason: str


@dataclass(frozen=True, slots=True)
class HourPlan:
    """What is restored of an hour; sizes in bytes.

    :param problem: why nothing of the hour is restored; empty if it is
    :param in_manifest: number of raw objects in the manifest
    :param objects: number of chosen raw objects
    :param size: of the chosen raw objects
    :param present: how many of them the target has already
    :param present_size: their size
    :param different: how many others the target has with other content
    :param first_different: the keys of the first of these
    :param failures: raw objects for which the target cannot have a name
    :param indices: which raw objects of each part are restored, by name of the part
    :param gets: number of ranged GETs that read them
    :param read_bytes: number of bytes of parts that these read
    :param example: name of a raw object of the hour, for messages; empty if it has none
    :param older_versions: number of chosen raw objects that are not restored, because a later part has a newer
        version
    :param recompressed: how many of the chosen raw objects are restored as their content
    :param names: see :func:`include.log_rollup.queries.restored_names.names_of_conflicts`
    """

    hour: datetime
    state: HourState
    problem: str = ""
    plan_id: str = ""
    in_manifest: int = 0
    objects: int = 0
    size: int = 0
    present: int = 0
    present_size: int = 0
    different: int = 0
    first_different: Sequence[str] = ()
    failures: Sequence[Failure] = ()
    indices: Mapping[str, Sequence[int]] = field(default_factory=dict)
    gets: int = 0
    read_bytes: int = 0
    example: str = ""
    older_versions: int = 0
    recompressed: int = 0
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def to_restore(self) -> int:
        """Number of objects to restore."""
        return sum(map(len, self.indices.values()))


def plan_restore(
    store: ObjectStore,
    stream: Stream,
    hours: Sequence[datetime],
    chosen: ObjectFilter,
    target: Target,
    *,
    incomplete: bool = False,
) -> list[HourPlan]:
    """Plan the restore of some hours from their manifests, reading only. The plan of an object has 4 bytes.

    :param incomplete: whether to restore hours that have a manifest, but are not complete
    :raises RollupError: as the store raises
    """
    planner = _Planner(store, stream, chosen, target, incomplete)
    return list(in_parallel(store.control_connections, "log-rollup-restore", planner.plan, hours))


class _Planner:
    """Plans one hour at a time; may be used from several threads."""

    def __init__(
        self, store: ObjectStore, stream: Stream, chosen: ObjectFilter, target: Target, incomplete: bool
    ) -> None:
        self._store = store
        self._stream = stream
        self._chosen = chosen
        self._target = target
        self._incomplete = incomplete

    def plan(self, hour: datetime) -> HourPlan:
        """The plan of an hour."""
        reader = HourReader(self._store, self._stream, hour)
        try:
            manifest = reader.manifest()
            if manifest is None:
                problem = f"there is no {reader.paths.manifest}"
                return HourPlan(hour, HourState.NO_MANIFEST, problem)
            marker = reader.marker()
            is_complete = marker is not None and marker.is_of(manifest.totals.plan_id)
            state = HourState.COMPLETE if is_complete else HourState.INCOMPLETE
            if not is_complete and not self._incomplete:
                return HourPlan(hour, state, f"there is no {reader.paths.marker} of its manifest's plan")
            return self._plan_objects(reader.paths, manifest, state, find_older_versions(manifest, marker))
        except UnreadableRecordError as error:
            return HourPlan(hour, HourState.UNREADABLE, f"{error}")

    def _plan_objects(
        self,
        paths: HourPaths,
        manifest: ManifestReader,
        state: HourState,
        older: Mapping[str, Collection[int]],
    ) -> HourPlan:
        """Choose objects, and compare them with those of the target.

        :param older: indices of the objects that are older versions, by the name of their part
        """
        parts: list[tuple[PlannedPart, PackedPart, list[int]]] = []
        objects: list[RestoredObject] = []
        failures: list[Failure] = []
        example = ""
        recompressed = older_versions = 0
        names = names_of_conflicts(manifest.parts) if manifest.totals.recompressed else {}
        for planned, packed in manifest.parts():
            example = example or next((paths.name_of(item.key) for item in planned.objects), "")
            wanted = []
            for index in self._chosen.indices(paths, planned):
                if index in older.get(planned.name, ()):
                    older_versions += 1
                    continue
                item = restored_object(self._stream, paths.hour, planned, packed, index, names)
                recompressed += item.is_content
                if problem := self._target.name_problem(item):
                    failures.append(Failure(paths.hour, item.key, planned.name, problem))
                    continue
                wanted.append(index)
                objects.append(item)
            if wanted:
                parts.append((planned, packed, wanted))
        presence = self._target.compare(objects)
        different = [
            item.key for item, found in zip(objects, presence, strict=True) if found is Presence.DIFFERENT
        ]
        same = [item.size for item, found in zip(objects, presence, strict=True) if found is Presence.SAME]
        missing = iter(presence)
        indices: dict[str, Sequence[int]] = {}
        chosen_parts = []
        for planned, packed, wanted in parts:
            left = [index for index in wanted if next(missing) is not Presence.SAME]
            if left:
                indices[planned.name] = array("I", left)
                chosen_parts.append((planned, packed, left))
        batches = list(_batches(chosen_parts, self._target.is_ordered))
        return HourPlan(
            hour=paths.hour,
            state=state,
            plan_id=manifest.totals.plan_id,
            in_manifest=manifest.totals.objects,
            objects=len(objects) + len(failures),
            size=sum(item.size for item in objects),
            present=len(same),
            present_size=sum(same),
            different=len(different),
            first_different=different[:FEW],
            failures=failures,
            indices=indices,
            gets=sum(batch.gets for _, batch in batches),
            read_bytes=sum(batch.end - batch.start for _, batch in batches),
            example=example,
            older_versions=older_versions,
            recompressed=recompressed,
            names=names,
        )


def restored_object(
    stream: Stream,
    hour: datetime,
    planned: PlannedPart,
    packed: PackedPart,
    index: int,
    names: Mapping[str, str],
) -> RestoredObject:
    """A raw object of a part, with its name below the literal beginning of the stream's raw template.

    :param names: of recompressed objects that cannot have their key without the extension, by key
    """
    item, done = planned.objects[index], packed.objects[index]
    if done.content is not None:
        name = names.get(item.key) or unpacked_name(item.key)
        name = name.removeprefix(stream.raw.root.key)
        # The ETag is that of other bytes.
        return RestoredObject(
            item.key, name, hour, done.content.size, "", done.content.crc64nvme, False, True
        )
    return RestoredObject(
        item.key,
        item.key.removeprefix(stream.raw.root.key),
        hour,
        item.size,
        item.etag,
        done.crc64nvme,
        done.checked == READ_BY_ETAG,
    )


def is_empty(planned: PlannedPart, packed: PackedPart, index: int) -> bool:
    """Whether a part has no bytes of one of its raw objects."""
    return not held_size(planned.objects[index], packed.objects[index])


ChosenPart = tuple[PlannedPart, PackedPart, Sequence[int]]


def _batches(parts: Sequence[ChosenPart], is_ordered: bool) -> Iterator[tuple[ChosenPart, Batch]]:
    """The batches of an hour, in the order of the parts or in the order in which key order needs them."""
    if is_ordered:
        yield from ordered_batches(parts)
        return
    for part in parts:
        for batch in plan_batches(*part):
            yield part, batch


def in_key_order(parts: Sequence[ChosenPart]) -> list[tuple[int, int]]:
    """The place of the part and the index of each object that is not empty, in the order of the keys."""
    places = [
        (place, index)
        for place, (planned, packed, wanted) in enumerate(parts)
        for index in wanted
        if not is_empty(planned, packed, index)
    ]
    places.sort(key=lambda at: parts[at[0]][0].objects[at[1]].key)
    return places


def ordered_batches(parts: Sequence[ChosenPart]) -> Iterator[tuple[ChosenPart, Batch]]:
    """Batches such that each holds the next object in key order that no batch before it holds.

    Parts of different encodings or groups alternate in key order. A batch reads ahead in its part, but while
    :data:`MAX_OPEN_BATCHES` of them have objects that are not due yet, only up to where another part comes next.
    """
    order = in_key_order(parts)
    rest = [
        [index for index in wanted if not is_empty(planned, packed, index)]
        for planned, packed, wanted in parts
    ]
    first = [0] * len(parts)
    batch_of: dict[tuple[int, int], int] = {}
    left: dict[int, int] = {}
    for number, (place, index) in enumerate(order):
        if (place, index) not in batch_of:
            if len(left) < MAX_OPEN_BATCHES:
                ahead = [one for one in rest[place][first[place] :] if (place, one) not in batch_of]
                ahead = ahead[ahead.index(index) :]
            else:
                ahead = list(_consecutive(order, number, batch_of))
            planned, packed, _ = parts[place]
            batch = next(plan_batches(planned, packed, ahead))
            left[number] = len(batch.indices)
            batch_of.update(((place, one), number) for one in batch.indices)
            yield parts[place], batch
        opened = batch_of.pop((place, index))
        left[opened] -= 1
        if not left[opened]:
            del left[opened]
        while first[place] < len(rest[place]) and rest[place][first[place]] <= index:
            first[place] += 1


def _consecutive(
    order: Sequence[tuple[int, int]], number: int, batch_of: Mapping[tuple[int, int], int]
) -> Iterator[int]:
    """The indices of the objects of one part that follow each other both in key order and in the part."""
    place, last = order[number][0], -1
    for at in islice(order, number, None):
        if at[0] != place or at[1] <= last or at in batch_of:
            return
        last = at[1]
        yield last
