"""Connections that wait for something cost nothing meanwhile, and leave nothing when they are over."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.clients import (
    TIMEOUT,
    TLS12,
    TLS13,
    TlsClient,
    Truncated,
    client_context,
    connect_tcp,
    request_bytes,
)
from tests.integration.clusters import Cluster
from tests.integration.conftest import Shared
from tests.integration.test_nodes import begin
from tests.integration.upstreams import PATTERN, unique
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import missing
from tests.support.proxy import Proxy

BUSY_MOST = 0.25
"""Share of a core that all workers may use while nothing happens but heartbeats and ticks."""


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes (proc(5), schedstat)."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) * 1e-9


def share_used(proxy: Proxy, wait: Callable[[], object]) -> float:
    """The share of a core that all workers together use while this waits for something."""
    pids = proxy.worker_pids()
    before, started = cpu_seconds(pids), time.monotonic()
    wait()
    return (cpu_seconds(pids) - before) / (time.monotonic() - started)


def assert_idle(proxy: Proxy) -> None:
    """Its workers do next to nothing for a while, now or when what came late is done: no wait spins."""
    shares: list[float] = []
    while not shares or shares[-1] >= BUSY_MOST:
        assert len(shares) < 4, f"shares of a core: {shares}"
        shares.append(share_used(proxy, lambda: threading.Event().wait(0.25)))


def upload(client: TlsClient, path: str) -> None:
    client.send(f"POST {path} HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n".encode())
    client.send_until_blocked(PATTERN)


def idle(world: Shared, client: TlsClient) -> None:
    """Nothing was asked yet."""


def half_closed_client(world: Shared, client: TlsClient) -> None:
    """It said goodbye, also by a FIN, and waits for its answer."""
    client.send(request_bytes("GET", "/silent"))
    client.close_notify()
    client.fin()


def upstream_ended(world: Shared, client: TlsClient) -> None:
    """The answer is complete, and the client keeps its direction open."""
    client.send(request_bytes("GET", "/ends"))
    client.response()


def upstream_closed_and_client_talks(world: Shared, client: TlsClient) -> None:
    """The upstream is gone, and the client has sent more."""
    client.send(request_bytes("GET", "/closes"))
    client.response()
    client.send(b"more")


def stalled_upload(world: Shared, client: TlsClient) -> None:
    """The upstream does not read."""
    upload(client, "/paused")


def stalled_upload_of_a_client_that_ended(world: Shared, client: TlsClient) -> None:
    """The upstream does not read, and the client's FIN waits behind what it has sent."""
    upload(client, "/paused")
    client.fin()


def stalled_download(world: Shared, client: TlsClient) -> None:
    """The client does not read."""
    path = unique("/bytes/100000000")
    client.send(request_bytes("GET", path))
    world.upstream.wait_for(path)


def stalled_download_of_an_upstream_that_ended(world: Shared, client: TlsClient) -> None:
    """The client does not read, and the upstream has closed behind its last byte."""
    path = unique("/closes/3000000")
    client.send(request_bytes("GET", path))
    world.upstream.wait_for(path)


WAITS: tuple[Callable[[Shared, TlsClient], None], ...] = (
    idle,
    half_closed_client,
    upstream_ended,
    upstream_closed_and_client_talks,
    stalled_upload,
    stalled_upload_of_a_client_that_ended,
    stalled_download,
    stalled_download_of_an_upstream_that_ended,
)


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
def test_waiting_does_not_spin(
    world: Shared, either: ssl.SSLContext, wait: Callable[[Shared, TlsClient], None]
) -> None:
    """Whatever a connection waits for, no event that nobody acts on keeps the worker busy."""
    with TlsClient.connect(world.proxy.ports["p256"], either, receive_buffer=16_384) as client:
        wait(world, client)
        assert_idle(world.proxy)
        client.reset()
    world.upstream.release.set()


def test_waiting_for_an_upstream_does_not_spin(world: Shared, tls13: ssl.SSLContext) -> None:
    """A connect that takes long, with a client that talks, and one that left meanwhile."""
    with world.connect("slow-dial", tls13) as client, world.connect("slow-dial", tls13) as other:
        client.send(b"hello")
        other.send(b"hello")
        other.fin()
        assert_idle(world.proxy)


