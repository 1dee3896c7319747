"""Runs Airflow's API server, faster and for SQLite: ``python -m dev.stack.api_server [ARGUMENT ...]``."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from typing import Any


def keep_newest_version() -> None:
    """Drop the older versions of the execution API, and the routes that only they have.

    The first request of a task creates the routes of all versions, which takes five seconds of CPU time. All tasks
    of the stack belong to the same installation, and request the newest version.
    """
    from airflow.api_fastapi.execution_api import routes, versions
    from cadwyn import HeadVersion, Version, VersionBundle
    from cadwyn.route_generation import _DELETED_ROUTE_TAG

    versions.bundle = VersionBundle(HeadVersion(), Version(versions.bundle.versions[0].value))
    router = routes.execution_api_router
    router.routes[:] = [
        route for route in router.routes if _DELETED_ROUTE_TAG not in getattr(route, "tags", ())
    ]


class _AuditSession:
    """Takes the place of a session, and keeps what is added."""

    def __init__(self) -> None:
        self.added: list[Any] = []

    def add(self, entry: Any) -> None:
        self.added.append(entry)

    def commit(self) -> None:
        pass


def write_audit_log_in_threads() -> None:
    """Keep the event loop free while the audit log of a request is written.

    Airflow 3.3.2 writes it on the event loop. If another request has changed SQLite and waits for the loop to
    commit, neither continues until SQLite's timeout.
    """
    from airflow.api_fastapi.logging import decorators
    from starlette.concurrency import run_in_threadpool

    action_logging = decorators.action_logging

    def store(session: Any, entries: list[Any]) -> None:
        session.add_all(entries)
        session.commit()

    def in_threads(event: str | None = None) -> Callable[..., Any]:
        log_action = action_logging(event)

        @functools.wraps(log_action)
        async def log(request: Any, session: Any, user: Any) -> None:
            audit = _AuditSession()
            await log_action(request, audit, user)
            if audit.added:
                await run_in_threadpool(store, session, audit.added)

        return log

    decorators.action_logging = in_threads


def main() -> None:
    """Start the server."""
    # Each collection during the imports visits all classes and functions: together they would take two seconds.
    gc.set_threshold(50_000)
    # First: it adds the plugins folder to sys.path.
    import airflow.settings  # noqa: F401
    from airflow.__main__ import main as airflow_main

    # Before the modules of routes import what it replaces.
    write_audit_log_in_threads()
    keep_newest_version()
    sys.argv = ["airflow", "api-server", *sys.argv[1:]]
    airflow_main()


if __name__ == "__main__":
    main()
