"""Measures compression: the ratio by size of frames, and the pack step with and without it.

The raw hours are plain objects: the log files of this machine, and the made logs of the demo.
"""

import gzip
import hashlib
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, BinaryIO

import zstandard

from benchmarks import log_text, peers
from benchmarks.clients.compress_files import COMPRESSORS, parts
from benchmarks.compare import BrokenError, plan, run_checked, scratch_folder
from benchmarks.peers import Run
from benchmarks.results import Measurement, machine, verdict
from benchmarks.settings import BUILD, MIB, PART_BYTES, PROJECT, Settings
from benchmarks.table import as_table, write_json
from benchmarks.testbed import NoRoomError, Testbed, md5_of, open_testbed, write_plain_hour
from dev.made_logs.log_files import MadeHour
from include.log_rollup.compression import FRAME_BYTES, codec_of

# The default of a stream with compression.
COMPRESSED_PART_BYTES = 256 * MIB
FRAME_SIZES_MIB = (1, 2, 4, 6, 8)
PART_SIZES_MIB = (32, 256)
# Enough for two whole parts.
RATIO_BYTES = 2 * COMPRESSED_PART_BYTES
REAL = "log files"
# The names of the smallest units.
FILE, OBJECT = "log file", "object"
SMALL_FILE, SMALL_FILES = "small log file", "frame of small log files"
SMALL_FILE_BYTES = 100_000
MODES = ("none", "zstd", "gzip")

Rows = list[dict[str, Any]]


def compression(settings: Settings) -> int:
    """Measure both hours, print tables and goals, write ``build/bench-compression.json``, return the exit code."""
    folders = settings.folders or log_text.default_folders()
    files = log_text.find_text(folders)
    size = sum(path.stat().st_size for path in files)
    print(f"log files: {size / 1e6:,.0f} MB in {len(files):,} files below {' '.join(map(str, folders))}")
    hours: dict[str, Callable[[Path, int], MadeHour]] = {"made logs": write_plain_hour}
    if size < log_text.LEAST_BYTES:
        print(
            f"too little to measure, at least {log_text.LEAST_BYTES / 1e6:.0f} MB are needed: give directories "
            "of log files, as in python -m benchmarks compression DIR ..."
        )
    else:
        hours = {REAL: partial(log_text.write_text_hour, files), **hours}
    rows: Rows = []
    try:
        for source, write in hours.items():
            with open_testbed(settings.objects, (False,), write) as testbed:
                print(f"\n{source}: {testbed}; {machine()}\n", flush=True)
                rows += ratios(source, testbed, files if source == REAL else ())
                rows += packing(source, testbed, settings)
    except (NoRoomError, BrokenError) as error:
        print(error, file=sys.stderr)
        return 1
    target = BUILD / "bench-compression.json"
    write_json(target, rows)
    print(f"\nwrote {target.relative_to(PROJECT)}")
    return 0


# -- ratios ------------------------------------------------------------------------------------------------


def ratios(source: str, testbed: Testbed, log_files: Sequence[Path]) -> Rows:
    """Compress the beginning of the hour in units of increasing size.

    :param log_files: files to compress each by itself, as a producer that writes an object for each would
    """
    files = []
    total = 0
    for path in raw_files(testbed):
        if total + path.stat().st_size > RATIO_BYTES:
            break
        files.append(path)
        total += path.stat().st_size
    units: dict[str, Iterable[list[bytes]]] = {}
    if log_files:
        small = [path for path in log_files if path.stat().st_size <= SMALL_FILE_BYTES]
        units[SMALL_FILE] = ([path.read_bytes()] for path in small)
        units[SMALL_FILES] = parts(small, FRAME_BYTES)
        units[FILE] = ([path.read_bytes()] for path in log_files)
    units[OBJECT] = ([path.read_bytes()] for path in files)
    units |= {f"frame of {mib} MiB": parts(files, mib * MIB) for mib in FRAME_SIZES_MIB}
    units |= {f"part of {mib} MiB": parts(files, mib * MIB) for mib in PART_SIZES_MIB}
    rows: Rows = []
    for name, contents in units.items():
        sizes, seconds = _compress_all(contents, as_frames=name.startswith("frame"))
        row: dict[str, Any] = {"hour": source, "unit": name}
        for compressor in COMPRESSORS:
            row[f"{compressor} ratio"] = round(sizes["none"] / sizes[compressor], 2)
            row[f"{compressor} MB/s"] = round(sizes["none"] / 1e6 / seconds[compressor])
        rows.append(row)
    print(f"ratio of raw to compressed bytes, and MB per second of CPU, of {total / 1e6:,.0f} MB")
    print(as_table(rows), flush=True)
    ratio = {row["unit"]: row["zstd ratio"] for row in rows}
    frames = ratio[f"frame of {FRAME_BYTES // MIB} MiB"]
    if log_files:
        verdict(
            "zstd, ratio of small log files in frames / each",
            ratio[SMALL_FILES] / ratio[SMALL_FILE],
            1.75,
            at_least=True,
        )
    for unit, least in (
        (FILE, 1.75),
        (OBJECT, 1.75),
        *((f"part of {mib} MiB", 0.88) for mib in PART_SIZES_MIB),
    ):
        if unit in ratio:
            verdict(f"zstd, ratio of frames / {unit}", frames / ratio[unit], least, at_least=True)
    print(flush=True)
    return rows


