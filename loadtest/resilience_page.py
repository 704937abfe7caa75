"""The page `docs/resilience.md`: what `resilience` found, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest import overload
from loadtest.faults import FAULTS
from loadtest.figures import Figure
from loadtest.verdict import BEFORE, SIGN_TIMEOUT, WARM_UP, Finding, Stretch

_HEAD = f"""# Resilience

What clients notice when nodes of the cluster fail: three software nodes at 5 ms a signature, one worker, a web
server and the load client, all on one machine. Clients arrive by a timetable, whether or not earlier ones were
answered; each makes a full handshake (TLS 1.3, P-256) and one small request on a connection of its own. Latency is
that of the handshake, counted from when the client was due to connect, so that waiting anywhere counts.

    .venv/bin/python -m loadtest.resilience --docs docs/resilience.md     # all of it, about 5 minutes
    .venv/bin/python -m loadtest.resilience --only slow --rate 300        # one fault

This page is written by that command. After {WARM_UP:g} s of warm-up, *before* is {BEFORE:g} s without a fault, *during* the time until
it is repaired (for a killed node: until it is started again), *after* the rest.
"""

_FAULTS = """
## Faults

| fault | failed | p50 / p99 before | during | after | bar | |
|---|---|---|---|---|---|---|
"""

_OVERLOAD = """
## Overload

| what | measured | bar | |
|---|---|---|---|
"""


def write_page(path: Path, findings: Sequence[Finding]) -> None:
    """Write the page with these results, in their order."""
    path.write_text("".join(_page(findings)))


def _page(findings: Sequence[Finding]) -> Iterator[str]:
    yield _HEAD
    faults = [finding for finding in findings if finding.name != overload.NAME]
    if faults:
        yield _FAULTS
        yield from map(_fault_row, faults)
        yield (
            f"\nWhen all nodes are gone, a handshake that came more than {SIGN_TIMEOUT:g} s before they were back may "
            "fail: it is past its deadline by then. A resumed one needs no node.\n"
        )
    for finding in findings:
        if finding.name == overload.NAME:
            yield _OVERLOAD
            yield from (_figure_row(figure) for figure in finding.figures)
            yield f"\nAsked for: {finding.title}.\n"
    yield "\n## What was seen\n\n"
    yield from (f"- {finding.title}: {'; '.join(finding.notes)}.\n" for finding in findings if finding.notes)
    yield "\n## Measured on\n\n"
    yield from sorted({_circumstances(finding) for finding in findings})


def _circumstances(finding: Finding) -> str:
    facts = "; ".join(finding.facts[key] for key in ("machine", "versions"))
    return f"- {finding.date}, {facts}, at {finding.load}.\n"


def _fault_row(finding: Finding) -> str:
    failed = finding.figures[0].value
    limit = next((fault.limit for fault in FAULTS if fault.name == finding.name), None)
    every = sum(stretch.failed for stretch in finding.stretches.values())
    cells = [
        finding.title,
        f"{failed:g}" if limit else f"{every}, of which {failed:g} were not past their deadline",
        *(_latency(finding.stretches[name]) for name in ("before", "during", "after")),
        f"0 failed; p99 {limit}" if limit else "those past their deadline only; resumptions 0",
        "met" if finding.met else "**missed**",
    ]
    return f"| {' | '.join(cells)} |\n"


def _latency(stretch: Stretch) -> str:
    return f"{stretch.p50 * 1000:.1f} / {stretch.p99 * 1000:.1f} ms"


def _figure_row(figure: Figure) -> str:
    verdict = "met" if figure.verdict == "met" else "**missed**"
    return f"| {figure.name} | {figure.value:,.1f} {figure.unit} | {figure.bar} | {verdict} |\n"
