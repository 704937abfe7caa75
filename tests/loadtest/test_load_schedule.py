"""When arrivals are due, in simulated time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.generate.schedule import Phase, Timetable, arrival_times, even, expected, length, poisson

RATES = st.floats(0, 2000)
PHASES = st.lists(
    st.builds(Phase, st.floats(0.01, 5), RATES, st.none() | RATES, st.integers(0, 50)), min_size=1, max_size=5
)


def times(*phases: Phase) -> list[float]:
    """All arrivals at even gaps."""
    return list(arrival_times(phases, even()))


def between(arrivals: Sequence[float], begin: float, end: float) -> int:
    """How many are due in a stretch of time."""
    return sum(begin <= at < end for at in arrivals)


def test_a_constant_rate() -> None:
    """Gaps are even, and the first is half of one."""
    assert times(Phase(1, 4)) == [0.125, 0.375, 0.625, 0.875]


def test_a_step() -> None:
    """Each phase gets its own rate, from its own beginning on."""
    arrivals = times(Phase(10, 5), Phase(10, 50), Phase(10, 5))
    assert [between(arrivals, begin, begin + 10) for begin in (0, 10, 20)] == [50, 500, 50]


def test_a_pause() -> None:
    """A phase without arrivals only takes its time."""
    assert times(Phase(1, 1), Phase(100, 0), Phase(1, 1)) == [0.5, 101.5]


def test_a_ramp() -> None:
    """The rate grows evenly: a quarter of the arrivals come in the first half of the time."""
    arrivals = times(Phase(10, 0, 200))
    assert len(arrivals) == 1000
    assert (between(arrivals, 0, 5), between(arrivals, 9, 10)) == (250, 190)


def test_a_ramp_down_ends_at_its_end() -> None:
    arrivals = times(Phase(10, 200, 0))
    assert len(arrivals) == 1000
    assert between(arrivals, 0, 1) == 190
    assert max(arrivals) <= 10


def test_a_burst() -> None:
    """All at once, when the phase begins, besides its rate."""
    arrivals = times(Phase(1, 2), Phase(1, 2, burst=100))
    assert arrivals == [0.25, 0.75, *itertools.repeat(1.0, 100), 1.25, 1.75]


@given(PHASES)
def test_every_shape_keeps_its_time_and_its_count(phases: list[Phase]) -> None:
    """In order, none after the end, and as many as the rates say."""
    arrivals = times(*phases)
    assert arrivals == sorted(arrivals)
    assert all(0 <= at <= length(phases) * (1 + 1e-9) for at in arrivals)
    assert abs(len(arrivals) - expected(phases)) <= 1


@given(st.integers(0, 2**32), st.sampled_from([Phase(50, 50), Phase(50, 100, 0), Phase(50, 0, 100)]))
def test_poisson_has_the_same_rate_and_varies(seed: int, phase: Phase) -> None:
    """The count's deviation is its square root: 50 of 2,500. Six of them happen once in 10⁹ times."""
    arrivals = list(arrival_times([phase], poisson(random.Random(seed).random)))
    assert abs(len(arrivals) - 2500) < 300
    assert arrivals == sorted(arrivals)


def test_poisson_gaps_are_exponential() -> None:
    """Of independent arrivals, 1 − 1/e of the gaps are shorter than the mean one."""
    arrivals = list(arrival_times([Phase(100, 100)], poisson(random.Random(1).random)))
    short = sum(later - earlier < 0.01 for earlier, later in itertools.pairwise(arrivals))
    assert short / len(arrivals) == pytest.approx(0.632, abs=0.02)


def test_a_timetable_gives_out_what_is_due() -> None:
    """Each arrival once, with the time it was due at, however late it is asked for."""
    timetable = Timetable(iter([0.0, 0.5, 0.5, 2.0]), start=100.0)
    assert (timetable.next_at, list(timetable.due(99.9))) == (100.0, [])
    assert list(timetable.due(100.5)) == [100.0, 100.5, 100.5]
    assert timetable.next_at == 102.0
    assert list(timetable.due(200.0)) == [102.0]
    assert timetable.next_at == math.inf
    assert list(timetable.due(300.0)) == []
