"""What was expected and done during a run, and its parts by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from loadtest.generate.records import Summary
from loadtest.report import of_findings
from loadtest.report.chart import Note
from loadtest.report.contents import Panel, Table
from loadtest.report.scale import duration, number
from loadtest.report.words import LATENCY_HEAD, latencies
from loadtest.run import Part, RunResult

_HEAD = ("done/s", "failed", "resumed", *LATENCY_HEAD)


def marks(result: RunResult) -> list[Note]:
    """Where events begin, and phases where there are several."""
    events = [Note(event.begun, event.what, important=True) for event in result.happened]
    if len(result.phases) < 2:
        return events
    begins = itertools.accumulate((phase.summary.seconds for phase in result.phases), initial=0.0)
    return [*events, *(Note(begin, phase.name) for begin, phase in zip(begins, result.phases, strict=False))]


def panels(result: RunResult) -> Iterator[Panel]:
    """Tables only: what was expected and happened, then phases, stretches and kinds of clients."""
    if result.figures:
        yield of_findings.panel(result.figures, "Expectations", "What the scenario expects, and what was.")
    if result.happened:
        rows = [
            [event.what, f"{number(event.begun)} s", duration(event.ended - event.begun)]
            for event in result.happened
        ]
        yield _table("Events", "What was done to the cluster.", ["Event", "at", "over after"], rows)
    phases = [[phase.name, number(phase.asked), *_cells(phase.summary)] for phase in result.phases]
    text = "Latencies count from when a client was due, not from when it got through."
    yield _table("Phases", text, ["Phase", "asked/s", *_HEAD], phases)
    if result.happened:
        text = (
            "Before the first event, during all of them, and after the last; of the clients that are judged."
        )
        yield _table("Around the events", text, ["", *_HEAD], _rows(result.stretches))
    if result.clients:
        yield _table("Kinds of clients", "Each by itself.", ["Client", *_HEAD], _rows(result.clients))


def _rows(parts: Sequence[Part]) -> list[list[str]]:
    return [[part.name, *_cells(part.summary)] for part in parts]


def _cells(summary: Summary) -> list[str]:
    return [number(summary.rate), f"{summary.failed:,}", f"{summary.resumed:,}", *latencies(summary)]


def _table(title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Panel:
    return Panel(title, text, None, Table(head, rows))
