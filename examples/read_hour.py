"""Counts the lines of a complete hour by host and level, with DuckDB.

``python -m examples.read_hour s3://application-logs/aggregated/app/20261123/08/``

It shares no code with the pipeline and only needs boto3, DuckDB, zstandard and docs/REFERENCE.md. DuckDB could
read the parts directly; this reader uses the manifest to find the raw object, and so the host, of each range of
bytes in a part.
"""

import argparse
import bz2
import gzip
import json
import lzma
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import duckdb
import zstandard
from botocore.exceptions import ClientError

# Each raw object is a complete file within its part, so its bytes can be decompressed separately.
DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
# A part that the stream compresses consists of frames, each of which holds whole raw objects.
FRAME_DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": zstandard.ZstdDecompressor().decompress,
}

COUNT = r"""
    SELECT host, regexp_extract(line, '\b(DEBUG|INFO|WARN|ERROR|FATAL)\b', 1) AS level, count(*) AS lines
    FROM read_csv($files, columns = {'line': 'VARCHAR'}, hive_partitioning = true, auto_detect = false,
                  header = false, delim = '', quote = '', escape = '', new_line = '\n')
    GROUP BY host, level ORDER BY host, level
"""


class NotReadableError(Exception):
    """The hour is not complete, or was rolled up again while it was read; the message says which."""


@dataclass(frozen=True)
class Hour:
    """A complete hour as described by its manifest.

    :param header: header of the manifest; its ``parts_table`` lists the parts
    :param objects: the line of each raw object, in the order of the parts and their content
    """

    client: Any
    bucket: str
    prefix: str
    header: Mapping[str, Any]
    objects: list[dict[str, Any]]

    @classmethod
    def open(cls, client: Any, url: str) -> "Hour":
        """Read the completion marker and the manifest of an hour.

        :param url: the hour's prefix, such as ``s3://bucket/aggregated/app/20261123/08/``
        :raises NotReadableError: if the hour is not complete
        """
        place = urlsplit(url)
        bucket, prefix = place.netloc, place.path.strip("/") + "/"
        plan_id = _completed_plan(client, bucket, prefix)
        body = client.get_object(Bucket=bucket, Key=f"{prefix}_manifest.jsonl.gz")["Body"].read()
        # Not splitlines(): a key may contain other characters that it takes for line ends.
        header, *objects = (json.loads(line) for line in gzip.decompress(body).decode().split("\n") if line)
        if header["plan_id"] != plan_id:
            raise NotReadableError(f"{url} is being rolled up again; try again later")
        return cls(client, bucket, prefix, header, objects)

    def bodies(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield each raw object's manifest line and its decompressed bytes, with one part in memory at a time.

        :raises NotReadableError: if the hour was rolled up again meanwhile; discard what was yielded before
        """
        remaining = iter(self.objects)
        for part in self.header["parts_table"]:
            rows = islice(remaining, part["objects"])
            if "compression" in part:
                yield from _from_frames(self._part(part), rows, FRAME_DECODERS[part["compression"]])
                continue
            decode = DECODERS.get(part["encoding"])
            if decode is None:
                raise NotReadableError(f"{part['name']}: this example cannot decompress {part['encoding']}")
            body = self._part(part)
            for row in rows:
                yield row, decode(body[row["offset"] : row["offset"] + row["length"]])
        if _completed_plan(self.client, self.bucket, self.prefix) != self.header["plan_id"]:
            raise NotReadableError(f"{self.prefix} was rolled up again while it was read; start again")

    def _part(self, part: Mapping[str, Any]) -> bytes:
        key = self.prefix + part["name"]
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key, IfMatch=f'"{part["etag"]}"')
        except ClientError as error:
            raise NotReadableError(f"{key} differs from the manifest: {error}; start again") from error
        body: bytes = answer["Body"].read()
        if len(body) != part["size"]:
            raise NotReadableError(f"{key} has {len(body)} bytes, not {part['size']}; start again")
        return body

    def host(self, row: Mapping[str, Any]) -> str:
        """Return the first folder below the hour in a raw object's key: ``web-01`` of ``…/08/web-01/0001.log``."""
        name = str(row["key"]).removeprefix(self.header["raw_prefix"])
        return name.partition("/")[0] if "/" in name else "-"


def _from_frames(
    body: bytes, rows: Iterable[dict[str, Any]], decode: Callable[[bytes], bytes]
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the objects of a compressed part; recompressed ones are in their frame as their content."""
    for (start, length), members in groupby(rows, lambda row: (row["frame_offset"], row["frame_length"])):
        frame = decode(body[start : start + length])
        for row in members:
            yield row, frame[row["offset"] : row["offset"] + row.get("content_length", row["length"])]


def count_lines(hour: Hour, folder: Path) -> list[tuple[str, str, int]]:
    """Return host, level and number of lines, sorted.

    :param folder: an empty directory for temporary files
    :raises NotReadableError: if the hour changed while it was read
    """
    for row, body in hour.bodies():
        # DuckDB turns the name of such a directory into a column.
        target = folder / f"host={hour.host(row)}" / "lines.log"
        target.parent.mkdir(exist_ok=True)
        with target.open("ab") as file:
            # DuckDB only accepts UTF-8.
            file.write(body.decode("utf-8", "replace").encode())
            if body and not body.endswith(b"\n"):
                file.write(b"\n")
    if not hour.objects:
        return []
    with duckdb.connect() as database:
        return database.execute(COUNT, {"files": f"{folder}/*/lines.log"}).fetchall()


def _completed_plan(client: Any, bucket: str, prefix: str) -> str:
    try:
        marker = json.loads(client.get_object(Bucket=bucket, Key=f"{prefix}_SUCCESS")["Body"].read())
    except client.exceptions.NoSuchKey:
        raise NotReadableError(f"s3://{bucket}/{prefix} is not complete: it has no _SUCCESS") from None
    return str(marker["plan_id"])


def main() -> int:
    """Print the counts; return 1 if the hour cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m examples.read_hour", description=__doc__)
    parser.add_argument("url", help="aggregated prefix of an hour")
    parser.add_argument("--endpoint-url", help="address of the S3 server, if not AWS")
    arguments = parser.parse_args()
    try:
        hour = Hour.open(boto3.client("s3", endpoint_url=arguments.endpoint_url), arguments.url)
        with tempfile.TemporaryDirectory() as folder:
            counts = count_lines(hour, Path(folder))
    except NotReadableError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{hour.header['objects']:,} objects in {hour.header['parts']} parts")
    for host, level, lines in counts:
        print(f"{host:20} {level or '-':6} {lines:12,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
