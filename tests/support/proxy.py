"""A reverse proxy in front of an S3 server: records every request and connection, and injects faults.

The client uses :attr:`FaultProxy.endpoint_url` and signs for the proxy's host and port. The proxy forwards the
``Host`` header and every other byte unchanged, so that signatures stay valid. Each client connection has one
connection of its own to the server. Rules (:mod:`tests.support.faults`) say which faults to inject; they may be
changed at any time::

    with FaultProxy(server.endpoint_url) as proxy:
        proxy.add(Rule(on("GetObject"), slow_down(retry_after_seconds=1), probability=0.1, seed=7))
        proxy.add(Rule(on("PutObject", nth=3), Reset("before_response")))
        ...
        assert proxy.peak_connections <= 25

The proxy runs asyncio on a thread of its own. Functions of rules run on that thread and must be fast; only the
function of a :class:`Call` may take long, because it gets its own thread.
"""

import asyncio
import functools
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from dev.tls import TlsFiles
from tests.support.faults import Answer, Call, Request, Rule, classify, share_of
from tests.support.forwarding import (
    BUFFER_BYTES,
    FLUSH_SECONDS,
    ClientConnection,
    ClientProtocol,
    Exchange,
    ExchangeRecord,
    Forwarding,
    UpstreamConnection,
    abort_with_reset,
)
from tests.support.wire import Head, read_head

T = TypeVar("T")


class RuleError(RuntimeError):
    """The function of a rule raised an exception, which is the cause."""


