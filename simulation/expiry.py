"""Raw objects that expire, as the step ``expire_hour`` deletes them: announced, then deleted one by one.

It shares no code with the pipeline. Between any two of its events runs may do what they like, so that it deletes
at the worst moments that the order of its writes allows.
"""

import json
import random
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from awscrt.checksums import crc64nvme

from simulation.hour_model import Manifest
from simulation.server import DAMAGE, ServerObject

if TYPE_CHECKING:
    from simulation.world import World

EXPIRY = "expiry"
# The most steps between two of its events.
PAUSE = 40


class Expiry:
    """Lets raw objects of the hour expire.

    :param rng: random numbers of its own
    """

    def __init__(self, world: "World", rng: random.Random) -> None:
        self._world = world
        self._rng = rng

    def begin(self, *, at_once: bool = False) -> None:
        """Write the record of raw objects that are about to be deleted, if the hour is complete and not claimed.

        :param at_once: delete them at once, with no other events in between
        """
        world, hour = self._world, self._world.hour
        found = self._proven_hour()
        if found is None:
            return
        manifest, stored = found
        record = self._record()
        if record is None:
            return
        keys = self._announce(manifest, record["parts"])
        if not keys:
            return
        record["deletions"].append(
            {"plan_id": manifest.plan_id, "started_at": "2026-12-07T05:00:00+00:00", "finished_at": None,
             "objects": 0, "bytes": 0}
        )  # fmt: skip
        written = world.server.store(hour.expiry_record, _to_bytes(record), EXPIRY)
        for key in [key for key in world.server.objects if key.startswith(f"{hour.home}_rollup/expiry/")]:
            world.server.remove(key)
        world.note("expiry is announced", ", ".join(sorted(record["parts"])))
        if at_once:
            for key, etag in keys.items():
                self._delete(key, etag)
            return
        world.scheduler.after(
            self._rng.randrange(PAUSE), lambda: self._delete_all(keys, written.etag, stored.etag)
        )

    def _proven_hour(self) -> tuple[Manifest, ServerObject] | None:
        """The manifest of the hour, if it is complete and no run has claimed it."""
        world, hour = self._world, self._world.hour
        objects = world.server.objects
        stored, marker = objects.get(hour.manifest), objects.get(hour.marker)
        if stored is None or marker is None or hour.claim in objects:
            return None
        manifest = world.checker.completion.read_manifest(stored)
        try:
            is_same = manifest is not None and json.loads(marker.body)["plan_id"] == manifest.plan_id
        except (ValueError, LookupError, TypeError):
            return None
        return (manifest, stored) if manifest is not None and is_same else None

    def _record(self) -> dict[str, Any] | None:
        """The present record, or an empty one; None if it cannot be read."""
        stored = self._world.server.objects.get(self._world.hour.expiry_record)
        if stored is None:
            return {"format": 1, "stream": "app", "hour": "2026-11-23T08:00:00Z", "objects": 0, "bytes": 0,
                    "deletions": [], "parts": {}}  # fmt: skip
        try:
            record: dict[str, Any] = json.loads(stored.body)
        except ValueError:
            return None
        return record if stored.author != DAMAGE else None

    def _announce(self, manifest: Manifest, parts: dict[str, Any]) -> dict[str, str]:
        """Add some parts to the record; returns the ETags of the raw objects to delete, by key."""
        world, hour = self._world, self._world.hour
        chosen = self._rng.choice((0.5, 1.0))
        deleted: dict[str, str] = {}
        entries = {entry["name"]: entry for entry in manifest.header["parts_table"]}
        for name, rows in manifest.by_part().items():
            stored = world.server.objects.get(hour.base + name)
            objects = [(row.key, row.etag) for row in rows]
            if stored is None or stored.etag != entries[name]["etag"] or self._rng.random() > chosen:
                continue
            if not world.checker.holds(name, stored, objects):
                continue
            fingerprint = entries[name]["fingerprint"]
            known = parts.get(name, {})
            kept = (
                set(known["kept"]) if known.get("fingerprint") == fingerprint else {row.key for row in rows}
            )
            due = {key: etag for key, etag in objects if self._is_as_packed(key, etag)}
            if due:
                parts[name] = {"fingerprint": fingerprint, "kept": sorted(kept - due.keys())}
                hour.announced.setdefault(name, set()).update(due)
                deleted |= due
        return deleted

    def _is_as_packed(self, key: str, etag: str) -> bool:
        stored = self._world.source.objects.get(key)
        return stored is not None and stored.etag == etag

    def _delete_all(self, keys: Mapping[str, str], record: str, manifest: str) -> None:
        """Read the record, the claim and the manifest again, then delete one object after the other."""
        world, hour = self._world, self._world.hour
        objects = world.server.objects
        written, stored = objects.get(hour.expiry_record), objects.get(hour.manifest)
        is_same = written is not None and written.etag == record and stored and stored.etag == manifest
        if not is_same or hour.claim in objects:
            world.note("expiry gives way", "")
            return
        for key, etag in keys.items():
            world.scheduler.after(self._rng.randrange(PAUSE), partial(self._delete, key, etag))

    def _delete(self, key: str, etag: str) -> None:
        """Delete a raw object on condition of its ETag."""
        if self._is_as_packed(key, etag):
            self._world.note("raw object expires as announced", key)
            self._world.remove_expired_object(key)


def _to_bytes(record: dict[str, Any]) -> bytes:
    """The bytes of a record, with its CRC."""
    content = {key: value for key, value in record.items() if key != "crc64nvme"}
    crc = f"{crc64nvme(_compact(content)):016x}"
    return _compact({**content, "crc64nvme": crc})


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
