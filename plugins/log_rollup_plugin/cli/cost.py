"""The command cost: what a stream costs in S3, what the rollup saves, and a lifecycle for its parts."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import floor_hour, format_hour, hours_between
from include.log_rollup.prices import RULES, Prices, load_prices, prices_path
from include.log_rollup.queries.cost import DAYS_PER_YEAR, Bill, Step, StoragePlan, plan_storage
from include.log_rollup.queries.cost_report import (
    RETENTIONS_DAYS,
    Comparison,
    CurrentCost,
    comparison,
    current_cost,
    kept_of,
)
from include.log_rollup.queries.hourly_load import MeasuredLoad, measure_load
from include.log_rollup.queries.lifecycle import lifecycle_rules, part_tags, terraform
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size
from log_rollup_plugin.cli import arguments
from log_rollup_plugin.cli.arguments import find_stream
from log_rollup_plugin.cli.output import Answer, table, tell
from log_rollup_plugin.cli.store import open_store

DEFAULT_DAYS = 7
"""Without --since, the hours of so many days are measured."""
DEFAULT_HOT_DAYS, DEFAULT_READABLE_DAYS = 30, 90
_DAYS = re.compile(r"([0-9]{1,5})([dy])")
_MOST_DAYS = 100 * DAYS_PER_YEAR
_ROWS = {
    "raw_writes": "PUTs of the producers",
    "raw_storage": "raw objects",
    "rollup_requests": "requests of the rollup",
    "part_storage": "parts",
    "part_transitions": "transitions of parts",
    "record_storage": "manifests and markers",
}
# More digits than any price has, to leave out what binary fractions add.
_DIGITS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add(
        "--since", metavar="HOUR", type=arguments.day_or_hour,
        help=f"the first hour to measure, like 2026-11-23T08, or a day (default: {DEFAULT_DAYS} days ago)",
    )  # fmt: skip
    add(
        "--until", metavar="HOUR", type=arguments.day_or_hour,
        help="the last hour to measure, or a day (default: the last hour that has ended)",
    )  # fmt: skip
    add(
        "--prices", metavar="FILE", type=Path,
        help="prices of S3 (default: LOG_ROLLUP_PRICES, or include/prices.yaml)",
    )  # fmt: skip
    add(
        "--keep-raw", metavar="TIME", type=_days,
        help="how long raw objects are kept, like 14d or 1y (default: as expire_raw says, else for ever)",
    )  # fmt: skip
    add(
        "--move", metavar="TIME=CLASS", type=_move, action="append", default=[],
        help="how a lifecycle rule moves parts now, like 30d=GLACIER_IR; may be repeated",
    )  # fmt: skip
    add(
        "--retention", metavar="TIME", type=_days, action="append",
        help="compare the storage classes for parts that are kept for this time; may be repeated",
    )  # fmt: skip
    add(
        "--plan", metavar="TIME", type=_days, help="propose a lifecycle for parts that are kept for this time"
    )
    add(
        "--hot", metavar="TIME", type=_days, default=DEFAULT_HOT_DAYS,
        help=f"with --plan: how long parts stay in the class they are written in (default: {DEFAULT_HOT_DAYS}d)",
    )  # fmt: skip
    add(
        "--readable", metavar="TIME", type=_days, default=DEFAULT_READABLE_DAYS,
        help="with --plan: how long parts can be read without a restore "
        f"(default: {DEFAULT_READABLE_DAYS}d)",
    )  # fmt: skip
    add("--terraform", action="store_true", help="with --plan: write the lifecycle as Terraform")


def _days(text: str) -> int:
    """Parse a number of days: ``14d`` or ``3y``."""
    match = _DAYS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of days or years; write it like 14d or 3y"
        )
    days = int(match[1]) * (DAYS_PER_YEAR if match[2] == "y" else 1)
    if days > _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is too long; give at most {_MOST_DAYS // DAYS_PER_YEAR}y")
    return days


def _move(text: str) -> Step:
    """Parse when parts are moved and where: ``30d=GLACIER_IR``."""
    at, equals, storage_class = text.partition("=")
    if not equals or storage_class not in RULES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a move to a storage class; write it like 30d=GLACIER_IR"
        )
    return Step(storage_class, _days(at))


def cost(options: argparse.Namespace, answer: Answer) -> bool:
    """show what a stream costs in S3, what the rollup saves, and propose a lifecycle"""
    stream = find_stream(options.stream)
    prices = load_prices(options.prices)
    now = datetime.now(UTC)
    hours = _hours(options.since, options.until, now)
    if options.plan == 0:
        raise ConfigurationError("--plan: there is nothing to plan for 0 days; give a time like 3y")
    if options.terraform and not options.plan:
        raise ConfigurationError("--terraform: there is no lifecycle to write; give --plan too")
    days = [move.from_day for move in options.move]
    if sorted(set(days)) != days or 0 in days:
        raise ConfigurationError("--move: each has to be later than the one before it, and than day 0")
    with open_store(stream) as store:
        measured = measure_load(store, stream, hours)
    kept = kept_of(stream, now, options.keep_raw, "--keep-raw")
    current = current_cost(measured, prices, stream, kept, options.move)
    compared = comparison(measured, prices, kept, options.retention or RETENTIONS_DAYS)
    plan = None
    if options.plan:
        plan = plan_storage(
            prices, measured.load, days=options.plan, hot_days=max(options.hot, stream.late_days),
            readable_days=options.readable, first_class=current.steps[0].storage_class, raw_days=kept.raw_days,
        )  # fmt: skip
    source = options.prices or prices_path()
    if options.json:
        answer.json(_document(stream, current, compared, plan, source))
        return True
    answer.lines(*_summary(stream, current, source), "", *_month(current), "", *_classes(current, compared))
    if plan is not None:
        answer.lines("", *_plan(plan, prices, stream))
        _show_lifecycle(stream, plan, answer, as_terraform=options.terraform)
    return True


def _hours(since: date | None, until: date | None, now: datetime) -> list[datetime]:
    """The hours to measure, which have ended.

    :raises ConfigurationError: if there are none
    """
    present = floor_hour(now)
    end = present
    if until is not None:
        last = until if isinstance(until, datetime) else datetime.combine(until, time(23), UTC)
        end = min(last + timedelta(hours=1), present)
    begin = end - timedelta(days=DEFAULT_DAYS)
    if since is not None:
        begin = since if isinstance(since, datetime) else datetime.combine(since, time(), UTC)
    if begin >= end:
        raise ConfigurationError(
            f"no hour from --since {format_hour(begin)} on has ended before {format_hour(end)}; give an "
            f"earlier one"
        )
    if end - begin > timedelta(hours=arguments.MAX_HOURS):
        raise ConfigurationError(
            f"--since {format_hour(begin)} is more than {arguments.MAX_HOURS:,} hours before the last hour; "
            f"give a later one"
        )
    return hours_between(begin, end)


def _bill(bill: Bill) -> dict[str, float]:
    return {name: round(value, _DIGITS) for name, value in {**asdict(bill), "total": bill.total}.items()}


def _document(
    stream: Stream, current: CurrentCost, compared: Comparison, plan: StoragePlan | None, source: Path
) -> dict[str, Any]:
    measured, prices, kept = current.measured, current.prices, current.kept
    load = measured.load
    return {
        "stream": stream.name,
        "prices": {
            "file": str(source),
            "as_of": prices.as_of.isoformat(),
            "region": prices.region,
            "currency": prices.currency,
            "source": prices.source,
        },
        "measured": _measured(measured),
        "hour": {
            "objects": round(load.raw.count, 3),
            "bytes_in": round(load.raw.size),
            "small_objects": round(load.raw.small, 3),
            "parts": round(load.parts.count, 3),
            "bytes_stored": round(load.parts.size),
            "small_parts": round(load.parts.small, 3),
            "record_bytes": round(load.records.size),
            "ratio": None if load.ratio is None else round(load.ratio, 3),
            "requests": {name: round(count, 3) for name, count in load.requests.items()},
        },
        "kept": {
            "days": round(kept.age_days, 3),
            "raw_days": kept.raw_days,
            "raw_reason": kept.raw_reason or None,
        },
        "storage_class": current.steps[0].storage_class,
        "steps": _steps(current.steps),
        "month": {
            "now": _bill(current.now),
            "without_rollup": _bill(current.without),
            "saved": round(current.saved, _DIGITS),
        },
        "classes": [
            {
                "storage_class": cost.storage_class,
                "write": round(cost.write, _DIGITS),
                "transition": round(cost.transition, _DIGITS),
                "raw_transition": round(cost.raw_transition, _DIGITS),
                "overhead_bytes": round(cost.overhead_bytes),
                "read_hour": round(cost.read_hour, _DIGITS),
                "months": {f"{days:g}": _bill(bill) for days, bill in cost.months.items()},
            }
            for cost in compared.classes
        ],
        "without_rollup_months": {f"{days:g}": _bill(bill) for days, bill in compared.raw_months.items()},
        "plan": None if plan is None else _plan_document(stream, plan),
    }


def _steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [{"storage_class": step.storage_class, "from_day": step.from_day} for step in steps]


def _measured(measured: MeasuredLoad) -> dict[str, Any]:
    return {
        "first": format_hour(measured.hours[0]),
        "last": format_hour(measured.hours[-1]),
        "hours": len(measured.hours),
        "incomplete": measured.incomplete,
        "not_read": measured.skipped,
        "manifests": [format_hour(hour) for hour in measured.sampled],
    }


def _plan_document(stream: Stream, plan: StoragePlan) -> dict[str, Any]:
    return {
        "days": plan.days,
        "hot_days": plan.hot_days,
        "readable_days": plan.readable_days,
        "steps": _steps(plan.steps),
        "hour": {
            "part_storage": round(plan.part.storage, _DIGITS),
            "part_transitions": round(plan.part.transitions, _DIGITS),
            "raw_storage": round(plan.raw.storage, _DIGITS),
        },
        "bill": _bill(plan.bill),
        "without_rollup": _bill(plan.raw_bill),
        "saved": round(plan.raw_bill.total - plan.bill.total, _DIGITS),
        "tags": dict(part_tags(stream)),
        "lifecycle": lifecycle_rules(stream, plan.steps),
    }


def _money(amount: float) -> str:
    """An amount, rounded to a cent; a smaller one is shown as such."""
    return "<0.01" if 0 < amount < 0.005 else f"{amount:,.2f}"


def _time(days: float | None) -> str:
    if days is None:
        return "for ever"
    return f"{days / DAYS_PER_YEAR:g}y" if days and days % DAYS_PER_YEAR == 0 else f"{days:g}d"


def _summary(stream: Stream, current: CurrentCost, source: Path) -> list[str]:
    measured, prices, kept = current.measured, current.prices, current.kept
    load = measured.load
    ratio = "" if load.ratio is None else f", ratio {load.ratio:.1f}x"
    lines = [
        f"stream {stream.name}, an average hour: {load.raw.count:,.0f} raw objects of "
        f"{format_size(load.raw.size)}; {load.parts.count:,.0f} parts of {format_size(load.parts.size)}{ratio}",
        f"measured from {len(measured.hours):,} complete hours, {format_hour(measured.hours[0])} to "
        f"{format_hour(measured.hours[-1])}, and the manifests of {len(measured.sampled)} of them; "
        f"{measured.incomplete:,} hours are not complete",
        f"prices: {prices.region} of {prices.as_of}, from {source}; compare them with {prices.source}",
    ]
    if measured.skipped:
        lines.insert(2, f"{measured.skipped:,} more hours were not read: the others are at equal intervals")
    if kept.raw_days is None:
        raw = "raw objects for ever: neither expire_raw nor --keep-raw says that they are deleted"
    else:
        raw = f"raw objects {_time(kept.raw_days)} ({kept.raw_reason})"
    classes = ", ".join(
        f"{step.storage_class} from day {step.from_day:g}" if step.from_day else step.storage_class
        for step in current.steps
    )
    return [
        *lines,
        f"kept: {raw}; parts for ever, in {classes}. Stored: {kept.age_days:,.0f} days, since "
        f"{format_hour(stream.start)}",
    ]


def _month(current: CurrentCost) -> list[str]:
    currency = current.prices.currency
    now, without = asdict(current.now), asdict(current.without)
    rows = [[title, _money(now[name]), _money(without[name])] for name, title in _ROWS.items()]
    rows.append(["total", _money(current.now.total), _money(current.without.total)])
    lines = table((f"{currency} a month", "now", "without the rollup"), rows, (0,))
    if current.saved >= 0:
        share = f", {current.saved / current.without.total:.0%}" if current.without.total else ""
        return [*lines, f"saved: {_money(current.saved)} {currency} a month{share}"]
    return [
        *lines,
        f"saved: nothing; the rollup costs {_money(-current.saved)} {currency} a month more than raw objects "
        f"alone",
    ]


def _classes(current: CurrentCost, compared: Comparison) -> list[str]:
    headings = (
        f"{current.prices.currency} a month, parts kept", *map(_time, compared.raw_months), "write",
        "move parts", "move raw instead", "read an hour",
    )  # fmt: skip
    dashes = ["-"] * 4
    rows = [["without the rollup", *(_money(bill.total) for bill in compared.raw_months.values()), *dashes]]
    for cost in compared.classes:
        amounts = [cost.write, cost.transition, cost.raw_transition, cost.read_hour]
        months = (_money(bill.total) for bill in cost.months.values())
        rows.append([cost.storage_class, *months, *map(_money, amounts)])
    raw_days = current.kept.raw_days
    raw = "as long as the parts" if raw_days is None else f"{_time(raw_days)} at most"
    return [*table(headings, rows, (0,)), f"These bills include raw objects in STANDARD, kept {raw}."]


def _plan(plan: StoragePlan, prices: Prices, stream: Stream) -> list[str]:
    saved = plan.raw_bill.total - plan.bill.total
    return [
        f"plan for parts that are kept {_time(plan.days)}, stay in the first class {_time(plan.hot_days)}, and "
        f"can be read without a restore {_time(plan.readable_days)}:",
        *(f"  from day {step.from_day:g}: {step.storage_class}" for step in plan.steps),
        f"the parts of an hour cost {plan.part.total:,.4f} {prices.currency} in this time, its raw objects in "
        f"STANDARD {plan.raw.total:,.4f}",
        f"the first {_time(plan.days)} of the stream cost {_money(plan.bill.total)} {prices.currency}, "
        f"without the rollup {_money(plan.raw_bill.total)}: {_money(saved)} are saved",
    ]


def _show_lifecycle(stream: Stream, plan: StoragePlan, answer: Answer, *, as_terraform: bool) -> None:
    configuration = lifecycle_rules(stream, plan.steps)
    if not configuration["Rules"]:
        tell("No lifecycle rule is needed: no other class is cheaper in this time.")
        return
    if not stream.tags:
        tags = json.dumps(dict(part_tags(stream)))
        tell(
            f"The rule finds parts by a tag, which manifests and markers don't have. Give stream {stream.name!r} "
            f"tags: {tags}. Parts that were written before keep their class."
        )
    tell(
        f"PutBucketLifecycleConfiguration replaces all rules of bucket {stream.aggregated.bucket!r}: add this "
        f"one to those that exist."
    )
    if as_terraform:
        answer.lines("", *terraform(stream.aggregated.bucket, configuration))
    else:
        answer.lines("", *json.dumps(configuration, indent=2).split("\n"))
