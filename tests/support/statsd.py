"""A StatsD server that collects the metrics that Airflow sends over UDP."""

import re
import socket
import threading
from types import TracebackType
from typing import Self

END = b"end"


class StatsdServer:
    """Adds up the received metrics; for a gauge it keeps the last value."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._metrics: dict[str, tuple[str, float]] = {}
        self._quiet = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="statsd")
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = True
        self._send_end()
        self._thread.join()
        self._socket.close()

    def received(self, prefix: str) -> dict[str, tuple[str, float]]:
        """Return type and value of all metrics that were sent before this call, by name without the prefix."""
        self._quiet.clear()
        self._send_end()
        assert self._quiet.wait(30)
        return {
            name.removeprefix(prefix): metric
            for name, metric in self._metrics.items()
            if name.startswith(prefix)
        }

    def _send_end(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(END, ("127.0.0.1", self.port))

    def _run(self) -> None:
        while not self._stop:
            message = self._socket.recv(65536)
            if message == END:
                self._quiet.set()
                continue
            name, value, kind = re.split(r"[:|]", message.decode())
            before = 0.0 if kind == "g" else self._metrics.get(name, ("", 0.0))[1]
            self._metrics[name] = kind, before + float(value)
