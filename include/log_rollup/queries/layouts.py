"""Infers templates of raw objects from sampled keys."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from include.log_rollup.hour.template import RawTemplate
from include.log_rollup.hour.template_syntax import TemplateError, escape
from include.log_rollup.queries.key_dates import Reading, dates_in, is_inner, readings_of
from include.log_rollup.queries.producers import ALB, BALANCERS, BY_NAME, CLB, NLB, WITH_PATH, Producer
from include.log_rollup.storage.protocol import TimedObject

# More keys do not show more layouts, and take time.
_MAX_KEYS = 4000
# Names with more different texts before the date than this are taken for unique ones.
_MAX_HEADS = 8
# Further ones are small.
_MAX_LAYOUTS = 40
# A capture with more values than this is no group of its own: each group has parts of its own in each hour.
_MAX_GROUPS = 100
# A reading of the date is taken for right if the objects were written at most this long before or after.
_NEAR = timedelta(hours=36)
_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-\d")
_STAGES = frozenset(
    (
        "prod",
        "production",
        "live",
        "stage",
        "staging",
        "preprod",
        "dev",
        "development",
        "test",
        "testing",
        "qa",
        "uat",
    )
)
_USUAL_NAMES = ("service", "source", "component", "kind")
_SHORT_NUMBERS = re.compile(r"(?<!\d)(?:19|20)\d\d[-_./](?:[a-z]+=)?\d{1,2}[-_./](?:[a-z]+=)?\d{1,2}(?!\d)")
# Of the years 2001 to 2033.
_SECONDS = re.compile(r"(?<!\d)1\d{9}(?:\d{3})?(?!\d)")
_MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|"
    "oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)(?![a-z])"
)
_MONTH_NAME = re.compile(
    rf"(?i)(?<![a-z]){_MONTH}[-_./]?(?:\d{{1,2}}[-_./])?(?:19|20)\d\d|(?:19|20)\d\d[-_./]?(?:[a-z]+=)?{_MONTH}"
)
_TOKENS = re.compile(r"\0\w+\0|[A-Za-z0-9]+|[^A-Za-z0-9]")

NO_DATE = "no date in the key"
NO_ZEROS = "numbers without leading zeros in the date, which no template can express"
NO_HOUR = "a date, but no hour of two digits: without it, no template can express the key"
SECONDS = "the hour only in seconds or milliseconds since 1970, which no template can express"
MONTH_NAME = "the month as a name, which no template can express"
TWO_DAYS = "its folder and its name have different days"
DIFFERENT_NAMES = "the text before the date differs in nearly every key, so hours cannot be listed"
FEW = "a layout that few keys have"


@dataclass(frozen=True)
class Layout:
    """A template for some of the keys.

    :param raw: text of the template
    :param group: its captures that make groups
    :param keys: of the sample, that it was made from
    :param producers: that have keys of this form
    :param alternatives: other templates that read the same keys, with other hours
    :param decided_by_time: whether such templates were ruled out by the times at which the objects were written
    """

    raw: str
    group: tuple[str, ...]
    keys: Sequence[str]
    producers: tuple[Producer, ...] = ()
    alternatives: tuple[str, ...] = ()
    decided_by_time: bool = False


class _Shape(NamedTuple):
    """What keys of one layout have in common.

    :param steps: number of path steps before that of the date
    :param head: text before the date in its step
    :param between: texts between the directives; a number of slashes where any text may be
    :param tail: character behind the hour, if it separates
    """

    steps: int
    head: str
    directives: tuple[str, ...]
    between: tuple[str | int, ...]
    tail: str

    @classmethod
    def of(cls, key: str, reading: Reading) -> "_Shape":
        fields = reading.fields
        *steps, head = key[: fields[0].start].split("/")
        texts = _texts_between(key, reading)
        between = tuple(text if is_inner(text) else text.count("/") for text in texts)
        following = key[fields[-1].end : fields[-1].end + 1]
        tail = following if following in ("/", "_", "-", ".") else ""
        return cls(len(steps), head, tuple(field.directive for field in fields), between, tail)


# The readings of each key of a shape.
_Shapes = Mapping[_Shape, Mapping[str, Reading]]


def find_layouts(bucket: str, rows: Sequence[TimedObject]) -> tuple[list[Layout], dict[str, str]]:
    """The layouts of some keys, that of the most keys first, and why the other keys have none.

    :param rows: in the order of their keys
    """
    step = max(1, len(rows) // _MAX_KEYS)
    rows = rows[::step]
    layouts, rest = _by_path(bucket, [row.key for row in rows])
    written = {row.key: row.modified for row in rows}
    shapes, reasons = _shapes_of(rest, is_all=not layouts)
    while shapes and len(layouts) < _MAX_LAYOUTS:
        shape = min(shapes, key=lambda item: (-len(shapes[item]), _order(shapes[item]), item.steps))
        if len(shapes[shape]) * 200 < len(rest):
            break
        keys = set(shapes[shape])
        tied = [other for other in shapes if _reads_same_digits(shapes[other], shapes[shape])]
        tied.sort(key=lambda item: _order(shapes[item]))
        chosen, others, decided = _choose(tied, shapes, written)
        try:
            layout = _layout(bucket, shapes[chosen])
            alternatives = tuple(_templates(bucket, [shapes[other] for other in others]))
            layouts.append(replace(layout, alternatives=alternatives, decided_by_time=decided))
        except TemplateError as error:
            reasons |= dict.fromkeys(shapes[chosen], f"the template {error.reason}")
        keys |= shapes[chosen].keys()
        shapes = _without(shapes, keys)
    reasons |= {key: FEW for found in shapes.values() for key in found}
    layouts.sort(key=lambda layout: -len(layout.keys))
    return layouts, reasons


def reason_without_layout(key: str) -> str:
    """Why a key belongs to no hour, by the key alone."""
    if readings_of(key):
        return TWO_DAYS if _is_contradictory(key, readings_of(key)[0]) else FEW
    if _SECONDS.search(key):
        return SECONDS
    if dates_in(key):
        return NO_HOUR
    if _MONTH_NAME.search(key):
        return MONTH_NAME
    return NO_ZEROS if _SHORT_NUMBERS.search(key) else NO_DATE


def _by_path(bucket: str, keys: Iterable[str]) -> tuple[list[Layout], list[str]]:
    """The layouts of known producers with a path of their own, and the keys that have none of them."""
    found: dict[tuple[Producer, str], list[str]] = defaultdict(list)
    rest: list[str] = []
    for key in keys:
        for producer in WITH_PATH:
            prefix = producer.prefix_of(key)
            if prefix is not None:
                found[producer, prefix].append(key)
                break
        else:
            rest.append(key)
    layouts = []
    for prefix in dict.fromkeys(prefix for _, prefix in found):
        balancers = [producer for producer in (ALB, NLB, CLB) if (producer, prefix) in found]
        if len(balancers) > 1:
            # One key could belong to the templates of two kinds.
            merged = [key for producer in balancers for key in found.pop((producer, prefix))]
            layouts.append(_layout_by_path(bucket, BALANCERS, prefix, merged, tuple(balancers)))
    layouts += [
        _layout_by_path(bucket, producer, prefix, below, (producer,))
        for (producer, prefix), below in found.items()
    ]
    return layouts, rest


def _layout_by_path(
    bucket: str, producer: Producer, prefix: str, keys: Sequence[str], names: tuple[Producer, ...]
) -> Layout:
    raw = f"s3://{bucket}/{escape(prefix)}{producer.tail}"
    captures = RawTemplate.parse(raw).captures
    # Readers of resolver logs need no parts for each account in the names.
    group = tuple(name for name in captures if name != "owner")
    return Layout(raw, group, keys, names)


def _shapes_of(keys: Sequence[str], is_all: bool) -> tuple[_Shapes, dict[str, str]]:
    """The shapes of keys, and why keys have none.

    :param is_all: whether no other keys have a layout
    """
    shapes: dict[_Shape, dict[str, Reading]] = defaultdict(dict)
    reasons: dict[str, str] = {}
    contradictory: dict[str, list[Reading]] = {}
    for key in keys:
        readings = readings_of(key)
        if not readings:
            reasons[key] = reason_without_layout(key)
        elif _is_contradictory(key, readings[0]):
            contradictory[key] = readings
        for reading in readings:
            if key not in contradictory:
                shapes[_Shape.of(key, reading)][key] = reading
    if shapes or not is_all:
        reasons |= dict.fromkeys(contradictory, TWO_DAYS)
    else:
        # All keys have a second date before the hour's, such as that of a load.
        for key, readings in contradictory.items():
            for reading in readings:
                shapes[_Shape.of(key, reading)][key] = reading
    for many in _with_many_heads(shapes):
        reasons |= dict.fromkeys(shapes.pop(many), DIFFERENT_NAMES)
    return shapes, reasons


def _is_contradictory(key: str, reading: Reading) -> bool:
    """Whether a date before that of the reading is another day, without an hour."""
    first = dates_in(key)[0]
    return (
        first.order == reading.order
        and first.end <= reading.fields[0].start
        and (first.day != reading.label.date())
    )


def _with_many_heads(shapes: _Shapes) -> list[_Shape]:
    """The shapes in which the text before the date differs in most keys."""
    alike: dict[_Shape, list[_Shape]] = defaultdict(list)
    for shape in shapes:
        alike[shape._replace(head="")].append(shape)
    return [
        shape
        for group in alike.values()
        if len(group) > _MAX_HEADS and 2 * len(group) > sum(len(shapes[shape]) for shape in group)
        for shape in group
    ]


def _reads_same_digits(readings: Mapping[str, Reading], others: Mapping[str, Reading]) -> bool:
    """Whether readings are of nearly all keys of others, and of the same digits, not of another date in them."""
    common = readings.keys() & others.keys()
    if len(common) < 0.9 * len(others):
        return False
    key = min(common)
    starts = {field.start for field in readings[key].fields}
    return any(field.start in starts for field in others[key].fields)


def _order(readings: Mapping[str, Reading]) -> int:
    return next(iter(readings.values())).order


def _without(shapes: _Shapes, keys: set[str]) -> _Shapes:
    left = {
        shape: {key: reading for key, reading in found.items() if key not in keys}
        for shape, found in shapes.items()
    }
    return {shape: found for shape, found in left.items() if found}


def _choose(
    tied: Sequence[_Shape], shapes: _Shapes, written: Mapping[str, datetime]
) -> tuple[_Shape, list[_Shape], bool]:
    """Of shapes that read the same keys: the best one, the others that may be right, and whether time decided."""
    near = [shape for shape in tied if _distance(shapes[shape], written) <= _NEAR]
    if near and len(near) < len(tied):
        return near[0], near[1:], True
    return tied[0], list(tied[1:]), False


def _distance(readings: Mapping[str, Reading], written: Mapping[str, datetime]) -> timedelta:
    """How far the times at which objects were written are from the hours of their keys, as a median."""
    return timedelta(
        seconds=median(
            abs((written[key] - reading.label.replace(tzinfo=UTC)).total_seconds())
            for key, reading in readings.items()
        )
    )


def _layout(bucket: str, readings: Mapping[str, Reading]) -> Layout:
    """The layout of keys of one shape.

    :raises TemplateError: if no template can describe it
    """
    keys = list(readings)
    producers = tuple(
        producer
        for producer in BY_NAME
        if 2 * sum(producer.pattern.search(key) is not None for key in keys) >= len(keys)
    )
    names = [name for producer in producers for name in producer.captures]
    writer = _TemplateWriter(keys, names)
    text = writer.write(bucket, readings)
    RawTemplate.parse(text)
    group = tuple(name for name, values in writer.captures.items() if len(set(values)) <= _MAX_GROUPS)
    return Layout(text, group, keys, producers)


def _templates(bucket: str, shapes: Sequence[Mapping[str, Reading]]) -> Iterator[str]:
    """The texts of the templates for the keys of some shapes, without those that no template can describe."""
    for readings in shapes:
        with suppress(TemplateError):
            yield _layout(bucket, readings).raw


class _TemplateWriter:
    """Writes the template of keys of one shape, with captures where their texts differ.

    :param captures: the values of each capture, in the order of the keys
    """

    def __init__(self, keys: Sequence[str], names: Sequence[str]) -> None:
        self._keys = keys
        self._names = [*names, *_USUAL_NAMES]
        self.captures: dict[str, Sequence[str]] = {}

    def write(self, bucket: str, readings: Mapping[str, Reading]) -> str:
        """The text of the template."""
        first = readings[self._keys[0]]
        shape = _Shape.of(self._keys[0], first)
        befores = [key[: readings[key].fields[0].start].split("/") for key in self._keys]
        steps = [self._step([before[index] for before in befores]) + "/" for index in range(shape.steps)]
        text = f"s3://{bucket}/{''.join(steps)}{escape(shape.head)}"
        columns = list(zip(*(_texts_between(key, readings[key]) for key in self._keys), strict=True))
        for directive, between, column in zip(
            shape.directives, (*shape.between, shape.tail), (*columns, ()), strict=True
        ):
            text += directive + (escape(between) if isinstance(between, str) else self._gap(column))
        return text

    def _gap(self, texts: Sequence[str]) -> str:
        """The template of texts between two directives; they have the same number of slashes."""
        columns = zip(*(text.split("/") for text in texts), strict=True)
        return "/".join(self._piece(column) for column in columns)

    def _step(self, values: Sequence[str]) -> str:
        """The template of a step before the date."""
        if len(set(values)) == 1:
            return escape(values[0])
        label = re.match(r"[A-Za-z][A-Za-z_-]*=", values[0])
        if label and all(value.startswith(label[0]) and value != label[0] for value in values):
            name = re.sub("[^a-z0-9_]", "_", label[0][:-1].lower())
            return f"{escape(label[0])}{self._capture([value[label.end() :] for value in values], name)}"
        return self._capture(values)

    def _piece(self, texts: Sequence[str]) -> str:
        """The template of a step, or of a piece of one, behind the date; earlier captures are recognised in it."""
        if len(set(texts)) == 1:
            return escape(texts[0])
        rows = [_TOKENS.findall(self._with_captures(index, text)) for index, text in enumerate(texts)]
        shortest = min(map(len, rows))
        start = _common(rows, shortest)
        if all(len(row) == start for row in rows):
            return _written(rows[0])
        end = _common([row[::-1] for row in rows], shortest - start)
        # Each key needs at least one character for the capture.
        while start + end >= shortest and start:
            start -= 1
        values = [self._restored(index, row[start : len(row) - end]) for index, row in enumerate(rows)]
        behind = rows[0][len(rows[0]) - end :]
        return _written(rows[0][:start]) + self._capture(values) + _written(behind)

    def _with_captures(self, index: int, text: str) -> str:
        for name, values in sorted(self.captures.items(), key=lambda item: -len(item[1][index])):
            if len(values[index]) > 2:
                text = text.replace(values[index], f"\0{name}\0")
        return text

    def _restored(self, index: int, tokens: Sequence[str]) -> str:
        return "".join(
            self.captures[token[1:-1]][index] if token.startswith("\0") else token for token in tokens
        )

    def _capture(self, values: Sequence[str], name: str = "") -> str:
        name = name or self._name_for(set(values))
        number = 2
        unique = name
        while unique in self.captures:
            unique, number = f"{name}{number}", number + 1
        self.captures[unique] = values
        return f"{{{unique}}}"

    def _name_for(self, values: set[str]) -> str:
        if all(re.fullmatch(r"\d{12}", value) for value in values):
            return "account"
        if all(_REGION.fullmatch(value) for value in values):
            return "region"
        if values <= _STAGES:
            return "stage"
        return next((name for name in self._names if name not in self.captures), "name")


def _texts_between(key: str, reading: Reading) -> list[str]:
    fields = reading.fields
    return [key[one.end : other.start] for one, other in pairwise(fields)]


def _common(rows: Sequence[Sequence[str]], limit: int) -> int:
    """How many tokens at the beginning all rows have in common."""
    count = 0
    while count < limit and len({row[count] for row in rows}) == 1:
        count += 1
    return count


def _written(tokens: Sequence[str]) -> str:
    return "".join(f"{{{token[1:-1]}}}" if token.startswith("\0") else escape(token) for token in tokens)