class FaultProxy:
    """The proxy; see the description of this module.

    :param upstream_url: the server's endpoint, http or https
    :param tls: files for TLS to the client; None for plain HTTP
    :param upstream_ca: CA file of an https server
    """

    def __init__(
        self, upstream_url: str, *, tls: TlsFiles | None = None, upstream_ca: Path | None = None
    ) -> None:
        upstream = urlsplit(upstream_url)
        self._upstream_host = upstream.hostname or "127.0.0.1"
        self._upstream_port = upstream.port or (443 if upstream.scheme == "https" else 80)
        self._upstream_ssl = (
            ssl.create_default_context(cafile=str(upstream_ca) if upstream_ca else None)
            if upstream.scheme == "https"
            else None
        )
        self.tls = tls
        self._client_ssl = tls.server_context() if tls else None
        self.port = 0
        self._rules: tuple[Rule, ...] = ()
        self._fired: Counter[Rule] = Counter()
        self._lock = threading.Lock()
        self._zero = time.monotonic()
        self._records: list[ExchangeRecord] = []
        self._operations: Counter[str] = Counter()
        self._attempts: Counter[tuple[str, str, str]] = Counter()
        self._open = 0
        self._peak = 0
        self._accepted = 0
        self._in_flight = 0
        self._peak_in_flight = 0
        self._series: list[tuple[float, int]] = []
        self._errors: list[BaseException] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def endpoint_url(self) -> str:
        """``http://127.0.0.1:PORT``, or https with TLS."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1, or on the same port as before."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        """Reset every connection and end the thread. The records stay readable."""
        if self._loop is None or self._thread is None:
            return
        self._run(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._loop = self._thread = None

    def refuse_connections(self) -> None:
        """Behave like a server that is down: reset open connections and refuse new ones."""
        self._run(self._shut_down())

    def accept_connections(self) -> None:
        """Listen again after :meth:`refuse_connections`, on the same port."""
        self._run(self._listen())

    def add(self, *rules: Rule) -> None:
        """Add rules, which apply from the next request on."""
        self._rules = (*self._rules, *rules)

    def remove(self, rule: Rule) -> None:
        """Remove a rule."""
        self._rules = tuple(kept for kept in self._rules if kept is not rule)

    def clear_rules(self) -> None:
        """Remove all rules; no faults are injected from the next request on."""
        self._rules = ()

    def fired(self, rule: Rule) -> int:
        """How many requests this rule was applied to."""
        return self._fired[rule]

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All requests since the start or the last :meth:`reset_records`, in the order of their arrival.

        When a client has got its response, request, status and sizes are recorded; only ``ended_seconds`` may
        still be missing (see :meth:`wait_idle`).
        """
        with self._lock:
            return tuple(record.snapshot() for record in self._records)

    def count(self, operation: str | None = None, status: int | None = None, key: str | None = None) -> int:
        """The number of requests, of this operation, with this status, for this key."""
        return sum(
            1
            for exchange in self.exchanges
            if (operation is None or exchange.request.operation == operation)
            and (status is None or exchange.status == status)
            and (key is None or exchange.request.key == key)
        )

    @property
    def operations(self) -> dict[str, int]:
        """The number of requests by operation."""
        return dict(Counter(exchange.request.operation for exchange in self.exchanges))

    @property
    def open_connections(self) -> int:
        """The number of client connections that are open now."""
        return self._open

    @property
    def peak_connections(self) -> int:
        """The largest number of client connections open at the same time, with those in their handshake."""
        return self._peak

    @property
    def accepted_connections(self) -> int:
        """The number of client connections since the start or the last reset."""
        return self._accepted

    @property
    def connection_series(self) -> tuple[tuple[float, int], ...]:
        """Time (seconds since the proxy was made) and number of open client connections, after each change."""
        with self._lock:
            return tuple(self._series)

    @property
    def peak_in_flight(self) -> int:
        """The largest number of requests in progress at the same time."""
        return self._peak_in_flight

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """Exceptions that functions of rules raised."""
        return tuple(self._errors)

    def reset_records(self) -> None:
        """Forget all exchanges, counters and peaks. Connections and requests that are open now stay counted."""
        with self._lock:
            self._records.clear()
            self._operations.clear()
            self._attempts.clear()
            self._fired.clear()
            self._series.clear()
            self._accepted = 0
            self._peak = self._open
            self._peak_in_flight = self._in_flight

    def wait_idle(self, timeout_seconds: float = 30.0) -> None:
        """Wait until no request is in progress.

        :raises TimeoutError: if some still are after the timeout; it names the first
        """
        deadline = time.monotonic() + timeout_seconds
        while self._in_flight:
            if time.monotonic() > deadline:
                waiting = [e.request for e in self.exchanges if e.ended_seconds is None]
                raise TimeoutError(
                    f"{len(waiting)} requests are still in progress, the first is {waiting[:1]}"
                )
            time.sleep(0.005)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self._errors:
            raise AssertionError(f"{len(self._errors)} exceptions in functions of rules") from self._errors[0]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None, "the proxy is not started"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _now(self) -> float:
        return time.monotonic() - self._zero

    async def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(1024)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listener))

    async def _shut_down(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            with suppress(asyncio.CancelledError):
                await self._accepting
            self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        serving = tuple(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        # Transports close their sockets in callbacks: let those run.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _address = await loop.sock_accept(listener)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The client may have closed another connection before it opened this one: let the loop notice that.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            # Counted before the TLS handshake: a connection in its handshake is also one.
            self._count_connection(+1)
            task = loop.create_task(self._serve(accepted, self._accepted))
            self._serving.add(task)
            task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)

    def _count_connection(self, change: int) -> None:
        with self._lock:
            self._open += change
            self._accepted += change > 0
            self._peak = max(self._peak, self._open)
            self._series.append((self._now(), self._open))

    async def _serve(self, accepted: socket.socket, number: int) -> None:
        """Serve a client connection from its handshake to its end."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=BUFFER_BYTES, loop=loop)
        protocol = ClientProtocol(reader, functools.partial(self._count_connection, -1))
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._client_ssl
            )
        except (OSError, asyncio.CancelledError):
            protocol.count_once()
            accepted.close()
            return
        transport.set_write_buffer_limits(BUFFER_BYTES)
        client = ClientConnection(
            reader, asyncio.StreamWriter(transport, protocol, reader, loop), protocol.gone
        )
        upstream = UpstreamConnection(self._upstream_host, self._upstream_port, self._upstream_ssl)
        ended_well = False
        try:
            while await self._exchange(client, upstream, number):
                pass
            ended_well = True
        except (OSError, EOFError):
            # The client or the server closed its connection; the exchange has recorded that.
            pass
        finally:
            upstream.abort()
            if ended_well:
                client.writer.close()
                # Without this, unsent bytes to a client that does not read would keep the transport open forever.
                loop.call_later(FLUSH_SECONDS, transport.abort)
            else:
                abort_with_reset(transport)

    async def _exchange(
        self, client: ClientConnection, upstream: UpstreamConnection, connection: int
    ) -> bool:
        """Serve one request; returns whether the client's connection can carry another."""
        head = await read_head(client.reader)
        if head is None:
            return False
        record = self._record(head, connection)
        try:
            self._apply_rules(record)
            return await Forwarding(client, upstream, head, record, self._call).run()
        except (OSError, EOFError) as error:
            record.error = f"{type(error).__name__}: {error}"
            raise
        except asyncio.CancelledError:
            record.error = "the proxy was stopped"
            raise
        finally:
            record.ended = self._now()
            with self._lock:
                self._in_flight -= 1

    def _record(self, head: Head, connection: int) -> ExchangeRecord:
        method, target, _version = head.first_line.split(" ", 2)
        path, _, query = target.partition("?")
        headers = head.lower()
        operation, bucket, key = classify(method, path, query, headers)
        with self._lock:
            self._operations[operation] += 1
            self._attempts[method, path, query] += 1
            request = Request(
                number=len(self._records) + 1,
                nth=self._operations[operation],
                attempt=self._attempts[method, path, query],
                connection=connection,
                method=method,
                path=path,
                query=query,
                headers=headers,
                operation=operation,
                bucket=bucket,
                key=key,
            )
            record = ExchangeRecord(request, self._now)
            self._records.append(record)
            self._in_flight += 1
            self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
        return record

    def _apply_rules(self, record: ExchangeRecord) -> None:
        for rule in self._rules:
            if self._fires(rule, record.request):
                self._fired[rule] += 1
                record.faults.append(rule.fault)

    def _fires(self, rule: Rule, request: Request) -> bool:
        if rule.count is not None and self._fired[rule] >= rule.count:
            return False
        try:
            matches = rule.match(request)
        except Exception as error:
            raise RuleError(f"match of {rule} for {request.operation} {request.key}: {error!r}") from error
        return matches and (rule.probability >= 1 or share_of(rule.seed, request) < rule.probability)

    async def _call(self, call: Call, request: Request) -> Answer | None:
        try:
            return await asyncio.to_thread(call.function, request)
        except Exception as error:
            raise RuleError(f"{call} for {request.operation} {request.key}: {error!r}") from error
