"""Counts the lines of a complete hour by host and level, with DuckDB.

``python -m examples.read_hour s3://application-logs/aggregated/app/20261123/08/``

It shares no code with the pipeline: boto3, DuckDB and what stands in docs/REFERENCE.md are all it takes. A reader
who needs no host would hand the parts themselves to DuckDB; here the manifest tells which raw object, and so which
host, each run of bytes within a part comes from.
"""

import argparse
import bz2
import gzip
import json
import lzma
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import duckdb
from botocore.exceptions import ClientError

# Each raw object is a whole file within its part: what is cut out of a part can be unpacked by itself.
DECODERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}

COUNT = r"""
    SELECT host, regexp_extract(line, '\b(DEBUG|INFO|WARN|ERROR|FATAL)\b', 1) AS level, count(*) AS lines
    FROM read_csv($files, columns = {'line': 'VARCHAR'}, hive_partitioning = true, auto_detect = false,
                  header = false, delim = '', quote = '', escape = '', new_line = '\n')
    GROUP BY host, level ORDER BY host, level
"""


class NotReadableError(Exception):
    """The hour isn't complete, or was rolled up again while it was read; the message says which."""


@dataclass(frozen=True)
class Hour:
    """A complete hour as its manifest tells it.

    :param header: of the manifest; its ``parts_table`` lists the parts
    :param objects: a line for each raw object, in the order in which they lie in the parts
    """

    client: Any
    bucket: str
    prefix: str
    header: Mapping[str, Any]
    objects: list[dict[str, Any]]

    @classmethod
    def open(cls, client: Any, url: str) -> "Hour":
        """Read marker and manifest of the hour under a prefix such as ``s3://bucket/aggregated/app/20261123/08/``.

        :raises NotReadableError: if the hour isn't complete
        """
        place = urlsplit(url)
        bucket, prefix = place.netloc, place.path.strip("/") + "/"
        plan_id = _completed_plan(client, bucket, prefix)
        body = client.get_object(Bucket=bucket, Key=f"{prefix}_manifest.jsonl.gz")["Body"].read()
        # Not splitlines(): a key may hold what that takes for the end of a line.
        header, *objects = (json.loads(line) for line in gzip.decompress(body).decode().split("\n") if line)
        if header["plan_id"] != plan_id:
            raise NotReadableError(f"{url} is being rolled up again; try later")
        return cls(client, bucket, prefix, header, objects)

    def bodies(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each raw object's line of the manifest with its bytes, unpacked; one part at a time is in memory.

        :raises NotReadableError: if the hour was rolled up again meanwhile: what came before it may be of both
        """
        rows = iter(self.objects)
        for part in self.header["parts_table"]:
            decode = DECODERS.get(part["encoding"])
            if decode is None:
                raise NotReadableError(f"{part['name']}: Python unpacks no {part['encoding']} by itself")
            body = self._part(part)
            for _ in range(part["objects"]):
                row = next(rows)
                yield row, decode(body[row["offset"] : row["offset"] + row["length"]])
        if _completed_plan(self.client, self.bucket, self.prefix) != self.header["plan_id"]:
            raise NotReadableError(f"{self.prefix} was rolled up again while it was read; start anew")

    def _part(self, part: Mapping[str, Any]) -> bytes:
        key = self.prefix + part["name"]
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key, IfMatch=f'"{part["etag"]}"')
        except ClientError as error:
            raise NotReadableError(f"{key} is not as the manifest says: {error}; start anew") from error
        body: bytes = answer["Body"].read()
        if len(body) != part["size"]:
            raise NotReadableError(f"{key} has {len(body)} bytes, not {part['size']}; start anew")
        return body

    def host(self, row: Mapping[str, Any]) -> str:
        """The first step of a raw object's name below its hour: ``web-01`` of ``…/08/web-01/0001.log``."""
        name = str(row["key"]).removeprefix(self.header["raw_prefix"])
        return name.partition("/")[0] if "/" in name else "-"


def count_lines(hour: Hour, folder: Path) -> list[tuple[str, str, int]]:
    """Host, level and number of lines, in order; the lines go through files in a folder.

    :raises NotReadableError: if the hour can't be read as it was proven
    """
    for row, body in hour.bodies():
        # DuckDB makes a column of such a folder's name.
        target = folder / f"host={hour.host(row)}" / "lines.log"
        target.parent.mkdir(exist_ok=True)
        with target.open("ab") as file:
            # DuckDB takes UTF-8 alone.
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
    """Print the counts; 1 if the hour can't be read."""
    parser = argparse.ArgumentParser(prog="python -m examples.read_hour", description=__doc__)
    parser.add_argument("url", help="an hour's aggregated prefix")
    parser.add_argument("--endpoint-url", help="of an S3 server that isn't AWS")
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
