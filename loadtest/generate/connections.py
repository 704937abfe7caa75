"""TLS client connections of a load client, many on one epoll: connect, handshake, requests, end.

When they start is for their `Owner` to say, who is told what became of each. No chain is checked;
it costs CPU that the server measured does not get.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from loadtest.generate.connection import Connection, Kind, Owner
from loadtest.generate.response import ResponseError
from loadtest.generate.slow_link import TICK, SlowLink
from loadtest.generate.target import Target
from offload.tls import Progress, TLSError
from offload.tls.connection import WOULD_BLOCK, buffer_pointer
from offload.tls.sessions import take_session

BUFFER_SIZE = 64 * 1024
EVENTS_PER_POLL = 256
RECEIVES_PER_EVENT = 64
"""Records read for one connection before the others have their turn."""


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
        """How many are open, idle ones included."""
        return len(self._by_fd)

    def open(self, intended: float, now: float, *, kind: int = 0, resume: bool = False) -> None:
        """Start a connection; with `resume` it resumes a session, once servers have given some.

        A near server's TCP is connected by the time that it is looked at, and the handshake begins at once:
        no event has to be waited for. Raises OSError when there is no socket or no way.
        """
        connection = self._connect(self.kinds[kind], intended, now)
        self._by_fd[connection.fd] = connection.kind.active[connection.fd] = connection
        connection.tls.set_server_name(connection.kind.target.server_name)
        if resume and connection.kind.sessions:
            with contextlib.suppress(TLSError):  # it has expired: a full handshake, then
                connection.tls.set_session(connection.kind.sessions.popleft())
                connection.offered = True
        connection.step = self._connected
        self._advance(connection)

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

    def poll(self, until: float) -> None:
        """Serve one round of events, waiting for the first until then at most (time.monotonic()).

        Sleeps to the microsecond: epoll_wait's milliseconds would make every arrival late by half of one.
        """
        if self._slow:
            until = min(until, self._carry())
        seconds = until - time.monotonic()
        if seconds > 0 and not select.select((self._epoll,), (), (), seconds)[0]:
            return
        for fd, _ in self._epoll.poll(0, EVENTS_PER_POLL):
            if fd in self._by_fd:  # not closed by the event before
                self._advance(self._by_fd[fd])

    def _carry(self) -> float:
        """Let slow clients' bytes pass, when it is time; the next time."""
        now = time.monotonic()
        if now >= self._carry_at:
            self._carry_at = now + TICK
            for connection in list(self._slow):
                assert connection.link is not None
                try:
                    connection.link.carry(now)
                except OSError as error:
                    self._fail(connection, errno_name(error.errno))
        return self._carry_at

    def expire(self, now: float) -> None:
        """Fail those that are past their time limit; let those end that have been idle long enough."""
        for kind in self.kinds:
            while kind.active and (connection := next(iter(kind.active.values()))).until <= now:
                self._fail(connection, "timeout")
            while kind.held and (connection := next(iter(kind.held.values()))).until <= now:
                self._complete(connection)

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
            self._want(connection, select.EPOLLOUT, self._connected)
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
