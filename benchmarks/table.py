"""Prints rows with equal keys as a table, and writes them as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table with their keys as headings."""
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def write_json(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as a JSON list."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
