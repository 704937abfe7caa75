"""Sockets whose connection is over, but whose close has to wait.

Two reasons: after a failure that the peer caused, s2n wants the close delayed (blinding); and
after the last answer, unread bytes in the receive queue would make close() send a reset that
cuts the tail of what the peer has not read yet. Either is bounded in number and time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from offload.poller import IN, Poller, RawSocket

HELD_MOST = 1000
"""Sockets kept at a time, for each reason; then the oldest is closed early."""

DRAIN_SECONDS = 5.0
_DRAIN_BYTES = 65536


class Lingering:
    """Owns sockets until their time has come."""

    def __init__(self, poller: Poller, clock: Callable[[], float]) -> None:
        self._poller = poller
        self._clock = clock
        self._held: dict[RawSocket, float] = {}
        self._draining: dict[RawSocket, float] = {}
        self._scratch = bytearray(_DRAIN_BYTES)

    def __len__(self) -> int:
        return len(self._held) + len(self._draining)

    def hold(self, sock: RawSocket, seconds: float) -> None:
        """Keep a watched socket open and silent for a while."""
        self._poller.remove(sock.fileno())
        self._make_room(self._held)
        self._held[sock] = self._clock() + seconds

    def drain(self, sock: RawSocket) -> None:
        """Nothing more is sent on a watched socket: discard what comes until the peer closes."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the peer is gone already
            self._poller.close(sock)
            return
        self._make_room(self._draining)
        self._draining[sock] = self._clock() + DRAIN_SECONDS

        def on_event(_events: int) -> None:
            try:
                if sock.recv_into(self._scratch):
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            self._finish(sock)

        self._poller.hand_over(sock.fileno(), on_event)
        self._poller.watch(sock.fileno(), IN)

    def _finish(self, sock: RawSocket) -> None:
        self._draining.pop(sock, None)
        self._poller.close(sock)

    def _make_room(self, sockets: dict[RawSocket, float]) -> None:
        if len(sockets) >= HELD_MOST:
            oldest = next(iter(sockets))
            del sockets[oldest]
            self._poller.close(oldest)

    def expire(self, now: float) -> None:
        """Close those whose time is up; call it a few times a second."""
        for sockets in (self._held, self._draining):
            for sock in [s for s, until in sockets.items() if until <= now]:
                del sockets[sock]
                self._poller.close(sock)

    def close(self) -> None:
        """Close them all."""
        self.expire(float("inf"))
