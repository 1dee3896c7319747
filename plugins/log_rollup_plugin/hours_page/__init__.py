"""Registration of the page Hours in Airflow's UI; it imports neither Airflow nor FastAPI."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from log_rollup_plugin.urls import HOURS_URL_PREFIX, HOURS_VIEW_ROUTE

Message = MutableMapping[str, Any]
AsgiApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Any]


class LazyApp:
    """An ASGI app that is created at its first request.

    Every Airflow process loads the plugins, and so does each task. Importing FastAPI and Airflow's API would cost
    it more than a second of CPU time, but only the api-server needs them.

    :param create: creates the app
    """

    def __init__(self, create: Callable[[], AsgiApp]) -> None:
        self._create = create
        self._creating = asyncio.Lock()
        self._app: AsgiApp | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Handle a request; the first one creates the app."""
        if self._app is None:
            async with self._creating:
                self._app = self._app or await asyncio.to_thread(self._create)
        assert self._app is not None
        await self._app(scope, receive, send)


def _create() -> AsgiApp:
    from log_rollup_plugin.hours_page.app import create_app

    return create_app()


FASTAPI_APP: dict[str, Any] = {
    "app": LazyApp(_create),
    "url_prefix": HOURS_URL_PREFIX,
    "name": "Log Rollup: Hours",
}
# URLs without a leading slash are relative to Airflow's base URL, which may have a path.
EXTERNAL_VIEW: dict[str, Any] = {
    "name": "Hours",
    "href": f"{HOURS_URL_PREFIX[1:]}/",
    "destination": "nav",
    "url_route": HOURS_VIEW_ROUTE,
    "icon": f"{HOURS_URL_PREFIX[1:]}/static/icon.svg",
    "icon_dark_mode": f"{HOURS_URL_PREFIX[1:]}/static/icon-dark.svg",
    "nav_top_level": True,
}
