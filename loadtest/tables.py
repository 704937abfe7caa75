"""The results of runs and searches as tables for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table

from hsm.terminal import counted
from loadtest.capacity import Capacity
from loadtest.compare import Comparison
from loadtest.documents import Document, Origin
from loadtest.figures import Figure, Findings
from loadtest.generate.records import Summary
from loadtest.plan.result import PlanResult
from loadtest.plan.tables import show_plan
from loadtest.run import RunResult
from loadtest.watch import Observed

WIDTH = 110


def screen() -> Console:
    """Where results go: a terminal, or lines that are long enough for the tables."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def show_document(document: Document, console: Console) -> None:
    """Print a result of any kind."""
    console.rule(document.origin.scenario)
    if isinstance(document.result, RunResult):
        show_run(document.result, document.origin, console)
    elif isinstance(document.result, Comparison):
        show_comparison(document.result, console)
    elif isinstance(document.result, Findings):
        show_findings(document.result, console)
    elif isinstance(document.result, PlanResult):
        show_plan(document.result, console)
    else:
        show_capacity(document.result, console)


def show_run(result: RunResult, origin: Origin, console: Console) -> None:
    """Print a run's results."""
    console.print(f"{origin.target}, {origin.started}, {origin.machine}; {origin.versions}")
    for part in _parts(result):
        console.print(part)


def _parts(result: RunResult) -> Iterator[RenderableType]:
    yield _summaries(result)
    for event in result.happened:
        yield f"at {event.begun:.1f} s: {event.what}, over after {event.ended - event.begun:.1f} s"
    for figure in result.figures:
        yield f"[{_colour(figure)}]{figure}[/]"
    if result.total.failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.total.failures.items())
        yield f"[red]failed: {reasons}[/red]"
    if result.observed is not None:
        yield _stages(result.observed)
        yield from result.observed.counted
    cost = result.client_cpu_seconds / max(1, result.total.arrivals) * 1e6
    yield f"load client: {counted(result.processes, 'process', 'processes')}, {cost:.0f} µs of CPU for each connection"
    if result.client_late:
        late = result.total.lag.p99 * 1000
        yield f"[yellow]the load client was late (p99 {late:.0f} ms): it was the limit itself[/yellow]"


def _summaries(result: RunResult) -> Table:
    """A line for each phase, each stretch around events, and each kind of clients."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("asked/s", "done/s", "failed", "resumed", "p50 ms", "p90", "p99", "longest", "total p99"):
        table.add_column(column, justify="right", no_wrap=True)
    for phase in result.phases:
        table.add_row(phase.name, f"{phase.asked:.1f}", *_cells(phase.summary))
    for part in (*(result.stretches if result.happened else ()), *result.clients):
        table.add_row(f"[dim]{part.name}[/dim]", "", *_cells(part.summary))
    return table


def _cells(summary: Summary) -> Iterator[str]:
    yield f"{summary.rate:.1f}"
    yield f"{summary.failed}"
    yield f"{summary.resumed}"
    latency = summary.handshake
    for seconds in (latency.p50, latency.p90, latency.p99, latency.highest, summary.total.p99):
        yield f"{seconds * 1000:,.1f}"


def _stages(observed: Observed) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("where the proxy's time went")
    table.add_column("times", justify="right")
    table.add_column("mean", justify="right")
    rows = [(stage.title, stage) for stage in observed.stages]
    rows += [(f"signature by node {node.title}", node) for node in observed.nodes]
    for title, stage in rows:
        table.add_row(title, f"{stage.count}", f"{stage.mean * 1000:.2f} ms")
    return table


def show_capacity(found: Capacity, console: Console) -> None:
    """Print what a search for the highest rate found."""
    table = Table(box=None, pad_edge=False)
    for column in ("rate", "completed/s", "failed", "handshake p99", "client", "worker", "machine", ""):
        table.add_column(column, justify="right")
    for trial in found.trials:
        use = trial.use
        table.add_row(
            f"{trial.rate:.0f}",
            f"{trial.summary.rate:.0f}",
            f"{trial.summary.failed}",
            f"{trial.summary.handshake.p99 * 1000:.1f} ms",
            f"{use.client:.0%}",
            "" if use.worker is None else f"{use.worker:.0%}",
            f"{use.machine:.0%}",
            "[green]met[/green]" if trial.met else "[red]missed[/red]",
        )
    console.print(table)
    if found.rate:
        spread = f"{min(found.rates):.0f} to {max(found.rates):.0f} in {len(found.rates)} searches"
        console.print(f"[bold]{found.rate:.0f} connections a second[/bold] ({spread})")
    else:
        console.print("[red]the objective was met at no rate[/red]")
    if (limiting := found.at_the_limit) is not None:
        console.print(f"what was the limit: {limiting.use.limit}")


def show_comparison(found: Comparison, console: Console) -> None:
    """Print how proxies compare."""
    console.print(f"{found.description} CPU is in µs a {found.cpu_unit}.")
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("worker", "in all", "ratio (95 %)", "done/s", "p50 ms", "p99", "resumed", "failed"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.sides:
        spread = one.to_reference
        table.add_row(
            one.name,
            f"{one.worker_us:,.0f}",
            f"{one.cpu_us:,.0f}",
            "" if spread is None else f"{spread.value:.2f} ({spread.low95:.2f}–{spread.high95:.2f})",
            f"{one.rate:,.0f}",
            f"{one.handshake.p50 * 1000:.1f}",
            f"{one.handshake.p99 * 1000:.1f}",
            f"{one.resumed / one.connections:.0%}",
            f"{sum(one.failures.values())}",
        )
    console.print(table)
    for figure in found.figures:
        console.print(f"[{_colour(figure)}]{figure}[/]")
    console.print(f"[dim]{'; '.join(found.terms)}[/dim]")
    for line in found.missing:
        console.print(f"[yellow]missing: {line}[/yellow]")


def show_findings(found: Findings, console: Console) -> None:
    """Print what a bench found."""
    console.print(found.description)
    for figure in found.figures:
        console.print(f"[{_colour(figure)}]{figure}[/]")
    for note in found.notes:
        console.print(f"[dim]{note}[/dim]")


def _colour(figure: Figure) -> str:
    return {"missed": "red", "met": "green"}.get(figure.verdict, "default")
