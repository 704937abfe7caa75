"""Checks of upstream servers, against nginx and against servers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from hsm.config import Address
from loadtest.targets.lab import Lab
from loadtest.targets.peers import start_upstream
from offload.config_upstream import HealthSettings, HttpCheckSettings
from offload.prober import check
from offload.proxy_protocol import Version, encode_local
from tests.integration.upstreams import FullBacklog, Upstream
from tests.loadtest.conftest import real_components
from tests.support.hsm_support import free_port
from tests.support.nginx import running_nginx


def checked(address: Address, timeout: str = "5s", **http: Any) -> str:
    """What a check finds: by HTTP, if anything is said of that."""
    settings = HealthSettings.model_validate({"timeout": timeout, "http": http or None})
    return asyncio.run(check(address, settings))


class Answering:
    """A server that reads a request, sends `data`, and hangs up."""

    def __init__(self, data: bytes) -> None:
        self.requests: list[bytes] = []
        self._data = data
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listening.getsockname())
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            with sock:
                self.requests.append(sock.recv(4096))
                sock.sendall(self._data)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


@pytest.fixture(scope="module")
def nginx() -> Iterator[Address]:
    """nginx with /small and /large."""
    with Lab() as lab, real_components():
        yield Address("127.0.0.1", start_upstream(lab).ports[0])


def test_nginx(nginx: Address) -> None:
    """It can be connected to, has a page, and lacks another one; a large body is not waited for."""
    assert checked(nginx) == ""
    assert checked(nginx, path="/small") == ""
    assert checked(nginx, path="/large") == ""
    assert checked(nginx, path="/missing") == "answered 404, not 200"
    assert checked(nginx, path="/missing", expect=404) == ""


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_behind_proxy_headers(tmp_path: Path, version: Version) -> None:
    """A server that waits for a header answers checks that begin with one, and no others."""
    with free_port() as port:
        http = f"access_log off; server {{ listen 127.0.0.1:{port} proxy_protocol; return 200; }}"
        with running_nginx(tmp_path, [port], http=http):
            address, settings = Address("127.0.0.1", port), HealthSettings(http=HttpCheckSettings())
            assert asyncio.run(check(address, settings, encode_local(version))) == ""
            assert asyncio.run(check(address, HealthSettings(), encode_local(version))) == ""
            assert asyncio.run(check(address, settings)) == "closed the connection without an answer"


def test_unix_socket(socket_directory: Path) -> None:
    """By HTTP and by connecting; and one that is not there."""
    path = f"{socket_directory}/checked.sock"
    with Upstream("unix", path):
        assert checked(Address(path=path)) == ""
        assert checked(Address(path=path), path="/") == ""
    Path(path).unlink()
    assert checked(Address(path=path)) == "No such file or directory"
    assert checked(Address(path=path), path="/") == "No such file or directory"


def test_refused() -> None:
    """Nobody listens."""
    with free_port() as port:
        assert checked(Address("127.0.0.1", port)) == "Connection refused"
        assert checked(Address("127.0.0.1", port), path="/") == "Connection refused"


@pytest.mark.parametrize("http", [{}, {"path": "/"}])
def test_hanging_while_connecting(http: dict[str, str]) -> None:
    """A full queue: neither yes nor no, until the time is over."""
    with FullBacklog() as server:
        host, _, port = server.address.partition(":")
        assert checked(Address(host, int(port)), "200ms", **http) == "no answer within 0.2 s"


def test_silent_server(upstream: Upstream) -> None:
    """It takes the request and says nothing: well enough to be connected to, not to serve."""
    address = Address("127.0.0.1", upstream.port)
    assert checked(address, "200ms", path="/silent") == "no answer within 0.2 s"
    assert checked(address, "200ms") == ""


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n", "closed the connection without an answer"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "answered 204, not 200"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "answered 302, not 200"),
    ],
)
def test_odd_answers(data: bytes, fault: str) -> None:
    """Each is a fault in a few words of ours: nothing of what the server sent gets into the log."""
    with Answering(data) as server:
        assert checked(server.address, path="/") == fault


def test_host_header() -> None:
    """The configured one; else the server's address."""
    with Answering(b"HTTP/1.1 200 OK\r\n\r\n") as server:
        assert checked(server.address, path="/a?b=c", host="www.example.org") == ""
        assert checked(server.address, path="/") == ""
    first, second = server.requests
    assert first.startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"\r\nHost: www.example.org\r\n" in first
    assert f"\r\nHost: {server.address}\r\n".encode() in second
