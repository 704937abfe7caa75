"""Workers and supervisors that end, stop or drain while clients are being served."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import Load, TlsClient, Truncated, connect_tcp, request_bytes
from tests.integration.upstreams import Upstream, unique
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.proxy import START_TIMEOUT, Proxy, children_of, is_running, listener, running_proxy

HEARTBEAT = 1.0
"""heartbeat_timeout of these proxies, in seconds."""
NOTICED = HEARTBEAT * 4 / 3
"""A worker that stops answering is asked within a third of the timeout, and then has all of it."""
MARGIN = 8.0
"""For a machine that is busy with other tests; what hangs does so for more than twice that."""


def settings(identities: Identities, upstream: Upstream, **limits: Any) -> dict[str, Any]:
    """Two workers and a local node."""
    return {
        "listeners": [listener("p256", [identities["p256"].chain_path], [upstream.address])],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}], "sign_timeout": "20s"},
        "workers": 2,
        "limits": {
            "heartbeat_timeout": f"{HEARTBEAT:g}s",
            "drain_timeout": "10s",
            "handshake_timeout": "20s",
            **limits,
        },
    }


@pytest.fixture(scope="session")
def lasting_proxy(
    identities: Identities, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy with two workers, for tests that are rough with its children only."""
    with running_proxy(tmp_path_factory.mktemp("lasting-proxy"), settings(identities, upstream)) as running:
        yield running


@pytest.fixture
def survivor(lasting_proxy: Proxy) -> Iterator[Proxy]:
    """The lasting proxy; afterwards each worker serves its own slot again, and the log is clean."""
    eventually(lambda: slots(lasting_proxy) == {0: [0], 1: [1]}, "each worker serves its own slot")
    yield lasting_proxy
    eventually(lambda: slots(lasting_proxy) == {0: [0], 1: [1]}, "each worker serves its own slot again")
    lasting_proxy.wait_idle()
    lasting_proxy.assert_clean()


