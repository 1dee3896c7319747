"""Parses the pages of a listing fast: botocore's own parser takes about 190 ms of CPU for 1,000 objects.

Fast path: regular expressions take the objects out of the XML, in the forms in which S3 and most servers write
them, and botocore parses the rest. A page in any other form is left to botocore as a whole. Both give the same
:class:`include.log_rollup.storage.protocol.ListPage`.
"""

import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote_plus

from botocore import handlers
from botocore.parsers import create_parser
from botocore.utils import parse_timestamp

from include.log_rollup.errors import ForeignResponseError, ListingError, TransientError
from include.log_rollup.storage.protocol import (
    FolderPage,
    ListPage,
    Location,
    ObjectInfo,
    TimedObject,
    TimedPage,
)
from log_rollup_plugin.s3.checksums import bare_etag

# AWS stores objects of up to 50 TB, MinIO of up to 50 TiB.
MAX_OBJECT_BYTES = 10**14 - 1
# The start of the year 9999 in epoch seconds: no later time fits into a datetime in every time zone.
_LATEST = 253_370_764_800.0
_EVENT = "before-parse.s3.*"
# Keys under which the fast path adds its results to botocore's response.
_OBJECTS, _TIMES_OF, _NEWEST, _TRUNCATED, _MARKED = (
    f"LogRollup{name}" for name in ("Objects", "Times", "Newest", "Truncated", "Marked")
)
_ROW, _ROW_END = "<Contents>", "</Contents>"
_KEY, _SIZE, _ETAG, _TIME = (f"<{name}>" for name in ("Key", "Size", "ETag", "LastModified"))
_KEYS, _ETAGS, _TIMES = (re.compile(f"{start}([^<]*)</") for start in (_KEY, _ETAG, _TIME))
# Up to MAX_OBJECT_BYTES.
_SIZES = re.compile(r"<Size>\s*(\d{1,14})\s*</")
# A row exactly as S3 writes it: one regular expression for all columns is fastest.
_S3_ROW = re.compile(
    r"<Contents><Key>([^<]*)</Key><LastModified>([^<]*)Z</LastModified><ETag>&quot;([^<&\"]*)&quot;</ETag>"
    r".*?<Size>(\d{1,14})</Size>"
)
_S3_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?")
_ROOT = re.compile(r"<(?:\w+:)?ListBucket\w*Result[\s/>]")
_ERROR = re.compile(r"<(?:\w+:)?Error[\s>]")
_ENCODING = re.compile("<EncodingType>([^<]*)</EncodingType>")
_IS_TRUNCATED = re.compile(r"<IsTruncated>\s*(\w+)\s*</IsTruncated>")
_NEXT_MARKER = re.compile(r"<NextMarker>[^<]")
# Characters that XML 1.0 does not allow, or normalises (line ends): https://www.w3.org/TR/xml/#charsets
_NOT_VERBATIM = re.compile("[\\x00-\\x1f\\ufffe\\uffff]")
_ENTITY = re.compile("&([^;&]*;?)")
_NAMED = {"amp;": "&", "lt;": "<", "gt;": ">", "quot;": '"', "apos;": "'"}
_NOT_CHARACTERS = {*range(0xD800, 0xE000), 0xFFFE, 0xFFFF}
_NUMBERED = re.compile(r"#(?:(\d{1,7})|x([0-9A-Fa-f]{1,6}));")


class _UnsupportedFormError(Exception):
    """The page has a form that only botocore parses."""


def register_fast_parser(client: Any) -> None:
    """Make a boto3 client parse its listings fast; its requests must not set EncodingType."""
    events = client.meta.events
    events.register_first(_EVENT, _parse_objects)
    # botocore's handler finds errors in responses of status 200 by parsing all of the XML. Registered after the
    # fast path, it parses only the rest of a listing. Other responses, such as that of CopyObject, still need it.
    find_errors = getattr(handlers, "_handle_200_error", None)
    if find_errors is not None:
        events.unregister(_EVENT, find_errors)
        events.register(_EVENT, find_errors)


