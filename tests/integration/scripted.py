"""A web server whose every byte is written in the test, and the proxy in HTTP mode before it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.integration.clients import TIMEOUT, TlsClient, connect_tcp, reset
from tests.offload.identities import Identities
from tests.support.proxy import Proxy, listener, running_proxy


class Peer:
    """The server's end of one connection of the proxy."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def read(self, size: int) -> bytes:
        """So many bytes; fewer where the stream ends."""
        while len(self._rest) < size and (data := self.sock.recv(65536)):
            self._rest += data
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def read_until(self, end: bytes) -> bytes:
        """Bytes up to these, and with them. Raises EOFError."""
        while end not in self._rest:
            if not (data := self.sock.recv(65536)):
                raise EOFError(f"the proxy ended the connection after {self._rest!r}")
            self._rest += data
        data, _, self._rest = self._rest.partition(end)
        return data + end

    def head(self) -> list[str]:
        """The lines of the next request's head, without the headers about the client."""
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")[:-2]
        return [
            line
            for line in lines
            if not line.lower().startswith(("x-forwarded-", "forwarded:", "x-request-id:"))
        ]

    def send(self, data: bytes) -> None:
        """All of it."""
        self.sock.sendall(data)

    @contextlib.contextmanager
    def sending(self, data: bytes) -> Iterator[None]:
        """All of it, however little the kernel holds: it goes while the block reads at the other end."""
        thread = threading.Thread(target=self.send, args=(data,))
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def is_silent(self, seconds: float = 0.15) -> bool:
        """Whether nothing comes for so long."""
        return not self._rest and not select.select([self.sock], [], [], seconds)[0]

    def is_closed(self) -> bool:
        """Wait for the end of the stream: whether nothing came before."""
        try:
            return self.read(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        """Break off."""
        reset(self.sock)


class ScriptedServer:
    """Listens; a test accepts each connection and plays the server."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.settimeout(TIMEOUT)
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"

    def accept(self) -> Peer:
        """The next connection of the proxy."""
        return Peer(self._sock.accept()[0])

    def is_left_alone(self, seconds: float = 0.15) -> bool:
        """Whether no connection comes for so long."""
        return not select.select([self._sock], [], [], seconds)[0]

    def turn_away(self) -> None:
        """Close the connections that nobody has accepted: the next test is not to take one for its own."""
        while select.select([self._sock], [], [], 0)[0]:
            self.accept().sock.close()

    def close(self) -> None:
        """Listen no longer."""
        self._sock.close()


@dataclass
class HttpWorld:
    """The proxy, its scripted server, and clients."""

    proxy: Proxy
    server: ScriptedServer
    context: Any

    @contextlib.contextmanager
    def client(self, name: str = "http", sent: bytes = b"") -> Iterator[TlsClient]:
        """A client of a listener, which has sent this: with the end of its handshake, before any time limit."""
        with TlsClient(connect_tcp(self.proxy.ports[name]), self.context) as client:
            client.handshake(sent)
            yield client

    def error_of(self, sent: bytes, name: str = "http") -> int:
        """The status of the error that such bytes are answered with, whereupon the connection is closed."""
        with self.client(name, sent) as client:
            response = client.response()
            assert response.headers["connection"] == "close"
            assert client.recv_all() == b""
            return response.status


@contextlib.contextmanager
def http_world(
    identities: Identities, directory: Path, context: Any, web: str, closed: str
) -> Iterator[HttpWorld]:
    """One worker; listeners with one short time limit each, with small ones, and whose server is not there."""
    server = ScriptedServer()
    chains = [identities.issue("p256", "a.test", more=["localhost", "a"]).chain_path]
    http = {"mode": "http"}
    settings = {
        "listeners": [
            listener("http", chains, [server.address]) | http,
            *(
                listener(f"short-{limit}", chains, [server.address])
                | http
                | {"http": {"timeouts": {limit: "300ms"}}}
                for limit in ("head", "body", "first_byte", "response", "idle")
            ),
            listener("small", chains, [server.address])
            | http
            | {"http": {"limits": {"request_line": 100, "head": 1000, "headers": 5, "body": 1000}}},
            listener("web", chains, [web]) | http,
            listener("closed", chains, [closed]) | http,
        ],
        "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
        "limits": {"drain_timeout": "5s"},
    }
    with contextlib.closing(server), running_proxy(directory, settings) as proxy:
        yield HttpWorld(proxy, server, context)
