"""The libraries that read parts. Runs as a program in an environment of its own; imports nothing of the project.

``python tests/readers/libraries.py LIBRARY < tasks`` reads tasks, a JSON array ``[reader, part, path]`` in each
line, and writes what each found: a JSON object with ``reader``, ``part``, and ``ids`` or ``error``. The docstring
of a reader is the call it makes, as the page shows it.
"""

import bz2
import gzip
import json
import lzma
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

Rows = list[dict[str, Any]]


def documents(text: str) -> Iterator[Any]:
    """The JSON documents of a text, with or without white space between them; as in docs/SOURCES.md."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        document, position = decoder.raw_decode(text, position)
        yield document
        while position < len(text) and text[position].isspace():
            position += 1


def ids_of(rows: Rows) -> list[Any]:
    """The ids of the log records in rows, each a record or a document of several; None for a record without id."""
    return [
        record.get("id") for row in rows for record in (row["Records"] or () if "Records" in row else [row])
    ]


def duckdb_json(path: str) -> Rows:
    """`read_json(part)`"""
    import duckdb

    found = duckdb.sql(f"FROM read_json('{path}')")
    assert found is not None
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def polars_json(path: str) -> Rows:
    """`scan_ndjson(part)`"""
    import polars

    rows: Rows = polars.scan_ndjson(path).collect().to_dicts()
    return rows


def pandas_json(path: str) -> Rows:
    """`read_json(part, lines=True)`"""
    import pandas

    rows: Rows = pandas.read_json(path, lines=True).to_dict("records")
    return rows


def pandas_opened(path: str) -> Rows:
    """`read_json(lz4.frame.open(part, "rt"), lines=True)`"""
    import pandas

    with _opened(path) as file:
        rows: Rows = pandas.read_json(file, lines=True).to_dict("records")
    return rows


def pyarrow_json(path: str) -> Rows:
    """`json.read_json(part)`"""
    from pyarrow import json as reader

    rows: Rows = reader.read_json(path).to_pylist()
    return rows


def pyarrow_blocks(path: str) -> Rows:
    """`json.read_json(part, ReadOptions(block_size=1 << 30))`"""
    from pyarrow import json as reader

    rows: Rows = reader.read_json(path, read_options=reader.ReadOptions(block_size=1 << 30)).to_pylist()
    return rows


def pyarrow_opened(path: str) -> Rows:
    """`json.read_json(lzma.open(part))`"""
    from pyarrow import json as reader

    with lzma.open(path) as file:
        rows: Rows = reader.read_json(file).to_pylist()
    return rows


def pyarrow_dataset(path: str) -> Rows:
    """`dataset.dataset(part, format="json")`"""
    from pyarrow import dataset

    rows: Rows = dataset.dataset(path, format="json").to_table().to_pylist()
    return rows


def clickhouse_json(path: str) -> Rows:
    """`file(part, JSONEachRow)`"""
    import chdb

    found = str(chdb.query(f"SELECT * FROM file('{path}', JSONEachRow)", "JSONEachRow"))
    return list(documents(found))


def spark_json(path: str) -> Rows:
    """`spark.read.json(part)`"""
    return _collect(_spark().read.json(path))


def spark_schema(path: str) -> Rows:
    """`spark.read.schema(…).json(part)`"""
    return _collect(_spark().read.schema("id long, host string, level string, message string").json(path))


def spark_failfast(path: str) -> Rows:
    """`spark.read.schema(…).json(part, mode="FAILFAST")`"""
    schema = "id long, host string, level string, message string"
    return _collect(_spark().read.schema(schema).json(path, mode="FAILFAST"))


def spark_multiline(path: str) -> Rows:
    """`spark.read.json(part, multiLine=True, mode="FAILFAST")`"""
    return _collect(_spark().read.json(path, multiLine=True, mode="FAILFAST"))


def spark_split(path: str) -> Rows:
    r"""`spark.read.text(part, wholetext=True)`, split at `(?<=\})\s*(?=\{"Records":)`"""
    from pyspark.sql.functions import col, explode, from_json, split

    schema = "Records array<struct<id: long, host: string, level: string, message: string>>"
    pieces = explode(split(col("value"), r'(?<=\})\s*(?=\{"Records":)')).alias("value")
    text = _spark().read.text(path, wholetext=True).select(pieces)
    return _collect(text.select(from_json("value", schema).alias("document")).select("document.*"))


def python_open(path: str) -> Rows:
    """`gzip.open`, `bz2.open`, `lzma.open`, `zstandard.open`, `lz4.frame.open`"""
    with _opened(path) as file:
        return list(documents(file.read()))


def python_decompress(path: str) -> Rows:
    """`gzip.decompress`, `bz2.decompress`, `lzma.decompress`, `ZstdDecompressor().decompress`,
    `lz4.frame.decompress`"""
    import lz4.frame
    import zstandard

    whole: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress,
        ".bz2": bz2.decompress,
        ".xz": lzma.decompress,
        ".zst": lambda data: zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 30),
        ".lz4": lz4.frame.decompress,
    }
    return list(documents(whole[Path(path).suffix](Path(path).read_bytes()).decode()))


def zstandard_strict(path: str) -> Rows:
    """`ZstdDecompressor().decompress(data, allow_extra_data=False)`"""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    data = Path(path).read_bytes()
    content = decompressor.decompress(data, max_output_size=1 << 30, allow_extra_data=False)
    return list(documents(content.decode()))


def zstandard_iter(path: str) -> Rows:
    """`ZstdDecompressor().read_to_iter(file)`"""
    import zstandard

    with Path(path).open("rb") as file:
        return list(documents(b"".join(zstandard.ZstdDecompressor().read_to_iter(file)).decode()))


def zstandard_object(path: str) -> Rows:
    """`ZstdDecompressor().decompressobj()`"""
    import zstandard

    data = zstandard.ZstdDecompressor().decompressobj().decompress(Path(path).read_bytes())
    return list(documents(data.decode()))


def zstandard_across(path: str) -> Rows:
    """`ZstdDecompressor().decompressobj(read_across_frames=True)`"""
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    return list(documents(decompressor.decompress(Path(path).read_bytes()).decode()))


@dataclass(frozen=True)
class Library:
    """A library and its readers.

    :param packages: of PyPI, whose versions are reported
    """

    name: str
    packages: tuple[str, ...]
    readers: tuple[Callable[[str], Rows], ...]


LIBRARIES = (
    Library("DuckDB", ("duckdb",), (duckdb_json,)),
    Library("Polars", ("polars",), (polars_json,)),
    Library("pandas", ("pandas", "zstandard", "lz4"), (pandas_json, pandas_opened)),
    Library("PyArrow", ("pyarrow",), (pyarrow_json, pyarrow_blocks, pyarrow_opened, pyarrow_dataset)),
    Library("ClickHouse", ("chdb", "chdb-core"), (clickhouse_json,)),
    Library("Spark", ("pyspark",), (spark_json, spark_schema, spark_failfast, spark_multiline, spark_split)),
    Library(
        "Python",
        ("zstandard", "lz4"),
        (
            python_open,
            python_decompress,
            zstandard_strict,
            zstandard_iter,
            zstandard_object,
            zstandard_across,
        ),
    ),
)


def _opened(path: str) -> IO[str]:
    import lz4.frame
    import zstandard

    openers: dict[str, Callable[..., IO[str]]] = {
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": zstandard.open,
        ".lz4": lz4.frame.open,
    }
    file: IO[str] = openers.get(Path(path).suffix, open)(path, "rt", encoding="utf-8")
    return file


def _spark() -> Any:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    # The default heap is a quarter of the memory, and results must not depend on the machine.
    return builder.config("spark.driver.memory", "1g").getOrCreate()


def _collect(frame: Any) -> Rows:
    return [row.asDict(recursive=True) for row in frame.collect()]


def main() -> None:
    """Carry out the tasks of standard input for one library."""
    (library,) = (library for library in LIBRARIES if library.name == sys.argv[1])
    readers = {reader.__name__: reader for reader in library.readers}
    versions = [f"{name} {version(name)}" for name in library.packages]
    print(json.dumps({"versions": [*versions, f"Python {platform.python_version()}"]}), flush=True)
    for line in sys.stdin:
        reader, part, path = json.loads(line)
        found: dict[str, Any] = {"reader": reader, "part": part}
        try:
            found["ids"] = ids_of(readers[reader](path))
        # The bindings of Polars raise panics that are no Exception.
        except BaseException as error:
            found["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
