"""A slow network between a client and its server, so that a client trickles: bytes wait in a socket pair."""

from __future__ import annotations

import contextlib
import socket

TICK = 0.1
"""Seconds between two times that bytes are carried."""
_SMALLEST_BUFFER = 4096
_REST = 1 << 16
"""More than a client can have left to send: carried when the link is closed."""


class SlowLink:
    """Carries so many bytes a second each way between `inside`, which the TLS client uses, and a TCP socket.

    The TCP socket (non-blocking, not connected yet) is the link's own from now on. Its receive
    buffer is small: a server that sends more finds out that the client is slow.
    """

    def __init__(self, outside: socket.socket, bytes_per_second: float, now: float) -> None:
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(_SMALLEST_BUFFER, int(bytes_per_second)))
        self.inside, self._near = socket.socketpair()
        self.inside.setblocking(False)
        self._near.setblocking(False)
        self._outside = outside
        self._out, self._in = _Way(self._near, outside), _Way(outside, self._near)
        self._rate = bytes_per_second
        self._credit = 0.0
        self._then = now

    def carry(self, now: float) -> None:
        """Carry what may pass by now. Raises OSError when the connection outside has failed."""
        self._credit += self._rate * (now - self._then)
        self._then = now
        count = int(self._credit)
        if count:
            self._credit -= count
            self._out.carry(count)
            self._in.carry(count)

    def close(self) -> None:
        """Send what the client has said last, and close the TCP socket; `inside` is its user's."""
        with contextlib.suppress(OSError):
            self._out.carry(_REST)
        self._near.close()
        self._outside.close()


class _Way:
    """One direction: what was read and not taken yet is its `_rest`."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source = source
        self._sink = sink
        self._rest = b""
        self._ended = False

    def carry(self, count: int) -> None:
        """At most `count` bytes, and the end."""
        if self._ended:
            return
        with contextlib.suppress(BlockingIOError):
            if not self._rest:
                self._rest = self._source.recv(count)
            if not self._rest:
                self._ended = True
                self._sink.shutdown(socket.SHUT_WR)
                return
            self._rest = self._rest[self._sink.send(self._rest) :]
