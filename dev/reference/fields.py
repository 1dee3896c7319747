"""What the fields of the records mean that readers of an hour may rely on."""

from collections.abc import Mapping

_TOTALS: Mapping[str, str] = {
    "format": "Version of the record",
    "stream": "Name of the stream",
    "hour": "The UTC hour",
    "plan_id": "Digest of the raw objects' keys, sizes and ETags and of what shapes the parts, then a random "
    "number of this plan: the same `plan_id`, the same parts",
    "objects": "Raw objects packed",
    "bytes_in": "Their bytes",
    "separator_bytes": "Newlines that were added between them (`ensure_newline`)",
    "bytes_out": "Bytes of the parts: `bytes_in` and `separator_bytes` together",
    "parts": "How many parts there are",
    "left_out.hidden": "Listed objects that are no input: a step of their name begins with `_` or `.`",
    "left_out.placeholders": "Listed objects that are no input: empty ones that stand for a folder",
    "left_out.markers": "Listed objects that are no input: the producer's `ready_object`",
    "verified.parts": "How many parts were proven, by kind of proof",
    "verified.objects": "How many raw objects were checked, by kind of check",
    "foreign": "Objects beside the parts that no record of the hour names; they are left alone",
    "damaged": "Compressed raw objects that could not be unpacked, where the stream has `check_encoding`",
    "validated_at": "When the hour was proven",
}

MARKER: Mapping[str, str] = {
    **_TOTALS,
    "completed_at": "When this marker was written",
    "max_connections": "The cap of one packing task",
    "peak.sockets": "The most sockets to S3 that one packing task had open",
    "peak.open_files": "The most files that one packing task had open",
    "peak.rss_bytes": "The most memory that one packing task had resident",
    "requests": "Requests to S3 of all packing tasks, by operation",
    "retries": "Requests of theirs that were tried again",
    "throttles": "Answers of S3 that asked to slow down",
    "seconds.pack": "Time of all packing tasks together",
    "seconds.pack_cpu": "Their CPU time",
}

MANIFEST_HEADER: Mapping[str, str] = {
    **_TOTALS,
    "measured.max_connections": MARKER["max_connections"],
    "measured.sockets": MARKER["peak.sockets"],
    "measured.open_files": MARKER["peak.open_files"],
    "measured.rss_bytes": MARKER["peak.rss_bytes"],
    "measured.seconds": MARKER["seconds.pack"],
    "measured.cpu_seconds": MARKER["seconds.pack_cpu"],
    "measured.requests": MARKER["requests"],
    "measured.retries": MARKER["retries"],
    "measured.throttles": MARKER["throttles"],
    "measured.parts_written": "Parts that the packing tasks wrote",
    "measured.parts_left_alone": "Parts that stood already as planned",
    "raw_prefix": "The hour's raw prefix, within its bucket",
    "parts_table[].name": "Name of a part, in the order of the lines below",
    "parts_table[].encoding": "`.gz`, `.zst` and so on; empty for plain",
    "parts_table[].size": "Its bytes",
    "parts_table[].etag": "Its ETag when it was proven",
    "parts_table[].crc64nvme": "CRC64-NVME of its bytes, in hexadecimal",
    "parts_table[].objects": "How many raw objects it holds: so many of the lines below are its own",
    "parts_table[].copied": "Whether S3 copied it: one raw object, larger than a part",
    "parts_table[].fingerprint": "Digest of all that decides its bytes",
    "parts_table[].proof": "How it was proven: `stored-crc64nvme` or `read-back`",
}

MANIFEST_LINE: Mapping[str, str] = {
    "key": "Key of the raw object, in the raw bucket",
    "part": "Name of the part that holds it",
    "offset": "Where it begins within the part",
    "length": "Its bytes",
    "etag": "Its ETag when it was planned and read",
    "crc64nvme": "CRC64-NVME of its bytes, in hexadecimal",
    "checked": "How its bytes were checked: `crc64nvme`, `crc32c`, `crc32`, `etag-md5`, `read-back`, `length`",
}

EVENT: Mapping[str, str] = {
    **{
        name: _TOTALS[name]
        for name in ("stream", "hour", "plan_id", "objects", "bytes_in", "bytes_out", "parts")
    },
    "aggregated": "Prefix of the hour's parts",
    "manifest": "Where its manifest lies",
    "marker": "Where its completion marker lies",
}
