"""Which server gets a connection."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.balance import least_connections, round_robin, source_hash, source_of


@dataclass(eq=False)
class Candidate:
    """A server as choosing sees it."""

    name: str
    share: float = 1.0
    connections: int = 0
    credit: float = field(default=0.0)

    @property
    def key(self) -> bytes:
        """Its name."""
        return self.name.encode()


def candidates(shares: list[float]) -> list[Candidate]:
    """One for each share, called a, b, c …"""
    return [Candidate(chr(ord("a") + index), share) for index, share in enumerate(shares)]


weights = st.lists(st.integers(1, 20), min_size=1, max_size=8)
sources = st.binary(max_size=16)


def turns(these: list[Candidate], count: int) -> str:
    """The names of those that have the next turns."""
    return "".join(round_robin(these).name for _ in range(count))


def test_equal_servers_take_turns() -> None:
    """Strictly one after the other."""
    assert turns(candidates([1, 1, 1]), 7) == "abcabca"


def test_heavier_servers_come_more_often_and_not_in_a_row() -> None:
    """The sequence that nginx gives for 5, 1, 1."""
    assert turns(candidates([5, 1, 1]), 7) == "aabacaa"


@given(weights, st.integers(1, 3))
def test_each_gets_its_weight_in_a_round(shares: list[int], rounds: int) -> None:
    """After as many turns as the weights' sum, everyone had exactly its weight."""
    these = candidates([float(share) for share in shares])
    seen = Counter(round_robin(these).name for _ in range(rounds * sum(shares)))
    assert seen == {c.name: rounds * share for c, share in zip(these, shares, strict=True)}


@given(weights, st.lists(st.integers(0, 255), max_size=60))
def test_absence_of_some_never_starves_the_others(shares: list[int], absences: list[int]) -> None:
    """Whoever was away, afterwards all are chosen again, within a bounded number of turns."""
    these = candidates([float(share) for share in shares])
    for mask in absences:
        round_robin([c for index, c in enumerate(these) if not mask >> index & 1] or these)
    seen = {round_robin(these).name for _ in range((len(absences) + 1) * sum(shares))}
    assert seen == {c.name for c in these}


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=8))
def test_least_connections_takes_the_least_busy(states: list[tuple[int, int]]) -> None:
    """None other would have fewer connections for its share with one more."""
    these = [Candidate(str(i), share, connections) for i, (share, connections) in enumerate(states)]
    chosen = least_connections(these)
    assert all((chosen.connections + 1) / chosen.share <= (c.connections + 1) / c.share for c in these)


def test_idle_servers_take_turns() -> None:
    """Equals share the work, whatever the policy."""
    these = candidates([1, 1])
    assert [least_connections(these).name for _ in range(4)] == ["a", "b", "a", "b"]


@given(weights, sources)
def test_a_source_stays_with_its_server(shares: list[int], source: bytes) -> None:
    """The order of the servers, and whatever they do, make no difference."""
    these = candidates([float(share) for share in shares])
    first = source_hash(these, source)
    first.connections, first.credit = 100, 7.0
    assert source_hash(these[::-1], source) is first


@given(weights, sources, st.data())
def test_only_the_sources_of_a_lost_server_move(
    shares: list[int], source: bytes, data: st.DataObject
) -> None:
    """A server that goes takes no other's clients along."""
    these = candidates([*(float(share) for share in shares), 1.0])
    lost = data.draw(st.sampled_from(these))
    before = source_hash(these, source)
    after = source_hash([c for c in these if c is not lost], source)
    assert after is before or before is lost


@given(sources, st.floats(0.1, 1))
def test_a_growing_share_only_draws_sources(source: bytes, part: float) -> None:
    """In a slow start clients move to the server that came back, never between the others."""
    small, whole = candidates([1, 1, part]), candidates([1, 1, 1])
    before, after = source_hash(small, source), source_hash(whole, source)
    assert after.name in (before.name, "c")


def test_sources_spread_by_weight() -> None:
    """Twice the weight, twice the clients: 3,000 addresses, within 5 standard deviations."""
    these = candidates([2.0, 1.0])
    addresses = (source_of(str(ipaddress.IPv4Address(0x0A000000 + n))) for n in range(3000))
    seen = Counter(source_hash(these, source).name for source in addresses)
    assert abs(seen["a"] - 2000) < 5 * (3000 * 2 / 9) ** 0.5


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("10.1.2.3", b"\x0a\x01\x02\x03"),
        ("::ffff:10.1.2.3", b"\x0a\x01\x02\x03"),
        ("::1", bytes(15) + b"\x01"),
        ("fe80::1%eth0", b"\xfe\x80" + bytes(13) + b"\x01"),
        ("", b""),
        ("/run/client.sock", b""),
    ],
)
def test_source_of_an_address(host: str, source: bytes) -> None:
    """Mapped IPv4 is IPv4; a zone is not part of the address; no address is a source too."""
    assert source_of(host) == source


@given(st.text(max_size=50))
def test_source_of_anything(host: str) -> None:
    """Never an exception, never more than an address's length."""
    assert len(source_of(host)) in (0, 4, 16)
