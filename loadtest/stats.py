"""Statistics of interleaved rounds: pure functions of numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

BOOTSTRAP_RESAMPLES = 2000
"""Enough that the ends of a 95 % interval move by less than the figure's last digit."""


class Sample(NamedTuple):
    """What one round gave: `amount` (CPU ns, connections) for `per` (connections, seconds)."""

    amount: float
    per: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of sums with its spread: a 95 % bootstrap interval, and the extremes of single rounds.

    `median` is that of the rounds' ratios: bursts of other work on the machine move it less.
    """

    value: float
    median: float
    lowest: float
    highest: float
    low95: float
    high95: float

    def __str__(self) -> str:
        return (
            f"{self.value:.3f} (95 %: {self.low95:.3f}..{self.high95:.3f}; "
            f"rounds: median {self.median:.3f}, {self.lowest:.3f}..{self.highest:.3f})"
        )


def mean(samples: Sequence[Sample]) -> float:
    """Sum of amounts over sum of units. Raises ValueError when there was no work."""
    per = sum(sample.per for sample in samples)
    if per <= 0:
        raise ValueError("no work was measured")
    return sum(sample.amount for sample in samples) / per


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], seed: int = 1) -> Ratio:
    """Ours to theirs, round i of one paired with round i of the other (they ran side by side).

    The bootstrap draws pairs of rounds with replacement, from a fixed seed: the same samples
    give the same interval. Raises ValueError for unpaired rounds or rounds without work.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} rounds cannot be paired with {len(theirs)}")
    pairs = list(zip(ours, theirs, strict=True))
    singles = sorted(_ratio_of([pair]) for pair in pairs)
    draw = random.Random(seed)
    resampled = sorted(_ratio_of(draw.choices(pairs, k=len(pairs))) for _ in range(BOOTSTRAP_RESAMPLES))
    return Ratio(
        value=_ratio_of(pairs),
        median=percentile(singles, 0.5),
        lowest=singles[0],
        highest=singles[-1],
        low95=percentile(resampled, 0.025),
        high95=percentile(resampled, 0.975),
    )


def _ratio_of(pairs: Sequence[tuple[Sample, Sample]]) -> float:
    theirs = mean([pair[1] for pair in pairs])
    if theirs <= 0:
        raise ValueError("the side compared with did nothing")
    return mean([pair[0] for pair in pairs]) / theirs


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of sorted values lie, interpolated. ValueError if empty."""
    if not ordered:
        raise ValueError("no values")
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
