"""An event loop that a test turns by hand: just enough of one for the poller."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any, cast


class HandTurnedLoop:
    """Keeps readers and callbacks; `turn` runs what is due once."""

    def __init__(self) -> None:
        self._readers: dict[int, Callable[[], None]] = {}
        self._soon: list[Callable[[], None]] = []

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """As an event loop's."""
        self._readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        """As an event loop's."""
        del self._readers[fd]

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """As an event loop's."""
        self._soon.append(lambda: callback(*arguments))

    @property
    def as_loop(self) -> asyncio.AbstractEventLoop:
        """For what asks for a real one."""
        return cast("asyncio.AbstractEventLoop", self)

    def turn(self) -> bool:
        """One turn; whether anything was due."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        ready, _, _ = select.select(list(self._readers), [], [], 0)
        for fd in ready:
            self._readers[fd]()
        return bool(soon or ready)

    def run(self, turns_most: int = 100) -> int:
        """Turn until nothing is due; returns how many turns it took."""
        for turns in range(turns_most):
            if not self.turn():
                return turns
        raise AssertionError(f"still busy after {turns_most} turns: it spins")
