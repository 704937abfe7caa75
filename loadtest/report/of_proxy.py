"""What a proxy of ours told of itself during a run: stages, nodes and processes over time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from loadtest.report.chart import Axis, Chart, Note, Point, Series
from loadtest.report.contents import Headline, Panel, Table
from loadtest.report.scale import duration, linear, number
from loadtest.report.words import latency_axis, plain_axis, share, time_axis
from loadtest.scrape import Stage
from loadtest.watch import Observed, Stretch

STAGES = ("client_hello", "signature", "finish")
"""The parts of a handshake's time, one after another: `offload_handshake_stage_seconds`."""
_MEANINGS = (
    "client_hello is from accept to the client's first byte, signature from asked for to verified, "
    "finish from there to the client's last word."
)
COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")
_WORKER = "worker"


def panels(observed: Observed, seconds: float, marks: Sequence[Note]) -> list[Panel]:
    """Those for which something was counted."""
    course = [one for one in observed.course if one.begin < seconds and one.seconds > 0]
    shown = _Course(course, seconds, marks)
    found = [_stages(observed, shown)] if observed.stages else []
    if observed.nodes:
        found += [_node_rates(observed, shown), _node_waits(observed, shown)]
    if observed.cpu_seconds:
        found.append(_cpu(observed, shown))
    return found


def cpu_headline(observed: Observed, completed: int) -> Headline:
    """CPU of the workers for each connection."""
    used = sum(seconds for name, seconds in observed.cpu_seconds.items() if name.startswith(_WORKER))
    value = duration(used / completed) if completed else "–"
    return Headline("CPU of a connection", value, "of the proxy's workers")


class _Course:
    """The stretches that are drawn."""

    def __init__(self, stretches: Sequence[Stretch], seconds: float, marks: Sequence[Note]) -> None:
        self.stretches = stretches
        self._seconds = seconds
        self._marks = marks

    def series(self, name: str, style: str, value: Callable[[Stretch], float | None]) -> Series:
        """What a stretch says of something, over time."""
        points = [Point(max(0.0, one.begin + one.seconds / 2), value(one)) for one in self.stretches]
        return Series(name, style, points)

    def chart(
        self, title: str, description: str, y: Axis, series: Sequence[Series], *, stacked: bool = False
    ) -> Chart:
        """Series over the time of the run."""
        time = time_axis(self._seconds)
        return Chart(title, description, time, y, series, marks=self._marks, stacked=stacked)

    def table(self, series: Sequence[Series], write: Callable[[float], str]) -> Table:
        """The same values as text."""
        columns = [[point.y for point in one.points] for one in series]
        rows = [
            [f"{number(max(0.0, one.begin))} s", *("–" if y is None else write(y) for y in values)]
            for one, *values in zip(self.stretches, *columns, strict=True)
        ]
        return Table(["From", *(one.name for one in series)], rows)


def _of(stages: Sequence[Stage], title: str) -> Stage | None:
    return next((stage for stage in stages if stage.title == title), None)


def _handshakes(stages: Sequence[Stage]) -> int:
    """How many handshakes there were, full and resumed: all pass the first stage."""
    first = _of(stages, STAGES[0])
    return first.count if first else 0


def _part(stages: Sequence[Stage], title: str) -> float:
    """Seconds that a stage adds to the mean handshake: parts add up, also where some need no signature."""
    stage, handshakes = _of(stages, title), _handshakes(stages)
    return stage.count * stage.mean / handshakes if stage and handshakes else 0.0


def _stages(observed: Observed, course: _Course) -> Panel:
    def part(title: str) -> Callable[[Stretch], float]:
        return lambda one: _part(one.stages, title)

    series = [course.series(title, style, part(title)) for title, style in zip(STAGES, COLOURS, strict=False)]
    sums = [sum(_part(one.stages, title) for title in STAGES) for one in course.stretches]
    whole = sum(_part(observed.stages, title) for title in STAGES)
    parts = ", ".join(
        f"{title} {duration(value)} ({share(value, whole)})"
        for title in STAGES
        if (value := _part(observed.stages, title))
    )
    text = f"Of a mean handshake at the proxy, in the whole run: {parts}. {_MEANINGS}"
    axis = Axis("Mean time of a handshake, by stage", linear(sums), duration)
    chart = course.chart("Stages of handshakes over time", text, axis, series, stacked=True)
    return Panel("Where a handshake's time goes", text, chart, course.table(series, duration))


def _busiest(observed: Observed) -> list[Stage]:
    """The nodes, busiest first."""
    return sorted(observed.nodes, key=lambda node: -node.count)


def _named(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names with a colour for as many as can be told apart."""
    return list(zip(names, itertools.chain(COLOURS, itertools.repeat("quiet")), strict=False))


def _node_rates(observed: Observed, course: _Course) -> Panel:
    def rate(name: str) -> Callable[[Stretch], float]:
        return lambda one: (node.count if (node := _of(one.nodes, name)) else 0) / one.seconds

    series = [
        course.series(name, style, rate(name))
        for name, style in _named(node.title for node in _busiest(observed))
    ]
    total = sum(node.count for node in observed.nodes)
    shares = ", ".join(f"{node.title} {share(node.count, total)}" for node in _busiest(observed))
    text = f"{total:,} signatures: {shares}."
    axis = plain_axis("Signatures a second", [point.y or 0.0 for one in series for point in one.points])
    chart = course.chart("Signatures by each node over time", text, axis, series)
    return Panel("Load of each node", text, chart, course.table(series, number))


def _node_waits(observed: Observed, course: _Course) -> Panel:
    def wait(name: str) -> Callable[[Stretch], float | None]:
        return lambda one: node.mean if (node := _of(one.nodes, name)) else None

    series = [
        course.series(name, style, wait(name))
        for name, style in _named(node.title for node in _busiest(observed))
    ]
    means = ", ".join(f"{node.title} {duration(node.mean)}" for node in _busiest(observed))
    text = f"Mean wait for a signature, queue and retries included: {means}."
    values = [point.y for one in series for point in one.points if point.y is not None]
    axis = latency_axis("Mean wait for a signature", values)
    chart = course.chart("Wait for a signature by each node over time", text, axis, series)
    return Panel("Wait for each node", text, chart, course.table(series, duration))


def _cpu(observed: Observed, course: _Course) -> Panel:
    def cores(name: str) -> Callable[[Stretch], float]:
        return lambda one: one.cores.get(name, 0.0)

    series = [course.series(name, style, cores(name)) for name, style in _named(observed.cpu_seconds)]
    used = ", ".join(f"{name} {duration(seconds)}" for name, seconds in observed.cpu_seconds.items())
    text = f"CPU time in all: {used}. A process that uses one core has no more to give."
    axis = plain_axis("Cores in use", [1.0, *(point.y or 0.0 for one in series for point in one.points)])
    chart = course.chart("CPU of each process over time", text, axis, series)
    return Panel("CPU of the proxy", text, chart, course.table(series, number))
