"""What became of each arrival of an open loop, and summaries of stretches of time: pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from loadtest.stats import percentile

COMPLETED = "completed"
"""The outcome of an arrival that came to a regular end; any other is the reason of its failure."""


class Record(NamedTuple):
    """One arrival. Times are in seconds; -1 for what was not reached.

    `intended` is when it was due, counted from the start of the schedule, and the others count
    from there: `lag` until it was begun, `handshake` until its handshake was complete, `total`
    until its end, whatever the `outcome`. So waiting inside a late load client counts as waiting.
    `resumed` is whether it resumed a session, or had asked to before it failed; `kind` says which
    of the order's targets it was of, `requests` were answered, with `body_bytes` in all.
    """

    intended: float
    lag: float
    handshake: float
    total: float
    outcome: str
    resumed: bool
    kind: int = 0
    requests: int = 0
    body_bytes: int = 0

    @property
    def failed(self) -> bool:
        """Whether it came to another end than it should."""
        return self.outcome != COMPLETED


@dataclass(frozen=True, slots=True)
class Latency:
    """A summary of latencies, in seconds; all 0 when `count` is 0."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    highest: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise `values` (seconds, any order)."""
        if not values:
            return cls()
        ordered = sorted(values)
        return cls(
            count=len(ordered),
            mean=sum(ordered) / len(ordered),
            p50=percentile(ordered, 0.5),
            p90=percentile(ordered, 0.9),
            p99=percentile(ordered, 0.99),
            highest=ordered[-1],
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The arrivals that were due in a stretch of time. `handshake` and `total` are of completed ones."""

    seconds: float
    arrivals: int
    completed: int
    resumed: int
    failures: dict[str, int]
    handshake: Latency
    total: Latency
    lag: Latency

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.failures.values())

    @property
    def rate(self) -> float:
        """Completed arrivals a second."""
        return self.completed / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "rate": self.rate}


STRETCHES_MOST = 300
"""A run's course is told in at most so many stretches: more can't be told apart on a plot."""


def stretch_length(seconds: float) -> int:
    """Seconds of each stretch of a run's course: whole ones, one if it is no longer than five minutes."""
    return max(1, math.ceil(seconds / STRETCHES_MOST))


def course(records: Sequence[Record], seconds: float) -> list[Summary]:
    """The records (in the order that they were due), cut at each full second, or several in a long run."""
    step = stretch_length(seconds)
    ends = [min(begin + step, seconds) for begin in range(0, math.ceil(seconds), step)]
    cuts = [bisect_left(records, end, key=lambda record: record.intended) for end in ends]
    pairs = zip([0, *cuts], cuts, [0.0, *ends], ends, strict=False)
    return [summarise(records[first:last], begin, end) for first, last, begin, end in pairs]


def summarise(records: Sequence[Record], begin: float, end: float) -> Summary:
    """The arrivals that were due from `begin` until before `end`, in seconds of the schedule."""
    inside = [record for record in records if begin <= record.intended < end]
    completed = [record for record in inside if not record.failed]
    return Summary(
        seconds=end - begin,
        arrivals=len(inside),
        completed=len(completed),
        resumed=sum(record.resumed for record in completed),
        failures=dict(Counter(record.outcome for record in inside if record.failed).most_common()),
        handshake=Latency.of([record.handshake for record in completed]),
        total=Latency.of([record.total for record in completed]),
        lag=Latency.of([record.lag for record in inside]),
    )
