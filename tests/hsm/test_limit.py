"""How many requests a node may have in flight, beside a device of which everything is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.client.limit import FIRST, LEAST, ConcurrencyLimit


class Device:
    """Works on `servers` requests at a time, the others wait in it; always given all that the limit allows."""

    def __init__(self, servers: int, seconds: Callable[[], float], limit: ConcurrencyLimit) -> None:
        self._seconds = seconds
        self._limit = limit
        self._free = [0.0] * servers
        self._in_flight: list[tuple[float, float]] = []
        self._now = 0.0
        self.answered = 0

    def run(self, seconds: float) -> float:
        """Let time pass; the highest limit meanwhile."""
        highest, until = 0, self._now + seconds
        while self._now < until:
            highest = max(highest, self._limit.value)
            while len(self._in_flight) < self._limit.value:
                done = max(self._now, heappop(self._free)) + self._seconds()
                heappush(self._free, done)
                heappush(self._in_flight, (done, self._now))
            self._now, sent = heappop(self._in_flight)
            self.answered += 1
            self._limit.observe(self._now - sent, len(self._in_flight), self._now)
        return highest


DEVICES = [(1, 0.002), (4, 0.002), (16, 0.02), (64, 0.03), (2, 0.05)]
"""Servers, and seconds of work on a request."""


def most_wanted(servers: int, seconds: float) -> float:
    """The in-flight count at which answers take 3 × as long as at best and 10 ms more (or one in step with it)."""
    best = max(seconds, LEAST * seconds / servers)  # as far as it can be seen: LEAST are always in flight
    return (3 * best + 0.010) * servers / seconds + servers


@pytest.mark.parametrize(("servers", "seconds"), DEVICES)
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_an_overloaded_device_is_busy_and_hardly_queues(servers: int, seconds: float, jitter: float) -> None:
    """Under endless load the limit stays near what the device works on, and the device does all it can."""
    chance = random.Random(1)
    limit = ConcurrencyLimit(1000)
    device = Device(servers, lambda: seconds * (1 + jitter * (2 * chance.random() - 1)), limit)
    device.run(2)
    device.answered = 0
    assert device.run(23) <= most_wanted(servers, seconds)
    assert device.answered >= 0.95 * 23 * servers / seconds


def test_a_limit_does_not_drift_under_endless_load() -> None:
    """The node is never seen idle, and yet its base latency is not forgotten: an hour on it is as before."""
    limit = ConcurrencyLimit(1000)
    device = Device(8, lambda: 0.1, limit)
    first = device.run(60)
    device.run(3600)
    assert device.run(60) <= first


def test_a_device_that_becomes_slower_gets_less_and_then_all_it_can_use() -> None:
    """Slower is taken for a queue first; when fewer in flight do not help, throughput is soon full again."""
    pace = [0.005]
    limit = ConcurrencyLimit(1000)
    device = Device(32, lambda: pace[0], limit)
    device.run(5)
    busy = limit.value
    pace[0] = 0.2
    device.run(1)
    assert limit.value < busy
    device.run(5)
    device.answered = 0
    assert device.run(10) <= most_wanted(32, 0.2)
    assert device.answered >= 0.9 * 10 * 32 / 0.2


def test_a_device_that_becomes_faster_gets_more() -> None:
    """The limit grows back within a second when answers are quick again."""
    pace = [0.05]
    limit = ConcurrencyLimit(1000)
    device = Device(32, lambda: pace[0], limit)
    device.run(5)
    pace[0] = 0.001
    device.run(1)
    device.answered = 0
    device.run(1)
    assert device.answered >= 0.95 * 32 / 0.001


def test_an_idle_nodes_limit_stays() -> None:
    """Without load there is no reason to allow more, nor less."""
    limit = ConcurrencyLimit(1000)
    for second in range(1000):
        limit.observe(0.005, 0, float(second))
    assert limit.value == FIRST


def test_a_pause_is_not_taken_for_a_queue() -> None:
    """One slow answer among quick ones changes nothing."""
    limit = ConcurrencyLimit(1000)
    for turn in range(10_000):
        limit.observe(1.0 if turn % 16 == 0 else 0.005, 4, turn * 0.001)
    assert limit.value == FIRST


@given(
    ceiling=st.integers(1, 1000),
    answers=st.lists(st.tuples(st.floats(1e-5, 5), st.integers(0, 1000), st.floats(0, 1)), max_size=300),
    later=st.integers(1, 1000),
)
def test_a_limit_has_bounds(ceiling: int, answers: list[tuple[float, int, float]], later: int) -> None:
    """Whatever is observed, it lies between LEAST and the operator's ceiling, also when that changes."""
    limit, now = ConcurrencyLimit(ceiling), 0.0
    for number, (seconds, in_flight, pause) in enumerate(answers):
        if number == len(answers) // 2:
            limit.set_ceiling(later)
            ceiling = later
        now += pause
        limit.observe(seconds, in_flight, now)
        assert min(LEAST, ceiling) <= limit.value <= ceiling
