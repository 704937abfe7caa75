"""Watches how much memory processes take while they are loaded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Self

from loadtest import procfs

INTERVAL = 0.25


class Growth:
    """Samples the resident memory of processes in a thread, while its context lasts."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._before = {pid: procfs.memory(pid).rss for pid in pids}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0
        """By how much the one that grew most has grown, at its peak."""

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            for pid, before in self._before.items():
                try:
                    self.bytes = max(self.bytes, procfs.memory(pid).rss - before)
                except procfs.ProcessGoneError:
                    continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()
