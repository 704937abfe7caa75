"""What the report of a comparison of proxies consists of."""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.compare import Compared, Comparison
from loadtest.documents import Origin
from loadtest.report.bars import Bar, BarChart
from loadtest.report.contents import Contents, Headline, Panel, Table
from loadtest.report.of_findings import missed, panel, ratio_bar, ratio_chart
from loadtest.report.scale import duration, number
from loadtest.report.words import latency_axis, made, on_one_machine, plain_axis, reasons, share
from loadtest.stats import Ratio


def contents(result: Comparison, origin: Origin) -> Contents:
    """A comparison: CPU of each side, to what it is held against and in itself, goals, and latencies."""
    panels = [_ratios(result)] if _held(result) else []
    panels += [_cpu(result), _latency(result)]
    if result.figures:
        panels.insert(0, panel(result.figures, "Goals", "What is held against another, beside its goal."))
    return Contents(
        title=f"Comparison {origin.scenario}",
        headlines=list(_headlines(result)),
        panels=panels,
        warnings=list(_warnings(result, origin)),
        facts=[*made(origin), ("Load", result.description)],
        details=[("What was agreed on", "\n".join(result.terms))],
    )


def _held(result: Comparison) -> list[tuple[Compared, Ratio]]:
    """The sides that are held against another, with the ratio of their CPU."""
    return [(side, side.to_reference) for side in result.sides if side.to_reference is not None]


def _headlines(result: Comparison) -> Iterator[Headline]:
    for side, ratio in _held(result):
        spread = f"CPU of {side.reference} ({ratio.low95:.2f} to {ratio.high95:.2f})"
        yield Headline(side.name, f"{ratio.value:.2f} ×", spread)


def _warnings(result: Comparison, origin: Origin) -> Iterator[str]:
    for line in result.missing:
        yield f"Missing: {line}."
    for side in result.sides:
        if side.failures:
            failed = share(sum(side.failures.values()), side.connections)
            yield f"{side.name}: {failed} of the connections failed: {reasons(side.failures)}."
    yield from missed(result.figures)
    yield from on_one_machine(origin)


def _ratios(result: Comparison) -> Panel:
    held = _held(result)
    more = [side.name for side, ratio in held if ratio.low95 > 1]
    less = [side.name for side, ratio in held if ratio.high95 < 1]
    text = (
        f"More than what it is held against: {', '.join(more) or 'none'}. Less: {', '.join(less) or 'none'}. "
        "Lines are 95 % intervals; of all processes of a side, its nodes included."
    )
    bars = [ratio_bar(side.name, "c2" if ratio.value > 1 else "c3", ratio) for side, ratio in held]
    rows = [
        [side.name, side.reference or "", *(f"{x:.2f}" for x in (ratio.value, ratio.low95, ratio.high95))]
        for side, ratio in held
    ]
    title = f"CPU of a {result.cpu_unit}, compared"
    chart = ratio_chart(title, text, bars)
    return Panel(title, text, chart, Table(["", "held against", "ratio", "95 % from", "to"], rows))


def _style(side: Compared) -> str:
    return "c1" if side.reference is None else "quiet"


def _cpu(result: Comparison) -> Panel:
    bars = [
        Bar(side.name, _style(side), side.cpu_us, f"{number(side.cpu_us)} µs", dots=side.rounds)
        for side in result.sides
    ]
    text = "Of all processes of a side, its nodes included. Dots are single rounds."
    values = [value for side in result.sides for value in (side.cpu_us, *side.rounds)]
    title = f"CPU of a {result.cpu_unit}"
    chart = BarChart(title, text, plain_axis("µs of CPU", values), bars)
    rows = [
        [
            side.name,
            f"{number(side.cpu_us)} µs",
            f"{number(side.worker_us)} µs",
            f"{number(side.worker_mb)} MB",
            number(side.rate),
            f"{side.connections:,}",
            f"{side.resumed:,}",
            " · ".join(number(value) for value in side.rounds),
        ]
        for side in result.sides
    ]
    head = ["", "CPU", "of a worker", "its memory", "handshakes/s", "connections", "resumed", "rounds"]
    return Panel(title, text, chart, Table(head, rows))


def _latency(result: Comparison) -> Panel:
    shown = [side for side in result.sides if side.handshake.count]
    bars = [
        Bar(
            side.name,
            _style(side),
            side.handshake.p99,
            f"{duration(side.handshake.p50)} to {duration(side.handshake.p99)}",
            start=side.handshake.p50,
        )
        for side in shown
    ]
    text = "From p50 to p99 of handshakes, counted from when they were due."
    values = [value for side in shown for value in (side.handshake.p50, side.handshake.p99)]
    chart = BarChart("Handshake latency", text, latency_axis("handshake latency", values), bars)
    rows = [
        [
            side.name,
            *map(
                duration, (side.handshake.p50, side.handshake.p90, side.handshake.p99, side.handshake.highest)
            ),
            reasons(side.failures) or "none",
        ]
        for side in result.sides
    ]
    head = ["", "handshake p50", "p90", "p99", "longest", "failed"]
    return Panel("Handshake latency", text, chart, Table(head, rows))
