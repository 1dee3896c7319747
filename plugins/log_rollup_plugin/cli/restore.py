"""The command that brings raw objects back: restore."""

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from include.log_rollup import limits
from include.log_rollup.errors import ConfigurationError, NotFoundError, TargetConflictError
from include.log_rollup.hour.layout import format_hour
from include.log_rollup.hour.plan import WriteOptions
from include.log_rollup.queries.object_filter import ObjectFilter
from include.log_rollup.queries.restore import Restored
from include.log_rollup.queries.restore import restore as restore_objects
from include.log_rollup.queries.restore_plan import Failure, HourPlan, plan_restore
from include.log_rollup.queries.restore_targets import (
    DirectoryTarget,
    StreamTarget,
    Target,
    TarTarget,
)
from include.log_rollup.queries.restore_to_s3 import S3Target
from include.log_rollup.queries.retrieval import ArchivedPart, find_archived
from include.log_rollup.storage.protocol import Location, RestoreStore
from include.log_rollup.streams import Stream
from include.log_rollup.units import format_size
from log_rollup_plugin.cli import arguments, retrieval
from log_rollup_plugin.cli.arguments import find_stream
from log_rollup_plugin.cli.output import Answer, ProgressDisplay, tell
from log_rollup_plugin.cli.retrieval import Retrieval
from log_rollup_plugin.cli.store import open_store

