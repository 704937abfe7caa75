"""Limits per client address, in simulated time; and which addresses are one client."""

from __future__ import annotations

from ipaddress import ip_network
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload import address_limits
from offload.address_limits import TOO_FAST, TOO_MANY, AddressLimits, share
from offload.config import LimitSettings
from offload.networks import Networks, client_of, parse_network

A, B = "192.0.2.1", "192.0.2.2"


def limits(workers: int = 1, **settings: object) -> AddressLimits:
    """One worker's limits, of which most are off."""
    return AddressLimits(LimitSettings.model_validate(settings), workers)


def test_open_connections() -> None:
    """So many at a time; one that ends makes room; another address has its own count."""
    counted = limits(max_connections_per_address=2)
    for holder in ("one", "two"):
        assert counted.refusal(A, 0) == ""
        counted.hold(holder, A)
    assert counted.refusal(A, 0) == TOO_MANY
    assert counted.refusal(B, 0) == ""
    counted.release("never held")
    counted.release("one")
    assert counted.refusal(A, 0) == ""
    counted.release("two")
    counted.release("two")
    assert counted._open == {}
    assert counted._holders == {}


@given(
    st.lists(st.floats(0, 50), max_size=200).map(sorted),
    st.floats(0.5, 20),
    st.integers(1, 10),
)
def test_a_token_bucket(times: list[float], rate: float, burst: int) -> None:
    """It admits exactly what the textbook's bucket of `burst` tokens does, filled at `rate`."""
    counted = limits(handshakes_per_second_per_address=rate, handshake_burst_per_address=burst)
    tokens, last = float(burst), 0.0
    for now in times:
        tokens = min(burst, tokens + (now - last) * rate)
        last = now
        admitted = counted.refusal(A, now) == ""
        if abs(tokens - 1) > 1e-6:  # at the edge rounding decides
            assert admitted == (tokens >= 1)
        if admitted:
            tokens = max(0.0, tokens - 1)


def test_who_goes_on_too_fast_is_served_at_the_rate() -> None:
    """Refused attempts cost no tokens: 100 a second for 10 s get 5 a second, after the burst."""
    counted = limits(handshakes_per_second_per_address=5, handshake_burst_per_address=10)
    admitted = sum(counted.refusal(A, number / 100) == "" for number in range(1000))
    assert 59 <= admitted <= 60
    assert counted.refusal(A, 9.995) == TOO_FAST
    assert counted.refusal(B, 9.995) == ""


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many addresses push out the one not seen for longest; whoever keeps coming stays in it."""
    monkeypatch.setattr(address_limits, "CLIENTS_MOST", 100)
    counted = limits(handshakes_per_second_per_address=0.001, handshake_burst_per_address=1)
    for number in range(1000):
        assert counted.refusal(f"10.0.{number // 250}.{number % 250}", 0) == ""
        counted.refusal(A, 0)
    assert len(counted._due) == 100
    assert counted.refusal(A, 0) == TOO_FAST


def test_off() -> None:
    """Without a limit nothing needs to be counted."""
    assert not limits().active
    assert limits(max_connections_per_address=1).active
    assert limits(handshakes_per_second_per_address=1).active


def test_exempt_networks_meet_no_limit() -> None:
    """A monitoring system's network, say."""
    counted = limits(max_connections_per_address=1, handshakes_per_second_per_address=1, exempt=[B])
    for number in range(5):
        assert counted.refusal(B, 0) == ""
        counted.hold(number, B)
    counted.hold("a", A)
    assert counted.refusal(A, 0) == TOO_MANY


@given(st.integers(1, 100_000), st.integers(1, 64))
def test_shares(limit: int, workers: int) -> None:
    """A worker's share is never below its even part, never above the limit; the sum is as documented."""
    part = share(limit, workers)
    assert limit / workers <= part <= limit
    assert part * workers <= limit + 3 * sqrt(limit * (workers - 1)) + workers
    assert share(limit, 1) == limit


def test_workers_share_a_rate() -> None:
    """Each of two workers refills at half of it."""
    counted = limits(2, handshakes_per_second_per_address=10, handshake_burst_per_address=1)
    assert [counted.refusal(A, now) for now in (0, 0.1, 0.2)] == ["", TOO_FAST, ""]


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
    ],
)
def test_clients(host: str, client: str) -> None:
    """An IPv4 address, or the /64 of an IPv6 one."""
    assert client_of(host) == client


@pytest.mark.parametrize(
    ("host", "inside"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), ("2001:db8::7", True),
     ("2001:db9::7", False), ("fe80::1%eth0", False), ("unix:/run/x.sock", False), ("", False)],
)  # fmt: skip
def test_networks(host: str, inside: bool) -> None:
    """Addresses as accept(2) or a PROXY header tells them."""
    networks = Networks([ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")])
    assert networks.contain(host) is inside


@pytest.mark.parametrize("value", ["10.0.0.1/8", "10.0.0.0/33", "here", 10, None, True])
def test_what_is_no_network(value: object) -> None:
    """The message says how one is written."""
    with pytest.raises(ValueError, match="write one like"):
        parse_network(value)
