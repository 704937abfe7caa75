"""How long signatures take: per node for choosing one, per scheme for knowing when to hedge."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import exp

MEAN_SHARE = 0.1
"""The newest observation's share of the mean: about the last 20 count …"""
MEAN_TIME = 20.0
"""… or those of so many seconds, if they are fewer: a node that was slow, and is therefore hardly
asked, is soon known to be quick again."""
PEAK_TIME = 2.0
"""Seconds in which a peak falls back to the mean, but for 1/e."""


class NodeLatency:
    """The usual latency of a node, and a peak that jumps up at once and falls slowly.

    The peak (Finagle's "peak EWMA") makes a node that has become slow lose its share with its
    first slow answer; the mean says whether it is slow as a rule, and the last answer how long one waits there now.
    All in seconds, 0 while unknown.
    """

    __slots__ = ("_share", "last", "mean", "peak")

    def __init__(self) -> None:
        self.mean = self.peak = self.last = 0.0
        self._share = MEAN_SHARE

    def __repr__(self) -> str:
        return f"<NodeLatency mean {self.mean * 1000:.1f} ms, peak {self.peak * 1000:.1f} ms>"

    def observe(self, seconds: float) -> None:
        """An answer came after `seconds`."""
        if self.mean:
            self.mean += (seconds - self.mean) * self._share
        else:
            self.mean = seconds
        self._share = MEAN_SHARE
        self.last = seconds
        self.peak = max(self.peak, seconds)

    def settle(self, elapsed: float) -> None:
        """`elapsed` seconds went by: the peak falls towards the mean, the next observation says more."""
        self._share = 1 - (1 - self._share) * exp(-elapsed / MEAN_TIME)
        self.peak = self.mean + (self.peak - self.mean) * exp(-elapsed / PEAK_TIME)


_RATIO = 1.1
_BOUNDS = tuple(0.0001 * _RATIO**step for step in range(130))  # 100 µs to 22 s
_KNOWN_AFTER = 50
_LOOK_EVERY = 32
_FORGET_AT = 1000


class RunningQuantile:
    """A quantile of recent observations, to within 10 %.

    Counts by buckets that grow by a tenth each; all are halved now and then, so that what
    counts is about the last thousand.
    """

    __slots__ = ("_counts", "_quantile", "_until_look", "value")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._counts = [0.0] * (len(_BOUNDS) + 1)
        self._until_look = _KNOWN_AFTER
        self.value: float | None = None
        """Seconds; None until enough has been observed."""

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._until_look -= 1
        if not self._until_look:
            self._until_look = _LOOK_EVERY
            self._look()

    def _look(self) -> None:
        below = list(accumulate(self._counts))
        wanted = bisect_left(below, below[-1] * self._quantile)
        self.value = _BOUNDS[min(wanted, len(_BOUNDS) - 1)]
        if below[-1] >= _FORGET_AT:
            self._counts = [count / 2 for count in self._counts]
