"""The server's side of an HTTP session: at most one connection, its client's own, kept for the next request."""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING

from offload.dialing import UpstreamConnection
from offload.http.time_limit import TimeLimit
from offload.introduction import introduce
from offload.poller import IN, OUT, RawSocket
from offload.relay import CROWDED, DOWN_BUFFER_CROWDED, DOWN_BUFFER_SIZE, READS_PER_TURN
from offload.upstream import Upstream

if TYPE_CHECKING:
    from offload.http.proxy import HttpSession


class UpstreamSide:
    """Dials when a request needs it, and holds at most one buffer that the server has not taken."""

    __slots__ = (
        "_buffers", "_looks", "_poller", "_sock", "_upstream", "_watch", "connection", "owner", "pending", "rest", "reused",
        "server",
    )  # fmt: skip

    def __init__(self, owner: HttpSession) -> None:
        self.owner = owner
        self._poller = owner.listener.poller
        self._buffers = owner.listener.buffers
        self._upstream: Upstream | None = None
        self._sock: RawSocket | None = None
        self._watch = IN
        self._looks = 0
        """How often the poller had looked at the end of the last response."""
        self.connection: UpstreamConnection | None = None
        self.pending: memoryview | None = None
        """What the server has not taken; while it is dialed, all of it."""
        self.rest = b""
        """Received, and not used yet."""
        self.server = ""
        """The address of the server that was connected, or tried, last; empty if there is none."""
        self.reused = False
        """Whether the connection has served a request before the present one."""

    # -- a request ------------------------------------------------------------------------

    def ask(self, upstream: Upstream, request: bytes, *, repeatable: bool) -> None:
        """Send a request, or its beginning, to a server of `upstream`; the owner may be told before this returns.

        A kept connection is used again only if nothing has come on it since its last response: surplus
        bytes would be taken for the next one. A request that is not `repeatable` is not risked on a connection
        that may just have been closed.
        """
        if self._sock is not None and self._upstream is upstream and self._is_silent(now=not repeatable):
            self.owner.service.upstream_idle.stop(self)
            self.reused = True
            if self.owner.exchange is not None:
                self.owner.exchange.server = self.server
            self.send(memoryview(request))
            return
        self.close()
        self._upstream = upstream
        self.pending = memoryview(request)
        connection = self.owner.owner
        self.connection = UpstreamConnection(self, connection.listener, upstream, connection.peer)
        self.connection.dial(monotonic())

    def _is_silent(self, *, now: bool) -> bool:
        """Whether the server has neither closed nor said anything since its last response.

        As far as was seen when this turn began, unless that was before the response ended, or it has to be `now`.
        """
        assert self._sock is not None
        if not now and self._poller.was_quiet(self._sock.fileno(), self._looks):
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _address(self) -> str:
        return "" if self.connection is None else self.connection.address

    def upstream_connected(self, upstream: RawSocket) -> None:
        """The dialing: a server took the connection."""
        owner = self.owner
        if owner.exchange is not None:
            owner.exchange.asked = monotonic()
            owner.exchange.server = self.server = self._address()
        self._sock = upstream
        self._watch = IN
        self._poller.hand_over(upstream.fileno(), self.on_event)
        assert self._upstream is not None
        assert self.pending is not None
        version = self._upstream.proxy_protocol
        if version is not None and not introduce(owner.owner, version, upstream):
            owner.upstream_broke()
            return
        request, self.pending = self.pending, None
        if self.send(request):
            owner.server_took_all()

    def upstream_failed(self, outcome: str) -> None:
        """The dialing: no server can be reached."""
        if self.owner.exchange is not None:
            self.owner.exchange.server = self.server = self._address()
        self.pending = None
        self.connection = None
        self.owner.upstream_failed(outcome)

    def upstream_lasts(self, now: float) -> None:
        """Nothing depends on it: every stage of a request has its own time limit."""

    def keep(self, now: float) -> None:
        """The exchange is over: wait for the next one."""
        self._looks = self._poller.looks
        self.owner.service.upstream_idle.start(self, now)

    def timed_out(self, _limit: TimeLimit) -> None:
        """No request has come for long enough."""
        self.close()

    def release(self) -> tuple[UpstreamConnection, RawSocket]:
        """Leave the connection, watched for IN, to another owner."""
        connection, sock = self.connection, self._sock
        assert connection is not None
        assert sock is not None
        self._set_watch(IN)
        self.connection = self._sock = None
        return connection, sock

    def close(self, *, reset: bool = False) -> None:
        """Hang up, or give up dialing; with `reset`, so that the server does not take it for an end in order."""
        self.pending = None
        self.rest = b""
        self.reused = False
        self._sock = None
        if self.connection is not None:
            self.owner.service.upstream_idle.stop(self)
            if reset:
                self.connection.reset_on_close()
            self.connection.close()
            self.connection = None

    # -- the socket -----------------------------------------------------------------------

    def send(self, data: memoryview) -> bool:
        """Offer it; False when some has to wait, or the connection broke."""
        assert self._sock is not None
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.owner.upstream_broke()
            return False
        if sent == len(data):
            return True
        self.pending = memoryview(bytes(data[sent:]))
        self._set_watch(self._watch | OUT)
        return False

    def on_event(self, events: int) -> None:
        """The socket is ready."""
        if self.pending is not None and events != IN and not self._flush():
            return
        if events != OUT and self._sock is not None:
            if self.owner.may_read_server:
                self.read()
            else:
                self._set_watch(self._watch & ~IN)

    def _flush(self) -> bool:
        """Whether the server took all that was pending, and is still there."""
        assert self._sock is not None
        assert self.pending is not None
        try:
            sent = self._sock.send(self.pending)
        except BlockingIOError:
            return False
        except OSError:
            self.pending = None
            self._set_watch(self._watch & ~OUT)  # or a break is told again and again
            self.owner.upstream_broke()
            return False
        if sent < len(self.pending):
            self.pending = self.pending[sent:]
            self.owner.server_took_some()
            return False
        self.pending = None
        self._set_watch(self._watch & ~OUT)
        self.owner.server_took_all()
        return self._sock is not None

    def resume(self) -> None:
        """The client takes more again."""
        if self._sock is not None:
            self._set_watch(self._watch | IN)

    def read(self) -> None:
        """Take what there is, while the client takes it."""
        buffers = self._buffers
        most = DOWN_BUFFER_SIZE if buffers.blocked < CROWDED else DOWN_BUFFER_CROWDED
        try:
            for _ in range(READS_PER_TURN):
                assert self._sock is not None
                size = self._sock.recv_into(buffers.down, most)
                if size == 0:
                    self.owner.upstream_ended()
                    return
                if not self.owner.responses.received(size) or size < most:
                    return
        except BlockingIOError:
            return
        except OSError:
            self.owner.upstream_reset()

    def _set_watch(self, events: int) -> None:
        if self._sock is not None and events != self._watch:
            self._watch = events
            self._poller.watch(self._sock.fileno(), events)
