"""A TLS load client: many connections on one epoll loop, in a process of its own.

    python -m loadtest.client handshakes --port 8443 --connections 2000 --concurrency 32
    python -m loadtest.client keepalive  --port 8443 --requests 5000
    python -m loadtest.client download   --port 8443 --requests 100 --path /large
    python -m loadtest.client idle       --port 8443 --connections 2000

It prints one line of JSON (`results.LoadResult`). `idle` prints it when all connections are
open, holds them until its standard input ends or says a line, and then prints another: the
`errors` there are connections that the server closed meanwhile.

The loop is closed: a connection that ends makes room for the next. Nothing hangs: a handshake
and each request have a time limit, the whole run has one, and so many failures end it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from loadtest.agreement import CIPHER, HOST, POLICY, SMALL_PATH
from loadtest.response import ResponseError, ResponseReader
from loadtest.results import Latency, LoadResult
from offload.tls import Context, Progress, TlsConnection, TLSError
from offload.tls.connection import WOULD_BLOCK, buffer_pointer

BUFFER_SIZE = 64 * 1024
RECEIVES_PER_EVENT = 64
"""Records read for one connection before the others have their turn."""


class Mode(StrEnum):
    """What the connections do after the handshake."""

    HANDSHAKES = "handshakes"
    KEEPALIVE = "keepalive"
    DOWNLOAD = "download"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `requests` is per connection; times in seconds.

    It ends after `connections` connections or `duration`, whichever comes first and is not
    None; `cipher` is the one that must be negotiated (empty: any).
    """

    port: int
    mode: Mode = Mode.HANDSHAKES
    connections: int | None = 1
    duration: float | None = None
    concurrency: int = 1
    requests: int = 1
    path: str = SMALL_PATH
    policy: str = POLICY
    cipher: str = CIPHER
    server_name: str = "localhost"
    timeout: float = 10.0
    limit: float = 120.0
    max_errors: int = 100


class _Connection:
    """One connection's state; `step` is what to do at its next event."""

    __slots__ = ("began", "fd", "left", "mask", "reader", "sent", "socket", "step", "tls", "until")

    def __init__(self, sock: socket.socket, tls: TlsConnection, requests: int, now: float) -> None:
        self.socket = sock
        self.fd = sock.fileno()
        self.tls = tls
        self.left = requests
        self.began = now
        self.until = 0.0
        self.mask = 0
        self.sent = 0
        self.reader = ResponseReader()
        self.step: Callable[[_Connection], None]


