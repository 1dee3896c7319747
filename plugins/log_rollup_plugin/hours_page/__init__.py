"""The page Hours of Airflow's UI: what it is registered with, and nothing that costs an import."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
AsgiApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Any]

URL_PREFIX = "/log-rollup/hours"
# Of the frame in Airflow's UI, which takes the rest of its address over from the page.
VIEW_ROUTE = "log-rollup-hours"


class LazyApp:
    """An ASGI app that is made at its first request.

    Every Airflow process loads the plugins, each task too; FastAPI and Airflow's API would cost it more than a
    second of CPU time, and only the api-server needs them.

    :param make: makes the app
    """

    def __init__(self, make: Callable[[], AsgiApp]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._app: AsgiApp | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Hand the request on."""
        if self._app is None:
            async with self._making:
                self._app = self._app or await asyncio.to_thread(self._make)
        assert self._app is not None
        await self._app(scope, receive, send)


def _make() -> AsgiApp:
    from log_rollup_plugin.hours_page.api import create_app

    return create_app()


FASTAPI_APP: dict[str, Any] = {"app": LazyApp(_make), "url_prefix": URL_PREFIX, "name": "Log Rollup: Hours"}
# Without a slash before it, so that it lies below the base URL of an Airflow that has a path of its own.
EXTERNAL_VIEW: dict[str, Any] = {
    "name": "Hours",
    "href": f"{URL_PREFIX[1:]}/",
    "destination": "nav",
    "url_route": VIEW_ROUTE,
    "icon": f"{URL_PREFIX[1:]}/static/icon.svg",
    "icon_dark_mode": f"{URL_PREFIX[1:]}/static/icon-dark.svg",
    "nav_top_level": True,
}
