"""One proxy with many listeners for all tests that leave it as they found it; parts for those that don't."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import TLS12, TLS13, TlsClient, client_context
from tests.integration.clusters import Cluster, running_cluster, start_node
from tests.integration.scripted import HttpWorld, http_world
from tests.integration.upstreams import FullBacklog, Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import NodeProcess, free_port
from tests.support.proxy import START_TIMEOUT, Proxy, listener, running_proxy

HANDSHAKE_TIMEOUT = 0.5
"""Of the hasty proxy, in seconds."""


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """An authority, and a certificate and key of each kind."""
    return Identities(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="session")
def any_version(identities: Identities) -> ssl.SSLContext:
    """A client that takes TLS 1.2 and 1.3."""
    return client_context(identities.ca)


@pytest.fixture(scope="session")
def tls12(identities: Identities) -> ssl.SSLContext:
    """A client of TLS 1.2."""
    return client_context(identities.ca, TLS12)


@pytest.fixture(scope="session")
def tls13(identities: Identities) -> ssl.SSLContext:
    """A client of TLS 1.3."""
    return client_context(identities.ca, TLS13)


@pytest.fixture(params=["1.2", "1.3"])
def either(request: pytest.FixtureRequest) -> ssl.SSLContext:
    """A client of TLS 1.2, then one of TLS 1.3."""
    context: ssl.SSLContext = request.getfixturevalue("tls12" if request.param == "1.2" else "tls13")
    return context


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The web server behind most listeners."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="session")
def socket_directory() -> Iterator[Path]:
    """A directory with a short name: a unix socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="offload-test-") as directory:
        yield Path(directory)


@dataclass
class Shared:
    """The shared proxy and what belongs to it."""

    proxy: Proxy
    identities: Identities
    upstream: Upstream
    nodes: dict[str, NodeProcess]
    """Those that run beside the proxy: `unix` and `tls`. A third, `local`, is the proxy's child."""

    def connect(self, name: str, context: ssl.SSLContext) -> TlsClient:
        """A client of the listener `name`, after its handshake."""
        return TlsClient.connect(self.proxy.ports[name], context)


def _start_tls_node(stack: contextlib.ExitStack, identities: Identities) -> tuple[NodeProcess, int]:
    port = stack.enter_context(free_port())
    link = identities.link("node.test")
    options = ["--name", "tls", "--keys", str(identities.keys), "--tls-ca", str(link.ca)]
    options += ["--tls-certificate", str(link.certificate), "--tls-key", str(link.key)]
    return stack.enter_context(NodeProcess(f"tls://127.0.0.1:{port}", *options)).ready(), port


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def _listeners(identities: Identities, web: str, unix: str, closed: str, stuck: str) -> list[dict[str, Any]]:
    chains = {kind: identities[kind].chain_path for kind in ("p256", "p384", "p521", "rsa2048")}
    p256, rsa = chains["p256"], chains["rsa2048"]
    return [
        listener("p256", [p256], [web]),
        listener("p384", [chains["p384"]], [web]),
        listener("p521", [chains["p521"]], [web]),
        listener("rsa2048", [rsa], [web]),
        listener("both", [p256, rsa], [web]),
        listener("rsa-old", [rsa], [web]) | {"tls": {"policy": "20170210"}},
        listener("unix", [p256], [unix]),
        *([listener("v6", [p256], [web], address="[::1]:0")] if has_ipv6() else []),
        listener("refused", [p256], [closed]),
        listener("second", [p256], [closed, web]),
        listener("stuck", [p256], [stuck], connect_timeout="300ms"),
        listener("slow-dial", [p256], [stuck], connect_timeout="1500ms"),
        listener("stuck-first", [p256], [stuck, web], connect_timeout="500ms"),
    ]


@pytest.fixture(scope="session")
def shared(
    identities: Identities,
    upstream: Upstream,
    socket_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shared]:
    """Two workers; three nodes, each linked in another way; a listener for each certificate and upstream."""
    for kind in ("p256", "p384", "p521", "rsa2048"):
        identities[kind]
    with contextlib.ExitStack() as stack:
        unix_web = stack.enter_context(Upstream("unix", f"{socket_directory}/web.sock"))
        closed = f"127.0.0.1:{stack.enter_context(free_port())}"
        stuck = stack.enter_context(FullBacklog()).address
        unix_node = start_node(stack, socket_directory, "unix", identities.keys)
        tls_node, tls_port = _start_tls_node(stack, identities)
        link = identities.link("proxy.test").settings(server_name="node.test")
        settings = {
            "listeners": _listeners(identities, upstream.address, unix_web.address, closed, stuck),
            "hsm": {
                "nodes": [
                    {"name": "local", "run": {"keys": str(identities.keys)}},
                    {"name": "unix", "address": unix_node.listen},
                    {"name": "tls", "address": f"tls://127.0.0.1:{tls_port}", "tls": link},
                ]
            },
            "workers": 2,
            "limits": {"drain_timeout": "5s"},
        }
        directory = tmp_path_factory.mktemp("shared-proxy")
        proxy = stack.enter_context(running_proxy(directory, settings))
        # Ready means that each key is on some node; here each node is to be there.
        eventually(lambda: proxy.status()["degraded"] == [], "all nodes are there", START_TIMEOUT)
        yield Shared(proxy, identities, upstream, {"unix": unix_node, "tls": tls_node})


@pytest.fixture
def world(shared: Shared) -> Iterator[Shared]:
    """The shared proxy; afterwards no connection is left, and nothing unexpected is in its log."""
    yield shared
    shared.upstream.release.clear()
    shared.proxy.wait_idle()
    shared.proxy.assert_clean()


@pytest.fixture(scope="session")
def hasty(
    identities: Identities, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy that has little patience with handshakes: for clients that never end theirs."""
    chain = [identities["p256"].chain_path]
    balanced = {"accept_proxy": {"trusted": ["127.0.0.0/8"]}}
    settings = {
        "listeners": [
            listener("p256", chain, [upstream.address]),
            listener("behind", chain, [upstream.address]) | balanced,
        ],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
        "limits": {"handshake_timeout": f"{HANDSHAKE_TIMEOUT:g}s"},
        "log": {"connections": "failures", "format": "json"},
    }
    with running_proxy(tmp_path_factory.mktemp("hasty-proxy"), settings) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def http_proxy(
    identities: Identities,
    upstream: Upstream,
    any_version: ssl.SSLContext,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HttpWorld]:
    """The proxy in HTTP mode, for all tests of a process."""
    with free_port() as closed:
        directory = tmp_path_factory.mktemp("http-proxy")
        with http_world(identities, directory, any_version, upstream.address, f"127.0.0.1:{closed}") as world:
            yield world


@pytest.fixture(scope="session")
def lasting_cluster(
    identities: Identities, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The one of all tests."""
    with running_cluster(identities, upstream, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(lasting_cluster: Cluster) -> Iterator[Cluster]:
    """Two good nodes; afterwards both are good again, no connection is left, and the log is clean."""
    yield lasting_cluster
    lasting_cluster.revive()
    for name in lasting_cluster.nodes:
        lasting_cluster.emulate(name)
        lasting_cluster.pardon(name)
    lasting_cluster.proxy.wait_idle()
    lasting_cluster.proxy.wait_metric("hsm_client_outstanding", 0)
    eventually(lambda: lasting_cluster.proxy.status()["degraded"] == [], "both nodes are there")
    lasting_cluster.proxy.assert_clean()
