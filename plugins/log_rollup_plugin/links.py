"""Where an operator is sent: from a task to its hour and to what lies in the bucket, from a message to the run."""

from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from include.log_rollup.hour.layout import format_hour
from include.log_rollup.storage.protocol import Location
from log_rollup_plugin.hours_page import URL_PREFIX, VIEW_ROUTE

if TYPE_CHECKING:
    from log_rollup_plugin.s3.hook import PooledS3Hook


def hour_page(stream: str, hour: datetime) -> str:
    """The page of an hour among the hours of its stream."""
    asked = urlencode({"stream": stream, "hour": format_hour(hour)}, safe=":")
    return f"{_base_url()}/plugin/{VIEW_ROUTE}{URL_PREFIX}/?{asked}"


def run_page(dag_id: str, run_id: str) -> str:
    """The grid of a run."""
    return f"{_base_url()}/dags/{quote(dag_id)}/runs/{quote(run_id)}"


def object_page(hook: "PooledS3Hook", target: Location) -> str:
    """An object in the AWS console; for another S3 server its own address, path-style."""
    meta = hook.client.meta
    return console_page(meta, target) or f"{meta.endpoint_url}/{target.bucket}/{quote(target.key)}"


def console_page(meta: Any, place: Location) -> str | None:
    """An object, or a prefix that ends with a slash, in the AWS console; None for a server that is not AWS.

    :param meta: of a boto3 client
    """
    # Who tells of a deadline has no use for the provider, and would hold up a triggerer with its import.
    from airflow.providers.amazon.aws.links.base_aws import BASE_AWS_CONSOLE_LINK, BaseAwsLink

    host = urlsplit(meta.endpoint_url).hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return None
    console = BASE_AWS_CONSOLE_LINK.format(aws_domain=BaseAwsLink.get_aws_domain(meta.partition))
    kind = "buckets" if place.key.endswith("/") else "object"
    return f"{console}/s3/{kind}/{place.bucket}?region={meta.region_name}&prefix={quote(place.key)}"


def _base_url() -> str:
    # Without it, Airflow takes itself to be at the root of whatever host the browser asks.
    return str(conf.get("api", "base_url", fallback="")).rstrip("/")


class _NotedLink(BaseOperatorLink):
    """A link that its operator has noted while it ran; Airflow asks for it when the task has ended."""

    noted: str

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The URL, or nothing where the task failed before there was any."""
        return str(getattr(operator, self.noted, ""))


class HourLink(_NotedLink):
    """To the page of the hour."""

    name = "Hour"
    noted = "hour_page"


class ManifestLink(_NotedLink):
    """To the hour's ``_manifest.jsonl.gz``."""

    name = "Manifest"
    noted = "manifest_page"


class MarkerLink(_NotedLink):
    """To the hour's ``_SUCCESS``."""

    name = "_SUCCESS"
    noted = "marker_page"
