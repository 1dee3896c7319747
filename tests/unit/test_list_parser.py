"""The fast parser of listings returns what botocore's own parser returns, for the XML of many servers."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from io import BytesIO
from types import FrameType
from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from include.log_rollup.errors import ListingError, RollupError, ThrottledError, TransientError
from include.log_rollup.storage.protocol import Location, ObjectInfo
from log_rollup_plugin.s3 import list_parser
from log_rollup_plugin.s3.error_mapping import translated
from log_rollup_plugin.s3.list_parser import parse_folders, parse_page, parse_times

MOMENT = datetime(2026, 11, 23, 8, 0, 5, 678000, UTC)
ETAG = "9e107d9d372bb6826bd81d3542a419d6"
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
HUGE_DATE = "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"
APOS, QUOT = {"'": "&apos;"}, {'"': "&quot;"}


class RawResponse(BytesIO):
    """A response body with the interface of urllib3's."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


class Lister:
    """A boto3 client whose listings are answered here, without a server."""

    def __init__(self, fast: bool) -> None:
        self.client = boto3.client(
            "s3", endpoint_url="http://127.0.0.1:9", region_name="us-east-1", aws_access_key_id="a",
            aws_secret_access_key="s", config=Config(retries={"total_max_attempts": 1}),
        )  # fmt: skip
        self.body, self.headers = b"", {"Date": "Mon, 23 Nov 2026 09:00:00 GMT"}
        self.status = 200
        if fast:
            list_parser.register_fast_parser(self.client)
        self.client.meta.events.register("before-send.s3.ListObjectsV2", self._respond)

    def _respond(self, request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(request.url, self.status, self.headers, RawResponse(self.body))

    def list(
        self, body: str | bytes, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> Mapping[str, Any]:
        self.status, self.body = status, body.encode() if isinstance(body, str) else body
        self.headers = {"Date": "Mon, 23 Nov 2026 09:00:00 GMT"} if headers is None else dict(headers)
        response: Mapping[str, Any] = self.client.list_objects_v2(Bucket="logs", Prefix="raw/")
        return response


@pytest.fixture(scope="module")
def fast() -> Lister:
    """Return a client with the fast parser."""
    return Lister(fast=True)


@pytest.fixture(scope="module")
def plain() -> Lister:
    """Return a client with only botocore's parser."""
    return Lister(fast=False)


def page(
    rows: str, encoding: str = "<EncodingType>url</EncodingType>", truncated: str = "false", more: str = ""
) -> str:
    """Return a page with these rows."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult {NAMESPACE}><Name>logs</Name>'
        f"<Prefix>raw/</Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>{encoding}"
        f"<IsTruncated>{truncated}</IsTruncated>{more}{rows}</ListBucketResult>"
    )


def row(
    key: str,
    etag: str = f"&quot;{ETAG}&quot;",
    size: str = "17",
    modified: str = "2026-11-23T08:00:05.678Z",
) -> str:
    """Return one row as S3 writes it."""
    return (
        f"<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><ETag>{etag}</ETag><Size>{size}</Size>"
        f"<StorageClass>STANDARD</StorageClass></Contents>"
    )


def by_fast_path(response: Mapping[str, Any]) -> bool:
    return "LogRollupObjects" in response


# -- keys --------------------------------------------------------------------------------------------------

# How servers encode keys: as URL and then as XML, or as XML only (PLAIN_WRITERS).
WRITERS: Mapping[str, Callable[[str], str]] = {
    "S3": lambda key: quote_plus(key, safe="/*-._~"),
    "rclone": lambda key: escape(quote(key, safe="/")),
    "Ceph": lambda key: escape(quote(key, safe="/'()!*"), APOS),
    "SeaweedFS": lambda key: escape(key.replace("%", "%25").replace("+", "%2B"), APOS | QUOT),
    "numbers": lambda key: "".join(f"&#{ord(character)};" for character in quote(key, safe="/'&")),
    "hexadecimal": lambda key: "".join(f"&#x{ord(character):X};" for character in quote(key, safe="/'&")),
}
PLAIN_WRITERS: Mapping[str, Callable[[str], str]] = {
    "escaped": lambda key: escape(key, APOS | QUOT),
    "numbers": lambda key: "".join(
        character if character.isalnum() else f"&#{ord(character)};" for character in key
    ),
    "CDATA": lambda key: f"<![CDATA[{key}]]>",
}
TIMES: Mapping[str, Callable[[datetime], str]] = {
    "S3": lambda time: time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z",
    "whole seconds": lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "offset": lambda time: time.astimezone(UTC).isoformat(),
    "nanoseconds": lambda time: time.strftime("%Y-%m-%dT%H:%M:%S.%f") + "789Z",
    "s3rver": lambda time: format_datetime(time, usegmt=True),
    "epoch": lambda time: str(int(time.timestamp())),
}
ETAGS = (
    f"&quot;{ETAG}&quot;",
    f"&#34;{ETAG}&#34;",
    f"&#x22;{ETAG}&#x22;",
    f'"{ETAG}"',
    ETAG,
    f"\n  {ETAG}  ",
    f"W/&quot;{ETAG}&quot;",
    f' W/"{ETAG}"',
)

characters = st.characters(min_codepoint=0x20, exclude_categories=["Cs"]) | st.sampled_from("'&<>\"%+ /;#~")
keys = st.text(
    characters.filter(lambda character: ord(character) not in (0xFFFE, 0xFFFF)), min_size=1, max_size=12
)


@pytest.mark.slow
@settings(max_examples=100)
@given(
    st.lists(keys, min_size=1, max_size=5),
    st.sampled_from(sorted(WRITERS)),
    st.sampled_from(sorted(TIMES)),
    st.lists(st.sampled_from(ETAGS), min_size=5, max_size=5),
    st.sampled_from(["", "\n  "]),
    st.booleans(),
)
def test_encoded_keys_of_each_server_read_as_by_botocore(
    fast: Lister,
    plain: Lister,
    names: list[str],
    writer: str,
    times: str,
    etags: list[str],
    space: str,
    more: bool,
) -> None:
    rows = [
        row(WRITERS[writer](name), etags[index], str(index), TIMES[times](MOMENT - timedelta(minutes=index)))
        for index, name in enumerate(names)
    ]
    body = page(
        space + space.join(part.replace("><", f">{space}<") for part in rows), truncated=str(more).lower()
    )
    response = fast.list(body)
    found, reference = parse_page(response), parse_page(plain.list(body))
    assert found == reference
    assert found.objects == [ObjectInfo(name, index, ETAG) for index, name in enumerate(names)]
    assert abs(found.newest - MOMENT.timestamp()) < 1
    assert by_fast_path(response)


@pytest.mark.slow
@given(st.lists(keys, min_size=1, max_size=5), st.sampled_from(sorted(PLAIN_WRITERS)))
def test_keys_that_are_not_url_encoded_are_kept(
    fast: Lister, plain: Lister, names: list[str], writer: str
) -> None:
    names = [name for name in names if "]]>" not in name] or ["a"]
    body = page("".join(row(PLAIN_WRITERS[writer](name)) for name in names), encoding="")
    found = parse_page(fast.list(body))
    assert found == parse_page(plain.list(body))
    assert [info.key for info in found.objects] == names


controls = st.text(st.characters(max_codepoint=0x2029, exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(controls, min_size=1, max_size=4))
def test_control_characters_in_encoded_keys_are_kept(fast: Lister, plain: Lister, names: list[str]) -> None:
    body = page("".join(row(WRITERS["S3"](name)) for name in names))
    found = parse_page(fast.list(body))
    assert [info.key for info in found.objects] == names
    assert found == parse_page(plain.list(body))


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("raw/it&apos;s.log", "raw/it's.log"),
        ("raw/a&amp;b/c.log", "raw/a&b/c.log"),
        ("raw/a&amp;amp%3B.log", "raw/a&amp;.log"),
        ("raw/%26apos%3B.log", "raw/&apos;.log"),
        ("raw/&#39;&#x27;.log", "raw/''.log"),
        ("raw/a+b%2Bc.log", "raw/a b+c.log"),
        ("raw/line%0Aend.log", "raw/line\nend.log"),
        ("raw/%F0%9F%98%80.log", "raw/\U0001f600.log"),
    ],
)
def test_xml_entities_are_decoded_before_percent_encoding(fast: Lister, written: str, key: str) -> None:
    response = fast.list(page(row(written) + row("raw/z")))
    assert [info.key for info in parse_page(response).objects] == [key, "raw/z"]
    assert by_fast_path(response)


@pytest.mark.parametrize("written", ["raw/&nbsp;x", "raw/a&b", "raw/&#0;x", "raw/&#xD800;x", "raw/\x01x"])
def test_invalid_xml_is_a_transient_error(fast: Lister, written: str) -> None:
    # botocore turns it into a status of 500.
    with pytest.raises(TransientError, match="S3 answered 500"), translated("LIST", Location("b", "p")):
        fast.list(page(row(written)))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html><body>Sign in</body></html>",
        "{}",
        "<ListBucketResult>",
        page(row("a"))[:-40],
        page(row("a")).replace("raw/", "raw/\udcff", 1),
        '<?xml version="1.0" encoding="ISO-8859-1"?><html><body>Ung\udcfcltig</body></html>',
    ],
)
def test_incomplete_response_is_not_an_empty_listing(fast: Lister, body: str) -> None:
    with pytest.raises(TransientError), translated("LIST", Location("b", "p")):
        fast.list(body.encode(errors="surrogateescape"))


@pytest.mark.parametrize("status", [101, 202, 203, 204, 206])
@pytest.mark.parametrize("rows", ["", row("a")])
def test_response_of_another_status_is_not_a_listing(fast: Lister, status: int, rows: str) -> None:
    with pytest.raises(TransientError, match=f"with status {status}"):
        fast.list(page(rows) if status != 204 else "", status=status)


@pytest.mark.parametrize("namespace", ["", NAMESPACE])
def test_error_in_a_200_response_is_raised(fast: Lister, namespace: str) -> None:
    body = f"<Error {namespace}><Code>SlowDown</Code><Message>later</Message></Error>"
    with pytest.raises(ThrottledError, match="SlowDown"), translated("LIST", Location("b", "p")):
        fast.list(body)


@pytest.mark.parametrize("root", ["ListBucketResult", "ListBucketV2Result", "s3:ListBucketResult"])
def test_name_and_namespace_of_the_root_do_not_matter(fast: Lister, plain: Lister, root: str) -> None:
    body = page(row("a")).replace("ListBucketResult", root).replace("xmlns=", "xmlns:s3='urn:x' xmlns=")
    found = parse_page(fast.list(body))
    assert found == parse_page(plain.list(body))
    assert len(found.objects) == 1


# -- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", sorted(TIMES))
def test_newest_object_is_found_in_each_time_format(fast: Lister, time: str) -> None:
    moments = [MOMENT - timedelta(days=days, milliseconds=100 * days) for days in (3, 0, 40)]
    response = fast.list(page("".join(row("k", modified=TIMES[time](moment)) for moment in moments)))
    assert abs(parse_page(response).newest - MOMENT.timestamp()) < 1
    assert by_fast_path(response)


@pytest.mark.parametrize("time", sorted(TIMES))
def test_each_object_has_its_time_in_each_format(fast: Lister, plain: Lister, time: str) -> None:
    moments = [MOMENT, MOMENT - timedelta(days=1)]
    rows = "".join(row(f"k{index}", modified=TIMES[time](moment)) for index, moment in enumerate(moments))
    folder = "<CommonPrefixes><Prefix>raw/a/</Prefix></CommonPrefixes>"
    for lister in (fast, plain):
        found = parse_times(lister.list(page(rows, more=folder)))
        assert [item.key for item in found.objects] == ["k0", "k1"]
        assert [
            abs(item.modified - moment) < timedelta(seconds=1)
            for item, moment in zip(found.objects, moments, strict=True)
        ] == [True, True]
        assert (found.folders, found.truncated) == (["raw/a/"], False)


def test_object_without_a_time_cannot_be_sampled(fast: Lister, plain: Lister) -> None:
    for lister in (fast, plain):
        with pytest.raises(ListingError, match="without LastModified"):
            parse_times(lister.list(page(without("LastModified", row("k")))))


def test_time_without_a_zone_is_utc(fast: Lister, plain: Lister) -> None:
    for lister in (fast, plain):
        found = parse_page(lister.list(page(row("k", modified="2026-11-23T08:00:05"))))
        assert found.newest == datetime(2026, 11, 23, 8, 0, 5, tzinfo=UTC).timestamp()


def test_fractions_of_different_lengths_compare_as_times(fast: Lister) -> None:
    times = ["2026-11-23T08:00:05Z", "2026-11-23T08:00:05.5Z", "2026-11-23T08:00:05.45Z"]
    found = parse_page(fast.list(page("".join(row("k", modified=time) for time in times))))
    assert found.newest == datetime(2026, 11, 23, 8, 0, 5, 500000, UTC).timestamp()


@pytest.mark.parametrize("dropped", ["<ETag>&quot;{etag}&quot;</ETag>", "etag", "quotes"])
def test_missing_etag_is_empty(fast: Lister, dropped: str) -> None:
    incomplete = row("k")
    if dropped == "etag":
        incomplete = incomplete.replace(f"&quot;{ETAG}&quot;", "")
    elif dropped == "quotes":
        incomplete = incomplete.replace(ETAG, "")
    else:
        incomplete = incomplete.replace(dropped.format(etag=ETAG), "")
    assert parse_page(fast.list(page(incomplete + incomplete))).objects == [ObjectInfo("k", 17, "")] * 2


@pytest.mark.parametrize("etag", ["a&#13;&#10;x-evil: 1", "a\rb", "a\x7fb"])
def test_etag_that_no_header_can_carry_is_empty(fast: Lister, plain: Lister, etag: str) -> None:
    for lister in (fast, plain):
        assert [info.etag for info in parse_page(lister.list(page(row("k", etag)))).objects] == [""]


def without(column: str, xml: str) -> str:
    """Return a row without one of its columns."""
    start, end = f"<{column}>", f"</{column}>"
    return xml[: xml.index(start)] + xml[xml.index(end) + len(end) :]


@pytest.mark.parametrize("column", ["ETag", "LastModified"])
def test_values_stay_with_their_keys_if_a_row_lacks_one(fast: Lister, plain: Lister, column: str) -> None:
    lacking, full = without(column, row("a")), row("b", etag="&quot;other&quot;", size="2")
    for rows in (lacking + full, full + lacking):
        body = page(rows)
        assert parse_page(fast.list(body)) == parse_page(plain.list(body))


def test_second_etag_is_not_assigned_to_another_row(fast: Lister) -> None:
    double = row("b").replace("<Size>", "<ETag>other</ETag><Size>")
    found = parse_page(fast.list(page(without("ETag", row("a")) + double)))
    assert found.objects == [ObjectInfo("a", 17, ""), ObjectInfo("b", 17, "")]


@pytest.mark.parametrize("column", ["Size", "Key"])
def test_row_without_key_or_size_is_an_error(fast: Lister, column: str) -> None:
    body = page(row("k") + without(column, row("k")), encoding="")
    with pytest.raises(ListingError, match=f"lists an object without {column}"):
        parse_page(fast.list(body))


@pytest.mark.parametrize("size", ["-1", "100000000000000", str(2**62), "9" * 400])
@pytest.mark.parametrize("first", [True, False])
def test_size_that_no_object_has_is_an_error(fast: Lister, plain: Lister, size: str, first: bool) -> None:
    rows = [row("bad", size=size), row("good", size="99999999999999")]
    body = page("".join(rows if first else rows[::-1]))
    for lister in (fast, plain):
        with pytest.raises(ListingError, match=f"lists 'bad' with {size} bytes, which no object has"):
            parse_page(lister.list(body))


@pytest.mark.parametrize("element", ["Key", "Size", "LastModified"])
@pytest.mark.parametrize("encoding", ["", "<EncodingType>url</EncodingType>"])
def test_row_with_an_element_twice_is_no_bare_exception(fast: Lister, element: str, encoding: str) -> None:
    value = f"<{element}>{row('a').split(f'<{element}>')[1].split('<')[0]}</{element}>"
    body = page(row("a").replace(value, value * 2) + row("b"), encoding)
    with suppress(RollupError), translated("LIST", Location("b", "p")):
        assert [info.key for info in parse_page(fast.list(body)).objects] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["", "<EncodingType>url</EncodingType>"])
@pytest.mark.parametrize(
    "more",
    [
        "<NextContinuationToken>t</NextContinuationToken>" * 2,
        "<CommonPrefixes><Prefix>a/</Prefix><Prefix>b/</Prefix></CommonPrefixes>",
        "<Prefix>raw/</Prefix>",
    ],
)
def test_element_that_occurs_twice_is_an_error(fast: Lister, encoding: str, more: str) -> None:
    def read() -> None:
        with translated("LIST", Location("b", "p")):
            response = fast.list(page(row("k"), encoding, more=more))
        list_parser.check_prefix(response, Location("logs", "raw/"))
        parse_folders(response)

    with pytest.raises(RollupError):
        read()


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59-14:00"])
def test_last_possible_time_fits_into_a_datetime(fast: Lister, plain: Lister, time: str) -> None:
    for lister in (fast, plain):
        newest = parse_page(lister.list(page(row("k", modified=time)))).newest
        assert datetime.fromtimestamp(newest, UTC).year == 9999


@pytest.mark.parametrize("time", ["1764000000000", "1e400", "yesterday", ""])
def test_time_that_cannot_be_read_is_tried_again(fast: Lister, plain: Lister, time: str) -> None:
    for lister in (fast, plain):
        with pytest.raises(TransientError, match="cannot be read"), translated("LIST", Location("b", "p")):
            lister.list(page(row("k", modified=time)))


def test_key_that_is_not_utf_8_is_an_error(fast: Lister) -> None:
    with pytest.raises(ListingError, match="a key that is not UTF-8"), translated("LIST", Location("b", "p")):
        fast.list(page(row("raw/%FF.log")))


def test_rows_with_owners_checksums_and_other_order_are_read(fast: Lister, plain: Lister) -> None:
    rows = (
        f"<Contents><Owner><ID>1</ID><DisplayName>x</DisplayName></Owner><Size>5</Size><ETag>{ETAG}</ETag>"
        f"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><Key>a</Key>"
        f"<LastModified>2026-11-23T08:00:05Z</LastModified></Contents>" + row("b")
    )
    body = page(rows, more="<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>")
    response = fast.list(body)
    assert by_fast_path(response)
    assert parse_page(response).folders == ["p/"]
    assert parse_page(response) == parse_page(plain.list(body))


# -- the page ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "more", "truncated", "token"),
    [
        ("true", "<NextContinuationToken>a+b/=%2F&amp;</NextContinuationToken>", True, "a+b/=%2F&"),
        ("true", "", True, None),
        ("true", "<NextContinuationToken/>", True, None),
        ("false", "<NextContinuationToken>t</NextContinuationToken>", False, "t"),
        ("false", "", False, None),
        ("True", "", True, None),
        (" 1 ", "", True, None),
        ("0", "", False, None),
    ],
)
@pytest.mark.parametrize("rows", ["", row("k"), row("k").replace("<Key>", "<Key >")])
def test_truncation_and_token_are_as_stated(
    fast: Lister, rows: str, stated: str, more: str, truncated: bool, token: str | None
) -> None:
    found = parse_page(fast.list(page(rows, truncated=stated, more=more)))
    assert (found.truncated, found.token) == (truncated, token)


@pytest.mark.parametrize("rows", ["", row("k"), row("k").replace("<Key>", "<Key >")])
def test_truncation_that_is_not_stated_is_unknown(fast: Lister, plain: Lister, rows: str) -> None:
    body = page(rows).replace("<IsTruncated>false</IsTruncated>", "")
    for lister in (fast, plain):
        assert parse_page(lister.list(body)).truncated is None
        assert parse_folders(lister.list(body)).truncated is None


@pytest.mark.parametrize("truncated", ["true", "false"])
@pytest.mark.parametrize("rows", ["", row("k"), row("k").replace("<Key>", "<Key >")])
def test_page_of_the_older_listing_is_an_error(fast: Lister, rows: str, truncated: str) -> None:
    body = page(rows, truncated=truncated, more="<NextMarker>k</NextMarker>")
    for parse in (parse_page, parse_folders):
        with pytest.raises(ListingError, match="NextMarker instead of a continuation token"):
            parse(fast.list(body))
        assert parse(fast.list(body.replace("<NextMarker>k</NextMarker>", "<NextMarker/>"))).token is None


def test_token_between_rows_is_kept(fast: Lister) -> None:
    between = "<NextContinuationToken>t</NextContinuationToken>"
    found = parse_page(fast.list(page(row("a") + between + row("b"), truncated="true")))
    assert ([info.key for info in found.objects], found.token) == (["a", "b"], "t")


def test_empty_page_has_no_newest_object(fast: Lister) -> None:
    found = parse_page(fast.list(page("")))
    assert (found.objects, found.newest, found.truncated) == ([], 0.0, False)


@pytest.mark.parametrize("encoding", ["", "<EncodingType>url</EncodingType>"])
def test_listing_of_another_prefix_is_an_error(fast: Lister, plain: Lister, encoding: str) -> None:
    """Some servers encode the prefix without saying so, or say so and do not; some state none."""
    asked = Location("logs", "a+b/ü/")
    body = page(row("k"), encoding)
    for lister in (fast, plain):
        for stated in ("<Prefix>a+b/ü/</Prefix>", "<Prefix>a%2Bb/%C3%BC/</Prefix>", "<Prefix/>", ""):
            list_parser.check_prefix(lister.list(body.replace("<Prefix>raw/</Prefix>", stated)), asked)
        for other in ("a+b/", "a%2Bb/%C3%BC/c/", "raw/"):
            response = lister.list(body.replace("raw/", other))
            with pytest.raises(ListingError, match=r"lists the prefix '.*' instead"):
                list_parser.check_prefix(response, asked)


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Nov 2026 09:00:00 GMT", HUGE_DATE, None])
def test_without_a_date_the_server_time_is_ours(fast: Lister, date: str | None) -> None:
    before = datetime.now(UTC)
    found = parse_page(fast.list(page(row("k")), {} if date is None else {"Date": date}))
    assert before <= found.server_time <= datetime.now(UTC)


@pytest.mark.parametrize("date", ["Mon, 23 Nov 2026 09:00:00 GMT", "Mon, 23 Nov 2026 09:00:00 -0000"])
def test_server_time_is_that_of_the_date_header(fast: Lister, date: str) -> None:
    assert parse_page(fast.list(page(""), {"Date": date})).server_time == datetime(
        2026, 11, 23, 9, tzinfo=UTC
    )


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of functions that some work makes; unlike its time, they are the same in each run."""
    made = 0

    def called(frame: FrameType, event: str, argument: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
    return made


def test_full_page_takes_few_calls_compared_with_botocore(fast: Lister, plain: Lister) -> None:
    body = page("".join(row(f"raw/app/20261123/08/{number:06d}%20x.log") for number in range(1000)))
    assert len(parse_page(fast.list(body)).objects) == len(parse_page(plain.list(body)).objects) == 1000
    few, many = (calls_of(partial(lister.list, body)) for lister in (fast, plain))
    assert few < many / 30
