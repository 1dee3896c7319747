"""Another version takes over in the middle of an hour: it plans again, and never misreads a record."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.servers import RcloneServer
from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory
from tests.integration.step_process import run_steps
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline
from tests.support.raw_hours import AGGREGATED, RAW, make_hour, put_objects

STEPS = ("plan", "pack", "validate", "complete")
# An earlier version: other formats of plans and claims, and part names without a digest.
BEFORE = {
    "hour/plan.py": [("PLAN_FORMAT = 2", "PLAN_FORMAT = 1")],
    "hour/records.py": [("CLAIM_FORMAT = 2", "CLAIM_FORMAT = 1")],
    "hour/layout.py": [
        ('return f"part-{index:05d}-{tag}.log{encoding}"', 'return f"part-{index:05d}.log{encoding}"')
    ],
}
# A later version, whose records this one cannot read.
LATER = {
    "hour/plan.py": [("PLAN_FORMAT = 2", "PLAN_FORMAT = 3")],
    "hour/records.py": [
        ("CLAIM_FORMAT = 2", "CLAIM_FORMAT = 3"),
        ("RECEIPT_FORMAT = 1", "RECEIPT_FORMAT = 2"),
        ("MARKER_FORMAT = 1", "MARKER_FORMAT = 2"),
    ],
    "hour/manifest.py": [("MANIFEST_FORMAT_COMPRESSED = 1, 2", "MANIFEST_FORMAT_COMPRESSED = 3, 4")],
}


@dataclass(frozen=True)
class Outcome:
    """The references of the planned shards, and the error that ended the steps, if any."""

    refs: list[dict[str, Any]]
    error: str | None


class OtherVersion:
    """A process that runs steps with another version of ``include``.

    :param folder: a folder with that version
    :param connection: the Airflow connection of the process
    """

    def __init__(self, folder: Path, connection: str) -> None:
        self._errors = (folder / "stderr").open("w+")
        path = os.pathsep.join(map(str, [folder, ROOT, ROOT / "plugins"]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.step_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "AIRFLOW_CONN_AWS_DEFAULT": connection},
            cwd=folder,
        )

    def run(self, bucket: str, refs: list[dict[str, Any]] | None, steps: Sequence[str]) -> Outcome:
        """Run steps of the hour in a bucket."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"bucket": bucket, "refs": refs, "steps": steps}), file=self._process.stdin, flush=True
        )
        for line in self._process.stdout:
            if line.startswith("RESULT"):
                return Outcome(**json.loads(line[len("RESULT") :]))
        self._errors.seek(0)
        raise AssertionError(self._errors.read()[-3000:])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@dataclass(frozen=True)
class Versions:
    """An hour, and versions of the pipeline that run its steps."""

    pipeline: Pipeline
    made: dict[str, bytes]
    start_other: Callable[[str], OtherVersion]

    def run(self, version: str, *steps: str, refs: list[dict[str, Any]] | None = None) -> Outcome:
        """Run steps of the version ``ours``, ``before`` or ``later``."""
        if version == "ours":
            return Outcome(**run_steps(self.pipeline, refs, steps))
        return self.start_other(version).run(self.pipeline.bucket, refs, steps)


@pytest.fixture(scope="module")
def start_other(
    tmp_path_factory: pytest.TempPathFactory, rclone_server: RcloneServer
) -> Iterator[Callable[[str], OtherVersion]]:
    """Starts the process of the version ``before`` or ``later`` when it is first used."""
    with ExitStack() as stack:

        @functools.cache
        def start(version: str) -> OtherVersion:
            folder = tmp_path_factory.mktemp(version)
            copy_with_edits(folder / "include", {"before": BEFORE, "later": LATER}[version])
            other = OtherVersion(folder, rclone_server.airflow_connection_json())
            stack.callback(other.close)
            return other

        yield start


