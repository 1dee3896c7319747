"""Reads the pages of a listing fast: botocore's own parser takes some 190 ms of CPU for 1,000 objects."""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote_plus

from botocore import handlers
from botocore.utils import parse_timestamp

from include.log_rollup.errors import ListingError, TransientError
from include.log_rollup.storage.protocol import ListPage, ObjectInfo

_EVENT = "before-parse.s3.*"
_ROWS, _NEWEST, _TRUNCATED = "LogRollupRows", "LogRollupNewest", "LogRollupTruncated"
_ROW, _ROW_END = "<Contents>", "</Contents>"
_KEY, _SIZE, _ETAG, _TIME = (f"<{name}>" for name in ("Key", "Size", "ETag", "LastModified"))
_KEYS, _SIZES, _ETAGS, _TIMES = (re.compile(f"{start}([^<]*)</") for start in (_KEY, _SIZE, _ETAG, _TIME))
# A row in S3's own form, in which a page has the most objects in the least time.
_S3_ROWS = re.compile(
    r"<Contents><Key>([^<]*)</Key><LastModified>([^<]*)Z</LastModified><ETag>&quot;([^<&\"]*)&quot;</ETag>"
    r".*?<Size>([^<]*)</Size>"
)
_S3_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?")
_ROOT = re.compile(r"<(?:\w+:)?ListBucket\w*Result[\s/>]")
_ERROR = re.compile(r"<(?:\w+:)?Error[\s>]")
_ENCODING = re.compile("<EncodingType>([^<]*)</EncodingType>")
_IS_TRUNCATED = re.compile(r"<IsTruncated>\s*(\w+)\s*</IsTruncated>")
# What XML 1.0 does not allow, or normalizes (line ends): https://www.w3.org/TR/xml/#charsets
_NOT_AS_WRITTEN = re.compile("[\\x00-\\x1f\\ufffe\\uffff]")
_ENTITY = re.compile("&([^;&]*;?)")
_NAMED = {"amp;": "&", "lt;": "<", "gt;": ">", "quot;": '"', "apos;": "'"}
_NO_CHARACTERS = {*range(0xD800, 0xE000), 0xFFFE, 0xFFFF}
_NUMBERED = re.compile(r"#(?:(\d{1,7})|x([0-9A-Fa-f]{1,6}));")


class _OtherFormError(Exception):
    """A page in a form that is left to botocore."""


def read_rows_with(client: Any) -> None:
    """Have a boto3 client read its listings in this way; it may not be given an EncodingType."""
    events = client.meta.events
    events.register_first(_EVENT, _take_rows)
    # botocore looks for errors in answers of status 200 by parsing all of them; it gets what is left of a listing.
    # In this place its handler still sees all answers, as those of CopyObject, which need it.
    look_for_errors = getattr(handlers, "_handle_200_error", None)
    if look_for_errors is not None:
        events.unregister(_EVENT, look_for_errors)
        events.register(_EVENT, look_for_errors)


def _take_rows(
    operation_model: Any,
    response_dict: MutableMapping[str, Any],
    customized_response_dict: MutableMapping[str, Any],
    **_: Any,
) -> None:
    """Take the objects out of a page before botocore parses it.

    It knows the forms in which S3 and most other servers write them
    (https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html). A page in any other form of XML is
    left as it is, and botocore parses all of it.

    :raises TransientError: if it is no listing: botocore would take an empty body, or the page of a proxy, for one
        without objects
    :raises ListingError: if a key is not UTF-8
    """
    if operation_model.name != "ListObjectsV2" or response_dict["status_code"] != 200:
        return
    try:
        body = response_dict["body"].decode()
    except UnicodeDecodeError:
        return
    if _ROOT.search(body) is None:
        if _ERROR.search(body):
            # botocore does the same, but not where the element has a namespace.
            response_dict["status_code"] = 500
            return
        raise TransientError(f"the server's answer to a listing is none: {body[:100]!r}")
    first, end = body.find(_ROW), body.rfind(_ROW_END) + len(_ROW_END)
    rest = body if first < 0 else body[:first] + body[end:]
    # xs:boolean is also written 1 or 0, which botocore takes for false.
    if stated := _IS_TRUNCATED.search(rest):
        customized_response_dict[_TRUNCATED] = stated[1].lower() in ("true", "1")
    if first < 0 or end < first or ("!" in body and "<!" in body):
        return
    encoding = _ENCODING.search(rest)
    try:
        rows, newest = _read(body[first:end], url_encoded=encoding is not None and encoding[1] == "url")
    except _OtherFormError:
        return
    customized_response_dict[_ROWS], customized_response_dict[_NEWEST] = rows, newest
    response_dict["body"] = rest.encode()


def _read(text: str, url_encoded: bool) -> tuple[list[ObjectInfo], float]:
    """The rows of a page and the time of the newest.

    :raises _OtherFormError: if botocore has to read it
    """
    try:
        keys, times, etags, sizes = _columns(text)
        if not "".join(etags).isprintable():
            etags = list(map(_sendable, etags))
        # Rows of one size share its number: a listing of a million objects is held in memory.
        numbers = {size: int(size) for size in set(sizes)}
        rows = list(map(ObjectInfo, _decoded(keys, url_encoded), map(numbers.__getitem__, sizes), etags))
        return rows, _newest(times)
    except ValueError as error:
        raise _OtherFormError from error


