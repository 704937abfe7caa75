"""Which node gets a request: nobody excluded or full, nobody starved, the own zone first."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.client.latency import NodeLatency
from hsm.client.selection import choose, load_of, tiers

RANDOMS = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)


@dataclass
class Node:
    """A node as `selection` sees it."""

    load: float = 1.0
    has_room: bool = True
    zone: str = ""
    is_healthy: bool = True
    is_ejected: bool = False
    name: int = field(default=0, compare=False)


NODES = st.lists(
    st.builds(
        Node,
        load=st.floats(0, 100),
        has_room=st.booleans(),
        zone=st.sampled_from(["", "a", "b"]),
        is_healthy=st.booleans(),
        is_ejected=st.booleans(),
    ),
    max_size=8,
)


def place(node: Node, zone: str) -> int:
    """The tier that a node belongs to, as the document of the module says it."""
    if node.is_ejected:
        return 3
    if not node.is_healthy:
        return 2
    return 0 if not zone or node.zone == zone else 1


@given(nodes=NODES, zone=st.sampled_from(["", "a"]))
def test_tiers_are_in_order(nodes: list[Node], zone: str) -> None:
    """Own zone, other zones, suspects; the ejected apart."""
    ranked, ejected = tiers(nodes, zone)
    places = [{place(node, zone) for node in tier} for tier in ranked]
    assert all(len(found) == 1 for found in places)
    assert sorted(places, key=min) == places
    listed = [id(node) for tier in ranked for node in tier]
    assert sorted(listed) == sorted(id(node) for node in nodes if not node.is_ejected)
    assert ejected == [node for node in nodes if node.is_ejected]


@given(nodes=NODES, zone=st.sampled_from(["", "a"]), randoms=RANDOMS, data=st.data())
def test_the_chosen_is_of_the_first_tier_with_room(
    nodes: list[Node], zone: str, randoms: tuple[float, float], data: st.DataObject
) -> None:
    """Never excluded, never full; None only if nobody else is left."""
    excluded = data.draw(st.lists(st.sampled_from(nodes))) if nodes else []
    ranked, _ = tiers(nodes, zone)
    chosen = choose(ranked, randoms, lambda node: any(node is other for other in excluded))
    free = [[n for n in tier if n.has_room and not any(n is e for e in excluded)] for tier in ranked]
    first = next((tier for tier in free if tier), [])
    if chosen is None:
        assert first == []
    else:
        assert any(chosen is node for node in first)


@given(loads=st.lists(st.floats(0.001, 100), min_size=2, max_size=8), randoms=RANDOMS)
def test_the_busiest_is_not_chosen(loads: list[float], randoms: tuple[float, float]) -> None:
    """One that is clearly worse than all others loses to whichever it is compared with."""
    nodes = [Node(load) for load in loads]
    worst = Node(max(loads) * 1.3)
    assert choose([[*nodes, worst]], randoms) is not worst


@given(count=st.integers(2, 8), seed=st.integers(0, 2**32))
def test_equals_are_all_used(count: int, seed: int) -> None:
    """Equal nodes get about the same, none of them less than half of its share."""
    chance = random.Random(seed)
    nodes = [Node(name=name) for name in range(count)]
    shares: Counter[int] = Counter()
    for _ in range(count * 200):
        chosen = choose([nodes], (chance.random(), chance.random()))
        assert chosen is not None
        shares[chosen.name] += 1
    assert min(shares[node.name] for node in nodes) > 100


class Server:
    """A node that works on `slots` requests at a time, each for `seconds`."""

    def __init__(self, seconds: float, weight: float = 1.0, slots: int = 1000) -> None:
        self.seconds = seconds
        self.weight = weight
        self.slots = slots
        self.latency = NodeLatency()
        self.outstanding = 0
        self.answered = 0

    @property
    def load(self) -> float:
        """As NodeClient has it."""
        return load_of(self.outstanding, self.latency.peak, self.weight)

    @property
    def has_room(self) -> bool:
        """As NodeClient has it."""
        return self.outstanding < self.slots


class Traffic:
    """Open-loop requests to servers, in virtual time; peaks settle and idle servers are tested as in Roster."""

    def __init__(self, servers: list[Server], rate: float) -> None:
        self._servers = servers
        self._rate = rate
        self._chance = random.Random(1)
        self._in_flight: list[tuple[float, int, float, Server]] = []
        self._now = self._arrival = 0.0
        self._count = 0

    def run(self, seconds: float) -> list[int]:
        """Let time pass; how much each server answered meanwhile."""
        before = [server.answered for server in self._servers]
        for _ in range(int(seconds * 10)):
            self._tenth()
            for server in self._servers:
                server.latency.settle(0.1)
        return [server.answered - count for server, count in zip(self._servers, before, strict=True)]

    def test_idle(self) -> None:
        """What a healthy node without requests gets every five seconds."""
        for server in self._servers:
            server.latency.observe(server.seconds)

    def _tenth(self) -> None:
        until = self._now + 0.1
        while (arrival := self._arrival) <= until:
            self._answer(arrival)
            self._arrival += 1 / self._rate
            server = choose([self._servers], (self._chance.random(), self._chance.random()))
            if server is not None:
                self._count += 1
                server.outstanding += 1
                heappush(self._in_flight, (arrival + server.seconds, self._count, arrival, server))
        self._now = until
        self._answer(until)

    def _answer(self, now: float) -> None:
        while self._in_flight and self._in_flight[0][0] <= now:
            done, _, sent, server = heappop(self._in_flight)
            server.outstanding -= 1
            server.answered += 1
            server.latency.observe(done - sent)


@pytest.mark.parametrize("rate", [5.0, 50.0, 500.0])
def test_no_server_starves(rate: float) -> None:
    """Over virtual minutes every server gets a fair part, at low load and at high."""
    answered = Traffic([Server(0.005) for _ in range(4)], rate).run(60)
    assert min(answered) > 0.6 * sum(answered) / 4


def test_a_slow_server_gets_less() -> None:
    """A server ten times slower is left with a small part, from its first answers on."""
    slow, quick, other = Traffic([Server(0.05), Server(0.005), Server(0.005)], 300.0).run(20)
    assert slow < 0.25 * min(quick, other)


def test_a_server_that_was_slow_gets_its_share_back() -> None:
    """Within a minute, by the tests of the idle alone: at this load it gets no request meanwhile."""
    servers = [Server(0.03), Server(0.005), Server(0.005)]
    traffic = Traffic(servers, 100.0)
    traffic.run(20)
    servers[0].seconds = 0.005
    for _ in range(12):
        traffic.run(5)
        traffic.test_idle()
    answered = traffic.run(20)
    assert answered[0] > 0.6 * sum(answered) / 3


def test_weights_share_the_load() -> None:
    """Under load a node of weight 3 has about three times as much in flight as one of weight 1."""
    servers = [Server(1.0, weight=3.0), Server(1.0, weight=1.0)]
    Traffic(servers, 400.0).run(5)
    assert 2.0 < servers[0].outstanding / servers[1].outstanding < 4.0


def test_a_full_zone_spills_over() -> None:
    """When the own zone has no room the others get the rest; the own ones stay full."""
    own, foreign = Node(has_room=True, zone="a"), Node(load=0.0, zone="b")
    ranked, _ = tiers([foreign, own], "a")
    assert choose(ranked, (0.0, 0.0)) is own
    own.has_room = False
    assert choose(ranked, (0.0, 0.0)) is foreign
    foreign.has_room = False
    assert choose(ranked, (0.0, 0.0)) is None