def copy_with_edits(target: Path, edits: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Copy the package ``include`` and edit some of its modules."""
    shutil.copytree(ROOT / "include", target, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in edits.items():
        file = target / "log_rollup" / name
        text = file.read_text()
        for ours, theirs in changes:
            assert text.count(ours) == 1, f"{name} contains {ours!r} {text.count(ours)} times"
            text = text.replace(ours, theirs)
        file.write_text(text)


@pytest.fixture
def versions(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    start_other: Callable[[str], OtherVersion],
) -> Versions:
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server))
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    return Versions(pipeline, made, start_other)


@pytest.mark.soak
@pytest.mark.parametrize("version", ["before", "later"])
def test_other_version_completes_an_hour(versions: Versions, version: str) -> None:
    assert versions.run(version, *STEPS).error is None
    versions.pipeline.client.head_object(Bucket=versions.pipeline.bucket, Key=f"{AGGREGATED}_SUCCESS")


@pytest.mark.parametrize(
    ("first", "then", "done"),
    [
        pytest.param("before", "ours", 1, id="upgrade-planned"),
        pytest.param("before", "ours", 2, id="upgrade-packed", marks=pytest.mark.soak),
        pytest.param("before", "ours", 3, id="upgrade-validated", marks=pytest.mark.soak),
        pytest.param("ours", "before", 1, id="downgrade-planned", marks=pytest.mark.soak),
        pytest.param("ours", "before", 2, id="downgrade-packed", marks=pytest.mark.soak),
        pytest.param("ours", "before", 3, id="downgrade-validated", marks=pytest.mark.soak),
    ],
)
def test_other_version_refuses_an_hour_under_way_and_replans(
    versions: Versions, first: str, then: str, done: int
) -> None:
    begun = versions.run(first, *STEPS[:done])
    assert begun.error is None
    refused = versions.run(then, STEPS[done], refs=begun.refs)
    assert refused.error is not None
    assert refused.error.startswith("SupersededError")
    assert "from plan_hour on" in refused.error
    versions.pipeline.assert_not_complete()
    assert versions.run(then, *STEPS).error is None
    if then == "ours":
        versions.pipeline.verify(versions.made)


def test_old_worker_changes_nothing_in_a_replanned_hour(versions: Versions) -> None:
    old = versions.run("before", "plan")
    new = versions.run("ours", "plan")
    late = versions.run("before", "pack", refs=old.refs)
    assert late.error is not None
    assert late.error.startswith("SupersededError")
    assert [key for key in versions.pipeline.listed() if "/part-" in key] == []
    assert versions.run("ours", "pack", "validate", "complete", refs=new.refs).error is None
    versions.pipeline.verify(versions.made)


@pytest.mark.parametrize(
    "late",
    [pytest.param(False, id="unchanged"), pytest.param(True, id="late object")],
)
def test_hour_of_the_version_before_keeps_its_parts(versions: Versions, late: bool) -> None:
    assert versions.run("before", *STEPS).error is None
    before = versions.pipeline.parts()
    made = dict(versions.made)
    if late:
        more = {f"{RAW}00-late.log": b"late\n"}
        put_objects(versions.pipeline.client, versions.pipeline.bucket, more)
        made |= more
    assert versions.run("ours", *STEPS).error is None
    versions.pipeline.verify(made, reruns=late)
    after = versions.pipeline.parts()
    assert before.items() <= after.items()
    assert len(after) - len(before) == (1 if late else 0)


def test_hour_of_a_later_version_is_refused_and_unchanged(versions: Versions) -> None:
    assert versions.run("later", *STEPS).error is None
    put_objects(versions.pipeline.client, versions.pipeline.bucket, {f"{RAW}zz-late.log": b"late\n"})
    before = versions.pipeline.listed(), versions.pipeline.parts()
    refused = versions.run("ours", "plan")
    assert refused.error is not None
    assert refused.error.startswith("UnreadableRecordError")
    assert "Update Log Rollup" in refused.error
    assert (versions.pipeline.listed(), versions.pipeline.parts()) == before
