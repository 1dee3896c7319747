"""Draws a table of text."""

from __future__ import annotations

from collections.abc import Sequence


def draw(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Return rows as aligned columns, with a line below the first row.

    :param rows: the headings, then the cells of each row
    :param left: numbers of the columns that are aligned to the left
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
