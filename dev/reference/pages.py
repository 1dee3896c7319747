"""Generates docs/REFERENCE.md: settings, records, events, tasks and errors, as the code defines them.

``python -m dev.reference`` writes the page. A test fails if the page and the code differ.
"""

import ast
import inspect
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from dev.reference import fields, sample
from include.log_rollup import errors, limits
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.hour.template import AggregatedTemplate, RawTemplate
from include.log_rollup.queries import hour_report
from include.log_rollup.streams import (
    EXPIRE_SCHEDULE,
    LATE_SCHEDULE,
    POOL,
    DurationRange,
    Notifier,
    Pattern,
    SizeRange,
    Stream,
    pool_slots,
)
from include.log_rollup.units import (
    GIB,
    KIB,
    MIB,
    TIB,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "REFERENCE.md"

# Fields whose keys are data: names of operations, proofs and captures.
_COUNTS = (
    "requests", "measured.requests", "verified.parts", "verified.objects", "groups[].captures",
    "groups[].verified.parts", "groups[].verified.objects", "group", "group_totals[].captures",
    "parts",
)  # fmt: skip
_NAMES: Mapping[Any, str] = {
    bool: "true or false", int: "whole number", str: "text",
    RawTemplate: "template", AggregatedTemplate: "template", Mapping[str, str]: "mapping of texts",
    tuple[Pattern, ...]: "text or list of texts", ExpireRaw: "mapping", tuple[Notifier, ...]: "list",
}  # fmt: skip

_HEAD = """\
# Reference

Generated from the code by `make docs`: do not edit. To get started, read [GUIDE.md](GUIDE.md).
"""


def render() -> str:
    """Return the page for the shipped streams file; Airflow has to be configured before, see :func:`main`."""
    sections = (_HEAD, _streams(), _records(), _events(), _dags(), _limits(), _errors())
    return "\n".join(sections)


# -- the streams file ----------------------------------------------------------------------------------


def _streams() -> str:
    return f"""\
## The streams file

`include/streams.yaml`, or the file named by the environment variable `LOG_ROLLUP_STREAMS`. Its top-level keys:

| key | meaning |
|---|---|
| `streams` | list of streams; each becomes a Dag |
| `defaults` | values of stream keys for all streams that do not set them |
| `late_schedule` | schedule of `log_rollup_late`, a cron expression in UTC; by default `{LATE_SCHEDULE}` |
| `expire_schedule` | the same of `log_rollup_expire`; by default `{EXPIRE_SCHEDULE}` |

Keys of a stream:

{_table(("key", "type", "default", "allowed", "meaning"), _rows(Stream))}
Keys of `expire_raw`:

{_table(("key", "type", "default", "allowed", "meaning"), _rows(ExpireRaw))}
Sizes are written like `32MiB`, durations like `90s`, `10m`, `6h`, `2d`, `1h30m`. `max_connections` must not exceed
the slots of the pool `{POOL}`; `include/pools.json` defines {pool_slots()}.
"""


def _rows(model: type[BaseModel]) -> list[tuple[str, ...]]:
    """Return a row for each key."""
    return [
        (f"`{name}`", _type(field), _default(field), _allowed(field), _one_line(field.description))
        for name, field in model.model_fields.items()
    ]


def _type(field: FieldInfo) -> str:
    metadata = _metadata(field)
    readers = {item.func for item in metadata if isinstance(item, BeforeValidator)}
    if parse_size in readers:
        return "size"
    if parse_duration in readers:
        return "duration"
    kind = _kind(field.annotation)
    if get_origin(kind) is Literal:
        return "one of a list"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)).replace("datetime", "time"))


def _kind(annotation: Any) -> Any:
    """Return the type without None and without its annotations."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def _metadata(field: FieldInfo) -> Sequence[Any]:
    within = (getattr(one, "__metadata__", ()) for one in get_args(field.annotation))
    return [*field.metadata, *chain.from_iterable(within)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value in ((), {}):
        return "none"
    if _type(field) == "size":
        return f"`{_size(value)}`"
    if isinstance(value, timedelta):
        return f"`{_duration(value)}`"
    return f"`{json.dumps(value) if isinstance(value, bool) else value}`"


def _allowed(field: FieldInfo) -> str:
    kind = _kind(field.annotation)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    low = high = ""
    for item in _metadata(field):
        if isinstance(item, Ge):
            low = str(item.ge)
        elif isinstance(item, Le):
            high = str(item.le)
        elif isinstance(item, AfterValidator) and isinstance(item.func, SizeRange):
            low, high = _size(item.func.low), _size(item.func.high)
        elif isinstance(item, AfterValidator) and isinstance(item.func, DurationRange):
            low, high = _duration(item.func.low), _duration(item.func.high)
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if low else ""


def _size(size_bytes: int) -> str:
    units = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"))
    unit, name = next((unit, name) for unit, name in units if size_bytes % unit == 0)
    return f"{size_bytes // unit}{name}"


def _duration(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    unit, name = next(
        (unit, name) for unit, name in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")) if seconds % unit == 0
    )
    return f"{seconds // unit}{name}"


# -- records and events --------------------------------------------------------------------------------


def _records() -> str:
    header, line = sample.manifest()
    return f"""\
