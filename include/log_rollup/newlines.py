"""The newline of each encoding: what ``ensure_newline`` adds to a part after an object that ends without one.

After a compressed object it is a *newline frame*: a member, stream or frame that holds just a newline. Its bytes
are constants, because other versions of a library may write other ones, and equal names of parts mean equal bytes.
"""

from include.log_rollup import crc

_NEWLINES = {
    "": b"\n",
    # No time in the header; a stored CRC, as in every gzip member.
    ".gz": bytes.fromhex("1f8b0800000000000003 e30200 9306d732 01000000"),
    # The size of the content in the header; one block of raw bytes; no checksum.
    ".zst": bytes.fromhex("28b52ffd 2001 090000 0a"),
    # Blocks of 100 kB, for which readers need the least memory.
    ".bz2": bytes.fromhex("425a6831 314159265359 9e7d969d000000400000102000211846 82ee48a70a1213cfb2d3a0"),
    # The dictionary of xz's default preset, and CRC32, which every reader has; one chunk of raw bytes.
    ".xz": bytes.fromhex(
        "fd377a585a00 0001 6922de36 0200210116000000 742fe5a3 0100000a00 000000 9306d732 00011501 a9633460"
        "9042990d 01000000 0001 595a"
    ),
    # The size of the content in the header; one block of raw bytes; no checksum of it.
    ".lz4": bytes.fromhex("04224d18 6840 0100000000000000 2c 01000080 0a 00000000"),
}
_CRCS = {encoding: crc.crc64(newline) for encoding, newline in _NEWLINES.items()}


def newline_of(encoding: str) -> bytes:
    """The bytes of a newline in this encoding; empty if objects of this encoding get none.

    :param encoding: as :func:`include.log_rollup.hour.selection.encoding_of` returns it
    """
    return _NEWLINES.get(encoding, b"")


def newline_crc(encoding: str) -> int:
    """The CRC64-NVME of :func:`newline_of`."""
    return _CRCS.get(encoding, 0)
