"""A web server for tests: a thread for each connection, and a path for each kind of behaviour.

/            a small page that names the connection
/bytes/N     N bytes of a known pattern
/sha256      the checksum of the request's body
/wait/MS     a page, after MS milliseconds
/eof         reads up to the end of the stream, answers with its length and checksum, closes
/ends        answers without a length, ends its direction, and reads on
/closes      answers without a length and closes
/closes/N    N bytes of the pattern without a length, then closes
/echo        from the request's body on, whatever comes goes back, until the end of the stream
/reset       half of an answer, then a reset
/silent      reads and never answers
/drip/N      N bytes, one every 0.1 s, then closes
/early       answers at once without reading the body, ends its direction, and reads on
/held        waits until `release` is set, then answers
/paused      reads the body only once `release` is set, answers with its checksum
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.integration.clients import TIMEOUT, reset
from tests.support import eventually

PATTERN = hashlib.sha256(b"pattern").digest() * 2048
"""64 KiB, the same again and again in /bytes/N."""


def pattern(size: int) -> bytes:
    """What /bytes/N sends."""
    return PATTERN * (size // len(PATTERN)) + PATTERN[: size % len(PATTERN)]


_numbers = itertools.count(1)


def unique(path: str) -> str:
    """The path with a query of its own, by which its connection is found again."""
    return f"{path}?{next(_numbers)}"


class _Over(Exception):
    """The stream ended."""


@dataclass
class Seen:
    """What the server saw of one connection."""

    requests: list[str] = field(default_factory=list)
    """Their paths."""
    received: int = 0
    """Bytes read, heads included."""
    sent: int = 0
    end: str = ""
    """How the proxy ended its direction: eof, reset; empty while it is open."""


class _Session:
    """One connection."""

    def __init__(self, server: Upstream, sock: socket.socket, seen: Seen) -> None:
        self._server, self._sock, self._seen = server, sock, seen
        self._buffer = b""

    def run(self) -> None:
        try:
            while True:
                self._serve()
        except _Over:
            pass
        except TimeoutError:
            self._seen.end = self._seen.end or "timeout"
        except OSError:
            self._seen.end = self._seen.end or "reset"
        finally:
            with contextlib.suppress(OSError):
                self._sock.close()

    def _receive(self) -> bytes:
        data = self._sock.recv(262_144)
        self._seen.received += len(data)
        if not data:
            self._seen.end = "eof"
        return data

    def _head(self) -> tuple[str, int]:
        while b"\r\n\r\n" not in self._buffer:
            data = self._receive()
            if not data:
                raise _Over
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        _method, path, _version = lines[0].split()
        length = 0
        for line in lines[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                length = int(value)
        self._seen.requests.append(path)
        return path, length

    def _send(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            sent = self._sock.send(rest)
            self._seen.sent += sent
            rest = rest[sent:]

    def _answer(self, body: bytes, *, length: bool = True) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
        head += b"Content-Length: %d\r\n\r\n" % len(body) if length else b"Connection: close\r\n\r\n"
        self._send(head + body)

    def _body_checksum(self, length: int) -> bytes:
        checksum = hashlib.sha256(self._buffer[:length])
        left = length - len(self._buffer[:length])
        self._buffer = self._buffer[length:]
        while left:
            data = self._receive()
            if not data:
                raise _Over
            checksum.update(data[:left])
            self._buffer = data[left:]
            left -= min(left, len(data))
        return checksum.hexdigest().encode()

    def _serve(self) -> None:
        path, length = self._head()
        word, _, argument = path.strip("/").partition("?")[0].partition("/")
        behave = getattr(self, f"_do_{word}", None)
        if behave is None:
            self._answer(f"hello from {self._server.name}".encode())
        else:
            behave(argument, length)

    def _do_bytes(self, argument: str, _length: int) -> None:
        self._send_pattern(int(argument))

    def _do_sha256(self, _argument: str, length: int) -> None:
        self._answer(self._body_checksum(length))

    def _do_paused(self, _argument: str, length: int) -> None:
        assert self._server.release.wait(TIMEOUT)
        self._answer(self._body_checksum(length))

    def _do_drip(self, argument: str, _length: int) -> None:
        self._answer(b"", length=False)
        for _ in range(int(argument)):
            threading.Event().wait(0.1)
            self._send(b".")
        raise _Over

    def _do_early(self, _argument: str, _length: int) -> None:
        self._answer(b"no, thank you")
        self._sock.shutdown(socket.SHUT_WR)
        self._do_silent("", 0)

    def _do_held(self, _argument: str, _length: int) -> None:
        assert self._server.release.wait(TIMEOUT)
        self._answer(b"released")

    def _do_wait(self, argument: str, _length: int) -> None:
        threading.Event().wait(int(argument) / 1000)
        self._answer(b"waited")

    def _do_eof(self, _argument: str, _length: int) -> None:
        checksum, length = hashlib.sha256(self._buffer), len(self._buffer)
        while data := self._receive():
            checksum.update(data)
            length += len(data)
        self._answer(f"{length} {checksum.hexdigest()}".encode(), length=False)
        raise _Over

    def _do_ends(self, _argument: str, _length: int) -> None:
        self._answer(b"all of it", length=False)
        self._sock.shutdown(socket.SHUT_WR)
        self._do_silent("", 0)

    def _do_closes(self, argument: str, _length: int) -> None:
        self._answer(pattern(int(argument)) if argument else b"all of it", length=False)
        raise _Over

    def _do_echo(self, _argument: str, _length: int) -> None:
        self._send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + self._buffer)
        while data := self._receive():
            self._send(data)
        raise _Over

    def _do_reset(self, _argument: str, _length: int) -> None:
        self._send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
        reset(self._sock)
        raise _Over

    def _do_silent(self, _argument: str, _length: int) -> None:
        while self._receive():
            pass
        raise _Over

    def _send_pattern(self, size: int) -> None:
        self._send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(PATTERN)):
            self._send(PATTERN)
        self._send(PATTERN[: size % len(PATTERN)])


class Upstream:
    """The server: on a TCP port, a free one by default, or on a unix socket."""

    def __init__(self, name: str = "upstream", path: str = "", port: int = 0) -> None:
        """It listens when this returns; serving begins with the `with` block."""
        self.name = name
        self.release = threading.Event()
        self.connections: list[Seen] = []
        self._sockets: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind(path or ("127.0.0.1", port))
        self._listening.listen(512)
        self.port = 0 if path else int(self._listening.getsockname()[1])
        self.address = f"unix:{path}" if path else f"127.0.0.1:{self.port}"
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listening.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT * 2)
            seen = Seen()
            thread = threading.Thread(target=_Session(self, sock, seen).run)
            self._sockets.append(sock)
            self._threads.append(thread)
            thread.start()
            self.connections.append(seen)

    def wait_for(self, path: str) -> Seen:
        """The connection that carried a request for this `unique` path; waits for it."""

        def find() -> Seen | None:
            connections = reversed(list(self.connections))
            return next((seen for seen in connections if path in seen.requests), None)

        found = eventually(find, f"the upstream got a request for {path}", TIMEOUT)
        assert found is not None
        return found


class FullBacklog:
    """An address where connecting neither succeeds nor fails: a listener whose queue is full."""

    def __init__(self) -> None:
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(0)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._fillers: list[socket.socket] = []

    def __enter__(self) -> Self:
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listening.getsockname())
            self._fillers.append(filler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for filler in self._fillers:
            filler.close()
        self._listening.close()
