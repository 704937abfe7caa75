"""Nodes that are slow, wrong, or gone, and clients that leave while their signature is pending."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hsm import keyless
from offload import runtime
from offload.commands import command
from offload.config import load
from tests.integration.clients import TIMEOUT, Load, TlsClient, Truncated, connect_tcp
from tests.integration.conftest import start_node
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import KeylessClient, NodeProcess
from tests.support.proxy import Proxy, listener, running_proxy

FAILURES = "offload_handshake_failures_total"


@dataclass
class Cluster:
    """A proxy with one worker and the nodes a and b, whose behaviour a test can change."""

    proxy: Proxy
    settings: dict[str, Any]
    nodes: dict[str, NodeProcess]
    directory: Path

    @property
    def port(self) -> int:
        """Of the listener with the P-256 certificate."""
        return self.proxy.ports["p256"]

    def emulate(self, name: str, **settings: Any) -> None:
        """Have a node behave like this from now on."""
        node = self.nodes[name]
        (self.directory / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        node.signal(signal.SIGUSR1)
        with KeylessClient.connect(node.address) as client:
            for _ in range(5):  # whatever turns it takes: by the last answer the file has been read
                assert client.ask(keyless.OP_PING).opcode == keyless.OP_PONG

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """In this block handshakes wait a short time for their signature."""
        hsm = {**self.settings["hsm"], "sign_timeout": "300ms"}
        self.proxy.write({**self.settings, "hsm": hsm})
        self.proxy.command("reload")
        try:
            yield
        finally:
            self.proxy.write(self.settings)
            self.proxy.command("reload")

    def pardon(self, name: str) -> None:
        """Have the proxy forget what it thinks of a node."""
        config = self.proxy.directory / "offload.yaml"
        control = runtime.directory_of(load(config), config) / runtime.CONTROL_SOCKET
        for enabled in (False, True):
            asyncio.run(command(control, "node", name=name, enabled=enabled))


@contextlib.contextmanager
def running_cluster(identities: Identities, upstream: Upstream, directory: Path) -> Iterator[Cluster]:
    """Two good nodes on unix sockets, each with an emulation file, and a proxy."""
    p256, rsa = identities["p256"].chain_path, identities["rsa2048"].chain_path
    with contextlib.ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="offload-test-")))
        nodes = {}
        for name in ("a", "b"):
            file = directory / f"{name}.yaml"
            file.write_text("{}")
            nodes[name] = start_node(stack, sockets, name, identities.keys, "--emulate-file", str(file))
        settings: dict[str, Any] = {
            "listeners": [
                listener("p256", [p256], [upstream.address]),
                listener("rsa2048", [rsa], [upstream.address]),
                listener("long", [identities.long_chain("p256", 45)], [upstream.address]),
            ],
            "hsm": {"nodes": [{"name": name, "address": node.listen} for name, node in nodes.items()]},
            "workers": 1,
            "watch_files": False,
        }
        proxy = stack.enter_context(running_proxy(directory / "proxy", settings))
        yield Cluster(proxy, settings, nodes, directory)


@pytest.fixture(scope="session")
def lasting_cluster(
    identities: Identities, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One for all tests that leave its processes alive."""
    with running_cluster(identities, upstream, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(lasting_cluster: Cluster) -> Iterator[Cluster]:
    """Two good nodes; afterwards both are good again, no connection is left, and the log is clean."""
    yield lasting_cluster
    for name in lasting_cluster.nodes:
        lasting_cluster.emulate(name)
        lasting_cluster.pardon(name)
    lasting_cluster.proxy.wait_idle()
    lasting_cluster.proxy.wait_metric("hsm_client_outstanding", 0)
    lasting_cluster.proxy.assert_clean()


@pytest.fixture
def mortal_cluster(identities: Identities, upstream: Upstream, tmp_path: Path) -> Iterator[Cluster]:
    """One for a test that kills its nodes."""
    with running_cluster(identities, upstream, tmp_path) as cluster:
        yield cluster


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


def test_node_killed_under_load(mortal_cluster: Cluster, any_version: ssl.SSLContext) -> None:
    """While another node holds the key no handshake fails, whether the node is killed or hangs."""
    cluster = mortal_cluster
    for name in cluster.nodes:
        cluster.emulate(name, latency="20ms")
    with Load(cluster.port, any_version, threads=6) as load:
        load.wait_done(30)
        cluster.nodes["a"].signal(signal.SIGKILL)
        load.wait_done(60)
    assert load.failed == []
    assert cluster.proxy.metrics().value(FAILURES) == 0


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


def test_all_nodes_gone_and_back(
    mortal_cluster: Cluster, any_version: ssl.SSLContext, identities: Identities
) -> None:
    """Without a node handshakes fail after sign_timeout; when one comes back they work again."""
    cluster = mortal_cluster
    with TlsClient.connect(cluster.port, any_version) as before:
        for node in cluster.nodes.values():
            node.signal(signal.SIGKILL)
        eventually(lambda: not any(n["ready"] for n in cluster.proxy.status()["nodes"]), "nodes gone")
        with cluster.impatient(), pytest.raises((Truncated, ssl.SSLEOFError, ConnectionError)):
            TlsClient.connect(cluster.port, any_version)
        cluster.proxy.wait_metric(FAILURES, 1)
        assert before.get("/").status == 200, "an open connection needs no node"
        with contextlib.ExitStack() as stack:
            directory = Path(cluster.nodes["b"].address.path).parent
            start_node(stack, directory, "b", identities.keys)

            def served() -> bool:
                try:
                    with TlsClient.connect(cluster.port, any_version) as client:
                        return client.get("/").status == 200
                except (OSError, Truncated):
                    return False

            eventually(served, "the node that came back signs", TIMEOUT)
