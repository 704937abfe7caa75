"""A group of web servers, in one worker: which of them a connection goes to."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from hsm.metrics import Histogram, MetricStore
from offload import balance
from offload import metrics as m
from offload.proxy_protocol import Version
from offload.settings import ServerData, UpstreamData
from offload.upstream_health import ConnectHealth, slow_start_share

EXHAUSTED = "exhausted"
"""The reason of a failure that is this machine's, not the server's: no descriptor, memory or port left."""


class Server:
    """One upstream server, resolved: `target` is what connect(2) takes."""

    __slots__ = (
        "_came_back", "address", "connections", "credit", "data", "family", "health", "key", "most",
        "seconds", "share", "target",
    )  # fmt: skip

    def __init__(self, data: ServerData, most: int | None, health: ConnectHealth, seconds: Histogram) -> None:
        """At `most` so many connections; `seconds` takes the time that opening one took."""
        self.data = data
        self.most = most
        self.address = str(data.address)
        self.key = self.address.encode()
        self.target: tuple[str, int] | str = data.path or (data.host, data.port)
        self.family = _family(data)
        self.health = health
        self.seconds = seconds
        self.connections = 0
        self.credit = 0.0
        self.share = float(data.weight)
        self._came_back: float | None = None
        """While it starts slowly: since when."""

    def __repr__(self) -> str:
        return f"<Server {self.address}, {self.connections} connections, {self.health}>"

    def has_room(self) -> bool:
        """Whether one more connection is within its limit."""
        return self.most is None or self.connections < self.most

    def is_fit(self, now: float) -> bool:
        """Whether it is up and can be reached, as far as is known."""
        return self.data.up and self.health.takes(now)

    def update(self, data: ServerData, most: int | None, now: float) -> None:
        """The same server, configured or judged otherwise."""
        came_up = data.up and not self.data.up
        self.data = data
        self.most = most
        self.share = float(data.weight)
        if came_up:
            self.health.reset(now)
            self.start_slowly(now)

    def start_slowly(self, now: float) -> None:
        """It came back, or is new: its share grows from now on."""
        self._came_back = now

    def set_share(self, now: float, slow_start: float) -> None:
        """Bring `share` up to date."""
        if self._came_back is not None:
            part = slow_start_share(now - self._came_back, slow_start)
            self.share = self.data.weight * part
            if part == 1:
                self._came_back = None

    # Each connection to it begins once and ends once; between, it may be found connected or failed.

    def begin(self) -> None:
        """A connection is being opened."""
        self.connections += 1
        self.health.started()

    def end(self) -> None:
        """A connection is closed, or given up."""
        self.connections -= 1
        self.health.abandoned()


class Upstream:
    """A group's servers, for all listeners that name it; one that can't be reached is followed by another."""

    def __init__(self, data: UpstreamData, store: MetricStore, now: float) -> None:
        self.name = data.name
        self._store = store
        self._data = data
        self.servers = [self._server(entry, now) for entry in data.servers]
        self._left: list[Server] = []
        """No longer among them, but maybe still with connections."""

    @property
    def connect_timeout(self) -> float:
        """Seconds to connect to one server."""
        return self._data.connect_timeout

    @property
    def proxy_protocol(self) -> Version | None:
        """The PROXY header that a connection to a server begins with."""
        return self._data.proxy_protocol

    def update(self, data: UpstreamData, now: float) -> None:
        """Other servers or other settings; a server that stays keeps its connections and its health."""
        known = {(server.data.label, server.address): server for server in self.servers}
        self._data = data
        self.servers = []
        for entry in data.servers:
            server = known.pop((entry.label, str(entry.address)), None)
            if server is None:
                server = self._server(entry, now)
                server.start_slowly(now)
            else:
                server.update(entry, self._most(entry), now)
                server.health.max_fails = data.max_fails
            self.servers.append(server)
        self._left += known.values()

    def _server(self, data: ServerData, now: float) -> Server:
        seconds = self._store.histogram(m.UPSTREAM_CONNECT_SECONDS, self.name, data.label)
        return Server(data, self._most(data), ConnectHealth(self._data.max_fails, now), seconds)

    def _most(self, data: ServerData) -> int | None:
        """This worker's part of the server's limit."""
        return data.max_connections and -(-data.max_connections // self._data.workers)

    def choose(self, peer: object, tried: Sequence[Server], now: float) -> Server | None:
        """The server to try next for a client; None when enough were tried, or all are full.

        Those that seem unfit come last, but they come: better to try than to turn a client away.
        """
        data, servers = self._data, self.servers
        if len(servers) == 1 and not tried:  # as most groups are: fit or not, there is no other
            return servers[0] if servers[0].has_room() else None
        if len(tried) >= data.attempts:
            return None
        left = [server for server in servers if server not in tried and server.has_room()]
        fit = [server for server in left if server.is_fit(now)] or left
        if len(fit) < 2:
            return fit[0] if fit else None
        for server in fit:
            server.set_share(now, data.slow_start)
        if data.balance == "least_connections":
            return balance.least_connections(fit)
        if data.balance == "source_hash":
            return balance.source_hash(fit, balance.source_of(peer[0] if isinstance(peer, tuple) else ""))
        return balance.round_robin(fit)

    def connected(self, server: Server, seconds: float, now: float) -> bool:
        """Count a connection that took so long to open; whether the server is back by it."""
        server.seconds.observe(seconds)
        back = server.health.succeeded(now)
        if back:
            server.start_slowly(now)
        return back

    def failed(self, server: Server, reason: str, now: float) -> bool:
        """Count a failure to connect; whether the server is left out from now on."""
        self._store.value(m.UPSTREAM_FAILURES, self.name, server.data.label, reason).value += 1
        return reason != EXHAUSTED and server.health.failed(reason, now)

    def status(self) -> list[dict[str, Any]]:
        """Each server as this worker sees it; `since` is on the monotonic clock."""
        self._left = [server for server in self._left if server.connections]
        return [
            {
                "server": server.address,
                "connections": server.connections,
                "out": server.health.out,
                "why": server.health.why,
                "since": server.health.since,
            }
            for server in (*self.servers, *self._left)
        ]


def _family(data: ServerData) -> socket.AddressFamily:
    if data.path:
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in data.host else socket.AF_INET
