"""Choosing an upstream server, in one worker."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hsm.metrics import MetricStore
from offload import metrics as m
from offload.upstream import EXHAUSTED, Server, Upstream
from tests.offload.servers import tcp, upstream, upstream_data

PEER = ("127.0.0.9", 40000)


def choose(servers: Upstream, *tried: Server, now: float = 1.0, peer: object = PEER) -> Server:
    """The server that a client gets."""
    chosen = servers.choose(peer, tried, now)
    assert chosen is not None
    return chosen


def ports(servers: Upstream, count: int, now: float = 1.0) -> list[int]:
    """The ports of the servers that the next clients get."""
    return [choose(servers, now=now).data.port for _ in range(count)]


def put_out(servers: Upstream, server: Server, now: float = 1.0) -> None:
    """Make it fail as often as it takes."""
    while not servers.failed(server, "refused", now):
        pass


def test_servers_take_turns_and_back_each_other_up() -> None:
    """Each connection starts with the next server, and tries each once."""
    three = upstream(tcp(1), tcp(2), tcp(3))
    assert ports(three, 4) == [1, 2, 3, 1]
    tried: tuple[Server, ...] = ()
    while (server := three.choose(PEER, tried, 1.0)) is not None:
        tried += (server,)
    assert sorted(server.data.port for server in tried) == [1, 2, 3]


def test_attempts_are_bounded() -> None:
    """A client does not wait for a whole farm to time out."""
    many = upstream(*(tcp(port) for port in range(1, 10)), attempts=2)
    first = choose(many)
    second = choose(many, first)
    assert second is not first
    assert many.choose(PEER, (first, second), 1.0) is None


def test_a_server_that_is_out_is_tried_last() -> None:
    """It gets no client of its own, but still backs up the others."""
    two = upstream(tcp(1), tcp(2))
    bad, good = two.servers
    put_out(two, bad)
    assert ports(two, 4) == [2, 2, 2, 2]
    assert choose(two, good) is bad


def test_with_all_out_they_are_tried_all_the_same() -> None:
    """Better to try than to turn clients away."""
    two = upstream(tcp(1), tcp(2))
    for server in two.servers:
        put_out(two, server)
    assert sorted(ports(two, 2)) == [1, 2]
    only = upstream(tcp(1, up=False))
    assert ports(only, 1) == [1]


def test_a_server_that_is_back_starts_slowly() -> None:
    """A tenth at first, half in the middle, and all of its share when the time is over."""
    two = upstream(tcp(1), tcp(2), slow_start=10.0)
    put_out(two, two.servers[1], now=1.0)
    assert two.connected(two.servers[1], 0.001, 100.0)
    for now, share in ((100.0, 0.1), (105.0, 0.5), (110.0, 1.0)):
        seen = Counter(ports(two, 440, now))
        assert abs(seen[2] - 440 * share / (1 + share)) <= 1


def test_own_exhaustion_is_not_the_servers_fault() -> None:
    """No descriptor left here: every server would be out in a moment."""
    two = upstream(tcp(1), tcp(2))
    assert not any(two.failed(two.servers[0], EXHAUSTED, 1.0) for _ in range(10))
    assert ports(two, 2) == [1, 2]


def test_limit_of_a_server_is_divided_among_workers() -> None:
    """Three connections and two workers: two here, and then none, not even as the last resort."""
    one = upstream(tcp(1, max_connections=3), workers=2)
    server = choose(one)
    server.begin()
    server.begin()
    assert one.choose(PEER, (), 1.0) is None
    server.end()
    assert choose(one) is server


def test_least_connections() -> None:
    """Open connections count, by weight."""
    two = upstream(tcp(1), tcp(2, weight=3), balance="least_connections")
    chosen = []
    for _ in range(8):
        server = choose(two)
        server.begin()
        chosen.append(server.data.port)
    assert Counter(chosen) == {1: 2, 2: 6}


def test_source_hash_goes_by_the_clients_address() -> None:
    """Its port makes no difference; another address may get another server; no address gets one too."""
    many = upstream(*(tcp(port) for port in range(1, 9)), balance="source_hash")
    assert len({choose(many, peer=("10.0.0.1", port)).address for port in range(20)}) == 1
    assert len({choose(many, peer=(f"10.0.0.{n}", 1)).address for n in range(40)}) > 3
    assert choose(many, peer="") in many.servers


def test_update_keeps_the_servers_that_stay() -> None:
    """With their connections, health and new settings; those that are new start slowly."""
    data = upstream_data(tcp(1), tcp(2), slow_start=10.0)
    servers = Upstream(data, MetricStore(m.WORKER_SPECS), 0.0)
    stays, goes = servers.servers
    stays.begin()
    goes.begin()
    servers.update(upstream_data(tcp(1, weight=2), tcp(3), slow_start=10.0), 5.0)
    assert servers.servers[0] is stays
    assert [server.data.port for server in servers.servers] == [1, 3]
    assert Counter(ports(servers, 21, now=5.0)) == {1: 20, 3: 1}
    assert [entry["server"] for entry in servers.status()] == ["127.0.0.1:1", "127.0.0.1:3", "127.0.0.1:2"]
    goes.end()
    assert [entry["connections"] for entry in servers.status()] == [1, 0]


def test_what_checks_say_counts() -> None:
    """Down: no clients, while there is another. Up again: whatever failures there were are forgotten."""
    servers = upstream(tcp(1), tcp(2), slow_start=4.0)
    put_out(servers, servers.servers[0])
    servers.update(upstream_data(tcp(1, up=False), tcp(2), slow_start=4.0), 2.0)
    assert ports(servers, 3, now=1000.0) == [2, 2, 2]
    servers.update(upstream_data(tcp(1), tcp(2), slow_start=4.0), 1000.0)
    assert not servers.servers[0].health.out
    assert Counter(ports(servers, 11, now=1000.0)) == {1: 1, 2: 10}


def test_failures_are_counted_by_server_and_reason() -> None:
    """So that an operator sees which server refuses; by group and configured name, whose values are bounded."""
    store = MetricStore(m.WORKER_SPECS)
    named = tcp(80, "127.0.0.2").model_copy(update={"label": "web:80"})
    servers = Upstream(upstream_data(tcp(1), named), store, 0.0)
    a, b = servers.servers
    servers.failed(a, "refused", 1.0)
    servers.failed(a, "refused", 1.0)
    servers.failed(b, "timeout", 1.0)
    rows = store.snapshot()["offload_upstream_failures_total"]
    counted = {tuple(labels): count for labels, count in rows}
    assert counted == {("web", "127.0.0.1:1", "refused"): 2, ("web", "web:80", "timeout"): 1}


@given(
    st.sampled_from(["round_robin", "least_connections", "source_hash"]),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 5)), min_size=1, max_size=5),
    st.integers(0, 255),
)
def test_a_client_always_gets_a_server_if_one_has_room(
    policy: str, states: list[tuple[bool, bool, int]], client: int
) -> None:
    """Up and in before down or out; and whoever is chosen was not tried before."""
    data = [tcp(port, up=up, weight=weight) for port, (up, _, weight) in enumerate(states, 1)]
    servers = upstream(*data, balance=policy, attempts=9)
    for server, (_, out, _) in zip(servers.servers, states, strict=True):
        if out:
            put_out(servers, server)
    tried: tuple[Server, ...] = ()
    fit_before = True
    for _ in states:
        server = choose(servers, *tried, peer=(f"127.0.0.{client}", 1))
        assert server not in tried
        fit = server.is_fit(1.0)
        assert fit_before or not fit
        fit_before = fit
        tried += (server,)
    assert servers.choose(PEER, tried, 1.0) is None
