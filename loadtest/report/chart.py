"""Plots of values against a quantity such as time or rate: lines, dots, stacked areas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element

from loadtest.report.canvas import LINE, WIDE, Size, drawing, shortened, text, width_of
from loadtest.report.markup import tag
from loadtest.report.scale import Format, Scale, Span, spread

_TICK = 4.0
_DOT = 3.5
_GAP = 8.0


class Point(NamedTuple):
    """A value; None where there is none, and a line is broken."""

    x: float
    y: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """Values under one name. `style` is a colour of the style sheet."""

    name: str
    style: str
    points: Sequence[Point]
    marker: Literal["", "dot", "cross"] = ""
    line: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantity: `title` says what and in which unit, `write` writes its values."""

    title: str
    span: Span
    write: Format


@dataclass(frozen=True, slots=True)
class Note:
    """A value on an axis that something is to be said about; what is `important` is said if there is room."""

    at: float
    text: str
    important: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot. `marks` are places on the x axis, `limits` on the y axis; `band` is a range on the x axis."""

    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Note] = field(default_factory=list)
    limits: Sequence[Note] = field(default_factory=list)
    band: tuple[float, float] | None = None
    stacked: bool = False

    def draw(self, size: Size, name: str) -> Element:
        """As SVG; `name` is one that nothing else in the document has."""
        canvas = drawing(size, size.height, self.title, self.description, name)
        canvas.extend(_Drawing(self, size).elements())
        return canvas


def stacked(series: Sequence[Series]) -> list[Series]:
    """Each on top of those before it; they have values at the same places."""
    heights: list[float] = []
    layers = []
    for one in series:
        heights = heights or [0.0] * len(one.points)
        heights = [height + (point.y or 0.0) for height, point in zip(heights, one.points, strict=True)]
        points = [Point(point.x, height) for point, height in zip(one.points, heights, strict=True)]
        layers.append(Series(one.name, one.style, points))
    return layers


class _Drawing:
    """A chart being drawn: where its plot lies."""

    def __init__(self, chart: Chart, size: Size) -> None:
        self._chart = chart
        self._size = size
        self._named = [one for one in chart.series if one.name]
        labels = [shortened(one.name, size.label_most) for one in self._named]
        ticks = [chart.y.write(tick) for tick in chart.y.span.ticks]
        self._left = max([size.left, *(width_of(tick) + 2 * _TICK for tick in ticks)])
        self._right = size.width - max([size.right, *(width_of(label, bold=True) + 10 for label in labels)])
        self._top = 2 * LINE + (LINE if chart.marks else 0)
        self._bottom = size.height - 2.6 * LINE
        self._x: Scale = chart.x.span.scale(self._left, self._right)
        self._y: Scale = chart.y.span.scale(self._bottom, self._top)

    def elements(self) -> Iterator[Element]:
        """Everything, the lowest first."""
        yield from self._grid()
        yield from self._notes()
        drawn = stacked(self._chart.series) if self._chart.stacked else self._chart.series
        if self._chart.stacked:
            yield from self._areas(drawn)
        else:
            for one in drawn:
                yield from self._one(one)
        yield from self._labels(drawn)
        if self._size is WIDE and any(one.line for one in self._chart.series):
            yield from self._tips()

    def _grid(self) -> Iterator[Element]:
        yield text(0, LINE * 0.9, self._chart.y.title, "quantity")
        for tick in self._chart.y.span.ticks:
            y = self._y(tick)
            yield tag("line", x1=self._left, x2=self._right, y1=y, y2=y, class_="grid")
            yield text(self._left - 2 * _TICK, y + 4, self._chart.y.write(tick), "tick", "end")
        for tick in _apart(self._chart.x, self._x, self._size):
            x = self._x(tick)
            yield tag("line", x1=x, x2=x, y1=self._bottom, y2=self._bottom + _TICK, class_="axis")
            yield text(x, self._bottom + LINE + 2, self._chart.x.write(tick), "tick", "middle")
        yield tag(
            "line", x1=self._left, x2=self._right, y1=self._bottom, y2=self._bottom, class_="axis"
        )  # fmt: skip
        yield text(self._right, self._bottom + 2.2 * LINE, self._chart.x.title, "quantity", "end")

    def _notes(self) -> Iterator[Element]:
        if self._chart.band is not None:
            start, end = map(self._x, self._chart.band)
            width, height = max(end - start, 2.0), self._bottom - self._top
            yield tag("rect", x=start, y=self._top, width=width, height=height, class_="band")
        yield from self._marks()
        for note in self._chart.limits:
            y = self._y(note.at)
            yield tag("line", x1=self._left, x2=self._right, y1=y, y2=y, class_="limit")
            yield text(self._left + _TICK, y - 5, note.text, "note")

    def _marks(self) -> Iterator[Element]:
        """Lines, and their texts as far as there is room: first the important ones, then from the left."""
        taken: list[tuple[float, float]] = []
        for note in sorted(self._chart.marks, key=lambda note: (not note.important, note.at)):
            x, style = self._x(note.at), "event" if note.important else "mark"
            yield tag("line", x1=x, x2=x, y1=self._top - 4, y2=self._bottom, class_=style)
            label = shortened(note.text, 3 * self._size.label_most)
            width = width_of(label)
            end = x + width > self._size.width
            begins = x - width if end else x
            if begins >= 0 and all(begins > right or begins + width < left for left, right in taken):
                yield text(x, self._top - 8, label, "note", "end" if end else "start")
                taken.append((begins - _GAP, begins + width + _GAP))

    def _one(self, one: Series) -> Iterator[Element]:
        if one.line:
            path = " ".join(self._path(one.points))
            yield tag("path", d=path, class_=f"line {one.style}")
        for point in one.points if one.marker else ():
            if point.y is not None:
                yield self._marker(one, point.x, point.y)

    def _path(self, points: Sequence[Point]) -> Iterator[str]:
        pen = "M"
        for point in points:
            if point.y is None:
                pen = "M"
                continue
            yield f"{pen}{self._x(point.x):.1f} {self._y(point.y):.1f}"
            pen = "L"

    def _marker(self, one: Series, x: float, y: float) -> Element:
        at_x, at_y, reach = self._x(x), self._y(y), _DOT
        title = tag("title", f"{self._chart.x.write(x)}: {one.name} {self._chart.y.write(y)}")
        if one.marker == "dot":
            return tag("circle", title, cx=at_x, cy=at_y, r=reach, class_=f"dot {one.style}")
        left, right, above, below = at_x - reach, at_x + reach, at_y - reach, at_y + reach
        path = (
            f"M{left:.1f} {above:.1f}L{right:.1f} {below:.1f}M{left:.1f} {below:.1f}L{right:.1f} {above:.1f}"
        )
        return tag("path", title, d=path, class_=f"cross {one.style}")

    def _areas(self, layers: Sequence[Series]) -> Iterator[Element]:
        below: list[Point] = []
        for layer in layers:
            below = below or [Point(point.x, self._chart.y.span.low) for point in layer.points]
            outline = [*layer.points, *reversed(below)]
            if outline:
                yield tag("path", d=" ".join(self._path(outline)) + "Z", class_=f"area {layer.style}")
            below = list(layer.points)

    def _labels(self, drawn: Sequence[Series]) -> Iterator[Element]:
        named = [(one, self._end_of(index, drawn)) for index, one in enumerate(drawn) if one.name]
        wanted = [end for _, end in named]
        for (one, _), y in zip(named, spread(wanted, LINE, self._top, self._bottom), strict=True):
            label = shortened(one.name, self._size.label_most)
            yield text(self._right + 8, y + 4, label, f"label {one.style}")

    def _end_of(self, index: int, drawn: Sequence[Series]) -> float:
        """Where a series ends on the right, and so where its name belongs."""
        last = _last(drawn[index])
        if last is None:
            return self._bottom
        if not self._chart.stacked:
            return self._y(last)
        under = (_last(drawn[index - 1]) or 0.0) if index else 0.0
        return self._y((last + under) / 2)

    def _tips(self) -> Iterator[Element]:
        """What a pointer is told anywhere above a value on the x axis."""
        lined = [one for one in self._chart.series if one.line]
        places = sorted({point.x for one in lined for point in one.points})
        if not places:
            return
        values = [{point.x: point.y for point in one.points} for one in lined]
        edges = [self._x((one + other) / 2) for one, other in itertools.pairwise(places)]
        for place, begin, end in zip(places, [self._left, *edges], [*edges, self._right], strict=True):
            lines = [
                f"{one.name} {self._chart.y.write(y)}"
                for one, at in zip(lined, values, strict=True)
                if (y := at.get(place)) is not None
            ]
            title = tag("title", "\n".join([self._chart.x.write(place), *lines]))
            width, height = max(end - begin, 0.0), self._bottom - self._top
            yield tag("rect", title, x=begin, y=self._top, width=width, height=height, class_="tip")


def _last(one: Series) -> float | None:
    return next((point.y for point in reversed(one.points) if point.y is not None), None)


def _apart(axis: Axis, scale: Scale, size: Size) -> Iterator[float]:
    """The marks of a horizontal axis whose text does not run into that before."""
    free_from = 0.0
    for tick in axis.span.ticks:
        half = width_of(axis.write(tick)) / 2
        x = scale(tick)
        if x - half >= free_from and x + half <= size.width:
            yield tick
            free_from = x + half + 10
