"""What a report of a result consists of: data, before anything is drawn or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.report.bars import BarChart
from loadtest.report.chart import Chart


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first column names them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot, what it says in a sentence, and the same numbers as tables."""

    title: str
    text: str
    drawing: Chart | BarChart | None
    table: Table


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure that is told first."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """One result. `warnings` say what its figures can't be trusted for, `facts` how it was made.

    `details` are texts for those who want to do the same.
    """

    title: str
    headlines: Sequence[Headline]
    panels: Sequence[Panel]
    warnings: Sequence[str] = field(default_factory=list)
    facts: Sequence[tuple[str, str]] = field(default_factory=list)
    details: Sequence[tuple[str, str]] = field(default_factory=list)
