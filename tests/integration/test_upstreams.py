"""Several servers behind a listener: shared by the rules, and without a failure when one of them dies."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import TlsClient
from tests.integration.upstreams import FullBacklog, Upstream
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.hsm_support import free_port
from tests.support.proxy import Proxy, listener, running_proxy

FAST_CHECKS = {"interval": "100ms", "timeout": "1s", "rise": 2, "fall": 2}


class Mortal:
    """A web server that dies and comes back on the same address."""

    def __init__(self, name: str, stack: contextlib.ExitStack, path: str = "") -> None:
        self.name = name
        self._path = path
        self._port = 0 if path else stack.enter_context(free_port())
        self.address = f"unix:{path}" if path else f"127.0.0.1:{self._port}"
        self._running: contextlib.ExitStack | None = None
        stack.callback(self.die)

    def live(self) -> None:
        """Serve."""
        if self._running is None:
            self._running = contextlib.ExitStack()
            self._running.enter_context(Upstream(self.name, self._path, self._port))

    def die(self) -> None:
        """Close the port and every connection."""
        if self._running is not None:
            self._running.close()
            self._running = None
            if self._path:
                Path(self._path).unlink()


@dataclass
class Farm:
    """A proxy with a listener for each case, and the servers behind them by name."""

    proxy: Proxy
    servers: dict[str, Mortal]
    context: ssl.SSLContext

    def ask(self, name: str, source: str = "") -> str:
        """The name of the server that answers a new client of this listener."""
        with TlsClient.connect(self.proxy.ports[name], self.context, source=source) as client:
            return client.get("/").body.decode().removeprefix("hello from ")

    def ask_often(self, name: str, count: int) -> Counter[str]:
        """How many of so many clients each server answers."""
        return Counter(self.ask(name) for _ in range(count))

    def upstream(self, name: str) -> list[dict[str, Any]]:
        """What `/status` says of a listener's servers."""
        (found,) = [each for each in self.proxy.status()["listeners"] if each["name"] == name]
        upstream: list[dict[str, Any]] = found["upstream"]
        return upstream

    def server(self, name: str, server: str) -> dict[str, Any]:
        """What `/status` says of one of them."""
        address = self.servers[server].address
        return next(each for each in self.upstream(name) if each["server"] == address)

    def wait_state(self, name: str, server: str, state: str) -> dict[str, Any]:
        """Wait until a server is in this state; its status."""
        eventually(lambda: self.server(name, server)["state"] == state, f"{server} is {state}")
        return self.server(name, server)


SERVERS = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def farm(
    identities: Identities,
    any_version: ssl.SSLContext,
    socket_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Farm]:
    """One worker, so that what one server gets can be counted."""
    chain = [identities["p256"].chain_path]
    with contextlib.ExitStack() as stack:
        servers = {name: Mortal(name, stack) for name in SERVERS}
        servers["unix"] = Mortal("unix", stack, f"{socket_directory}/mortal.sock")
        for server in servers.values():
            server.live()
        at = {name: server.address for name, server in servers.items()}
        stuck = stack.enter_context(FullBacklog()).address
        weighted = [{"address": at["a"], "weight": 3}, at["b"]]
        limited = [{"address": at["a"], "max_connections": 1}]
        http = {"path": "/", "expect": 200}
        settings = {
            "listeners": [
                listener("weighted", chain, weighted),  # type: ignore[arg-type]
                listener("limited", chain, limited),  # type: ignore[arg-type]
                listener("hash", chain, [at["a"], at["b"]], balance="source_hash"),
                listener("least", chain, [at["a"], at["b"]], balance="least_connections"),
                listener("mortal", chain, [at["c"], at["d"]], slow_start="1s"),
                listener(
                    "checked",
                    chain,
                    [at["e"], at["unix"]],
                    health={**FAST_CHECKS, "http": http},
                    slow_start="0s",
                ),
                listener("stuck", chain, [stuck, at["a"]], connect_timeout="500ms", max_fails=1),
                listener("alone", chain, [at["f"]], health=FAST_CHECKS),
                listener("named", chain, [at["a"].replace("127.0.0.1", "localhost")]),
                {**listener("first", chain, []), "upstream": "shared"},
                {**listener("second", chain, []), "upstream": "shared"},
            ],
            "upstreams": {"shared": {"servers": [{"address": at["b"], "max_connections": 1}]}},
            "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
            "workers": 1,
        }
        proxy = stack.enter_context(running_proxy(tmp_path_factory.mktemp("farm"), settings))
        yield Farm(proxy, servers, any_version)


