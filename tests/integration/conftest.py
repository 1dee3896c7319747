"""Pipelines on real servers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook

from dev.servers import S3Server
from log_rollup_plugin.listener import create_missing_pools
from tests.support.hour_on_server import Pipeline, stream_on

PipelineFactory = Callable[..., Pipeline]


@pytest.fixture(scope="session", autouse=True)
def no_caller_lookup() -> Iterator[None]:
    """Spare each client the search of the stack for the name that the provider puts into the user agent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AwsGenericHook, "_get_caller", lambda *_: "test")
        yield


@pytest.fixture
def pipeline_on(monkeypatch: pytest.MonkeyPatch) -> PipelineFactory:
    """Makes a pipeline: ``pipeline_on(server, bucket, endpoint=None, **settings of the stream)``."""

    def make(server: S3Server, bucket: str, endpoint: str | None = None, **settings: Any) -> Pipeline:
        connection = server.airflow_connection_json(endpoint)
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
        return Pipeline(stream_on(bucket, **settings), server.client(), bucket)

    return make


@pytest.fixture
def pipeline(s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory) -> Pipeline:
    """A pipeline on each server in turn."""
    return pipeline_on(s3_server, bucket)


@pytest.fixture
def pool(database: None) -> None:
    """The pool, in the metadata database, as a scheduler makes it at its start."""
    create_missing_pools()
