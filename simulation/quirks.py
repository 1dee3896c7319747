"""How a simulated server differs from S3."""

from dataclasses import dataclass
from enum import StrEnum


class Order(StrEnum):
    """The order in which a server lists keys."""

    BYTES = "bytes"
    """By their UTF-8 bytes, as S3 does."""
    FOLDERS = "folders"
    """The objects of a folder before those of its subfolders."""
    REVERSED = "reversed"


class StartAfter(StrEnum):
    """How a server handles ``start-after``."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    FOLDER = "folder"
    """The listing begins with the folder of the key."""
    INCLUSIVE = "inclusive"


class ListingFault(StrEnum):
    """How a listing contradicts itself."""

    NONE = "none"
    TWICE = "twice"
    """Each key in a folder is listed twice in a row."""
    TWICE_LATER = "twice later"
    """Keys in folders are listed again after all others."""
    PAGES_OVERLAP = "pages overlap"
    """Each page begins with the last key of the previous page."""
    TWO_ETAGS = "two ETags"
    """A key is listed twice, with two ETags."""
    NO_TOKEN = "no token"
    """A truncated page has no continuation token."""
    SAME_TOKEN = "same token"
    """The token of the second page leads to the second page."""
    OUTSIDE = "outside"
    """A key of another prefix is listed."""


# Faults that make a listing unusable: planning must fail with an error that names them.
UNUSABLE = (ListingFault.TWO_ETAGS, ListingFault.NO_TOKEN, ListingFault.SAME_TOKEN, ListingFault.OUTSIDE)


class ETags(StrEnum):
    """What a server uses as ETags."""

    MD5 = "md5"
    OPAQUE = "opaque"
    """They look like an MD5 but are not, and differ for each write."""
    MARKED = "marked"
    """They have a suffix that no MD5 has."""


class Checksums(StrEnum):
    """How a server handles the CRC64-NVME that is sent with an object."""

    CHECKED = "checked"
    ECHOED = "echoed"
    """It is kept and returned, but not compared with the bytes."""
    NONE = "none"
    """It is ignored."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """How a server behaves; the defaults are those of S3.

    :param page_size: the most keys of a page
    :param empty_pages: whether an empty page comes before each page after the first
    :param listed_etags: whether listings have ETags
    :param copies: whether it supports CopyObject
    :param if_match_get: whether it honours If-Match of a GET
    :param if_match_delete: whether it honours If-Match of a DELETE
    :param delimiter: whether it honours the delimiter of a listing
    :param uploads_by_prefix: whether listings of multipart uploads honour the prefix
    :param clock_seconds: how far its clock is ahead
    """

    order: Order = Order.BYTES
    start_after: StartAfter = StartAfter.HONOURED
    listing: ListingFault = ListingFault.NONE
    page_size: int = 1000
    empty_pages: bool = False
    listed_etags: bool = True
    etags: ETags = ETags.MD5
    checksums: Checksums = Checksums.CHECKED
    copies: bool = True
    if_match_get: bool = True
    if_match_delete: bool = True
    delimiter: bool = True
    uploads_by_prefix: bool = True
    clock_seconds: float = 0.0

    def names(self) -> list[str]:
        """Return what differs from S3, such as ``etags=opaque`` or ``page_size``."""
        defaults = Quirks()
        found = []
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value != getattr(defaults, name):
                found.append(f"{name}={value}" if isinstance(value, StrEnum | bool) else name)
        return found
