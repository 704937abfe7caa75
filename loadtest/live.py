"""Shows a run while it goes on: a line of progress on a terminal, rewritten once a second."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadtest.generate.generator import Count
from loadtest.generate.histogram import Histogram

RECENT = 5
"""Seconds that the figures shown are about."""


class Board:
    """Adds up what generators report, second by second. `report` is called from several threads."""

    def __init__(self, seconds: float, console: Console) -> None:
        self._seconds = seconds
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._counts: list[tuple[float, Count, Histogram]] = []
        self._failed = 0
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def report(self, count: Count, latencies: Histogram) -> None:
        """`fleet.OnReport`: what one process counted in one second."""
        now = time.monotonic()
        with self._lock:
            self._failed += count.failed
            self._counts = [entry for entry in self._counts if entry[0] > now - RECENT]
            self._counts.append((now, count, latencies))

    def _render(self) -> Table:
        elapsed = time.monotonic() - self._begun
        with self._lock:
            counts, failed = list(self._counts), self._failed
        return row(elapsed, self._seconds, counts, failed)


def row(elapsed: float, seconds: float, counts: list[tuple[float, Count, Histogram]], failed: int) -> Table:
    """The table that is shown: pure, but for rich."""
    latencies = Histogram()
    for _, _, histogram in counts:
        latencies.merge(histogram)
    covered = max(1.0, min(RECENT, elapsed))
    table = Table(title=None, box=None, pad_edge=False)
    for column in ("time", "started/s", "completed/s", "p50", "p99", "failed in all"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{elapsed:.0f} of {seconds:.0f} s",
        f"{sum(count.started for _, count, _ in counts) / covered:.0f}",
        f"{sum(count.completed for _, count, _ in counts) / covered:.0f}",
        f"{latencies.percentile(0.5) * 1000:.1f} ms",
        f"{latencies.percentile(0.99) * 1000:.1f} ms",
        f"[red]{failed}[/red]" if failed else "0",
    )
    return table


def progress(line: str) -> None:
    """Say what goes on, apart from the results."""
    print(line, file=sys.stderr, flush=True)