def _parse_objects(
    operation_model: Any,
    response_dict: MutableMapping[str, Any],
    customized_response_dict: MutableMapping[str, Any],
    **_: Any,
) -> None:
    """Take the objects out of a page, before botocore parses it.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html

    :raises ForeignResponseError: if the response is not a listing. botocore would read an empty body, an HTML page
        of a proxy, or any response of another status below 300 as a listing without objects.
    :raises ListingError: if a key is not UTF-8
    """
    status = response_dict["status_code"]
    if operation_model.name != "ListObjectsV2" or status >= 300:
        return
    if status != 200:
        raise ForeignResponseError(f"the server answered a listing with status {status}, which has to be 200")
    try:
        body, is_utf8 = response_dict["body"].decode(), True
    except UnicodeDecodeError:
        # Without the zeros of UTF-16.
        body, is_utf8 = response_dict["body"].decode("latin-1").replace("\0", ""), False
    if _ROOT.search(body) is None:
        if _ERROR.search(body):
            # botocore does the same, but not if the element has a namespace.
            response_dict["status_code"] = 500
            return
        raise ForeignResponseError(f"the server sent something else instead of a listing: {body[:100]!r}")
    if not is_utf8:
        return
    first, end = body.find(_ROW), body.rfind(_ROW_END) + len(_ROW_END)
    rest = body if first < 0 else body[:first] + body[end:]
    # An xs:boolean may also be 1 or 0; botocore reads 1 as false.
    if stated := _IS_TRUNCATED.search(rest):
        customized_response_dict[_TRUNCATED] = stated[1].lower() in ("true", "1")
    customized_response_dict[_MARKED] = _NEXT_MARKER.search(rest) is not None
    if first < 0 or end < first or ("!" in body and "<!" in body):
        return
    encoding = _ENCODING.search(rest)
    try:
        url_encoded = encoding is not None and encoding[1] == "url"
        rows, times, newest = _parse_rows(body[first:end], url_encoded)
    except _UnsupportedFormError:
        return
    customized_response_dict.update({_OBJECTS: rows, _TIMES_OF: times, _NEWEST: newest})
    response_dict["body"] = rest.encode()


def _parse_rows(text: str, url_encoded: bool) -> tuple[list[ObjectInfo], Sequence[str], float]:
    """The objects of a page, their times, and the time of the newest in epoch seconds.

    :param text: from the first <Contents> to the last </Contents>
    :raises _UnsupportedFormError: if botocore has to parse it
    """
    try:
        keys, times, etags, sizes = _columns(text)
        if not "".join(etags).isprintable():
            etags = list(map(_header_safe, etags))
        # Objects of equal size share one int: a listing of a million objects is held in memory.
        numbers = {size: int(size) for size in set(sizes)}
        rows = list(map(ObjectInfo, _decode_keys(keys, url_encoded), map(numbers.__getitem__, sizes), etags))
        return rows, times, _newest(times)
    except (ValueError, OverflowError, RuntimeError) as error:
        # botocore raises a RuntimeError for milliseconds since 1970.
        raise _UnsupportedFormError from error


def _columns(text: str) -> Sequence[Sequence[str]]:
    """Keys, times, ETags and sizes of all rows. Entities in keys are not replaced yet."""
    count = text.count(_ROW)
    rows = _S3_ROW.findall(text)
    if len(rows) == count and text.count(_ROW_END + _ROW) == count - 1:
        return tuple(zip(*rows, strict=True))
    columns = [_KEY, _TIME, _SIZE, *([_ETAG] if _ETAG in text else [])]
    # Each row must have each column once; otherwise values would be assigned to keys of other rows.
    for row in text.split(_ROW_END)[:-1]:
        if not row.lstrip().startswith(_ROW) or any(row.count(column) != 1 for column in columns):
            raise _UnsupportedFormError
    keys, sizes = _KEYS.findall(text), _SIZES.findall(text)
    times = [_unescape(time).strip().removesuffix("Z") for time in _TIMES.findall(text)]
    etags = [_unescape(etag).strip().strip('"') for etag in _ETAGS.findall(text)] or [""] * count
    if "W/" in text:
        etags = list(map(bare_etag, etags))
    if not count == len(keys) == len(times) == len(etags) == len(sizes):
        raise _UnsupportedFormError
    return keys, times, etags, sizes


