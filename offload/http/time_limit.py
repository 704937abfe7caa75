"""Who waits for what, and how long at most."""

from __future__ import annotations

from itertools import takewhile
from typing import Protocol


class Waiting(Protocol):
    """Something that may take only so long."""

    def timed_out(self, limit: TimeLimit) -> None:
        """The time is over; `limit` has forgotten it."""


class TimeLimit:
    """A number of seconds, and who has that much time, by when it is over: the oldest come first."""

    __slots__ = ("_waiting", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[Waiting, float] = {}

    def start(self, waiting: Waiting, now: float) -> None:
        """Its time begins now, also if it had begun before."""
        self._waiting.pop(waiting, None)
        self._waiting[waiting] = now + self.seconds

    def moved(self, waiting: Waiting, size: int, now: float) -> None:  # noqa: ARG002 (others look at it)
        """So many bytes have come of what it waits for."""
        self.start(waiting, now)

    def stop(self, waiting: Waiting) -> None:
        """It waits no longer."""
        self._waiting.pop(waiting, None)

    def expire(self, now: float) -> None:
        """Tell those whose time is over; call it a few times a second."""
        for waiting in self._overdue(now):
            if self._waiting.pop(waiting, None) is not None:  # an earlier one may have ended it
                waiting.timed_out(self)

    def _overdue(self, now: float) -> list[Waiting]:
        return [waiting for waiting, _ in takewhile(lambda item: item[1] <= now, self._waiting.items())]


class PacedLimit(TimeLimit):
    """One whose time does not begin anew with every byte, so that nobody can last for ever with a few.

    A byte is worth 1 / `lowest_rate` seconds, and nobody ever has more than `seconds` left.
    """

    __slots__ = ("_lowest_rate",)

    def __init__(self, seconds: float, lowest_rate: int) -> None:
        """`lowest_rate` in bytes a second."""
        super().__init__(seconds)
        self._lowest_rate = lowest_rate

    def moved(self, waiting: Waiting, size: int, now: float) -> None:
        """See `TimeLimit.moved`."""
        deadline = self._waiting.pop(waiting, now) + size / self._lowest_rate
        self._waiting[waiting] = min(deadline, now + self.seconds)

    def _overdue(self, now: float) -> list[Waiting]:
        """They are in no order."""
        return [waiting for waiting, deadline in self._waiting.items() if deadline <= now]
