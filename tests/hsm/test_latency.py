"""The latency of a node, and the quantile after which a second one is asked."""

from __future__ import annotations

import random
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.client.latency import PEAK_TIME, NodeLatency, RunningQuantile

SECONDS = st.floats(0.0002, 10)


@given(observed=st.lists(SECONDS, min_size=1, max_size=100))
def test_mean_and_peak_stay_within_what_was_seen(observed: list[float]) -> None:
    """The mean is no quicker than the quickest, the peak no lower than the mean."""
    latency = NodeLatency()
    for seconds in observed:
        latency.observe(seconds)
        assert min(observed) - 1e-9 <= latency.mean <= max(observed) + 1e-9
        assert latency.peak >= latency.mean - 1e-9


def test_one_slow_answer_shows_at_once_and_is_forgotten() -> None:
    """The peak jumps to it, and has fallen to a third of the way in PEAK_TIME, however often it is looked at."""
    latency = NodeLatency()
    for _ in range(100):
        latency.observe(0.005)
    latency.observe(1.0)
    assert latency.peak == 1.0
    peaks = [latency.peak]
    for _ in range(200):
        latency.settle(PEAK_TIME / 100)
        peaks.append(latency.peak)
    assert all(later < earlier for earlier, later in pairwise(peaks))
    assert peaks[100] - latency.mean == pytest.approx((1.0 - latency.mean) / 2.718, rel=0.01)


@pytest.mark.parametrize(("answers", "pause"), [(80, 0.01), (25, 5.0)])
def test_a_recovered_node_is_believed(answers: int, pause: float) -> None:
    """80 quick answers at once, or 25 in two minutes, make a node quick that was a hundred times slower."""
    latency = NodeLatency()
    for _ in range(100):
        latency.observe(0.5)
    for _ in range(answers):
        latency.observe(0.005)
        latency.settle(pause)
    latency.settle(20.0)
    assert latency.peak < 0.006


@pytest.mark.parametrize("share", [0.5, 0.95])
@given(seed=st.integers(0, 2**32), spread=st.floats(0.1, 1.5), usual=st.floats(0.001, 0.1))
def test_a_quantile_is_right_to_a_tenth(share: float, seed: int, spread: float, usual: float) -> None:
    """Beside the quantile of the same observations, sorted."""
    chance = random.Random(seed)
    observed = [min(20.0, max(0.0002, usual * chance.lognormvariate(0, spread))) for _ in range(50 + 32 * 20)]
    quantile = RunningQuantile(share)
    for seconds in observed:
        quantile.observe(seconds)
    exact = sorted(observed)[ceil(share * len(observed)) - 1]
    assert quantile.value is not None
    assert exact * 0.99 <= quantile.value <= exact * 1.11


def test_a_quantile_is_unknown_at_first() -> None:
    """A few observations are no ground for a p95."""
    quantile = RunningQuantile(0.95)
    for _ in range(49):
        quantile.observe(0.005)
    assert quantile.value is None
    quantile.observe(0.005)
    assert quantile.value == pytest.approx(0.005, rel=0.1)


def test_a_quantile_follows_a_change() -> None:
    """What counts is about the last thousand: after some thousands of slower answers nothing else is known."""
    quantile = RunningQuantile(0.95)
    for seconds in (0.005, 0.05, 0.002):
        for _ in range(8000):
            quantile.observe(seconds)
        assert quantile.value == pytest.approx(seconds, rel=0.1)


def test_a_quantile_has_a_highest_value() -> None:
    """Answers after minutes count as the highest bucket's, and quicker than any bucket as the lowest."""
    for seconds, value in ((1000.0, 21.9), (0.0, 0.0001)):
        quantile = RunningQuantile(0.95)
        for _ in range(50):
            quantile.observe(seconds)
        assert quantile.value == pytest.approx(value, rel=0.01)
