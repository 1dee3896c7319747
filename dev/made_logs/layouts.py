"""The layouts of the demo's raw objects: their stream, and how the objects of an hour are written.

Keys and prefixes are composed here without the pipeline's templates, so that they can be compared with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dev.made_logs.log_files import HOSTS, MEAN_OBJECT_BYTES, Host, MadeGroup, MadeHour, write_hour
from dev.made_logs.trail_files import MEAN_DOCUMENT_BYTES, write_trail

PLAIN = "plain"
GROUPS = "groups"
CLOUDTRAIL = "cloudtrail"
SEED = 250

# The services of the layout `groups`. The last one has raw objects from the second hour on.
_SERVICES: Mapping[str, Sequence[Host]] = {"web": HOSTS[:3], "api": HOSTS[3:6], "edge": HOSTS[6:]}
_NEW_SERVICE = "edge"
_ACCOUNTS = ("111111111111", "222222222222")
_REGIONS = ("eu-central-1", "us-east-1")


@dataclass(frozen=True)
class Layout:
    """Where raw objects and parts lie in the demo's bucket.

    :param stream: name of the stream
    :param raw: the stream's template of raw keys, without the bucket
    :param aggregated: the stream's template of the parts' prefixes, without the bucket
    :param home: returns the prefix of an hour's completion marker
    :param mean_bytes: mean size of a raw object
    :param write: writes the raw objects of an hour; takes the bucket's directory, the hour, the number of the hour
        from 0, and the number of raw objects
    """

    stream: str
    raw: str
    aggregated: str
    home: Callable[[datetime], str]
    mean_bytes: int
    write: Callable[[Path, datetime, int, int], MadeHour]

    @property
    def dag_id(self) -> str:
        """The Dag of the stream."""
        return f"log_rollup_{self.stream}"


def _write_plain(bucket: Path, hour: datetime, _number: int, objects: int) -> MadeHour:
    return write_hour(bucket / f"raw/app/{hour:%Y%m%d/%H}", hour, objects, SEED)


def _write_services(bucket: Path, hour: datetime, number: int, objects: int) -> MadeHour:
    services = [service for service in _SERVICES if number > 0 or service != _NEW_SERVICE]
    groups = []
    for service, count in zip(services, _share(objects, len(services)), strict=True):
        raw = f"raw/{service}/{hour:%Y%m%d/%H}/"
        made = write_hour(bucket / raw, hour, count, f"{SEED}/{service}", _SERVICES[service])
        aggregated = f"aggregated/{service}/{hour:%Y%m%d/%H}/"
        groups.append(MadeGroup({"service": service}, raw, aggregated, count, made.bytes))
    return _hour_of(hour, groups)


def _write_cloudtrail(bucket: Path, hour: datetime, _number: int, objects: int) -> MadeHour:
    places = [(account, region) for account in _ACCOUNTS for region in _REGIONS]
    groups = []
    for (account, region), count in zip(places, _share(objects, len(places)), strict=True):
        folder = f"AWSLogs/{account}/CloudTrail/{region}/{hour:%Y/%m/%d}/"
        raw = f"{folder}{account}_CloudTrail_{region}_{hour:%Y%m%dT%H}"
        aggregated = f"aggregated/cloudtrail/{account}/{region}/dt={hour:%Y-%m-%d}/hour={hour:%H}/"
        size = write_trail(bucket / folder, account, region, hour, count, SEED)
        groups.append(MadeGroup({"account": account, "region": region}, raw, aggregated, count, size))
    return _hour_of(hour, groups)


def _share(objects: int, groups: int) -> list[int]:
    """Divide a number of objects evenly among groups; the first ones get the rest."""
    return [objects // groups + (number < objects % groups) for number in range(groups)]


def _hour_of(hour: datetime, groups: Sequence[MadeGroup]) -> MadeHour:
    """Sum up the groups; those without raw objects do not exist."""
    found = tuple(group for group in groups if group.objects)
    return MadeHour(hour, sum(group.objects for group in found), sum(group.bytes for group in found), found)


LAYOUTS: Mapping[str, Layout] = {
    PLAIN: Layout(
        stream="app",
        raw="raw/app/",
        aggregated="aggregated/app/",
        home=lambda hour: f"aggregated/app/{hour:%Y%m%d/%H}/",
        mean_bytes=MEAN_OBJECT_BYTES,
        write=_write_plain,
    ),
    GROUPS: Layout(
        stream="app",
        raw="raw/{service}/%Y%m%d/%H/",
        aggregated="aggregated/{service}/%Y%m%d/%H/",
        home=lambda hour: f"aggregated/_hours/app/{hour:%Y%m%d/%H}/",
        mean_bytes=MEAN_OBJECT_BYTES,
        write=_write_services,
    ),
    CLOUDTRAIL: Layout(
        stream="cloudtrail",
        raw="AWSLogs/{account}/CloudTrail/{region}/%Y/%m/%d/{account}_CloudTrail_{region}_%Y%m%dT%H",
        aggregated="aggregated/cloudtrail/{account}/{region}/dt=%Y-%m-%d/hour=%H/",
        home=lambda hour: f"aggregated/cloudtrail/_hours/cloudtrail/{hour:%Y%m%d/%H}/",
        mean_bytes=MEAN_DOCUMENT_BYTES,
        write=_write_cloudtrail,
    ),
}
"""The layouts by their name in `--layout` and `make demo LAYOUT=`."""
