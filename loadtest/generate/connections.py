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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.generate.response import ResponseError, ResponseReader
from loadtest.generate.slow_link import TICK, SlowLink
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
    """What is connected to, and what one kind of client does there. `requests` is per connection.

    `share` of all clients, as a weight, are of this kind; the share `resumed` of these resume a
    session, once the server has given some. `timeout` is for a handshake, and for each request,
    in seconds; `cipher` is the one that must be negotiated (empty: any). The connection is kept
    open for `hold` seconds after its requests; a client whose `bytes_per_second` are not 0 is slow.
    One that comes `again` does so as soon as it is done, until the schedule ends.
    """

    port: int
    host: str = HOST
    share: float = 1.0
    resumed: float = 0.0
    requests: int = 1
    path: str = SMALL_PATH
    policy: str = POLICY
    cipher: str = CIPHER
    server_name: str = "localhost"
    timeout: float = 10.0
    hold: float = 0.0
    bytes_per_second: float = 0.0
    again: bool = False

    @property
    def request(self) -> bytes:
        """The request that is sent."""
        return f"GET {self.path} HTTP/1.1\r\nHost: {self.server_name}\r\nAccept: */*\r\n\r\n".encode()


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


class Connections:
    """The open connections to one server, of one kind or several, and the epoll that serves them."""

    def __init__(self, targets: Sequence[Target], owner: Owner) -> None:
        """All targets have one address.

        Raises TLSError for an unknown policy, OSError for a host that can't be resolved.
        """
        self.kinds = [Kind(index, target) for index, target in enumerate(targets)]
        self._owner = owner
        found = socket.getaddrinfo(targets[0].host, targets[0].port, type=socket.SOCK_STREAM)[0]
        self._family, self._address = found[0], found[4]
        self._epoll = select.epoll()
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._pointer = buffer_pointer(self._buffer)
        self._by_fd: dict[int, Connection] = {}
        self._slow: set[Connection] = set()
        self._carry_at = 0.0

    def __len__(self) -> int:
        """How many are under way; idle ones not counted."""
        return sum(len(kind.active) for kind in self.kinds)

    @property
    def held(self) -> int:
        """How many are idle: their requests are answered, and they stay open for a while."""
        return sum(len(kind.held) for kind in self.kinds)

    def watch(self, fd: int) -> None:
        """Let `poll` tell when some other descriptor is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """The reverse of `watch`."""
        self._epoll.unregister(fd)

    def open(self, intended: float, now: float, *, kind: int = 0, resume: bool = False) -> None:
        """Start a connection; with `resume` it resumes a session, once servers have given some.

        Raises OSError when that fails at once.
        """
        connection = self._connect(self.kinds[kind], intended, now)
        self._by_fd[connection.fd] = connection.kind.active[connection.fd] = connection
        connection.tls.set_server_name(connection.kind.target.server_name)
        if resume and connection.kind.sessions:
            with contextlib.suppress(TLSError):  # it has expired: a full handshake, then
                connection.tls.set_session(connection.kind.sessions.popleft())
                connection.offered = True
        self._want(connection, select.EPOLLOUT, self._connected)

    def _connect(self, kind: Kind, intended: float, now: float) -> Connection:
        outside = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        link = None
        try:
            outside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if kind.target.bytes_per_second:
                link = SlowLink(outside, kind.target.bytes_per_second, now)
            code = outside.connect_ex(self._address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            connection = Connection(kind, link.inside if link else outside, link, intended, now)
        except BaseException:
            outside.close()
            if link is not None:
                link.inside.close()
                link.close()
            raise
        if link is not None:
            self._slow.add(connection)
        return connection

    def poll(self, seconds: float) -> set[int]:
        """Serve one round of events, waiting for the first at most so long.

        Returns watched descriptors that are readable. Sleeps to the microsecond: epoll_wait's
        milliseconds would make every arrival late by half of one.
        """
        if self._slow:
            seconds = min(seconds, self._carry())
        if seconds > 0:
            select.select((self._epoll,), (), (), seconds)
        foreign = set()
        for fd, _ in self._epoll.poll(0, EVENTS_PER_POLL):
            connection = self._by_fd.get(fd)
            if connection is None:
                foreign.add(fd)
            else:
                self._advance(connection)
        return foreign

    def _carry(self) -> float:
        """Let slow clients' bytes pass, when it is time; seconds until the next time."""
        now = time.monotonic()
        if now >= self._carry_at:
            self._carry_at = now + TICK
            for connection in list(self._slow):
                assert connection.link is not None
                try:
                    connection.link.carry(now)
                except OSError as error:
                    self._fail(connection, errno_name(error.errno))
        return self._carry_at - now

    def expire(self, now: float) -> None:
        """Fail those that are past their time limit; let those end that have been idle long enough."""
        for kind in self.kinds:
            while kind.active and (connection := next(iter(kind.active.values()))).until <= now:
                self._fail(connection, "timeout")
            while kind.held and (connection := next(iter(kind.held.values()))).until <= now:
                self._complete(connection)

    def fail_all(self, reason: str) -> None:
        """Fail all that are under way."""
        for kind in self.kinds:
            for connection in list(kind.active.values()):
                self._fail(connection, reason)

    def close(self) -> None:
        """Close what is open, idle connections with a close_notify, and free everything."""
        for kind in self.kinds:
            for connection in list(kind.held.values()):
                self._goodbye(connection)
            for connection in list(kind.active.values()):
                self._release(connection)
            kind.context.release()
        self._epoll.close()

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
        cipher = connection.kind.target.cipher
        if cipher and connection.tls.cipher != cipher:
            self._fail(connection, "wrong_cipher")
        elif connection.left:
            self._request(connection, now)
        else:
            self._rest(connection, now)

    def _request(self, connection: Connection, now: float) -> None:
        connection.began = now
        connection.until = now + connection.kind.target.timeout
        connection.kind.active.move_to_end(connection.fd)
        connection.sent = 0
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        rest = connection.kind.message[connection.sent :]
        while rest:
            count = connection.tls.send(rest, len(rest))
            if count == WOULD_BLOCK:
                self._want(connection, select.EPOLLOUT, self._send)
                return
            connection.sent += count
            rest = rest[count:]
        self._want(connection, select.EPOLLIN, self._receive)

    def _receive(self, connection: Connection) -> None:
        received, kind = 0, connection.kind
        # No event tells of what s2n has read from the socket already.
        while received < RECEIVES_PER_EVENT or connection.tls.buffered:
            received += 1
            count = connection.tls.recv_into(self._pointer, BUFFER_SIZE)
            # At once: what the next connection receives would take its place.
            if kind.target.resumed and (session := take_session()) is not None:
                kind.sessions.append(session)
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
        connection.body_bytes += connection.reader.body_bytes
        connection.reader.body_bytes = 0
        connection.left -= 1
        if connection.left:
            self._request(connection, now)
        else:
            self._rest(connection, now)

    def _rest(self, connection: Connection, now: float) -> None:
        kind = connection.kind
        if not kind.target.hold:
            self._complete(connection)
            return
        connection.until = now + kind.target.hold
        del kind.active[connection.fd]
        kind.held[connection.fd] = connection
        self._want(connection, select.EPOLLIN, self._disturbed)

    def _complete(self, connection: Connection) -> None:
        self._owner.completed(connection)
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
        self._by_fd.pop(connection.fd, None)
        connection.kind.active.pop(connection.fd, None)
        connection.kind.held.pop(connection.fd, None)
        connection.tls.close()
        if connection.link is not None:
            self._slow.discard(connection)
            connection.link.close()
        connection.socket.close()  # epoll forgets it with its last descriptor


def errno_name(code: int | None) -> str:
    """A system error as a word to count it by, such as `econnrefused`."""
    return errno.errorcode.get(code or 0, "os_error").lower()