def _compress_all(units: Iterable[list[bytes]], *, as_frames: bool) -> tuple[Counter[str], dict[str, float]]:
    """Return the size of all units by compressor, that of ``none`` included, and the CPU seconds.

    :param as_frames: whether to compress as the pack step does, instead of by the library alone
    """
    sizes: Counter[str] = Counter()
    seconds = dict.fromkeys(COMPRESSORS, 0.0)
    for contents in units:
        sizes["none"] += sum(map(len, contents))
        for name, start in COMPRESSORS.items():
            began = process_time()
            if as_frames:
                sizes[name] += len(codec_of(name).compress(memoryview(b"".join(contents))))
            else:
                compressor = start()
                sizes[name] += sum(len(compressor.compress(content)) for content in contents)
                sizes[name] += len(compressor.flush())
            seconds[name] += process_time() - began
    return sizes, seconds


# -- the pack step -----------------------------------------------------------------------------------------


def packing(source: str, testbed: Testbed, settings: Settings) -> Rows:
    """Pack the hour in each mode in each round, next to the compression of the same bytes by a library alone."""
    rounds: dict[str, list[Measurement]] = defaultdict(list)
    stored: dict[str, int] = {}
    modes = [mode for mode in MODES if settings.wants(mode)]
    for number in range(1, settings.rounds + 1):
        for mode in modes if number % 2 else modes[::-1]:
            measured, stored[mode] = pack(testbed, mode, number)
            rounds[f"pack, {mode}"].append(measured)
            print(f"  round {number}, pack, {mode}: {measured}", flush=True)
            if mode != "none":
                measured, _ = library(testbed, mode)
                rounds[f"only {mode}"].append(measured)
                print(f"  round {number}, only {mode}: {measured}", flush=True)
    rows: Rows = [
        {
            "hour": source,
            "program": name,
            "s": round(median(each.seconds for each in measured), 2),
            "CPU s": round(median(each.cpu_seconds for each in measured), 2),
            "RSS MiB": round(max(each.peak_rss_bytes for each in measured) / MIB),
            "ratio": round(testbed.bytes / stored[name.removeprefix("pack, ")], 2)
            if name.startswith("pack")
            else "",
        }
        for name, measured in rounds.items()
    ]
    print(as_table(rows))
    print_goals(rows)
    return rows


def print_goals(rows: Sequence[dict[str, Any]]) -> None:
    """Print the cost of compression relative to packing without it, and the goals."""
    by_name = {row["program"]: row for row in rows}
    plain = by_name.get("pack, none")
    for mode in MODES[1:]:
        row = by_name.get(f"pack, {mode}")
        if row is None or plain is None:
            continue
        more = (row["CPU s"] - plain["CPU s"]) / by_name[f"only {mode}"]["CPU s"]
        verdict(f"{mode}: additional CPU / CPU of {mode} alone", more, 1.5)
        verdict(f"{mode}: wall time / without compression", row["s"] / plain["s"], 1.6)
        verdict(f"{mode}: peak RSS, MiB", row["RSS MiB"], 320)


def pack(testbed: Testbed, mode: str, number: int) -> tuple[Measurement, int]:
    """Pack the hour, each shard in a process of its own, and remove the parts.

    :param mode: the stream's ``compression``
    :param number: of the round; in the first, the content of the parts is compared with the raw objects
    :returns: what it took, and the bytes of the parts
    :raises BrokenError: if it fails, or the content differs
    """
    # Another one in each round: the server still lists files that are removed.
    out_prefix = f"out/{mode}-{number}/"
    options: dict[str, Any] = {
        "part_bytes": PART_BYTES if mode == "none" else COMPRESSED_PART_BYTES,
        "compression": mode,
    }
    shards = plan(testbed, False, out_prefix, **options)
    with scratch_folder(testbed) as scratch:
        job = Run(testbed, False, out_prefix, scratch, shards)
        os.sync()
        try:
            measurements = [
                _measure(
                    job,
                    job.python("rollup_steps", number=index, step="pack", shards=[shard], **options),
                    index,
                )
                for index, shard in enumerate(shards)
            ]
            written = testbed.written(out_prefix)
            if number == 1 and md5_of_content(written, mode) != md5_of(raw_files(testbed)):
                raise BrokenError(
                    f"compression: {mode}: the content of the parts differs from the raw objects"
                )
            return sum(measurements[1:], measurements[0]), sum(path.stat().st_size for path in written)
        finally:
            shutil.rmtree(testbed.out_folder(out_prefix), ignore_errors=True)


def library(testbed: Testbed, mode: str) -> tuple[Measurement, int]:
    """Compress the raw objects of each part in one piece, without S3.

    :returns: what it took, and the compressed bytes
    """
    with scratch_folder(testbed) as scratch:
        job = Run(testbed, False, "", scratch, ())
        command = job.python(
            "compress_files",
            compression=mode,
            part_bytes=COMPRESSED_PART_BYTES,
            folder=str(testbed.raw_folder),
        )
        return _measure(job, command, 0), int(peers.figures(job.result())["stored_bytes"])


def _measure(job: Run, command: Sequence[str], number: int) -> Measurement:
    observed = run_checked(job, command)
    own = peers.figures(job.result(number))
    return Measurement(
        seconds=own["seconds"],
        cpu_seconds=own["cpu_seconds"],
        peak_rss_bytes=max(own["peak_rss_bytes"], observed.peak_rss_bytes),
        peak_sockets=observed.peak_sockets,
    )


def raw_files(testbed: Testbed) -> list[Path]:
    """Return the raw objects in the order of their keys."""
    files = (path for path in testbed.raw_folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(testbed.raw_folder).as_posix())


def md5_of_content(files: Sequence[Path], mode: str) -> str:
    """Return the MD5 of the decompressed and concatenated parts."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in files:
        with path.open("rb") as file, _decompressing(file, mode) as content:
            while block := content.read(MIB):
                digest.update(block)
    return digest.hexdigest()


def _decompressing(file: BinaryIO, mode: str) -> BinaryIO:
    if mode == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return gzip.open(file, "rb") if mode == "gzip" else file  # type: ignore[return-value]
