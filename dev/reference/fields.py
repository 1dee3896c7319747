"""The meaning of each field of the records that readers may rely on."""

from collections.abc import Mapping

_TOTALS: Mapping[str, str] = {
    "format": "Version of the record's format",
    "stream": "Name of the stream",
    "hour": "The UTC hour",
    "plan_id": "Digest of everything that decides the parts (keys, sizes and ETags of the raw objects, settings), "
    "and a random number. Equal `plan_id`, equal parts",
    "objects": "Number of raw objects in the parts",
    "bytes_in": "Total size of these raw objects",
    "separator_bytes": "Number of bytes added after them by `ensure_newline`",
    "bytes_out": "Total size of the content of the parts: `bytes_in` plus `separator_bytes`",
    "parts": "Number of parts",
    "left_out.hidden": "Number of objects left out because a segment of their name begins with `_` or `.`",
    "left_out.placeholders": "Number of objects left out because they are empty folder placeholders",
    "left_out.markers": "Number of objects left out because they are the producer's `ready_object`",
    "left_out.excluded": "Number of objects left out because of the stream's `include` or `exclude`",
    "left_out.unjoinable": "Number of containers left out because the stream has `unjoinable: skip`",
    "left_out.unmatched": "Number of objects that belong to no hour: the folder has this hour's day, the name "
    "another one. Counted where an hour has no prefix of its own",
    "verified.parts": "Number of parts by kind of proof",
    "verified.objects": "Number of raw objects by kind of proof",
    "foreign": "Number of objects next to the parts that no record of the hour names; they are not touched",
    "damaged": "Number of raw objects that could not be decompressed, if the stream has `check_encoding` or "
    "`recompress`",
    "validated_at": "Time at which the hour was proven",
}

MARKER: Mapping[str, str] = {
    **_TOTALS,
    "completed_at": "Time at which this marker was written",
    "max_connections": "Limit of connections of one packing task",
    "peak.sockets": "Maximum of open sockets to S3 in one packing task",
    "peak.open_files": "Maximum of open files in one packing task",
    "peak.rss_bytes": "Maximum of resident memory in one packing task",
    "requests": "Requests to S3 of all packing tasks, by operation",
    "retries": "Number of retried requests",
    "throttles": "Number of responses with which S3 asked to slow down",
    "seconds.pack": "Total time of all packing tasks",
    "seconds.pack_cpu": "Total CPU time of all packing tasks",
    "raw_digest": "Digest of the raw objects that were listed. A late check compares it",
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
    "measured.parts_written": "Number of parts that the packing tasks wrote",
    "measured.parts_left_alone": "Number of parts that already existed as planned",
    "raw_prefix": "The hour's raw prefix in its bucket",
    "parts_table[].name": "Name of a part, in the order of the lines below",
    "parts_table[].encoding": "`.gz`, `.zst` and so on; empty for plain",
    "parts_table[].size": "Its size",
    "parts_table[].etag": "Its ETag when it was proven",
    "parts_table[].crc64nvme": "CRC64-NVME of its bytes, in hexadecimal",
    "parts_table[].objects": "Number of its raw objects, and so of its lines below",
    "parts_table[].copied": "Whether S3 copied it: a single raw object that is larger than a part",
    "parts_table[].fingerprint": "Digest of everything that decides its bytes",
    "parts_table[].proof": "How it was proven: `stored-crc64nvme` or `read-back`",
}

MANIFEST_LINE: Mapping[str, str] = {
    "key": "Key of the raw object in the raw bucket",
    "part": "Name of its part",
    "offset": "Its offset in the part",
    "length": "Its size",
    "etag": "Its ETag when it was planned and read",
    "crc64nvme": "CRC64-NVME of its bytes, in hexadecimal",
    "checked": "How it was proven: `crc64nvme`, `crc32c`, `crc32`, `etag-md5`, `read-back` or `length`",
}

EVENT: Mapping[str, str] = {
    **{
        name: _TOTALS[name]
        for name in ("stream", "hour", "plan_id", "objects", "bytes_in", "bytes_out", "parts")
    },
    "aggregated": "Prefix of the hour's parts",
    "manifest": "Address of the manifest",
    "marker": "Address of the completion marker",
}

_STORED = "Total size of the parts in the bucket; only if any of them is compressed"

_RECOMPRESSED = "Number of recompressed objects, of which the parts have the content; only if there are any"
_UNPACKED = (
    "Total size of the raw objects, of the recompressed ones that of their content; with `separator_bytes` it is "
    "`bytes_out`"
)

_GROUP: Mapping[str, str] = {
    "captures": "Values of the captures of the template `aggregated`, by name",
    "objects": "Number of its raw objects",
    "bytes_in": "Total size of these raw objects",
    "bytes_out": "Total size of the content of its parts",
    "parts": "Number of its parts",
}

MARKER_WITH_GROUPS: Mapping[str, str] = {
    **{f"groups[].{name}": meaning for name, meaning in _GROUP.items()},
    "groups[].folder": "Its folder below the literal beginning of `aggregated`; in the records of the hour, the "
    "names of its parts begin with it",
    "groups[].separator_bytes": "Number of bytes added in it by `ensure_newline`",
    "groups[].verified.parts": "Number of its parts by kind of proof",
    "groups[].verified.objects": "Number of its raw objects by kind of proof",
    "groups[].damaged": "Number of its raw objects that could not be decompressed",
    "group": "Only in the records of a group: its captures, by name",
    "bytes_stored": _STORED,
    "recompressed": _RECOMPRESSED,
    "bytes_unpacked": _UNPACKED,
    "groups[].bytes_stored": "Total size of its parts in the bucket; only if any of them is compressed",
    "groups[].recompressed": "Number of its recompressed objects; only if there are any",
    "groups[].bytes_unpacked": "Total size of its raw objects, of the recompressed ones that of their content",
    "older_versions": "Number of raw objects in parts of which a later part has a newer version, because they "
    "were written again after they had expired",
    "why_empty": "Why no object can belong to the hour; only where the clocks of its `timezone` are set back",
}

EXPIRY: Mapping[str, str] = {
    "format": _TOTALS["format"],
    "stream": _TOTALS["stream"],
    "hour": _TOTALS["hour"],
    "objects": "Number of raw objects that have expired, when the last deletion finished",
    "bytes": "Total size of these raw objects",
    "deletions[].plan_id": "The plan whose parts were proven before the deletion",
    "deletions[].started_at": "Time of the announcement, before the first delete",
    "deletions[].finished_at": "Time after the last delete; `null` before, also after an interruption",
    "deletions[].objects": "Number of raw objects that it has deleted",
    "deletions[].bytes": "Total size of these raw objects",
    "deletions[].left": "Number of announced raw objects that it left, because they had changed or the store "
    "refused it; not in records of earlier versions",
    "parts": "The parts with announced raw objects, by name, each with its `fingerprint` and with `kept`, "
    "the keys of those raw objects that were not announced",
    "crc64nvme": "CRC64NVME of the compact JSON of all other fields; not in records of earlier versions",
}

EVENT_WITH_GROUPS: Mapping[str, str] = {
    "groups": "Number of groups",
    "bytes_stored": _STORED,
    "recompressed": _RECOMPRESSED,
    "bytes_unpacked": _UNPACKED,
    **{f"group_totals[].{name}": meaning for name, meaning in _GROUP.items()},
    "group_totals[].aggregated": "Prefix of its parts, its manifest and its `_SUCCESS`",
}
