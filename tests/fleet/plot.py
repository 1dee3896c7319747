"""Draws the number of sockets over time, and the limit, as SVG."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 860, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 44, 44
_CURVE, _CAP, _INK, _EVENT = "#2563eb", "#dc2626", "#374151", "#6b7280"

Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


def sockets_plot(title: str, sockets: Points, cap: Points, events: Sequence[tuple[float, str]]) -> str:
    """Return the plot as SVG.

    :param sockets: seconds, and connections of all processes together, in the order of time
    :param cap: seconds, and the limit from then on
    :param events: seconds, and the label of an event
    """
    end = sockets[-1][0]
    highest = max(*(value for _, value in sockets), *(value for _, value in cap)) * 1.1

    def x(seconds: float) -> float:
        return round(_LEFT + seconds / end * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - value / highest * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" fill="{_INK}">{escape(title)}</text>',
    ]
    for tick in range(0, int(highest) + 1, 10):
        parts.append(f'<path d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end" fill="{_INK}">{tick}</text>')
    parts.extend(
        f'<text x="{x(tick)}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle" fill="{_INK}">{tick}</text>'
        for tick in range(0, int(end) + 1, 20)
    )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" fill="{_INK}">seconds</text>')
    for index, (seconds, label) in enumerate(events):
        position = f'x="{x(seconds) + 4}" y="{_TOP + 10 + 14 * (index % 3)}"'
        parts.append(
            f'<path d="M{x(seconds)} {_TOP}V{HEIGHT - _BOTTOM}" stroke="{_EVENT}" stroke-dasharray="3 3"/>'
        )
        parts.append(f'<text {position} fill="{_EVENT}">{escape(label)}</text>')
    # A sample is valid until the next one.
    parts.append(f'<path d="{_steps(sockets, end, x, y)}" fill="none" stroke="{_CURVE}" stroke-width="1.2"/>')
    parts.append(f'<path d="{_steps(cap, end, x, y)}" fill="none" stroke="{_CAP}" stroke-width="2"/>')
    label = f'x="{WIDTH - _RIGHT}" y="{y(cap[-1][1]) - 6}" text-anchor="end" fill="{_CAP}"'
    parts.append(f"<text {label}>slots of the pool</text>")
    parts.append("</svg>\n")
    return "\n".join(parts)


def _steps(points: Points, end: float, x: Scale, y: Scale) -> str:
    path = [f"M{x(points[0][0])} {y(points[0][1])}"]
    for (_, before), (seconds, value) in pairwise(points):
        if value != before:
            path.append(f"H{x(seconds)}V{y(value)}")
    return "".join([*path, f"H{x(end)}"])
