"""Compares the manifest and completion marker of each group with those of the hour."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from include.log_rollup.errors import TooLargeError, UnreadableRecordError
from include.log_rollup.hour.layout import folder_of
from include.log_rollup.hour.manifest import GroupTotals, HourTotals, Manifest, open_manifest
from include.log_rollup.hour.parts import count_recompressed, stored_bytes, unpacked_bytes
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart, without_folder
from include.log_rollup.hour.reader import Inventory
from include.log_rollup.hour.records import CompletionMarker, PackedPart, Records
from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.protocol import ObjectStore

_TOTALS = (
    "objects", "bytes_in", "separator_bytes", "bytes_out", "bytes_stored", "recompressed", "bytes_unpacked",
    "parts",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GroupProblem:
    """A group whose records are missing, or contradict those of the hour.

    :param folder: of the group
    """

    folder: str
    reason: str


@dataclass(slots=True)
class _Group:
    """The parts of a group as the hour's manifest describes them, with the names of the group's own manifest."""

    planned: list[PlannedPart] = field(default_factory=list)
    packed: list[PackedPart] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, int]:
        return {
            "objects": sum(len(part.objects) for part in self.planned),
            "bytes_in": sum(part.size for part in self.planned),
            "separator_bytes": sum(part.separators for part in self.packed),
            "bytes_out": sum(part.content_size for part in self.packed),
            "bytes_stored": stored_bytes(self.packed),
            "recompressed": count_recompressed(self.packed),
            "bytes_unpacked": unpacked_bytes(zip(self.planned, self.packed, strict=True)),
            "parts": len(self.packed),
        }


def find_group_problems(
    store: ObjectStore, paths: HourPaths, marker: CompletionMarker, manifest: Manifest, found: Inventory
) -> list[GroupProblem]:
    """What is wrong with the records of the groups; reads two records for each group.

    The lines of the hour's manifest say what each group holds. The totals of the group in the hour's manifest and
    marker, the group's own manifest and its marker have to agree with them.

    :param marker: of the hour
    :param manifest: of the hour
    :param found: the aggregated hour as it is listed
    :raises RollupError: as the store raises
    """
    groups: dict[str, _Group] = {}
    for planned, packed in zip(manifest.planned, manifest.packed, strict=True):
        folder = folder_of(planned.name)
        group = groups.setdefault(folder, _Group())
        group.planned.append(without_folder(planned))
        group.packed.append(replace(packed, name=packed.name[len(folder) :]))
    stated = {group.folder: group for group in manifest.totals.groups}
    problems = [
        *_hour_problems(marker, manifest, groups, stated),
        *(
            GroupProblem(folder, "it has a manifest or a _SUCCESS, but the hour has no such group")
            for folder in sorted((found.group_markers.keys() | found.group_manifests) - groups.keys())
        ),
    ]
    records = Records(store)

    def check(folder: str) -> list[GroupProblem]:
        captures = paths.captures_of(folder)
        plan_ids: set[str] = set()
        reasons = [
            *_marker_problems(records, paths, folder, captures, groups[folder], plan_ids),
            *_manifest_problems(store, paths, folder, captures, groups[folder], plan_ids),
        ]
        if len(plan_ids) > 1:
            reasons.append(
                f"its _SUCCESS and its manifest are of different plans: {', '.join(sorted(plan_ids))}"
            )
        return [GroupProblem(folder, reason) for reason in reasons]

    for checked in in_parallel(store.control_connections, "log-rollup-verify-groups", check, sorted(groups)):
        problems += checked
    return problems


def _hour_problems(
    marker: CompletionMarker,
    manifest: Manifest,
    groups: Mapping[str, _Group],
    stated: Mapping[str, GroupTotals],
) -> Iterator[GroupProblem]:
    """Differences within the records of the hour."""
    in_marker = {
        group["folder"]: group
        for group in (marker.groups if isinstance(marker.groups, list) else ())
        if isinstance(group, Mapping) and isinstance(group.get("folder"), str)
    }
    for folder in sorted(groups.keys() | stated.keys() | in_marker.keys()):
        if folder not in groups or folder not in stated or folder not in in_marker:
            lacking = [
                name
                for name, known in (
                    ("_SUCCESS", in_marker),
                    ("the manifest's header", stated),
                    ("the manifest's parts", groups),
                )
                if folder not in known
            ]
            yield GroupProblem(folder, f"it is missing in {' and in '.join(lacking)} of the hour")
            continue
        header = stated[folder].to_json()
        different = _different(groups[folder].totals, stated[folder])
        if different:
            yield GroupProblem(folder, f"the manifest of the hour contradicts itself: {different}")
        elif dict(in_marker[folder]) != header:
            yield GroupProblem(folder, "_SUCCESS and the manifest of the hour state different totals of it")


# Both functions below add the plan that the record names to ``plan_ids``.


def _marker_problems(
    records: Records,
    paths: HourPaths,
    folder: str,
    captures: Mapping[str, str],
    group: _Group,
    plan_ids: set[str],
) -> Iterator[str]:
    source = paths.group_marker(folder)
    stored = records.read_marker(source)
    if stored is None:
        yield f"there is no {source}"
    elif stored.content is None:
        yield f"{source} cannot be read, or another version or program wrote it"
    else:
        content = stored.content
        plan_ids.add(content.plan_id)
        different = _different(group.totals, content)
        if different:
            yield f"{source} has other totals than the manifest of the hour: {different}"
        if content.group != captures:
            yield f"{source} is of the group {content.group}"


def _manifest_problems(
    store: ObjectStore,
    paths: HourPaths,
    folder: str,
    captures: Mapping[str, str],
    group: _Group,
    plan_ids: set[str],
) -> Iterator[str]:
    source = paths.group_manifest(folder)
    try:
        reader = open_manifest(store, source)
        if reader is None:
            yield f"there is no {source}"
            return
        totals = reader.totals
        plan_ids.add(totals.plan_id)
        different = _different(group.totals, totals)
        if different:
            yield f"{source} has other totals than the manifest of the hour: {different}"
        elif not _is_same(group, reader.whole()):
            yield f"{source} has other parts or objects than the manifest of the hour"
        if totals.group != captures:
            yield f"{source} is of the group {totals.group}"
    except (UnreadableRecordError, TooLargeError):
        yield f"{source} cannot be read"


def _is_same(group: _Group, manifest: Manifest) -> bool:
    return group.planned == list(manifest.planned) and (
        [_without_proof(part) for part in group.packed] == [_without_proof(part) for part in manifest.packed]
    )


def _without_proof(part: PackedPart) -> PackedPart:
    """A part without how its bytes were compared.

    A rerun of the hour proves all parts again, perhaps in another way, and keeps the manifest of a group whose
    parts are the same.
    """
    return replace(part, proof=None, objects=tuple(replace(item, checked="") for item in part.objects))


def _different(totals: Mapping[str, int], record: GroupTotals | HourTotals | CompletionMarker) -> str:
    """The totals that differ, for a message; empty if none does."""
    return ", ".join(
        f"{name} {getattr(record, name)!r} instead of {totals[name]}"
        for name in _TOTALS
        if getattr(record, name) != totals[name]
    )
