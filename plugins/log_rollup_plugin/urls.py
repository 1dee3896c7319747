"""URLs of the page Hours, of a run in Airflow's UI, and of an object in the AWS console."""

from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from include.log_rollup.hour.layout import format_hour
from include.log_rollup.storage.protocol import Location

if TYPE_CHECKING:
    from log_rollup_plugin.s3.stream_store import StreamStore

HOURS_URL_PREFIX = "/log-rollup/hours"
"""Where the api-server serves the page Hours."""
HOURS_VIEW_ROUTE = "log-rollup-hours"
"""Route of Airflow's frame around the page. The rest of the frame's URL is the page's own URL."""


def hour_page(stream: str, hour: datetime) -> str:
    """The URL of an hour on the page Hours, within Airflow's frame."""
    query = urlencode({"stream": stream, "hour": format_hour(hour)}, safe=":")
    return f"{_base_url()}/plugin/{HOURS_VIEW_ROUTE}{HOURS_URL_PREFIX}/?{query}"


def run_page(dag_id: str, run_id: str) -> str:
    """The URL of a run in Airflow's grid."""
    return f"{_base_url()}/dags/{quote(dag_id)}/runs/{quote(run_id)}"


def object_page(store: "StreamStore", target: Location) -> str:
    """The URL of an object in the AWS console; for another S3 server its own URL, path-style."""
    meta = store.meta(target)
    return console_page(meta, target) or f"{meta.endpoint_url}/{target.bucket}/{quote(target.key)}"


def console_page(meta: Any, place: Location) -> str | None:
    """The URL in the AWS console of an object, of a prefix that ends with a slash, or of a whole bucket.

    :param meta: of a boto3 client
    :returns: None if the client's server is not AWS
    """
    # Imported late: a triggerer that sends deadline messages imports this module, but not the amazon provider.
    from airflow.providers.amazon.aws.links.base_aws import BASE_AWS_CONSOLE_LINK, BaseAwsLink

    host = urlsplit(meta.endpoint_url).hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return None
    console = BASE_AWS_CONSOLE_LINK.format(aws_domain=BaseAwsLink.get_aws_domain(meta.partition))
    kind = "object" if place.key and not place.key.endswith("/") else "buckets"
    return f"{console}/s3/{kind}/{place.bucket}?region={meta.region_name}&prefix={quote(place.key)}"


def _base_url() -> str:
    # Imported late: every Airflow process imports this module with the plugin.
    from airflow.sdk.configuration import conf

    # If it is not set, Airflow assumes the root of the host that the browser uses.
    return str(conf.get("api", "base_url", fallback="")).rstrip("/")
