"""Finds the highest rate at which a server meets an objective, and what stopped it there.

The search and the judgement are pure; `measure` is told to try a rate, whatever that takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.generate.records import Summary

LOWEST, HIGHEST = 1.0, 20_000.0
"""Arrivals a second between which is searched."""
GROWTH = 1.5
CLOSE_GROWTH = 1.1
"""By how much a step changes the rate until an answer lies on its other side: first, and in repetitions."""
BUSY = 0.9
"""A process that uses this share of a core has no more to give: the rest are waits between bursts."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is to be held: p99 of handshakes in seconds, and the share of arrivals that may fail."""

    p99: float
    errors: float

    def met_by(self, summary: Summary) -> bool:
        """Whether a stretch of time meets it; one without arrivals does not."""
        if not summary.completed:
            return False
        return summary.handshake.p99 <= self.p99 and summary.failed <= self.errors * summary.arrivals


class RateSearch:
    """Which rate to try next. Steps up while the objective is met (or down), then halves what is between."""

    def __init__(self, first: float, precision: float, growth: float = GROWTH) -> None:
        """It ends when the highest rate that met the objective is known to within `precision`, a share."""
        self._precision = precision
        self._growth = growth
        self.met = 0.0
        """The highest rate that met the objective so far; 0 if none did."""
        self.missed: float | None = None
        """The lowest that did not."""
        self.next: float | None = first

    def tell(self, met: bool) -> None:
        """How the rate `next` did; from now on `next` is another, or None at the end."""
        rate = self.next
        if rate is None:
            raise ValueError("the search has ended")
        if met:
            self.met = max(self.met, rate)
        else:
            self.missed = rate if self.missed is None else min(self.missed, rate)
        self.next = self._choose()

    def _choose(self) -> float | None:
        if self.missed is None:
            return self.met * self._growth if self.met * self._growth <= HIGHEST else None
        if not self.met:
            return self.missed / self._growth if self.missed / self._growth >= LOWEST else None
        if self.missed <= self.met * (1 + self._precision):
            return None
        return (self.met + self.missed) / 2


@dataclass(frozen=True, slots=True)
class Use:
    """How busy everything was during a trial, in cores: the busiest worker, one generator on average.

    `machine` is the share of all cores in use, `signature_share` how much of a handshake's time
    at the server was the wait for its signature; None where the target does not say.
    """

    client: float
    client_late: bool
    machine: float
    worker: float | None = None
    signature_share: float | None = None

    @property
    def limit(self) -> str:
        """What most likely kept the rate from being higher."""
        if self.client > BUSY:
            return "the load client's CPU: use more processes"
        if self.worker is not None and self.worker > BUSY:
            return "a worker's CPU"
        if self.machine > BUSY:
            return "the machine's CPU, which the load client shares"
        if self.client_late:
            return "the load client: it was late"
        if self.signature_share is not None and self.signature_share > 0.5:
            return "signatures: the HSMs"
        return "neither the load client's CPU nor the machine's"


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate, tried."""

    rate: float
    summary: Summary
    use: Use
    met: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """The rates that several searches found for an objective, and what was tried for them."""

    objective: Objective
    rates: tuple[float, ...]
    trials: tuple[Trial, ...]

    @property
    def rate(self) -> float:
        """The median; 0 if the objective was met at no rate."""
        return statistics.median(self.rates)

    @property
    def at_the_limit(self) -> Trial | None:
        """The trial that missed the objective at the lowest rate: it shows what was the limit."""
        return min(
            (trial for trial in self.trials if not trial.met), key=lambda trial: trial.rate, default=None
        )

    @property
    def best(self) -> Trial | None:
        """The trial that met the objective at the highest rate."""
        return max((trial for trial in self.trials if trial.met), key=lambda trial: trial.rate, default=None)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        limit = None if self.at_the_limit is None else self.at_the_limit.use.limit
        return {"rate": self.rate, "limit": limit, **asdict(self)}


Measure = Callable[[float], tuple[Summary, Use]]
"""Tries a rate, in arrivals a second."""


def find(measure: Measure, objective: Objective, *, first: float, precision: float, repeat: int) -> Capacity:
    """Search `repeat` times; repetitions start below what the first found, and step more carefully."""
    rates: list[float] = []
    trials: list[Trial] = []
    for number in range(repeat):
        start = first if number == 0 or not rates[0] else rates[0] / CLOSE_GROWTH
        search = RateSearch(start, precision, GROWTH if number == 0 else CLOSE_GROWTH)
        while (rate := search.next) is not None:
            summary, use = measure(rate)
            trials.append(Trial(rate, summary, use, objective.met_by(summary)))
            search.tell(trials[-1].met)
        rates.append(search.met)
    return Capacity(objective, tuple(rates), tuple(trials))
