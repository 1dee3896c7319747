"""Says why a key belongs to no hour of a template."""

import re
from collections.abc import Sequence

from include.log_rollup.hour.key_pattern import KeyPattern, label_of
from include.log_rollup.hour.layout import FIRST_YEAR, LAST_YEAR
from include.log_rollup.hour.template import HOURS_IN_DAY_AFTER, HOURS_IN_DAY_BEFORE, RawTemplate
from include.log_rollup.hour.template_syntax import CAPTURE, LITERAL

_MAX_SHOWN = 60


def why_no_hour(template: RawTemplate, key: str) -> str | None:
    """Why a key of the template's bucket belongs to no hour, as a clause; None if it belongs to one."""
    if template.match(key) is not None:
        return None
    pattern = template.pattern
    found = re.match(pattern.pattern, key)
    if found is None:
        return _first_difference(template, key)
    texts = [found[group] for group in pattern.stamp_groups]
    label = label_of(pattern.runs, texts)
    if label is None:
        return f"{_joined(texts)} is not a date and hour of the calendar"
    if template.hours.hour_of(label) is not None:
        return f"its dates {_joined(texts)} do not agree{_rule_for_folders(pattern)}"
    if not FIRST_YEAR <= label.year <= LAST_YEAR:
        return f"{_joined(texts)} is not in the years {FIRST_YEAR} to {LAST_YEAR}"
    return f"the clocks of {template.zone} skip the hour {label:%Y-%m-%d %H}:00"


def _first_difference(template: RawTemplate, key: str) -> str:
    """Where a key that the template's pattern does not match is other than the template says."""
    elements = template.elements
    for count in range(len(elements) - 1, 0, -1):
        # Where a capture ends, only the text behind it shows.
        if elements[count - 1].kind == CAPTURE:
            continue
        found = re.match(KeyPattern.of(elements[:count], 0).pattern, key)
        if found is not None:
            expected = template.text[elements[count].start :]
            return f"behind {found[0]!r} it has {_shortened(key[found.end() :])!r}, which does not fit {expected}"
    if elements[0].kind == LITERAL:
        return f"it does not begin with {elements[0].value!r}"
    return f"it does not begin like {template.text[elements[0].start :]}"


def _rule_for_folders(pattern: KeyPattern) -> str:
    if not any(run.in_folder for run in pattern.runs):
        return ""
    last, first = min(HOURS_IN_DAY_AFTER), max(HOURS_IN_DAY_BEFORE)
    return (
        f" (the folder may have the next day if the name has hour {last} or later, and the day before if it has "
        f"hour {first:02})"
    )


def _joined(texts: Sequence[str]) -> str:
    return " and ".join(texts)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