def test_weights(farm: Farm) -> None:
    """Three to one, exactly."""
    assert farm.ask_often("weighted", 12) == {"a": 9, "b": 3}


def test_source_hash(farm: Farm) -> None:
    """A client's address always leads to the same server; addresses spread over both."""
    first = {source: farm.ask("hash", source) for source in (f"127.0.1.{n}" for n in range(1, 13))}
    assert set(first.values()) == {"a", "b"}
    assert all(farm.ask("hash", source) == server for source, server in first.items())


def test_least_connections(farm: Farm) -> None:
    """While one server holds connections the other gets the next ones."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(TlsClient.connect(farm.proxy.ports["least"], farm.context)) for _ in range(4)
        ]
        assert Counter(client.get("/").body for client in clients) == {b"hello from a": 2, b"hello from b": 2}
        metrics = farm.proxy.metrics()
        held = [
            metrics.value("offload_upstream_connections", upstream="least", server=farm.servers[name].address)
            for name in "ab"
        ]
        assert held == [2, 2]


def test_a_full_server_is_a_clean_close(farm: Farm) -> None:
    """The second client is told the end by a close_notify, and counted; when the first leaves there is room."""
    with TlsClient.connect(farm.proxy.ports["limited"], farm.context) as first:
        assert first.get("/").status == 200
        with TlsClient.connect(farm.proxy.ports["limited"], farm.context) as second:
            assert second.recv() == b""
        farm.proxy.wait_metric("offload_connections_total", 1, listener="limited", outcome="upstream_full")
    farm.proxy.wait_metric("offload_connections_active", 0, listener="limited")
    assert farm.ask("limited") == "a"


def test_a_group_is_shared_by_the_listeners_that_name_it(farm: Farm) -> None:
    """Its server is full for both, its connections are counted once, and /status shows it behind each."""
    with TlsClient.connect(farm.proxy.ports["first"], farm.context) as first:
        assert first.get("/").status == 200
        assert farm.proxy.metrics().value("offload_upstream_connections", upstream="shared") == 1
        with TlsClient.connect(farm.proxy.ports["second"], farm.context) as second:
            assert second.recv() == b""
        farm.proxy.wait_metric("offload_connections_total", 1, listener="second", outcome="upstream_full")
        assert farm.upstream("first") == farm.upstream("second")
        (server,) = farm.upstream("first")
        assert (server["upstream"], server["connections"]) == ("shared", 1)
    farm.proxy.wait_metric("offload_upstream_connections", 0, upstream="shared")
    assert farm.ask("second") == "b"


def test_no_client_fails_while_one_of_two_servers_dies_and_comes_back(farm: Farm) -> None:
    """Requests go on all the time and every one is answered; the server gets its share again."""
    over = threading.Event()
    answers: Counter[str] = Counter()
    failures: list[BaseException] = []

    def keep_asking() -> None:
        while not over.is_set():
            try:
                answers[farm.ask("mortal")] += 1
            except (OSError, EOFError) as error:
                failures.append(error)

    client = threading.Thread(target=keep_asking)
    client.start()
    try:
        eventually(lambda: len(answers) == 2, "both answer")
        farm.servers["c"].die()
        state = farm.wait_state("mortal", "c", "out")
        assert state["why"] == "refused"
        answers.clear()
        eventually(lambda: answers["d"] > 20, "the other one serves")
        assert farm.proxy.metrics().value("offload_upstream_up", upstream="mortal") == 1
        farm.servers["c"].live()
        farm.wait_state("mortal", "c", "up")
        eventually(lambda: answers["c"] > 5, "it gets clients again")
    finally:
        over.set()
        client.join()
    assert len(failures) <= 1, "at most the request that was under way to the server when it died"
    assert farm.proxy.events("upstream_out")
    assert farm.proxy.events("upstream_back")


def test_checks_take_a_server_out_before_a_client_finds_out(farm: Farm) -> None:
    """A unix socket's server dies: down in status, metrics and log, and no client is sent there until it is back."""
    assert farm.ask_often("checked", 4) == {"e": 2, "unix": 2}
    farm.servers["unix"].die()
    state = farm.wait_state("checked", "unix", "down")
    assert state["why"] == "No such file or directory"
    assert state["since"]
    before = farm.proxy.metrics()
    assert farm.ask_often("checked", 4) == {"e": 4}
    metrics, address = farm.proxy.metrics(), farm.servers["unix"].address
    assert metrics.value("offload_upstream_up", upstream="checked", server=address) == 0
    failed = "offload_upstream_failures_total"
    assert metrics.value(failed, server=address) == before.value(failed, server=address)
    farm.proxy.wait_event("upstream_down", server=address)
    farm.servers["unix"].live()
    farm.wait_state("checked", "unix", "up")
    assert farm.ask_often("checked", 4) == {"e": 2, "unix": 2}


