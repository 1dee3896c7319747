"""Known producers of log objects, recognised by their keys; docs/SOURCES.md describes them.

Keys of AWS services are recognised by the whole of their path, so that account and region become captures even
where the sample has only one. Others are recognised by the form of the object's name.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from include.log_rollup.hour.template import RawTemplate

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_HIVE_DAY = "year=%Y/month=%m/day=%d"


@dataclass(frozen=True)
class Producer:
    """A producer, or one of its layouts.

    :param anchor: of its section in docs/SOURCES.md
    :param stream: name for a stream of it
    :param quiet_period: that the section gives
    :param looks: expression that its keys contain
    :param tail: template of its keys from a folder on; empty if only ``looks`` counts
    :param before: expression with which the text before ``tail`` ends
    :param captures: names for captures before the date, if there is no ``tail``
    :param has_newline: False if its objects are known to lack a newline at their end
    """

    name: str
    anchor: str
    stream: str
    quiet_period: timedelta
    looks: str
    tail: str = ""
    before: str = ""
    captures: tuple[str, ...] = ()
    has_newline: bool = True

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The compiled ``looks``."""
        return re.compile(self.looks)

    @cached_property
    def _before(self) -> re.Pattern[str]:
        return re.compile(rf"(?:^|.*/)(?:{self.before})$", re.DOTALL)

    @cached_property
    def _template(self) -> RawTemplate:
        return RawTemplate.parse(f"s3://bucket/{self.tail}")

    def prefix_of(self, key: str) -> str | None:
        """The text of a key before ``tail``; None if the key is not of this layout."""
        if not self.pattern.search(key):
            return None
        starts = [0, *(match.end() for match in re.finditer("/", key))]
        for start in starts:
            if self._before.fullmatch(key[:start]) and self._template.match(key[start:]):
                return key[:start]
        return None


def _minutes(count: int) -> timedelta:
    return timedelta(minutes=count)


_AWS = r"AWSLogs/(?:o-[a-z0-9]+/)?"
_ELB = "{account}/elasticloadbalancing/{region}/%Y/%m/%d/{account}_elasticloadbalancing_{region}_"
ALB = Producer(
    "Application Load Balancer", "load-balancers", "alb", _minutes(15), r"_elasticloadbalancing_[^_/]+_app\.",
    _ELB + "app.{balancer}_%Y%m%dT%H", _AWS,
)  # fmt: skip
NLB = Producer(
    "Network Load Balancer", "load-balancers", "nlb", _minutes(15), r"_elasticloadbalancing_[^_/]+_net\.",
    _ELB + "net.{balancer}_%Y%m%dT%H", _AWS,
)  # fmt: skip
CLB = Producer(
    "Classic Load Balancer", "load-balancers", "clb", _minutes(30),
    r"_elasticloadbalancing_[^_/]+_(?!app\.|net\.)", _ELB + "{balancer}_%Y%m%dT%H", _AWS,
)  # fmt: skip
# Several kinds of load balancers below one prefix: their templates would overlap.
BALANCERS = Producer(
    "load balancers of several kinds", "load-balancers", "load_balancers", _minutes(30),
    "_elasticloadbalancing_", _ELB + "{balancer}_%Y%m%dT%H", _AWS,
)  # fmt: skip

