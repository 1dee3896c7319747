"""Completion markers of hours that no test has packed."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.records import MARKER_FORMAT
from include.log_rollup.streams import Stream

Volumes = Mapping[str, tuple[int, int]]
"""Raw objects and bytes by name of the group."""


def marker_of_hour(
    stream: Stream,
    hour: datetime,
    objects: int,
    bytes_in: int,
    stored: int | None = None,
    groups: Volumes | None = None,
) -> dict[str, Any]:
    """The content of a completion marker.

    :param stored: size of the compressed parts
    :param groups: of a stream whose only capture is ``service``
    """
    verified = {"parts": {"read-back": 1}, "objects": {"length": objects}}
    marker: dict[str, Any] = {
        "format": MARKER_FORMAT, "stream": stream.name, "hour": format_hour(hour),
        "plan_id": "72476eb6ae5830a3a11a", "objects": objects,
        "bytes_in": bytes_in, "separator_bytes": 0, "bytes_out": bytes_in,
        "parts": min(objects, 1), "left_out": {"hidden": 0}, "verified": verified,
        "validated_at": "2026-11-23T09:12:30+00:00", "completed_at": "2026-11-23T09:12:40+00:00",
        "max_connections": 25, "peak": {"sockets": 20, "open_files": 40, "rss_bytes": 2**27},
        "requests": {"GET": objects}, "retries": 0, "throttles": 0, "seconds": {"pack": 3.9, "pack_cpu": 1.0},
    }  # fmt: skip
    if stored is not None:
        marker["bytes_stored"] = stored
    if groups is not None:
        marker["groups"] = [
            {
                "folder": f"{name}/{hour:%Y%m%d/%H}/", "captures": {"service": name}, "objects": count,
                "bytes_in": size, "separator_bytes": 0, "bytes_out": size, "parts": 1, "verified": verified,
            }
            for name, (count, size) in groups.items()
        ]  # fmt: skip
    return marker


def marker_body(*args: Any, **kwargs: Any) -> bytes:
    """The same as an object in the bucket."""
    return json.dumps(marker_of_hour(*args, **kwargs)).encode()
