"""Overload: three times as many handshakes are asked for as the cluster can sign."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Self

from loadtest import procfs, scrape, verdict
from loadtest.figures import Bar, Figure
from loadtest.generate.connections import Target
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import Record, summarise
from loadtest.generate.schedule import Phase, length
from loadtest.targets.cluster import NODES, Cluster
from loadtest.verdict import Finding, Stretch

PER_NODE = 80
"""Signatures a second of one node; the whole overload then is what one machine can send and bear."""
CAPACITY = PER_NODE * len(NODES)
EMULATION = {"latency": "5ms", "signatures_per_second": PER_NODE}
CALM, TIMES = 60.0, 3
"""Handshakes a second before and after; and by how much capacity is exceeded."""
OVERLOAD_SECONDS, RETURN_SECONDS = 12.0, 10.0
PHASES = (
    Phase(verdict.WARM_UP + verdict.BEFORE, CALM),
    Phase(OVERLOAD_SECONDS, CAPACITY * TIMES),
    Phase(RETURN_SECONDS, CALM),
)
NAME = "overload"
TITLE = f"{TIMES} × what the cluster can sign ({CAPACITY}/s) for {OVERLOAD_SECONDS:g} s"
LOAD = f"{CAPACITY * TIMES:g} handshakes/s"
RECOVERY_STEP = 0.5
"""Normality is looked for in stretches of so many seconds, each with 30 arrivals."""
MEMORY_LIMIT = 64.0
"""MB that the worker may grow by: one second's arrivals in its queue, at most 80 KB each."""


class MemoryWatch:
    """Samples the resident memory of a process in a thread; `peak` in bytes."""

    def __init__(self, pid: int, interval: float = 0.25) -> None:
        self._pid = pid
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.peak = procfs.memory(pid).rss

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self.peak = max(self.peak, procfs.memory(self._pid).rss)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()


def run(cluster: Cluster, finding: Finding) -> None:
    """Overload the cluster and fill in what was found. Raises LoadTestError."""
    order = Order(targets=(Target(port=cluster.port),), phases=PHASES)
    end = length(PHASES)
    before = scrape.metrics(cluster.proxy.admin)
    with Fleet(order) as fleet, MemoryWatch(cluster.worker) as memory:
        fleet.begin()
        records = fleet.wait(end)
    begin = verdict.WARM_UP + verdict.BEFORE
    over = begin + OVERLOAD_SECONDS
    finding.stretches = verdict.stretches(records, begin, over, end)
    finding.figures = figures(records, begin, over, end)
    grown = (memory.peak - memory.before) / 1e6
    finding.figures.append(Figure("growth of the worker's memory", grown, "MB", grown, bar=Bar(MEMORY_LIMIT)))
    failed = verdict.failures(records)
    finding.notes.append(f"clients saw: {verdict.reasons(failed) or 'no failures'}")
    finding.notes += scrape.told(before, scrape.metrics(cluster.proxy.admin))


def figures(records: Sequence[Record], begin: float, over: float, end: float) -> list[Figure]:
    """The figures of an overload from `begin` to `over`, in seconds of the schedule; pure."""
    done = completed_between(records, begin, over) / (over - begin)
    p99 = summarise(records, begin, over).handshake.p99 * 1000
    back = recovery(records, begin, over, end)
    return [
        Figure("completed", done, "handshakes/s", done, bar=Bar(0.9 * CAPACITY, at_most=False)),
        Figure("p99 of those completed", p99, "ms", p99, bar=Bar(1500.0)),
        Figure("back to normal after", back, "s", back, bar=Bar(2.0)),
    ]


def completed_between(records: Sequence[Record], begin: float, end: float) -> int:
    """Handshakes whose last byte came in a stretch of time, whenever they were due."""
    return sum(begin <= record.intended + record.handshake < end for record in records if not record.failed)


def recovery(records: Sequence[Record], begin: float, over: float, end: float) -> float:
    """Seconds after `over` until arrivals fare as before `begin`: none fails, the median is below twice that.

    The whole time until `end` if they never do.
    """
    usual = Stretch.of(summarise(records, verdict.WARM_UP, begin)).p50
    back, at = 0.0, over
    while at < end:
        stretch = Stretch.of(summarise(records, at, at + RECOVERY_STEP))
        at += RECOVERY_STEP
        if stretch.failed or stretch.p50 > 2 * usual:
            back = at - over
    return back
