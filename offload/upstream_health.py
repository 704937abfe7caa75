"""Whether a server is fit to get connections: state machines; `now` is an argument (seconds).

Two observers. Each worker sees its own attempts to connect (`ConnectHealth`); the supervisor asks
the server from time to time, if that is configured (`CheckHealth`).
"""

from __future__ import annotations

FAIL_WINDOW = 30.0
"""Failures further apart than this, first to last, do not belong together."""
OUT_FIRST, OUT_MOST = 1.0, 60.0
"""Seconds that a server is left out: doubled from the first to the most while it goes on failing."""
FIRST_SHARE = 0.1
"""What a server gets of its share at the beginning of a slow start."""


class ConnectHealth:
    """A server is out after `max_fails` failed attempts in a row, for longer each time.

    When its time is over it gets one attempt, on which it depends whether it is back.
    """

    __slots__ = (
        "_failures", "_first_failure", "_out_for", "_trying", "max_fails", "out", "out_until", "since", "why",
    )  # fmt: skip

    def __init__(self, max_fails: int, now: float) -> None:
        """With 0 `max_fails` it is never out."""
        self.max_fails = max_fails
        self.reset(now)

    def __repr__(self) -> str:
        return f"<ConnectHealth {f'out until {self.out_until:.1f}: {self.why}' if self.out else 'in'}>"

    def reset(self, now: float) -> None:
        """Forget all failures: it is in."""
        self.out = self._trying = False
        self.since = now
        """When `out` last changed."""
        self.out_until = self._out_for = self._first_failure = 0.0
        self._failures = 0
        self.why = ""
        """Why the last attempt failed."""

    def takes(self, now: float) -> bool:
        """Whether an attempt may be made: it is in, or it is time to see whether it is back."""
        return not self.out or (now >= self.out_until and not self._trying)

    def started(self) -> None:
        """An attempt begins."""
        self._trying = self.out

    def abandoned(self) -> None:
        """An attempt ended without telling anything of the server."""
        self._trying = False

    def succeeded(self, now: float) -> bool:
        """An attempt succeeded; whether that brought it back."""
        was_out = self.out
        if was_out:
            self.reset(now)
        self._failures = 0
        return was_out

    def failed(self, why: str, now: float) -> bool:
        """An attempt failed; whether that put it out."""
        self._trying = False
        self.why = why
        if self.out:
            if now >= self.out_until:  # others began before it went out, and tell nothing new
                self._leave_out(now)
            return False
        if now - self._first_failure > FAIL_WINDOW:
            self._failures = 0
        if not self._failures:
            self._first_failure = now
        self._failures += 1
        if not self.max_fails or self._failures < self.max_fails:
            return False
        self.out, self.since = True, now
        self._leave_out(now)
        return True

    def _leave_out(self, now: float) -> None:
        self._out_for = min(self._out_for * 2 or OUT_FIRST, OUT_MOST)
        self.out_until = now + self._out_for


class CheckHealth:
    """A server is down after `fall` bad checks in a row, up after `rise` good ones; at first it is up.

    The first check of all decides alone.
    """

    __slots__ = ("_fall", "_rise", "_streak", "_unknown", "since", "up", "why")

    def __init__(self, rise: int, fall: int, now: float) -> None:
        self._rise, self._fall = rise, fall
        self._streak = 0
        self._unknown = True
        self.up = True
        self.since = now
        """When `up` last changed."""
        self.why = ""
        """What was wrong at the last check."""

    def __repr__(self) -> str:
        return f"<CheckHealth {'up' if self.up else f'down: {self.why}'}>"

    def observe(self, fault: str, now: float) -> bool:
        """A check's result, empty if it was good; whether that changed `up`."""
        good = not fault
        self.why = fault
        needed = 1 if self._unknown else self._rise if good else self._fall
        self._unknown = False
        self._streak = self._streak + 1 if good != self.up else 0
        if self._streak < needed:
            return False
        self.up, self.since, self._streak = good, now, 0
        return True


def slow_start_share(elapsed: float, slow_start: float) -> float:
    """The part of its share that a server gets `elapsed` seconds after it came back: up to 1."""
    if elapsed >= slow_start:
        return 1.0
    return max(FIRST_SHARE, elapsed / slow_start)
