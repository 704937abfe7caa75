"""A client's connection to a web server: dialed without waiting, one server after the other, then held."""

from __future__ import annotations

import errno
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from hsm.transport import keep_alive
from offload.poller import IN, OUT, RawSocket
from offload.relay import set_reset_on_close
from offload.upstream import EXHAUSTED, Server, Upstream

if TYPE_CHECKING:
    from offload.listener import Listener

YOUNG_SECONDS = 1.0
"""A connection that lasts longer gets TCP keepalive."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
_PENDING = (errno.EINPROGRESS, errno.EWOULDBLOCK)


class Dialer(Protocol):
    """Whom an upstream connection is for; dialing ends with one of the first two."""

    def upstream_connected(self, upstream: RawSocket) -> None:
        """A server took the connection; its socket is watched for IN."""

    def upstream_failed(self, outcome: str) -> None:
        """No server can be reached: the word is an outcome of a connection."""

    def upstream_lasts(self, now: float) -> None:
        """It has been open for YOUNG_SECONDS."""


class UpstreamConnection:
    """The owner of the upstream's socket, and of the choice of the server."""

    __slots__ = ("_dialed", "_listener", "_peer", "_server", "_sock", "_tried", "_upstream", "owner")

    def __init__(self, owner: Dialer, listener: Listener, upstream: Upstream, peer: Any) -> None:
        """To a server of `upstream`, for a client at `peer`."""
        self.owner = owner
        self._listener = listener
        self._upstream = upstream
        self._peer = peer
        self._server: Server | None = None
        self._tried: tuple[Server, ...] = ()
        self._sock: RawSocket | None = None
        self._dialed = 0.0

    def dial(self, now: float) -> None:
        """Connect to the next server; the owner may be told before this returns."""
        listener, upstream = self._listener, self._upstream
        while (server := upstream.choose(self._peer, self._tried, now)) is not None:
            self._server = server
            server.begin()
            try:
                sock, connected = dial(server)
            except OSError as error:
                self._server_failed(failure_word(error.errno or 0), now)
                continue
            self._sock, self._dialed = sock, now
            if connected:
                listener.poller.add(sock.fileno(), IN, self._on_writable)
                self._connected(server, sock)
            else:
                listener.dialing[self] = now + upstream.connect_timeout
                listener.poller.add(sock.fileno(), OUT, self._on_writable)
            return
        self.owner.upstream_failed("upstream_failed" if self._tried else "upstream_full")

    @property
    def address(self) -> str:
        """The server's that was tried last; empty if none was."""
        tried = self._tried if self._server is None else (self._server,)
        return tried[-1].address if tried else ""

    def timed_out(self) -> None:
        """The listener: the server had its time."""
        self._dial_next("timeout")

    def outlived_youth(self, now: float) -> None:
        """The listener: it lasts, so notice when the server's host dies (5 system calls)."""
        if self._sock is not None and self._sock.family != socket.AF_UNIX:
            keep_alive(self._sock)
        self.owner.upstream_lasts(now)

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
        if self._server is not None:
            self._server.end()
            self._server = None

    def _on_writable(self, _events: int) -> None:
        assert self._sock is not None
        assert self._server is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._dial_next(failure_word(code))
            return
        self._listener.dialing.pop(self, None)
        self._listener.poller.watch(self._sock.fileno(), IN)
        self._connected(self._server, self._sock)

    def _connected(self, server: Server, sock: RawSocket) -> None:
        listener, now = self._listener, monotonic()
        if self._upstream.connected(server, now - self._dialed, now):
            listener.plane.log("upstream_back", listener=listener.name, server=server.address)
        listener.young[self] = now + YOUNG_SECONDS
        self.owner.upstream_connected(sock)

    def _dial_next(self, reason: str) -> None:
        now = monotonic()
        self._server_failed(reason, now)
        self.dial(now)

    def _server_failed(self, reason: str, now: float) -> None:
        listener, server = self._listener, self._server
        assert server is not None
        self.close()
        self._tried += (server,)
        out = self._upstream.failed(server, reason, now)
        listener.plane.log("upstream_failed", listener=listener.name, server=server.address, reason=reason)
        if out:
            listener.plane.log("upstream_out", listener=listener.name, server=server.address, reason=reason)


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
    """An errno as a metric label: `refused`, `timeout`, `unreachable`, `exhausted`, or `error`."""
    if code == errno.ECONNREFUSED or code == errno.ENOENT:
        return "refused"
    if code == errno.ETIMEDOUT:
        return "timeout"
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "unreachable"
    if code in _EXHAUSTED:
        return EXHAUSTED
    return "error"
