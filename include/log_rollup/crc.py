"""CRC64-NVME: of bytes, of bytes end to end, and as S3 writes it."""

import base64
from collections.abc import Iterable

from awscrt import checksums

# The one that the pipeline counts itself, by S3's name.
CRC64NVME = "crc64nvme"


def crc64(data: bytes | memoryview, before: int = 0) -> int:
    """The CRC64-NVME of these bytes, unsigned.

    :param before: the CRC of all that lies before them; 0 for nothing
    """
    return int(checksums.crc64nvme(data, before))


def concatenate(pieces: Iterable[tuple[int, int]]) -> int:
    """The CRC of pieces laid end to end.

    :param pieces: CRC and length in bytes of each piece, in order
    """
    total = 0
    for crc, length in pieces:
        total = checksums.combine_crc64nvme(total, crc, length)
    return total


def to_header(crc: int) -> str:
    """As in ``x-amz-checksum-crc64nvme``: eight bytes, big-endian, in base64."""
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def from_header(value: str | None, algorithm: str = CRC64NVME) -> int | None:
    """Read the CRC of a whole object from its header.

    :returns: None if there is none, it is a checksum of parts (``…-3``), or the value is damaged
    """
    if not value or "-" in value:
        return None
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    return int.from_bytes(digest, "big") if len(digest) == _BYTES[algorithm] else None


def to_hex(crc: int) -> str:
    """As in receipts and manifests: 16 hexadecimal digits."""
    return f"{crc:016x}"


def by_algorithm(algorithm: str, data: bytes | memoryview) -> int:
    """The CRC of these bytes by S3's name of the algorithm: ``crc64nvme``, ``crc32c`` or ``crc32``."""
    return int(_ALGORITHMS[algorithm](data))


_BYTES = {CRC64NVME: 8, "crc32c": 4, "crc32": 4}
_ALGORITHMS = {CRC64NVME: checksums.crc64nvme, "crc32c": checksums.crc32c, "crc32": checksums.crc32}
# In the order of their speed here.
ALGORITHMS = tuple(_ALGORITHMS)
