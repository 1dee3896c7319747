"""boto3 clients for local S3 servers that ignore the user's AWS configuration."""

import functools
import os
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from botocore.config import Config

from dev.stack.environment import REGION

S3Client = Any
"""A boto3 client. boto3 creates its classes at run time, so there is no type to name."""


def plain_client(
    endpoint_url: str,
    access_key: str,
    secret_key: str,
    *,
    verify: Path | None = None,
    read_timeout_seconds: float = 30.0,
    max_connections: int = 10,
) -> S3Client:
    """Return an S3 client with path-style addresses, without retries, with checksums only where S3 requires them.

    :param verify: certificate of the authority to trust, for TLS
    """
    return isolated_session().client(
        "s3",
        region_name=REGION,
        endpoint_url=endpoint_url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        verify=str(verify) if verify else None,
        config=Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=read_timeout_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=max_connections,
            proxies={},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )


# Shared by all clients: loading the S3 service description takes half a second per session.
@functools.cache
def isolated_session() -> boto3.Session:
    """Return a boto3 session that reads no profile, no configuration file and no credentials file."""
    core = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    return boto3.Session(botocore_session=core)
