"""Starts the server in a process of its own, and controls it through ``/-/``."""

import http.client
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.servers import S3Server, ServerError
from dev.tls import TlsFiles

_ATTEMPTS = 6
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class ObjectState:
    """An object in the server's memory, as it was read or as it is to be written.

    :param etag: without quotes; empty on a write: the server makes one
    :param modified: in epoch seconds; 0 on a write: now
    :param headers: headers of every response to GET and HEAD
    """

    body: bytes
    etag: str = ""
    modified: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = ""


class QuirkServer(S3Server):
    """The server with quirks, in a process of its own.

    :param tunnel_only: use TLS only in tunnels (CONNECT); the server is its own proxy
    """

    def __init__(
        self, state_dir: Path | None = None, tls: TlsFiles | None = None, tunnel_only: bool = False
    ) -> None:
        super().__init__(state_dir, None if tunnel_only else tls)
        self._tunnel_tls = tls if tunnel_only else None

    def command(self) -> list[str]:
        """See :meth:`S3Server.command`."""
        tls = self.tls or self._tunnel_tls
        return [
            sys.executable, "-m", "tests.support.quirks", f"--port={self.port}", f"--secret-key={self.secret_key}",
            *([f"--cert={tls.certificate}", f"--key={tls.key}"] if tls else []),
            *(["--tunnel-only"] if self._tunnel_tls else []),
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """See :meth:`S3Server.environment`."""
        return super().environment() | {"PYTHONPATH": os.fspath(ROOT)}

    def reset(self, quirk: str = "no-quirk", **settings: Any) -> None:
        """Delete everything, then select a quirk."""
        self._ask("POST", "reset")
        self.choose(quirk, **settings)

    def choose(self, quirk: str, **settings: Any) -> None:
        """Select a quirk; objects stay."""
        self._ask("PUT", "quirk", json.dumps({"name": quirk, "settings": settings}).encode())

    def state(self) -> dict[str, Any]:
        """The quirk, the number of connections, and the open uploads."""
        state: dict[str, Any] = json.loads(self._ask("GET", "state"))
        return state

    def requests(self) -> list[dict[str, Any]]:
        """The requests since the last reset; see :class:`tests.support.quirks.admin.Logged`."""
        requests: list[dict[str, Any]] = json.loads(self._ask("GET", "requests"))
        return requests

    def reset_peak(self) -> None:
        """Restart the peak of open connections."""
        self._ask("DELETE", "peak")

    def objects(self, bucket: str) -> dict[str, ObjectState]:
        """All objects of a bucket, from memory."""
        line, _, rest = self._ask("GET", f"objects/{bucket}").partition(b"\n")
        found: dict[str, ObjectState] = {}
        offset = 0
        for entry in json.loads(line):
            body = rest[offset : offset + entry["size"]]
            offset += entry["size"]
            found[entry["key"]] = ObjectState(
                body, entry["etag"], entry["modified"], entry["headers"], entry["storage_class"]
            )
        return found

    def put(self, bucket: str, objects: Mapping[str, bytes | ObjectState]) -> None:
        """Write objects to memory, and create the bucket if it does not exist."""
        bodies: list[bytes] = []
        entries: list[dict[str, Any]] = []
        for key, given in objects.items():
            state = given if isinstance(given, ObjectState) else ObjectState(given)
            bodies.append(state.body)
            entries.append(
                {
                    "key": key, "size": len(state.body), "etag": state.etag, "modified": state.modified,
                    "headers": dict(state.headers), "storage_class": state.storage_class,
                }
            )  # fmt: skip
        self._put(bucket, entries, bodies)

    def remove(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete objects from memory."""
        self._put(bucket, [{"key": key, "deleted": True} for key in keys], [])

    def begin_upload(self, bucket: str, key: str) -> str:
        """Begin a multipart upload, as another program would; returns its id."""
        body = json.dumps({"key": key}).encode()
        upload_id: str = json.loads(self._ask("POST", f"uploads/{bucket}", body))
        return upload_id

    def _put(self, bucket: str, entries: Sequence[Mapping[str, Any]], bodies: Sequence[bytes]) -> None:
        self._ask("PUT", f"objects/{bucket}", json.dumps(entries).encode() + b"\n" + b"".join(bodies))

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Send a request to ``/-/``; again if a quirk closes the connection."""
        for _ in range(_ATTEMPTS - 1):
            with suppress(ServerError):
                return self._ask_once(method, path, body)
        return self._ask_once(method, path, body)

    def _ask_once(self, method: str, path: str, body: bytes) -> bytes:
        connection = self._http(timeout_seconds=30)
        try:
            connection.request(method, f"/-/{path}", body=body, headers={"Connection": "close"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{method} /-/{path}: {error!r}\n{self.log_tail()}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} /-/{path}: {content.decode(errors='replace')}")
        return content
