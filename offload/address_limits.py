"""What one client address may take up: open connections, and new ones in a second. Pure.

Every worker counts for itself, and the kernel spreads a client's connections over the workers
by chance. `share` makes a worker's part large enough that a client below the limit is hardly
ever refused; the price is that one above it may get somewhat more.
"""

from __future__ import annotations

from math import ceil, sqrt

from offload.config import LimitSettings
from offload.networks import Networks, client_of

CLIENTS_MOST = 65_536
"""Clients whose rate is remembered, about 10 MB; beyond, the one not seen for longest is forgotten."""
_DEVIATIONS = 3.0
"""Of a binomial distribution: all but one in a thousand stay below."""

TOO_MANY, TOO_FAST = "address_connections", "address_rate"
"""Why a client is refused."""


def share(limit: int, workers: int) -> int:
    """The part of one of `workers` in a limit, with room for chance; never above the limit.

    All workers together let through `limit + 3 * sqrt(limit * (workers - 1))` at most.
    """
    spread = _DEVIATIONS * sqrt(limit * (workers - 1)) / workers
    return min(limit, ceil(limit / workers + spread))


class AddressLimits:
    """Counts connections by client, for one of `workers`."""

    def __init__(self, settings: LimitSettings, workers: int) -> None:
        most, rate = settings.max_connections_per_address, settings.handshakes_per_second_per_address
        burst = share(settings.handshake_burst_per_address, workers)
        self.active = most is not None or rate is not None
        """Whether any limit is on: otherwise nothing needs to be asked or told."""
        self._most = None if most is None else share(most, workers)
        self._interval = None if rate is None else workers / rate
        self._credit = 0.0 if self._interval is None else (burst - 1) * self._interval
        self._exempt = Networks(settings.exempt)
        self._open: dict[str, int] = {}
        self._holders: dict[object, str] = {}
        # When a client's connections so far would all have come at the permitted rate (the
        # generic cell rate algorithm, ITU-T I.371): a token bucket in one number.
        self._due: dict[str, float] = {}

    def refusal(self, host: str, now: float) -> str:
        """Why a new connection from this address is refused; empty if it is not."""
        client = client_of(host)
        if self._most is not None and self._open.get(client, 0) >= self._most:
            return "" if self._exempt.contain(host) else TOO_MANY
        if self._interval is not None and not self._take(client, now, self._interval):
            return "" if self._exempt.contain(host) else TOO_FAST
        return ""

    def _take(self, client: str, now: float, interval: float) -> bool:
        table = self._due
        due = max(table.pop(client, now), now)
        allowed = due - now <= self._credit
        table[client] = due + interval if allowed else due  # last in the table: seen last
        if len(table) > CLIENTS_MOST:
            del table[next(iter(table))]
        return allowed

    def hold(self, holder: object, host: str) -> None:
        """A connection from this address is open until `release`."""
        client = self._holders[holder] = client_of(host)
        self._open[client] = self._open.get(client, 0) + 1

    def release(self, holder: object) -> None:
        """It is over; nothing happens for one that never held."""
        client = self._holders.pop(holder, None)
        if client is not None:
            left = self._open[client] - 1
            if left:
                self._open[client] = left
            else:
                del self._open[client]