def test_a_server_that_hangs_in_connect_costs_one_client_a_wait(farm: Farm) -> None:
    """Then it is left out; only now and then one attempt sees whether it is back."""
    assert farm.ask_often("stuck", 10) == {"a": 10}
    stuck, _ = farm.upstream("stuck")
    assert (stuck["state"], stuck["why"]) == ("out", "timeout")
    failures = farm.proxy.metrics().value("offload_upstream_failures_total", server=stuck["configured"])
    assert 1 <= failures < 5


def test_the_only_server_is_tried_even_if_it_is_down(farm: Farm) -> None:
    """A clean close while it is dead; and at once an answer when it lives, before any check says so."""
    assert farm.ask("alone") == "f"
    farm.servers["f"].die()
    farm.wait_state("alone", "f", "down")
    outage = f"upstream alone: no server is up ({farm.servers['f'].address}: "
    assert any(fault.startswith(outage) for fault in farm.proxy.status()["degraded"])
    assert farm.proxy.get("/readyz?strict=1").status == 200
    with TlsClient.connect(farm.proxy.ports["alone"], farm.context) as client:
        assert client.recv() == b""
    farm.proxy.wait_metric("offload_connections_total", 1, listener="alone", outcome="upstream_failed")
    farm.servers["f"].live()
    assert farm.ask("alone") == "f"


def test_a_name_is_each_of_its_addresses(farm: Farm) -> None:
    """`localhost` serves, and `/status` tells what it stands for."""
    assert farm.ask("named") == "a"
    named = farm.upstream("named")
    port = farm.servers["a"].address.rpartition(":")[2]
    assert {server["configured"] for server in named} == {f"localhost:{port}"}
    assert farm.servers["a"].address in {server["server"] for server in named}


def test_a_new_worker_knows_what_is_down(farm: Farm) -> None:
    """One that takes a dead one's place sends no client to a server that the checks found down."""
    farm.servers["unix"].die()
    farm.wait_state("checked", "unix", "down")
    (pid,) = farm.proxy.worker_pids()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: farm.proxy.worker_pids() not in ([pid], []), "another worker")
    assert farm.ask_often("checked", 4) == {"e": 4}
    assert (
        farm.proxy.metrics().value("offload_upstream_failures_total", server=farm.servers["unix"].address)
        == 0
    )
