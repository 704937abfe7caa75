"""How many requests a node should have in flight: learned from its latency.

A request more than a node can work on waits in the node, where it can neither go to another node
nor make way for one with an earlier deadline. So the limit grows while the answers are about as
quick as the quickest known, and shrinks when they are not (as TCP Vegas does). It is judged once
a round by the round's quickest answer, so that a pause somewhere is not taken for a queue; and a
wait of some milliseconds in the node is allowed, since it costs nobody anything and keeps a fast
node busy. A node that stays slow with the fewest in flight has become slower: that is no queue.
"""

from __future__ import annotations

LEAST = 8
"""Never fewer in flight: enough for a device to be busy while answers travel."""
FIRST = 32
ROUND_TIME, ROUND_LEAST = 0.1, 8
"""A round ends after as many answers as the limit, or after 100 ms and 8 answers."""
GROW_BELOW, GROW_SLACK = 1.5, 0.005
"""Grows while a round's quickest answer took less than 1.5 × the base and 5 ms …"""
SHRINK_ABOVE, SHRINK_SLACK = 2.0, 0.010
"""… and shrinks when it took more than 2 × the base and 10 ms."""
BASE_WINDOW = 10.0
"""Seconds after which the quickest latency is looked for anew (devices change), at least."""
SLOW_ROUNDS = 3
"""So many rounds with the fewest in flight and still too slow, and it is looked for anew at once."""


class ConcurrencyLimit:
    """The limit of one node, adapted to its latency, never above the operator's `ceiling`."""

    __slots__ = (
        "_base",
        "_base_before",
        "_ceiling",
        "_quickest",
        "_round_end",
        "_seen",
        "_slow_rounds",
        "_window_end",
        "value",
    )

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self.value = min(FIRST, ceiling)
        """Requests that may be in flight."""
        self._base = self._base_before = float("inf")
        self._quickest = float("inf")
        self._seen = self._slow_rounds = 0
        self._round_end = self._window_end = 0.0

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self.value} of {self._ceiling}>"

    def set_ceiling(self, ceiling: int) -> None:
        """The operator's wish, or what a link takes."""
        self._ceiling = ceiling
        self.value = self._bounded(self.value)

    def observe(self, seconds: float, in_flight: int, now: float) -> None:
        """An answer came after `seconds`, with `in_flight` requests left at the node."""
        if seconds < self._quickest:
            self._quickest = seconds
            self._base = min(self._base, seconds)
        self._seen += 1
        if self._seen >= self.value or (now >= self._round_end and self._seen >= ROUND_LEAST):
            self._end_round(in_flight, now)

    def _end_round(self, in_flight: int, now: float) -> None:
        self._round_end = now + ROUND_TIME
        quickest, self._quickest, self._seen = self._quickest, float("inf"), 0
        if in_flight > self.value:  # sent before the limit shrank: tells nothing of it
            return
        base = min(self._base, self._base_before)
        if now >= self._window_end:
            saturated = self._window_end > 0 and in_flight * 2 >= self.value
            self._window_end = now + BASE_WINDOW
            self._base_before, self._base = self._base, quickest
            if saturated:
                # The node was never idle. By Little's law this keeps it half busy, so that its base is seen again.
                self.value = self._bounded(int(self.value * base / quickest / 2))
                return
        is_slow = quickest > base * SHRINK_ABOVE + SHRINK_SLACK
        self._slow_rounds = self._slow_rounds + 1 if is_slow and self.value <= LEAST else 0
        if self._slow_rounds == SLOW_ROUNDS:
            self._base = self._base_before = quickest
        elif is_slow:
            wanted = base * (GROW_BELOW + SHRINK_ABOVE) / 2 + (GROW_SLACK + SHRINK_SLACK) / 2
            self.value = self._bounded(int(self.value * wanted / quickest))
        elif quickest < base * GROW_BELOW + GROW_SLACK and in_flight * 2 >= self.value:
            self.value = self._bounded(self.value + max(4, self.value // 4))

    def _bounded(self, value: int) -> int:
        return min(max(value, LEAST), self._ceiling)
