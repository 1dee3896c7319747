"""Verifies the compressed parts of a complete hour from its bytes alone: shares no code with the pipeline."""

import gzip
import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import zstandard
from awscrt.checksums import crc64nvme


def verify_compressed_hour(
    raw: Mapping[str, bytes],
    read: Callable[[str], bytes],
    *,
    ensure_newline: bool = False,
    contents: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Assert that the parts of an hour hold these objects, and return the header of its manifest.

    :param raw: bytes of the raw objects by key; they are plain, or in ``contents``, or kept in parts of their own
    :param read: returns the bytes of an object below the aggregated hour
    :param ensure_newline: whether each plain or recompressed object ends with a newline in the part
    :param contents: what compressed parts hold of the raw objects, by key; by default their bytes
    :raises AssertionError: if they don't
    """
    held = {key: (contents or {}).get(key, body) for key, body in raw.items()}
    text = gzip.decompress(read("_manifest.jsonl.gz")).decode()
    rows = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    header: dict[str, Any] = rows[0]
    lines = rows[1:]
    marker = json.loads(read("_SUCCESS"))
    keys = sorted(raw, key=str.encode)
    joined = {key: _with_newline(held[key], ensure_newline) for key in keys}
    if contents is None:
        assert [line["key"] for line in lines] == keys
    assert sorted((line["key"] for line in lines), key=str.encode) == keys
    found_contents = []
    for entry in header["parts_table"]:
        body = read(entry["name"])
        assert (entry["size"], entry["crc64nvme"]) == (len(body), f"{crc64nvme(body):016x}")
        members = [line for line in lines if line["part"] == entry["name"]]
        assert len(members) == entry["objects"]
        if "compression" not in entry:
            (member,) = members
            assert body == raw[member["key"]]
            found_contents.append(body)
            continue
        content = decompress(entry["compression"], body)
        # Readers that know nothing of frames see the objects end to end.
        assert content == b"".join(joined[line["key"]] for line in members)
        found_contents.append(content)
        frames = {(line["frame_offset"], line["frame_length"]) for line in members}
        assert (entry["frames"], entry["content_size"]) == (len(frames), len(content))
        assert sum(length for _, length in frames) <= len(body)
        if entry["compression"] == "zstd":
            assert seek_table(body) == [
                (length, len(decompress("zstd", body[offset : offset + length])))
                for offset, length in sorted(frames)
            ]
        for line in members:
            frame = body[line["frame_offset"] : line["frame_offset"] + line["frame_length"]]
            length = line.get("content_length", line["length"])
            found = decompress(entry["compression"], frame)[line["offset"] : line["offset"] + length]
            body_of_object = raw[line["key"]]
            assert found == held[line["key"]]
            assert (line["length"], line["crc64nvme"]) == (
                len(body_of_object),
                f"{crc64nvme(body_of_object):016x}",
            )
            if "content_length" in line:
                assert line["content_crc64nvme"] == f"{crc64nvme(found):016x}"
            else:
                assert found == body_of_object
    sizes = {
        "objects": len(raw),
        "bytes_in": sum(map(len, raw.values())),
        "bytes_out": sum(map(len, found_contents)),
        "parts": len(header["parts_table"]),
    }
    if any("compression" in entry for entry in header["parts_table"]):
        sizes["bytes_stored"] = sum(entry["size"] for entry in header["parts_table"])
    for record in (header, marker):
        assert {name: record[name] for name in sizes} == sizes
    return header


def decompress(compression: str, body: bytes) -> bytes:
    """The content of all frames, as an ordinary reader of the format sees it."""
    if compression == "gzip":
        return gzip.decompress(body)
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body), read_across_frames=True)
    return reader.read()


def seek_table(body: bytes) -> list[tuple[int, int]]:
    """The sizes of each frame and of its content, from the seek table at the end of a zstd part."""
    count, descriptor, magic = struct.unpack("<IBI", body[-9:])
    assert (descriptor, magic) == (0, 0x8F92EAB1)
    start = len(body) - 9 - 8 * count
    assert struct.unpack("<II", body[start - 8 : start]) == (0x184D2A5E, 8 * count + 9)
    return [struct.unpack("<II", body[offset : offset + 8]) for offset in range(start, start + 8 * count, 8)]


def _with_newline(body: bytes, ensure_newline: bool) -> bytes:
    return body + b"\n" if ensure_newline and body and not body.endswith(b"\n") else body
