"""Lists the raw hour in another way than planning does, and digests it in bounded memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import ObjectDigests, digest_of
from include.log_rollup.hour.records import CompletionMarker
from include.log_rollup.hour.selection import InputFilter, InputRules, LeftOut
from include.log_rollup.storage.listing import PAGE_SIZE, fill_rows, increasing
from include.log_rollup.storage.protocol import ObjectInfo, ObjectStore


@dataclass(frozen=True, slots=True)
class RawDigest:
    """The digests of a raw hour.

    :param objects: number of raw objects
    :param digests: for each encoding; see :class:`include.log_rollup.hour.plan.ObjectDigests`
    """

    objects: int
    digests: Mapping[str, str]
    left_out: LeftOut


def new_digests(paths: HourPaths) -> ObjectDigests:
    """Digests of the raw objects of an hour, to which objects can be added."""
    return ObjectDigests(paths.folder_of_key if paths.has_groups else None)


def is_as_completed(marker: CompletionMarker | None, paths: HourPaths, chosen: Sequence[ObjectInfo]) -> bool:
    """Whether the input of an hour is what was listed for the plan of its marker, compared by one digest.

    :param chosen: the input, in key order
    :returns: False if the marker has no digest, as those of older versions
    """
    if marker is None or not marker.raw_digest:
        return False
    digests = new_digests(paths)
    digests.add(chosen)
    return marker.raw_digest == digest_of(digests.result())


def digest_raw(store: ObjectStore, paths: HourPaths, rules: InputRules, expected: int) -> RawDigest:
    """List the raw hour by continuation token and digest its input.

    Planning lists by ranges of keys, or many groups by token, in pages of 1,000. Here the pages are smaller if
    there are few objects, so that there are at least two: a server that is wrong in one way of listing is found
    out by the other.

    :param expected: probable number of objects
    :raises ListingError: if the store's listing contradicts itself
    :raises RollupError: as the store raises
    """
    chosen = InputFilter(paths.name_of, rules)
    digests = new_digests(paths)
    last = ""
    objects = 0
    for page in paths.raw_and_unmatched.pages(store, expected):
        rows = list(page.objects)
        if not increasing(last, rows):
            return _digest_unordered(store, paths, rules, max(1, min(PAGE_SIZE, expected // 2 + 1)))
        last = rows[-1].key if rows else last
        kept = chosen.keep(fill_rows(store, paths.raw_template.root, list(rows)))
        objects += len(kept)
        digests.add(kept)
    return RawDigest(objects, digests.result(), chosen.left_out)


def _digest_unordered(store: ObjectStore, paths: HourPaths, rules: InputRules, page_size: int) -> RawDigest:
    """For servers that don't list in key order: all rows are sorted in memory."""
    chosen = InputFilter(paths.name_of, rules)
    digests = new_digests(paths)
    kept = chosen.keep(paths.raw_and_unmatched.list_by_token(store, page_size))
    digests.add(kept)
    return RawDigest(len(kept), digests.result(), chosen.left_out)
