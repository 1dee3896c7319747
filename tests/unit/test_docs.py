"""Links within the documentation lead somewhere."""

import re
from pathlib import Path

import pytest

from include.log_rollup.streams import INCLUDE

ROOT = INCLUDE.parent
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[str, str]]:
    """Each page with each of its links to a file of the project."""
    found = []
    for page in PAGES:
        targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        found += [(str(page.relative_to(ROOT)), target) for target in targets if "://" not in target]
    return found


@pytest.mark.parametrize(("page", "target"), links())
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(page: str, target: str) -> None:
    name, _, anchor = target.partition("#")
    file = (ROOT / page).parent / name if name else ROOT / page
    assert file.exists()
    assert not anchor or anchor in anchors(file)
