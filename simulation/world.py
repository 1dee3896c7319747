"""Everything outside the pipeline: the server, producers, other programs in the bucket, and damage."""

import gzip
import random
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from include.log_rollup import crc
from include.log_rollup.storage.protocol import Checksum, ObjectStore
from include.log_rollup.storage.two_stores import TwoStores
from simulation.client import Client
from simulation.codec import SCALE, draw_library
from simulation.draws import BUCKET, Settings, draw_quirks, draw_stream
from simulation.event_log import EventLog
from simulation.expiry import EXPIRY, Expiry
from simulation.expiry_draws import ExpiryDraws
from simulation.faults import flip_bit
from simulation.hour_model import Hour, Packing, Place, Version, encoding_of
from simulation.invariants import InvariantChecker
from simulation.keeping import Keeping
from simulation.layout import draw_layout
from simulation.old_version import write_old_hour
from simulation.quirks import Checksums, Quirks
from simulation.scheduler import Scheduler, Task
from simulation.server import DAMAGE, FOREIGN, PRODUCER, Server, ServerObject, Upload
from simulation.transfer import SimulatedTransfer

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
# A name that the pipeline could give a part.
OUR_PART_NAME = "part-00000-0123abcd.log"
ALGORITHMS = ("crc64nvme", "crc32c", "crc32", None)
FOLDERS = ("", "", "", "a/", "a/b/", "b/", "it's/", "zürich/")
NAMES = ("1.log", "2.log", "3.log", "4", "5.json", "6.LOG")
PACKED_NAMES = ("7.log.gz", "8.log.gz", "9.zst", "10.gz", "11.LOG.GZ")


