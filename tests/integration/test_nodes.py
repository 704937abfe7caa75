"""Nodes that are slow, wrong, or gone, and clients that leave while their signature is pending."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable

import pytest

from tests.integration.clients import TIMEOUT, Load, TlsClient, Truncated, connect_tcp
from tests.integration.clusters import Cluster
from tests.support import eventually
from tests.support.proxy import Proxy

FAILURES = "offload_handshake_failures_total"


class Counts:
    """What the proxy has counted since this was made."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._before = proxy.metrics()

    def since(self, name: str, **labels: str) -> float:
        """By how much the sum of a metric's samples has grown."""
        return self._proxy.metrics().value(name, **labels) - self._before.value(name, **labels)

    def wait(self, name: str, growth: float, **labels: str) -> None:
        """Wait until it has grown by this much."""
        expected = self._before.value(name, **labels) + growth
        self._proxy.wait_metric(name, expected, within=15.0, **labels)


def until(condition: Callable[[], bool], port: int, context: ssl.SSLContext) -> int:
    """Have clients served, ten at least, until a condition holds; how many. Which node signs is chance."""
    served = 0
    while served < 10 or not condition():
        assert served < 500
        with TlsClient.connect(port, context) as client:
            assert client.get("/").status == 200
        served += 1
    return served


def begin(port: int, context: ssl.SSLContext) -> TlsClient:
    """A client that has sent its ClientHello, and no more."""
    client = TlsClient(connect_tcp(port), context)
    client.sock.sendall(client.client_hello())
    return client


def test_clients_that_leave_while_their_signatures_are_pending(
    cluster: Cluster, any_version: ssl.SSLContext
) -> None:
    """They are counted as having left, nothing of them stays, and others are served."""
    proxy, counts = cluster.proxy, Counts(cluster.proxy)
    for name in cluster.nodes:
        cluster.emulate(name, latency="2s")
    leaving = [begin(cluster.port, any_version) for _ in range(20)]
    proxy.wait_metric("hsm_client_outstanding", 20)
    for number, client in enumerate(leaving):
        if number % 2:
            client.reset()
        else:
            client.sock.close()
    counts.wait(FAILURES, 20, reason="peer_left")
    proxy.wait_idle()
    for name in cluster.nodes:
        cluster.emulate(name)
    with TlsClient.connect(cluster.port, any_version) as client:
        assert client.get("/").status == 200
    assert counts.since(FAILURES) == 20
    assert counts.since("offload_connections_total", outcome="handshake_failed") == 20


def test_client_that_sends_and_leaves_while_its_signature_is_pending(
    cluster: Cluster, any_version: ssl.SSLContext
) -> None:
    """Bytes that come too early hide that the client left; it is found out with the signature at the latest."""
    counts = Counts(cluster.proxy)
    for name in cluster.nodes:
        cluster.emulate(name, latency="1s")
    client = begin(cluster.port, any_version)
    cluster.proxy.wait_metric("hsm_client_outstanding", 1)
    client.sock.sendall(b"\x14\x03\x03\x00\x01\x01")
    client.reset()
    counts.wait(FAILURES, 1)


@pytest.mark.parametrize("name", ["p256", "rsa2048"])
def test_wrong_signatures_of_one_node_are_replaced(
    cluster: Cluster, any_version: ssl.SSLContext, name: str
) -> None:
    """No client notices a node that signs wrongly while another signs well."""
    counts = Counts(cluster.proxy)
    cluster.emulate("a", wrong_rate=1.0)
    served = until(
        lambda: counts.since("hsm_client_bad_signatures_total", node="a") >= 1,
        cluster.proxy.ports[name],
        any_version,
    )
    assert counts.since("hsm_client_errors_total", node="a", reason="bad_signature") >= 1
    assert counts.since("hsm_client_bad_signatures_total", node="b") == 0
    assert counts.since(FAILURES) == 0
    assert counts.since("offload_signature_seconds_count", node="a") == 0, "a wrong one is no signature"
    assert counts.since("offload_signature_seconds_count", node="b") == served


