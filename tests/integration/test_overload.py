"""More handshakes than the cluster can sign for: some are served, the others refused at once, resumptions pass."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients import TlsClient, client_context, connect_tcp
from tests.integration.clusters import start_node
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support.proxy import Proxy, listener, running_proxy

FAILURES = "offload_handshake_failures_total"


@pytest.fixture
def narrow(
    identities: Identities, upstream: Upstream, socket_directory: Path, tmp_path: Path
) -> Iterator[Proxy]:
    """One node that makes 5 signatures a second, one after the other, and a queue of half a second."""
    chain = identities["p256"].chain_path
    with contextlib.ExitStack() as stack:
        node = start_node(
            stack, socket_directory, "narrow", identities.keys, "--emulate", "latency=200ms,parallel=1"
        )
        settings = {
            "listeners": [listener("web", [chain], [upstream.address])],
            "hsm": {
                "nodes": [{"name": "narrow", "address": node.listen, "capacity": 1}],
                "max_queue_wait": "500ms",
            },
            "workers": 1,
        }
        yield stack.enter_context(running_proxy(tmp_path / "proxy", settings))


def begin(proxy: Proxy, context: ssl.SSLContext) -> TlsClient:
    """A client that has sent its ClientHello, and no more."""
    client = TlsClient(connect_tcp(proxy.ports["web"]), context)
    client.sock.sendall(client.client_hello())
    return client


def is_served(client: TlsClient) -> bool:
    """Whether the handshake comes to a good end."""
    with client:
        try:
            client.handshake()
        except (ssl.SSLError, OSError):
            return False
        return client.get("/").status == 200


def test_what_would_come_too_late_is_refused_at_once(narrow: Proxy, identities: Identities) -> None:
    """Of 40 clients at a time a few are served in time, the others know soon; a ticket is let through."""
    context = client_context(identities.ca)
    with TlsClient.connect(narrow.ports["web"], context) as first:
        assert first.get("/").status == 200
        session = first.tls.session
    begun = time.monotonic()
    clients = [begin(narrow, context) for _ in range(40)]
    with TlsClient.connect(narrow.ports["web"], context, session=session) as resumed:
        assert resumed.tls.session_reused
        assert resumed.get("/").status == 200
    served = sum(is_served(client) for client in clients)
    assert 1 <= served <= 20
    assert time.monotonic() - begun < 10
    refused = narrow.metrics()
    assert refused.value(FAILURES, reason="overloaded") > 0
    assert refused.value("offload_handshake_failures_total") == 40 - served
    narrow.wait_metric("hsm_client_queued", 0)
    with TlsClient.connect(narrow.ports["web"], context) as after:
        assert after.get("/").status == 200