class World:
    """The environment of one scenario, drawn from its seed.

    :param seed: seeds the only random number generator
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.layout = layout = draw_layout(seed)
        self.seen: Counter[str] = Counter()
        self.log = EventLog(layout.base)
        race = rng.random() < 0.35
        self.quirks = Quirks(page_size=rng.choice((1000, 2))) if race else draw_quirks(rng)
        self.settings = Settings.draw_race(rng) if race else Settings.draw(rng)
        self.keeping = Keeping(seed)
        stream = draw_stream(rng).model_copy(update={"late_merge": self.keeping.merges})
        # None if nothing is compressed.
        self.library = library = draw_library(seed, SCALE * stream.part_size)
        self._scale = 1
        if library is not None:
            library.on_fault = lambda fault: self.note(fault, "")
            self._scale = SCALE
            sizes = {"part_size": SCALE * stream.part_size, "shard_size": SCALE * stream.shard_size}
            stream = library.apply(stream.model_copy(update=sizes))
        if stream.storage_class and stream.allow_empty and self.quirks.checksums is Checksums.CHECKED:
            # Its parts cannot be read. On other servers, planning refuses it.
            stream = stream.model_copy(update={"storage_class": "GLACIER"})
            self.seen["parts in an archive class"] = 1
        # As a task reads it when it starts.
        self.stream = layout.apply(stream)
        # Larger objects are copied in ranges, as S3 requires above 5 GiB. None: the limit of S3.
        self.copies_up_to = self.stream.part_size + 3 if rng.random() < 0.25 else None
        self.scheduler = Scheduler(rng, self.log, rng.choice((10, 60, 400)))
        if layout.has_groups:
            self.quirks = replace(self.quirks, delimiter=layout.rng.random() < 0.85)
            # Often enough for a group to vanish.
            self.settings.drop_vanished |= layout.rng.random() < 0.25
        self.server = Server(self.scheduler, BUCKET, self.quirks)
        # The store of the raw objects.
        self.source = self.server
        if layout.source is not None:
            self.source = Server(self.scheduler, layout.source_bucket, layout.source)
        self.hour = Hour(
            layout.places, layout.base, layout.home, layout.raw_base, self.stream.part_size,
            self.stream.ensure_newline, self.stream.storage_class, self.stream.ready_object,
            library.packing if library else Packing("", None, 0),
            library.frame_bytes if library else 0,
            library.ratio if library else 1,
            library.largest_frame_bytes if library else 0,
            min(self.stream.part_size, library.largest_frame_bytes if library else self.stream.part_size),
            layout.include, layout.exclude,
        )  # fmt: skip
        self.checker = InvariantChecker(self.server, self.source, self.scheduler, self.hour)
        self.expiry = Expiry(self, self.keeping.rng)
        self.expiry_draws = ExpiryDraws(seed)
        # Whether a raw object of a format that can't be joined was written, and whether one was deleted.
        self.has_container = self.vanished_any = False
        # The places in which producers write; others appear later.
        self._places = list(layout.places[: len(layout.places) - layout.late] or layout.places[:1])
        self._contents = 0

    @property
    def has_two_stores(self) -> bool:
        """Whether raw objects and parts are in different stores."""
        return self.source is not self.server

    @property
    def can_expire(self) -> bool:
        """Whether raw objects can expire as announced: not through a window that RELIABILITY.md leaves open."""
        return self.quirks.copies and self.quirks.if_match_delete

    @property
    def servers(self) -> Sequence[Server]:
        """The stores: one or two."""
        return (self.server, self.source) if self.has_two_stores else (self.server,)

    def quirk_names(self) -> list[str]:
        """How the servers differ from S3."""
        names = self.quirks.names()
        if self.has_two_stores:
            names += [f"{name} of the raw objects' store" for name in self.source.quirks.names()]
        return names

    def raw_objects(self) -> dict[str, ServerObject]:
        """The raw objects of the hour that exist, by key."""
        is_raw = self.hour.is_raw
        return {key: stored for key, stored in self.source.objects.items() if is_raw(key)}

    def open_store(self, task: Task, connections: int, control: int) -> ObjectStore:
        """The store as a task sees it, with connections of its own."""

        def client(server: Server) -> Client:
            return Client(server, self.source, self.scheduler, task, connections, control)

        if not self.has_two_stores:
            return client(self.server)
        return TwoStores(
            client(self.source),
            client(self.server),
            lambda *_: SimulatedTransfer(self.server, self.source, self.scheduler, task, connections - 1),
            connections,
        )

    # -- events ----------------------------------------------------------------------------------------

    def note(self, what: str, detail: str) -> None:
        """Log an event and count it."""
        self.seen[what] = 1
        self.log.add("*", what, detail, "")

    def clock(self) -> float:
        """Draw how far a machine's clock is ahead, in seconds."""
        return self.rng.choice((0.0, 0.0, -1000.0, 5000.0))

    def change_packing(self) -> None:
        """Change the version of the compression library, or the stream's compression."""
        assert self.library is not None
        self.note("compression changed", self.library.change())
        self.stream = self.library.apply(self.stream)
        self.hour.packing = self.library.packing

    # -- producers -------------------------------------------------------------------------------------

    def write_raw_object(self, key: str, body: bytes) -> None:
        """Write a raw object as a producer."""
        known = self.hour.history.setdefault(key, [])
        if known and known[-1].end is None:
            known[-1].end = self.scheduler.step
        algorithm = self.rng.choice(ALGORITHMS)
        checksum = None
        if algorithm and self.source.quirks.checksums is not Checksums.NONE:
            checksum = Checksum(algorithm, crc.by_algorithm(algorithm, body))
        etag = f"{self.rng.getrandbits(128):032x}-2" if self.rng.random() < 0.1 else None
        stored = self.source.store(
            key,
            body,
            PRODUCER,
            checksum=checksum,
            etag=etag,
            modified=self.source.epoch_seconds() - self.rng.choice((5, 7200, 7200, 7200)),
        )
        known.append(Version(key, body, stored.etag, self.scheduler.step))
        self.checker.raw_object_written(key)

    def remove_raw_object(self, key: str) -> None:
        """Delete a raw object, as a lifecycle rule does."""
        version = self.hour.history[key][-1]
        if version.end is None:
            version.end = self.scheduler.step
            self.vanished_any = True
            if self.checker.raw_object_removed(version):
                self.seen["a part holds the last copy"] = 1
            self.source.remove(key)

    def remove_expired_object(self, key: str) -> None:
        """Delete a raw object whose deletion was announced: a part holds it."""
        version = self.hour.history[key][-1]
        version.end = self.scheduler.step
        self.hour.expired.add((key, version.etag))
        self.checker.raw_object_removed(version)
        self.source.remove(key)

    def _unique_content(self, key: str) -> bytes:
        """Draw bytes that no other object has, so that they can be found in parts."""
        self._contents += 1
        draw = self.rng.random()
        if draw < 0.06:
            return b""
        body = f"<{self._contents}:".encode()
        if draw < 0.14:
            body += b"x" * (self.stream.part_size * self.layout.large)
        else:
            body += b"." * (self._scale * self.rng.randint(0, 14))
        body += b">"
        if encoding_of(key) == ".gz" and self.rng.random() < 0.5:
            body += b"\n" if self._contents % 2 else b""
            return gzip.compress(body, mtime=0)[: None if self.rng.random() < 0.8 else -5]
        return body + (b"\n" if self.rng.random() < 0.5 else b"")

    def _random_key(self, place: Place) -> str:
        if self.rng.random() < 0.05:
            return place.raw + self.rng.choice(("_tmp/1.log", ".hidden", "a/_x.log", "a/", "DONE"))
        if self.rng.random() < 0.004:
            self.has_container = True
            return place.raw + "table.parquet"
        return place.raw + self.rng.choice(FOLDERS) + self.rng.choice((*NAMES, *NAMES, *PACKED_NAMES))

    def _random_place(self) -> Place:
        return self._places[0] if len(self._places) == 1 else self.layout.rng.choice(self._places)

    def _write_random_object(self, place: Place | None = None) -> str:
        key = self._random_key(place or self._random_place())
        self.write_raw_object(key, b"" if key.endswith("/") else self._unique_content(key))
        return key

    def change_raw_objects(self) -> None:
        """Write a late raw object, change one, or let some expire; a group may appear or vanish."""
        present = list(self.raw_objects())
        draw = self.rng.random()
        if self.layout.has_groups and self._change_groups(present):
            return
        if draw < 0.45 or not present:
            before = set(present)
            key = self._write_random_object()
            self.note("raw object changed" if key in before else "late raw object", self._shown(key))
        elif draw < 0.75:
            key = self.rng.choice(present)
            earlier = [version.body for version in self.hour.history.get(key, ())[:-1]]
            if earlier and self.rng.random() < 0.5:
                self.write_raw_object(key, self.rng.choice(earlier))
                self.note("raw object changed back", self._shown(key))
            else:
                self.write_raw_object(key, self._unique_content(key))
                self.note("raw object changed", self._shown(key))
        else:
            share = self.rng.choice((0.0, 0.0, 0.5, 1.0))
            gone = [key for key in present if self.rng.random() < share] or [self.rng.choice(present)]
            self._expire("raw objects expire", gone)

    def _change_groups(self, present: Sequence[str]) -> bool:
        """Sometimes let a group appear or vanish; returns whether one did."""
        rng = self.layout.rng
        hidden = [place for place in self.layout.places if place not in self._places]
        draw = rng.random()
        if draw < 0.3 and hidden:
            self._places.append(hidden[0])
            keys = [self._write_random_object(hidden[0]) for _ in range(rng.choice((1, 1, 2, 3)))]
            self.note("a group appears", ", ".join(map(self._shown, keys)))
            return True
        if draw > 0.8 and present:
            folder = self.hour.place_of(rng.choice(present)).folder
            self._expire("a group vanishes", [k for k in present if self.hour.place_of(k).folder == folder])
            return True
        return False

    def _expire(self, what: str, keys: Sequence[str]) -> None:
        self.note(what, ", ".join(map(self._shown, keys)))
        for key in keys:
            self.remove_raw_object(key)

    def _shown(self, key: str) -> str:
        return key.removeprefix(self.hour.raw_base)

    # -- other programs, and damage --------------------------------------------------------------------

    def put_foreign_object(self) -> None:
        """Write an object as another program, or begin a multipart upload."""
        rng = self.rng
        name = rng.choice(
            ("part-00000.log", "part-00001.log", "part-00001.log.snappy", OUR_PART_NAME, "notes.txt",
             "_rollup/notes.txt", "_rollup/0123456789abcdef0123/notes.txt", "_metadata")
        )  # fmt: skip
        prefixes = self.hour.prefixes
        place = self.layout.rng.choice(prefixes) if self.layout.has_groups else prefixes[0]
        key = place + name
        if rng.random() < 0.2:
            prefix = place if rng.random() < 0.5 else "elsewhere/"
            upload = f"foreign-{self.scheduler.step}-{len(self.server.uploads)}"
            self.server.uploads[upload] = Upload(prefix + "big.bin", FOREIGN)
            self.note("foreign upload", prefix)
        elif key not in self.checker.our_keys and key not in self.server.objects:
            self.server.store(key, f"foreign {rng.random()}".encode(), FOREIGN)
            self.note("foreign object", key.removeprefix(self.hour.base))

    def damage_something(self) -> None:
        """Damage a record or a part, or write an empty completion marker."""
        rng, hour = self.rng, self.hour
        records = [
            key
            for key, stored in self.server.objects.items()
            if stored.author not in (FOREIGN, PRODUCER)
            # A staged record is copied at once: damage in between is not simulated.
            and "/staged-" not in key
            and (key.startswith(hour.work) or key in hour.records or stored.author == EXPIRY)
        ]
        parts = [
            key
            for key, stored in self.server.objects.items()
            if hour.is_part_like(key) and stored.author != FOREIGN
        ]
        candidates = parts if parts and rng.random() < 0.4 else records
        marker = hour.marker
        if self.layout.has_groups and self.layout.rng.random() < 0.7:
            marker = hour.scope(self.layout.rng.choice(list(hour.folders))).marker
        if rng.random() < 0.1 and marker not in self.server.objects:
            self.server.store(marker, b"", DAMAGE)
            self.checker.records_damaged = True
            self.note("empty _SUCCESS of another program", "")
        elif candidates:
            self._damage(rng.choice(candidates))

    def _damage(self, key: str) -> None:
        rng = self.rng
        before = self.server.objects[key]
        is_part = self.hour.is_part_like(key)
        if is_part:
            self.checker.excuse_part(before)
        else:
            self.checker.records_damaged = True
        kind = rng.choice(
            ("delete", "cut", "flip", "empty") if is_part else ("delete", "cut", "flip", "empty", "format")
        )
        self.note(f"damaged {'part' if is_part else 'record'}", f"{key.removeprefix(self.hour.base)}: {kind}")
        self.checker.damaged[key] = self.scheduler.step
        if kind == "delete":
            self.server.remove(key)
        else:
            # As if somebody had written it again, in the bucket's own class: archived bytes cannot change.
            headers = {name: value for name, value in before.headers.items() if name != "x-amz-storage-class"}
            self.server.store(key, _damage_body(rng, key, before.body, kind), DAMAGE, headers=headers)

    # -- the hour at the start -------------------------------------------------------------------------

    def prepare(self) -> None:
        """Set up the hour as producers, an older version and other programs left it."""
        rng = self.rng
        self._put_neighbours()
        for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 9, 12))):
            self._write_random_object()
        if self.layout.has_groups and self.layout.rng.random() < 0.3:
            # A group of which everything is left out.
            place = self._random_place()
            for key in [key for key in self.raw_objects() if key.startswith(place.raw)]:
                self.remove_raw_object(key)
            self.write_raw_object(f"{place.raw}.hidden", b"left out")
        self.scheduler.step += 1
        draw = rng.random()
        if not self.layout.is_usual:
            # The older version had neither groups nor two connections.
            return
        if draw < 0.2:
            self.note("completed by the older version", "")
            write_old_hour(self, complete=True)
            self.scheduler.step += 1
            if rng.random() < 0.5:
                self.change_raw_objects()
            if rng.random() < 0.3:
                self.note("the older version was stopped", "")
                write_old_hour(self, complete=False)
        elif draw < 0.3:
            self.note("the older version was stopped", "")
            write_old_hour(self, complete=False)

    def _put_neighbours(self) -> None:
        """Write objects that are not of this hour: of the next one, of another stream, and in the other store."""
        hour = self.hour
        for server in self.servers:
            server.store("elsewhere/object.log", b"not ours", FOREIGN)
        for prefix in hour.prefixes:
            following = prefix.replace("20261123/08/", "20261123/09/")
            self.server.store(f"{following}_SUCCESS", b"not this hour", FOREIGN)
            self.server.store(f"{following}part-00000.log", b"not this hour", FOREIGN)
        for place in hour.places:
            following = place.raw.replace("20261123/08/", "20261123/09/")
            self.source.store(f"{following}1.log", b"not this hour", FOREIGN)
        if self.has_two_stores:
            # Under the very keys of the hour, in the wrong store.
            for place in hour.places:
                self.server.store(f"{place.raw}1.log", b"not a raw object", FOREIGN)
            for prefix in hour.prefixes:
                self.source.store(f"{prefix}_SUCCESS", b"{}", FOREIGN)
                self.source.store(f"{prefix}{OUR_PART_NAME}", b"not a part", FOREIGN)


def _damage_body(rng: random.Random, key: str, body: bytes, kind: str) -> bytes:
    if kind == "empty" or not body:
        return b""
    if kind == "cut":
        return body[: rng.randrange(len(body))]
    if kind == "flip":
        return flip_bit(body, rng.randrange(8 * len(body)))
    packed = key.endswith(".gz")
    try:
        text = gzip.decompress(body).decode() if packed else body.decode()
    except (OSError, EOFError, ValueError, zlib.error):
        return b"{}"
    text = re.sub(r'("format": ?)\d+', r"\g<1>99", text)
    return gzip.compress(text.encode()) if packed else text.encode()
