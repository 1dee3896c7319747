"""A raw hour as it is listed, in little memory, to be compared with a manifest: :class:`RawListing`."""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import IntEnum

from include.log_rollup.storage.protocol import ListPage, ObjectInfo

_DIGEST_BYTES = 16


class Presence(IntEnum):
    """What is listed under the key of a packed raw object."""

    ABSENT = 0
    SAME = 1
    OTHER = 2


class RawListing:
    """The listed objects of a raw hour. Takes about 200 bytes for each, of which the key has most.

    :param pages: of the hour, in any order
    """

    def __init__(self, pages: Iterable[ListPage]) -> None:
        keys: list[str] = []
        sizes, digests = array("q"), bytearray()
        last, is_sorted = "", True
        for page in pages:
            for row in page.objects:
                is_sorted = is_sorted and last <= row.key
                last = row.key
                keys.append(row.key)
                sizes.append(row.size)
                digests += _digest(row)
        if not is_sorted:
            order = sorted(range(len(keys)), key=keys.__getitem__)
            keys = [keys[place] for place in order]
            sizes = array("q", (sizes[place] for place in order))
            digests = bytearray().join(
                digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES] for place in order
            )
        self._keys, self._sizes, self._digests = keys, sizes, digests
        # What the last part that holds the key holds of it: parts of later runs have later versions.
        self._held = bytearray(len(keys))

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, item: ObjectInfo) -> Presence:
        """What is listed under the key of an object; the size and ETag of the object decide if it is the same."""
        place = self._place(item.key)
        return Presence.ABSENT if place is None else self._compare(place, item)

    def hold(self, item: ObjectInfo) -> Presence:
        """The same, for an object of the manifest, in the order of the manifest."""
        place = self._place(item.key)
        if place is None:
            return Presence.ABSENT
        found = self._compare(place, item)
        self._held[place] = found
        return found

    def is_newest(self, item: ObjectInfo) -> bool:
        """Whether the listed object is this one, and no later part holds another version of it."""
        place = self._place(item.key)
        return (
            place is not None
            and self._held[place] == Presence.SAME
            and self._compare(place, item) is Presence.SAME
        )

    def others(self) -> Iterator[ObjectInfo]:
        """The listed objects that no part holds, without their ETags."""
        for key, size, held in zip(self._keys, self._sizes, self._held, strict=True):
            if not held:
                yield ObjectInfo(key, size, "")

    def changed(self) -> Iterator[str]:
        """Keys of the listed objects of which the parts hold another version."""
        return (key for key, held in zip(self._keys, self._held, strict=True) if held == Presence.OTHER)

    def _place(self, key: str) -> int | None:
        place = bisect_left(self._keys, key)
        return place if place < len(self._keys) and self._keys[place] == key else None

    def _compare(self, place: int, item: ObjectInfo) -> Presence:
        start = place * _DIGEST_BYTES
        is_same = self._digests[start : start + _DIGEST_BYTES] == _digest(item)
        return Presence.SAME if is_same else Presence.OTHER


def _digest(item: ObjectInfo) -> bytes:
    return hashlib.blake2b(f"{item.size} {item.etag}".encode(), digest_size=_DIGEST_BYTES).digest()
