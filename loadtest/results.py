"""What a run of the load client gave: made in the client's process, read in the harness's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from loadtest.stats import percentile


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
class LoadResult:
    """Counts of one run.

    `connections` came to a completed handshake and a regular end, `requests` were answered in
    full, `body_bytes` is the sum of their bodies, `seconds` the run's length. `errors` counts
    connections that failed, by reason. `negotiated` counts handshakes by what they agreed on.
    `handshake` is measured from connect(), `request` from the first byte sent.
    """

    mode: str
    connections: int
    requests: int
    body_bytes: int
    seconds: float
    errors: dict[str, int] = field(default_factory=dict)
    negotiated: dict[str, int] = field(default_factory=dict)
    handshake: Latency = field(default_factory=Latency)
    request: Latency = field(default_factory=Latency)

    @property
    def failed(self) -> int:
        """How many connections failed."""
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON types; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` made. Raises TypeError when it is something else."""
        handshake, request = Latency(**data["handshake"]), Latency(**data["request"])
        return cls(**{**data, "handshake": handshake, "request": request})
