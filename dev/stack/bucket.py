"""The objects of the demo's bucket, through S3: raw hours into a server, small objects out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dev.stack.environment import REGION, Secrets
from dev.stack.paths import BUCKET, StackPaths

_UPLOADS_AT_ONCE = 4

S3Client = Any
"""A client of boto3, which makes its classes at run time: there is no type to name."""


def make_client(endpoint: str, keys: Secrets) -> S3Client:
    """Return a client of the stack's S3 server that takes nothing from the user's own configuration."""
    # Not at the top: it takes 0.3 s, and every ./log-rollup command imports this package.
    import boto3
    import botocore.session
    from botocore.config import Config

    core = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    return boto3.Session(botocore_session=core).client(
        "s3",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=keys.s3_access_key,
        aws_secret_access_key=keys.s3_secret_key,
        config=Config(
            proxies={},
            s3={"addressing_style": "path"},
            max_pool_connections=_UPLOADS_AT_ONCE,
        ),
    )


def upload_bucket(client: S3Client, paths: StackPaths) -> int:
    """Create the bucket and upload every file of its folder; return how many there were.

    Each gets a CRC32 of the whole object, as the AWS SDKs send it by default.
    """
    client.create_bucket(Bucket=BUCKET)

    def upload(path: Path) -> None:
        key = path.relative_to(paths.bucket).as_posix()
        client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes(), ChecksumAlgorithm="CRC32")

    with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
        return sum(1 for _ in pool.map(upload, _files(paths.bucket)))


def read_object(client: S3Client, key: str) -> bytes | None:
    """Return an object of the bucket, or None when there is none."""
    try:
        body: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
    return body


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
