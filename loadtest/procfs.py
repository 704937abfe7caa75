"""CPU, memory and open files of processes, from /proc. Parsers are pure; the rest reads files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SETTLE_TIMEOUT = 3.0
_SETTLE_SECONDS, _SETTLED_NS = 0.05, 500_000
"""At rest: less than 1 % of one CPU, over 50 ms."""
_PROC = Path("/proc")
_CPUCLOCK_SCHED = 2
"""Which of a process's clocks: include/linux/posix-timers.h."""


class ProcessGoneError(Exception):
    """A process that was to be measured has ended."""


class Memory(NamedTuple):
    """Bytes: resident, and proportional (shared pages divided among those who share them)."""

    rss: int
    pss: int


def parse_schedstat(text: str) -> int:
    """Nanoseconds on a CPU: the first field of a schedstat file. Raises ValueError."""
    return int(text.split(maxsplit=1)[0]) if text.strip() else _bad("schedstat", text)


def parse_parent(text: str) -> int:
    """The parent's pid in a stat file; the command before it may hold spaces and parentheses."""
    fields = text.rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else _bad("stat", text)


def parse_rollup(text: str) -> Memory:
    """Rss and Pss in a smaps_rollup file, in bytes. Raises ValueError."""
    sizes = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            sizes[words[0]] = int(words[1]) * 1024
    if "Rss:" not in sizes or "Pss:" not in sizes:
        _bad("smaps_rollup", text)
    return Memory(sizes["Rss:"], sizes["Pss:"])


def parse_busy(text: str) -> int:
    """Ticks that all CPUs together were not idle, in the text of /proc/stat. Raises ValueError."""
    fields = text.split("\n", 1)[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        _bad("stat", text)
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    return user + nice + system + irq + softirq + steal


def descendants(root: int, parents: Mapping[int, int]) -> list[int]:
    """`root` and everything below it, in a map of pid to parent pid; sorted below the root."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, queue = [root], sorted(children.get(root, ()))
    while queue:
        pid = queue.pop(0)
        found.append(pid)
        queue.extend(sorted(children.get(pid, ())))
    return found


def cpu_ns(pid: int) -> int:
    """CPU time of a process in nanoseconds, threads that have ended included. Raises ProcessGoneError.

    It is the process's CPU clock, numbered as clock_getcpuclockid(3) does.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError as error:
        raise ProcessGoneError(f"process {pid} has ended") from error


def thread_cpu_ns(pid: int, thread: int) -> int:
    """CPU time of one thread of a process, in nanoseconds. Raises ProcessGoneError."""
    try:
        return parse_schedstat((_PROC / str(pid) / "task" / str(thread) / "schedstat").read_text())
    except OSError as error:
        raise ProcessGoneError(f"thread {thread} of process {pid} has ended") from error


def total_cpu_ns(pids: Iterable[int]) -> int:
    """CPU time of several processes together, in nanoseconds. Raises ProcessGoneError."""
    return sum(cpu_ns(pid) for pid in pids)


def machine_cpu_seconds() -> float:
    """CPU time that everything on this machine has used (time taken by its host included)."""
    return parse_busy((_PROC / "stat").read_text()) / os.sysconf("SC_CLK_TCK")


def process_tree(root: int) -> list[int]:
    """Pids of a process and all below it. Raises ProcessGoneError."""
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = parse_parent((entry / "stat").read_text())
            except (OSError, ValueError):
                continue  # ended while we looked
    if root not in parents:
        raise ProcessGoneError(f"process {root} has ended")
    return descendants(root, parents)


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty when it has ended."""
    try:
        data = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in data.rstrip(b"\0").split(b"\0")]


def settle(pids: Sequence[int]) -> int:
    """Wait until processes have come to rest (at most 3 s); their CPU time then, in ns.

    What a round left to do is then counted in it.
    Raises ProcessGoneError.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT
    before = total_cpu_ns(pids)
    while True:
        time.sleep(_SETTLE_SECONDS)
        now = total_cpu_ns(pids)
        if now - before < _SETTLED_NS or time.monotonic() > deadline:
            return now
        before = now


def memory(pid: int) -> Memory:
    """A process's memory. Raises ProcessGoneError."""
    try:
        return parse_rollup((_PROC / str(pid) / "smaps_rollup").read_text())
    except OSError as error:
        raise ProcessGoneError(f"process {pid} cannot be read: {error}") from error


def open_files(pid: int) -> int:
    """How many file descriptors a process has open. Raises ProcessGoneError."""
    try:
        return len(os.listdir(_PROC / str(pid) / "fd"))
    except OSError as error:
        raise ProcessGoneError(f"process {pid} cannot be read: {error}") from error


def _bad(name: str, text: str) -> int:
    raise ValueError(f"not a {name} file: {text[:60]!r}")
