"""When arrivals are due: pure functions of phases and draws; no clock.

An open loop starts its connections by a timetable, whether or not earlier ones were answered,
as the clients of a public server do. A closed loop waits for a slow server, and so does not see
how slow it is (coordinated omission).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of `seconds` with `rate` arrivals a second, which changes evenly to `end_rate`.

    Without `end_rate` the rate is constant; `burst` arrivals come all at once when it begins.
    """

    seconds: float
    rate: float
    end_rate: float | None = None
    burst: int = 0

    @property
    def slope(self) -> float:
        """By how much the rate grows in a second."""
        return 0.0 if self.end_rate is None else (self.end_rate - self.rate) / self.seconds

    @property
    def expected(self) -> float:
        """Arrivals after the burst, on average."""
        return (self.rate + self.slope * self.seconds / 2) * self.seconds

    def time_of(self, position: float) -> float:
        """Seconds into the phase until so many arrivals (at most `expected`) are expected.

        Solves rate × t + slope × t² / 2 = position, in the form that also holds for a slope of 0.
        """
        root = math.sqrt(max(0.0, self.rate**2 + 2 * self.slope * position))
        return min(self.seconds, 2 * position / (self.rate + root))


def arrival_times(phases: Sequence[Phase], gap: Callable[[], float]) -> Iterator[float]:
    """Seconds from the start to each arrival, in order.

    `gap` draws the distance between two arrivals, in expected arrivals: see `even` and `poisson`.
    """
    begin, ahead = 0.0, gap()
    for phase in phases:
        yield from itertools.repeat(begin, phase.burst)
        most = phase.expected
        while ahead < most:
            yield begin + phase.time_of(ahead)
            ahead += gap()
        ahead -= most
        begin += phase.seconds


def even() -> Callable[[], float]:
    """Gaps of equal length; the first is half of one, so that each phase gets its share."""
    gaps = itertools.chain((0.5,), itertools.repeat(1.0))
    return lambda: next(gaps)


def poisson(draw: Callable[[], float]) -> Callable[[], float]:
    """Gaps between independent arrivals (exponential); `draw` is uniform in [0, 1)."""
    return lambda: -math.log1p(-draw())


def length(phases: Sequence[Phase]) -> float:
    """Seconds that all phases take together."""
    return sum(phase.seconds for phase in phases)


def expected(phases: Sequence[Phase]) -> float:
    """Arrivals in all phases, on average."""
    return sum(phase.burst + phase.expected for phase in phases)


class Timetable:
    """The arrivals of one process, on a clock that shows `start` when they begin."""

    def __init__(self, times: Iterator[float], start: float) -> None:
        self._times = times
        self._start = start
        self.next_at = start + next(times, math.inf)
        """When the next arrival is due; infinity when there are no more."""

    def due(self, now: float) -> Iterator[float]:
        """Takes out the arrivals due by `now`: the time that each was due at, in order."""
        while (at := self.next_at) <= now:
            self.next_at = self._start + next(self._times, math.inf)
            yield at