def _decode_keys(keys: Sequence[str], url_encoded: bool) -> Sequence[str]:
    """Keys without their encodings: first XML entities are replaced, then percent encoding."""
    joined = "".join(keys)
    if not joined.isprintable() and _NOT_VERBATIM.search(joined):
        raise _UnsupportedFormError
    if "&" in joined:
        keys = list(map(_unescape, keys))
    if url_encoded and ("%" in joined or "+" in joined or "&" in joined):
        try:
            decoded = unquote_plus("\n".join(keys), errors="strict").split("\n")
            # If a key contains a line end itself, the split is wrong: decode each key separately.
            keys = (
                decoded if len(decoded) == len(keys) else [unquote_plus(key, errors="strict") for key in keys]
            )
        except UnicodeDecodeError as error:
            raise ListingError(
                f"the server lists a key that is not UTF-8 ({error.object[:1000]!r}), which no request "
                f"can name; rename or delete the object"
            ) from error
    return keys


def _unescape(text: str) -> str:
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(entity: re.Match[str]) -> str:
    name = entity[1]
    if name in _NAMED:
        return _NAMED[name]
    number = _NUMBERED.fullmatch(name)
    if number is None:
        raise _UnsupportedFormError
    code = int(number[1] or number[2], 10 if number[1] else 16)
    if code > 0x10FFFF or not (code in (0x9, 0xA, 0xD) or code >= 0x20) or code in _NOT_CHARACTERS:
        raise _UnsupportedFormError
    return chr(code)


def _header_safe(etag: str) -> str:
    """The ETag, or an empty one if it cannot be the value of a header."""
    return etag if etag.isprintable() else ""


def _newest(times: Sequence[str]) -> float:
    """The newest of some times without their final Z, in epoch seconds. A time without a zone is UTC."""
    if all(map(_S3_TIME.fullmatch, times)):
        # In this form, texts sort like times.
        return datetime.fromisoformat(max(times)).replace(tzinfo=UTC).timestamp()
    return max(_utc(parse_timestamp(time)).timestamp() for time in set(times))


def _time_of(text: str) -> datetime:
    """A time without its final Z, in UTC."""
    return _utc(datetime.fromisoformat(text) if _S3_TIME.fullmatch(text) else parse_timestamp(text))


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def parse_response(model: Any, headers: Mapping[str, str], body: bytes) -> Mapping[str, Any]:
    """The response to ListObjectsV2 with ``encoding-type=url`` as a client with the fast parser returns it.

    :param model: botocore's model of the operation
    :param headers: of a response of status 200
    :raises TransientError: if it is an error or no listing
    :raises ListingError: if a key is not UTF-8
    :raises botocore.parsers.ResponseParserError: if it is not valid XML
    """
    raw = {"status_code": 200, "headers": headers, "body": body}
    found: dict[str, Any] = {}
    _parse_objects(model, raw, found)
    if raw["status_code"] != 200:
        raise TransientError("the server sent an error with status 200")
    response: dict[str, Any] = create_parser("rest-xml").parse(raw, model.output_shape)
    handlers.decode_list_object_v2(response, {"encoding_type_auto_set": True})
    return response | found


def check_prefix(response: Mapping[str, Any], prefix: Location) -> None:
    """Refuse the listing of another prefix, as from a cache that ignores the query. Some servers state none.

    :raises ListingError: if the response states another prefix
    """
    stated, asked = response.get("Prefix") or "", prefix.key
    # Some servers encode the prefix without saying so, or say so and do not encode it.
    if stated not in ("", asked, unquote_plus(asked)) and unquote_plus(str(stated)) != asked:
        raise ListingError(
            f"LIST {prefix}: the server lists the prefix {stated!r} instead; check proxies and caches in front of "
            f"the server, and update or replace the server"
        )


def parse_page(response: Mapping[str, Any], own: Callable[[str], bool] | None = None) -> ListPage:
    """A page from botocore's response to ListObjectsV2.

    An object without an ETag, or with one that cannot be the value of a header, has the ETag ``""``. Truncation
    and token are as the server stated them, even if they contradict each other.

    :param response: from a client with or without the fast parser
    :param own: which keys count for ``newest``; None for all
    :raises ListingError: if an object has no key or no valid size, or the page is one of ListObjects
    """
    objects = response.get(_OBJECTS) or _botocore_objects(response.get("Contents", ()))
    return ListPage(
        objects,
        min(_newest_own(response, objects, own), _LATEST),
        _server_time(response["ResponseMetadata"]["HTTPHeaders"].get("date")),
        response.get(_TRUNCATED, response.get("IsTruncated")),
        _token(response),
        _prefixes(response),
    )


