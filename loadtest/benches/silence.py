"""What silent connections cost everybody else.

Ordinary clients arrive by a timetable at two proxies by turns, one of which has a crowd besides that
connects, says nothing, and comes again whenever the proxy has had enough of it
(`limits.handshake_timeout`, 10 s). What the crowd costs the machine falls on both.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

from loadtest import procfs
from loadtest.figures import Bar, Figure, Findings, compare
from loadtest.generate.fleet import Fleet
from loadtest.generate.generator import Order
from loadtest.generate.records import Latency, summarise
from loadtest.generate.schedule import Phase
from loadtest.generate.target import Target
from loadtest.stats import Sample, mean
from loadtest.targets.agreement import HOST
from loadtest.targets.lab import Lab, LoadTestError
from loadtest.targets.sides import ServerSettings, Sides, Started

SILENT = 2000
RATE = 200.0
"""Ordinary clients a second."""
SETTLE, SECONDS = 0.5, 4.0
"""Of each round: what does not count, and what does."""
GATHERING = 9.0
"""Seconds in which the crowd comes: a bit less than the time after which it is hung up on."""
MEDIAN_BAR = 1.1
_LOOK = 0.2


class Crowd:
    """So many open connections that say nothing; whoever is hung up on comes again."""

    def __init__(self, port: int, count: int, seconds: float) -> None:
        """They come within `seconds`, so that they are not all hung up on at once. Raises OSError."""
        self.returned = 0
        """How often one of them has come again."""
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._stay)
        begun = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begun + seconds * number / count - time.monotonic()))
            self._come()

    def _come(self) -> None:
        self._selector.register(socket.create_connection((HOST, self._port)), selectors.EVENT_READ)

    def __len__(self) -> int:
        return len(self._selector.get_map())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _stay(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(_LOOK):
                self._leave(key)
                self._come()
                self.returned += 1

    def _leave(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._leave(key)
        self._selector.close()


class Round(NamedTuple):
    """What ordinary clients saw of it, and the worker's CPU time a second."""

    handshake: Latency
    cores: float


def measure(rounds: int) -> Findings:
    """So many rounds of each proxy. Raises LoadTestError, also when an ordinary client failed."""
    found = Findings(f"Ordinary clients, {RATE:g} a second, beside {SILENT:,} silent connections and without")
    with Lab() as lab:
        sides = Sides(lab)
        crowded, alone = (sides.start(ServerSettings(server="offload")) for _ in range(2))
        seen: dict[int, list[Round]] = {crowded.port: [], alone.port: []}
        with Crowd(crowded.port, SILENT, GATHERING) as crowd:
            for number in range(rounds):
                for server in (crowded, alone) if number % 2 else (alone, crowded):
                    seen[server.port].append(load_round(server))
            if len(crowd) != SILENT:
                raise LoadTestError(f"{len(crowd)} of {SILENT} silent connections are left")
    judge(seen[crowded.port], seen[alone.port], found)
    return found


def load_round(server: Started) -> Round:
    """Ordinary clients for a while. Raises LoadTestError when one fails."""
    length = SETTLE + SECONDS
    order = Order(targets=(Target(port=server.port),), phases=(Phase(length, RATE),))
    workers = server.processes()["worker"]
    with Fleet(order) as fleet:
        before, begun = procfs.total_cpu_ns(workers), time.monotonic()
        fleet.begin()
        records = fleet.wait(order.longest)
        cores = (procfs.total_cpu_ns(workers) - before) * 1e-9 / (time.monotonic() - begun)
    if failed := [record.outcome for record in records if record.failed]:
        raise LoadTestError(f"{len(failed)} ordinary clients failed: {failed[0]}")
    return Round(summarise(records, SETTLE, length).handshake, cores)


def judge(crowded: list[Round], alone: list[Round], found: Findings) -> None:
    """Handshakes beside the crowd, against those without it, and what the crowd costs the worker."""
    for part, bar in (("p50", Bar(MEDIAN_BAR)), ("p99", None)):
        ours, theirs = (
            [Sample(getattr(entry.handshake, part), 1) for entry in side] for side in (crowded, alone)
        )
        found.figures.append(compare(f"handshake {part}", "ms", ours, theirs, scale=1e3, bar=bar))
    busy, idle = (mean([Sample(entry.cores, 1) for entry in side]) for side in (crowded, alone))
    cost = 100 * (busy - idle)
    found.figures.append(Figure("worker CPU for the silent ones", cost, "% of a core", cost))
