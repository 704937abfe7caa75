"""What the report of a run consists of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import yaml

from loadtest.documents import Origin
from loadtest.generate.records import Summary
from loadtest.report import of_events, of_findings, of_proxy
from loadtest.report.bars import Bar, BarChart
from loadtest.report.chart import Chart, Point, Series
from loadtest.report.contents import Contents, Headline, Panel, Table
from loadtest.report.scale import duration, number
from loadtest.report.words import (
    LATENCY_HEAD,
    latencies,
    latency_axis,
    made,
    on_one_machine,
    plain_axis,
    rate_axis,
    reasons,
    share,
    time_axis,
)
from loadtest.run import RunResult

_VARIED = 1.5
"""A run whose rates differ by this factor shows how latency depends on rate."""


def contents(result: RunResult, origin: Origin) -> Contents:
    """A run: what clients saw, then what the proxy told, if it is ours."""
    panels = [_latency(result), _rates(result), *of_events.panels(result)]
    if _varied(result):
        panels.append(_latency_against_rate(result))
    if result.total.failures:
        panels.append(_failures(result.total))
    if result.observed is not None:
        panels += of_proxy.panels(result.observed, _length(result), of_events.marks(result))
    return Contents(
        title=f"Run of {origin.scenario}",
        headlines=_headlines(result),
        panels=panels,
        warnings=list(_warnings(result, origin)),
        facts=made(origin),
        details=[("Scenario", _settings(result))],
    )


def _length(result: RunResult) -> float:
    return result.total.seconds


def _begins(stretches: Sequence[Summary]) -> list[float]:
    """When each begins, in seconds from the start."""
    return list(itertools.accumulate((one.seconds for one in stretches), initial=0.0))[:-1]


def _settings(result: RunResult) -> str:
    """The scenario as it would be written."""
    settings = result.scenario.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100).strip()


def _warnings(result: RunResult, origin: Origin) -> Iterator[str]:
    if result.client_late:
        yield (
            f"The load client was late (p99 {duration(result.total.lag.p99)}): it was the limit itself. "
            "Use more processes, or a lower rate; latencies include its lateness."
        )
    if result.total.failures:
        failed = share(result.total.failed, result.total.arrivals)
        yield f"{failed} of the connections failed: {reasons(result.total.failures)}."
    yield from of_findings.missed(result.figures)
    yield from on_one_machine(origin)


def _headlines(result: RunResult) -> list[Headline]:
    total = result.total
    found = [
        Headline("Completed", f"{number(total.rate)}/s", f"of {number(_due(total))}/s due"),
        Headline("Handshake p50", duration(total.handshake.p50)),
        Headline(
            "Handshake p99", duration(total.handshake.p99), f"longest {duration(total.handshake.highest)}"
        ),
        Headline("Failed", f"{total.failed:,}", f"of {total.arrivals:,} connections"),
    ]
    if result.observed is not None:
        found.append(of_proxy.cpu_headline(result.observed, total.completed))
    return found


def _middles(result: RunResult) -> list[float]:
    return [begin + one.seconds / 2 for begin, one in zip(_begins(result.course), result.course, strict=True)]


def _latency(result: RunResult) -> Panel:
    middles = _middles(result)
    with_any = [one for one in result.course if one.handshake.count]

    def line(name: str, style: str, *, dots: bool = False) -> Series:
        values = [getattr(one.handshake, name) if one.handshake.count else None for one in result.course]
        points = [Point(x, y) for x, y in zip(middles, values, strict=True)]
        shown = "longest" if name == "highest" else name
        return Series(shown, style, points, marker="dot" if dots else "", line=not dots)

    values = [value for one in with_any for value in (one.handshake.p50, one.handshake.highest)]
    axis = latency_axis("Handshake latency", values)
    text = "No handshake was completed."
    if with_any:
        worst = max(
            zip(_begins(result.course), result.course, strict=True), key=lambda at: at[1].handshake.p99
        )
        least = min(one.handshake.p99 for one in with_any)
        text = (
            f"p99 lay between {duration(least)} and {duration(worst[1].handshake.p99)}; "
            f"the worst stretch began at {number(worst[0])} s."
        )
    series = [line("highest", "quiet", dots=True), line("p99", "c2"), line("p90", "c4"), line("p50", "c1")]
    chart = Chart(
        "Percentiles of handshake latency over time", text, time_axis(_length(result)), axis, series,
        marks=of_events.marks(result),
    )  # fmt: skip
    rows = [
        [f"{number(begin)} s", f"{one.completed:,}", *latencies(one)]
        for begin, one in zip(_begins(result.course), result.course, strict=True)
    ]
    return Panel("Latency over time", text, chart, Table(["From", "completed", *LATENCY_HEAD], rows))


def _rates(result: RunResult) -> Panel:
    middles, course = _middles(result), result.course
    due = [_due(one) for one in course]
    done = [one.rate for one in course]
    failed = [_a_second(one.failed, one) for one in course]
    lines = [("due", "due", due), ("completed", "c1", done)]
    if any(failed):
        lines.append(("failed", "c2", failed))
    series = [
        Series(name, style, [Point(x, y) for x, y in zip(middles, values, strict=True)])
        for name, style, values in lines
    ]
    total = result.total
    text = f"{share(total.completed, total.arrivals)} of the connections that were due were completed."
    axis = plain_axis("Connections a second", due + done + failed)
    chart = Chart(
        "Connections due, completed and failed over time", text, time_axis(_length(result)), axis, series,
        marks=of_events.marks(result),
    )  # fmt: skip
    rows = [
        [f"{number(begin)} s", number(asked), number(held), f"{one.failed:,}"]
        for begin, asked, held, one in zip(_begins(course), due, done, course, strict=True)
    ]
    return Panel("Rate over time", text, chart, Table(["From", "due/s", "completed/s", "failed"], rows))


def _a_second(count: int, stretch: Summary) -> float:
    return count / stretch.seconds if stretch.seconds > 0 else 0.0


def _due(stretch: Summary) -> float:
    """Arrivals a second."""
    return _a_second(stretch.arrivals, stretch)


def _full(result: RunResult) -> list[Summary]:
    """The stretches that can be compared: as long as the first, with something completed."""
    longest = max((one.seconds for one in result.course), default=0.0)
    return [one for one in result.course if one.completed and one.seconds > longest / 2]


def _varied(result: RunResult) -> bool:
    rates = [_due(one) for one in _full(result)]
    return len(rates) > 2 and max(rates) > _VARIED * min(rates)


def _latency_against_rate(result: RunResult) -> Panel:
    found = sorted(_full(result), key=_due)
    rates = [_due(one) for one in found]

    def dots(name: str, style: str) -> Series:
        points = [Point(rate, getattr(one.handshake, name)) for rate, one in zip(rates, found, strict=True)]
        return Series(name, style, points, marker="dot", line=False)

    series = [dots("p99", "c2"), dots("p50", "c1")]
    axis = latency_axis("Handshake latency", [point.y or 0.0 for one in series for point in one.points])
    text = (
        "Each stretch of the run by the rate that was due in it; late answers to a rate before it show too."
    )
    chart = Chart("Handshake latency against rate", text, rate_axis(rates), axis, series)
    rows = [[number(rate), *latencies(one)] for rate, one in zip(rates, found, strict=True)]
    return Panel("Latency against rate", text, chart, Table(["Due/s", *LATENCY_HEAD], rows))


def _failures(total: Summary) -> Panel:
    bars = [Bar(reason, "c2", count, f"{count:,}") for reason, count in total.failures.items()]
    text = f"{total.failed:,} of {total.arrivals:,} connections, by what the client saw."
    axis = plain_axis("connections", [bar.value for bar in bars])
    rows = [[reason, f"{count:,}", share(count, total.arrivals)] for reason, count in total.failures.items()]
    chart = BarChart("Failed connections by reason", text, axis, bars)
    return Panel("Failures", text, chart, Table(["Reason", "connections", "of all"], rows))
