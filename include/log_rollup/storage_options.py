"""Stream keys about how S3 stores parts: storage class, tags, KMS key."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from include.log_rollup.prices import RULES, BillingRules
from include.log_rollup.units import MIB, format_size

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html, without the classes of directory buckets and
# Outposts.
StorageClass = Literal[
    "STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
]  # fmt: skip
# Objects of these classes cannot be read before they have been retrieved from the archive (RestoreObject).
ARCHIVE_CLASSES = frozenset(name for name, rules in RULES.items() if rules.is_archive)
# In an archive class, writing and retrieving a part costs 5 to 10 times the request of another class.
SMALL_ARCHIVED_PART_BYTES = 32 * MIB

_OTHER_CLASSES = {
    "EXPRESS_ONEZONE": "is the class of directory buckets, which are not supported; leave storage_class out, or "
    "use a general purpose bucket with ONEZONE_IA or INTELLIGENT_TIERING",
    "OUTPOSTS": "is the class of buckets on Outposts, which are not supported; leave storage_class out",
}

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
MAX_TAGS = 10
MAX_TAG_KEY, MAX_TAG_VALUE = 128, 256
_PUNCTUATION_IN_TAGS = "+-=._:/@"
_NOT_IN_TAGS = re.compile(rf"[^\w {re.escape(_PUNCTUATION_IN_TAGS)}]")
# The id of a key, its ARN, or the name or ARN of an alias.
# https://docs.aws.amazon.com/kms/latest/developerguide/concepts.html#key-id
_KMS_KEY = re.compile(r"[A-Za-z0-9:/_-]{1,2048}")


def supported_class(value: Any) -> Any:
    """Explain why some storage classes are not supported.

    :raises ValueError: if it is one of them
    """
    if isinstance(value, str) and value.upper() in _OTHER_CLASSES:
        raise ValueError(f"{value} {_OTHER_CLASSES[value.upper()]}")
    return value


def describe_class(storage_class: str) -> str:
    """What S3 bills for objects of a class, in one line; empty if it has no special terms."""
    terms = RULES.get(storage_class, BillingRules())
    if not terms.minimum_days:
        return ""
    text = (
        f"{storage_class} bills each part for {terms.minimum_days} days at least, even if a rerun replaces it"
    )
    if terms.minimum_bytes:
        text += f", and for at least {format_size(terms.minimum_bytes)}"
    if terms.is_archive:
        text += f", and {_overhead(terms)} more than it has"
    return text


def _overhead(terms: BillingRules) -> str:
    return format_size(terms.overhead_bytes + terms.overhead_standard_bytes)


def class_warnings(
    storage_class: str | None, part_size: int, *, has_groups: bool, late_merge: bool
) -> Sequence[str]:
    """What in a stream does not go with the minimum duration and size of its storage class.

    :param part_size: of the stream, in bytes
    :param has_groups: whether its parts are divided into groups
    :param late_merge: whether small late parts are merged
    """
    terms = RULES.get(storage_class or "", BillingRules())
    if not terms.minimum_days:
        return ()
    found = []
    if late_merge:
        found.append(
            f"late_merge: storage_class {storage_class} bills each part for at least {terms.minimum_days} days, "
            f"also those that are merged into another one before; leave 'late_merge' out, or move the parts to "
            f"this class later by a lifecycle rule"
        )
    if has_groups:
        least = (
            f"bills each part as at least {format_size(terms.minimum_bytes)}"
            if terms.minimum_bytes
            else f"adds {_overhead(terms)} to each part"
        )
        found.append(
            f"aggregated: each group has at least one part an hour, and storage_class {storage_class} {least}; "
            f"with many small groups, that costs more than a class without it"
        )
    if terms.is_archive and part_size < SMALL_ARCHIVED_PART_BYTES:
        found.append(
            f"part_size: {format_size(part_size)} is small for storage_class {storage_class}, in which each part "
            f"costs a dearer request and {_overhead(terms)} of storage; give at least "
            f"{format_size(SMALL_ARCHIVED_PART_BYTES)}"
        )
    return found


def check_tags(tags: Any) -> Mapping[str, str]:
    """Check tags against the limits of S3.

    :returns: the tags in the order of their keys
    :raises ValueError: if S3 would refuse them
    """
    if not isinstance(tags, Mapping):
        raise ValueError(f"{tags!r} is not a mapping; write it like {{team: search, cost-center: '42'}}")
    if len(tags) > MAX_TAGS:
        raise ValueError(f"there are {len(tags)} tags; S3 allows {MAX_TAGS} for an object")
    for key, value in tags.items():
        for text in (key, value):
            if not isinstance(text, str):
                raise ValueError(f"{text!r} is not text; put it in quotes")
        if not 1 <= len(key) <= MAX_TAG_KEY:
            raise ValueError(f"the key {key!r} has {len(key)} characters; S3 allows 1 to {MAX_TAG_KEY}")
        if len(value) > MAX_TAG_VALUE:
            raise ValueError(
                f"the value of {key!r} has {len(value)} characters; S3 allows up to {MAX_TAG_VALUE}"
            )
        if key.lower().startswith("aws:"):
            raise ValueError(f"the key {key!r} begins with 'aws:', which AWS reserves; choose another one")
        for text in (key, value):
            wrong = _NOT_IN_TAGS.search(text)
            if wrong:
                raise ValueError(
                    f"{text!r} contains {wrong[0]!r}; S3 allows letters, digits, spaces and "
                    f"{' '.join(_PUNCTUATION_IN_TAGS)} in tags"
                )
    return dict(sorted(tags.items()))


def check_kms_key(key: Any) -> Any:
    """Check that a text can name a KMS key.

    :raises ValueError: if it cannot
    """
    if isinstance(key, str) and not _KMS_KEY.fullmatch(key):
        raise ValueError(
            f"{key!r} does not name a KMS key; give its ARN, like "
            f"arn:aws:kms:eu-central-1:123456789012:key/KEY-ID"
        )
    return key
