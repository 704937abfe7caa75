"""Tries one rate against a server, and sees how busy everything was meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from loadtest import procfs, scrape
from loadtest.capacity import Use
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import Summary, summarise
from loadtest.generate.schedule import Phase
from loadtest.run import LATE, Server

_WORKER_CPU = "offload_process_cpu_seconds{process=worker"


class Trials:
    """Tries rates, one after another; each settles before it counts."""

    def __init__(
        self, server: Server, order: Order, *, processes: int, settle: float, measure: float
    ) -> None:
        """The `order`'s phases are replaced by `settle` and `measure` seconds at the rate tried."""
        self._server = server
        self._order = order
        self._processes = processes
        self._settle = settle
        self._measure = measure

    def measure(self, rate: float) -> tuple[Summary, Use]:
        """`capacity.Measure`. Raises LoadTestError."""
        length = self._settle + self._measure
        order = replace(self._order, phases=(Phase(length, rate),))
        admin = self._server.admin
        before = scrape.metrics(admin) if admin else scrape.Metrics()
        with Fleet(order, self._processes) as fleet:
            machine, began = procfs.machine_cpu_seconds(), time.monotonic()
            fleet.begin()
            records = fleet.wait(order.longest)
            seconds = time.monotonic() - began
            machine = procfs.machine_cpu_seconds() - machine
            client = fleet.cpu_seconds / seconds / self._processes
        after = scrape.metrics(admin) if admin else before
        summary = summarise(records, self._settle, length)
        use = Use(
            client=client,
            client_late=summary.lag.p99 > LATE,
            machine=machine / seconds / (os.cpu_count() or 1),
            worker=busiest_worker(before, after, seconds) if admin else None,
            signature_share=signature_share(before, after) if admin else None,
        )
        return summary, use


def busiest_worker(before: scrape.Metrics, after: scrape.Metrics, seconds: float) -> float | None:
    """Cores that the busiest worker used; None when the proxy does not say."""
    return max(scrape.growth(before, after, _WORKER_CPU).values(), default=0.0) / seconds or None


def signature_share(before: scrape.Metrics, after: scrape.Metrics) -> float | None:
    """How much of the full handshakes' time at the proxy was the wait for a signature."""
    means = {stage.title: stage.mean for stage in scrape.stages(before, after)}
    signature, whole = means.get("signature"), means.get("whole handshake, full")
    return signature / whole if signature is not None and whole else None
