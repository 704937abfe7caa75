"""Counts latencies in little memory: a log-linear histogram, as HdrHistogram's.

Values up to 255 have a bucket each; above, each power of two is divided into 128 buckets, so
that a value is known to within 0.8 %, whatever its size.
"""

from __future__ import annotations

from collections import Counter
from typing import Self

_DIVISIONS = 128
_EXACT = 2 * _DIVISIONS
_EXACT_BITS = _EXACT.bit_length() - 1


def bucket_of(value: int) -> int:
    """The number of the bucket that a value (0 or more) falls into."""
    shift = max(0, value.bit_length() - _EXACT_BITS)
    return shift * _DIVISIONS + (value >> shift)


def highest_of(bucket: int) -> int:
    """The highest value that falls into a bucket."""
    shift = max(0, bucket // _DIVISIONS - 1)
    return ((bucket - shift * _DIVISIONS + 1) << shift) - 1


class Histogram:
    """Latencies in seconds, counted in whole microseconds."""

    def __init__(self, buckets: dict[int, int] | None = None) -> None:
        self._buckets: Counter[int] = Counter(buckets or {})

    def __len__(self) -> int:
        return self._buckets.total()

    def record(self, seconds: float) -> None:
        """Count one latency; a negative one (a clock's step) as 0."""
        self._buckets[bucket_of(max(0, round(seconds * 1e6)))] += 1

    def merge(self, other: Histogram) -> None:
        """Add what another one counted."""
        self._buckets.update(other._buckets)

    def percentile(self, share: float) -> float:
        """The latency in seconds that `share` (0 to 1) of all did not exceed; 0 if there are none."""
        rank, seen = share * len(self), 0
        highest = 0.0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            highest = highest_of(bucket) / 1e6
            if seen >= rank:
                break
        return highest

    def to_json(self) -> dict[str, int]:
        """As JSON types; `from_json` reads it back."""
        return {str(bucket): count for bucket, count in self._buckets.items()}

    @classmethod
    def from_json(cls, data: dict[str, int]) -> Self:
        """Read what `to_json` made."""
        return cls({int(bucket): count for bucket, count in data.items()})
