"""Requests the overview of all streams from the page's app, and measures it.

Run as ``python -m benchmarks.clients.overview_page ROUNDS``, with an empty AIRFLOW_HOME and a streams file. The
app runs in this process, as in Airflow's api-server; the CPU time of the client counts too. Writes one JSON object
to stdout.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from airflow.api_fastapi.app import get_auth_manager, init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from fastapi import FastAPI
from fastapi.testclient import TestClient

from benchmarks.clients.job import peak_rss_bytes
from include.log_rollup.streams import load_streams
from log_rollup_plugin.hours_page.app import create_app
from log_rollup_plugin.runs import dag_id_of
from log_rollup_plugin.urls import HOURS_URL_PREFIX

_BUNDLE = "benchmark"
_POLL_SECONDS = 0.2


def main() -> None:
    """Measure the first requests, until all hours have been read, and then ``ROUNDS`` requests from the cache."""
    rounds = int(sys.argv[1])
    initdb()
    _add_dags()
    with TestClient(_app()) as client:
        client.cookies.set(
            "_token", get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="admin", role="ADMIN"))
        )

        def read() -> Any:
            answer = client.get(f"{HOURS_URL_PREFIX}/api/overview")
            answer.raise_for_status()
            return answer

        def read_all() -> Any:
            while (answer := read()).json()["bucket"]["pending"]:
                time.sleep(_POLL_SECONDS)
            return answer

        # The first answer does not wait for all hours.
        first = _measured(read)
        rest = _measured(read_all)
        warm = [_measured(read) for _ in range(rounds)]
        answer = read()
    rows = answer.json()["streams"]
    complete = sum(state == "complete" for row in rows for state in row["states"])
    result = {
        "streams": len(rows),
        "complete_hours": complete,
        "answer_kib": round(len(answer.content) / 1024),
        "first": first,
        "all hours": {name: first[name] + rest[name] for name in first},
        "warm": {name: statistics.median(one[name] for one in warm) for name in first},
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(result))


def _measured(ask: Callable[[], Any]) -> dict[str, float]:
    began, cpu = time.monotonic(), time.process_time()
    ask()
    return {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}


def _add_dags() -> None:
    with create_session() as session:
        session.add(DagBundleModel(name=_BUNDLE))
        session.flush()
        for stream in load_streams():
            session.add(DagModel(dag_id=dag_id_of(stream), bundle_name=_BUNDLE, is_paused=False))


def _app() -> FastAPI:
    airflow = FastAPI()
    init_auth_manager(airflow)
    airflow.mount(HOURS_URL_PREFIX, create_app())
    return airflow


if __name__ == "__main__":
    main()
