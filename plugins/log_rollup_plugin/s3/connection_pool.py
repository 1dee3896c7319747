"""The capped pool of the data plane's connections, and the poll() that watches them."""

import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from include.log_rollup import limits
from log_rollup_plugin.s3.connection import HEAD_BYTES, Connection, ConnectionState
from log_rollup_plugin.s3.connector import BucketEndpoint, Socket

# Written to the pipe that ends poll(): wake() was called, or a thread has finished connecting.
_WAKE, _CONNECTED = b"w", b"c"


class ConnectionPool:
    """Makes, keeps and closes connections; at most ``limit`` exist at any time.

    Connections that are being made count towards the limit. At the limit, the connection that has been idle
    longest is closed to make room for one to another origin. Connections are made on threads of the pool. All
    methods but :meth:`wake` have to be called from one thread.

    :param connect: makes a connection; blocks meanwhile
    """

    def __init__(self, connect: Callable[[BucketEndpoint], Socket], limit: int) -> None:
        self._connect_to = connect
        self._limit = limit
        self._threads = ThreadPoolExecutor(
            min(limit, limits.PACKING_CONNECTING_THREADS), "log-rollup-connect"
        )
        # Results of these threads.
        self._connected: deque[tuple[Connection, Socket | Exception]] = deque()
        self._all: set[Connection] = set()
        # The one that was used last is at the end.
        self._idle: list[Connection] = []
        self._by_descriptor: dict[int, Connection] = {}
        self._scratch = memoryview(bytearray(HEAD_BYTES))
        # Not epoll: macOS has none, and for so few sockets it is no faster.
        self._poll = select.poll()
        self._woken = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poll.register(self._wake_read, select.POLLIN)

    def acquire(self, endpoint: BucketEndpoint) -> Connection | None:
        """An idle connection to an endpoint, or a new one that is being made; None at the limit.

        :meth:`connected` reports when a new one is open.
        """
        now = time.monotonic()
        for connection in reversed(self._idle):
            same_place = connection.endpoint.pool_key == endpoint.pool_key
            if same_place and now - connection.last_activity < limits.IDLE_CONNECTION_SECONDS:
                self._idle.remove(connection)
                return connection
        if len(self._all) >= self._limit:
            if not self._idle:
                return None
            # It is connected to another origin, or was idle for too long.
            self.discard(self._idle[0])
        connection = Connection(endpoint, self._scratch)
        self._all.add(connection)
        self._threads.submit(self._connect, connection)
        return connection

    def release(self, connection: Connection) -> None:
        """Take back an open connection that has no request."""
        connection.reused = True
        if connection.must_close:
            self.discard(connection)
        else:
            self._idle.append(connection)
            self.watch(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection and forget it."""
        self._all.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)
        if connection.descriptor >= 0:
            if connection.watched_events:
                self._poll.unregister(connection.descriptor)
            del self._by_descriptor[connection.descriptor]
        connection.close()

    def watch(self, connection: Connection) -> None:
        """Have :meth:`poll` watch a connection for the events that it now waits for."""
        if connection.events != connection.watched_events:
            connection.watched_events = connection.events
            self._poll.register(connection.descriptor, connection.watched_events)

    def poll(self, seconds: float) -> Iterator[tuple[Connection, int]]:
        """Wait for events; yields busy connections with their events. Idle ones that S3 has closed are discarded.

        Also ends when :meth:`wake` is called or a connection was made.
        """
        # Rounded up: a remainder below a millisecond would make poll() return at once, again and again.
        for descriptor, events in self._poll.poll(math.ceil(seconds * 1000)):
            if descriptor == self._wake_read:
                self._woken = _WAKE in os.read(self._wake_read, 4096)
            elif connection := self._by_descriptor.get(descriptor):
                if connection.state is ConnectionState.IDLE:
                    self.discard(connection)
                else:
                    yield connection, events

    def connected(self) -> Iterator[tuple[Connection, Exception | None]]:
        """Connections that were made since the last call, or the errors of those that could not be made."""
        while self._connected:
            connection, result = self._connected.popleft()
            if isinstance(result, Exception):
                yield connection, result
            else:
                self._by_descriptor[connection.open(result)] = connection
                yield connection, None

    def wake(self) -> None:
        """End :meth:`poll`; may be called from any thread."""
        self._write(_WAKE)

    def take_wake(self) -> bool:
        """Whether the last :meth:`poll` was ended by :meth:`wake`."""
        woken, self._woken = self._woken, False
        return woken

    def close(self) -> None:
        """Close every connection."""
        self._threads.shutdown(cancel_futures=True)
        for _, result in self._connected:
            if not isinstance(result, Exception):
                result.close()
        for connection in self._all:
            connection.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _connect(self, connection: Connection) -> None:
        """Runs on a thread of the pool."""
        result: Socket | Exception
        try:
            result = self._connect_to(connection.endpoint)
        except Exception as error:
            result = error
        self._connected.append((connection, result))
        self._write(_CONNECTED)

    def _write(self, reason: bytes) -> None:
        # A full pipe already holds enough bytes to end poll().
        with suppress(BlockingIOError):
            os.write(self._wake_write, reason)
