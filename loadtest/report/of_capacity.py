"""What the report of a search for the highest rate consists of."""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.capacity import BUSY, Capacity, Trial
from loadtest.documents import Origin
from loadtest.report.chart import Axis, Chart, Note, Point, Series
from loadtest.report.contents import Contents, Headline, Panel, Table
from loadtest.report.scale import duration, linear, number, percent
from loadtest.report.words import latencies, latency_axis, made, on_one_machine, rate_axis, share


def contents(result: Capacity, origin: Origin) -> Contents:
    """A search: latency and use at every rate that was tried."""
    trials = sorted(result.trials, key=lambda trial: trial.rate)
    return Contents(
        title=f"Capacity for {origin.scenario}",
        headlines=list(_headlines(result)),
        panels=[_latency(result, trials), _use(result, trials)],
        warnings=list(_warnings(result, origin)),
        facts=[*made(origin), ("Objective", _objective(result))],
    )


def _objective(result: Capacity) -> str:
    objective = result.objective
    return f"p99 of handshakes at most {duration(objective.p99)}, at most {percent(objective.errors)} fail"


def _headlines(result: Capacity) -> Iterator[Headline]:
    searches = f"{len(result.rates)} searches" if len(result.rates) > 1 else "one search"
    spread = f"{number(min(result.rates))} to {number(max(result.rates))} in {searches}"
    yield Headline("Highest rate", f"{number(result.rate)}/s", spread)
    if (best := result.best) is not None:
        yield Headline("Handshake p99 there", duration(best.summary.handshake.p99), _objective(result))
        if best.use.worker is not None:
            yield Headline("Busiest worker there", f"{number(best.use.worker)} cores")
    if (limiting := result.at_the_limit) is not None:
        yield Headline("What was the limit", limiting.use.limit)


def _warnings(result: Capacity, origin: Origin) -> Iterator[str]:
    if not result.rate:
        yield "The objective was met at no rate."
    limiting = result.at_the_limit
    if limiting is None:
        yield "The objective was never missed: the highest rate may be higher."
    elif limiting.use.client > BUSY or limiting.use.client_late:
        yield "The load client itself was the limit: use more processes, or a machine of its own for it."
    yield from on_one_machine(origin)


def _latency(result: Capacity, trials: list[Trial]) -> Panel:
    def dots(name: str, shown: str, style: str, met: bool) -> Series:
        points = [
            Point(trial.rate, getattr(trial.summary.handshake, name))
            for trial in trials
            if trial.met is met and trial.summary.handshake.count
        ]
        return Series(shown, style, points, marker="dot" if met else "cross", line=False)

    series = [
        dots("p99", "p99, missed", "c2", met=False),
        dots("p99", "p99, met", "c2", met=True),
        dots("p50", "", "c1", met=False),
        dots("p50", "p50", "c1", met=True),
    ]
    values = [point.y or 0.0 for one in series for point in one.points]
    axis = latency_axis("Handshake latency", [*values, result.objective.p99])
    limits = [Note(result.objective.p99, f"objective: {duration(result.objective.p99)}")]
    text = f"Each trial; a cross missed the objective. {_found(result)}"
    chart = Chart(
        "Handshake latency against rate", text, rate_axis(trial.rate for trial in trials), axis,
        [one for one in series if one.points], limits=limits,
        band=(min(result.rates), max(result.rates)) if result.rate else None,
    )  # fmt: skip
    rows = [
        [
            number(trial.rate),
            number(trial.summary.rate),
            share(trial.summary.failed, trial.summary.arrivals),
            *latencies(trial.summary),
            "met" if trial.met else "missed",
        ]
        for trial in trials
    ]
    head = ["Rate", "completed/s", "failed", "handshake p50", "p90", "p99", "longest", "objective"]
    return Panel("Latency against rate", text, chart, Table(head, rows))


def _found(result: Capacity) -> str:
    if not result.rate:
        return ""
    return (
        f"The shaded rates, {number(min(result.rates))} to {number(max(result.rates))}, are what was found."
    )


def _use(result: Capacity, trials: list[Trial]) -> Panel:
    columns = [
        ("machine", "c3", [trial.use.machine for trial in trials]),
        ("client", "c1", [trial.use.client for trial in trials]),
    ]
    if any(trial.use.worker is not None for trial in trials):
        columns.insert(0, ("worker", "c2", [trial.use.worker or 0.0 for trial in trials]))
    series = [
        Series(name, style, [Point(trial.rate, y) for trial, y in zip(trials, values, strict=True)], "dot")
        for name, style, values in columns
    ]
    limit = result.at_the_limit
    text = "The busiest worker and the load client in shares of a core, the machine in shares of all cores."
    if limit is not None:
        text += f" What was the limit: {limit.use.limit}."
    most = [1.0, *(value for _, _, values in columns for value in values)]
    chart = Chart(
        "CPU in use against rate", text, rate_axis(trial.rate for trial in trials),
        Axis("CPU in use", linear(most), percent), series,
        band=(min(result.rates), max(result.rates)) if result.rate else None,
    )  # fmt: skip
    rows = [
        [number(trial.rate), *(percent(values[index]) for _, _, values in columns)]
        for index, trial in enumerate(trials)
    ]
    return Panel("What was busy", text, chart, Table(["Rate", *(name for name, _, _ in columns)], rows))
