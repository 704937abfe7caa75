"""The requests that wait for a node with room: earliest deadline first, each key in a line of its own."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Line = tuple[bytes, int]
"""What a node must be able to do for the requests of a line: SKI and opcode."""


class DeadlineQueue(Generic[T]):
    """A bounded queue. Keys wait apart, so that one whose nodes are gone holds up no other."""

    def __init__(self) -> None:
        self._lines: dict[Line, list[tuple[float, int, T]]] = {}
        self.count = 0
        """How many wait. An attribute, for it is looked at several times on each request's way."""
        self._serial = 0

    @property
    def lines(self) -> list[Line]:
        """The lines in which somebody waits."""
        return list(self._lines)

    def add(self, line: Line, deadline: float, item: T) -> tuple[float, int]:
        """Wait in line; returns the place, for `remove`. Equal deadlines: first come, first served."""
        self._serial += 1
        place = (deadline, self._serial)
        insort(self._lines.setdefault(line, []), (*place, item))
        self.count += 1
        return place

    def remove(self, line: Line, place: tuple[float, int]) -> None:
        """Leave the line. Harmless for one who left already."""
        waiting = self._lines.get(line, [])
        index = bisect_left(waiting, place)
        if index < len(waiting) and waiting[index][:2] == place:
            self._take(line, index)

    def ahead(self, line: Line, deadline: float) -> int:
        """How many of a line are served before a newcomer with this deadline."""
        return bisect_left(self._lines.get(line, []), (deadline, self._serial + 1))

    def of(self, line: Line) -> list[T]:
        """Who waits in a line, earliest deadline first."""
        return [item for _, _, item in self._lines.get(line, ())]

    def pop(self, can_be_served: Callable[[Line], bool]) -> T | None:
        """Take the earliest of all whose line can be served now."""
        best: Line | None = None
        for line, waiting in self._lines.items():
            if (best is None or waiting[0][:2] < self._lines[best][0][:2]) and can_be_served(line):
                best = line
        return self._take(best, 0) if best is not None else None

    def _take(self, line: Line, index: int) -> T:
        waiting = self._lines[line]
        item = waiting.pop(index)[2]
        if not waiting:
            del self._lines[line]
        self.count -= 1
        return item
