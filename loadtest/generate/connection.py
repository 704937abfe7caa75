"""The state of one TLS client connection, what those of one kind share, and who is told of their ends."""

from __future__ import annotations

import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from loadtest.generate.response import ResponseReader
from loadtest.generate.slow_link import SlowLink
from loadtest.generate.target import Target
from offload.tls import Context, TlsConnection
from offload.tls.sessions import keep_sessions

SESSIONS_KEPT = 1000
"""The newest ones; each is resumed once."""


class Kind:
    """What connections of one target share: TLS settings, sessions to resume, and time limits.

    Of `active` and `held`, each in the order of its members' limits, the first is the next that may expire.
    """

    def __init__(self, index: int, target: Target) -> None:
        """Raises TLSError for an unknown policy."""
        self.index = index
        self.target = target
        self.message = target.request
        self.context = Context(policy=target.policy, client=True)
        self.sessions: deque[bytes] = deque(maxlen=SESSIONS_KEPT)
        if target.resumed:
            keep_sessions(self.context)
        self.active: OrderedDict[int, Connection] = OrderedDict()
        self.held: OrderedDict[int, Connection] = OrderedDict()


class Connection:
    """One connection's state; `step` is what to do at its next event.

    `intended` is when it was due to start, `began` when its handshake or its latest request did,
    both time.monotonic(); `handshake` is how long after `intended` its handshake was complete;
    `offered` tells whether it asked to resume a session.
    """

    __slots__ = (
        "began", "body_bytes", "fd", "handshake", "intended", "kind", "left", "link", "mask", "offered", "reader",
        "sent", "socket", "started", "step", "tls", "until",
    )  # fmt: skip

    def __init__(
        self, kind: Kind, sock: socket.socket, link: SlowLink | None, intended: float, now: float
    ) -> None:
        """Raises TLSError when there is no memory for it."""
        self.kind = kind
        self.socket = sock
        self.link = link
        self.fd = sock.fileno()
        self.tls = TlsConnection(kind.context, self.fd)
        self.left = kind.target.requests
        self.intended = intended
        self.started = self.began = now
        self.handshake = -1.0
        self.offered = False
        self.until = now + kind.target.timeout
        self.body_bytes = 0
        self.mask = 0
        self.sent = 0
        self.reader = ResponseReader()
        self.step: Callable[[Connection], None]


class Owner(Protocol):
    """Whoever starts connections, and counts what became of them."""

    def established(self, connection: Connection, now: float) -> None:
        """The handshake is complete."""

    def answered(self, connection: Connection, now: float) -> None:
        """A request was answered in full; the body's length is `connection.reader.body_bytes`."""

    def completed(self, connection: Connection) -> None:
        """All is done."""

    def failed(self, connection: Connection, reason: str) -> None:
        """It came to another end; it is closed afterwards."""
