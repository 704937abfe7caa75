"""What /proc says of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from loadtest import procfs

ROLLUP = """\
55df85f86000-7ffcbfa3b000 ---p 00000000 00:00 0                          [rollup]
Rss:                1576 kB
Pss:                 464 kB
Pss_Dirty:           116 kB
"""


def test_schedstat_is_nanoseconds_waiting_and_slices() -> None:
    assert procfs.parse_schedstat("1237922 45 2\n") == 1237922


@pytest.mark.parametrize("text", ["", "\n", "x 1 2"])
def test_a_file_that_is_no_schedstat(text: str) -> None:
    with pytest.raises(ValueError, match=r"schedstat|invalid literal"):
        procfs.parse_schedstat(text)


@pytest.mark.parametrize("command", ["cat", "a b", "tricky) S 9 9", "((nested))"])
def test_parent_after_any_command_name(command: str) -> None:
    assert procfs.parse_parent(f"42 ({command}) S 7 42 42 0 -1") == 7


def test_a_file_that_is_no_stat() -> None:
    with pytest.raises(ValueError, match="stat"):
        procfs.parse_parent("42 (cat)")


def test_rollup_in_bytes() -> None:
    assert procfs.parse_rollup(ROLLUP) == (1576 * 1024, 464 * 1024)


def test_a_file_that_is_no_rollup() -> None:
    with pytest.raises(ValueError, match="smaps_rollup"):
        procfs.parse_rollup("Rss: 5 kB\n")


def test_descendants_of_one_process_only() -> None:
    parents = {2: 1, 3: 1, 10: 2, 11: 2, 12: 10, 20: 3}
    assert procfs.descendants(2, parents) == [2, 10, 11, 12]


def test_this_process_is_measurable() -> None:
    own = os.getpid()
    before = procfs.cpu_ns(own)
    assert before > 0
    assert procfs.total_cpu_ns([own, own]) >= 2 * before
    assert procfs.memory(own).rss >= procfs.memory(own).pss > 0
    assert procfs.open_files(own) > 0
    assert procfs.command_line(own)


def test_threads_that_have_ended_count() -> None:
    """A server with a thread for each connection would come out free of cost otherwise."""

    def work() -> None:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    before = procfs.cpu_ns(os.getpid())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert procfs.cpu_ns(os.getpid()) - before >= 100_000_000


def test_busy_time_of_the_machine() -> None:
    """In ticks, without waiting and idling; and it grows while this process works."""
    assert procfs.parse_busy("cpu  10 1 5 900 70 2 3 4 0 0\ncpu0 1 1 1 1") == 25
    with pytest.raises(ValueError, match="stat"):
        procfs.parse_busy("intr 1 2 3")
    assert procfs.machine_cpu_seconds() > 0


def test_a_child_is_in_the_tree_and_its_end_is_told() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.pid in procfs.process_tree(os.getpid())
        child.communicate(b"\n")
    for measure in (procfs.cpu_ns, procfs.process_tree, procfs.memory, procfs.open_files):
        with pytest.raises(procfs.ProcessGoneError, match=str(child.pid)):
            measure(child.pid)
    assert procfs.command_line(child.pid) == []
