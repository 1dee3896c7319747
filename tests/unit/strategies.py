"""Raw hours, listings and names for property tests."""

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
