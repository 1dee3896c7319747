"""CRC64-NVME of bytes and of concatenated bytes, and the formats in which S3 and the records write it."""

import base64
from collections.abc import Iterable

from awscrt import checksums

CRC64NVME = "crc64nvme"
"""S3's name of the algorithm that the pipeline computes itself."""


def crc64(data: bytes | memoryview, before: int = 0) -> int:
    """The CRC64-NVME of some bytes, as an unsigned integer.

    :param before: CRC of the bytes that precede them, to continue it; 0 if there are none
    """
    return int(checksums.crc64nvme(data, before))


def concatenate(pieces: Iterable[tuple[int, int]]) -> int:
    """The CRC64-NVME of pieces end to end, computed without their bytes.

    :param pieces: CRC and length in bytes of each piece, in order
    """
    total = 0
    for crc, length in pieces:
        total = checksums.combine_crc64nvme(total, crc, length)
    return total


def to_header(crc: int) -> str:
    """The value of the header ``x-amz-checksum-crc64nvme``: eight bytes, big-endian, in base64."""
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def from_header(value: str | None, algorithm: str = CRC64NVME) -> int | None:
    """Read the CRC of a whole object from a checksum header.

    :param value: of the header; None if the answer has none
    :returns: None without a header, for a checksum of multipart parts (``…-3``), or for an invalid value
    """
    if not value or "-" in value:
        return None
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    return int.from_bytes(digest, "big") if len(digest) == _BYTES[algorithm] else None


def to_hex(crc: int) -> str:
    """The format of receipts and manifests: 16 hexadecimal digits."""
    return f"{crc:016x}"


def by_algorithm(algorithm: str, data: bytes | memoryview) -> int:
    """The CRC of some bytes by one of :data:`ALGORITHMS`."""
    return int(_ALGORITHMS[algorithm](data))


_BYTES = {CRC64NVME: 8, "crc32c": 4, "crc32": 4}
_ALGORITHMS = {CRC64NVME: checksums.crc64nvme, "crc32c": checksums.crc32c, "crc32": checksums.crc32}
ALGORITHMS = tuple(_ALGORITHMS)
"""S3's names of the CRCs that can be computed, the fastest first."""
