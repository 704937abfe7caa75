"""The schedule of an emulated HSM, with simulated time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.config import Emulation
from hsm.node.emulation import Schedule, service_time

SLACK = 1e-6
"""Rounding of sums of seconds."""


@dataclass(frozen=True)
class Served:
    """One admitted request: when it came, was begun and was done."""

    arrived: float
    draw: float
    begun: float
    done: float


Request = tuple[float, float, float | None]
"""Gap to the one before, draw of the jitter, and time until the request expires."""

emulations = st.builds(
    Emulation,
    latency=st.floats(0, 0.1),
    jitter=st.floats(0, 0.05),
    signatures_per_second=st.just(0.0) | st.floats(1, 5000),
    parallel=st.integers(0, 5),
    slow_factor=st.floats(0.1, 10),
)
arrivals = st.lists(
    st.tuples(st.floats(0, 0.1), st.floats(-1, 1, exclude_max=True), st.none() | st.floats(0, 0.5)),
    max_size=60,
)
"""Gap to the one before, draw of the jitter, and time until the request expires."""


def schedule_of(emulation: Emulation) -> Schedule:
    """Its queue, with nothing in it."""
    return Schedule(emulation.signatures_per_second, emulation.parallel)


def simulate(emulation: Emulation, requests: list[Request]) -> list[Served]:
    """Run requests through a schedule; those that were served."""
    schedule, now, served = schedule_of(emulation), 1000.0, []
    for gap, draw, patience in requests:
        now += gap
        done = schedule.admit(
            now, service_time(emulation, draw), None if patience is None else now + patience
        )
        if done is not None:
            served.append(Served(now, draw, done - service_time(emulation, draw), done))
    return served


@given(emulations, arrivals)
def test_nothing_is_begun_before_it_came(emulation: Emulation, requests: list[Request]) -> None:
    """A request is begun when it comes or later, and takes its latency from then on."""
    served = simulate(emulation, requests)
    assert all(s.begun >= s.arrived - SLACK for s in served)


@given(emulations, arrivals)
def test_never_more_than_parallel_at_once(emulation: Emulation, requests: list[Request]) -> None:
    """At the moment a request is begun, at most `parallel` are in service, itself included."""
    served = simulate(emulation, requests)
    for one in served if emulation.parallel else []:
        busy = sum(other.begun <= one.begun + SLACK / 2 < other.done - SLACK for other in served)
        assert busy <= emulation.parallel


@given(emulations, arrivals)
def test_never_above_the_rate(emulation: Emulation, requests: list[Request]) -> None:
    """Two signatures are begun at least one interval apart."""
    served = simulate(emulation, requests)
    if emulation.signatures_per_second:
        interval = 1 / emulation.signatures_per_second
        for first, second in pairwise(served):
            assert second.begun - first.begun >= interval - SLACK


@given(emulations, arrivals)
def test_first_come_first_begun(emulation: Emulation, requests: list[Request]) -> None:
    """Requests are begun in the order in which they came."""
    served = simulate(emulation, requests)
    begun = [s.begun for s in served]
    assert all(second >= first - SLACK for first, second in pairwise(begun))


@given(emulations, arrivals)
def test_expired_requests_take_no_capacity(emulation: Emulation, requests: list[Request]) -> None:
    """The others are served as if the refused ones had never come."""
    served = simulate(emulation, requests)
    alone = schedule_of(emulation)
    again = [alone.admit(s.arrived, service_time(emulation, s.draw), None) for s in served]
    assert [s.done for s in served] == again


@given(emulations, arrivals)
def test_only_late_requests_are_refused(emulation: Emulation, requests: list[Request]) -> None:
    """A request without an expiry is never refused, and one that is served was begun before it."""
    schedule, now = schedule_of(emulation), 1000.0
    for gap, draw, patience in requests:
        now += gap
        done = schedule.admit(
            now, service_time(emulation, draw), None if patience is None else now + patience
        )
        if patience is None:
            assert done is not None
        elif done is not None:
            assert done - service_time(emulation, draw) <= now + patience + SLACK


def test_one_server_serves_one_after_the_other() -> None:
    """With `parallel: 1` three requests at once are done after one, two and three latencies."""
    schedule = Schedule(0.0, parallel=1)
    assert [schedule.admit(10.0, 0.5, None) for _ in range(3)] == [10.5, 11.0, 11.5]


def test_a_request_that_would_begin_too_late_is_refused() -> None:
    """While the only server is busy, a request that can't wait for it is refused at once."""
    schedule = Schedule(0.0, parallel=1)
    assert schedule.admit(10.0, 0.5, 10.1) == 10.5  # it is begun in time, that is enough
    assert schedule.admit(10.0, 0.5, 10.4) is None
    assert schedule.admit(10.0, 0.5, 10.5) == 11.0


def test_the_rate_has_no_memory_of_idle_times() -> None:
    """After a pause the rate holds again: no burst is saved up."""
    schedule = Schedule(10.0, parallel=0)
    assert [schedule.admit(5.0, 0.0, None) for _ in range(3)] == pytest.approx([5.0, 5.1, 5.2])
    assert [schedule.admit(60.0, 0.0, None) for _ in range(2)] == pytest.approx([60.0, 60.1])


def test_jitter_goes_both_ways_and_never_below_nothing() -> None:
    """Latency varies by up to the jitter; it is multiplied by the factor and never negative."""
    emulation = Emulation(latency=0.010, jitter=0.002, slow_factor=2)
    assert service_time(emulation, -1.0) == pytest.approx(0.016)
    assert service_time(emulation, 0.5) == pytest.approx(0.022)
    assert service_time(Emulation(latency=0.001, jitter=0.01), -1.0) == 0.0


def test_without_limits_nothing_waits() -> None:
    """The default emulation is none: everything is done when it comes."""
    emulation = Emulation()
    schedule = schedule_of(emulation)
    assert [schedule.admit(3.0, service_time(emulation, 0.9), 3.0) for _ in range(1000)] == [3.0] * 1000
