"""docs/TROUBLESHOOTING.md quotes messages that exist in the code, and has a row for each error of the code."""

import ast
import re
from functools import cache
from pathlib import Path

from include.log_rollup.streams import INCLUDE

ROOT = INCLUDE.parent
PAGE = ROOT / "docs" / "TROUBLESHOOTING.md"
SOURCES = [
    path
    for folder in (ROOT / "include" / "log_rollup", ROOT / "plugins" / "log_rollup_plugin")
    for path in sorted(folder.rglob("*.py"))
]
# Replaces a value, in the page and in the templates of this module.
GAP = "…"
# Headings of the first column of tables that quote the code.
QUOTING = ("the log says", "the message says")
# Messages with fewer words consist of values only, and cannot be searched for.
MIN_WORDS = 2


def template_of(node: ast.expr) -> str:
    """Return a message of the code with a gap for each value; empty if the code does not contain its text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template_of(part) if isinstance(part, ast.Constant) else GAP for part in node.values)
    if isinstance(node, ast.BinOp):
        return (template_of(node.left) or GAP) + (template_of(node.right) or GAP)
    return ""


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """Return the syntax nodes of the pipeline and the plugin, each with its file."""
    return [
        (path, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.expr)
    ]


@cache
def templates() -> list[str]:
    """Return all texts in the code."""
    found = [template_of(node) for _, node in nodes() if isinstance(node, ast.Constant | ast.JoinedStr)]
    # Log messages have %s, %d, %.0f in the place of values.
    return [re.sub(r"%[.0-9]*[sdf]", GAP, text) for text in found if text]


@cache
def errors() -> dict[str, str]:
    """Return the message of each error, by the place where it is created."""
    found = {}
    for path, node in nodes():
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            message = template_of(node.args[0])
            if name.endswith("Error") and len(re.findall(r"[a-z]{2,}", message)) >= MIN_WORDS:
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = message
    return found


@cache
def symptoms() -> list[str]:
    """Return the quotes of the page, in their order."""
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


@cache
def pattern_of(symptom: str) -> re.Pattern[str]:
    """Return a pattern that finds a symptom in a message; a gap matches anything."""
    pieces = (re.escape(piece.strip()) for piece in symptom.split(GAP))
    return re.compile(".*".join(pieces), re.DOTALL)


def is_quoted(symptom: str, message: str) -> bool:
    """Return whether a message contains a symptom."""
    return pattern_of(symptom).search(message) is not None


def test_each_symptom_is_a_message_of_the_code() -> None:
    assert [
        symptom for symptom in symptoms() if not any(is_quoted(symptom, text) for text in templates())
    ] == []


def test_each_error_of_the_code_has_a_row() -> None:
    specific = [symptom for symptom in symptoms() if len(re.findall(r"[A-Za-z]{2,}", symptom)) >= MIN_WORDS]
    missing = {
        place: message
        for place, message in errors().items()
        if not any(is_quoted(symptom, message) for symptom in specific)
    }
    assert missing == {}, f"add a row for each of these to {PAGE.name}"
