"""Writes the lifecycle rule of a storage plan, as JSON for S3 and as Terraform.

The rule moves parts only. Manifests and completion markers have no tags, so a filter by the tags of the parts
leaves them in the bucket's standard class, where they can be read at once.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from include.log_rollup.prices import SMALL_BYTES
from include.log_rollup.queries.cost import Step
from include.log_rollup.streams import Stream

DEFAULT_TAGS: Mapping[str, str] = {"log-rollup": "part"}
"""Proposed for a stream without tags: without any, no rule can tell parts from records."""


def part_tags(stream: Stream) -> Mapping[str, str]:
    """The tags by which a rule finds the parts of a stream: its own, or the proposed one."""
    return stream.tags or DEFAULT_TAGS


def lifecycle_rules(stream: Stream, steps: Sequence[Step]) -> dict[str, Any]:
    """The argument ``LifecycleConfiguration`` of S3's PutBucketLifecycleConfiguration, for one stream.

    :param steps: of a plan; the first is the class in which parts are written, so it needs no transition
    :returns: without rules if there is nothing to move
    """
    if len(steps) < 2:
        return {"Rules": []}
    prefix = stream.aggregated.literal
    filters: dict[str, Any] = {
        **({"Prefix": prefix} if prefix else {}),
        "Tags": [{"Key": key, "Value": value} for key, value in part_tags(stream).items()],
        "ObjectSizeGreaterThan": SMALL_BYTES - 1,
    }
    transitions = [
        {"Days": math.ceil(step.from_day), "StorageClass": step.storage_class} for step in steps[1:]
    ]
    return {
        "Rules": [
            {
                "ID": f"log-rollup-{stream.name}-parts",
                "Status": "Enabled",
                "Filter": {"And": filters},
                "Transitions": transitions,
            }
        ]
    }


def terraform(bucket: str, configuration: Mapping[str, Any]) -> list[str]:
    """The same rules as a resource of Terraform's provider for AWS.

    :param configuration: rules with filters, transitions, and what else docs/RETENTION.md proposes
    """
    lines = [
        'resource "aws_s3_bucket_lifecycle_configuration" "log_rollup" {',
        f"  bucket = {_hcl(bucket)}",
    ]
    for rule in configuration["Rules"]:
        lines += [
            "",
            "  rule {",
            f"    id     = {_hcl(rule['ID'])}",
            f"    status = {_hcl(rule['Status'])}",
            "",
        ]
        lines += _filter_lines(rule["Filter"])
        for transition in rule.get("Transitions", ()):
            values = {"days": transition["Days"], "storage_class": _hcl(transition["StorageClass"])}
            lines += _block("transition", values)
        for block, (key, name) in _ACTIONS.items():
            if block in rule:
                value = rule[block][key]
                lines += _block(_snake(block), {name: "true" if value is True else value})
        lines.append("  }")
    return [*lines, "}"]


# Actions with one value: its key in the JSON, and its name in Terraform.
_ACTIONS = {
    "Expiration": ("ExpiredObjectDeleteMarker", "expired_object_delete_marker"),
    "NoncurrentVersionExpiration": ("NoncurrentDays", "noncurrent_days"),
    "AbortIncompleteMultipartUpload": ("DaysAfterInitiation", "days_after_initiation"),
}


def _filter_lines(found: Mapping[str, Any]) -> list[str]:
    if "And" not in found:
        return ["    filter {", f"      prefix = {_hcl(found['Prefix'])}", "    }"]
    filters = found["And"]
    lines = ["    filter {", "      and {"]
    if "Prefix" in filters:
        lines.append(f"        prefix                   = {_hcl(filters['Prefix'])}")
    lines.append(f"        object_size_greater_than = {filters['ObjectSizeGreaterThan']}")
    lines.append("        tags = {")
    lines += [f"          {_hcl(tag['Key'])} = {_hcl(tag['Value'])}" for tag in filters["Tags"]]
    return [*lines, "        }", "      }", "    }"]


def _block(name: str, values: Mapping[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [
        "",
        f"    {name} {{",
        *(f"      {key:<{width}} = {value}" for key, value in values.items()),
        "    }",
    ]


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _hcl(text: str) -> str:
    """A text as a literal of HCL, in which ``${`` and ``%{`` would begin a template."""
    literal = json.dumps(text, ensure_ascii=False)
    return literal.replace("${", "$${").replace("%{", "%%{")
