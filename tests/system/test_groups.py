"""An hour whose objects are divided into groups, under a real scheduler."""

from datetime import timedelta

import pytest

from dev.stack.paths import BUCKET
from tests.support.raw_hours import hour_prefix, make_hour
from tests.support.verify_groups import verify_groups
from tests.system.running import Running

GROUPED = "log_rollup_grouped"
PART_SIZE = 5 * 1024 * 1024
# Each group: number of raw objects, largest size in bytes, encodings.
GROUPS = {
    "web": (8, 2_000_000, ("",)),
    "api": (6, 100_000, ("", ".gz")),
    "with space": (1, 2_000, (".gz",)),
}


@pytest.mark.overlaps
def test_grouped_hour_is_packed_group_by_group(running: Running) -> None:
    hour = running.dataset.hours[0].hour - timedelta(days=1)
    made: dict[str, bytes] = {}
    for group, (objects, largest, encodings) in GROUPS.items():
        made |= make_hour(
            running.client, BUCKET, hour_prefix(f"grouped/{group}/", hour),
            objects=objects, min_bytes=1024, max_bytes=largest, encodings=encodings,
        )  # fmt: skip
    run_id = running.trigger(GROUPED, {"hour": hour.isoformat()})
    run = running.ended(GROUPED, run_id)
    assert run.state == "success"
    groups = verify_groups(
        running.client,
        BUCKET,
        {hour_prefix(f"grouped/{group}/", hour): hour_prefix(f"packed/{group}/", hour) for group in GROUPS},
        hour_prefix("packed/_hours/grouped/", hour),
        part_size=PART_SIZE,
        expected=made,
    )
    assert {prefix: group.objects for prefix, group in groups.items()} == {
        hour_prefix(f"packed/{group}/", hour): objects for group, (objects, _, _) in GROUPS.items()
    }
    # Small groups share a task.
    shards = running.instances(GROUPED, run)["pack_shard"]
    assert len(shards) < len(GROUPS)
