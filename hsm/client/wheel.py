"""A timer wheel: who is to be looked at when, in slots of some milliseconds."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class TimerWheel(Generic[T]):
    """Adding and removing cost the same however many there are; one timer drives it all.

    Times are seconds of any clock; what is due is told up to one slot late, never early.
    """

    def __init__(self, slot: float, now: float) -> None:
        """`slot` is the length of one slot in seconds."""
        self._slot = slot
        self._slots: dict[int, dict[T, None]] = {}
        self._next = int(now / slot)

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, item: T, at: float) -> int:
        """`item` is due at `at`; returns its slot, for `remove`."""
        index = int(at / self._slot) + 1
        index = max(index, self._next)
        items = self._slots.get(index)
        if items is None:
            self._slots[index] = {item: None}
        else:
            items[item] = None
        return index

    def remove(self, item: T, index: int) -> None:
        """Nobody needs to look at it any more. Harmless when it was due already."""
        items = self._slots.get(index)
        if items is not None:
            items.pop(item, None)
            if not items:
                del self._slots[index]

    def due(self, now: float) -> list[T]:
        """Take out all whose time has come, the earliest slots first."""
        last = int(now / self._slot)
        if last < self._next:
            return []
        if last - self._next > len(self._slots):  # a long pause: few slots, many numbers
            indexes = sorted(index for index in self._slots if index <= last)
        else:
            indexes = [index for index in range(self._next, last + 1) if index in self._slots]
        self._next = last + 1
        return [item for index in indexes for item in self._slots.pop(index)]
