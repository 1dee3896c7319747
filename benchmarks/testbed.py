"""The testbed of the comparison: one raw hour, in memory if it fits, and real S3 servers."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import psutil

from benchmarks.clients.job import Job
from benchmarks.settings import CONNECTIONS, PART_BYTES
from dev.made_logs.log_files import HOSTS, MEAN_OBJECT_BYTES, MadeHour, write_hour
from dev.servers import RcloneServer, S3Server
from dev.tls import TlsFiles, make_tls_files

BUCKET = "bench"
STREAM_PREFIX = "raw/app/"
HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)
RAW_PREFIX = f"{STREAM_PREFIX}{HOUR:%Y%m%d/%H}/"
SEED = 250
SHARED_MEMORY = Path("/dev/shm")
# The raw hour, the parts of one program, and two temporary copies that some programs write.
COPIES = 4
# Memory for the measured program, the server and other users of the machine.
SPARE_BYTES = 5 * 1024**3


class NoRoomError(Exception):
    """Neither memory nor disk has enough space for the hour."""


class BenchServer(RcloneServer):
    """``rclone serve s3`` with its fastest settings, over a directory that several servers share."""

    def __init__(self, state_dir: Path, data_dir: Path, tls: TlsFiles | None) -> None:
        super().__init__(state_dir, tls)
        self.data_dir = data_dir

    def command(self) -> list[str]:
        """See :meth:`dev.servers.S3Server.command`.

        The server's own checks and its buffer are off: they would cost every client the same. Its directory cache
        never expires, because a new listing would hash all objects again.
        """
        fast = ("--no-checksum", "--ignore-checksum", "--buffer-size=0", "--dir-cache-time=24h")
        return [*super().command(), *fast]


@dataclass(frozen=True)
class Testbed:
    """The raw hour, and a server for plain HTTP and one for TLS."""

    folder: Path
    in_memory: bool
    objects: int
    bytes: int
    servers: Mapping[bool, S3Server]

    def __str__(self) -> str:
        where = "in memory" if self.in_memory else f"on disk in {self.folder.parent}: too large for memory"
        return f"{self.objects:,} raw objects, {self.bytes / 1e6:,.0f} MB, {where}"

    @property
    def raw_folder(self) -> Path:
        """The directory of the raw objects as files."""
        return self.folder / "data" / BUCKET / RAW_PREFIX

    def out_folder(self, out_prefix: str) -> Path:
        """Return the directory of the parts below a prefix."""
        return self.folder / "data" / BUCKET / out_prefix

    def job(
        self, tls: bool, out_prefix: str, result: Path, part_bytes: int = PART_BYTES, **options: object
    ) -> Job:
        """Return the job of a Python program."""
        server = self.servers[tls]
        return Job(
            endpoint=server.endpoint_url,
            ca=str(server.tls.ca) if server.tls else "",
            access_key=server.access_key,
            secret_key=server.secret_key,
            region=server.region,
            bucket=BUCKET,
            raw_prefix=RAW_PREFIX,
            out_prefix=out_prefix,
            part_bytes=part_bytes,
            connections=CONNECTIONS,
            result=str(result),
            options={"hour": HOUR.isoformat(), "stream_prefix": STREAM_PREFIX, **options},
        )

    def written(self, out_prefix: str) -> list[Path]:
        """Return the parts below a prefix in the order of their names; names with ``_`` are no parts."""
        folder = self.out_folder(out_prefix)
        files = (path for path in folder.rglob("*") if path.is_file())
        return sorted(path for path in files if "/_" not in f"/{path.relative_to(folder).as_posix()}")

    @cached_property
    def raw_md5(self) -> str:
        """MD5 of the concatenated raw objects: plain objects first, then gzip, each by key."""
        files = [path for path in self.raw_folder.rglob("*") if path.is_file()]
        keys = {path.relative_to(self.raw_folder).as_posix(): path for path in files}
        order = sorted(keys, key=lambda key: (key.endswith(".gz"), key.encode()))
        return md5_of(keys[key] for key in order)


def md5_of(files: Iterator[Path] | list[Path]) -> str:
    """Return the MD5 of the concatenated files."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1024**2):
                digest.update(block)
    return digest.hexdigest()


def write_made_hour(folder: Path, objects: int) -> MadeHour:
    """Write the raw hour of the comparison below a directory."""
    return write_hour(folder, HOUR, objects, SEED)


def write_plain_hour(folder: Path, objects: int) -> MadeHour:
    """Write an hour of the same hosts, but without those that compress."""
    return write_hour(folder, HOUR, objects, SEED, [host for host in HOSTS if not host.gzipped])


@contextmanager
def open_testbed(
    objects: int, tls: tuple[bool, ...], write: Callable[[Path, int], MadeHour] = write_made_hour
) -> Iterator[Testbed]:
    """Make the hour and start the servers; remove and stop them at the end.

    :param objects: number of raw objects
    :param write: writes so many raw objects, of 100 KB to 1 MB, below a directory
    :raises NoRoomError: with the needed size
    """
    needed = objects * MEAN_OBJECT_BYTES * COPIES
    parent, in_memory = _place(needed)
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="log-rollup-bench-", dir=parent))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        raw = folder / "data" / BUCKET / RAW_PREFIX
        made = write(raw, objects)
        certificates = make_tls_files(folder / "tls")
        servers = {}
        for secure in tls:
            server = BenchServer(
                folder / f"server-{'tls' if secure else 'http'}",
                folder / "data",
                certificates if secure else None,
            )
            servers[secure] = cleanup.enter_context(server)
        yield Testbed(folder, in_memory, made.objects, made.bytes, servers)


def _place(needed_bytes: int) -> tuple[Path, bool]:
    with suppress(OSError):
        free = min(shutil.disk_usage(SHARED_MEMORY).free, psutil.virtual_memory().available - SPARE_BYTES)
        if free > needed_bytes:
            return SHARED_MEMORY, True
    parent = Path(tempfile.gettempdir())
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise NoRoomError(
            f"{needed_bytes / 1e9:.0f} GB are needed, more than {SHARED_MEMORY} or {parent} ({free / 1e9:.0f} GB "
            f"free) has; set fewer OBJECTS, or set TMPDIR to a larger disk"
        )
    return parent, False