def _columns(text: str) -> Sequence[Sequence[str]]:
    """Keys, times, ETags and sizes; keys still have their entities."""
    count = text.count(_ROW)
    rows = _S3_ROWS.findall(text)
    if len(rows) == count and text.count(_ROW_END + _ROW) == count - 1:
        return tuple(zip(*rows, strict=True))
    columns = [_KEY, _TIME, _SIZE, *([_ETAG] if _ETAG in text else [])]
    # Each row has to have each of them once: otherwise values would get to other rows' keys.
    for row in text.split(_ROW_END)[:-1]:
        if not row.lstrip().startswith(_ROW) or any(row.count(column) != 1 for column in columns):
            raise _OtherFormError
    keys, sizes = _KEYS.findall(text), _SIZES.findall(text)
    times = [_unescaped(time).strip().removesuffix("Z") for time in _TIMES.findall(text)]
    etags = [_unescaped(etag).strip().strip('"') for etag in _ETAGS.findall(text)] or [""] * count
    if not count == len(keys) == len(times) == len(etags) == len(sizes):
        raise _OtherFormError
    return keys, times, etags, sizes


def _decoded(keys: Sequence[str], url_encoded: bool) -> Sequence[str]:
    """Keys as they are: XML's entities are the outer form, percent encoding the inner one."""
    joined = "".join(keys)
    if not joined.isprintable() and _NOT_AS_WRITTEN.search(joined):
        raise _OtherFormError
    if "&" in joined:
        keys = list(map(_unescaped, keys))
    if url_encoded and ("%" in joined or "+" in joined or "&" in joined):
        try:
            decoded = unquote_plus("\n".join(keys), errors="strict").split("\n")
            # A key that has a line end itself is decoded by itself.
            keys = (
                decoded if len(decoded) == len(keys) else [unquote_plus(key, errors="strict") for key in keys]
            )
        except UnicodeDecodeError as error:
            raise ListingError(
                f"the server lists a key that is not UTF-8 ({error.object[:1000]!r}): no request can name it; "
                f"rename or delete the object"
            ) from error
    return keys


def _unescaped(text: str) -> str:
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(entity: re.Match[str]) -> str:
    name = entity[1]
    if name in _NAMED:
        return _NAMED[name]
    number = _NUMBERED.fullmatch(name)
    if number is None:
        raise _OtherFormError
    code = int(number[1] or number[2], 10 if number[1] else 16)
    if code > 0x10FFFF or not (code in (0x9, 0xA, 0xD) or code >= 0x20) or code in _NO_CHARACTERS:
        raise _OtherFormError
    return chr(code)


def _sendable(etag: str) -> str:
    """An ETag, empty for one that could not be sent in a header."""
    return etag if etag.isprintable() else ""


def _newest(times: Sequence[str]) -> float:
    """The newest of times without their final Z, in epoch seconds; what has no zone is UTC."""
    if all(map(_S3_TIME.fullmatch, times)):
        # In this form the order of texts is the order of times.
        return datetime.fromisoformat(max(times)).replace(tzinfo=UTC).timestamp()
    return max(_utc(parse_timestamp(time)).timestamp() for time in set(times))


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def page_of(answer: Mapping[str, Any]) -> ListPage:
    """A page from botocore's parsed answer.

    An object without an ETag, or with one that could not be sent in a header, has the ETag ``""``: ask HEAD for
    it, or refuse it. Truncation and token are as the server stated them, also where they contradict each other.

    :raises ListingError: if a row has no key or no size
    """
    rows = answer.get(_ROWS) or _parsed(answer.get("Contents", ()))
    newest = answer.get(_NEWEST) or max(
        (
            _utc(row["LastModified"]).timestamp()
            for row in answer.get("Contents", ())
            if "LastModified" in row
        ),
        default=0.0,
    )
    return ListPage(
        rows,
        newest,
        _server_time(answer["ResponseMetadata"]["HTTPHeaders"].get("date")),
        answer.get(_TRUNCATED, answer.get("IsTruncated", False)),
        answer.get("NextContinuationToken") or None,
    )


def _parsed(contents: Sequence[Mapping[str, Any]]) -> list[ObjectInfo]:
    rows = []
    for row in contents:
        missing = {"Key", "Size"} - row.keys()
        if missing:
            raise ListingError(
                f"the server lists an object without {' and '.join(sorted(missing))}: {row.get('Key', row)!r}; "
                f"nothing can be rolled up from such a listing"
            )
        etag = row.get("ETag", "")
        # botocore makes a list of what is there twice.
        etag = etag.strip().strip('"') if isinstance(etag, str) else ""
        rows.append(ObjectInfo(row["Key"], row["Size"], _sendable(etag)))
    return rows


def _server_time(date: str | None) -> datetime:
    """The time of an answer; this machine's where the answer states none that can be read."""
    try:
        return _utc(parsedate_to_datetime(date or ""))
    except ValueError:
        return datetime.now(UTC)
