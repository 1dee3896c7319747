"""Writes raw objects like those of AWS CloudTrail: one JSON document in each, compressed, without a newline."""

from __future__ import annotations

import gzip
import json
import os
import random
import string
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

_POOL_EVENTS = 1_000
_MIN_EVENTS = 50
_MAX_EVENTS = 300
# CloudTrail delivers about every 5 minutes, so the name of an object has the minute and random characters.
_DELIVERIES = 12
_DELIVERY_INTERVAL = timedelta(minutes=5)
# A generous mean of the compressed documents.
MEAN_DOCUMENT_BYTES = 50_000

_CALLS = (
    ("s3.amazonaws.com", "GetBucketAcl", True),
    ("s3.amazonaws.com", "PutBucketTagging", False),
    ("ec2.amazonaws.com", "DescribeInstances", True),
    ("ec2.amazonaws.com", "RunInstances", False),
    ("sts.amazonaws.com", "AssumeRole", True),
    ("kms.amazonaws.com", "Decrypt", True),
    ("iam.amazonaws.com", "CreateAccessKey", False),
)
_AGENTS = (
    "aws-cli/2.31.5",
    "Boto3/1.40.45",
    "console.amazonaws.com",
    "APN/1.0 HashiCorp/1.0 Terraform/1.13.3",
)


def write_trail(folder: Path, account: str, region: str, hour: datetime, objects: int, seed: int) -> int:
    """Write `objects` raw objects of an account and region, and return their total size in bytes.

    The same arguments give the same objects. Names and modification times are those of deliveries in the hour.

    :param folder: the day's directory (`.../CloudTrail/<region>/YYYY/mm/dd`), created if missing
    :param hour: start of the hour in UTC
    :raises OSError: if a file cannot be written
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{seed}/{account}/{region}/{hour:%Y%m%d%H}")
    events = [_event(account, region, hour, rng) for _ in range(_POOL_EVENTS)]
    total_bytes = 0
    for number in range(objects):
        delivered = hour + (number % _DELIVERIES) * _DELIVERY_INTERVAL
        suffix = "".join(rng.choices(string.ascii_letters + string.digits, k=16))
        path = folder / f"{account}_CloudTrail_{region}_{delivered:%Y%m%dT%H%M}Z_{suffix}.json.gz"
        records = [_event(account, region, hour, rng)]
        records += rng.sample(events, rng.randint(_MIN_EVENTS, _MAX_EVENTS))
        document = json.dumps({"Records": records}, separators=(",", ":")).encode()
        body = gzip.compress(document, compresslevel=1, mtime=0)
        path.write_bytes(body)
        os.utime(path, (delivered.timestamp(), delivered.timestamp()))
        total_bytes += len(body)
    return total_bytes


def _event(account: str, region: str, hour: datetime, rng: random.Random) -> dict[str, Any]:
    source, name, read_only = rng.choice(_CALLS)
    at = hour + timedelta(seconds=rng.randrange(3600))
    return {
        "eventVersion": "1.11",
        "userIdentity": {
            "type": "AssumedRole",
            "principalId": f"AROA{rng.getrandbits(64):016X}:deploy",
            "arn": f"arn:aws:sts::{account}:assumed-role/deploy/session",
            "accountId": account,
        },
        "eventTime": f"{at:%Y-%m-%dT%H:%M:%SZ}",
        "eventSource": source,
        "eventName": name,
        "awsRegion": region,
        "sourceIPAddress": f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}",
        "userAgent": rng.choice(_AGENTS),
        "requestID": str(uuid.UUID(int=rng.getrandbits(128))),
        "eventID": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "readOnly": read_only,
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": account,
        "eventCategory": "Management",
    }