class LoadClient:
    """Runs one plan. `run` opens connections until it is done; `hold` is for idle ones."""

    def __init__(self, plan: Plan) -> None:
        """Raises TLSError for an unknown policy."""
        self.plan = plan
        self._context = Context(policy=plan.policy, client=True)
        self._epoll = select.epoll()
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._pointer = buffer_pointer(self._buffer)
        self._message = f"GET {plan.path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".encode()
        # In the order of their time limits: the first is the next that may expire.
        self._active: OrderedDict[int, _Connection] = OrderedDict()
        self._held: dict[int, _Connection] = {}
        self._started = self._finished = self._requests = self._body_bytes = 0
        self._errors: Counter[str] = Counter()
        self._negotiated: Counter[str] = Counter()
        self._handshakes: list[float] = []
        self._answers: list[float] = []
        self._start = time.monotonic()
        self._seconds = 0.0

    def run(self) -> None:
        """Carry the plan out. In idle mode the connections stay open."""
        self._start = time.monotonic()
        self._fill()
        while self._active:
            self._poll(0.25)
            self._expire(time.monotonic())
            self._fill()
        self._seconds = time.monotonic() - self._start

    def hold(self, until: int) -> None:
        """Keep idle connections until the descriptor `until` is readable, or the run's time limit.

        What the server closes or sends meanwhile is counted as an error.
        """
        self._epoll.register(until, select.EPOLLIN)
        while time.monotonic() < self._start + self.plan.limit:
            if until in self._poll(1.0):
                break
        self._epoll.unregister(until)

    def close(self) -> None:
        """Close what is open, idle connections with a close_notify, and free everything."""
        for connection in list(self._held.values()):
            self._goodbye(connection)
        for connection in list(self._active.values()):
            self._release(connection)
        self._epoll.close()
        self._context.release()

    def result(self) -> LoadResult:
        """The counts so far."""
        return LoadResult(
            mode=self.plan.mode.value,
            connections=self._finished,
            requests=self._requests,
            body_bytes=self._body_bytes,
            seconds=self._seconds,
            errors=dict(self._errors),
            negotiated=dict(self._negotiated),
            handshake=Latency.of(self._handshakes),
            request=Latency.of(self._answers),
        )

    def _poll(self, seconds: float) -> set[int]:
        """Serve one round of events; returns descriptors that are no connection's."""
        foreign = set()
        for fd, _ in self._epoll.poll(seconds, 1024):
            connection = self._active.get(fd) or self._held.get(fd)
            if connection is None:
                foreign.add(fd)
            else:
                self._advance(connection)
        return foreign

    def _advance(self, connection: _Connection) -> None:
        try:
            connection.step(connection)
        except ResponseError as error:
            self._fail(connection, error.reason)
        except TLSError as error:
            self._fail(connection, f"tls_{error.name}".lower())
        except OSError as error:
            self._fail(connection, _errno_name(error.errno))

    def _may_start(self, now: float) -> bool:
        plan = self.plan
        return (
            len(self._active) < plan.concurrency
            and (plan.connections is None or self._started < plan.connections)
            and now < self._start + plan.limit
            and (plan.duration is None or now < self._start + plan.duration)
            and self._errors.total() < plan.max_errors
        )

    def _fill(self) -> None:
        while self._may_start(now := time.monotonic()):
            self._started += 1
            try:
                self._open(now)
            except OSError as error:  # no descriptors, no ports
                self._errors[_errno_name(error.errno)] += 1

    def _open(self, now: float) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex((HOST, self.plan.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            tls = TlsConnection(self._context, sock.fileno())
        except BaseException:
            sock.close()
            raise
        connection = _Connection(sock, tls, self.plan.requests, now)
        connection.until = now + self.plan.timeout
        self._active[connection.fd] = connection
        tls.set_server_name(self.plan.server_name)
        self._want(connection, select.EPOLLOUT, self._connected)
        if code == 0:
            self._advance(connection)

    def _want(self, connection: _Connection, mask: int, step: Callable[[_Connection], None]) -> None:
        connection.step = step
        if connection.mask == mask:
            return
        if connection.mask:
            self._epoll.modify(connection.fd, mask)
        else:
            self._epoll.register(connection.fd, mask)
        connection.mask = mask

    def _connected(self, connection: _Connection) -> None:
        if code := connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        self._handshake(connection)

    def _handshake(self, connection: _Connection) -> None:
        progress = connection.tls.negotiate()
        if progress is Progress.WANT_READ:
            self._want(connection, select.EPOLLIN, self._handshake)
        elif progress is Progress.WANT_WRITE:
            self._want(connection, select.EPOLLOUT, self._handshake)
        else:
            self._established(connection)

    def _established(self, connection: _Connection) -> None:
        tls = connection.tls
        self._handshakes.append(time.monotonic() - connection.began)
        self._negotiated[f"{tls.version} {tls.cipher} {tls.group}"] += 1
        if self.plan.cipher and tls.cipher != self.plan.cipher:
            self._fail(connection, "wrong_cipher")
        elif connection.left:
            self._request(connection)
        else:
            self._complete(connection)

    def _request(self, connection: _Connection) -> None:
        connection.began = now = time.monotonic()
        connection.until = now + self.plan.timeout
        self._active.move_to_end(connection.fd)
        connection.sent = 0
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        rest = self._message[connection.sent :]
        while rest:
            count = connection.tls.send(rest, len(rest))
            if count == WOULD_BLOCK:
                self._want(connection, select.EPOLLOUT, self._send)
                return
            connection.sent += count
            rest = rest[count:]
        self._want(connection, select.EPOLLIN, self._receive)

    def _receive(self, connection: _Connection) -> None:
        received = 0
        # No event tells of what s2n has read from the socket already.
        while received < RECEIVES_PER_EVENT or connection.tls.buffered:
            received += 1
            count = connection.tls.recv_into(self._pointer, BUFFER_SIZE)
            if count == WOULD_BLOCK:
                return
            if count == 0:
                self._fail(connection, "closed_early")
                return
            if connection.reader.feed(self._view[:count]):
                self._answered(connection)
                return

    def _answered(self, connection: _Connection) -> None:
        self._answers.append(time.monotonic() - connection.began)
        self._requests += 1
        self._body_bytes += connection.reader.body_bytes
        connection.reader.body_bytes = 0
        connection.left -= 1
        if connection.left:
            self._request(connection)
        else:
            self._complete(connection)

    def _complete(self, connection: _Connection) -> None:
        self._finished += 1
        if self.plan.mode is Mode.IDLE:
            del self._active[connection.fd]
            self._held[connection.fd] = connection
            self._want(connection, select.EPOLLIN, self._disturbed)
        else:
            self._goodbye(connection)

    def _disturbed(self, connection: _Connection) -> None:
        count = connection.tls.recv_into(self._pointer, BUFFER_SIZE)
        if count != WOULD_BLOCK:
            self._fail(connection, "idle_dropped" if count == 0 else "idle_data")

    def _goodbye(self, connection: _Connection) -> None:
        """Close as most clients do: close_notify, then the socket, without waiting for an answer."""
        with contextlib.suppress(TLSError):
            connection.tls.shutdown_send()
        self._release(connection)

    def _expire(self, now: float) -> None:
        while self._active:
            connection = next(iter(self._active.values()))
            if connection.until > now and now < self._start + self.plan.limit:
                return
            self._fail(connection, "timeout")

    def _fail(self, connection: _Connection, reason: str) -> None:
        self._errors[reason] += 1
        self._release(connection)

    def _release(self, connection: _Connection) -> None:
        self._active.pop(connection.fd, None)
        self._held.pop(connection.fd, None)
        connection.tls.close()
        connection.socket.close()  # epoll forgets it with its last descriptor


def _errno_name(code: int | None) -> str:
    return errno.errorcode.get(code or 0, "os_error").lower()


def run(plan: Plan) -> LoadResult:
    """Carry out a plan in this process; idle connections are closed at once."""
    client = LoadClient(plan)
    try:
        client.run()
        return client.result()
    finally:
        client.close()


def parse_arguments(arguments: list[str]) -> Plan:
    """The plan that a command line asks for. Raises SystemExit as argparse does."""
    # argparse, not typer: a bench starts this process hundreds of times on the cores it measures.
    parser = argparse.ArgumentParser(prog="python -m loadtest.client", description="TLS load client")
    parser.add_argument("mode", type=Mode, choices=list(Mode))
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--connections", type=int, help="how many in all (1 unless --duration is given)")
    parser.add_argument("--duration", type=float, help="seconds after which no connection is started")
    parser.add_argument("--concurrency", type=int, default=1, help="connections at a time")
    parser.add_argument("--requests", type=int, help="requests on each connection (idle: 0, else 1)")
    parser.add_argument("--path", default=SMALL_PATH)
    parser.add_argument("--policy", default=POLICY, help="s2n policy; a dated one never changes")
    parser.add_argument("--cipher", default=CIPHER, help="must be negotiated; empty: any")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for a handshake, a request")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for the whole run")
    parser.add_argument("--max-errors", type=int, default=100, help="so many failures end the run")
    options = vars(parser.parse_args(arguments))
    if options["connections"] is None and options["duration"] is None:
        options["connections"] = 1
    if options["requests"] is None:
        options["requests"] = 0 if options["mode"] is Mode.IDLE else 1
    return Plan(**options)


def main(arguments: list[str]) -> int:
    """Run the command line, print JSON; 0 unless connections failed (then 1)."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    client = LoadClient(parse_arguments(arguments))
    gc.freeze()  # what is there by now stays: not worth looking at again
    try:
        client.run()
        if client.plan.mode is Mode.IDLE:
            print(json.dumps(client.result().to_json()), flush=True)
            client.hold(sys.stdin.fileno())
        print(json.dumps(client.result().to_json()), flush=True)
        return 1 if client.result().failed else 0
    finally:
        client.close()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
