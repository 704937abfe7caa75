"""How many sessions a token node should have; pure.

More sessions help while signatures wait for the device. They do harm where the module itself computes
(SoftHSM): threads beyond the cores only fight for them and for the interpreter's lock.
"""

from __future__ import annotations

from collections import deque

FIRST = 2
"""Sessions that are open from the start and never given back."""
AUTO_MOST = 64
"""Upper limit with `sessions: auto`: 12,800 signatures a second at 5 ms each."""
_COMPUTES = 0.5
_SAMPLES = 32


def session_limit(configured: int | None, token_most: int | None) -> int:
    """Signing sessions at most: the setting (None is auto), and what the token allows but for one.

    One session is the login's own. A token that allows a single one has to do with that.
    """
    limit = configured if configured is not None else AUTO_MOST
    return max(1, limit if token_most is None else min(limit, token_most - 1))


class Workload:
    """Samples of (wall, CPU) seconds of signing calls: does the module wait, or compute?"""

    def __init__(self) -> None:
        self._shares: deque[float] = deque(maxlen=_SAMPLES)

    def add(self, wall: float, cpu: float) -> None:
        """One call."""
        self._shares.append(cpu / wall if wall > 0 else 1.0)

    @property
    def computes(self) -> bool:
        """Whether the module uses this machine's CPU.

        The highest share counts: on a busy machine most calls also wait for a core.
        """
        return max(self._shares, default=0.0) >= _COMPUTES


def sessions_to_open(
    *, waiting: int, sessions: int, opening: int, limit: int, computes: bool, cores: int
) -> int:
    """How many to open now: up to as many again while signatures wait, never beyond the limit."""
    most = min(limit, max(FIRST, cores)) if computes else limit
    if waiting == 0 or opening:
        return 0
    return max(0, min(waiting, max(1, sessions), most - sessions))
