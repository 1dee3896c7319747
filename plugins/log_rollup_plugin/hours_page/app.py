"""The ASGI app of the page Hours: its static files, its API, and the headers of all answers."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from log_rollup_plugin.hours_page.api import HoursApi
from log_rollup_plugin.hours_page.overview_api import OverviewApi

STATIC = Path(__file__).parent / "static"
_HEADERS = {
    # Airflow's page may frame this one; all else must come from this page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
_LOG_IN = """<!doctype html><meta charset="utf-8"><title>Hours</title>
<p>You are not logged in. <a href="../../api/v2/auth/login">Log in to Airflow</a>, then open this page again.</p>
"""


def create_app(hours: HoursApi | None = None, overview: OverviewApi | None = None) -> FastAPI:
    """Create the app, to be mounted in Airflow's.

    :param hours: the API of a stream; tests give their own
    :param overview: the API of all streams; tests give their own
    """
    app = FastAPI(title="Log Rollup: Hours", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router((hours or HoursApi()).router)
    app.include_router((overview or OverviewApi()).router)
    app.add_api_route("/", _page, response_class=FileResponse)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(StarletteHTTPException, _handle_error)
    app.middleware("http")(_add_headers)
    return app


def _page(user: GetUserDep) -> FileResponse:
    """The page's HTML, which is the same for all users who are logged in."""
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


async def _handle_error(request: Request, error: Exception) -> Response:
    """Answer errors as FastAPI does, but show a link to the login to users who are not logged in."""
    assert isinstance(error, StarletteHTTPException)
    is_page = request.url.path == request.scope.get("root_path", "") + "/"
    if error.status_code == 401 and is_page:
        return HTMLResponse(_LOG_IN, 401)
    return await http_exception_handler(request, error)


async def _add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers[name] = value
    # no-cache, so that a new version of the page never runs with scripts of an old one.
    response.headers.setdefault("Cache-Control", "no-cache" if "/static/" in request.url.path else "no-store")
    return response
