"""The web servers behind a listener: which one a connection goes to."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from hsm.metrics import Histogram, MetricStore
from offload import metrics as m


@dataclass(frozen=True, slots=True)
class Server:
    """One upstream server, resolved: `target` is what connect(2) takes."""

    label: str
    family: socket.AddressFamily
    target: tuple[str, int] | tuple[str, int, int, int] | str


class Upstream:
    """A listener's servers, in turns; one that fails is followed by the next."""

    def __init__(self, servers: list[Server], connect_timeout: float, store: MetricStore) -> None:
        self.servers = servers
        self.connect_timeout = connect_timeout
        self._store = store
        self._next = 0
        self._seconds = {s.label: store.histogram(m.UPSTREAM_CONNECT_SECONDS, s.label) for s in servers}

    def choose(self) -> list[Server]:
        """The servers in the order in which to try them."""
        servers = self.servers
        if len(servers) == 1:
            return servers
        start = self._next
        self._next = (start + 1) % len(servers)
        return servers[start:] + servers[:start]

    def seconds(self, server: Server) -> Histogram:
        """Where to observe how long connecting took."""
        return self._seconds[server.label]

    def failed(self, server: Server, reason: str) -> None:
        """Count a failure to connect."""
        self._store.value(m.UPSTREAM_FAILURES, server.label, reason).value += 1
