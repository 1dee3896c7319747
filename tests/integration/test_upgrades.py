"""Another version of the code takes over in the middle of an hour: it plans anew, and never misreads."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.integration.conftest import PipelineFactory
from tests.integration.pipeline import AGGREGATED, RAW, Pipeline
from tests.support.fixtures import BucketFactory
from tests.support.hours import make_hour, put_objects
from tests.support.servers import RcloneServer

STEPS = ("plan", "pack", "validate", "complete")
# Another version: other format numbers, and rows whose columns lie the other way round, so that to read them
# as one's own could not go unnoticed.
CHANGES = {
    "plan.py": [("PLAN_FORMAT = 1", "PLAN_FORMAT = 0")],
    "records.py": [
        ("CLAIM_FORMAT = 1", "CLAIM_FORMAT = 0"),
        ("RECEIPT_FORMAT = 1", "RECEIPT_FORMAT = 0"),
        ("MANIFEST_FORMAT = 1", "MANIFEST_FORMAT = 0"),
        ("MARKER_FORMAT = 1", "MARKER_FORMAT = 0"),
        ("item.size, item.etag] for item", "item.etag, item.size] for item"),
        ("for key, size, etag in rows)", "for key, etag, size in rows)"),
        ("part.name, part.fingerprint, part.size, part.etag,",
         "part.fingerprint, part.name, part.etag, part.size,"),
        ("name, fingerprint, size, etag, crc64nvme, proof, objects = row",
         "fingerprint, name, etag, size, crc64nvme, proof, objects = row"),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How some steps ended: the references of the shards, and the error if there was one."""

    refs: list[dict[str, Any]]
    error: str | None


@dataclass(frozen=True)
class Versions:
    """One hour, and two versions of the pipeline that work on it in processes of their own."""

    pipeline: Pipeline
    made: dict[str, bytes]
    other: Path

    def run(self, version: str, *steps: str, refs: list[dict[str, Any]] | None = None) -> Outcome:
        """Run steps with the version ``ours`` or ``other``."""
        first = [self.other] if version == "other" else []
        path = os.pathsep.join(map(str, [*first, ROOT, ROOT / "plugins"]))
        # Not in a folder with an `include`: Python would look there first.
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.integration.step_process"),
                *(self.pipeline.bucket, json.dumps(refs), *steps),
            ],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, cwd=self.other.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        return Outcome(**json.loads(line[len("RESULT") :]))


@pytest.fixture(scope="module")
def other_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another version of ``include``."""
    folder = tmp_path_factory.mktemp("other-version")
    shutil.copytree(ROOT / "include", folder / "include", ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in CHANGES.items():
        file = folder / "include" / "log_rollup" / name
        text = file.read_text()
        for ours, theirs in changes:
            assert text.count(ours) == 1, f"{name} has {text.count(ours)} times {ours!r}"
            text = text.replace(ours, theirs)
        file.write_text(text)
    return folder


@pytest.fixture
def versions(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory, other_version: Path
) -> Versions:
    pipeline = pipeline_on(rclone_server, make_bucket(rclone_server))
    made = make_hour(pipeline.client, pipeline.bucket, RAW, objects=24)
    return Versions(pipeline, made, other_version)


@pytest.mark.soak
def test_the_other_version_is_a_whole_one(versions: Versions) -> None:
    assert versions.run("other", *STEPS).error is None
    versions.pipeline.client.head_object(Bucket=versions.pipeline.bucket, Key=f"{AGGREGATED}_SUCCESS")


@pytest.mark.parametrize(
    ("before", "after", "done"),
    [
        pytest.param("other", "ours", 1, id="upgrade-planned"),
        pytest.param("other", "ours", 2, id="upgrade-packed", marks=pytest.mark.soak),
        pytest.param("other", "ours", 3, id="upgrade-validated", marks=pytest.mark.soak),
        pytest.param("ours", "other", 1, id="downgrade-planned", marks=pytest.mark.soak),
        pytest.param("ours", "other", 2, id="downgrade-packed", marks=pytest.mark.soak),
        pytest.param("ours", "other", 3, id="downgrade-validated", marks=pytest.mark.soak),
    ],
)
def test_an_hour_under_way_is_refused_and_a_new_plan_completes_it(
    versions: Versions, before: str, after: str, done: int
) -> None:
    begun = versions.run(before, *STEPS[:done])
    assert begun.error is None
    refused = versions.run(after, STEPS[done], refs=begun.refs)
    assert refused.error is not None
    assert refused.error.startswith(("SupersededError", "ProofError"))
    assert "from plan_hour on" in refused.error
    versions.pipeline.assert_not_complete()
    assert versions.run(after, *STEPS).error is None
    if after == "ours":
        versions.pipeline.verify(versions.made)


def test_a_worker_of_the_version_before_touches_nothing_of_the_hour_that_was_planned_anew(
    versions: Versions,
) -> None:
    old = versions.run("other", "plan")
    new = versions.run("ours", "plan")
    late = versions.run("other", "pack", refs=old.refs)
    assert late.error is not None
    assert late.error.startswith("SupersededError")
    assert [key for key in versions.pipeline.listed() if "/part-" in key] == []
    assert versions.run("ours", "pack", "validate", "complete", refs=new.refs).error is None
    versions.pipeline.verify(versions.made)


@pytest.mark.parametrize(
    "late",
    [pytest.param(False, id="unchanged", marks=pytest.mark.soak), pytest.param(True, id="late object")],
)
def test_an_hour_that_the_version_before_completed_is_built_anew_when_it_is_run_again(
    versions: Versions, late: bool
) -> None:
    assert versions.run("other", *STEPS).error is None
    made = dict(versions.made)
    if late:
        more = {f"{RAW}zz-late.log": b"late\n"}
        put_objects(versions.pipeline.client, versions.pipeline.bucket, more)
        made |= more
    assert versions.run("ours", *STEPS).error is None
    versions.pipeline.verify(made)
