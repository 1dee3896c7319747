"""Hours with groups on real servers, compared byte by byte by code that shares nothing with the pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from dev.servers import RcloneServer, S3Server
from tests.integration.conftest import PipelineFactory
from tests.support.fixtures import BucketFactory
from tests.support.hour_on_server import Pipeline
from tests.support.raw_hours import RawHour, put_objects
from tests.support.verify import VerifiedHour
from tests.support.verify_groups import verify_groups

HOME = "packed/_hours/app/20261123/08/"
SERVICES = {
    "raw": "raw/{service}/%Y%m%d/%H/",
    "aggregated": "packed/{service}/%Y%m%d/%H/",
}
CLOUDTRAIL = {
    "raw": "AWSLogs/{account}/CloudTrail/{region}/%Y/%m/%d/{account}_CloudTrail_{region}_%Y%m%dT%H",
    "aggregated": "packed/{account}/{region}/dt=%Y-%m-%d/hour=%H/",
}
# Something between a key and a URL gets each of these wrong.
ODD_GROUPS = ("web", "with space", "plus+plus", "percent%41", "grüße-中文", "quote'\"", "_hidden", "dt=1")


@pytest.fixture(params=["rclone", "ministack"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each server in turn."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


@dataclass
class GroupedHour:
    """An hour with groups on a server.

    :param folders: prefix of the raw objects to prefix of the parts, for each group
    """

    pipeline: Pipeline
    folders: dict[str, str] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)

    def produce(self, raw: str, folder: str, objects: int, **shape: int) -> None:
        """Write raw objects of a group, and expect its parts in a folder."""
        made = dict(RawHour(raw, objects, 1024, 3000, ("", ".gz"), **shape))
        put_objects(self.pipeline.client, self.pipeline.bucket, made)
        self.folders[raw] = folder
        self.raw |= made

    def verify(self) -> Mapping[str, VerifiedHour]:
        """Compare each group, and the records of the hour."""
        return verify_groups(
            self.pipeline.client, self.pipeline.bucket, self.folders, HOME,
            part_size=self.pipeline.stream.part_size, expected=self.raw,
        )  # fmt: skip

    def stamps(self, prefix: str) -> dict[str, tuple[object, str]]:
        """When each object below a prefix was written, and its ETag."""
        answer = self.pipeline.client.list_objects_v2(Bucket=self.pipeline.bucket, Prefix=prefix)
        return {item["Key"]: (item["LastModified"], item["ETag"]) for item in answer.get("Contents", ())}


def hour_on(
    server: S3Server, bucket: str, pipeline_on: PipelineFactory, layout: Mapping[str, str]
) -> GroupedHour:
    """An hour whose stream has the templates of a layout."""
    places = {side: f"s3://{bucket}/{template}" for side, template in layout.items()}
    return GroupedHour(pipeline_on(server, bucket, **places))


def service(name: str) -> tuple[str, str]:
    """Where the raw objects and the parts of a service are."""
    return f"raw/{name}/20261123/08/", f"packed/{name}/20261123/08/"


def test_groups_with_odd_names_are_packed(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory
) -> None:
    hour = hour_on(s3_server, bucket, pipeline_on, SERVICES)
    for name in ODD_GROUPS:
        hour.produce(*service(name), objects=3)
    (measured,) = hour.pipeline.run()
    assert measured.parts_written == 2 * len(ODD_GROUPS)
    assert len(hour.verify()) == len(ODD_GROUPS)


def test_groups_in_the_names_of_cloudtrail_are_packed(
    rclone_server: RcloneServer, make_bucket: BucketFactory, pipeline_on: PipelineFactory
) -> None:
    bucket = make_bucket(rclone_server)
    hour = hour_on(rclone_server, bucket, pipeline_on, CLOUDTRAIL)
    for account, region in (("1" * 12, "eu-central-1"), ("1" * 12, "us-east-1"), ("2" * 12, "us-east-1")):
        day = f"AWSLogs/{account}/CloudTrail/{region}/2026/11/23/{account}_CloudTrail_{region}_20261123T"
        hour.produce(f"{day}08", f"packed/{account}/{region}/dt=2026-11-23/hour=08/", objects=3)
        put_objects(hour.pipeline.client, bucket, {f"{day}0900Z_a.json.gz": b"of the next hour"})
    hour.pipeline.run()
    assert len(hour.verify()) == 3


def test_rerun_leaves_unchanged_groups_alone(
    s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory
) -> None:
    hour = hour_on(s3_server, bucket, pipeline_on, SERVICES)
    for name in ("api", "web"):
        hour.produce(*service(name), objects=3)
    hour.pipeline.run()
    before = hour.stamps("packed/api/")
    hour.produce(*service("web"), objects=5, seed=1)
    hour.produce(*service("edge"), objects=2)
    hour.pipeline.run()
    assert {prefix: group.objects for prefix, group in hour.verify().items()} == {
        service("api")[1]: 3,
        service("web")[1]: 5,
        service("edge")[1]: 2,
    }
    assert hour.stamps("packed/api/") == before
