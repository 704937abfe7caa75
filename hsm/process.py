"""What a process does to itself at its start: see prctl(2)."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def forbid_dumps() -> None:
    """No core dump, no ptrace, no /proc/PID/mem for other processes of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def raise_file_limit() -> None:
    """Allow as many open files as the operator's hard limit permits; children inherit it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def process_usage() -> tuple[float, int, int]:
    """This process's CPU seconds, resident bytes and open files (proc(5))."""
    times = os.times()
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd")) - 1  # less the one that lists them
    return times.user + times.system, resident_pages * resource.getpagesize(), files


def die_with_parent(parent: int) -> None:
    """Have SIGTERM sent to this process when `parent` (a pid) ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)  # it ended before we asked
