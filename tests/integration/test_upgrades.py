"""Another version takes over in the middle of an hour: it plans again, and never misreads a record."""

import json
import os
import shutil
import subprocess
import sys
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
    "hour/manifest.py": [("MANIFEST_FORMAT = 1", "MANIFEST_FORMAT = 2")],
}


@dataclass(frozen=True)
class Outcome:
    """The references of the planned shards, and the error that ended the steps, if any."""

    refs: list[dict[str, Any]]
    error: str | None


@dataclass(frozen=True)
class Versions:
    """An hour, and versions of the pipeline that run its steps; other versions than ours in a process."""

    pipeline: Pipeline
    made: dict[str, bytes]
    others: Path

    def run(self, version: str, *steps: str, refs: list[dict[str, Any]] | None = None) -> Outcome:
        """Run steps of the version ``ours``, ``before`` or ``later``."""
        if version == "ours":
            return Outcome(**run_steps(self.pipeline, refs, steps))
        path = os.pathsep.join(map(str, [self.others / version, ROOT, ROOT / "plugins"]))
        command = [sys.executable, "-m", "tests.integration.step_process", self.pipeline.bucket]
        done = subprocess.run(
            [*command, json.dumps(refs), *steps],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            # Python searches this folder first, so it must not contain a package ``include``.
            cwd=self.others,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        return Outcome(**json.loads(line[len("RESULT") :]))


@pytest.fixture(scope="module")
def other_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``before/include`` and ``later/include``."""
    folder = tmp_path_factory.mktemp("other-versions")
    for version, edits in {"before": BEFORE, "later": LATER}.items():
        place = folder / version / "include"
        shutil.copytree(ROOT / "include", place, ignore=shutil.ignore_patterns("__pycache__"))
        for name, changes in edits.items():
            file = place / "log_rollup" / name
            text = file.read_text()
            for ours, theirs in changes:
                assert text.count(ours) == 1, f"{name} contains {ours!r} {text.count(ours)} times"
                text = text.replace(ours, theirs)
            file.write_text(text)
    return folder


@pytest.fixture
def versions(
    rclone_server: RcloneServer,
    make_bucket: BucketFactory,
    pipeline_on: PipelineFactory,
    other_versions: Path,
) -> Versions:
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server))
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=12)
    return Versions(pipeline, made, other_versions)


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
        more = {f"{RAW}zz-late.log": b"late\n"}
        put_objects(versions.pipeline.client, versions.pipeline.bucket, more)
        made |= more
    assert versions.run("ours", *STEPS).error is None
    versions.pipeline.verify(made)
    after = versions.pipeline.parts()
    # The late object is last in key order, so only the last part changes.
    assert len(before.items() - after.items()) == (1 if late else 0)


def test_hour_of_a_later_version_is_refused_and_unchanged(versions: Versions) -> None:
    assert versions.run("later", *STEPS).error is None
    put_objects(versions.pipeline.client, versions.pipeline.bucket, {f"{RAW}zz-late.log": b"late\n"})
    before = versions.pipeline.listed(), versions.pipeline.parts()
    refused = versions.run("ours", "plan")
    assert refused.error is not None
    assert refused.error.startswith("UnreadableRecordError")
    assert "Update Log Rollup" in refused.error
    assert (versions.pipeline.listed(), versions.pipeline.parts()) == before
