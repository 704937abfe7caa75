"""A distribution of latencies, known by some of its percentiles: pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Self


class Quantiles:
    """Between two known percentiles values are spread evenly; below the first and above the last there are none."""

    __slots__ = ("_shares", "_values")

    def __init__(self, values: Mapping[float, float]) -> None:
        """`values` by share (0 to 1), in any order. Raises ValueError if there are none, or they fall."""
        points = sorted(values.items())
        if not points or points[0][0] < 0 or points[-1][0] > 1:
            raise ValueError("percentiles: at least one, from p0 to p100")
        if any(high < low for (_, low), (_, high) in pairwise(points)):
            raise ValueError("percentiles: a higher one has a lower value")
        self._shares = [share for share, _ in points]
        self._values = [value for _, value in points]

    def __repr__(self) -> str:
        return f"<Quantiles {dict(zip(self._shares, self._values, strict=True))}>"

    @classmethod
    def named(cls, percentiles: Mapping[str, float]) -> Self:
        """From `{"p50": …, "p99.9": …}`. Raises ValueError."""
        return cls({round(float(name.removeprefix("p")) / 100, 9): at for name, at in percentiles.items()})

    def at(self, share: float) -> float:
        """The value that `share` of all do not exceed; with uniform shares, a draw."""
        shares, values = self._shares, self._values
        index = bisect_right(shares, share)
        if index == 0:
            return values[0]
        if index == len(shares):
            return values[-1]
        part = (share - shares[index - 1]) / (shares[index] - shares[index - 1])
        return values[index - 1] + part * (values[index] - values[index - 1])

    @property
    def mean(self) -> float:
        """The mean of draws."""
        shares, values = self._shares, self._values
        between = sum(
            (high - low) * (first + second) / 2
            for (low, high), (first, second) in zip(pairwise(shares), pairwise(values), strict=True)
        )
        return shares[0] * values[0] + between + (1 - shares[-1]) * values[-1]