## The completion marker `_SUCCESS`

A JSON object. An hour is complete if and only if it exists. Sizes are in bytes, times in seconds.

{_fields(sample.marker(), fields.MARKER)}
Only some hours have these fields. `bytes_stored` is in the marker of an hour with compressed parts, `recompressed`
and `bytes_unpacked` in that of an hour with recompressed objects. `groups` is in
the marker of an hour with groups, one entry for each; `group` is in the marker of a group, whose totals are those
of the group:

{_fields(sample.marker_with_groups(), fields.MARKER_WITH_GROUPS)}
## The manifest `_manifest.jsonl.gz`

Compressed JSON lines. The first line is the header:

{_fields(header, fields.MANIFEST_HEADER)}
With groups or compression, it also has `groups`, `group`, `bytes_stored`, `recompressed` and `bytes_unpacked`, as
in the completion marker. With compression, `format` is 2, and the entries of compressed parts have `compression`
(`zstd` or `gzip`), `frames`, the number of their frames, and `content_size`, the size of their content. With
`recompress`, they may have `recompressed`, the number of their recompressed objects. An entry has `split_of`, the
name of the part as it was planned, if objects of that part could not be decompressed.

Each further line is a raw object, in the order of the parts and their content:

{_fields(line, fields.MANIFEST_LINE)}
The line of an object in a compressed part also has `frame_offset` and `frame_length`, the place of its frame in
the part, and `separator`, the number of bytes added after it. `offset` is then that in the content of the frame.
The line of a recompressed object has `content_length` and `content_crc64nvme`, those of its content, which is at
`offset`; `length`, `etag`, `crc64nvme` and `checked` are those of the raw object. An object that could not be
decompressed has `damaged`.

## The record of expired raw objects `_expired.json`

A JSON object, next to the completion marker. It is written before the first raw object of the hour is deleted, and
after the last.

{_fields(sample.expiry(), fields.EXPIRY)}"""


def _events() -> str:
    return f"""\
## Asset events

Each time an hour of the stream `app` is completed, two assets get an event:

| asset | partition key | used by |
|---|---|---|
| `log_rollup_app` | none | Dags with `schedule=[Asset.ref(name="log_rollup_app")]` |
| `log_rollup_app_hours` | the hour | Dags with a `PartitionedAssetTimetable` |

`extra` of both events:

