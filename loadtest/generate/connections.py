"""TLS client connections of a load client, many on one epoll: connect, handshake, requests, end.

What happens when is theirs to say (`client` keeps a number of them busy, `generator` starts them
by a timetable): they tell their `Owner` what became of each. No chain is checked; it costs CPU
that the server measured does not get.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from loadtest.generate.response import ResponseError, ResponseReader
from loadtest.targets.agreement import CIPHER, HOST, POLICY, SMALL_PATH
from offload.tls import Context, Progress, TlsConnection, TLSError
from offload.tls.connection import WOULD_BLOCK, buffer_pointer
from offload.tls.sessions import keep_sessions, take_session

BUFFER_SIZE = 64 * 1024
EVENTS_PER_POLL = 256
RECEIVES_PER_EVENT = 64
"""Records read for one connection before the others have their turn."""
SESSIONS_KEPT = 1000
"""The newest ones; each is resumed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is connected to, and what each connection does. `requests` is per connection.

    `timeout` is for a handshake, and for each request, in seconds; `cipher` is the one that must
    be negotiated (empty: any); `resume` says whether sessions are kept for connections to come.
    """

    port: int
    host: str = HOST
    requests: int = 1
    path: str = SMALL_PATH
    policy: str = POLICY
    cipher: str = CIPHER
    server_name: str = "localhost"
    timeout: float = 10.0
    resume: bool = False

    @property
    def request(self) -> bytes:
        """The request that is sent."""
        return f"GET {self.path} HTTP/1.1\r\nHost: {self.server_name}\r\nAccept: */*\r\n\r\n".encode()


class Connection:
    """One connection's state; `step` is what to do at its next event.

    `intended` is when it was due to start, `began` when its handshake or its latest request did,
    both time.monotonic(); `handshake` is how long after `intended` its handshake was complete;
    `offered` tells whether it asked to resume a session.
    """

    __slots__ = (
        "began", "fd", "handshake", "intended", "left", "mask", "offered", "reader", "sent", "socket", "started",
        "step", "tls", "until",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, tls: TlsConnection, requests: int, intended: float, now: float
    ) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.tls = tls
        self.left = requests
        self.intended = intended
        self.started = self.began = now
        self.handshake = -1.0
        self.offered = False
        self.until = 0.0
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

    def completed(self, connection: Connection) -> bool:
        """All is done. True keeps the connection open, as an idle one."""

    def failed(self, connection: Connection, reason: str) -> None:
        """It came to another end; it is closed afterwards."""


class Connections:
    """The open connections to one target, and the epoll that serves them."""

    def __init__(self, target: Target, owner: Owner) -> None:
        """Raises TLSError for an unknown policy, OSError for a host that can't be resolved."""
        self.target = target
        self._owner = owner
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)[0]
        self._family, self._address = found[0], found[4]
        self._context = Context(policy=target.policy, client=True)
        self._epoll = select.epoll()
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._pointer = buffer_pointer(self._buffer)
        self._message = target.request
        self._sessions: deque[bytes] = deque(maxlen=SESSIONS_KEPT)
        if target.resume:
            keep_sessions(self._context)
        # In the order of their time limits: the first is the next that may expire.
        self._active: OrderedDict[int, Connection] = OrderedDict()
        self._held: dict[int, Connection] = {}

    def __len__(self) -> int:
        """How many are under way; idle ones not counted."""
        return len(self._active)

    def watch(self, fd: int) -> None:
        """Let `poll` tell when some other descriptor is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """The reverse of `watch`."""
        self._epoll.unregister(fd)

    def open(self, intended: float, now: float, *, resume: bool = False) -> None:
        """Start a connection; with `resume` it resumes a session, once servers have given some.

        Raises OSError when that fails at once.
        """
        sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(self._address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            tls = TlsConnection(self._context, sock.fileno())
        except BaseException:
            sock.close()
            raise
        connection = Connection(sock, tls, self.target.requests, intended, now)
        connection.until = now + self.target.timeout
        self._active[connection.fd] = connection
        tls.set_server_name(self.target.server_name)
        if resume and self._sessions:
            with contextlib.suppress(TLSError):  # it has expired: a full handshake, then
                tls.set_session(self._sessions.popleft())
                connection.offered = True
        self._want(connection, select.EPOLLOUT, self._connected)
        if code == 0:
            self._advance(connection)

    def poll(self, seconds: float) -> set[int]:
        """Serve one round of events, waiting for the first at most so long.

        Returns watched descriptors that are readable. Sleeps to the microsecond: epoll_wait's
        milliseconds would make every arrival late by half of one.
        """
        if seconds > 0:
            select.select((self._epoll,), (), (), seconds)
        foreign = set()
        for fd, _ in self._epoll.poll(0, EVENTS_PER_POLL):
            connection = self._active.get(fd) or self._held.get(fd)
            if connection is None:
                foreign.add(fd)
            else:
                self._advance(connection)
        return foreign

    def expire(self, now: float) -> None:
        """Fail those that are past their time limit."""
        while self._active:
            connection = next(iter(self._active.values()))
            if connection.until > now:
                return
            self._fail(connection, "timeout")

    def fail_all(self, reason: str) -> None:
        """Fail all that are under way."""
        for connection in list(self._active.values()):
            self._fail(connection, reason)

    def close(self) -> None:
        """Close what is open, idle connections with a close_notify, and free everything."""
        for connection in list(self._held.values()):
            self._goodbye(connection)
        for connection in list(self._active.values()):
            self._release(connection)
        self._epoll.close()
        self._context.release()

    def _advance(self, connection: Connection) -> None:
        try:
            connection.step(connection)
        except ResponseError as error:
            self._fail(connection, error.reason)
        except TLSError as error:
            self._fail(connection, f"tls_{error.name}".lower())
        except OSError as error:
            self._fail(connection, errno_name(error.errno))

    def _want(self, connection: Connection, mask: int, step: Callable[[Connection], None]) -> None:
        connection.step = step
        if connection.mask == mask:
            return
        if connection.mask:
            self._epoll.modify(connection.fd, mask)
        else:
            self._epoll.register(connection.fd, mask)
        connection.mask = mask

    def _connected(self, connection: Connection) -> None:
        if code := connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        self._handshake(connection)

    def _handshake(self, connection: Connection) -> None:
        progress = connection.tls.negotiate()
        if progress is Progress.WANT_READ:
            self._want(connection, select.EPOLLIN, self._handshake)
        elif progress is Progress.WANT_WRITE:
            self._want(connection, select.EPOLLOUT, self._handshake)
        else:
            self._established(connection)

    def _established(self, connection: Connection) -> None:
        now = time.monotonic()
        connection.handshake = now - connection.intended
        self._owner.established(connection, now)
        if self.target.cipher and connection.tls.cipher != self.target.cipher:
            self._fail(connection, "wrong_cipher")
        elif connection.left:
            self._request(connection, now)
        else:
            self._complete(connection)

    def _request(self, connection: Connection, now: float) -> None:
        connection.began = now
        connection.until = now + self.target.timeout
        self._active.move_to_end(connection.fd)
        connection.sent = 0
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        rest = self._message[connection.sent :]
        while rest:
            count = connection.tls.send(rest, len(rest))
            if count == WOULD_BLOCK:
                self._want(connection, select.EPOLLOUT, self._send)
                return
            connection.sent += count
            rest = rest[count:]
        self._want(connection, select.EPOLLIN, self._receive)

    def _receive(self, connection: Connection) -> None:
        received = 0
        # No event tells of what s2n has read from the socket already.
        while received < RECEIVES_PER_EVENT or connection.tls.buffered:
            received += 1
            count = connection.tls.recv_into(self._pointer, BUFFER_SIZE)
            # At once: what the next connection receives would take its place.
            if self.target.resume and (session := take_session()) is not None:
                self._sessions.append(session)
            if count == WOULD_BLOCK:
                return
            if count == 0:
                self._fail(connection, "closed_early")
                return
            if connection.reader.feed(self._view[:count]):
                self._answered(connection)
                return

    def _answered(self, connection: Connection) -> None:
        now = time.monotonic()
        self._owner.answered(connection, now)
        connection.reader.body_bytes = 0
        connection.left -= 1
        if connection.left:
            self._request(connection, now)
        else:
            self._complete(connection)

    def _complete(self, connection: Connection) -> None:
        if self._owner.completed(connection):
            del self._active[connection.fd]
            self._held[connection.fd] = connection
            self._want(connection, select.EPOLLIN, self._disturbed)
        else:
            self._goodbye(connection)

    def _disturbed(self, connection: Connection) -> None:
        count = connection.tls.recv_into(self._pointer, BUFFER_SIZE)
        if count != WOULD_BLOCK:
            self._fail(connection, "idle_dropped" if count == 0 else "idle_data")

    def _goodbye(self, connection: Connection) -> None:
        """Close as most clients do: close_notify, then the socket, without waiting for an answer."""
        with contextlib.suppress(TLSError):
            connection.tls.shutdown_send()
        self._release(connection)

    def _fail(self, connection: Connection, reason: str) -> None:
        self._owner.failed(connection, reason)
        self._release(connection)

    def _release(self, connection: Connection) -> None:
        self._active.pop(connection.fd, None)
        self._held.pop(connection.fd, None)
        connection.tls.close()
        connection.socket.close()  # epoll forgets it with its last descriptor


def errno_name(code: int | None) -> str:
    """A system error as a word to count it by, such as `econnrefused`."""
    return errno.errorcode.get(code or 0, "os_error").lower()
