"""Pipelines on real servers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dev.servers import S3Server
from log_rollup_plugin.listener import create_missing_pools
from tests.integration.fork_server import ForkServer
from tests.support.hour_on_server import Pipeline, stream_on

PipelineFactory = Callable[..., Pipeline]


@pytest.fixture
def pipeline_on(monkeypatch: pytest.MonkeyPatch) -> PipelineFactory:
    """Makes pipelines: ``pipeline_on(server, bucket, endpoint=None, **settings of the stream)``."""

    def make(server: S3Server, bucket: str, endpoint: str | None = None, **settings: Any) -> Pipeline:
        connection = server.airflow_connection_json(endpoint)
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", connection)
        return Pipeline(stream_on(bucket, **settings), server.client(), bucket)

    return make


@pytest.fixture
def pipeline(s3_server: S3Server, bucket: str, pipeline_on: PipelineFactory) -> Pipeline:
    """A pipeline on each server in turn."""
    return pipeline_on(s3_server, bucket)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts processes that roll hours up."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def pool(database: None) -> None:
    """The pool in the metadata database, which a scheduler creates when it starts."""
    create_missing_pools()
