"""Starts the server as a process of its own and speaks to its ``/-/``."""

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

ATTEMPTS = 6
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it lies in the server's memory.

    :param etag: without quotes; empty, for one that is written, to have the server make it
    :param modified: in epoch seconds; 0, for one that is written, for now
    :param headers: answered with every GET and HEAD
    """

    body: bytes
    etag: str = ""
    modified: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = ""


class QuirkServer(S3Server):
    """The server with quirks, in a process of its own.

    :param tunnel_only: speak TLS only behind a CONNECT, as its own proxy
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
        """Forget everything, then choose a quirk."""
        self._ask("POST", "reset")
        self.choose(quirk, **settings)

    def choose(self, quirk: str, **settings: Any) -> None:
        """Choose a quirk; objects stay."""
        self._ask("PUT", "quirk", json.dumps({"name": quirk, "settings": settings}).encode())

    def state(self) -> dict[str, Any]:
        """Quirk, connections and uploads."""
        found: dict[str, Any] = json.loads(self._ask("GET", "state"))
        return found

    def requests(self) -> list[dict[str, Any]]:
        """What was answered since the last reset; see :class:`tests.support.quirks.admin.Logged`."""
        found: list[dict[str, Any]] = json.loads(self._ask("GET", "requests"))
        return found

    def forget_requests(self) -> None:
        """Begin the log again."""
        self._ask("DELETE", "requests")

    def reset_peak(self) -> None:
        """Count the peak of open connections from now on."""
        self._ask("DELETE", "peak")

    def objects(self, bucket: str) -> dict[str, Seen]:
        """All objects of a bucket, straight from memory."""
        line, _, rest = self._ask("GET", f"objects/{bucket}").partition(b"\n")
        found: dict[str, Seen] = {}
        place = 0
        for entry in json.loads(line):
            body = rest[place : place + entry["size"]]
            place += entry["size"]
            found[entry["key"]] = Seen(
                body, entry["etag"], entry["modified"], entry["headers"], entry["storage_class"]
            )
        return found

    def put(self, bucket: str, objects: Mapping[str, bytes | Seen]) -> None:
        """Write objects straight into memory, and the bucket where it is not there."""
        bodies: list[bytes] = []
        entries: list[dict[str, Any]] = []
        for key, given in objects.items():
            one = given if isinstance(given, Seen) else Seen(given)
            bodies.append(one.body)
            entries.append(
                {
                    "key": key, "size": len(one.body), "etag": one.etag, "modified": one.modified,
                    "headers": dict(one.headers), "storage_class": one.storage_class,
                }
            )  # fmt: skip
        self._put(bucket, entries, bodies)

    def remove(self, bucket: str, keys: Iterable[str]) -> None:
        """Remove objects straight from memory."""
        self._put(bucket, [{"key": key, "deleted": True} for key in keys], [])

    def begin_upload(self, bucket: str, key: str) -> str:
        """Begin a multipart upload as another writer would; its upload id."""
        found: str = json.loads(self._ask("POST", f"uploads/{bucket}", json.dumps({"key": key}).encode()))
        return found

    def _put(self, bucket: str, entries: Sequence[Mapping[str, Any]], bodies: Sequence[bytes]) -> None:
        self._ask("PUT", f"objects/{bucket}", json.dumps(entries).encode() + b"\n" + b"".join(bodies))

    def _ask(self, method: str, place: str, body: bytes = b"") -> bytes:
        """Ask ``/-/``; again where a quirk closes the connection."""
        for _ in range(ATTEMPTS - 1):
            with suppress(ServerError):
                return self._ask_once(method, place, body)
        return self._ask_once(method, place, body)

    def _ask_once(self, method: str, place: str, body: bytes) -> bytes:
        connection = self._http(timeout_seconds=30)
        try:
            connection.request(method, f"/-/{place}", body=body, headers={"Connection": "close"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{method} /-/{place}: {error!r}\n{self.log_tail()}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} /-/{place}: {content.decode(errors='replace')}")
        return content
