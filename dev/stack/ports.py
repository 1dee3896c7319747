"""Free ports of 127.0.0.1."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing


def free_ports(*wanted: int | None) -> list[int]:
    """Return the wanted ports, and a free one for each None, all of them different."""
    with ExitStack() as held:
        ports = []
        for port in wanted:
            # Kept open until all ports are chosen, so that no port is returned twice.
            probe = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(port or int(probe.getsockname()[1]))
    return ports


def port_is_free(port: int) -> bool:
    """Return whether no process listens on a port, neither on 127.0.0.1 nor on all interfaces."""
    with closing(socket.socket()) as probe:
        # Binding is not enough: macOS binds 127.0.0.1 even if another process listens on all interfaces.
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
