"""The usual boto3 solution: a pool of 16 threads, get_object, join, put_object.

Run as ``python -m benchmarks.clients.boto3_pool JOB``.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import boto3
from botocore.config import Config

from benchmarks.clients.job import Clock, Job

THREADS = 16


def main() -> None:
    """Roll up the hour."""
    job = Job.from_arguments()
    client = boto3.client(
        "s3",
        endpoint_url=job.endpoint,
        region_name=job.region,
        aws_access_key_id=job.access_key,
        aws_secret_access_key=job.secret_key,
        verify=job.ca or None,
        # No optional checksums: the server does not keep them, and they would only slow boto3 down.
        config=Config(
            max_pool_connections=THREADS,
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    with Clock() as clock, ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(2) as uploads:
        sent: list[Future[Any]] = []
        body = bytearray()
        for piece in bodies(job, client, pool):
            if body and len(body) + len(piece) > job.part_bytes:
                sent.append(uploads.submit(put, job, client, len(sent), bytes(body)))
                # At most two parts are uploaded at a time, to limit the memory.
                if len(sent) > 2:
                    sent[-3].result()
                body = bytearray()
            body += piece
        sent.append(uploads.submit(put, job, client, len(sent), bytes(body)))
        for upload in sent:
            upload.result()
    job.finish(clock, parts=len(sent))


def bodies(job: Job, client: Any, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """Yield the raw objects in key order, with two downloads per thread in advance."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=job.bucket, Prefix=job.raw_prefix)
    keys = (row["Key"] for page in pages for row in page.get("Contents", ()))

    def fetch(key: str) -> bytes:
        body: bytes = client.get_object(Bucket=job.bucket, Key=key)["Body"].read()
        return body

    ahead = [pool.submit(fetch, key) for key in islice(keys, 2 * THREADS)]
    while ahead:
        yield ahead.pop(0).result()
        ahead.extend(pool.submit(fetch, key) for key in islice(keys, 1))


def put(job: Job, client: Any, number: int, body: bytes) -> None:
    """Upload a part."""
    client.put_object(Bucket=job.bucket, Key=f"{job.out_prefix}part-{number:05d}.log", Body=body)


if __name__ == "__main__":
    main()
