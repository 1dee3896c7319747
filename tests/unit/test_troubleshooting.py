"""docs/TROUBLESHOOTING.md quotes messages that the code has, and leaves none of its errors out."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from include.log_rollup.streams import INCLUDE

ROOT = INCLUDE.parent
PAGE = ROOT / "docs" / "TROUBLESHOOTING.md"
SOURCES = [
    path
    for folder in (ROOT / "include" / "log_rollup", ROOT / "plugins" / "log_rollup_plugin")
    for path in sorted(folder.rglob("*.py"))
]
# In the page and in the templates of this module: what differs from case to case.
GAP = "…"
# The heads of the tables whose first column quotes the code.
QUOTING = ("the log says", "the message says")
# Less than this says nothing: what is left of a message whose words are all values.
LEAST_WORDS = 2


def template_of(node: ast.expr) -> str:
    """A message as it stands in the code, with a gap for each value; empty if it is not written out there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template_of(part) if isinstance(part, ast.Constant) else GAP for part in node.values)
    if isinstance(node, ast.BinOp):
        return (template_of(node.left) or GAP) + (template_of(node.right) or GAP)
    return ""


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    """Everything that the pipeline and the plugin say."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


@cache
def templates() -> list[str]:
    """All texts in the code."""
    found = [template_of(node) for _, node in nodes() if isinstance(node, ast.Constant | ast.JoinedStr)]
    # Messages of the log have their values as %s, %d, %.0f.
    return [re.sub(r"%[.0-9]*[sdf]", GAP, text) for text in found if text]


@cache
def errors() -> dict[str, str]:
    """Where an error is made, and its message."""
    found = {}
    for path, node in nodes():
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            message = template_of(node.args[0])
            if name.endswith("Error") and len(re.findall(r"[a-z]{2,}", message)) >= LEAST_WORDS:
                found[f"{path.name}:{node.lineno}"] = message
    return found


@cache
def symptoms() -> list[str]:
    """What the page quotes, in its order."""
    found: list[str] = []
    quoting = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if len(cells) < 3:
            quoting = False
        elif cells[1].strip() in QUOTING:
            quoting = True
        elif quoting:
            found += [quote for quote in re.findall(r"`([^`]+)`", cells[1]) if " " in quote]
    return found


def is_quoted(symptom: str, message: str) -> bool:
    """Whether a message holds a symptom, gaps standing for anything."""
    pieces = (re.escape(piece.strip()) for piece in symptom.split(GAP))
    return re.search(".*".join(pieces), message, re.DOTALL) is not None


@pytest.mark.parametrize("symptom", symptoms())
def test_each_symptom_is_a_message_of_the_code(symptom: str) -> None:
    assert any(is_quoted(symptom, text) for text in templates())


@pytest.mark.parametrize("place", errors())
def test_each_error_of_the_code_can_be_found_by_what_it_says(place: str) -> None:
    message = errors()[place]
    telling = [symptom for symptom in symptoms() if len(re.findall(r"[A-Za-z]{2,}", symptom)) >= LEAST_WORDS]
    assert any(is_quoted(symptom, message) for symptom in telling), (
        f"{place} can say {message!r}: give it a row in {PAGE.name}"
    )
