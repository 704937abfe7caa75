"""Hostile requests: none gets past with a second meaning, and each is also shown to nginx."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.integration.clients import TIMEOUT, TlsClient, Truncated, connect_tcp
from tests.integration.hostile import AFTERWARDS, CASES, NGINX
from tests.offload.identities import Identities
from tests.support.hsm_support import free_port, require
from tests.support.nginx import running_nginx
from tests.support.proxy import listener, running_proxy

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Recorder:
    """A server that answers the first head of each connection, and keeps all that came."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(TIMEOUT)
                self.received.append(b"")
                while data := sock.recv(65536):
                    self.received[-1] += data
                    if b"\r\n\r\n" in self.received[-1]:
                        sock.sendall(_ANSWER)
                        sock.shutdown(socket.SHUT_WR)


def _statuses(answers: bytes) -> tuple[int, ...]:
    return tuple(int(status) for status in _STATUS.findall(answers)) or (0,)


def _through_proxy(port: int, context: ssl.SSLContext, sent: bytes) -> tuple[int, ...]:
    with TlsClient.connect(port, context) as client:
        received = b""
        with contextlib.suppress(Truncated, OSError):
            client.send(sent)
            while part := client.recv():
                received += part
        return _statuses(received)


def _through_nginx(port: int, sent: bytes) -> tuple[int, ...]:
    with connect_tcp(port) as sock:
        received = b""
        with contextlib.suppress(OSError):
            sock.sendall(sent)
            while part := sock.recv(65536):
                received += part
        return _statuses(received)


@contextlib.contextmanager
def _nginx(directory: Path, server: str) -> Iterator[int]:
    with free_port() as port:
        http = f"""access_log off; client_header_timeout 1s; client_body_timeout 300ms; keepalive_timeout 300ms;
        server {{ listen 127.0.0.1:{port}; location / {{
            proxy_pass http://{server}; proxy_http_version 1.1; proxy_request_buffering off;
            proxy_set_header Host $host;
        }} }}"""
        with running_nginx(directory, [port], http=http):
            yield port


def test_hostile_requests(identities: Identities, any_version: ssl.SSLContext, tmp_path: Path) -> None:
    """What is refused is refused with its status and reaches no server; the rest means one thing only."""
    certificate = identities.issue("p256", "a.test", more=["localhost", "a"])
    with Recorder() as recorder:
        settings = {
            "listeners": [
                listener("http", [certificate.chain_path], [recorder.address])
                | {"mode": "http", "http": {"timeouts": {"head": "300ms", "body": "300ms"}}}
            ],
            "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
            "workers": 1,
        }
        with running_proxy(tmp_path / "proxy", settings) as proxy:
            for case in CASES:
                before = len(recorder.received)
                found = _through_proxy(proxy.ports["http"], any_version, case.sent + AFTERWARDS)
                assert found == case.ours, case.name
                seen = recorder.received[before:]
                assert len(seen) == case.ours.count(200), f"{case.name}: a server was asked"
                assert all(part.count(b" HTTP/1.1\r\n") == 1 for part in seen), case.name
            proxy.assert_clean()


def test_nginx_beside_it(tmp_path: Path) -> None:
    """What the table says of nginx is so, and each difference has its reason."""
    version = subprocess.run([require("nginx"), "-v"], capture_output=True, text=True, check=True).stderr
    if NGINX not in version:
        pytest.skip(f"the table is about {NGINX}x; this is {version.strip()}")
    with Recorder() as recorder, _nginx(tmp_path / "nginx", recorder.address) as port:
        for case in CASES:
            assert _through_nginx(port, case.sent + AFTERWARDS) == case.nginx, case.name
            assert (case.ours == case.nginx) == (case.why == ""), f"{case.name}: why?"
