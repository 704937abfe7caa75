"""Clients that do not speak TLS, stop half-way, or say nothing: each is closed, and counted by its reason."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from offload.listener import EXPIRED_PER_TURN
from tests.integration.clients import TlsClient, connect_tcp
from tests.integration.conftest import HANDSHAKE_TIMEOUT, Shared
from tests.support.proxy import Proxy

FAILURES = "offload_handshake_failures_total"
SSH_BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"


@contextlib.contextmanager
def counted(proxy: Proxy, reason: str, count: int = 1) -> Iterator[None]:
    """In this block so many handshakes fail, all for this reason; others are served before and after."""
    before = proxy.metrics()
    yield
    proxy.wait_metric(FAILURES, before.value(FAILURES, reason=reason) + count, reason=reason)
    proxy.wait_idle()
    after = proxy.metrics()
    assert after.value(FAILURES) == before.value(FAILURES) + count
    name, labels = "offload_connections_total", {"outcome": "handshake_failed"}
    assert after.value(name, **labels) == before.value(name, **labels) + count


def read_to_the_end(sock: socket.socket) -> bytes:
    """All that the server says until it closes, by FIN or by reset."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            data += part
    return data


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", SSH_BANNER, b"\x00", b"\x80\x2e\x01\x00\x02", b"\x17\x03\x03\x00\x01x"],
    ids=["http", "ssh", "zero", "sslv2", "application data"],
)  # fmt: skip
def test_what_is_not_tls_is_closed_at_the_first_byte(world: Shared, first: bytes) -> None:
    """Plain HTTP, SSH and the like get nothing, and at once: no time limit has to pass."""
    with counted(world.proxy, "not_tls"), contextlib.closing(connect_tcp(world.proxy.ports["p256"])) as sock:
        sock.sendall(first)
        assert read_to_the_end(sock) == b""


def test_random_bytes(world: Shared) -> None:
    """Noise is closed, whatever its first byte; where it is a handshake's, it may take the time limit."""
    before = world.proxy.metrics().value(FAILURES)
    with contextlib.ExitStack() as stack:
        sockets = []
        for first in range(0, 256, 3):
            sock = stack.enter_context(contextlib.closing(connect_tcp(world.proxy.ports["p256"])))
            sock.sendall(bytes([first]) + os.urandom(300))
            sockets.append(sock)
        assert {read_to_the_end(sock) for sock in sockets} == {b""}
    world.proxy.wait_metric(FAILURES, before + 86)


BAD_HELLOS = {
    "too short": b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff",
    "no ciphers": b"\x16\x03\x01\x00\x2a\x01\x00\x00\x26\x03\x03" + bytes(36),
    "server hello": b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
    "empty record": b"\x16\x03\x01\x00\x00",
}


def test_bad_client_hellos(world: Shared) -> None:
    """A ClientHello that is none is the peer's fault; s2n's delay before the close is bounded."""
    port = world.proxy.ports["p256"]
    with counted(world.proxy, "protocol", len(BAD_HELLOS)), contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(contextlib.closing(connect_tcp(port))) for name in BAD_HELLOS}
        started = time.monotonic()
        for name, sock in sockets.items():
            sock.sendall(BAD_HELLOS[name])
        for name, sock in sockets.items():  # all of them at a time: most of it is waiting
            read_to_the_end(sock)
            assert time.monotonic() - started < 10, f"{name}: s2n itself wants 10 to 30 s"