{_fields(sample.event(), fields.EVENT)}
If the stream has groups or compression, `extra` also has the following. `group_totals` has the largest groups, at
most {hour_report.EVENT_GROUPS:,} and {hour_report.EVENT_GROUP_BYTES // KIB} KiB; the completion marker has all:

{_fields(sample.event_with_groups(), fields.EVENT_WITH_GROUPS)}"""


def _fields(record: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    found = dict(sample.flat(record, _COUNTS))
    if found.keys() != meanings.keys():
        odd = ", ".join(sorted(found.keys() ^ meanings.keys()))
        raise ValueError(
            f"dev/reference/fields.py and the records differ in {odd}: describe exactly the existing fields"
        )
    rows = [(f"`{name}`", f"`{json.dumps(found[name])}`", meanings[name]) for name in found]
    return _table(("field", "example", "meaning"), rows)


# -- Dags ----------------------------------------------------------------------------------------------


def _dags() -> str:
    text = "## The Dags\n\nAs generated from the shipped streams file with its stream `app`.\n"
    for path in sorted((ROOT / "dags").glob("*.py")):
        for dag in _dags_of(path):
            text += (
                f"\n### `{dag.dag_id}`\n\n{dag.description}. {_params(dag)}Tasks, in order:\n\n{_tasks(dag)}"
            )
    return text


def _dags_of(path: Path) -> list[Any]:
    """Return the Dags of the tasks that a file defines, in the order of the file."""
    values = [value for value in runpy.run_path(str(path)).values() if not isinstance(value, type)]
    found = (getattr(value, "dag", None) for value in values)
    return list({dag.dag_id: dag for dag in found if dag}.values())


def _params(dag: Any) -> str:
    if not dag.params:
        return ""
    params = ((name, dag.params.get_param(name)) for name in dag.params)
    rows = [
        (f"`{name}`", f"`{json.dumps(param.value)}`", _one_line(param.description)) for name, param in params
    ]
    return f"Parameters of a run:\n\n{_table(('parameter', 'default', 'meaning'), rows)}\n"


def _tasks(dag: Any) -> str:
    rows = []
    for task in dag.topological_sort():
        # The settings of a mapped task are in a dictionary, those of other tasks are attributes.
        settings = task.partial_kwargs if task.is_mapped else vars(task)
        kind = task.operator_class if task.is_mapped else type(task)
        pool = settings.get("pool", "default_pool")
        slots = settings.get("pool_slots", 1) if pool == POOL else ""
        limit = settings.get("execution_timeout")
        rows.append(
            (
                f"`{task.task_id}`" + (" (mapped)" if task.is_mapped else ""),
                _first_sentence(kind),
                str(slots),
                str(settings["retries"]),
                _duration(limit) if limit else "",
            )
        )
    head = ("task", "purpose", f"slots of `{POOL}`", "retries", "time limit of a try")
    return _table(head, rows)


# -- limits --------------------------------------------------------------------------------------------


def _limits() -> str:
    groups: dict[str, list[tuple[str, str, str]]] = {
        "Connections": [],
        "Time": [],
        "Requests": [],
        "Tries": [],
    }
    for name, meaning in _documented_constants(limits):
        value = getattr(limits, name)
        groups[_limit_group(name)].append((f"`{name}`", _limit_value(name, value), _one_line(meaning)))
    tables = "\n".join(
        f"### {title}\n\n{_table(('limit', 'value', 'meaning'), rows)}" for title, rows in groups.items()
    )
    return f"""\
## Limits

The constants of `include/log_rollup/limits.py`. What a stream may set is in [its keys](#the-streams-file).

{tables}"""


def _documented_constants(module: ModuleType) -> Iterator[tuple[str, str]]:
    """The constants of a module, each with the string that follows it.

    :raises ValueError: if a constant has no such string
    """
    body = ast.parse(inspect.getsource(module)).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        match node, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(meaning))):
                yield name, meaning
            case ast.Assign(targets=[ast.Name(id=name)]), _:
                raise ValueError(f"{module.__name__}.{name} has no description: add a string below it")


def _limit_group(name: str) -> str:
    if name.endswith(("_CONNECTIONS", "_THREADS")):
        return "Connections"
    if name.endswith(("_SECONDS", "_PER_SECOND", "_TIMEOUT", "_MARGIN", "_DELAY", "_SHARE")):
        return "Time"
    if name.endswith(("_TRIES", "_RETRIES")):
        return "Tries"
    if name.endswith("_REQUESTS"):
        return "Requests"
    raise ValueError(
        f"limits.{name}: end the name with what it counts, like _CONNECTIONS, _SECONDS, _TRIES or _REQUESTS"
    )


def _limit_value(name: str, value: Any) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if name.endswith("_BYTES_PER_SECOND"):
        return f"{format_size(value)}/s"
    if name.endswith("_SHARE"):
        return f"{value:.0%}"
    return f"{value:g} s" if name.endswith("_SECONDS") else str(value)


# -- errors --------------------------------------------------------------------------------------------


def _errors() -> str:
    kinds = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
    ]
    kinds.sort(key=lambda kind: inspect.getsourcelines(kind)[1])
    rows = [
        (
            f"`{kind.__name__}`",
            "no" if issubclass(kind, errors.PermanentError) else "yes",
            _first_sentence(kind),
        )
        for kind in kinds
        if kind is not errors.RollupError
    ]
    return f"""\
## Errors

The last line of a failed task's log names one of these. If Airflow does not retry it, the message says what to do.
[TROUBLESHOOTING.md](TROUBLESHOOTING.md) lists the messages.

{_table(("error", "retried", "meaning"), rows)}"""


# -- text ----------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        for row in (head, ["---"] * len(head), *rows):
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    return "\n".join(lines()) + "\n"


def _first_sentence(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0].removesuffix(".").replace("``", "`")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).removesuffix(".")


def main() -> int:
    """Write the page, independent of the caller's Airflow settings."""
    with tempfile.TemporaryDirectory(prefix="log-rollup-airflow-") as home:
        # Set before the first import of Airflow, which reads them once.
        os.environ.update(
            {
                "AIRFLOW_HOME": home,
                "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
                "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            }
        )
        os.environ.pop("LOG_ROLLUP_STREAMS", None)
        sys.path.append(str(ROOT / "plugins"))
        text = render()
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET.relative_to(ROOT)}")
    return 0
