"""Raw hours, listings and names for property tests."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from include.log_rollup.storage.protocol import ObjectInfo
from tests.support.raw_hours import RAW

# Characters that are special in URLs, lines or paths, or sort differently in UTF-16.
ODD_CHARACTERS = " +%&=?#;'\"\\~é中\u2028\u0308\uff5e\U0001f600\t_.-/A0"
ENDINGS = (
    "",
    ".log",
    ".txt",
    ".gz",
    ".log.gz",
    ".LOG.GZ",
    ".zst",
    ".bz2",
    ".xz",
    ".lz4",
    ".gz.log",
    ".snappy",
    ".Z",
)
CONTAINERS = (".zip", ".7z", ".parquet", ".orc", ".avro")

_stems = st.text(st.sampled_from(ODD_CHARACTERS), max_size=4) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=4
)
names = st.builds(str.__add__, _stems, st.sampled_from(ENDINGS)).filter(
    lambda name: not name.lower().endswith(CONTAINERS)
)
visible_names = names.filter(
    lambda name: name != "" and not any(step.startswith(("_", ".")) for step in name.split("/"))
)
lines = st.lists(st.binary(max_size=6), max_size=4).map(b"\n".join)
bodies = st.binary(max_size=24) | lines
raw_hours = st.dictionaries(names, bodies, max_size=12)
"""Names below the hour's prefix and bodies, with hidden objects and placeholders."""

etags = st.sampled_from("abcdef").map(lambda digit: digit * 32)


def _infos(rows: dict[str, tuple[int, str]]) -> list[ObjectInfo]:
    return [ObjectInfo(RAW + name, size, etag) for name, (size, etag) in sorted(rows.items())]


# Drawn much faster than any text: a listing has many names.
_listed_names = st.builds(
    str.__add__,
    st.sampled_from(
        [character for character in ODD_CHARACTERS if character not in "_."]
        + ["a", "b", "9", "10", "a/1", "a/2", "a b/1", "a.b/1", "é/1", "中/1", "\U0001f600/1", "a/b/c"]
    ),
    st.sampled_from(ENDINGS),
).filter(lambda name: not any(step.startswith((".", "_")) for step in name.split("/")))


def listings(max_size: int = 80, max_objects: int = 16) -> st.SearchStrategy[list[ObjectInfo]]:
    """Listings as select() returns them: visible objects in key order, no empty placeholders."""
    rows = st.dictionaries(_listed_names, st.tuples(st.integers(0, max_size), etags), max_size=max_objects)
    return rows.map(
        lambda chosen: _infos({name: row for name, row in chosen.items() if row[0] or not name.endswith("/")})
    )


# Templates of raw objects. Their literals have digits and separators, so that keys are easily misread.
_literals = st.text("ab01_-.", max_size=3)
_dates = st.sampled_from(
    [
        "%Y%m%d/%H",
        "%Y/%m/%d/%H",
        "year=%Y/month=%m/day=%d/hour=%H",
        "%Y%j-%H",
        "%y/%m/%d/%Y%m%dT%H",
        "%d.%m.%Y-%H-%Y",
        "%H%j/%Y",
        "%Y-%m-%d/%Y-%m-%d-%H",
        "%Y/%j/%H-%Y%m%d",
    ]
)


@st.composite
def templates(draw: st.DrawFn) -> str:
    """Texts of correct templates: steps with captures, a date, and captures behind it, of which some repeat."""
    steps = []
    names = ["c1", "c2", "c3"]
    before = names[: draw(st.integers(0, 2))]
    for name in before:
        steps += draw(st.lists(_literals, max_size=1))
        steps.append(f"{draw(_literals)}{{{name}}}{draw(_literals)}")
    text = "".join(step + "/" for step in steps) + draw(_literals) + draw(_dates)
    for name in draw(st.lists(st.sampled_from([*before, "d1"]), max_size=3)):
        if name == "d1" and "{d1}" in text:
            continue
        text += draw(_literals.filter(bool) | st.just("/")) + f"{{{name}}}"
    return f"s3://bkt/{text}{draw(_literals.filter(bool) | st.just('/'))}" + draw(
        st.sampled_from(["", "%Y_%H"])
    )


# Hours at which a clock is set, by zone: whole hours and less, forth and back, at midnight and in the year 2999.
_CHANGES = [
    ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2999, 11, 3, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, tzinfo=UTC)),
    ("Asia/Pyongyang", datetime(2018, 5, 4, 14, tzinfo=UTC)),
    ("Asia/Pyongyang", datetime(2015, 8, 14, 15, tzinfo=UTC)),
    ("America/Caracas", datetime(2016, 5, 1, 7, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(1985, 12, 31, 18, tzinfo=UTC)),
    ("Africa/Monrovia", datetime(1972, 1, 7, 0, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Asia/Kolkata", datetime(2000, 2, 29, 23, tzinfo=UTC)),
    ("UTC", datetime(2068, 12, 31, 23, tzinfo=UTC)),
    ("UTC", datetime(2999, 12, 31, 18, tzinfo=UTC)),
    ("UTC", datetime(1970, 1, 1, 6, tzinfo=UTC)),
]
zone_hours = st.tuples(st.sampled_from(_CHANGES), st.integers(-5, 5)).map(
    lambda drawn: (drawn[0][0], drawn[0][1] + timedelta(hours=drawn[1]))
)
"""Time zones and UTC hours, most of them near a change of the zone's clock."""
