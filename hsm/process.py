"""What a process does to itself at its start: see prctl(2)."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

PARENT_STOPS = signal.SIGUSR2
"""Ends a node that another process runs. SIGTERM and SIGINT do not: a service manager, or Ctrl-C, sends them to all
processes at once, and then clients of the parent still need signatures."""
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def forbid_dumps() -> None:
    """No core dump, no ptrace, no /proc/PID/mem for other processes of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """What this process and its children execute gains no privileges: set-user-ID bits count for nothing."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def raise_file_limit() -> None:
    """Allow as many open files as the operator's hard limit permits; children inherit it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ProcessUsage:
    """What this process takes up (proc(5)); what is read is opened once, so that it can be later without a right to."""

    def __init__(self) -> None:
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._files = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self) -> tuple[float, int, int]:
        """CPU seconds, resident bytes and open files. Raises OSError when no descriptor is free."""
        times = os.times()
        resident_pages = int(os.pread(self._memory, 200, 0).split()[1])
        files = len(os.listdir(self._files)) - 1  # less the copy that lists them
        return times.user + times.system, resident_pages * resource.getpagesize(), files


def die_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have a signal sent to this process when `parent` (a pid) ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        raise SystemExit(0)  # it ended before we asked
