"""The bucket of the local stack through S3: uploads raw hours, reads small objects."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from dev.stack.environment import REGION, Secrets
from dev.stack.paths import BUCKET, StackPaths

if TYPE_CHECKING:
    from dev.s3_client import S3Client

_CONCURRENT_UPLOADS = 4


def make_client(endpoint: str, keys: Secrets) -> S3Client:
    """Return a client of the stack's S3 server that ignores the user's configuration."""
    # Imported here because it takes 0.3 s, and every ./log-rollup command imports this module.
    from botocore.config import Config

    from dev.s3_client import isolated_session

    return isolated_session().client(
        "s3",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=keys.s3_access_key,
        aws_secret_access_key=keys.s3_secret_key,
        config=Config(
            proxies={},
            s3={"addressing_style": "path"},
            max_pool_connections=_CONCURRENT_UPLOADS,
        ),
    )


def upload_bucket(client: S3Client, paths: StackPaths) -> int:
    """Create the bucket, upload every file of its directory, and return their number.

    Each object gets a CRC32 of its content, the default of the AWS SDKs.
    """
    client.create_bucket(Bucket=BUCKET)

    def upload(path: Path) -> None:
        key = path.relative_to(paths.bucket).as_posix()
        client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes(), ChecksumAlgorithm="CRC32")

    with ThreadPoolExecutor(_CONCURRENT_UPLOADS) as pool:
        return sum(1 for _ in pool.map(upload, _files(paths.bucket)))


def read_object(client: S3Client, key: str) -> bytes | None:
    """Return the content of an object, or None if it does not exist."""
    try:
        body: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
    return body


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
