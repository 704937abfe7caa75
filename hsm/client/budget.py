"""A budget for extra work (retries, hedges): a share of the requests, so that it can't run away."""

from __future__ import annotations


class Budget:
    """A token bucket filled by requests and by time, of which it is told when something is to be spent.

    Over any time the number spent is at most `share` × requests + `per_second` × seconds + `burst`.
    """

    __slots__ = ("_balance", "_burst", "_filled_at", "_per_second", "_requests", "_share")

    def __init__(self, share: float, per_second: float, burst: float, now: float, requests: int) -> None:
        """`per_second` lets an almost idle client spend something too; `requests` were made so far."""
        self._share = share
        self._per_second = per_second
        self._burst = burst
        self._balance = burst
        self._filled_at = now
        self._requests = requests

    def __repr__(self) -> str:
        return f"<Budget {self._balance:.1f} of {self._burst:g}>"

    def spend(self, now: float, requests: int) -> bool:
        """Take one unit; False, and nothing taken, if there is none. `requests` were made so far."""
        earned = (requests - self._requests) * self._share
        self._requests = requests
        if now > self._filled_at:
            earned += (now - self._filled_at) * self._per_second
            self._filled_at = now
        self._balance = min(self._burst, self._balance + earned)
        if self._balance < 1:
            return False
        self._balance -= 1
        return True
