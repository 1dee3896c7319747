"""Which readers read the parts of every encoding completely, as `make test-readers` runs it.

The parts are made by the real steps on a real server. Each cell of the matrix has a known result, so that a
change in a reader is noticed. If every reader could be run, docs/READERS.md is written.
"""

import bz2
import gzip
import json
import lzma
import os
import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard

from dev.servers import RcloneServer
from include.log_rollup import compression
from include.log_rollup.queries.verify import verify_hour
from log_rollup_plugin.s3.stream_store import store_for
from tests.readers import commands
from tests.readers.libraries import LIBRARIES, Library
from tests.support.debian import MissingProgramError, program
from tests.support.hour_on_server import Pipeline, stream_on
from tests.support.raw_hours import RAW, put_objects

pytestmark = [pytest.mark.readers, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "READERS.md"
PYTHON = ROOT / ".venv-readers" / "bin" / "python"
COMMANDS = "Commands"

OBJECTS = 24
RECORDS_EACH = 25
RECORDS = OBJECTS * RECORDS_EACH
# PyArrow reads blocks of 1 MiB: the documents have two blocks, the large ones more.
MESSAGE_BYTES = 1000
LARGE_MESSAGE_BYTES = 3000
FRAME_BYTES = 256 * 1024

PLAIN, ZSTD, GZIP = "plain", "zstd frames", "gzip frames"
RAW_PARTS = (".gz", ".zst", ".bz2", ".xz", ".lz4")
DOCUMENTS = ("documents .gz", "documents .zst")
SEPARATED = ("separated .gz", "separated .zst")
LARGE = "large documents .gz"
# Only the readers of every encoding are tried with these.
SEPARATED_TOO = ("separated .bz2", "separated .xz", "separated .lz4")
PARTS = (PLAIN, ZSTD, GZIP, *RAW_PARTS, *DOCUMENTS, LARGE, *SEPARATED)
ALL_PARTS = (*PARTS, *SEPARATED_TOO)
COMPRESSED = tuple(part for part in ALL_PARTS if part != PLAIN)

YES, NO = "yes", "no"
ERROR_CHARACTERS = 120


def drops(lost: int) -> str:
    """The result of a reader that reports no error and finds too few records."""
    return f"drops {lost} of {RECORDS}"


FIRST_FRAME = drops(475)
FIRST_OBJECT = drops(RECORDS - RECORDS_EACH)


@dataclass(frozen=True)
class Known:
    """What is known of a reader.

    :param parts: which it is tried with
    :param results: of the parts that are not read completely
    :param advice: what to use instead
    """

    parts: Sequence[str] = PARTS
    results: Mapping[str, str] = field(default_factory=dict)
    advice: str = ""


KNOWN: Mapping[str, Known] = {
    "duckdb_json": Known(
        results=dict.fromkeys((".bz2", ".xz", ".lz4"), NO),
        advice="Decompress `.bz2`, `.xz` and `.lz4` with their commands first.",
    ),
    "polars_json": Known(
        results=dict.fromkeys((".bz2", ".xz", ".lz4", *DOCUMENTS, LARGE), NO),
        advice="Decompress `.bz2`, `.xz` and `.lz4` with their commands or Python's modules first. "
        "Separate the documents.",
    ),
    "pandas_json": Known(
        results=dict.fromkeys((".lz4", *DOCUMENTS, LARGE), NO),
        advice="Open `.lz4` with `lz4.frame.open` and pass the file. Separate the documents.",
    ),
    "pandas_opened": Known(parts=(".lz4",)),
    "pyarrow_json": Known(
        results=dict.fromkeys((".xz", LARGE), NO),
        advice="Open `.xz` with `lzma.open` and pass the file. Documents end to end are one line, which must fit "
        "into two blocks: set `block_size` (1 MiB by default) above the size of the part's content.",
    ),
    "pyarrow_blocks": Known(parts=(LARGE,)),
    "pyarrow_opened": Known(parts=(".xz",)),
    "pyarrow_dataset": Known(
        results={
            **dict.fromkeys((ZSTD, ".zst", ".xz", "documents .zst", LARGE, "separated .zst"), NO),
            "documents .gz": drops(RECORDS),
        },
        advice="Datasets don't decompress zstd by the extension, and turn documents end to end into rows of "
        "nulls. Use `json.read_json`, or separate the documents and use gzip.",
    ),
    "clickhouse_json": Known(
        results={".bz2": NO},
        advice="The ClickHouse in chdb is built without bzip2: decompress such parts first.",
    ),
    "spark_json": Known(
        results={
            **dict.fromkeys((".xz", ".lz4"), NO),
            **dict.fromkeys((*DOCUMENTS, LARGE), FIRST_OBJECT),
        },
        advice="Spark takes the first document of a line and ignores the rest of the line. Separate the "
        "documents, or split the text as below. Exclude `.lz4`: Spark takes it for Hadoop's own format of LZ4 "
        "blocks, its driver runs out of memory, and the session ends. Exclude `.xz`: Spark has no codec for it.",
    ),
    "spark_schema": Known(
        parts=(".xz",),
        results={".xz": drops(RECORDS)},
        advice="With a schema, the bytes of an `.xz` part become rows of nulls. `FAILFAST` makes that an error.",
    ),
    "spark_failfast": Known(parts=(".xz",), results={".xz": NO}),
    "spark_multiline": Known(
        parts=(*DOCUMENTS, *SEPARATED),
        results=dict.fromkeys((*DOCUMENTS, *SEPARATED), FIRST_OBJECT),
        advice="With `multiLine`, Spark takes the first document of a part, whatever comes behind it, and "
        "`FAILFAST` does not notice the rest. Leave `multiLine` off.",
    ),
    "spark_split": Known(parts=(*DOCUMENTS, LARGE, *SEPARATED)),
    "python_open": Known(parts=ALL_PARTS),
    "python_decompress": Known(
        parts=COMPRESSED,
        results={
            ZSTD: FIRST_FRAME,
            **dict.fromkeys(
                (".zst", ".lz4", "documents .zst", "separated .zst", "separated .lz4"), FIRST_OBJECT
            ),
        },
        advice="The one-shot functions of zstandard and lz4 return the first frame only. Use `zstandard.open` and "
        "`lz4.frame.open`, which accept a file object too, or `decompressobj(read_across_frames=True)`. "
        "`allow_extra_data=False` makes the loss an error.",
    ),
    "zstandard_strict": Known(parts=(ZSTD, ".zst"), results=dict.fromkeys((ZSTD, ".zst"), NO)),
    "zstandard_iter": Known(
        parts=(ZSTD, ".zst"),
        results={ZSTD: FIRST_FRAME, ".zst": FIRST_OBJECT},
        advice="Use `zstandard.open`.",
    ),
    "zstandard_object": Known(
        parts=(ZSTD, ".zst"),
        results={ZSTD: FIRST_FRAME, ".zst": FIRST_OBJECT},
        advice="Give it `read_across_frames=True`.",
    ),
    "zstandard_across": Known(parts=(ZSTD, ".zst")),
    commands.CAT: Known(parts=ALL_PARTS),
    commands.RG: Known(parts=ALL_PARTS),
}
READERS: Mapping[str, tuple[str, str]] = {
    reader.__name__: (library.name, " ".join((reader.__doc__ or "").split()))
    for library in LIBRARIES
    for reader in library.readers
} | {call: (COMMANDS, call) for call in (commands.CAT, commands.RG)}
"""The library and the call of each reader."""


# -- the parts --------------------------------------------------------------------------------------------


def zstd_as_producers(content: bytes, states_size: bool) -> bytes:
    """A zstd frame; a producer that streams cannot state the size of its content."""
    if states_size:
        return zstandard.compress(content)
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(content) + compressor.flush()


def encode(extension: str, content: bytes, number: int) -> bytes:
    """The content as a producer encodes its object with this number."""
    match extension:
        case ".gz":
            return gzip.compress(content, mtime=0)
        case ".zst":
            return zstd_as_producers(content, number % 2 == 0)
        case ".bz2":
            return bz2.compress(content)
        case ".xz":
            return lzma.compress(content, preset=0)
        case ".lz4":
            compressed: bytes = lz4.frame.compress(content)
            return compressed
    return content


def raw_objects(message_bytes: int = MESSAGE_BYTES) -> list[list[dict[str, Any]]]:
    """The records of each raw object.

    :param message_bytes: size of a record's message, which is written as twice as many hexadecimal digits
    """
    rng = random.Random(17)
    records = [
        {
            "id": number,
            "host": f"web-{number % 7}",
            "level": rng.choice(("INFO", "WARN")),
            "message": rng.randbytes(message_bytes).hex(),
        }
        for number in range(RECORDS)
    ]
    return [records[start : start + RECORDS_EACH] for start in range(0, RECORDS, RECORDS_EACH)]


def as_documents(objects: Sequence[Sequence[Mapping[str, Any]]]) -> list[bytes]:
    """Each raw object as one JSON document."""
    return [json.dumps({"Records": records}).encode() for records in objects]


def roll_up(
    server: RcloneServer, raw: Mapping[str, bytes], folder: Path, **settings: Any
) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """Roll an hour up and download it.

    :returns: its parts by the encoding of their raw objects, and the lines of its manifest
    """
    bucket = folder.name
    server.create_bucket(bucket)
    pipeline = Pipeline(stream_on(bucket, **settings), server.client(), bucket)
    put_objects(pipeline.client, bucket, {RAW + name: body for name, body in raw.items()})
    pipeline.run()
    store = store_for(pipeline.stream, 2, 2)
    assert verify_hour(store, pipeline.stream, pipeline.hour, deep=True).problems == []
    folder.mkdir()
    for key in pipeline.listed():
        body = pipeline.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        (folder / Path(key).name).write_bytes(body)
    server.delete_bucket(bucket)
    manifest = gzip.decompress((folder / "_manifest.jsonl.gz").read_bytes())
    lines = [json.loads(line) for line in manifest.splitlines()]
    return {path.suffix: path for path in folder.glob("part-*")}, lines[1:]


@pytest.fixture(scope="module")
def parts(rclone_server: RcloneServer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A part of each kind; each has all records."""
    folder = tmp_path_factory.mktemp("parts")
    objects = raw_objects()
    lines = ["".join(json.dumps(record) + "\n" for record in records).encode() for records in objects]
    texts = as_documents(objects)
    large = {
        f"{number:03d}.json.gz": encode(".gz", body, number)
        for number, body in enumerate(as_documents(raw_objects(LARGE_MESSAGE_BYTES)))
    }
    plain = {f"{number:03d}.log": body for number, body in enumerate(lines)}
    encoded = {
        f"{number:03d}.log{extension}": encode(extension, body, number)
        for number, body in enumerate(lines)
        for extension in RAW_PARTS
    }
    in_documents = {
        f"{number:03d}.json{extension}": encode(extension, body, number)
        for number, body in enumerate(texts)
        for extension in RAW_PARTS
    }
    two_encodings = {name: body for name, body in in_documents.items() if name.endswith((".gz", ".zst"))}
    made: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", rclone_server.airflow_connection_json())
        patch.setattr(compression, "FRAME_BYTES", FRAME_BYTES)
        found, _ = roll_up(rclone_server, plain | encoded, folder / "joined")
        made[PLAIN] = found.pop(".log")
        made |= found
        for name, part in (("zstd", ZSTD), ("gzip", GZIP)):
            found, manifest = roll_up(rclone_server, plain, folder / name, compression=name)
            (made[part],) = found.values()
            assert len({line["frame_offset"] for line in manifest}) >= 3
        found, _ = roll_up(rclone_server, large, folder / "large")
        made[LARGE] = found[".gz"]
        found, _ = roll_up(rclone_server, two_encodings, folder / "documents")
        made |= {f"documents {extension}": path for extension, path in found.items()}
        found, _ = roll_up(rclone_server, in_documents, folder / "separated", ensure_newline=True)
        made |= {f"separated {extension}": path for extension, path in found.items()}
    assert set(made) == set(ALL_PARTS)
    return made


# -- the readers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcomes:
    """What the readers found.

    :param cells: by reader and part, the result
    :param errors: by reader and part, what a reader said
    :param versions: of each library and command
    :param missing: by library, why it could not be run
    """

    cells: dict[tuple[str, str], str] = field(default_factory=dict)
    errors: dict[tuple[str, str], str] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, reader: str, part: str, path: Path, found: Mapping[str, Any]) -> None:
        """Compare what a reader found with what was written."""
        if "error" in found:
            self.cells[reader, part] = NO
            lines = [line.strip() for line in found["error"].replace(str(path), "part").splitlines()]
            self.errors[reader, part] = shortened(lines)
            return
        ids = [number for number in found["ids"] if number is not None]
        if len(ids) != len(set(ids)) or not set(ids) <= set(range(RECORDS)):
            self.cells[reader, part] = "wrong records"
        else:
            self.cells[reader, part] = YES if len(ids) == RECORDS else drops(RECORDS - len(ids))


def shortened(lines: Sequence[str]) -> str:
    """The first words of an error of several lines; for an error in Java, of its cause."""
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith(("Caused by: ", "java."))]
    text = next((line for line in [*causes[-1:], *lines] if line), "")
    return text if len(text) <= ERROR_CHARACTERS else text[:ERROR_CHARACTERS].rpartition(" ")[0] + " …"


def tasks_of(library: Library) -> list[tuple[str, str]]:
    """The readers and parts of a library; those with lz4, which may end Spark's session, come last."""
    tasks = [(reader.__name__, part) for reader in library.readers for part in KNOWN[reader.__name__].parts]
    return sorted(tasks, key=lambda task: task[1] == ".lz4")


def run_library(library: Library, parts: Mapping[str, Path], outcomes: Outcomes) -> None:
    """Let the readers of a library read the parts, in a process of their own."""
    tasks = tasks_of(library)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "readers" / "libraries.py", library.name],
        input="".join(json.dumps([reader, part, str(parts[part])]) + "\n" for reader, part in tasks),
        env=environment | {"SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(tasks) + 1, done.stderr[-2000:]
    outcomes.versions[library.name] = answers[0]["versions"]
    for answer in answers[1:]:
        outcomes.add(answer["reader"], answer["part"], parts[answer["part"]], answer)


@pytest.fixture(scope="module")
def outcomes(parts: Mapping[str, Path]) -> Outcomes:
    """What all readers found; the page is written if all could be run."""
    if not PYTHON.exists():
        pytest.fail("the readers' environment .venv-readers is missing: run make test-readers", pytrace=False)
    found = Outcomes()
    for library in LIBRARIES:
        try:
            java = program("java", "default-jre-headless") if library.name == "Spark" else None
        except MissingProgramError as error:
            found.missing[library.name] = str(error)
            continue
        run_library(library, parts, found)
        if java:
            done = subprocess.run([java, "-version"], capture_output=True, text=True)
            found.versions[library.name].append(done.stderr.splitlines()[0])
    try:
        found.versions[COMMANDS] = commands.versions()
    except MissingProgramError as error:
        found.missing[COMMANDS] = str(error)
    else:
        for reader in (commands.CAT, commands.RG):
            for part in KNOWN[reader].parts:
                found.add(reader, part, parts[part], commands.read(reader, parts[part]))
    if not found.missing:
        PAGE.write_text(page(found), encoding="utf-8")
    return found


@pytest.mark.parametrize("reader", KNOWN)
def test_results_are_the_known_ones(reader: str, outcomes: Outcomes) -> None:
    library, _ = READERS[reader]
    if library in outcomes.missing:
        pytest.skip(outcomes.missing[library])
    known = KNOWN[reader]
    found = {part: outcomes.cells[reader, part] for part in known.parts}
    errors = {part: outcomes.errors.get((reader, part)) for part in known.parts}
    assert found == {part: known.results.get(part, YES) for part in known.parts}, errors


def test_each_reader_has_known_results() -> None:
    assert set(KNOWN) == set(READERS)


# -- the page ---------------------------------------------------------------------------------------------

SECTION = "SOURCES.md#json-documents-without-a-newline"
INTRODUCTION = f"""\
# Readers

Which programs read the parts completely. `make test-readers` writes this page: the real steps roll up
{RECORDS} log records in {OBJECTS} raw objects on a real S3 server, each reader reads a part of each kind, and the
records it finds are compared with those that were written.

| column | what the part holds |
|---|---|
| {PLAIN} | lines of JSON, not compressed |
| {ZSTD}, {GZIP} | the same, written with `compression: zstd` or `gzip`, in at least three frames |
| {", ".join(RAW_PARTS)} | the same, from raw objects with this extension, joined as they are |
| {", ".join(DOCUMENTS)} | raw objects of one JSON document each, without a newline, joined as they are |
| {LARGE} | the same, with more than 2 MiB of content |
| {", ".join((*SEPARATED, *SEPARATED_TOO))} | these documents (the smaller ones), with `ensure_newline: true` |

**DROPS** is the result to fear: the reader reports no error and finds too few records.

## Results

The rows of Python and of the commands take documents apart by their syntax, as in
[SOURCES.md]({SECTION}).
"""


SEPARATE = f"""\
"Separate the documents" means: set `ensure_newline: true`, or put a newline between them afterwards as
[SOURCES.md]({SECTION}) shows."""


def cell(outcomes: Outcomes, reader: str, part: str) -> str:
    """A cell of the matrix."""
    result = outcomes.cells.get((reader, part), "")
    return f"**{result.replace('drops', 'DROPS')}**" if result not in (YES, NO, "") else result


def page(outcomes: Outcomes) -> str:
    """The page docs/READERS.md."""
    lines = [INTRODUCTION, f"| reader | {' | '.join(ALL_PARTS)} |", "|---" * (len(ALL_PARTS) + 1) + "|"]
    for reader, (library, call) in READERS.items():
        cells = " | ".join(cell(outcomes, reader, part) for part in ALL_PARTS)
        lines.append(f"| {library} {call} | {cells} |")
    lines += ["", "An empty cell was not tried.", "", "## What to use instead", "", SEPARATE, ""]
    for reader, (library, call) in READERS.items():
        if KNOWN[reader].advice:
            lines.append(f"- **{library}** {call}: {KNOWN[reader].advice}")
    lines += ["", "## Errors", "", "| reader | part | error |", "|---|---|---|"]
    for (reader, part), error in outcomes.errors.items():
        library, call = READERS[reader]
        lines.append(f"| {library} {call} | {part} | `{error.replace('|', '/').replace('`', '')}` |")
    lines += ["", "## Versions", "", "| reader | version |", "|---|---|"]
    lines += [f"| {library} | {', '.join(versions)} |" for library, versions in outcomes.versions.items()]
    return "\n".join(lines) + "\n"
