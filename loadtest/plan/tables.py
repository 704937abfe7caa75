"""A plan on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from loadtest.generate.records import Summary
from loadtest.plan import words
from loadtest.plan.result import PlanResult
from loadtest.plan.search import Lost, Plan
from loadtest.plan.settings import PlanSettings
from loadtest.plan.words import in_milliseconds


def show_plan(found: PlanResult, console: Console) -> None:
    """Print the answer, what it rests on, and what is assumed."""
    plan, settings = found.plan, found.question
    console.print(f"[bold]{found.answer}[/bold]")
    console.print(words.workers(plan, settings))
    if told := words.loss(plan, settings):
        console.print(told)
    for line in found.warnings:
        console.print(f"[yellow]{line}[/yellow]")
    if plan.rows:
        console.print(_rows(plan))
    if plan.gains:
        console.print(_gains(plan, settings))
    console.print("Assumed:")
    for line in found.assumptions:
        console.print(f"- {line}")


def _rows(plan: Plan) -> Table:
    loses = any(row.lost for row in plan.rows)
    groups = ["HSMs", "use", "p50", "p99", "fail"]
    if loses:
        groups += ["lost", "worst", "fail", "use", "p50", "p99", "fail"]
    table = Table(
        box=None,
        pad_edge=False,
        title="times in ms; after a loss: its worst second, then what it settles to",
    )
    for column in groups:
        table.add_column(column, justify="right")
    table.add_column()
    for row in plan.rows:
        verdict = "[green]held[/green]" if row.met else "[red]missed[/red]"
        cells = [f"{row.hsms}", f"{row.utilisation:.0%}", *_cells(row.normal)]
        cells += _lost(row.lost) if row.lost else []
        table.add_row(*cells, verdict, style="bold" if row.hsms == plan.hsms else None)
    return table


def _lost(lost: Lost) -> Iterator[str]:
    yield f"{lost.hsms}"
    yield in_milliseconds(lost.worst_p99)
    yield f"{lost.failed:.1%}"
    yield f"{lost.utilisation:.0%}"
    yield from _cells(lost.after)


def _cells(summary: Summary) -> Iterator[str]:
    yield in_milliseconds(summary.handshake.p50)
    yield in_milliseconds(summary.handshake.p99)
    yield f"{summary.failed / max(1, summary.arrivals):.1%}"


def _gains(plan: Plan, settings: PlanSettings) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(f"held at most, {words.LOSSES[settings.survive]}")
    table.add_column("connections/s", justify="right")
    table.add_column("", justify="right")
    for one in plan.gains:
        table.add_row(*words.gain(one, plan.gains[0], settings))
    return table