WITH_PATH = (
    Producer(
        "AWS CloudTrail", "cloudtrail", "cloudtrail", _minutes(15), "/CloudTrail/",
        "{account}/CloudTrail/{region}/%Y/%m/%d/{account}_CloudTrail_{region}_%Y%m%dT%H", _AWS,
        has_newline=False,
    ),
    ALB,
    NLB,
    CLB,
    Producer(
        "VPC flow logs", "vpc-flow-logs", "vpc", _minutes(20), "/vpcflowlogs/",
        "{account}/vpcflowlogs/{region}/%Y/%m/%d/%H/", _AWS,
    ),
    Producer(
        "VPC flow logs", "vpc-flow-logs", "vpc", _minutes(20), "/vpcflowlogs/",
        "{account}/vpcflowlogs/{region}/%Y/%m/%d/{account}_vpcflowlogs_{region}_{flow_log}_%Y%m%dT%H", _AWS,
    ),
    Producer(
        "VPC flow logs", "vpc-flow-logs", "vpc_hive", _minutes(20), "/aws-service=vpcflowlogs/",
        f"aws-account-id={{account}}/aws-service=vpcflowlogs/aws-region={{region}}/{_HIVE_DAY}/hour=%H/", _AWS,
    ),
    Producer(
        "VPC flow logs", "vpc-flow-logs", "vpc_hive", _minutes(20), "/aws-service=vpcflowlogs/",
        f"aws-account-id={{account}}/aws-service=vpcflowlogs/aws-region={{region}}/{_HIVE_DAY}/"
        "{account}_vpcflowlogs_{region}_{flow_log}_%Y%m%dT%H", _AWS,
    ),
    Producer(
        "CloudFront", "cloudfront", "cloudfront_v2", timedelta(hours=2), "/CloudFront/",
        "{account}/CloudFront/{distribution}/%Y/%m/%d/%H/", _AWS,
    ),
    *(
        Producer(
            "CloudFront", "cloudfront", "cloudfront_hive", timedelta(hours=2), "/CloudFront/",
            f"aws-account-id={{account}}/CloudFront/{name}={{distribution}}/{_HIVE_DAY}/hour=%H/", _AWS,
        )
        for name in ("DistributionId", "distributionid")
    ),
    Producer(
        "S3 server access logs", "s3-server-access-logs", "s3_access_days", _minutes(15),
        r"(?:^|/)\d{12}/[a-z0-9-]+/[^/]+/\d{4}/\d\d/\d\d/\d{4}(?:-\d\d){5}-[0-9A-F]{8,}$",
        "{account}/{region}/{bucket}/%Y/%m/%d/%Y-%m-%d-%H-",
    ),
    Producer(
        "AWS WAF", "waf", "waf", _minutes(20), "/WAFLogs/", "{account}/WAFLogs/{region}/{acl}/%Y/%m/%d/%H/",
        _AWS,
    ),
    Producer(
        "Route 53 Resolver", "route-53-resolver", "resolver", _minutes(30), "/vpcdnsquerylogs/",
        "{account}/vpcdnsquerylogs/{vpc}/%Y/%m/%d/{vpc}_vpcdnsquerylogs_{owner}_%Y%m%dT%H", _AWS,
    ),
)  # fmt: skip

BY_NAME = (
    Producer(
        "Amazon Data Firehose", "amazon-data-firehose", "firehose", _minutes(15),
        r"(?:^|/)[^/]+-\d+-\d{4}(?:-\d\d){5}-[0-9A-Za-z-]{8,}(?:\.\w+)*$",
    ),
    Producer(
        "Vector", "vector", "vector", _minutes(15), rf"(?:^|/)\d{{10}}-{_UUID}\.log(?:\.gz|\.zst)?$",
    ),
    Producer(
        "Fluent Bit", "fluent-bit", "fluent_bit", _minutes(20),
        r"(?:^|/)\d{4}/\d\d/\d\d/\d\d/\d\d/\d\d/[0-9A-Za-z]{8}(?:\.\w+)*$|"
        r"/\d\d_\d\d_\d\d(?:\.\w+)?-(?:object)?[0-9A-Za-z]{8}$", captures=("stage", "service"),
    ),
    Producer(
        "fluentd", "fluentd", "fluentd", _minutes(20),
        r"(?:^|/)\d{8}-?\d{2,4}_(?:[0-9a-f-]{20,}_)?\d+\.(?:gz|txt|json|zst|xz)$|"
        r"/ts=\d{8}-?\d\d/[^/]+_\d+\.(?:gz|txt|json|zst|xz)$", captures=("tag",),
    ),
    Producer(
        "OpenTelemetry Collector", "opentelemetry-collector", "otel", _minutes(10),
        r"year=\d{4}/month=\d\d/day=\d\d/hour=\d\d/minute=\d\d/", captures=("signal",), has_newline=False,
    ),
    Producer(
        "Kafka Connect", "kafka-connect", "kafka", _minutes(20), r"(?:^|/)[^/]+\+\d+\+\d+\.\w+",
        captures=("topic",),
    ),
    Producer(
        "Logstash", "logstash", "logstash", _minutes(30),
        rf"(?:^|/)ls\.s3\.{_UUID}\.\d{{4}}-\d\d-\d\dT\d\d\.\d\d\.",
    ),
    Producer(
        "CloudFront", "cloudfront", "cloudfront", timedelta(hours=2),
        r"(?:^|/)[A-Z0-9]{12,16}\.\d{4}-\d\d-\d\d-\d\d\.[0-9A-Za-z]{6,}\.gz$",
    ),
    Producer(
        "S3 server access logs", "s3-server-access-logs", "s3_access", _minutes(15),
        r"(?:^|/)\d{4}(?:-\d\d){5}-[0-9A-F]{16}$",
    ),
)  # fmt: skip
