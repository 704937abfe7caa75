"""What the report of a comparison with other proxies consists of."""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.compare import Compared, Comparison
from loadtest.documents import Origin
from loadtest.report.bars import Bar, BarChart
from loadtest.report.chart import Axis, Note
from loadtest.report.contents import Contents, Headline, Panel, Table
from loadtest.report.scale import duration, linear, number
from loadtest.report.words import latency_axis, made, on_one_machine, plain_axis, reasons, share


def contents(result: Comparison, origin: Origin) -> Contents:
    """A comparison: CPU of a connection, to ours and in itself, and latencies."""
    return Contents(
        title=f"Comparison under {origin.scenario}",
        headlines=list(_headlines(result)),
        panels=[_ratios(result), _cpu(result), _latency(result)],
        warnings=list(_warnings(result, origin)),
        facts=[*made(origin), *((one.name, one.version) for one in result.sides if one.version)],
    )


def _others(result: Comparison) -> list[tuple[Compared, float, float, float]]:
    """Those that are held against ours: with ratio and interval, the highest first."""
    found = [
        (side, side.to_ours.value, side.to_ours.low95, side.to_ours.high95)
        for side in result.sides
        if side.to_ours is not None
    ]
    return sorted(found, key=lambda one: -one[1])


def _headlines(result: Comparison) -> Iterator[Headline]:
    for side, value, low, high in _others(result):
        yield Headline(side.name, f"{value:.2f} ×", f"our CPU ({low:.2f} to {high:.2f})")


def _warnings(result: Comparison, origin: Origin) -> Iterator[str]:
    for line in result.missing:
        yield f"Missing: {line}."
    for side in result.sides:
        if side.failures:
            failed = share(sum(side.failures.values()), side.connections)
            yield f"{side.name}: {failed} of the connections failed: {reasons(side.failures)}."
    yield from on_one_machine(origin)


def _ratios(result: Comparison) -> Panel:
    others = _others(result)
    bars = [
        Bar(side.name, "c1" if value >= 1 else "c2", value, f"{value:.2f}", start=1.0, spread=(low, high))
        for side, value, low, high in others
    ]
    ahead = [side.name for side, _, low, _ in others if low > 1]
    behind = [side.name for side, _, _, high in others if high < 1]
    text = " ".join(
        [
            f"More CPU than ours: {', '.join(ahead) or 'none'}.",
            f"Less than ours: {', '.join(behind) or 'none'}.",
            "Lines are 95 % intervals; each is held against ours with its key in the same place.",
        ]
    )
    axis = Axis("CPU of a connection, ours = 1", linear([1.2, *(high for _, _, _, high in others)]), number)
    chart = BarChart("CPU of a connection to ours", text, axis, bars, reference=Note(1.0, "ours"))
    rows = [
        [side.name, f"{value:.2f}", f"{low:.2f}", f"{high:.2f}", side.reference]
        for side, value, low, high in others
    ]
    head = ["Proxy", "CPU to ours", "95 % from", "to", "held against"]
    return Panel("CPU of a connection, to ours", text, chart, Table(head, rows))


def _cpu(result: Comparison) -> Panel:
    bars = [
        Bar(side.name, "c1" if side.to_ours is None else "quiet", side.cpu_us, f"{number(side.cpu_us)} µs",
            dots=side.rounds)
        for side in result.sides
    ]  # fmt: skip
    text = "Of all processes of a proxy, its nodes included. Dots are single rounds."
    axis = plain_axis(
        "µs of CPU for each connection",
        [value for side in result.sides for value in (side.cpu_us, *side.rounds)],
    )
    chart = BarChart("CPU of a connection", text, axis, bars)
    rows = [
        [side.name, f"{number(side.cpu_us)} µs", " ".join(number(value) for value in side.rounds),
         f"{side.connections:,}"]
        for side in result.sides
    ]  # fmt: skip
    return Panel("CPU of a connection", text, chart, Table(["Proxy", "CPU", "rounds", "connections"], rows))


def _latency(result: Comparison) -> Panel:
    shown = [side for side in result.sides if side.handshake.count]
    bars = [
        Bar(side.name, "c1" if side.to_ours is None else "quiet", side.handshake.p99,
            f"{duration(side.handshake.p50)} to {duration(side.handshake.p99)}", start=side.handshake.p50)
        for side in shown
    ]  # fmt: skip
    text = "From p50 to p99 of handshakes, counted from when they were due."
    values = [value for side in shown for value in (side.handshake.p50, side.handshake.p99)]
    axis = latency_axis("handshake", values)
    chart = BarChart("Handshake latency", text, axis, bars)
    rows = [
        [side.name, *map(duration, (side.handshake.p50, side.handshake.p90, side.handshake.p99)),
         duration(side.handshake.highest), reasons(side.failures) or "none"]
        for side in result.sides
    ]  # fmt: skip
    head = ["Proxy", "handshake p50", "p90", "p99", "longest", "failed"]
    return Panel("Handshake latency", text, chart, Table(head, rows))
