"""Judges what clients noticed of a fault: pure functions of records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from loadtest.faults import Fault
from loadtest.figures import Bar, Figure
from loadtest.generate.records import Record, Summary, summarise

WARM_UP, BEFORE, AFTER = 2.0, 5.0, 5.0
"""Seconds of load that are not judged, and before and after a fault."""
SLACK = 6.0
"""Seconds that striking and repairing may take: starting a node takes half of one."""
SIGN_TIMEOUT = 5.0
"""How long a handshake waits for a signature while there is no node (`hsm.sign_timeout`)."""
RECONNECT = 0.5
"""Seconds after the nodes are back until they must be in use again."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What clients noticed in a stretch of time: percentiles of completed handshakes, in seconds."""

    arrivals: int
    failed: int
    p50: float
    p99: float

    @classmethod
    def of(cls, summary: Summary) -> Self:
        """The part of a summary that is reported."""
        return cls(summary.arrivals, summary.failed, summary.handshake.p50, summary.handshake.p99)


@dataclass
class Finding:
    """What one scenario showed. `figures` have the bars; `stretches` are before, during and after."""

    name: str
    title: str
    load: str
    date: str
    facts: dict[str, str]
    stretches: dict[str, Stretch] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether every bar is met."""
        return all(figure.verdict != "missed" for figure in self.figures)

    def to_json(self) -> dict[str, Any]:
        """As JSON types; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` made. Raises TypeError or KeyError when it is something else."""
        stretches = {name: Stretch(**values) for name, values in data["stretches"].items()}
        figures = [
            Figure(**{**values, "bar": Bar(**values["bar"]) if values["bar"] else None})
            for values in data["figures"]
        ]
        return cls(**{**data, "stretches": stretches, "figures": figures})


def duration(fault: Fault) -> float:
    """Seconds of load that a fault's scenario takes."""
    return WARM_UP + BEFORE + fault.seconds + SLACK + AFTER


def stretches(records: Sequence[Record], struck: float, restored: float, end: float) -> dict[str, Stretch]:
    """Before, during and after the time from `struck` to `restored`, in seconds of the schedule."""
    edges = {"before": (WARM_UP, struck), "during": (struck, restored), "after": (restored, end)}
    return {name: Stretch.of(summarise(records, *edge)) for name, edge in edges.items()}


def failures(records: Sequence[Record]) -> list[Record]:
    """Those that failed after the warm-up."""
    return [record for record in records if record.failed and record.intended >= WARM_UP]


def reasons(failed: Sequence[Record]) -> str:
    """What clients saw, the most frequent first: `12 closed_early, 1 timeout`."""
    counts = Counter(record.outcome for record in failed).most_common()
    return ", ".join(f"{count} {outcome}" for outcome, count in counts)


def excused(record: Record, struck: float, restored: float) -> bool:
    """Whether a full handshake could have been served by no node within its deadline.

    It was under way when all nodes went (`struck`) or came later, and its wait was over when
    they were back (`restored`), both in seconds of the schedule.
    """
    in_time = (
        record.intended + record.total >= struck and record.intended + SIGN_TIMEOUT < restored + RECONNECT
    )
    return in_time and not record.resumed


def judge(fault: Fault, records: Sequence[Record], struck: float, restored: float) -> list[Figure]:
    """The figures of a fault: failed handshakes, and the p99 while it lasted."""
    failed = failures(records)
    if fault.outage:
        others = sum(not excused(record, struck, restored) for record in failed)
        resumed = sum(record.resumed for record in failed)
        return [
            Figure("failed handshakes that a node could have served", others, "", others, bar=Bar(0)),
            Figure("failed resumptions", resumed, "", resumed, bar=Bar(0)),
        ]
    figures = [Figure("failed handshakes", len(failed), "", len(failed), bar=Bar(0))]
    if fault.limit is not None:
        before = summarise(records, WARM_UP, struck).handshake.p99
        during = summarise(records, struck, restored).handshake.p99 * 1000
        limit = Bar(round(fault.limit.of(before) * 1000, 1))
        figures.append(Figure("p99 while it lasted", during, "ms", during, before * 1000, bar=limit))
    return figures
