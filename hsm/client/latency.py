"""How long signatures take: per node for choosing one, per scheme for knowing when to hedge."""

from __future__ import annotations

from bisect import bisect_left
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

    __slots__ = ("_counts", "_quantile", "_since_look", "_total", "value")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._counts = [0.0] * (len(_BOUNDS) + 1)
        self._total = 0.0
        self._since_look = 0
        self.value: float | None = None
        """Seconds; None until enough has been observed."""

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._total += 1
        self._since_look += 1
        if self._since_look >= _LOOK_EVERY and self._total >= _KNOWN_AFTER:
            self._since_look = 0
            self._look()

    def _look(self) -> None:
        wanted, seen = self._total * self._quantile, 0.0
        for bound, count in zip(_BOUNDS, self._counts, strict=False):
            seen += count
            if seen >= wanted:
                self.value = bound
                break
        else:
            self.value = _BOUNDS[-1]
        if self._total >= _FORGET_AT:
            self._counts = [count / 2 for count in self._counts]
            self._total /= 2
