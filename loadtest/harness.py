"""Loads servers in interleaved rounds and measures their CPU.

CPU clocks are read before and after a round's load. Rounds of the sides compared
alternate, so that whatever else the machine does falls on all of them; a warm-up round of
each is discarded. The load client runs in a process of its own, which is not measured.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from loadtest import procfs
from loadtest.results import LoadResult
from loadtest.stats import Sample
from loadtest.targets.lab import LoadTestError, child_environment

SETTLE_TIMEOUT = 3.0
_SETTLE_SECONDS, _SETTLED_NS = 0.05, 500_000
"""At rest: less than 1 % of one CPU, over 50 ms."""

Options = Mapping[str, int | float | str]
"""Options of the load client, by name: `{"connections": 100}`."""


def _client_command(mode: str, port: int, options: Options, limit: float) -> list[str]:
    command = [sys.executable, "-m", "loadtest.client", mode, "--port", str(port), "--limit", str(limit)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return command


def run_client(mode: str, port: int, options: Options, limit: float = 120.0) -> LoadResult:
    """Run the load client in a process of its own, for at most `limit` seconds.

    Raises LoadTestError when it gives no result. Failed connections are in the result.
    """
    command = _client_command(mode, port, options, limit)
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit + 30,
            check=False,
        )
        return LoadResult.from_json(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise LoadTestError(f"the load client did not end within {limit + 30:.0f} s") from error
    except (ValueError, IndexError) as error:
        lines = " | ".join(done.stderr.decode(errors="replace").strip().splitlines()[-2:])
        raise LoadTestError(f"the load client failed with code {done.returncode}: {lines}") from error


@contextlib.contextmanager
def held_connections(port: int, count: int, options: Options, limit: float = 300.0) -> Iterator[LoadResult]:
    """Open `count` idle connections and keep them open inside the context.

    `options` are the load client's; with `requests`, each connection makes so many first.

    Raises LoadTestError if some can't be opened, or are closed by the server meanwhile.
    """
    command = _client_command("idle", port, {**options, "connections": count}, limit)
    process = subprocess.Popen(
        command, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        opened = _held_result(process.stdout)
        if opened.failed or opened.connections != count:
            raise LoadTestError(f"{opened.connections} of {count} connections opened: {opened.errors}")
        yield opened
        output, _ = process.communicate(timeout=60)  # closes its standard input: the sign to end
        ended = LoadResult.from_json(json.loads(output))
        if ended.failed:
            raise LoadTestError(f"the server ended idle connections: {ended.errors}")
    finally:
        process.kill()
        process.communicate()


def _held_result(stream: IO[bytes] | None) -> LoadResult:
    line = stream.readline() if stream else b""
    if not line:
        raise LoadTestError("the load client ended before its connections were open")
    return LoadResult.from_json(json.loads(line))


@dataclass(frozen=True)
class Side:
    """One of the things compared: `load` runs one round, `processes` names what to measure.

    `processes()` gives groups such as worker and tree, each a list of pids.
    """

    name: str
    load: Callable[[], LoadResult]
    processes: Callable[[], Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Round:
    """One round of one side: what the client saw, and CPU nanoseconds by group."""

    result: LoadResult
    cpu: Mapping[str, int]

    def per_connection(self, group: str) -> Sample:
        """CPU ns per connection."""
        return Sample(self.cpu[group], self.result.connections)

    def per_request(self, group: str) -> Sample:
        """CPU ns per request."""
        return Sample(self.cpu[group], self.result.requests)

    def per_megabyte(self, group: str) -> Sample:
        """CPU ns per 10^6 bytes of bodies."""
        return Sample(self.cpu[group], self.result.body_bytes / 1e6)

    @property
    def rate(self) -> Sample:
        """Connections per second."""
        return Sample(self.result.connections, self.result.seconds)


@dataclass
class Comparison:
    """All rounds of all sides, by name; round i of each ran close to round i of the others."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def samples(self, side: str, of: Callable[[Round], Sample]) -> list[Sample]:
        """One figure of each round of a side."""
        return [of(entry) for entry in self.rounds[side]]


def settle(pids: Sequence[int]) -> int:
    """Wait until processes have come to rest (at most 3 s); their CPU time then, in ns.

    What a round left to do is then counted in it.
    Raises procfs.ProcessGoneError.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT
    before = procfs.total_cpu_ns(pids)
    while True:
        time.sleep(_SETTLE_SECONDS)
        now = procfs.total_cpu_ns(pids)
        if now - before < _SETTLED_NS or time.monotonic() > deadline:
            return now
        before = now


def measure(side: Side) -> Round:
    """Run one round of one side.

    Raises LoadTestError when connections failed or a process was replaced meanwhile: the
    figure would be wrong.
    """
    groups = side.processes()
    everything = sorted({pid for pids in groups.values() for pid in pids})
    settle(everything)
    before = {name: procfs.total_cpu_ns(pids) for name, pids in groups.items()}
    result = side.load()
    settle(everything)
    after = {name: procfs.total_cpu_ns(pids) for name, pids in groups.items()}
    if side.processes() != groups:
        raise LoadTestError(f"{side.name}: a process was replaced during the round")
    if result.failed:
        raise LoadTestError(f"{side.name}: {result.failed} connections failed: {result.errors}")
    return Round(result, {name: after[name] - before[name] for name in groups})


def interleave(sides: Sequence[Side], rounds: int, progress: Callable[[str], None]) -> Comparison:
    """Warm each side up, then measure `rounds` rounds of each, in alternating order.

    `progress` is told what goes on. Raises LoadTestError as `measure` does.
    """
    comparison = Comparison({side.name: [] for side in sides})
    progress(f"warm-up of {', '.join(comparison.rounds)}")
    for side in sides:
        measure(side)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for side in sides if number % 2 == 0 else reversed(sides):
            comparison.rounds[side.name].append(measure(side))
    return comparison
