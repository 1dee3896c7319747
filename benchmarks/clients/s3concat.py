"""s3-concat from PyPI, through its own class, with as many threads as it can use.

Run as ``PYTHON -m benchmarks.clients.s3concat JOB`` with the interpreter that has s3-concat.
"""

import boto3
from botocore.config import Config
from s3_concat import S3Concat  # type: ignore[import-not-found]

from benchmarks.clients.job import Clock, Job

CONCURRENT_GROUPS = 4
DOWNLOADS_PER_GROUP = 4


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
        config=Config(
            max_pool_connections=CONCURRENT_GROUPS * DOWNLOADS_PER_GROUP,
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    with Clock() as clock:
        work = S3Concat(job.bucket, f"{job.out_prefix}part.log", f"{job.part_bytes}B", s3_client=client)
        work.add_files(job.raw_prefix)
        parts = work.concat(small_parts_threads=DOWNLOADS_PER_GROUP, main_threads=CONCURRENT_GROUPS)
    job.finish(clock, parts=len(parts))


if __name__ == "__main__":
    main()
