"""What is thought of a node: a state machine fed with events; no I/O and no clock.

    healthy ──failures, silence, slowness──▶ suspect ──more of it──▶ ejected
       ▲                                       │                        │ time is up
       ├──────────good answers─────────────────┘                        ▼
       └──────────good test signatures────────────────────────────── probing
                                                                  (a bad one: ejected, for longer)

A suspect gets requests when no healthy node has room, an ejected or probing one when there is no
other at all. A node that signed wrongly is ejected at once. Ejecting needs leave (`may_eject`),
because a cause common to all nodes must not empty the cluster: without it a node stays suspect.

Whether a node is enabled is the operator's business, whether it is connected the link's: neither
is told here.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

SUSPECT_AFTER = 2
"""Failures in a row."""
EJECT_AFTER = 5
FAILING_SHARE, FAILING_LEAST = 0.15, 20
"""Or this share of failures among the last seconds' requests, when there were so many."""
WINDOW = 5.0
"""Seconds that a share is counted for, at least; at most twice as long."""
GOOD_ENOUGH = 3
"""Good answers in a row that end a suspicion or a probation."""
SILENT_AFTER, SILENT_FACTOR = 0.05, 8.0
"""To owe answers and give none for 50 ms and 8 × its mean latency makes a node suspect …"""
SILENT_EJECT = 2.0
"""… and for this long ejects it."""
SLOW_FACTOR, SLOW_SLACK = 3.0, 0.020
"""Slower than 3 × the median of the nodes and 20 ms is an outlier."""
EJECTION_FIRST, EJECTION_MOST = 1.0, 60.0
"""Seconds of ejection: doubled each time …"""
FORGIVEN_AFTER = 60.0
"""… and back to the first after so many healthy seconds."""
SUSPECT_TEST, PROBING_TEST, HEALTHY_TEST = 0.2, 0.2, 5.0
"""Seconds between test signatures; a healthy node that answers anyway gets none."""


