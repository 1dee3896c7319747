"""Pipelines on real servers, and the command log-rollup."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.servers import S3Server
from log_rollup_plugin.cli.main import main
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


@dataclass(frozen=True)
class CommandResult:
    """The outcome of one call of the command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


RunCommand = Callable[..., CommandResult]
UseStreams = Callable[[Mapping[str, Any]], None]


@pytest.fixture
def command(capfdbinary: pytest.CaptureFixture[bytes], pool: None) -> RunCommand:
    """Calls the command in this process, which has imported Airflow, without log messages."""

    def call(*arguments: str) -> CommandResult:
        capfdbinary.readouterr()
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            logging.disable(before)
        out, err = capfdbinary.readouterr()
        return CommandResult(code, out, err.decode())

    return call


@pytest.fixture
def use_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UseStreams:
    """Writes a streams file with one stream."""

    def write(settings: Mapping[str, Any]) -> None:
        path = tmp_path / "streams.yaml"
        path.write_text(yaml.safe_dump({"streams": [dict(settings)]}))
        monkeypatch.setenv("LOG_ROLLUP_STREAMS", str(path))

    return write
