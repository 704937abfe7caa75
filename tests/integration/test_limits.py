"""What a client may take up: each limit is met by a real client, while others are served."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.integration.clients import TIMEOUT, TlsClient, Truncated, connect_tcp, request_bytes
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import require
from tests.support.proxy import Proxy, listener, running_proxy

FAILURES = "offload_handshake_failures_total"
REFUSED = "offload_refused_total"
CONNECTIONS_MOST = 4
RATE, BURST = 2, 10
HANDSHAKE_BYTES_MOST = 8192
IDLE_TIMEOUT, HALF_CLOSE_TIMEOUT = 0.8, 0.5
RESET = {7, 35}
"""curl's exit codes for a reset: while it connects, or with its ClientHello."""
EXEMPT = "127.0.9.9"


@pytest.fixture(scope="module")
def proxy(
    identities: Identities, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """One worker with every limit per address; each test has clients of its own addresses."""
    settings = {
        "listeners": [listener("web", [identities["p256"].chain_path], [upstream.address])],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
        "limits": {
            "max_connections_per_address": CONNECTIONS_MOST,
            "handshakes_per_second_per_address": RATE,
            "handshake_burst_per_address": BURST,
            "max_handshake_bytes": HANDSHAKE_BYTES_MOST,
            "idle_timeout": f"{IDLE_TIMEOUT:g}s",
            "half_close_timeout": f"{HALF_CLOSE_TIMEOUT:g}s",
            "exempt": [EXEMPT, "127.0.8.0/24"],
            "drain_timeout": "2s",
        },
    }  # fmt: skip
    with running_proxy(tmp_path_factory.mktemp("limits"), settings) as running:
        yield running


def is_served(proxy: Proxy, context: ssl.SSLContext, source: str) -> bool:
    """Whether a client from this address gets its page; False when it is refused by a reset."""
    try:
        with TlsClient.connect(proxy.ports["web"], context, source=source) as client:
            return client.get("/", close=True).status == 200
    except ConnectionError:
        return False


def test_connections_of_one_address(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """One more than the limit is refused at once; it is let in when another has ended."""
    source, refused = "127.0.1.1", {"listener": "web", "reason": "address_connections"}
    before = proxy.metrics().value(REFUSED, **refused)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(TlsClient.connect(proxy.ports["web"], any_version, source=source))
            for _ in range(CONNECTIONS_MOST)
        ]
        assert not is_served(proxy, any_version, source)
        assert is_served(proxy, any_version, "127.0.1.2")
        assert all(client.get("/").status == 200 for client in clients)
        assert proxy.metrics().value(REFUSED, **refused) == before + 1
        clients[0].sock.close()
        eventually(lambda: is_served(proxy, any_version, source), "there is room again", TIMEOUT)


def test_handshakes_a_second_of_one_address(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """The burst is let in, then the rate; silent connections count like any."""
    source, before = "127.0.2.1", proxy.metrics().value(REFUSED, reason="address_rate")
    started = time.monotonic()
    for _ in range(BURST):
        connect_tcp(proxy.ports["web"], source=source).close()
        proxy.wait_idle()
    attempts = [is_served(proxy, any_version, source) for _ in range(40)]
    credit = BURST + RATE * (time.monotonic() - started)
    assert BURST + sum(attempts) <= credit + 1
    assert not all(attempts)
    refused = proxy.metrics().value(REFUSED, listener="web", reason="address_rate") - before
    assert refused == attempts.count(False)
    assert is_served(proxy, any_version, "127.0.2.2")
    eventually(lambda: is_served(proxy, any_version, source), "it is let in at the rate", TIMEOUT)


@pytest.mark.parametrize("source", [EXEMPT, "127.0.8.1"])
def test_exempt_addresses(proxy: Proxy, any_version: ssl.SSLContext, source: str) -> None:
    """They meet neither limit."""
    with contextlib.ExitStack() as stack:
        for _ in range(BURST + CONNECTIONS_MOST):
            stack.enter_context(contextlib.closing(connect_tcp(proxy.ports["web"], source=source)))
        assert is_served(proxy, any_version, source)


def curl(proxy: Proxy, identities: Identities, source: str, count: int = 1) -> list[int]:
    """curl's exit codes for pages, asked for from this address over a connection each, one after the other."""
    port = proxy.ports["web"]
    command = [
        require("curl"), "--silent", "--noproxy", "*", "--cacert", str(identities.ca), "--interface", source,
        "--resolve", f"localhost:{port}:127.0.0.1",
        "--write-out", "%{stderr}%{exitcode} ", *[f"https://localhost:{port}/closes"] * count,
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    return [int(code) for code in done.stderr.split()]


def test_curl_and_openssl_meet_the_limits(
    proxy: Proxy, identities: Identities, any_version: ssl.SSLContext
) -> None:
    """Too many connections, too many in a second: a reset. Silence: s_client is hung up on."""
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MOST):
            stack.enter_context(TlsClient.connect(proxy.ports["web"], any_version, source="127.0.6.1"))
        assert set(curl(proxy, identities, "127.0.6.1")) <= RESET
        assert curl(proxy, identities, "127.0.6.2") == [0]
    codes = curl(proxy, identities, "127.0.6.3", 4 * BURST)
    assert codes[:BURST] == [0] * BURST
    assert {0} < set(codes) <= {0, *RESET}
    command = [require("openssl"), "s_client", "-quiet", "-connect", f"127.0.0.1:{proxy.ports['web']}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as silent:
        silent.wait(TIMEOUT)


def test_idle_connections_end(proxy: Proxy, either: ssl.SSLContext) -> None:
    """Silence ends a connection without a close_notify, since no side said that it was done."""
    source, before = "127.0.3.1", proxy.metrics()
    with TlsClient.connect(proxy.ports["web"], either, source=source) as client:
        client.send(request_bytes("GET", "/silent"))
        started = time.monotonic()
        with pytest.raises((Truncated, ConnectionResetError)):
            client.recv()
        assert time.monotonic() - started >= IDLE_TIMEOUT
    name, labels = "offload_connections_total", {"outcome": "idle_timeout"}
    assert proxy.metrics().value(name, **labels) == before.value(name, **labels) + 1


def is_kept(proxy: Proxy, context: ssl.SSLContext, source: str, *, half_closed: bool) -> bool:
    """Whether a connection in which a byte moves now and then outlives both time limits."""
    with TlsClient.connect(proxy.ports["web"], context, source=source) as client:
        client.send(request_bytes("GET", "/drip/12"))
        if half_closed:
            client.close_notify()
        try:
            return client.response().body == b"." * 12
        except (Truncated, ConnectionError):
            return False


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_little_now_and_then_is_not_idle(proxy: Proxy, tls13: ssl.SSLContext, half_closed: bool) -> None:
    """A byte now and then keeps a connection, however long it takes: the limits are on standstill.

    Should the machine stand still for as long, another connection shows it.
    """
    source = f"127.0.3.{2 + half_closed}"
    eventually(lambda: is_kept(proxy, tls13, source, half_closed=half_closed), "one that is kept", TIMEOUT)


def test_a_half_closed_connection_that_stands_still_is_ended(proxy: Proxy, tls13: ssl.SSLContext) -> None:
    """With one direction over and nothing moving in the other, half_close_timeout ends the connection."""
    name, outcome = "offload_connections_total", "half_close_timeout"
    before = proxy.metrics().value(name, outcome=outcome)
    with TlsClient.connect(proxy.ports["web"], tls13, source="127.0.3.4") as client:
        client.write(request_bytes("GET", "/wait/5000"))
        started = time.monotonic()
        client.close_notify()
        with contextlib.suppress(Truncated, OSError):
            client.recv()
        assert time.monotonic() - started >= HALF_CLOSE_TIMEOUT
    proxy.wait_metric(name, before + 1, outcome=outcome)


def test_bytes_before_the_handshake_ends(proxy: Proxy) -> None:
    """A ClientHello in records of one byte would be 360 KB that s2n reads patiently: it is cut short."""
    start, byte = b"\x16\x03\x01\x00\x04\x01\x00\xf0\x00", b"\x16\x03\x01\x00\x01\x00"
    before = proxy.metrics().value(FAILURES, reason="too_many_bytes")
    with contextlib.closing(connect_tcp(proxy.ports["web"], source="127.0.5.1")) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(start)
        with contextlib.suppress(ConnectionError):
            for _ in range(20_000):
                sock.sendall(byte)
    proxy.wait_metric(FAILURES, before + 1, reason="too_many_bytes")


def test_thousands_of_silent_clients(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """2,000 clients that say nothing are held, and cost a good one neither its page nor its place."""
    with contextlib.ExitStack() as stack:
        for number in range(2000):
            source = f"127.0.8.{number % 200 + 1}"
            stack.enter_context(contextlib.closing(connect_tcp(proxy.ports["web"], source=source)))
        proxy.wait_metric("offload_connections_active", 2000)
        assert all(is_served(proxy, any_version, "127.0.4.1") for _ in range(5))
        assert proxy.metrics().value("offload_connections_active") >= 2000
    proxy.wait_idle()
