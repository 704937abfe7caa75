"""TLS clients that a test drives byte by byte, and a load of them in threads."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import eventually

TIMEOUT = 20.0
"""Longest wait for anything that must come: far above what a loaded machine needs."""
_PAUSE = 0.01
"""Seconds between the connections of a load's thread: the rest of the machine is for what is under test."""

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Truncated(Exception):
    """The server's stream ended without a close_notify."""


def client_context(ca: Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A verifying client's context; for one TLS version, or for both."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.minimum_version = version or TLS12
    context.maximum_version = version or TLS13
    return context


def connect_tcp(port: int, *, receive_buffer: int = 0, source: str = "") -> socket.socket:
    """A blocking connection to a port of this machine; `source` is any 127.x.y.z to come from."""
    sock = socket.socket()
    try:
        if source:
            sock.bind((source, 0))
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class TlsClient:
    """A verifying TLS client over memory BIOs: each record and each end of the stream is the test's.

    Reading raises `Truncated` at a bare FIN and OSError at a reset; b"" is a close_notify.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Nothing is sent yet: see `handshake`. `session`: of an earlier client of the same context."""
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self._rest = b""

    @classmethod
    def connect(
        cls,
        port: int,
        context: ssl.SSLContext,
        *,
        receive_buffer: int = 0,
        source: str = "",
        session: ssl.SSLSession | None = None,
    ) -> Self:
        """Connect and shake hands."""
        sock = connect_tcp(port, receive_buffer=receive_buffer, source=source)
        try:
            client = cls(sock, context, session=session)
            client.handshake()
        except BaseException:
            sock.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def handshake(self, first: bytes = b"") -> None:
        """Shake hands; `first` is sent in one write with the client's Finished."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                self._feed()
        if first:
            self.tls.write(first)
        self.flush()

    def client_hello(self) -> bytes:
        """The first flight, not sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def flush(self) -> None:
        """Send what is encrypted."""
        if data := self._outgoing.read():
            self.sock.sendall(data)

    def _feed(self) -> None:
        data = self.sock.recv(262_144)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def write(self, data: bytes) -> None:
        """Encrypt without sending; each call makes records of its own."""
        self.tls.write(data)

    def send(self, data: bytes) -> None:
        """Encrypt and send all of it."""
        self.tls.write(data)
        self.flush()

    def recv(self, size: int = 65536) -> bytes:
        """Some bytes, b"" after a close_notify. Raises Truncated."""
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLEOFError as error:
                raise Truncated from error
            except ssl.SSLWantReadError:
                self._feed()

    def recv_exactly(self, size: int) -> bytes:
        """That many bytes. Raises EOFError when they end before."""
        data = bytearray()
        while len(data) < size:
            part = self.recv(size - len(data))
            if not part:
                raise EOFError(f"{len(data)} of {size} bytes")
            data += part
        return bytes(data)

    def recv_all(self) -> bytes:
        """Everything up to the close_notify."""
        data = bytearray()
        while part := self.recv():
            data += part
        return bytes(data)

    def exchange(self, records: Iterable[bytes], size: int) -> bytes:
        """Send records and read `size` bytes, both as fast as they go."""
        received, outgoing, source = bytearray(), b"", iter(records)
        while len(received) < size:
            while len(outgoing) < 200_000 and (record := next(source, None)) is not None:
                self.tls.write(record)
                outgoing += self._outgoing.read()
            wanted = [self.sock] if outgoing else []
            readable, writable, _ = select.select([self.sock], wanted, [], TIMEOUT)
            if not readable and not writable:
                raise TimeoutError(f"{len(received)} of {size} bytes, and nothing moves")
            if writable:
                outgoing = outgoing[self.sock.send(outgoing[:65536]) :]
            if readable:
                self._feed()
                with contextlib.suppress(ssl.SSLWantReadError):
                    while part := self.tls.read(65536):
                        received += part
        return bytes(received)

    def send_until_blocked(self, data: bytes, seconds: float = 0.3) -> int:
        """Send the same bytes again and again until the other side has taken none for so long."""
        outgoing, sent = b"", 0
        while select.select([], [self.sock], [], seconds)[1]:
            if not outgoing:
                self.tls.write(data)
                outgoing = self._outgoing.read()
            count = self.sock.send(outgoing[:65536])
            outgoing, sent = outgoing[count:], sent + count
        return sent

    def close_notify(self) -> None:
        """End this direction of the TLS stream; reading goes on."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.flush()

    def fin(self) -> None:
        """End this direction of the TCP stream."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break off."""
        reset(self.sock)

    def get(self, path: str, *, close: bool = False) -> Response:
        """A GET request and its response."""
        return self.request("GET", path, close=close)

    def request(self, method: str, path: str, body: bytes = b"", *, close: bool = False) -> Response:
        """A request and its response."""
        self.send(request_bytes(method, path, body, close=close))
        return self.response()

    def head(self) -> Response:
        """The next response without its body."""
        head = bytearray()
        while b"\r\n\r\n" not in head:
            part = self.recv()
            if not part:
                raise EOFError(f"the stream ended within a response: {bytes(head)!r}")
            head += part
        lines, _, self._rest = bytes(head).partition(b"\r\n\r\n")
        status, *fields = lines.decode().split("\r\n")
        pairs = (line.partition(":") for line in fields)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        return Response(int(status.split()[1]), headers, b"")

    def response(self) -> Response:
        """The next response: by Content-Length, or up to the end."""
        head = self.head()
        length = head.headers.get("content-length")
        body = self.recv_exactly(int(length)) if length is not None else self.recv_all()
        return replace(head, body=body)


def request_bytes(method: str, path: str, body: bytes = b"", *, close: bool = False) -> bytes:
    """An HTTP/1.1 request."""
    connection = "close" if close else "keep-alive"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n"
    if body or method == "POST":
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


@dataclass
class Attempt:
    """One connection of a load: connect, handshake, one request, goodbye."""

    started: float
    ended: float = 0.0
    stage: str = "connect"
    """How far it came: connect, handshake, request, done."""
    error: str = ""

    @property
    def seconds(self) -> float:
        """How long it took, until success or failure."""
        return self.ended - self.started


@dataclass
class Load:
    """Threads that make one connection after the other until the end of the `with` block."""

    port: int
    context: ssl.SSLContext
    path: str = "/"
    threads: int = 4
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(self.threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End after the attempts under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def done(self) -> list[Attempt]:
        """Those that succeeded."""
        return [attempt for attempt in list(self.attempts) if attempt.stage == "done"]

    @property
    def failed(self) -> list[Attempt]:
        """Those that did not."""
        return [attempt for attempt in list(self.attempts) if attempt.stage != "done"]

    def wait_done(self, more: int) -> None:
        """Wait until this many more attempts have succeeded."""
        target = len(self.done) + more
        eventually(lambda: len(self.done) >= target, f"{more} more connections under load", TIMEOUT)

    def _run(self) -> None:
        while not self._stop.is_set():
            attempt = Attempt(time.monotonic())
            try:
                self._attempt(attempt)
            except (OSError, EOFError, Truncated) as error:
                attempt.error = f"{type(error).__name__}: {error}"
            attempt.ended = time.monotonic()
            self.attempts.append(attempt)
            self._stop.wait(_PAUSE)

    def _attempt(self, attempt: Attempt) -> None:
        with contextlib.closing(connect_tcp(self.port)) as sock:
            client = TlsClient(sock, self.context)
            attempt.stage = "handshake"
            client.handshake()
            attempt.stage = "request"
            response = client.get(self.path)
            assert response.status == 200
            client.close_notify()
            attempt.stage = "done"


@contextlib.contextmanager
def many_clients(port: int, context: ssl.SSLContext, count: int) -> Iterator[list[TlsClient]]:
    """That many clients, all connected at the same time."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(TlsClient.connect(port, context)) for _ in range(count)]
