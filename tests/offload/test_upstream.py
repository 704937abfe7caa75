"""Choosing an upstream server."""

from __future__ import annotations

import socket

from hsm.metrics import MetricStore
from offload import metrics as m
from offload.upstream import Server, Upstream


def tcp(name: str, port: int = 80) -> Server:
    """A server on this machine."""
    return Server(name, socket.AF_INET, ("127.0.0.1", port))


def upstream(*servers: Server) -> Upstream:
    """An upstream with a store of its own."""
    return Upstream(list(servers), 1.0, MetricStore(m.WORKER_SPECS))


def test_servers_take_turns_and_back_each_other_up() -> None:
    """Each connection starts with another server, and has all the others behind it, each once."""
    three = upstream(tcp("a"), tcp("b"), tcp("c"))
    orders = ["".join(server.label for server in three.choose()) for _ in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_caller_may_use_up_the_list() -> None:
    """What one connection tries and drops does not change the next one's choice."""
    for servers in ((tcp("a"),), (tcp("a"), tcp("b"))):
        chosen = upstream(*servers)
        list(chosen.choose()).clear()
        assert sorted(server.label for server in chosen.choose()) == [s.label for s in servers]


def test_failures_are_counted_by_server_and_reason() -> None:
    """So that an operator sees which server refuses."""
    store = MetricStore(m.WORKER_SPECS)
    servers = Upstream([tcp("a"), tcp("b")], 1.0, store)
    servers.failed(tcp("a"), "refused")
    servers.failed(tcp("a"), "refused")
    servers.failed(tcp("b"), "timeout")
    rows = store.snapshot()["offload_upstream_failures_total"]
    assert {tuple(labels): count for labels, count in rows} == {("a", "refused"): 2, ("b", "timeout"): 1}
    servers.seconds(tcp("a")).observe(0.1)
