"""Plots of one value for each of several things: bars, ranges, and values with their spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from loadtest.report.canvas import LINE, NARROW, Size, drawing, shortened, text, width_of
from loadtest.report.chart import Axis, Note
from loadtest.report.markup import tag
from loadtest.report.scale import Scale

_THICK = 14.0
_NAME_MOST = 44
"""Characters of a name, on either size: in a narrow drawing it stands above its bar."""


@dataclass(frozen=True, slots=True)
class Bar:
    """From `start` to `value`; `spread` is how far the value may be off, `dots` are single measurements.

    `text` stands behind it: the value, with its unit.
    """

    name: str
    style: str
    value: float
    text: str
    start: float | None = None
    spread: tuple[float, float] | None = None
    dots: Sequence[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BarChart:
    """Bars that lie, one below the other; `reference` is the value that others are held against."""

    title: str
    description: str
    axis: Axis
    bars: Sequence[Bar]
    reference: Note | None = None

    def draw(self, size: Size, name: str) -> Element:
        """As SVG; `name` is one that nothing else in the document has."""
        return _Drawing(self, size).drawn(name)


class _Drawing:
    """Bars being drawn: where they lie."""

    def __init__(self, chart: BarChart, size: Size) -> None:
        self._chart = chart
        self._size = size
        self._names_above = size is NARROW
        self._row = _THICK + (LINE + 14 if self._names_above else 16)
        names = [width_of(shortened(bar.name, _NAME_MOST)) for bar in chart.bars]
        self._left = 4.0 if self._names_above else max(names, default=0.0) + 12
        self._right = (
            size.width - max((width_of(bar.text, bold=True) for bar in chart.bars), default=0.0) - 12
        )
        self._top = 2 * LINE if chart.reference else LINE * 0.6
        self._bottom = self._top + self._row * len(chart.bars)
        self._x: Scale = chart.axis.span.scale(self._left, self._right)

    def drawn(self, name: str) -> Element:
        """The whole drawing, as high as its bars need."""
        chart = self._chart
        canvas = drawing(self._size, self._bottom + 3 * LINE, chart.title, chart.description, name)
        canvas.extend(self._grid())
        for index, bar in enumerate(chart.bars):
            canvas.extend(self._bar(bar, self._top + self._row * index))
        return canvas

    def _grid(self) -> Iterator[Element]:
        axis, free_from = self._chart.axis, 0.0
        for tick in axis.span.ticks:
            x, label = self._x(tick), axis.write(tick)
            yield tag("line", x1=x, x2=x, y1=self._top, y2=self._bottom, class_="grid")
            if x - width_of(label) / 2 >= free_from:
                yield text(x, self._bottom + LINE, label, "tick", "middle")
                free_from = x + width_of(label) / 2 + 10
        yield text(self._right, self._bottom + 2.2 * LINE, axis.title, "quantity", "end")
        if (reference := self._chart.reference) is not None:
            x = self._x(reference.at)
            yield tag("line", x1=x, x2=x, y1=self._top - 4, y2=self._bottom, class_="limit")
            yield text(x, self._top - 8, reference.text, "note", "middle")

    def _bar(self, bar: Bar, top: float) -> Iterator[Element]:
        name = shortened(bar.name, _NAME_MOST)
        y = top + (LINE + 6 if self._names_above else 8)
        middle = y + _THICK / 2
        if self._names_above:
            yield text(self._left, y - 5, name, "name")
        else:
            yield text(self._left - 10, middle + 4, name, "name", "end")
        start = self._x(self._chart.axis.span.low if bar.start is None else bar.start)
        end = self._x(bar.value)
        width, begin = max(abs(end - start), 1.5), min(start, end)
        title = tag("title", f"{bar.name}: {bar.text}")
        yield tag(
            "rect", title, x=begin, y=y, width=width, height=_THICK, rx=2, class_=f"bar {bar.style}"
        )  # fmt: skip
        for dot in bar.dots:
            yield tag("circle", cx=self._x(dot), cy=middle, r=2.5, class_="single")
        if bar.spread is not None:
            low, high = bar.spread
            yield _whisker(self._x(low), self._x(high), middle)
        furthest = max([start, end, *map(self._x, bar.spread or ()), *map(self._x, bar.dots)])
        yield text(furthest + 7, middle + 4, bar.text, "value")


def _whisker(low: float, high: float, y: float) -> Element:
    path = f"M{low:.1f} {y - 4:.1f}v8M{high:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}"
    return tag("path", d=path, class_="whisker")
