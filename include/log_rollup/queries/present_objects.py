"""Finds which of many names exist below a prefix, with few requests: :class:`PresentObjects`."""

from collections.abc import Sequence

from include.log_rollup.parallel import in_parallel
from include.log_rollup.storage.listing import increasing
from include.log_rollup.storage.protocol import Location, ObjectStore


class PresentObjects:
    """Looks up names below a prefix.

    It lists the prefix from name to name: a page begins at the next name that is searched, so a prefix with many
    other objects takes at most one request for each name. If the store does not list in key order, it sends a HEAD
    for each name instead.
    """

    def __init__(self, store: ObjectStore, prefix: Location) -> None:
        self._store = store
        self._prefix = prefix

    def find(self, names: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Size in bytes and ETag of those names that exist.

        :raises RollupError: as the store raises
        """
        keys = sorted(f"{self._prefix.key}{name}" for name in names)
        found = self._by_listing(keys)
        if found is None:
            found = self._by_head(keys)
        start = len(self._prefix.key)
        return {key[start:]: values for key, values in found.items()}

    def _by_listing(self, keys: Sequence[str]) -> dict[str, tuple[int, str]] | None:
        """The keys that exist; None if the store does not list as S3 does."""
        found: dict[str, tuple[int, str]] = {}
        place = 0
        last = ""
        while place < len(keys):
            # The key comes after its own beginning, so it is on the page.
            last = max(last, keys[place][:-1])
            page = self._store.list_page(self._prefix, start_after=last)
            if not increasing(last, page.objects) or (page.truncated and not page.objects):
                return None
            if page.folders or (page.truncated is None and page.objects):
                return None
            rows = {row.key: row for row in page.objects}
            if page.objects:
                last = page.objects[-1].key
            while place < len(keys) and (keys[place] <= last or not page.truncated):
                row = rows.get(keys[place])
                if row is not None:
                    found[row.key] = row.size, row.etag
                place += 1
        return found

    def _by_head(self, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
        heads = in_parallel(
            self._store.control_connections,
            "log-rollup-heads",
            lambda key: self._store.head(self._prefix.at(key)),
            keys,
        )
        pairs = zip(keys, heads, strict=True)
        return {key: (head.size, head.etag) for key, head in pairs if head is not None}
