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
from loadtest.stats import Ratio

_HEADLINES_MOST = 4
_STYLES = {"met": "c3", "missed": "c2", "": "c1"}
"""The colours of verdicts."""


def contents(result: Findings, origin: Origin) -> Contents:
    """A bench: its figures, and lines that explain them."""
    return Contents(
        title=f"Bench {origin.scenario}",
        headlines=[
            Headline(figure.name, _measured(figure), _goal(figure))
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
            yield f"{figure.name}: {_measured(figure)}, and should be {_goal(figure)}."


def panel(figures: Sequence[Figure], title: str, text: str) -> Panel:
    """Figures as a table; those that are ratios also as a plot."""
    rows = [[figure.name, *_cells(figure), _goal(figure), figure.verdict] for figure in figures]
    head = ["", "was", "against", "ratio", "95 % from", "to", "goal", ""]
    ratios = [figure for figure in figures if figure.spread is not None]
    if all(figure.theirs is None for figure in figures):
        head, rows = [*head[:2], *head[-2:]], [[*row[:2], *row[-2:]] for row in rows]
    return Panel(title, text, _ratios(title, text, ratios) if ratios else None, Table(head, rows))


def _ratios(title: str, text: str, figures: Sequence[Figure]) -> BarChart:
    bars = [
        ratio_bar(figure.name, _STYLES[figure.verdict], figure.spread)
        for figure in figures
        if figure.spread is not None
    ]
    return ratio_chart(title, text, bars)


def ratio_bar(name: str, style: str, ratio: Ratio) -> Bar:
    """A ratio with its 95 % interval, from 1 on."""
    interval = (ratio.low95, ratio.high95)
    return Bar(name, style, ratio.value, f"{ratio.value:.2f}", start=1.0, spread=interval)


def ratio_chart(title: str, text: str, bars: Sequence[Bar]) -> BarChart:
    """Ratios to what each is held against."""
    span = linear([1.2, *(edge for bar in bars for edge in (bar.value, *(bar.spread or ())))])
    axis = Axis("ratio to what it is held against", span, number)
    return BarChart(title, text, axis, bars, reference=Note(1.0, "as much"))


def _measured(figure: Figure) -> str:
    return (
        f"{number(figure.value)} ×" if _is_ratio(figure) else f"{number(figure.value)} {figure.unit}".strip()
    )


def _goal(figure: Figure) -> str:
    """With its unit; a ratio has none."""
    if figure.bar is None:
        return ""
    return f"{figure.bar} {'' if _is_ratio(figure) else figure.unit}".strip()


def _is_ratio(figure: Figure) -> bool:
    """Whether its value is that of ours to theirs, and not ours."""
    return figure.theirs is not None and figure.value != figure.ours


def _cells(figure: Figure) -> list[str]:
    theirs = "" if figure.theirs is None else f"{number(figure.theirs)} {figure.unit}".strip()
    ratio = f"{figure.value:.2f}" if _is_ratio(figure) else ""
    edges = (
        [f"{edge:.2f}" for edge in (figure.spread.low95, figure.spread.high95)] if figure.spread else ["", ""]
    )
    return [f"{number(figure.ours)} {figure.unit}".strip(), theirs, ratio, *edges]
