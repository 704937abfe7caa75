"""Figures beside their goals: all that the report of a bench consists of, and a part of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadtest.documents import Origin
from loadtest.figures import Figure, Findings
from loadtest.report.bars import Bar, BarChart
from loadtest.report.chart import Axis, Note
from loadtest.report.contents import Contents, Headline, Panel, Table
from loadtest.report.scale import linear, number
from loadtest.report.words import made, on_one_machine

_HEADLINES_MOST = 4


def contents(result: Findings, origin: Origin) -> Contents:
    """A bench: its figures, and lines that explain them."""
    return Contents(
        title=f"Bench {origin.scenario}",
        headlines=[
            Headline(
                figure.name, _measured(figure.value if figure.spread else figure.ours, figure), _goal(figure)
            )
            for figure in result.figures[:_HEADLINES_MOST]
        ],
        panels=[panel(result.figures, "Figures", result.description)],
        warnings=[*missed(result.figures), *on_one_machine(origin)],
        facts=made(origin),
        details=[("Notes", "\n".join(result.notes))] if result.notes else [],
    )


def missed(figures: Sequence[Figure]) -> Iterator[str]:
    """A warning for each goal that was missed."""
    for figure in figures:
        if figure.verdict == "missed":
            yield f"Not as it should be: {figure}."


def panel(figures: Sequence[Figure], title: str, text: str) -> Panel:
    """Figures as a table; those that are ratios also as a plot."""
    rows = [[figure.name, *_cells(figure), _goal(figure), figure.verdict] for figure in figures]
    head = ["", "was", "against", "ratio", "95 % from", "to", "goal", ""]
    ratios = [figure for figure in figures if figure.spread is not None]
    if not ratios:
        head, rows = [*head[:2], *head[-2:]], [[*row[:2], *row[-2:]] for row in rows]
    return Panel(title, text, _ratios(title, text, ratios) if ratios else None, Table(head, rows))


def _ratios(title: str, text: str, figures: Sequence[Figure]) -> BarChart:
    bars = [
        ratio_bar(figure.name, figure.spread.value, figure.spread.low95, figure.spread.high95)
        for figure in figures
        if figure.spread is not None
    ]
    return ratio_chart(title, text, bars)


def ratio_bar(name: str, value: float, low: float, high: float) -> Bar:
    """A ratio with its 95 % interval, from 1 on."""
    style = "c2" if value > 1 else "c3"
    return Bar(name, style, value, f"{value:.2f}", start=1.0, spread=(low, high))


def ratio_chart(title: str, text: str, bars: Sequence[Bar]) -> BarChart:
    """Ratios to what each is held against."""
    span = linear([1.2, *(edge for bar in bars for edge in (bar.value, *(bar.spread or ())))])
    axis = Axis("ratio to what it is held against", span, number)
    return BarChart(title, text, axis, bars, reference=Note(1.0, "as much"))


def _measured(value: float, figure: Figure) -> str:
    return f"{number(value)} ×" if figure.spread else f"{number(value)} {figure.unit}".strip()


def _goal(figure: Figure) -> str:
    return "" if figure.bar is None else str(figure.bar)


def _cells(figure: Figure) -> list[str]:
    theirs = "" if figure.theirs is None else f"{number(figure.theirs)} {figure.unit}".strip()
    spread = figure.spread
    ratio = (
        ["", "", ""] if spread is None else [f"{x:.2f}" for x in (spread.value, spread.low95, spread.high95)]
    )
    return [f"{number(figure.ours)} {figure.unit}".strip(), theirs, *ratio]
