"""Finds relays in which nothing has moved for too long, without a timer or a note per byte.

Four times in `idle_timeout` a relay is asked whether its byte counts changed. So a connection
ends after `idle_timeout` of silence at the earliest, and at most a quarter of that later.
"""

from __future__ import annotations

from typing import Protocol

_LOOKS = 4


class Watched(Protocol):
    """What is watched."""

    def moved(self) -> bool:
        """Whether a byte has moved since this was asked before."""

    def idle_timed_out(self) -> None:
        """Nothing has moved for too long."""


class IdleWatch:
    """The established connections of a listener, by when to look at them next. Pure."""

    def __init__(self, timeout: float) -> None:
        """`timeout` in seconds; 0 watches nothing."""
        self._step = timeout / _LOOKS
        # Each deadline is a constant after now, so the oldest come first.
        self._looks: dict[Watched, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._looks)

    def add(self, connection: Watched, now: float) -> None:
        """Watch it from now on."""
        if self._step:
            connection.moved()  # what has moved until now is no sign of life later
            self._looks.pop(connection, None)
            self._looks[connection] = (now + self._step, 0)

    def remove(self, connection: Watched) -> None:
        """It has ended, or another limit takes over."""
        self._looks.pop(connection, None)

    def expire(self, now: float) -> None:
        """Look at those whose time has come; call it a few times a second."""
        due: list[Watched] = []
        for connection, (at, _silent) in self._looks.items():
            if at > now:
                break
            due.append(connection)
        for connection in due:
            _, silent = self._looks.pop(connection)
            silent = 0 if connection.moved() else silent + 1
            if silent == _LOOKS:
                connection.idle_timed_out()
            else:
                self._looks[connection] = (now + self._step, silent)