def _token(response: Mapping[str, Any]) -> str | None:
    token = response.get("NextContinuationToken") or None
    if token is None and response.get(_MARKED):
        raise ListingError(
            "the server lists pages with NextMarker instead of a continuation token: it does not support "
            "ListObjectsV2; update or replace the server"
        )
    _require_text("continuation token", token)
    return token


def _prefixes(response: Mapping[str, Any]) -> list[str]:
    prefixes = [row["Prefix"] for row in response.get("CommonPrefixes", ()) if "Prefix" in row]
    for prefix in prefixes:
        _require_text("prefix", prefix)
    return prefixes


def _require_text(what: str, value: object) -> None:
    # botocore makes a list of an element that occurs twice.
    if isinstance(value, list):
        raise ListingError(
            f"the server lists more than one {what} in one place; update or replace the server"
        )


def parse_folders(response: Mapping[str, Any]) -> FolderPage:
    """A page of folders from botocore's response to ListObjectsV2 with a delimiter.

    :raises ListingError: as :func:`parse_page` does
    """
    objects = response.get(_OBJECTS) or _botocore_objects(response.get("Contents", ()))
    return FolderPage(
        _prefixes(response),
        [item.key for item in objects],
        response.get(_TRUNCATED, response.get("IsTruncated")),
        _token(response),
    )


def parse_times(response: Mapping[str, Any]) -> TimedPage:
    """A page with the times of its objects from botocore's response to ListObjectsV2.

    :raises ListingError: if an object has no key, no size or no time
    """
    objects = response.get(_OBJECTS) or _botocore_objects(response.get("Contents", ()))
    if _OBJECTS in response:
        times = list(map(_time_of, response[_TIMES_OF]))
    else:
        times = [_utc(row["LastModified"]) for row in response.get("Contents", ()) if "LastModified" in row]
    if len(times) != len(objects):
        raise ListingError("the server lists an object without LastModified; update or replace the server")
    return TimedPage(
        [TimedObject(row.key, row.size, row.etag, time) for row, time in zip(objects, times, strict=True)],
        _prefixes(response),
        response.get(_TRUNCATED, response.get("IsTruncated", False)),
    )


def _newest_own(
    response: Mapping[str, Any], objects: Sequence[ObjectInfo], own: Callable[[str], bool] | None
) -> float:
    """The time of the newest object whose key counts, in epoch seconds; 0 if there is none."""
    if _OBJECTS in response:
        if own is None:
            return float(response[_NEWEST])
        times = [time for row, time in zip(objects, response[_TIMES_OF], strict=True) if own(row.key)]
        return _newest(times) if times else 0.0
    return max(
        (
            _utc(row["LastModified"]).timestamp()
            for row in response.get("Contents", ())
            if "LastModified" in row and (own is None or own(row["Key"]))
        ),
        default=0.0,
    )


def _botocore_objects(contents: Sequence[Mapping[str, Any]]) -> list[ObjectInfo]:
    rows = []
    for row in contents:
        missing = {"Key", "Size"} - row.keys()
        if missing:
            raise ListingError(
                f"the server lists an object without {' and '.join(sorted(missing))}: {row.get('Key', row)!r}; "
                f"update or replace the server"
            )
        _require_text("key", row["Key"])
        if not 0 <= row["Size"] <= MAX_OBJECT_BYTES:
            raise ListingError(
                f"the server lists {row['Key']!r} with {row['Size']} bytes, which no object has; update or "
                f"replace the server"
            )
        etag = row.get("ETag", "")
        # botocore makes a list of an element that occurs twice.
        etag = bare_etag(etag) if isinstance(etag, str) else ""
        rows.append(ObjectInfo(row["Key"], row["Size"], _header_safe(etag)))
    return rows


def _server_time(date: str | None) -> datetime:
    """The time of a response; the time of this machine if the response has no valid Date header."""
    try:
        return _utc(parsedate_to_datetime(date or ""))
    except (ValueError, OverflowError):
        return datetime.now(UTC)