class State(StrEnum):
    """What is thought of a node."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    EJECTED = "ejected"
    PROBING = "probing"


_HEALTHY = State.HEALTHY  # a plain name: looking it up in its class is slow, and every answer asks


def may_eject(ejected: int, total: int, max_ejected: float) -> bool:
    """Whether one more node may be ejected.

    `ejected` counts those that can't be used for any reason, `max_ejected` is a share of `total`.
    """
    return ejected + 1 <= total * max_ejected


def median(latencies: Iterable[float]) -> float:
    """The lower median of the known (non-zero) latencies; 0 without any."""
    known = sorted(latency for latency in latencies if latency)
    return known[(len(known) - 1) // 2] if known else 0.0


class NodeHealth:
    """One node's state. Each event returns whether it changed the state; `cause` says why."""

    __slots__ = (
        "_bad", "_bad_before", "_ejections", "_failures", "_good", "_good_before", "_good_row", "_test_at",
        "_until", "_window_end", "cause", "since", "state",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.state = State.HEALTHY
        self.since = now
        """When the state was entered, on the clock that the caller uses."""
        self.cause = ""
        self._failures = self._good_row = 0
        self._good = self._bad = self._good_before = self._bad_before = 0
        self._window_end = now + WINDOW
        self._ejections = 0
        self._until = 0.0
        self._test_at = now + HEALTHY_TEST

    def __repr__(self) -> str:
        return f"<NodeHealth {self.state}{f': {self.cause}' if self.cause else ''}>"

    @property
    def is_healthy(self) -> bool:
        """Nothing speaks against it."""
        return self.state is State.HEALTHY

    @property
    def is_ejected(self) -> bool:
        """It is to get nothing while any other node can."""
        return self.state is State.EJECTED or self.state is State.PROBING

    # -- events ---------------------------------------------------------------------------

    def succeeded(self, now: float, *, test: bool = False) -> bool:
        """It answered well. Only test signatures end an ejection."""
        self._good += 1
        self._failures = 0
        if self.state is _HEALTHY:
            self._test_at = now + HEALTHY_TEST
            return False
        self._test_at = now + self._test_interval()
        if self.state is State.EJECTED or (self.state is State.PROBING and not test):
            return False
        self._good_row += 1
        if self._good_row < GOOD_ENOUGH or self.cause == "slow":
            return False
        return self._enter(State.HEALTHY, "", now)

    def failed(self, cause: str, now: float, *, may_eject: bool) -> bool:
        """It answered with an error, lost its link, or did not answer in time."""
        self._bad += 1
        self._failures += 1
        self._good_row = 0
        if self.state is State.EJECTED:
            return False
        if self.state is State.PROBING:
            return self._eject(cause, now)
        if self._failures >= EJECT_AFTER or self._is_failing():
            if may_eject:
                return self._eject(cause, now)
            return self.state is State.HEALTHY and self._enter(State.SUSPECT, cause, now)
        if self.state is State.HEALTHY and self._failures >= SUSPECT_AFTER:
            return self._enter(State.SUSPECT, cause, now)
        return False

    def signed_wrongly(self, now: float, *, may_eject: bool) -> bool:
        """Its signature does not verify: a fault or an attack, either way not to be trusted."""
        self._bad += 1
        self._good_row = 0
        if self.state is State.EJECTED:
            return False
        if may_eject or self.state is State.PROBING:
            return self._eject("bad_signature", now)
        return self.cause != "bad_signature" and self._enter(State.SUSPECT, "bad_signature", now)

    def is_silent(self, age: float, mean: float) -> bool:
        """Whether it says something about the node that it owes an answer and gives none for `age` seconds."""
        return age > SILENT_AFTER and age > SILENT_FACTOR * mean

    def silent(self, age: float, now: float, *, may_eject: bool) -> bool:
        """It owes an answer and has given none for `age` seconds, which `is_silent` finds too long."""
        self._good_row = 0
        if self.state is State.PROBING:
            return min(age, now - self.since) > SILENT_EJECT and self._eject("silent", now)
        if age > SILENT_EJECT and may_eject and self.state is not State.EJECTED:
            return self._eject("silent", now)
        return self.state is State.HEALTHY and self._enter(State.SUSPECT, "silent", now)

    def compared(self, mean: float, typical: float, now: float) -> bool:
        """Its mean latency beside the cluster's median: an outlier is suspect until it is none."""
        outlier = bool(typical) and mean > typical * SLOW_FACTOR + SLOW_SLACK
        if outlier and self.state is State.HEALTHY:
            return self._enter(State.SUSPECT, "slow", now)
        if not outlier and self.state is State.SUSPECT and self.cause == "slow":
            return self._enter(State.HEALTHY, "", now)
        return False

    def tick(self, now: float) -> bool:
        """Time went by: an ejection may be over, old failures may be forgotten."""
        if now >= self._window_end:
            self._window_end = now + WINDOW
            self._good_before, self._bad_before = self._good, self._bad
            self._good = self._bad = 0
        if self.state is State.HEALTHY and now - self.since > FORGIVEN_AFTER:
            self._ejections = 0
        if self.state is State.EJECTED and now >= self._until:
            return self._enter(State.PROBING, self.cause, now)
        return False

    # -- tests ----------------------------------------------------------------------------

    def test_is_due(self, now: float) -> bool:
        """Whether a test signature is to be asked for now; if so, the next one is due later."""
        if now < self._test_at or self.state is State.EJECTED:
            return False
        self._test_at = now + self._test_interval()
        return True

    def _test_interval(self) -> float:
        if self.state is State.HEALTHY:
            return HEALTHY_TEST
        return SUSPECT_TEST if self.state is State.SUSPECT else PROBING_TEST

    # -- transitions ----------------------------------------------------------------------

    def _is_failing(self) -> bool:
        bad = self._bad + self._bad_before
        total = bad + self._good + self._good_before
        return total >= FAILING_LEAST and bad >= total * FAILING_SHARE

    def _eject(self, cause: str, now: float) -> bool:
        self._until = now + min(EJECTION_FIRST * 2**self._ejections, EJECTION_MOST)
        self._ejections = min(self._ejections + 1, 16)
        return self._enter(State.EJECTED, cause, now)

    def _enter(self, state: State, cause: str, now: float) -> bool:
        self.state, self.cause, self.since = state, cause, now
        self._failures = self._good_row = 0
        if state is State.HEALTHY or state is State.EJECTED:
            self._good = self._bad = self._good_before = self._bad_before = 0
        self._test_at = now + self._test_interval()
        return True