def test_no_common_version(world: Shared) -> None:
    """A client that offers only TLS 1.1 is told so or closed, and counted as the peer's fault."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with counted(world.proxy, "protocol"), contextlib.closing(connect_tcp(world.proxy.ports["p256"])) as sock:
        hello = bytearray(TlsClient(sock, context).client_hello())
        # The version that TLS 1.2 reads, and the extension that TLS 1.3 reads: neither is known.
        assert hello[9:11] == b"\x03\x03"
        hello[9:11] = b"\x03\x01"
        versions = hello.index(b"\x00\x2b\x00")
        hello[versions : versions + 2] = b"\xfa\xfa"
        sock.sendall(hello)
        read_to_the_end(sock)


def test_client_that_distrusts_the_certificate(world: Shared) -> None:
    """A client's alert is counted as one, and needs no delay."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with (
        counted(world.proxy, "peer_alert"),
        contextlib.closing(connect_tcp(world.proxy.ports["p256"])) as sock,
    ):
        client = TlsClient(sock, context)
        with pytest.raises(ssl.SSLCertVerificationError):
            client.handshake()
        client.flush()


@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_client_that_leaves_before_its_hello_is_whole(
    world: Shared, any_version: ssl.SSLContext, size: int
) -> None:
    """Clients that connect and leave (port scanners, health checks) are counted as such."""
    with (
        counted(world.proxy, "peer_left"),
        contextlib.closing(connect_tcp(world.proxy.ports["p256"])) as sock,
    ):
        client = TlsClient(sock, any_version)
        sock.sendall(client.client_hello()[:size])
        client.fin()
        assert read_to_the_end(sock) == b""


@pytest.mark.parametrize("size", [0, 1, 200])
def test_client_that_resets_before_its_hello_is_whole(
    world: Shared, any_version: ssl.SSLContext, size: int
) -> None:
    """A reset is told as an I/O error, or as a leave where it came before the first look."""
    before = world.proxy.metrics()
    client = TlsClient(connect_tcp(world.proxy.ports["p256"]), any_version)
    client.sock.sendall(client.client_hello()[:size])
    client.reset()
    world.proxy.wait_metric(FAILURES, before.value(FAILURES) + 1)
    after = world.proxy.metrics()
    reasons = [
        after.value(FAILURES, reason=r) - before.value(FAILURES, reason=r) for r in ("io", "peer_left")
    ]
    assert sum(reasons) == 1


def test_silence_and_half_a_hello_meet_the_time_limit(hasty: Proxy, any_version: ssl.SSLContext) -> None:
    """Clients that say nothing, or not enough, are closed after handshake_timeout, and not before.

    They are more than a worker ends in one turn.
    """
    started = time.monotonic()
    sizes = (0, 1, 100, *([0] * 4 * EXPIRED_PER_TURN))
    with counted(hasty, "timeout", len(sizes)), contextlib.ExitStack() as stack:
        sockets = []
        for size in sizes:
            sock = stack.enter_context(contextlib.closing(connect_tcp(hasty.ports["p256"])))
            sock.sendall(TlsClient(sock, any_version).client_hello()[:size])
            sockets.append(sock)
        for sock in sockets:
            assert read_to_the_end(sock) == b""
            assert time.monotonic() - started >= HANDSHAKE_TIMEOUT


def test_handshake_drawn_out_byte_by_byte(hasty: Proxy, any_version: ssl.SSLContext) -> None:
    """The limit is on the whole handshake: a byte now and then does not extend it."""
    with counted(hasty, "timeout"), contextlib.closing(connect_tcp(hasty.ports["p256"])) as sock:
        hello = TlsClient(sock, any_version).client_hello()
        sock.settimeout(HANDSHAKE_TIMEOUT / 20)
        with contextlib.suppress(ConnectionError):
            for byte in hello:  # in all a multiple of the limit
                sock.sendall(bytes([byte]))
                try:
                    assert not sock.recv(1)
                    break
                except TimeoutError:
                    continue


def test_server_goes_on_for_others_meanwhile(world: Shared, any_version: ssl.SSLContext) -> None:
    """Hundreds of silent and bad clients do not keep a good one from being served."""
    with contextlib.ExitStack() as stack:
        for number in range(150):
            sock = stack.enter_context(contextlib.closing(connect_tcp(world.proxy.ports["p256"])))
            if number % 3:
                sock.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff" if number % 3 == 1 else b"\x16")
        with world.connect("p256", any_version) as client:
            assert client.get("/").status == 200
