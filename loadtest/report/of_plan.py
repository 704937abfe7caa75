"""What the report of a plan consists of: how many HSMs hold a load, what a loss does, and what more would buy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadtest.documents import Origin
from loadtest.generate.records import Summary
from loadtest.plan import words
from loadtest.plan.result import PlanResult
from loadtest.plan.search import Lost, Row
from loadtest.report.bars import Bar, BarChart
from loadtest.report.chart import Axis, Chart, Note, Point, Series
from loadtest.report.contents import Contents, Headline, Panel, Table
from loadtest.report.scale import Span, duration, exact, linear, number, percent
from loadtest.report.words import latency_axis, made_here, share

_PLANNED, _LOST, _SETTLED = "c1", "c2", "c3"
"""The colours of figures with nothing lost, right after a loss, and when it has settled."""
_ROOM = 1.1
"""An axis shows so much of the objective, to have room for its name."""


def contents(result: PlanResult, origin: Origin) -> Contents:
    """A plan: the numbers of HSMs that were tried, the seconds after a loss, and what was assumed."""
    panels = [_clusters(result)] if result.plan.rows else []
    if result.plan.row is not None and result.plan.row.lost is not None:
        panels.append(_after_loss(result, result.plan.row.lost))
    if result.plan.gains:
        panels.append(_gains(result))
    return Contents(
        title=f"Plan for {result.hsm.name}, {result.key}",
        headlines=list(_headlines(result)),
        panels=panels,
        warnings=result.warnings,
        facts=[*_asked(result), *made_here(origin)],
        details=[
            ("Workers", words.workers(result.plan, result.question)),
            ("Assumed", "\n".join(f"- {line}" for line in result.assumptions)),
        ],
    )


def _asked(result: PlanResult) -> Iterator[tuple[str, str]]:
    load = result.question.load
    yield "Peak", f"{number(load.connections)} connections a second, {percent(load.resumed)} of them resumed"
    yield "Planned for", f"{number(load.planned)} connections a second ({load.growth:g} × the peak)"
    yield "Objective", _objective(result)
    yield "Zones", f"{result.question.zones}; to be held with {words.LOSSES[result.question.survive]}"


def _objective(result: PlanResult) -> str:
    objective = result.question.objective
    return f"p99 of handshakes at most {duration(objective.p99)}, at most {percent(objective.errors)} fail"


def _headlines(result: PlanResult) -> Iterator[Headline]:
    plan, row = result.plan, result.plan.row
    if row is None:
        yield Headline("HSMs", "no number is enough", plan.why)
        return
    yield Headline("HSMs", f"{row.hsms:,}", f"{percent(row.utilisation)} busy")
    machines = "one machine" if plan.workers.machines == 1 else f"{plan.workers.machines:,} machines"
    yield Headline("Workers", f"{plan.workers.count:,}", f"on {machines}")
    yield Headline("Handshake p99", duration(row.normal.handshake.p99), _objective(result))
    if row.lost is not None:
        worst = f"{duration(row.lost.worst_p99)} in the worst second"
        yield Headline(
            f"p99, {words.LOSSES[result.question.survive]}", duration(row.lost.after.handshake.p99), worst
        )


def _clusters(result: PlanResult) -> Panel:
    rows = result.plan.rows
    lost = [row.lost for row in rows]
    series = [_line("nothing lost", _PLANNED, rows, [row.normal.handshake.p99 for row in rows])]
    if any(lost):
        worst = [one.worst_p99 if one else None for one in lost]
        after = [one.after.handshake.p99 if one else None for one in lost]
        series += [
            _line("worst second", _LOST, rows, worst),
            _line("settled", _SETTLED, rows, after),
        ]
    limit = result.question.objective.p99
    told = " After a loss: its worst second, and what it settles to." if any(lost) else ""
    text = f"{result.answer}{told}"
    chart = Chart(
        "Handshake p99 against the number of HSMs", text, Axis("HSMs", _counts(rows), number),
        latency_axis("Handshake p99", [_ROOM * limit, *_values(series)]), series,
        limits=[Note(limit, f"objective: {duration(limit)}")],
        marks=[Note(row.hsms, "planned", important=True) for row in rows if row.hsms == result.plan.hsms],
    )  # fmt: skip
    head = ["HSMs", "busy", "p50", "p99", "failed"]
    if any(lost):
        head += ["lost", "worst p99", "failed", "then busy", "p50", "p99", "failed"]
    table = Table([*head, "objective"], [_row(row) for row in rows])
    return Panel("Numbers of HSMs", text, chart, table)


def _line(name: str, style: str, rows: Sequence[Row], values: Sequence[float | None]) -> Series:
    points = [Point(row.hsms, value or None) for row, value in zip(rows, values, strict=True)]
    return Series(name, style, points, marker="dot")


def _values(series: Sequence[Series]) -> list[float]:
    return [point.y for one in series for point in one.points if point.y is not None]


def _counts(rows: Sequence[Row]) -> Span:
    """An axis of whole numbers: those that were tried, with room beside them."""
    tried = sorted({float(row.hsms) for row in rows})
    return Span(tried[0] - 0.5, tried[-1] + 0.5, tuple(tried))


def _row(row: Row) -> list[str]:
    lost = _cells_of(row.lost) if row.lost else []
    verdict = "held" if row.met else "missed"
    return [f"{row.hsms:,}", percent(row.utilisation), *_cells(row.normal), *lost, verdict]


def _cells_of(lost: Lost) -> list[str]:
    before = [f"{lost.hsms:,}", duration(lost.worst_p99), percent(lost.failed), percent(lost.utilisation)]
    return [*before, *_cells(lost.after)]


def _cells(summary: Summary) -> list[str]:
    found = summary.handshake
    return [duration(found.p50), duration(found.p99), share(summary.failed, summary.arrivals)]


def _after_loss(result: PlanResult, lost: Lost) -> Panel:
    text = words.loss(result.plan, result.question)
    limit = result.question.objective.p99
    points = [Point(number, one.handshake.p99 or None) for number, one in enumerate(lost.seconds, 1)]
    series = [Series("p99", _LOST, points, marker="dot")]
    chart = Chart(
        "Handshake p99 in the seconds after a loss", text,
        Axis("seconds after the loss", exact(0.5, len(points) + 0.5), number),
        latency_axis("Handshake p99", [_ROOM * limit, *_values(series)]), series,
        limits=[Note(limit, f"objective: {duration(limit)}")],
    )  # fmt: skip
    rows = [[f"{second}", *_cells(one)] for second, one in enumerate(lost.seconds, 1)]
    return Panel("After a loss", text, chart, Table(["second", "p50", "p99", "failed"], rows))


def _gains(result: PlanResult) -> Panel:
    planned, gains = result.question.load.planned, result.plan.gains
    text = (
        f"Connections a second that hold the objective, {words.LOSSES[result.question.survive]}; "
        f"{number(planned)} are planned for."
    )
    bars = [Bar(gain.change, _PLANNED, gain.connections, f"{number(gain.connections)}/s") for gain in gains]
    axis = Axis("connections a second", linear([planned, *(gain.connections for gain in gains)]), number)
    chart = BarChart("What is held at most", text, axis, bars, Note(planned, "planned"))
    rows = [
        [gain.change, f"{number(gain.connections)}/s", f"{gain.connections / planned:.2f} × planned"]
        for gain in gains
    ]
    return Panel("What more would buy", text, chart, Table(["changed", "held at most", ""], rows))
