"""Writes results into the project's pages, as tables between two marks; the prose around them is people's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hsm.errors import ConfigurationError
from loadtest.compare import Comparison
from loadtest.documents import Document, Origin
from loadtest.figures import Figure, Findings
from loadtest.generate.records import Summary
from loadtest.run import RunResult
from loadtest.stats import Ratio

_STRETCHES = ("before", "during", "after")


def write_section(page: Path, name: str, documents: Sequence[Document]) -> None:
    """Replace what stands between the marks of a section with these results.

    Raises ConfigurationError when the page can't be read, or has no such marks.
    """
    begin, end = (f"<!-- {edge} {name} -->" for edge in ("begin", "end"))
    try:
        head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    except OSError as error:
        raise ConfigurationError(f"{page}: cannot read it: {error.strerror}") from error
    _, found, tail = rest.partition(end)
    if not found:
        raise ConfigurationError(f"{page}: has no lines {begin} and {end} to write between")
    page.write_text(f"{head}{begin}\n{section(documents)}{end}{tail}", encoding="utf-8")


def section(documents: Sequence[Document]) -> str:
    """Tables of results, what was seen in each run, and what they were measured on."""
    runs = [
        (document.origin, document.result) for document in documents if isinstance(document.result, RunResult)
    ]
    return "".join(
        [*_runs(runs), *_goals(documents), *_measured_on([document.origin for document in documents])]
    )


def _goals(documents: Sequence[Document]) -> Iterator[str]:
    """A table of all goals, and then what each comparison and bench found."""
    rows = [
        (document.origin.scenario, document.result, figure)
        for document in documents
        if isinstance(document.result, Comparison | Findings)
        for figure in document.result.figures
    ]
    if rows:
        yield "| | what | measured | against | ratio (95 %) | goal | |\n|---|---|---|---|---|---|---|\n"
    for name, result, figure in rows:
        group = "worker's CPU, " if isinstance(result, Comparison) and figure.unit == "µs" else ""
        theirs = "" if figure.theirs is None else _amount(figure.theirs, figure.unit)
        ratio = "" if figure.spread is None else _spread(figure.spread)
        verdict = "**missed**" if figure.verdict == "missed" else figure.verdict
        cells = [f"`{name}`", f"{group}{figure.name}", _amount(figure.ours, figure.unit), theirs, ratio]
        yield f"| {' | '.join(cells)} | {figure.bar or ''} | {verdict} |\n"
    for document in documents:
        if isinstance(document.result, Comparison):
            yield from _sides(document.origin.scenario, document.result)
        elif isinstance(document.result, Findings):
            yield f"\n`{document.origin.scenario}`: {document.result.description}.\n"
            yield from (f"- {note}\n" for note in document.result.notes)


def _sides(name: str, found: Comparison) -> Iterator[str]:
    rounds = len(found.sides[0].rounds)
    yield f"\n`{name}`: {found.description} {rounds} rounds; CPU is in µs a {found.cpu_unit}.\n\n"
    yield "| | worker | all its processes | to | ratio in all (95 %) | done/s | p50 / p99 | resumed | failed |\n"
    yield "|---|---|---|---|---|---|---|---|---|\n"
    for one in found.sides:
        cells = [
            one.name,
            f"{one.worker_us:,.0f}",
            f"{one.cpu_us:,.0f}",
            one.reference or "",
            "" if one.to_reference is None else _spread(one.to_reference),
            f"{one.rate:,.0f}",
            f"{one.handshake.p50 * 1000:,.1f} / {one.handshake.p99 * 1000:,.1f} ms",
            f"{one.resumed / one.connections:.0%}",
            f"{sum(one.failures.values()):,}",
        ]
        yield f"| {' | '.join(cells)} |\n"
    yield from (f"\nNot compared: {line}.\n" for line in found.missing)


def _spread(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low95:.2f}–{ratio.high95:.2f})"


def _amount(value: float, unit: str) -> str:
    return f"{value:,.{1 if abs(value) < 100 else 0}f} {unit}".strip()


def _runs(runs: Sequence[tuple[Origin, RunResult]]) -> Iterator[str]:
    if not runs:
        return
    yield "| what happens | failed | p50 / p99 before | during | after | expected | |\n|---|---|---|---|---|---|---|\n"
    for _, result in runs:
        cells = [
            result.scenario.description.rstrip("."),
            f"{result.total.failed:,} of {result.total.arrivals:,}",
            *(_latency(result, name) for name in _STRETCHES),
            "; ".join(map(_expectation, result.figures)) or "–",
            _verdict(result),
        ]
        yield f"| {' | '.join(cells)} |\n"
    yield "\nWhat was seen:\n\n"
    for origin, result in runs:
        yield f"- `{origin.scenario}`: {'; '.join(_seen(result))}.\n"


def _latency(result: RunResult, name: str) -> str:
    for part in result.stretches:
        if part.name == name:
            return _percentiles(part.summary)
    return "–"


def _percentiles(summary: Summary) -> str:
    return f"{summary.handshake.p50 * 1000:,.1f} / {summary.handshake.p99 * 1000:,.1f} ms"


def _expectation(figure: Figure) -> str:
    measured = f"{figure.name} {figure.value:,.4g} {figure.unit}".strip()
    return f"{measured} ({figure.bar})"


def _verdict(result: RunResult) -> str:
    if not result.figures:
        return ""
    return "met" if result.met else "**missed**"


def _seen(result: RunResult) -> Iterator[str]:
    yield ", ".join(f"{phase.name} {phase.asked:,.0f}/s" for phase in result.phases)
    yield from (
        f"at {event.begun:.1f} s {event.what} ({event.ended - event.begun:.1f} s)"
        for event in result.happened
    )
    if result.total.resumed:
        yield f"{result.total.resumed:,} clients resumed"
    for part in result.clients:
        yield f"{part.name} clients {_percentiles(part.summary)}"
    if result.total.failures:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.total.failures.items())
        yield f"clients saw {reasons}"
    if result.observed is not None:
        yield from result.observed.counted
    if result.client_late:
        yield f"the load client itself was late: p99 {result.total.lag.p99 * 1000:.0f} ms"


def _measured_on(origins: Sequence[Origin]) -> Iterator[str]:
    yield "\nMeasured, with the load client on the same machine:\n\n"
    days = dict.fromkeys(
        f"- {origin.started[:10]}, {origin.machine}; {origin.versions}.\n" for origin in origins
    )
    yield from days
