"""Makes a raw hour of the log files that this machine has written."""

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

from benchmarks.testbed import HOUR, SEED
from dev.made_logs.log_files import MAX_OBJECT_BYTES, MIN_OBJECT_BYTES, MadeHour
from include.log_rollup.decompression import LONGEST_MAGIC_BYTES, encoding_of_content

LEAST_BYTES = 16 * 1024**2
"""An hour of less text would repeat it within a frame or a compressor's window, and compress too well."""
_PROBE_BYTES = 4096


def default_folders() -> tuple[Path, ...]:
    """The directories of system logs and of Airflow's logs."""
    home = Path(os.environ.get("AIRFLOW_HOME") or Path.home() / "airflow")
    return Path("/var/log"), home / "logs"


def find_text(folders: Iterable[Path]) -> list[Path]:
    """Return the text files below some directories, sorted by directory and path; links are not followed."""
    return [
        path
        for folder in folders
        for path in sorted(
            Path(found, name) for found, _, names in os.walk(folder) for name in names
        )
        if path.is_file() and not path.is_symlink() and _is_text(path)
    ]  # fmt: skip


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            beginning = file.read(_PROBE_BYTES)
    except OSError:
        return False
    return (
        bool(beginning)
        and b"\0" not in beginning
        and not encoding_of_content(beginning[:LONGEST_MAGIC_BYTES])
    )


def write_text_hour(files: Sequence[Path], folder: Path, objects: int) -> MadeHour:
    """Write raw objects of 100 KB to 1 MB: the files one after the other, cut at the ends of lines.

    If there is too little text for so many objects, it is repeated.

    :param files: as :func:`find_text` returns them, with at least ``LEAST_BYTES`` bytes
    :param folder: the hour's directory, created if missing
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for number, content in zip(range(objects), _cut(files), strict=False):
        path = folder / f"host-{number:06}.log"
        path.write_bytes(content)
        os.utime(path, (HOUR.timestamp(), HOUR.timestamp()))
        written += len(content)
    return MadeHour(HOUR, objects, written)


def _cut(files: Sequence[Path]) -> Iterator[bytes]:
    """Yield contents of objects without end."""
    rng = random.Random(SEED)
    buffer = bytearray()
    size = rng.randint(MIN_OBJECT_BYTES, MAX_OBJECT_BYTES)
    for path in cycle(files):
        buffer += path.read_bytes()
        while len(buffer) > size:
            end = buffer.rfind(b"\n", 0, size) + 1 or size
            yield bytes(buffer[:end])
            del buffer[:end]
            size = rng.randint(MIN_OBJECT_BYTES, MAX_OBJECT_BYTES)
