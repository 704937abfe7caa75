"""Judges what clients noticed of a run, held against what a scenario expects: pure functions of records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from hsm.config import Duration, Section
from loadtest.events import Happened
from loadtest.figures import Bar, Figure
from loadtest.generate.records import Record, summarise

WARM_UP, DURING, AFTER = "warm-up", "during", "after"
"""Names of phases: the first is not judged; the others say when something happens, and when it is over."""
SIGN_TIMEOUT = 5.0
"""How long a handshake waits for a signature while there is no node (`hsm.sign_timeout`)."""
RECONNECT = 0.5
"""Seconds after the nodes are back until they must be in use again."""
RECOVERY_STEP = 0.5
"""Normality is looked for in stretches of so many seconds."""


class Expectations(Section):
    """What clients may notice at most. *During* is from the first event until the last is over.

    With one event it lasts until the end, without events it begins with the phase `during`, or after the
    warm-up; a phase `after` ends it.
    """

    failed: int | None = Field(None, ge=0, description="So many failures after the warm-up.")
    outage: bool = Field(
        False,
        description="There is no node during it: a full handshake may fail then if none was back within its "
        "deadline (`hsm.sign_timeout`); it does not count as failed.",
    )
    p99: Duration | None = Field(None, description="That of handshakes during it.")
    p99_times: float | None = Field(None, gt=0, description="The same, as a multiple of that before.")
    p99_plus: Duration | None = Field(None, description="The same, as a difference to that before.")
    completed: float | None = Field(None, ge=0, description="At least so many handshakes a second during it.")
    recovered: Duration | None = Field(None, description="All is as before so soon after it.")
    event_within: Duration | None = Field(None, description="Each event is over after so long.")
    growth_mb: float | None = Field(
        None, ge=0, description="By how much a worker's memory grows at its peak."
    )


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds of the schedule: when the warm-up ends, when something happens, is over, and the end."""

    judged: float
    begin: float
    over: float
    end: float

    @classmethod
    def of(cls, phases: Sequence[tuple[str, float]], happened: Sequence[Happened]) -> Span:
        """Of phases, each a name and a length, and what happened meanwhile."""
        end = sum(length for _, length in phases)
        judged = phases[0][1] if phases[0][0] == WARM_UP else 0.0
        begins = dict(zip((name for name, _ in phases), _sums(phases), strict=True))
        over = begins.get(AFTER, end)
        if not happened:
            return cls(judged, begins.get(DURING, judged), over, end)
        if len(happened) > 1 and AFTER not in begins:
            over = happened[-1].ended
        return cls(judged, happened[0].begun, over, end)

    @property
    def stretches(self) -> dict[str, tuple[float, float]]:
        """Before, during and after, as far as there are such; none where nothing happens."""
        edges = {
            "before": (self.judged, self.begin),
            DURING: (self.begin, self.over),
            AFTER: (self.over, self.end),
        }
        found = {name: edge for name, edge in edges.items() if edge[0] < edge[1]}
        return found if len(found) > 1 else {}


def judge(
    expected: Expectations,
    records: Sequence[Record],
    span: Span,
    *,
    happened: Sequence[Happened] = (),
    growth: float | None = None,
) -> list[Figure]:
    """Figures with a bar for each expectation; `growth` is in bytes."""
    return [
        *_failures(expected, records, span),
        *_latency(expected, records, span),
        *_throughput(expected, records, span),
        *_others(expected, happened, growth),
    ]


def _failures(expected: Expectations, records: Sequence[Record], span: Span) -> Iterator[Figure]:
    if expected.failed is None:
        return
    failed = [record for record in records if record.failed and record.intended >= span.judged]
    name = "failed"
    if expected.outage:
        failed = [record for record in failed if not excused(record, span)]
        name = "failed that a node could have served"
    yield _figure(name, len(failed), "", Bar(expected.failed))


def excused(record: Record, span: Span) -> bool:
    """Whether a full handshake could have been served by no node within its deadline.

    It was under way when all nodes went or came later, and its wait was over when they were back.
    """
    under_way = record.intended + record.total >= span.begin
    return under_way and record.intended + SIGN_TIMEOUT < span.over + RECONNECT and not record.resumed


def _latency(expected: Expectations, records: Sequence[Record], span: Span) -> Iterator[Figure]:
    before = summarise(records, span.judged, span.begin).handshake.p99 * 1000
    during = summarise(records, span.begin, span.over).handshake.p99 * 1000
    bars = []
    if expected.p99 is not None:
        bars.append(expected.p99 * 1000)
    if expected.p99_times is not None:
        bars.append(expected.p99_times * before)
    if expected.p99_plus is not None:
        bars.append(before + expected.p99_plus * 1000)
    if bars:
        yield _figure("handshake p99", during, "ms", Bar(round(min(bars), 1)))


def _throughput(expected: Expectations, records: Sequence[Record], span: Span) -> Iterator[Figure]:
    if expected.completed is not None:
        rate = completed_between(records, span.begin, span.over) / (span.over - span.begin)
        yield _figure("completed", rate, "handshakes/s", Bar(expected.completed, at_most=False))
    if expected.recovered is not None:
        yield _figure("back to normal after", recovery(records, span), "s", Bar(expected.recovered))


def completed_between(records: Sequence[Record], begin: float, end: float) -> int:
    """Handshakes whose last byte came in a stretch of time, whenever they were due."""
    return sum(begin <= record.intended + record.handshake < end for record in records if not record.failed)


def recovery(records: Sequence[Record], span: Span) -> float:
    """Seconds after it was over until arrivals fare as before: none fails, the median is below twice that.

    The whole time until the end if they never do.
    """
    usual = summarise(records, span.judged, span.begin).handshake.p50
    back, at = 0.0, span.over
    while at < span.end:
        stretch = summarise(records, at, at + RECOVERY_STEP)
        at += RECOVERY_STEP
        if stretch.failed or stretch.handshake.p50 > 2 * usual:
            back = at - span.over
    return back


def _others(expected: Expectations, happened: Sequence[Happened], growth: float | None) -> Iterator[Figure]:
    if expected.event_within is not None:
        longest = max(event.ended - event.begun for event in happened)
        yield _figure("event over after", longest, "s", Bar(expected.event_within))
    if expected.growth_mb is not None and growth is not None:
        yield _figure("growth of a worker's memory", growth / 1e6, "MB", Bar(expected.growth_mb))


def _figure(name: str, value: float, unit: str, bar: Bar) -> Figure:
    return Figure(name, value, unit, value, bar=bar)


def _sums(phases: Sequence[tuple[str, float]]) -> Iterator[float]:
    """When each phase begins."""
    return itertools.accumulate((length for _, length in phases[:-1]), initial=0.0)