@pytest.mark.parametrize("name", ["p256", "rsa2048"])
def test_wrong_signatures_of_all_nodes_close_the_connection(
    cluster: Cluster, any_version: ssl.SSLContext, name: str
) -> None:
    """A wrong signature never leaves the proxy: the client gets an end, and the failure is counted."""
    counts = Counts(cluster.proxy)
    for node in cluster.nodes:
        cluster.emulate(node, wrong_rate=1.0)
    for _ in range(3):
        with pytest.raises((Truncated, ssl.SSLEOFError, ConnectionError)):  # no SSLError about a signature
            TlsClient.connect(cluster.proxy.ports[name], any_version)
    counts.wait(FAILURES, 3, reason="signature_bad_signature")
    cluster.proxy.wait_idle()
    for node in cluster.nodes:
        cluster.emulate(node)
    with TlsClient.connect(cluster.proxy.ports[name], any_version) as client:
        assert client.get("/").status == 200


def test_failing_node_is_replaced_and_its_errors_counted(
    cluster: Cluster, any_version: ssl.SSLContext
) -> None:
    """A node that answers every request with an error costs no handshake."""
    counts = Counts(cluster.proxy)
    cluster.emulate("a", error_rate=1.0)
    until(lambda: counts.since("hsm_client_errors_total", node="a") >= 1, cluster.port, any_version)
    assert counts.since(FAILURES) == 0


def test_signature_that_never_comes(cluster: Cluster, any_version: ssl.SSLContext) -> None:
    """After sign_timeout the connection is closed, and the reason is the deadline."""
    counts = Counts(cluster.proxy)
    for name in cluster.nodes:
        cluster.emulate(name, latency="2s")
    with cluster.impatient(), pytest.raises((Truncated, ssl.SSLEOFError, ConnectionError)):
        TlsClient.connect(cluster.port, any_version)
    counts.wait(FAILURES, 1, reason="signature_deadline")


def test_node_killed_under_load(cluster: Cluster, any_version: ssl.SSLContext) -> None:
    """While another node holds the key no handshake fails, whether the node is killed or hangs."""
    counts = Counts(cluster.proxy)
    for name in cluster.nodes:
        cluster.emulate(name, latency="20ms")
    with Load(cluster.port, any_version, threads=6) as load:
        load.wait_done(30)
        cluster.kill("a")
        load.wait_done(60)
    assert load.failed == []
    assert counts.since(FAILURES) == 0


def test_node_that_hangs_under_load(cluster: Cluster, any_version: ssl.SSLContext) -> None:
    """A stopped node's requests are given to the other within the deadline."""
    counts = Counts(cluster.proxy)
    for name in cluster.nodes:
        cluster.emulate(name, latency="20ms")
    with Load(cluster.port, any_version, threads=6) as load:
        load.wait_done(30)
        cluster.nodes["a"].signal(signal.SIGSTOP)
        try:
            load.wait_done(60)
        finally:
            cluster.nodes["a"].signal(signal.SIGCONT)
    assert load.failed == []
    assert counts.since(FAILURES) == 0
    assert max(attempt.seconds for attempt in load.attempts) < TIMEOUT


def test_all_nodes_gone_and_back(cluster: Cluster, any_version: ssl.SSLContext) -> None:
    """Without a node handshakes fail after sign_timeout; when one comes back they work again."""
    counts = Counts(cluster.proxy)
    with TlsClient.connect(cluster.port, any_version) as before:
        for name in cluster.nodes:
            cluster.kill(name)
        eventually(lambda: not any(n["ready"] for n in cluster.proxy.status()["nodes"]), "nodes gone")
        with cluster.impatient(), pytest.raises((Truncated, ssl.SSLEOFError, ConnectionError)):
            TlsClient.connect(cluster.port, any_version)
        counts.wait(FAILURES, 1)
        assert before.get("/").status == 200, "an open connection needs no node"
        cluster.nodes["b"] = cluster.start("b")

        def served() -> bool:
            try:
                with TlsClient.connect(cluster.port, any_version) as client:
                    return client.get("/").status == 200
            except (OSError, Truncated):
                return False

        eventually(served, "the node that came back signs", TIMEOUT)