# Number of objects and hours that the text names; --json has all.
_MAX_NAMED = 20
_S3 = re.compile(r"s3://([^/]+)(?:/(.*))?", re.DOTALL)
_COMPRESSED_TAR = re.compile(r".*\.(tgz|tar\.[a-z0-9]+)", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add(
        "hours",
        metavar="HOUR[..HOUR]",
        type=arguments.hours,
        help="like 2026-11-23T08, or 2026-11-23T08..2026-11-23T10 for three hours",
    )
    add(
        "--to",
        metavar="TARGET",
        required=True,
        help="s3://bucket/prefix/, a directory, a .tar file, or - for the objects' bytes on stdout",
    )
    add(
        "--match",
        metavar="GLOB",
        action="append",
        default=[],
        help="restore only objects whose name below the hour matches, like '*.gz'; may be repeated",
    )
    add(
        "--group",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=arguments.group,
        help="restore only this group, like service=web; may be repeated",
    )
    add("--dry-run", action="store_true", help="show what would be read, and stop")
    add("--overwrite", action="store_true", help="replace what differs in the target")
    add("--incomplete", action="store_true", help="restore hours that are not complete, by their manifest")
    add("--md5", action="store_true", help="also compare objects with their ETags, where these are MD5s")
    retrieval.add_arguments(parser)


def restore(options: argparse.Namespace, answer: Answer) -> bool | int:
    """write the raw objects of hours under their own names, read from the parts"""
    to_stdout = options.to == "-"
    if options.json and to_stdout and not options.dry_run:
        raise ConfigurationError(
            "--json and --to - cannot be combined: the objects themselves are the output"
        )
    stream = find_stream(options.stream)
    chosen = ObjectFilter(stream, options.match, options.group)
    bucket = _bucket_of(options.to)
    with (
        open_store(stream, _control_connections(stream, bucket)) as store,
        _target(options, answer, store, stream) as target,
    ):
        plans = plan_restore(store, stream, options.hours, chosen, target, incomplete=options.incomplete)
        report = _Report(options, plans)
        if not chosen.takes_all:
            report.check_matches()
        done = None
        if not options.dry_run:
            report.check_conflicts()
        archived = _archived_parts(store, stream, plans, every_part=options.retrieve is not None)
        if archived:
            retrieving = Retrieval(options, archived)
            retrieving.run(store, dry_run=options.dry_run)
            if options.json:
                answer.json({**report.document(stream, None), "ok": False, "archived": retrieving.document()})
            return retrieval.ARCHIVED
        if not options.dry_run:
            report.announce()
            # On a terminal, the objects' bytes would overwrite the progress bar.
            shown = not (to_stdout and answer.is_terminal)
            with ProgressDisplay(f"restoring to {options.to}", shown) as progress, target:
                done = restore_objects(store, stream, plans, target, progress, with_md5=options.md5)
    if options.json:
        answer.json(report.document(stream, done))
    elif to_stdout and not options.dry_run:
        for line in report.lines(done):
            tell(line)
    else:
        answer.lines(*report.lines(done))
    return report.is_ok(done)


def _archived_parts(
    store: RestoreStore, stream: Stream, plans: Sequence[HourPlan], *, every_part: bool
) -> list[ArchivedPart]:
    """Those of the parts to read that are archived.

    :param every_part: whether to ask for each of them. Otherwise an hour whose first part can be read counts as
        readable: lifecycle rules move all parts of an hour at about the same time.
    """
    parts = [(plan.hour, stream.at(plan.hour).part(name)) for plan in plans for name in plan.indices]
    if not every_part:
        first = dict(reversed(parts))
        cold = {part.hour for part in find_archived(store, first.items())}
        parts = [(hour, place) for hour, place in parts if hour in cold]
    return find_archived(store, parts)


def _bucket_of(text: str) -> str | None:
    found = _S3.fullmatch(text)
    return found[1] if found else None


def _control_connections(stream: Stream, bucket: str | None) -> int:
    """The connections to give to :func:`open_store`, so that all of the command's are used and none more.

    Parts and records are read from one bucket, and the target may be another one; raw objects are not read.
    """
    # The hook divides them between the buckets of the stream.
    divided_by = 1 if stream.raw.bucket == stream.aggregated.bucket or stream.has_two_connections else 2
    used = 1 if bucket in (None, stream.aggregated.bucket) else 2
    return limits.COMMAND_CONNECTIONS * divided_by // used


@contextmanager
def _target(
    options: argparse.Namespace, answer: Answer, store: RestoreStore, stream: Stream
) -> Iterator[Target]:
    """The target that ``--to`` names."""
    text: str = options.to
    if not text:
        raise ConfigurationError("cannot restore to '': it is empty; for the current directory give .")
    if text == "-":
        if options.dry_run:
            yield StreamTarget(io.BytesIO())
            return
        with answer.open_bytes() as out:
            yield StreamTarget(out)
        return
    if found := _S3.fullmatch(text):
        yield _s3_target(store, stream, found[1], found[2] or "")
    elif "://" in text:
        raise ConfigurationError(
            f"cannot restore to {text!r}: give s3://bucket/prefix/, a directory, or a .tar file"
        )
    elif _COMPRESSED_TAR.fullmatch(text) and not Path(text).is_dir():
        raise ConfigurationError(f"cannot restore to {text!r}: name a .tar file and compress it afterwards")
    elif text.lower().endswith(".tar") and not Path(text).is_dir():
        yield TarTarget(Path(text), options.overwrite)
    else:
        yield DirectoryTarget(Path(text))


def _s3_target(store: RestoreStore, stream: Stream, bucket: str, key: str) -> S3Target:
    arguments.check_utf8(f"s3://{bucket}/{key}")
    if key and not key.endswith("/"):
        raise ConfigurationError(
            f"s3://{bucket}/{key} is not a prefix that ends with a slash: write s3://{bucket}/{key}/"
        )
    templates = (stream.aggregated, stream.aggregated.home_template(stream.name))
    in_same_bucket = bucket == stream.aggregated.bucket

    def is_ours(found: str) -> bool:
        return in_same_bucket and any(template.match(found) for template in templates)

    def is_raw(found: str) -> bool:
        # With two connections, buckets of one name may be different ones; that is unknown here.
        return bucket == stream.raw.bucket and stream.raw.match(found) is not None

    headers = WriteOptions(kms_key_id=stream.kms_key_id).headers
    return S3Target(store, Location(bucket, key), headers, is_ours, is_raw)


class _Report:
    """What the command says about its plans and its result."""

    def __init__(self, options: argparse.Namespace, plans: Sequence[HourPlan]) -> None:
        self._options = options
        self._plans = plans
        self._skipped = [plan for plan in plans if plan.problem]
        self._read = [plan for plan in plans if not plan.problem]
        self._size = sum(plan.size - plan.present_size for plan in plans)
        self._to_restore = sum(plan.to_restore for plan in plans)
        self._different = sum(plan.different for plan in plans)

    def check_matches(self) -> None:
        """Refuse patterns and groups that no object matches.

        :raises NotFoundError: if there are none
        """
        if not self._read or any(plan.objects for plan in self._plans):
            return
        total = sum(plan.in_manifest for plan in self._plans)
        example = next((plan.example for plan in self._plans if plan.example), "")
        asked = [f"--match {glob}" for glob in self._options.match]
        asked += [f"--group {name}={value}" for name, value in self._options.group]
        raise NotFoundError(
            f"none of the {total:,} raw objects of {_count(len(self._read), 'hour')} matches {' '.join(asked)}"
            + (f"; a name below the hour is {example!r}" if example else "")
        )

    def check_conflicts(self) -> None:
        """Refuse to replace what differs in the target, unless that was requested.

        :raises TargetConflictError: if there is any
        """
        if not self._different or self._options.overwrite:
            return
        raise TargetConflictError(
            f"{self._conflict()}; nothing was restored. Use --overwrite to replace them"
        )

    def _conflict(self) -> str:
        keys = [key for plan in self._plans for key in plan.first_different]
        more = ", …" if self._different > 5 else ""
        return (
            f"{self._options.to} has other content for {_count(self._different, 'object')} "
            f"({', '.join(keys[:5])}{more})"
        )

    def announce(self) -> None:
        """Say what is going to be read."""
        for plan in self._skipped:
            tell(_skipped_line(plan))
        tell(self._summary())

    def _summary(self) -> str:
        gets = sum(plan.gets for plan in self._plans)
        read_bytes = sum(plan.read_bytes for plan in self._plans)
        parts = sum(len(plan.indices) for plan in self._plans)
        text = (
            f"{_count(len(self._read), 'hour')}: {_count(self._to_restore, 'object')}, {format_size(self._size)} "
            f"to restore with {gets:,} GETs of {format_size(read_bytes)} from {_count(parts, 'part')}"
        )
        present = sum(plan.present for plan in self._plans)
        return f"{text}; {present:,} more are there already" if present else text

    def lines(self, done: Restored | None) -> list[str]:
        """The answer as text."""
        lines = []
        if done is None:
            lines += [_skipped_line(plan) for plan in self._skipped[:_MAX_NAMED]]
            if len(self._skipped) > _MAX_NAMED:
                lines.append(f"and {len(self._skipped) - _MAX_NAMED:,} more hours; --json has all")
            lines.append(self._summary())
            if self._different:
                lines.append(f"{self._conflict()}; --overwrite replaces them")
        else:
            lines.append(
                f"restored {_count(done.objects, 'object')}, {format_size(done.size)} to {self._options.to}"
            )
        lines += self._recompressed_lines()
        older = sum(plan.older_versions for plan in self._read)
        if older:
            lines.append(
                f"not restored: {_count(older, 'older version')} of objects that were written again after they "
                f"had expired"
            )
        lines += [
            f"{format_hour(plan.hour)} is not complete; it was read by its manifest"
            for plan in self._read
            if plan.state.value != "complete"
        ]
        failures = self._failures(done)
        lines += [f"FAILED: {failure.key}: {failure.reason}" for failure in failures[:_MAX_NAMED]]
        if len(failures) > _MAX_NAMED:
            lines.append(f"FAILED: {len(failures) - _MAX_NAMED:,} more objects; --json has all")
        return lines

    def _recompressed_lines(self) -> list[str]:
        count = sum(plan.recompressed for plan in self._read)
        if not count:
            return []
        lines = [f"{_count(count, 'object')} recompressed: restored as the content, without the extension"]
        names = {key: name for plan in self._read for key, name in plan.names.items()}
        return lines + [f"{key} is restored as {name}" for key, name in list(names.items())[:_MAX_NAMED]]

    def _failures(self, done: Restored | None) -> Sequence[Failure]:
        if done is not None:
            return done.failures
        return [failure for plan in self._plans for failure in plan.failures]

    def is_ok(self, done: Restored | None) -> bool:
        """Whether every hour was read, and every chosen object is restored or can be."""
        conflicts = self._different and not self._options.overwrite
        return not (self._skipped or self._failures(done) or conflicts)

    def document(self, stream: Stream, done: Restored | None) -> dict[str, Any]:
        """The answer as JSON."""
        return {
            "stream": stream.name,
            "to": self._options.to,
            "ok": self.is_ok(done),
            "dry_run": done is None,
            "objects": sum(plan.objects for plan in self._plans),
            "bytes": sum(plan.size for plan in self._plans),
            "present": sum(plan.present for plan in self._plans),
            "different": self._different,
            "older_versions": sum(plan.older_versions for plan in self._plans),
            "recompressed": sum(plan.recompressed for plan in self._plans),
            "gets": sum(plan.gets for plan in self._plans),
            "bytes_read": sum(plan.read_bytes for plan in self._plans),
            "restored": None if done is None else done.objects,
            "bytes_restored": None if done is None else done.size,
            "hours": [
                {
                    "hour": format_hour(plan.hour),
                    "state": plan.state.value,
                    "problem": plan.problem or None,
                    "plan_id": plan.plan_id or None,
                    "objects": plan.objects,
                    "bytes": plan.size,
                    "present": plan.present,
                    "different": plan.different,
                    "recompressed": plan.recompressed,
                    "parts": len(plan.indices),
                    "gets": plan.gets,
                    "bytes_read": plan.read_bytes,
                }
                for plan in self._plans
            ],
            "failed": [
                {
                    "hour": format_hour(failure.hour),
                    "key": failure.key,
                    "part": failure.part,
                    "reason": failure.reason,
                }
                for failure in self._failures(done)
            ],
        }


def _skipped_line(plan: HourPlan) -> str:
    return f"SKIPPED: {format_hour(plan.hour)} is {plan.state.value}: {plan.problem}"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"