def test_bad_client_that_is_held_does_not_spin(world: Shared) -> None:
    """A socket that is kept open because of blinding is not read, whatever comes on it."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(contextlib.closing(connect_tcp(world.proxy.ports["p256"])))
            sock.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff" + b"x" * 1000)
        assert_idle(world.proxy)


def test_waiting_for_a_signature_does_not_spin(
    cluster: Cluster,
    any_version: ssl.SSLContext,
) -> None:
    """A client that waits, and one that sends too early, while the node takes its time."""
    for name in cluster.nodes:
        cluster.emulate(name, latency="2s")
    with begin(cluster.port, any_version) as client, begin(cluster.port, any_version) as early:
        cluster.proxy.wait_metric("hsm_client_outstanding", 2)
        early.sock.sendall(b"\x14\x03\x03\x00\x01\x01")
        assert_idle(cluster.proxy)
        client.handshake()


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_waiting_for_a_signature_behind_a_long_chain_does_not_spin(
    cluster: Cluster,
    identities: Identities,
    version: ssl.TLSVersion,
) -> None:
    """A flight that did not fit into the socket at once is sent; then the signature is waited for."""
    for name in cluster.nodes:
        cluster.emulate(name, latency="900ms")
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536
        )  # so that the server's buffer is small too
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", cluster.proxy.ports["long"]))
        client = TlsClient(sock, client_context(identities.ca, version))
        assert share_used(cluster.proxy, client.handshake) < 2 * BUSY_MOST
        assert client.get("/").status == 200


def descriptors(proxy: Proxy) -> float:
    """Open files of all workers, as they tell themselves."""
    metrics = proxy.metrics()
    return sum(metrics.value("offload_process_open_fds", process=f"worker-{n}") for n in range(2))


def begin_badly(client: TlsClient, number: int) -> bool:
    """Some clients go no further than their first bytes: whether this was one."""
    match number:
        case 0:
            client.sock.sendall(client.client_hello())
        case 1:
            client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        case 2:
            client.sock.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff")
        case _:
            return False
    return True


def end_somehow(client: TlsClient, number: int) -> None:
    """After the handshake connections end in these ways."""
    match number:
        case 3:
            client.send(request_bytes("GET", "/bytes/1000000"))
            client.reset()
        case 4:
            client.get("/reset")
        case 5:
            client.get("/closes")
        case 6:
            client.get("/")
            client.close_notify()
        case 7:
            client.sock.sendall(b"garbage" * 10)


def test_no_descriptor_is_left_behind(world: Shared, any_version: ssl.SSLContext) -> None:
    """After rounds of connections that end in every way the workers have as many files open as before."""
    world.proxy.wait_idle()
    before = descriptors(world.proxy)
    for number in range(120):
        sock = connect_tcp(world.proxy.ports[("p256", "refused", "rsa2048")[number % 3]])
        with contextlib.closing(sock), contextlib.suppress(OSError, Truncated, EOFError):
            client = TlsClient(sock, any_version)
            if not begin_badly(client, number % 8):
                client.handshake()
                end_somehow(client, number % 8)
    world.proxy.wait_idle()
    eventually(lambda: descriptors(world.proxy) <= before, f"no more than {before:g} open files")


def test_clients_wait_while_no_descriptor_is_free(cluster: Cluster, any_version: ssl.SSLContext) -> None:
    """Out of file descriptors (EMFILE) a worker pauses, does not spin, and serves those who waited later."""
    if os.geteuid() != 0:
        missing("only root may see the files of processes that are not dumpable")
    (pid,) = cluster.proxy.worker_pids()
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(numbers) + 1, limits[1]))
    free = max(numbers) + 1 - len(numbers)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, limits)
        for _ in range(free + 5):
            stack.enter_context(contextlib.closing(connect_tcp(cluster.port)))
        cluster.proxy.wait_metric("offload_accept_pauses_total", 1, reason="EMFILE")
        assert_idle(cluster.proxy)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        with TlsClient.connect(cluster.port, any_version) as client:
            assert client.get("/").status == 200
