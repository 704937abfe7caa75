"""One process of open-loop load: connections start when they are due, whatever became of earlier ones.

`fleet` runs it as `python -m loadtest.generate.generator`: it is told its `Order` as a line of JSON, says
that it is ready, is told when the schedule starts (time.monotonic(), which all processes of a
machine share), and then says once a second what it counted, and at the end what became of each
arrival. Nothing hangs: each handshake and request has a time limit, and the number of arrivals
and of open connections are bounded.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

from loadtest.generate import schedule
from loadtest.generate.connection import Connection
from loadtest.generate.connections import Connections, errno_name
from loadtest.generate.histogram import Histogram
from loadtest.generate.records import COMPLETED, Record
from loadtest.generate.schedule import Phase, Timetable
from loadtest.generate.target import Target
from loadtest.targets.lab import LoadTestError, raise_file_limit

MOST_ARRIVALS = 1_000_000
"""Of one process: their records stay in its memory, some 300 bytes each."""
CLIENT_LIMIT = "client_limit"
"""Outcome of an arrival for which the load client had no connection left: its fault, not the server's."""
_REPORT_INTERVAL = 1.0
_EXPIRY_INTERVAL = 0.05
"""Seconds between two looks at who is past a time limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a process is to do: of all arrivals in `phases` every `count`-th, from the `index`-th on.

    All processes of a fleet get the same `seed`, so that together they keep one timetable.
    `targets` are the kinds of clients that arrive, all at one address, each at its share.
    At most `most_open` connections are open at a time in one process.
    """

    targets: tuple[Target, ...]
    phases: tuple[Phase, ...]
    poisson: bool = False
    seed: int = 1
    index: int = 0
    count: int = 1
    most_open: int = 8000

    def timetable(self, start: float) -> Timetable:
        """The arrivals of this process. Raises LoadTestError when there would be too many."""
        if schedule.expected(self.phases) / self.count > MOST_ARRIVALS:
            raise LoadTestError(f"more than {MOST_ARRIVALS:,} arrivals in one process")
        gap = schedule.poisson(random.Random(self.seed).random) if self.poisson else schedule.even()
        times = schedule.arrival_times(self.phases, gap)
        return Timetable(itertools.islice(times, self.index, None, self.count), start)

    @property
    def longest(self) -> float:
        """Seconds that it may take at most: every request of the last arrival up to its time limit."""
        patience = (target.timeout * (1 + target.requests) + target.hold for target in self.targets)
        return schedule.length(self.phases) + max(patience)

    def to_json(self) -> dict[str, Any]:
        """As JSON types; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` made. Raises TypeError when it is something else."""
        phases = tuple(Phase(**phase) for phase in data["phases"])
        targets = tuple(Target(**target) for target in data["targets"])
        return cls(**{**data, "targets": targets, "phases": phases})


@dataclass
class Count:
    """What happened since the last report."""

    started: int = 0
    completed: int = 0
    failed: int = 0


