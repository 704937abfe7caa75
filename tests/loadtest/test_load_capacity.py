"""The search for the highest rate, with a simulated system and no clock."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.capacity import Capacity, Measure, Objective, RateSearch, Use, find
from loadtest.generate.records import Latency, Summary
from loadtest.scrape import Metrics, Total
from loadtest.trial import busiest_worker, signature_share

IDLE = Use(client=0.1, client_late=False, machine=0.2)
OBJECTIVE = Objective(p99=0.05, errors=0.001)


def summary(rate: float, p99: float, failed: int = 0) -> Summary:
    arrivals = round(rate * 5)
    latency = Latency(count=arrivals - failed, p99=p99)
    return Summary(
        5.0,
        arrivals,
        arrivals - failed,
        0,
        {"timeout": failed} if failed else {},
        latency,
        latency,
        Latency(),
    )


def queue(capacity: float, noise: Callable[[], float] = lambda: 1.0) -> Measure:
    """A system whose latency grows like a queue's: 10 ms at rest, 50 ms at 80 % of its capacity."""

    def measure(rate: float) -> tuple[Summary, Use]:
        load = rate / (capacity * noise())
        return summary(rate, 0.01 / (1 - load) if load < 1 else 10.0), IDLE

    return measure


@given(st.floats(2, 10_000), st.floats(1, 1000), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_highest_rate_is_found(capacity: float, first: float, precision: float) -> None:
    """To within the precision, wherever the search begins, and in few trials."""
    found = find(queue(capacity), OBJECTIVE, first=first, precision=precision, repeat=1)
    assert found.rate <= capacity * 0.8 * 1.0001
    assert found.rate * (1 + precision) >= capacity * 0.8 * 0.9999
    assert len(found.trials) < 45


@given(st.integers(0, 2**32))
def test_a_noisy_system_gives_a_spread(seed: int) -> None:
    """A system that varies by 10 %: each search finds a rate near the true one."""
    draw = random.Random(seed)
    measure = queue(1000, lambda: draw.uniform(0.95, 1.05))
    found = find(measure, OBJECTIVE, first=100, precision=0.05, repeat=3)
    assert len(found.rates) == 3
    assert min(found.rates) <= found.rate <= max(found.rates)
    assert 600 < found.rate < 1000


def test_repetitions_begin_near_what_was_found() -> None:
    """They take few trials: three searches cost less than twice the first."""
    once = find(queue(5000), OBJECTIVE, first=10, precision=0.05, repeat=1)
    thrice = find(queue(5000), OBJECTIVE, first=10, precision=0.05, repeat=3)
    assert len(thrice.trials) < 2 * len(once.trials)


def test_a_system_that_never_meets_the_objective() -> None:
    found = find(lambda rate: (summary(rate, 1.0), IDLE), OBJECTIVE, first=100, precision=0.05, repeat=2)
    assert (found.rate, found.best) == (0.0, None)
    assert found.at_the_limit is not None
    assert found.at_the_limit.rate >= 1.0


def test_a_system_that_always_does_ends_the_search() -> None:
    found = find(lambda rate: (summary(rate, 0.01), IDLE), OBJECTIVE, first=100, precision=0.05, repeat=1)
    assert 13_000 < found.rate <= 20_000
    assert found.at_the_limit is None


def test_a_search_that_has_ended() -> None:
    search = RateSearch(100, 0.5)
    search.tell(True)
    search.tell(False)
    assert search.next is None
    with pytest.raises(ValueError, match="ended"):
        search.tell(True)


@pytest.mark.parametrize(
    ("stretch", "met"),
    [
        (summary(1000, 0.05), True),
        (summary(1000, 0.051), False),
        (summary(1000, 0.01, failed=5), True),
        (summary(1000, 0.01, failed=6), False),
        (summary(0, 0.0), False),
    ],
)
def test_objectives(stretch: Summary, met: bool) -> None:
    """Both the latency and the failures count; nothing at all is no success."""
    assert OBJECTIVE.met_by(stretch) is met


@pytest.mark.parametrize(
    ("use", "limit"),
    [
        (Use(0.95, True, 0.95, worker=0.95), "the load client's CPU"),
        (Use(0.5, True, 0.95, worker=0.95), "a worker's CPU"),
        (Use(0.5, True, 0.95, worker=0.5), "the machine's CPU"),
        (Use(0.2, True, 0.3), "the load client: it was late"),
        (Use(0.5, False, 0.5, worker=0.5, signature_share=0.9), "signatures"),
        (Use(0.5, False, 0.5), "neither the load client's CPU"),
    ],
)
def test_what_was_the_limit(use: Use, limit: str) -> None:
    assert use.limit.startswith(limit)


def test_the_limit_is_read_off_the_lowest_rate_that_missed() -> None:
    found = find(queue(1000), OBJECTIVE, first=100, precision=0.05, repeat=1)
    assert isinstance(found, Capacity)
    assert found.best is not None
    assert found.at_the_limit is not None
    assert found.best.rate == found.rate
    assert found.rate < found.at_the_limit.rate <= found.rate * 1.05


def test_what_the_proxy_tells_of_a_trial() -> None:
    """The busiest worker's CPU, and how much of a handshake was its signature."""
    before = Metrics({"offload_process_cpu_seconds{process=worker-0}": 1.0})
    after = Metrics(
        {
            "offload_process_cpu_seconds{process=worker-0}": 3.0,
            "offload_process_cpu_seconds{process=worker-1}": 4.0,
            "offload_process_cpu_seconds{process=supervisor}": 9.0,
        },
        {"signature": Total(5.0, 1000.0), "whole handshake, full": Total(10.0, 1000.0)},
    )
    assert busiest_worker(before, after, 5.0) == 0.8
    assert signature_share(before, after) == pytest.approx(0.5)
    assert busiest_worker(after, after, 5.0) is None
    assert signature_share(after, after) is None
