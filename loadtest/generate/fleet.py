"""Several generator processes that work as one: they keep one timetable, each its share of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import IO, Any, Self

from loadtest.generate.generator import Count, Order
from loadtest.generate.histogram import Histogram
from loadtest.generate.records import Record
from loadtest.targets.lab import LoadTestError, child_environment

READY_TIMEOUT = 20.0
END_TIMEOUT = 15.0
"""A process must be ready, and give its records after its last connection, within so many seconds."""
LEAD = 0.2
"""Seconds between `begin` and the schedule's start, so that no process is late."""

OnReport = Callable[[Count, Histogram], None]
"""Told of what one process counted in one second, in a thread of its own."""


def ignore(_count: Count, _latencies: Histogram) -> None:
    """For callers who want the records only."""


@dataclass
class _Process:
    """One generator; a thread reads what it says, so that it never has to wait for us."""

    process: subprocess.Popen[str]
    on_report: OnReport
    ready: bool = False
    heard: threading.Event = field(default_factory=threading.Event)
    """Set when it is ready, or has ended before."""
    records: list[Record] | None = None
    cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, args=(_pipe(self.process.stdout),), daemon=True)
        self.reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._take(json.loads(line))
        self.heard.set()

    def _take(self, said: dict[str, Any]) -> None:
        if "ready" in said:
            self.ready = True
            self.heard.set()
        elif "records" in said:
            self.records = [Record(*fields) for fields in said["records"]]
            self.cpu_seconds = said["cpu_seconds"]
        else:
            self.on_report(Count(**said["count"]), Histogram.from_json(said["latencies"]))

    def tell(self, what: Any) -> None:
        """Send a line of JSON; nothing happens when it has ended."""
        pipe = _pipe(self.process.stdin)
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(what) + "\n")
            pipe.flush()

    def fault(self) -> LoadTestError:
        """Why it gave no records; it is ended for that."""
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            _pipe(self.process.stdin).close()
        lines = _pipe(self.process.stderr).read().strip().splitlines()
        return LoadTestError(f"a load generator failed: {' | '.join(lines[-2:]) or 'it did not end'}")


class Fleet:
    """The processes that carry one order out. `begin` it, then `wait`; leaving the context ends them."""

    def __init__(self, order: Order, processes: int = 1, on_report: OnReport = ignore) -> None:
        self._order = order
        self._on_report = on_report
        self._wanted = processes
        self._processes: list[_Process] = []
        self.start = 0.0
        """time.monotonic() of the schedule's start; the records' times count from there."""

    def __enter__(self) -> Self:
        """Start the processes. Raises LoadTestError when one does not get ready."""
        try:
            for index in range(self._wanted):
                process = _Process(_launch(), self._on_report)
                self._processes.append(process)
                process.tell(replace(self._order, index=index, count=self._wanted).to_json())
            for process in self._processes:
                process.heard.wait(READY_TIMEOUT)
                if not process.ready:
                    raise process.fault()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.process.kill()
        for process in self._processes:
            process.process.wait()
            process.reader.join()
            for pipe in (process.process.stdin, process.process.stdout, process.process.stderr):
                with contextlib.suppress(BrokenPipeError):
                    _pipe(pipe).close()

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all processes, once `wait` has returned."""
        return sum(process.cpu_seconds for process in self._processes)

    def begin(self) -> None:
        """Start the schedule, in a moment: see `start`."""
        self.start = time.monotonic() + LEAD
        for process in self._processes:
            process.tell(self.start)

    def wait(self, seconds: float) -> list[Record]:
        """All records, in the order that they were due, once all processes have ended.

        Raises LoadTestError when one has not after `seconds` and a bit, or failed.
        """
        deadline = time.monotonic() + seconds + END_TIMEOUT
        records: list[Record] = []
        for process in self._processes:
            process.reader.join(max(0.0, deadline - time.monotonic()))
            if process.records is None:
                raise process.fault()
            records += process.records
        return sorted(records)


def _launch() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest.generate.generator"],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
