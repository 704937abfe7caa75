"""Warnings, facts and axes that reports of several kinds share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from loadtest.documents import Origin
from loadtest.generate.records import Summary
from loadtest.report.chart import Axis
from loadtest.report.scale import Span, duration, exact, linear, logarithmic, number, percent

LATENCY_HEAD = ("handshake p50", "p90", "p99", "longest")
"""Heads of the columns that `latencies` fills."""
WIDE_RANGE = 20.0
"""Latencies whose highest is so many times the lowest are drawn on a log scale."""
CPU_HOLDS = "CPU for each connection is the figure that holds; rates and latencies are rough."


def latency_axis(title: str, values: Iterable[float]) -> Axis:
    """An axis of latencies in seconds: logarithmic where they differ much."""
    found = [value for value in values if value > 0]
    if found and max(found) > WIDE_RANGE * min(found):
        return Axis(f"{title} (log scale)", logarithmic(found), duration)
    return Axis(title, linear(found), duration)


def time_axis(seconds: float) -> Axis:
    """An axis of a run's time."""
    return Axis("seconds from the start", exact(0.0, seconds), number)


def plain_axis(title: str, values: Iterable[float]) -> Axis:
    """An axis of counts or rates from 0."""
    return Axis(title, linear(values), number)


def rate_axis(values: Iterable[float]) -> Axis:
    """A horizontal axis of rates."""
    found = list(values)
    return Axis("connections a second", _from_nought(found), number)


def _from_nought(values: list[float]) -> Span:
    return exact(0.0, max(values, default=1.0) * 1.04)


def reasons(failures: Mapping[str, int]) -> str:
    """`184 timeout, 3 refused`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in failures.items())


def share(part: float, whole: float) -> str:
    """A part as a percentage; a dash where there is no whole."""
    return percent(part / whole) if whole else "–"


def on_one_machine(origin: Origin) -> Iterator[str]:
    """The warning that a load client on the server's machine calls for."""
    if origin.one_machine:
        yield f"The load client took CPU from the server: they ran on one machine. {CPU_HOLDS}"


def made(origin: Origin) -> list[tuple[str, str]]:
    """How a result was made."""
    return [("Scenario", origin.scenario), ("Target", origin.target), *made_here(origin)]


def made_here(origin: Origin) -> list[tuple[str, str]]:
    """The same of a result that nothing was loaded for."""
    return [
        ("Started", origin.started),
        ("Machine", origin.machine),
        ("Versions", origin.versions),
        ("Command", origin.command),
    ]


def latencies(summary: Summary) -> list[str]:
    """Cells of a table: p50, p90, p99 and the longest handshake."""
    found = summary.handshake
    if not found.count:
        return ["–"] * 4
    return [duration(value) for value in (found.p50, found.p90, found.p99, found.highest)]