class Generator:
    """Carries one order out, once. `on_report` is told of each second's count and latencies."""

    def __init__(self, order: Order, on_report: Callable[[Count, Histogram], None]) -> None:
        """Raises TLSError for an unknown policy, OSError for a host that can't be resolved."""
        self._order = order
        self._on_report = on_report
        self._connections = Connections(order.targets, self)
        self._random = random.Random(order.seed + order.index)
        self._kinds = range(len(order.targets))
        self._shares = list(itertools.accumulate(target.share for target in order.targets))
        self._count, self._latencies = Count(), Histogram()
        self._start = self._end = self._report_at = self._expire_at = 0.0
        self._returning: list[int] = []
        """The kinds of clients that are done, and come again."""
        self.records: list[Record] = []

    def run(self, start: float) -> None:
        """Start the arrivals at their times, the first of them from `start` (time.monotonic()) on."""
        self._start, self._report_at = start, start + _REPORT_INTERVAL
        self._end = start + schedule.length(self._order.phases)
        timetable = self._order.timetable(start)
        while timetable.next_at < math.inf or self._returning or self._connections:
            for due in timetable.due(time.monotonic()):
                self._open(self._draw(), due)
            self._return()
            now = time.monotonic()
            if now >= self._expire_at:
                self._look_up(now)
            self._connections.poll(min(timetable.next_at, self._expire_at))
        self._report()

    def close(self) -> None:
        """Free everything."""
        self._connections.close()

    def _look_up(self, now: float) -> None:
        """What is to be done now and then: whose time is over, and a report."""
        self._expire_at = now + _EXPIRY_INTERVAL
        self._connections.expire(now)
        if now >= self._report_at:
            self._report()

    def _return(self) -> None:
        """Start those that come again: not from within the event that ended them, which might end them, too."""
        returning, self._returning = self._returning, []
        for kind in returning:
            if (now := time.monotonic()) < self._end:
                self._open(kind, now)

    def _draw(self) -> int:
        """The kind of the next client to arrive."""
        if len(self._shares) == 1:
            return 0
        (kind,) = self._random.choices(self._kinds, cum_weights=self._shares)
        return kind

    def _open(self, kind: int, due: float) -> None:
        self._count.started += 1
        now = time.monotonic()
        if len(self._connections) >= self._order.most_open:
            self._failed_to_start(due, now, kind, CLIENT_LIMIT)
            return
        resume = self._random.random() < self._order.targets[kind].resumed
        try:
            self._connections.open(due, now, kind=kind, resume=resume)
        except OSError as error:  # no descriptors, no ports
            self._failed_to_start(due, now, kind, errno_name(error.errno))

    def _failed_to_start(self, due: float, now: float, kind: int, reason: str) -> None:
        self._count.failed += 1
        late = now - due
        self.records.append(Record(due - self._start, late, -1.0, late, reason, False, kind))

    def _report(self) -> None:
        count, self._count = self._count, Count()
        latencies, self._latencies = self._latencies, Histogram()
        self._report_at += _REPORT_INTERVAL
        self._on_report(count, latencies)

    def _record(self, connection: Connection, outcome: str) -> None:
        intended, now = connection.intended, time.monotonic()
        self.records.append(
            Record(
                intended - self._start,
                connection.started - intended,
                connection.handshake,
                now - intended,
                outcome,
                connection.tls.resumed if connection.handshake >= 0 else connection.offered,
                connection.kind.index,
                connection.kind.target.requests - connection.left,
                connection.body_bytes,
            )
        )

    def established(self, connection: Connection, now: float) -> None:  # noqa: ARG002  # the owner's signature
        """`connections.Owner`: the handshake is complete."""
        self._latencies.record(connection.handshake)

    def answered(self, connection: Connection, now: float) -> None:
        """`connections.Owner`: a request was answered; the record is made at the connection's end."""

    def completed(self, connection: Connection) -> None:
        """`connections.Owner`: all is done."""
        self._count.completed += 1
        self._record(connection, COMPLETED)
        if connection.kind.target.again:
            self._returning.append(connection.kind.index)

    def failed(self, connection: Connection, reason: str) -> None:
        """`connections.Owner`: it came to another end."""
        self._count.failed += 1
        self._record(connection, reason)


def _say(**fields: Any) -> None:
    print(json.dumps(fields, separators=(",", ":")), flush=True)


def _report(count: Count, latencies: Histogram) -> None:
    _say(count=asdict(count), latencies=latencies.to_json())


def main() -> int:
    """Carry out the order on standard input; 0 also when connections failed."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fleet's business
    raise_file_limit()
    generator = Generator(Order.from_json(json.loads(sys.stdin.readline())), _report)
    gc.freeze()  # what is there by now stays: not worth looking at again
    try:
        _say(ready=True)
        start = sys.stdin.readline()
        if not start:  # the fleet has changed its mind
            return 1
        before = time.process_time()
        generator.run(json.loads(start))
        _say(records=generator.records, cpu_seconds=time.process_time() - before)
        return 0
    finally:
        generator.close()


if __name__ == "__main__":
    sys.exit(main())
