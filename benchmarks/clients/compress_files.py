"""Compresses the content of whole parts, as a program without frames and without S3 would, and measures it.

Run as ``python -m benchmarks.clients.compress_files JOB``. The files are read before the clock starts.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.clients.job import Clock, Job

# As the codecs of compressed parts.
COMPRESSORS: Mapping[str, Callable[[], Any]] = {
    "zstd": lambda: zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj(),
    "gzip": lambda: zlib.compressobj(6, wbits=zlib.MAX_WBITS | 16),
}


def main() -> None:
    """Compress the files below the job's option ``folder`` with the format that ``compression`` names."""
    job = Job.from_arguments()
    compressor = COMPRESSORS[job.options["compression"]]
    seconds = cpu_seconds = 0.0
    raw_bytes = stored_bytes = 0
    for contents in parts(sorted(Path(job.options["folder"]).rglob("*.log")), job.part_bytes):
        with Clock() as clock:
            compressing = compressor()
            stored_bytes += sum(len(compressing.compress(content)) for content in contents)
            stored_bytes += len(compressing.flush())
        seconds += clock.seconds
        cpu_seconds += clock.cpu_seconds
        raw_bytes += sum(map(len, contents))
    job.finish(seconds=seconds, cpu_seconds=cpu_seconds, raw_bytes=raw_bytes, stored_bytes=stored_bytes)


def parts(files: Sequence[Path], part_bytes: int) -> Iterator[list[bytes]]:
    """Yield the contents of the files of each part."""
    contents: list[bytes] = []
    size = 0
    for path in files:
        content = path.read_bytes()
        if contents and size + len(content) > part_bytes:
            yield contents
            contents, size = [], 0
        contents.append(content)
        size += len(content)
    if contents:
        yield contents


if __name__ == "__main__":
    main()