@pytest.fixture
def proxy(identities: Identities, upstream: Upstream, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy with two workers, for a test that is rough with it."""
    with running_proxy(tmp_path, settings(identities, upstream)) as running:
        yield running


def accepting(proxy: Proxy) -> dict[int, int]:
    """The pids of the workers that accept, by slot."""
    return {worker["slot"]: worker["pid"] for worker in proxy.status()["workers"] if worker["accepting"]}


def assert_served_in_time(load: Load, limit: float) -> None:
    """No attempt took longer, failed ones included."""
    slow = [f"{a.seconds:.1f} s, {a.stage} {a.error}" for a in load.attempts if a.seconds > limit]
    assert slow == []


def test_killed_worker_is_adopted_and_replaced(survivor: Proxy, any_version: ssl.SSLContext) -> None:
    """Only the connections that the killed worker held are lost; its share goes to its sibling at once."""
    before = accepting(survivor)
    restarted = restarts(survivor, "worker-0")
    with Load(survivor.ports["p256"], any_version, path="/wait/20", threads=6) as load:
        load.wait_done(30)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: slots(survivor)[1] == [0, 1], "its sibling adopts its slot")
        load.wait_done(60)
        eventually(lambda: len(accepting(survivor)) == 2, "a new worker accepts")
        load.wait_done(60)
    after = accepting(survivor)
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert len(load.failed) <= 6, "at most what was open: one for each thread"
    assert_served_in_time(load, MARGIN)
    assert restarts(survivor, "worker-0") == restarted + 1


def restarts(proxy: Proxy, name: str) -> float:
    """How often a child was started again."""
    return proxy.metrics().value("offload_restarts_total", name=name)


def slots(proxy: Proxy) -> dict[int, list[int]]:
    """The slots that each worker serves."""
    return {worker["slot"]: worker["slots"] for worker in proxy.status()["workers"]}


def test_stopped_worker_is_noticed_and_replaced(survivor: Proxy, any_version: ssl.SSLContext) -> None:
    """No connection hangs for longer than the heartbeat, neither one that was open nor one in the queue."""
    before = accepting(survivor)
    with Load(survivor.ports["p256"], any_version, threads=6) as load:
        load.wait_done(30)
        os.kill(before[1], signal.SIGSTOP)
        assert survivor.metrics().value("offload_workers") > 0
        eventually(lambda: slots(survivor)[0] == [0, 1], "its sibling adopts its slot", NOTICED + MARGIN)
        assert not is_running(before[1]), "it was killed before its slot was adopted"
        load.wait_done(60)
        eventually(lambda: len(accepting(survivor)) == 2, "a new worker accepts")
        load.wait_done(60)
    assert len(load.failed) <= 6
    assert_served_in_time(load, NOTICED + MARGIN)


def test_one_worker_killed_and_the_other_stopped(survivor: Proxy, any_version: ssl.SSLContext) -> None:
    """With nobody left to adopt, connections wait for the first new worker, and are served."""
    before = accepting(survivor)
    with Load(survivor.ports["p256"], any_version, threads=6) as load:
        load.wait_done(30)
        os.kill(before[1], signal.SIGSTOP)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: set(accepting(survivor).values()).isdisjoint(before.values()), "both are replaced")
        eventually(lambda: len(accepting(survivor)) == 2, "two new workers accept")
        load.wait_done(60)
    assert len(load.failed) <= 12
    assert_served_in_time(load, NOTICED + 2 * MARGIN)


def test_counters_do_not_fall_when_a_worker_dies(survivor: Proxy, any_version: ssl.SSLContext) -> None:
    """What a dead worker had counted stays in the totals, and what it had open does not."""
    for _ in range(20):
        with TlsClient.connect(survivor.ports["p256"], any_version) as client:
            assert client.get("/").status == 200
    survivor.wait_idle()
    counted = survivor.metrics().value("offload_handshake_seconds_count")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(TlsClient.connect(survivor.ports["p256"], any_version))
        assert survivor.metrics().value("offload_connections_active") == 10
        for pid in accepting(survivor).values():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: survivor.metrics().value("offload_connections_active") == 0, "none is open")
    assert survivor.metrics().value("offload_handshake_seconds_count") >= counted


def test_sigterm_under_load_loses_no_request_in_progress(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """Connections that were accepted are served to their end; then the process ends with code 0.

    A service manager sends the signal to the local node too, which goes on signing.
    """
    (node,) = set(children_of(proxy.pid)) - set(accepting(proxy).values())
    with Load(proxy.ports["p256"], any_version, path="/wait/100", threads=8) as load:
        load.wait_done(30)
        os.kill(node, signal.SIGTERM)
        load.wait_done(40)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    assert proxy.events("child_ended") == []
    lost = [attempt for attempt in load.failed if attempt.stage == "request"]
    assert lost == []
    refused = [a for a in load.failed if "refused" in a.error.lower() or "reset" in a.error.lower()]
    assert len(refused) == len(load.failed), load.failed
    proxy.assert_clean()


def test_sigterm_lets_open_connections_finish(
    proxy: Proxy, any_version: ssl.SSLContext, upstream: Upstream
) -> None:
    """While a request is in progress nobody else is accepted, /readyz says 503, and the answer still comes."""
    upstream.release.clear()
    path = unique("/held")
    pids = [*accepting(proxy).values(), *children_of(proxy.pid)]
    with TlsClient.connect(proxy.ports["p256"], any_version) as client:
        client.send(request_bytes("GET", path))
        upstream.wait_for(path)
        proxy.signal(signal.SIGTERM)
        eventually(lambda: proxy.get("/readyz").status == 503, "draining")
        eventually(lambda: refuses(proxy.ports["p256"]), "the port is closed")
        assert proxy.status()["draining"] is True
        upstream.release.set()
        assert client.response().body == b"released"
        client.close_notify()
    upstream.release.clear()
    assert proxy.wait() == 0
    assert not any(is_running(pid) for pid in pids)
    proxy.assert_clean()


def refuses(port: int) -> bool:
    """Whether nobody listens on a port."""
    try:
        connect_tcp(port).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_drain_timeout_ends_what_does_not_end(
    identities: Identities, upstream: Upstream, tmp_path: Path, any_version: ssl.SSLContext
) -> None:
    """A connection that stays open is closed when drain_timeout is over, and the exit code is still 0."""
    configured = settings(identities, upstream, drain_timeout="500ms")
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(running_proxy(tmp_path, configured))
        client = stack.enter_context(TlsClient.connect(proxy.ports["p256"], any_version))
        started = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert 0.4 < time.monotonic() - started < 0.5 + 2 * MARGIN
        with contextlib.suppress(Truncated, OSError):
            assert client.recv() == b""


def test_second_sigterm_ends_at_once(proxy: Proxy, any_version: ssl.SSLContext) -> None:
    """Asked again, it does not wait for open connections."""
    with TlsClient.connect(proxy.ports["p256"], any_version):
        started = time.monotonic()
        proxy.signal(signal.SIGTERM)
        proxy.wait_event("draining")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert time.monotonic() - started < 10, "drain_timeout"


def test_sigterm_while_it_starts(identities: Identities, upstream: Upstream, tmp_path: Path) -> None:
    """Told to end before it is ready, it ends in order and leaves no process."""
    with running_proxy(tmp_path, settings(identities, upstream), ready=False) as proxy:
        eventually(lambda: children_of(proxy.pid), "its first child", START_TIMEOUT)
        children = children_of(proxy.pid)
        proxy.stop()
    assert not any(is_running(pid) for pid in children)


def test_sigterm_with_one_worker_dead_and_the_other_stuck(proxy: Proxy) -> None:
    """Workers that can't drain don't keep the supervisor from ending in order, and soon."""
    pids = children_of(proxy.pid)
    before = accepting(proxy)
    os.kill(before[0], signal.SIGSTOP)
    os.kill(before[1], signal.SIGKILL)
    started = time.monotonic()
    proxy.stop()
    assert time.monotonic() - started < NOTICED + 2 * MARGIN
    assert not any(is_running(pid) for pid in pids)


def test_killed_supervisor_takes_workers_and_nodes_with_it(
    identities: Identities, upstream: Upstream, tmp_path: Path, any_version: ssl.SSLContext
) -> None:
    """Nothing is left behind by a SIGKILL, also while connections are open."""
    with tempfile.TemporaryDirectory(prefix="offload-test-") as runtime:
        configured = settings(identities, upstream, drain_timeout="1s") | {"runtime_directory": runtime}
        with contextlib.suppress(KilledError), running_proxy(tmp_path, configured) as proxy:
            pids = children_of(proxy.pid)
            assert len(pids) == 3
            with TlsClient.connect(proxy.ports["p256"], any_version) as client:
                assert client.get("/").status == 200
                proxy.signal(signal.SIGKILL)
                proxy.wait()
                eventually(lambda: not any(is_running(pid) for pid in pids), "all children have ended")
            eventually(lambda: refuses(proxy.ports["p256"]), "the port is free")
            proxy.assert_clean()
            raise KilledError


class KilledError(Exception):
    """The proxy of this block is dead on purpose: there is nothing to stop."""


def test_node_that_dies_is_started_again(survivor: Proxy, any_version: ssl.SSLContext) -> None:
    """A local node is a child like a worker: restarted, counted, and the handshakes go on."""
    restarted = restarts(survivor, "a")
    (node,) = set(children_of(survivor.pid)) - set(accepting(survivor).values())
    os.kill(node, signal.SIGKILL)
    survivor.wait_event("child_ended", kind="node", name="a")
    with TlsClient.connect(survivor.ports["p256"], any_version) as client:  # waits within sign_timeout
        assert client.get("/").status == 200
    assert restarts(survivor, "a") == restarted + 1


def test_flood_beyond_max_connections_waits_and_is_served(
    identities: Identities, upstream: Upstream, tmp_path: Path, any_version: ssl.SSLContext
) -> None:
    """Clients above the limit stay in the kernel's queue, and are served when others leave.

    The limit is for all listeners: one whose clients wait for those of another goes on too.
    """
    limited = settings(identities, upstream, max_connections=10) | {"workers": 1}
    limited["listeners"].append(listener("other", [identities["p256"].chain_path], [upstream.address]))
    with running_proxy(tmp_path, limited) as proxy, contextlib.ExitStack() as stack:
        port = proxy.ports["p256"]
        first = [stack.enter_context(TlsClient.connect(port, any_version)) for _ in range(10)]
        proxy.wait_metric("offload_connections_active", 10)
        answers: list[bytes] = []

        def wait_for_a_place(port: int) -> None:
            with TlsClient.connect(port, any_version) as client:
                answers.append(client.get("/").body)

        ports = [port] * 20 + [proxy.ports["other"]] * 10
        waiting = [threading.Thread(target=wait_for_a_place, args=(port,)) for port in ports]
        for thread in waiting:
            thread.start()
        proxy.wait_metric("offload_accept_pauses_total", 2, reason="max_connections")
        assert proxy.metrics().value("offload_connections_active") == 10
        assert [client.get("/").status for client in first] == [200] * 10
        assert answers == []
        for client in first:
            client.close_notify()
            client.sock.close()
        for thread in waiting:
            thread.join()
        assert answers == [b"hello from upstream"] * 30
        proxy.wait_idle()
