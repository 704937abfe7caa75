"""The admin server: metrics, probes and state."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import tempfile
from pathlib import Path

from tests.integration.clients import TlsClient, Truncated
from tests.integration.clusters import start_node
from tests.integration.conftest import Shared
from tests.integration.upstreams import Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.proxy import Proxy, listener, running_proxy

PROMISED = {
    "offload_connections_total": {"listener", "outcome"},
    "offload_connections_active": set(),
    "offload_handshake_seconds": {"listener", "kind"},
    "offload_handshake_stage_seconds": {"stage"},
    "offload_handshake_failures_total": {"reason"},
    "offload_signature_seconds": {"node", "scheme"},
    "hsm_client_outstanding": {"node"},
    "hsm_client_errors_total": {"node", "reason"},
    "hsm_node_sign_seconds": {"token", "scheme"},
    "offload_relay_bytes_total": {"direction"},
    "offload_upstream_connect_seconds": set(),
    "offload_certificate_not_after_seconds": set(),
    "offload_build_info": {"version", "s2n", "fips"},
}
"""The metrics that are a contract, with their labels (more are allowed)."""


def test_every_promised_metric_is_there(world: Shared, any_version: ssl.SSLContext) -> None:
    """Each has a help text, a type, and, once something happened, samples with its labels."""

    def own_node_signed() -> bool:
        """Any of three nodes signs, and the proxy tells of the one that it runs."""
        with world.connect("p256", any_version) as client:
            assert client.get("/").status == 200
        return bool(world.proxy.metrics().labels("hsm_node_sign_seconds_count"))

    eventually(own_node_signed, "a signature of its own node")
    with world.connect("refused", any_version) as client, contextlib.suppress(OSError, Truncated):
        client.recv()
    with contextlib.suppress(OSError, Truncated), world.connect("rsa-old", _rsa_key_exchange()):
        pass
    world.proxy.wait_idle()
    metrics = world.proxy.metrics()
    for name, labels in PROMISED.items():
        family = metrics.families.get(name.removesuffix("_total"))
        assert family is not None, name
        assert family.documentation, name
        sample = f"{name}_count" if family.type == "histogram" else name
        assert family.type == ("counter" if name.endswith("_total") else family.type)
        if name == "hsm_client_errors_total":  # nothing has failed: no sample yet
            continue
        found = metrics.labels(sample)
        assert found, name
        assert all(labels <= set(each) for each in found), name


def _rsa_key_exchange() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256")
    return context


def test_conventions_of_metrics(world: Shared) -> None:
    """Counters end in _total, times are in seconds, and every metric has a prefix and a help text."""
    for name, family in world.proxy.metrics().families.items():
        assert name.startswith(("offload_", "hsm_")), name
        assert family.documentation, name
        if family.type == "histogram":
            assert name.endswith("_seconds"), name


def test_values_of_one_request(world: Shared, any_version: ssl.SSLContext) -> None:
    """One full handshake shows in each stage once, and in the times of listener, node and scheme."""
    before = world.proxy.metrics()
    with world.connect("p256", any_version) as client:
        assert client.get("/").status == 200
        assert world.proxy.metrics().value("offload_connections_active", listener="p256") == 1
        client.close_notify()
    world.proxy.wait_idle()
    after = world.proxy.metrics()

    def growth(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert growth("offload_connections_total", listener="p256", outcome="relayed") == 1
    assert growth("offload_handshake_seconds_count", listener="p256", kind="full") == 1
    for stage in ("client_hello", "signature", "finish"):
        assert growth("offload_handshake_stage_seconds_count", stage=stage) == 1
    scheme = "ecdsa_secp256r1_sha256"
    assert growth("offload_signature_seconds_count", scheme=scheme) == 1
    assert 0 < growth("offload_signature_seconds_sum", scheme=scheme) < 10
    assert growth("offload_handshake_failures_total") == 0


def test_buckets_reach_from_100_us_to_10_s(world: Shared) -> None:
    """The smallest bucket is 100 µs, the largest 10 s."""
    bounds = {each["le"] for each in world.proxy.metrics().labels("offload_handshake_seconds_bucket")}
    numbers = sorted(float(bound) for bound in bounds)
    assert numbers[0] == 0.0001
    assert numbers[-2] == 10
    assert numbers[-1] == float("inf")


def test_figures_of_each_process(world: Shared) -> None:
    """CPU, memory and open files of the supervisor, each worker and each local node."""
    metrics = world.proxy.metrics()
    for process in ("supervisor", "worker-0", "worker-1", "node-local"):
        assert metrics.value("offload_process_cpu_seconds_total", process=process) > 0
        assert metrics.value("offload_process_resident_memory_bytes", process=process) > 10_000_000
        assert metrics.value("offload_process_open_fds", process=process) > 3


def test_status_tells_workers_listeners_nodes_and_versions(world: Shared) -> None:
    """Everything that an operator asks first is in one JSON document."""
    status = world.proxy.status()
    assert status["ready"] is True
    assert status["draining"] is False
    # Clients of other tests may have found out what no server is behind.
    assert [fault for fault in status["degraded"] if "no server is up" not in fault] == []
    assert status["version"]
    assert status["tls_library"]["name"]
    assert [worker["slot"] for worker in status["workers"]] == [0, 1]
    assert all(worker["accepting"] for worker in status["workers"])
    listeners = {each["name"]: each for each in status["listeners"]}
    assert set(listeners) == set(world.proxy.ports)
    (certificate,) = listeners["p256"]["certificates"]
    assert certificate["ski"] == world.identities["p256"].ski.hex()
    assert certificate["names"] == ["localhost"]
    assert set(certificate["nodes"]) == {"local", "unix", "tls"}
    assert {node["name"] for node in status["nodes"]} == {"local", "unix", "tls"}


def test_admin_is_read_only(world: Shared) -> None:
    """It answers GET, lists its paths, and knows no other."""
    assert world.proxy.get("/livez").status == 200
    assert world.proxy.get("/readyz").status == 200
    assert world.proxy.get("/readyz?strict=1").status == 200
    assert world.proxy.get("/").text.split() == ["/metrics", "/livez", "/readyz", "/status"]
    assert world.proxy.get("/other").status == 404
    assert world.proxy.get("/status/../../etc/passwd").status == 404


def probes(proxy: Proxy) -> tuple[int, int, int]:
    """The status codes of /livez, /readyz and /readyz?strict=1."""
    live, ready, strict = (proxy.get(path).status for path in ("/livez", "/readyz", "/readyz?strict=1"))
    return live, ready, strict


def test_readiness_follows_the_key_once_and_then_only_the_workers(
    identities: Identities, upstream: Upstream, tmp_path: Path, any_version: ssl.SSLContext
) -> None:
    """503 before the key was found, 200 after, and still 200, but degraded, when the node is gone again."""
    with contextlib.ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="offload-test-")))
        settings = {
            "listeners": [listener("p256", [identities["p256"].chain_path], [upstream.address])],
            "hsm": {"nodes": [{"name": "a", "address": f"unix:{sockets}/a.sock"}], "sign_timeout": "1s"},
            "workers": 1,
        }
        proxy = stack.enter_context(running_proxy(tmp_path, settings, ready=False))
        ski = identities["p256"].ski.hex()
        proxy.wait_event("worker_accepting")
        assert probes(proxy) == (200, 503, 503)
        assert proxy.metrics().value("offload_certificate_key_missing", ski=ski) == 1

        node = start_node(stack, sockets, "a", identities.keys)
        proxy.ready()
        eventually(lambda: probes(proxy) == (200, 200, 200), "ready once the key is found")
        assert proxy.metrics().value("offload_degraded") == 0
        with TlsClient.connect(proxy.ports["p256"], any_version) as client:
            assert client.get("/").status == 200
            node.signal(signal.SIGKILL)
            eventually(lambda: probes(proxy) == (200, 200, 503), "degraded once the node is gone")
            assert any(ski in fault for fault in proxy.status()["degraded"])
            assert proxy.metrics().value("offload_degraded") == 1
            assert client.get("/").status == 200

        start_node(stack, sockets, "a", identities.keys)
        eventually(lambda: probes(proxy) == (200, 200, 200), "no longer degraded when it is back")

        (pid,) = proxy.worker_pids()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: probes(proxy)[:2] == (200, 503), "not ready without a worker")
        eventually(lambda: probes(proxy) == (200, 200, 200), "ready again with a new worker")
