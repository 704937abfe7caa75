"""Who waits for what, and how long at most."""

from __future__ import annotations

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

    def stop(self, waiting: Waiting) -> None:
        """It waits no longer."""
        self._waiting.pop(waiting, None)

    def expire(self, now: float) -> None:
        """Tell those whose time is over; call it a few times a second."""
        due = []
        for waiting, deadline in self._waiting.items():
            if deadline > now:
                break
            due.append(waiting)
        for waiting in due:
            if self._waiting.pop(waiting, None) is not None:  # an earlier one may have ended it
                waiting.timed_out(self)
