"""The web servers behind a listener: choosing one and connecting to it without waiting."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from hsm.metrics import Histogram, MetricStore
from offload import metrics as m
from offload.poller import RawSocket

_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK)


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


def dial(server: Server) -> tuple[RawSocket, bool]:
    """A non-blocking socket, and whether it is connected already (else: when writable).

    Raises OSError when the server refuses at once.
    """
    sock = RawSocket(server.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if server.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(server.target)
        if code == 0:
            return sock, True
        if code not in _PENDING or server.family == socket.AF_UNIX:
            raise OSError(code, errno.errorcode.get(code, str(code)))
        # On the loopback and in a pod the handshake is over by now: no need for another turn.
        try:
            sock.getpeername()
        except OSError:
            return sock, False
        return sock, True
    except BaseException:
        sock.close()
        raise


def failure_word(code: int) -> str:
    """An errno as a metric label: `refused`, `timeout`, `unreachable`, or `error`."""
    if code == errno.ECONNREFUSED or code == errno.ENOENT:
        return "refused"
    if code == errno.ETIMEDOUT:
        return "timeout"
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "unreachable"
    return "error"
