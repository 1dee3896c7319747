"""Addresses in the AWS console."""

from urllib.parse import urlencode, urlsplit

from include.log_rollup.store import Location

# By the beginning of the region: https://docs.aws.amazon.com/general/latest/gr/rande.html
_HOSTS = {"cn-": "console.amazonaws.cn", "us-gov-": "console.amazonaws-us-gov.com"}
_ENDPOINTS = (".amazonaws.com", ".amazonaws.com.cn")


def console_url(endpoint_url: str, region: str, place: Location) -> str | None:
    """Where the AWS console shows a prefix; None for a server that is not AWS.

    :param endpoint_url: where boto3 sends its requests
    """
    if not (urlsplit(endpoint_url).hostname or "").endswith(_ENDPOINTS):
        return None
    host = next(
        (name for start, name in _HOSTS.items() if region.startswith(start)), "console.aws.amazon.com"
    )
    asked = urlencode({"region": region, "prefix": place.key, "showversions": "false"})
    return f"https://{host}/s3/buckets/{place.bucket}?{asked}"
