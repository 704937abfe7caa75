"""When silence is too long, in simulated time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from offload.idleness import IdleWatch

TIMEOUT = 8.0


class Relayed:
    """A connection that moves a byte at given times."""

    def __init__(self) -> None:
        self.has_moved = True
        self.ended_at: float | None = None
        self.now = 0.0

    def moved(self) -> bool:
        moved, self.has_moved = self.has_moved, False
        return moved

    def idle_timed_out(self) -> None:
        self.ended_at = self.now


@given(st.lists(st.floats(0, 100), max_size=40).map(sorted))
def test_silence_ends_a_connection_neither_too_early_nor_too_late(moves: list[float]) -> None:
    """It ends between one and one and a quarter of the limit after the last byte before a long silence."""
    watch, relayed = IdleWatch(TIMEOUT), Relayed()
    watch.add(relayed, 0.0)
    last, tick = 0.0, 0.125
    while relayed.ended_at is None:
        relayed.now += tick
        for move in moves:
            if relayed.now - tick < move <= relayed.now:
                relayed.has_moved, last = True, move
        watch.expire(relayed.now)
    assert TIMEOUT <= relayed.ended_at - last <= TIMEOUT * 1.25 + 5 * tick
    assert len(watch) == 0


def test_off_and_removed() -> None:
    """A limit of 0 watches nothing; what has ended is not looked at."""
    off, watch = IdleWatch(0), IdleWatch(TIMEOUT)
    off.add(Relayed(), 0.0)
    assert len(off) == 0
    gone = Relayed()
    watch.add(gone, 0.0)
    watch.remove(gone)
    watch.remove(gone)
    watch.expire(1000.0)
    assert gone.ended_at is None
