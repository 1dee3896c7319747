"""Links in the documentation lead to existing files and headings."""

import re
from functools import cache
from pathlib import Path

from include.log_rollup.hour.state import HourState
from include.log_rollup.streams import INCLUDE

ROOT = INCLUDE.parent
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")])


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[str, str]]:
    """Return each page with each of its links to a file of the project."""
    found = []
    for page in PAGES:
        targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        found += [(str(page.relative_to(ROOT)), target) for target in targets if "://" not in target]
    return found


def leads_to_a_file_and_heading(page: str, target: str) -> bool:
    """Return whether the file and the heading of a link exist."""
    name, _, anchor = target.partition("#")
    file = (ROOT / page).parent / name if name else ROOT / page
    return file.exists() and (not anchor or anchor in anchors(file))


def test_each_link_leads_to_a_file_and_heading() -> None:
    assert len(links()) > len(PAGES)
    assert [link for link in links() if not leads_to_a_file_and_heading(*link)] == []


def order_in_the_page() -> list[str]:
    """The rows of the table "The order of writes" in RELIABILITY.md, each as number, step and write."""
    page = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    section = page.partition("### The order of writes")[2].partition("\n### ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if re.match(r"\| [0-9]+ \|", line)]
    return [" ".join(" ".join(cells).split()) for cells in rows]


def order_in_the_code() -> list[str]:
    """The same rows in the docstring of HourState, where a row may take several lines."""
    docstring = (HourState.__doc__ or "").replace("``", "`")
    lines = [line.strip() for line in re.split(r"^ *==  .*$", docstring, flags=re.MULTILINE)[2].splitlines()]
    rows = re.split(r"^(?=[0-9]+ )", "\n".join(lines), flags=re.MULTILINE)
    return [" ".join(row.split()) for row in rows if row.strip()]


def test_order_of_writes_is_the_same_in_page_and_code() -> None:
    assert len(order_in_the_page()) == 14
    assert order_in_the_code() == order_in_the_page()
