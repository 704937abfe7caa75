"""A client's connection to a web server: dialed without waiting, one server after the other, then held."""

from __future__ import annotations

import errno
import socket
from time import monotonic
from typing import TYPE_CHECKING

from hsm.transport import keep_alive
from offload.poller import IN, OUT, RawSocket
from offload.relay import set_reset_on_close
from offload.upstream import Server

if TYPE_CHECKING:
    from offload.connection import Connection

YOUNG_SECONDS = 1.0
"""A connection that lasts longer gets TCP keepalive."""
_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK)


class UpstreamConnection:
    """The owner of the upstream's socket, and of the choice of the server.

    `owner` is told how dialing went, once: `upstream_connected` or `upstream_failed`.
    """

    __slots__ = ("_dialed", "_listener", "_servers", "_sock", "owner")

    def __init__(self, owner: Connection) -> None:
        self.owner = owner
        self._listener = owner.listener
        self._servers = list(owner.listener.upstream.choose())
        self._sock: RawSocket | None = None
        self._dialed = 0.0

    def dial(self, now: float) -> None:
        """Connect to the next server that is left; the owner may be told before this returns."""
        listener = self._listener
        while self._servers:
            try:
                sock, connected = dial(self._servers[0])
            except OSError as error:
                self._server_failed(failure_word(error.errno or 0))
                continue
            self._sock, self._dialed = sock, now
            if connected:
                listener.poller.add(sock.fileno(), IN, self._on_writable)
                self._connected(sock)
            else:
                listener.dialing[self] = now + listener.upstream.connect_timeout
                listener.poller.add(sock.fileno(), OUT, self._on_writable)
            return
        self.owner.upstream_failed()

    def timed_out(self) -> None:
        """The listener: the server had its time."""
        self._dial_next("timeout")

    def outlived_youth(self) -> None:
        """The listener: it lasts, so notice when the server's host dies (5 system calls)."""
        if self._sock is not None and self._servers[0].family != socket.AF_UNIX:
            keep_alive(self._sock)

    def reset_on_close(self) -> None:
        """The server is to see an abort, not an end in order."""
        if self._sock is not None:
            set_reset_on_close(self._sock)

    def close(self) -> None:
        """Hang up, or give up dialing."""
        self._listener.dialing.pop(self, None)
        self._listener.young.pop(self, None)
        if self._sock is not None:
            self._listener.poller.close(self._sock)
            self._sock = None

    def _on_writable(self, _events: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._dial_next(failure_word(code))
            return
        self._listener.dialing.pop(self, None)
        self._listener.poller.watch(self._sock.fileno(), IN)
        self._connected(self._sock)

    def _connected(self, sock: RawSocket) -> None:
        now = monotonic()
        self._listener.upstream.seconds(self._servers[0]).observe(now - self._dialed)
        self._listener.young[self] = now + YOUNG_SECONDS
        self.owner.upstream_connected(sock)

    def _dial_next(self, reason: str) -> None:
        self.close()
        self._server_failed(reason)
        self.dial(monotonic())

    def _server_failed(self, reason: str) -> None:
        listener, server = self._listener, self._servers.pop(0)
        listener.upstream.failed(server, reason)
        listener.plane.log("upstream_failed", listener=listener.name, server=server.label, reason=reason)


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
