"""Draws what has been paid, day by day, as SVG."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 900, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 260, 40, 44
_INK, _GRID = "#374151", "#e5e7eb"
_COLOURS = ("#b91c1c", "#d97706", "#a16207", "#7c3aed", "#2563eb", "#0891b2", "#059669", "#111827")
_LABEL_HEIGHT = 15


def cumulative_plot(title: str, days: Sequence[int], lines: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Return the plot as SVG.

    :param lines: of each line the label, and the amount on each of the days
    """
    highest = max(max(values) for _, values in lines) * 1.05
    last = days[-1]

    def x(day: float) -> float:
        return round(_LEFT + day / last * (WIDTH - _LEFT - _RIGHT), 1)

    def y(amount: float) -> float:
        return round(HEIGHT - _BOTTOM - amount / highest * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" fill="{_INK}">{escape(title)}</text>',
    ]
    step = _round_step(highest)
    for tick in range(0, int(highest) + 1, step):
        parts.append(f'<path d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}" stroke="{_GRID}"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end" fill="{_INK}">{tick:,}</text>'
        )
    for month in range(0, 13, 2):
        at = x(month * last / 12)
        parts.append(
            f'<text x="{at}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle" fill="{_INK}">{month}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" fill="{_INK}">months</text>')
    heights = _label_heights([y(values[-1]) for _, values in lines])
    for number, (label, values) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x(day)},{y(value)}" for day, value in zip(days, values, strict=True))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        text = f"{label}: {values[-1]:,.0f}"
        parts.append(
            f'<text x="{WIDTH - _RIGHT + 8}" y="{heights[number] + 4}" fill="{colour}">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _round_step(highest: float) -> int:
    """The distance of grid lines: about six of them."""
    steps = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    return int(next(step for step in steps if step * 7 > highest))


def _label_heights(wanted: Sequence[float]) -> list[float]:
    """Heights of labels that do not cover each other, in the order of the lines."""
    order = sorted(range(len(wanted)), key=lambda number: wanted[number], reverse=True)
    heights = [0.0] * len(wanted)
    # From the lowest label up: each is at its line, or above the one before it.
    above = float(HEIGHT)
    for number in order:
        heights[number] = above = round(min(wanted[number], above - _LABEL_HEIGHT), 1)
    return heights
