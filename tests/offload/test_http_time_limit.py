"""Who is told that the time is over, and when: in simulated time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from offload.http.time_limit import PacedLimit, TimeLimit

TICK = 0.25
"""Seconds between two looks."""


class Peer:
    """Somebody who may take only so long."""

    def __init__(self) -> None:
        self.over = False

    def timed_out(self, _limit: TimeLimit) -> None:
        """See `offload.http.time_limit.Waiting`."""
        assert not self.over
        self.over = True


def lasts(limit: TimeLimit, moves: list[tuple[float, int]]) -> float:
    """How long a peer lasts that moves so many bytes after each pause, then nothing; the pauses are multiples of TICK."""
    peer, now, last = Peer(), 0.0, 0.0
    due = []
    for pause, size in moves:
        last += pause
        due.append((last, size))
    limit.start(peer, now)
    while not peer.over:
        now += TICK
        limit.expire(now)
        while due and due[0][0] <= now and not peer.over:
            limit.moved(peer, due.pop(0)[1], now)
    return now


PAUSES = st.integers(1, 200).map(lambda ticks: ticks * TICK)
MOVES = st.lists(st.tuples(PAUSES, st.integers(0, 20_000)), max_size=30)


def test_silence() -> None:
    """Any byte starts it anew; without one it runs out."""
    assert lasts(TimeLimit(30.0), []) == 30.0
    assert lasts(TimeLimit(30.0), [(29.0, 1)] * 100) == 29.0 * 100 + 30.0
    assert lasts(PacedLimit(30.0, 240), []) == 30.0


def test_a_trickle_is_cut() -> None:
    """One byte at a time, just in time, gets nobody further than silence."""
    assert lasts(PacedLimit(30.0, 240), [(29.0, 1)] * 100) == 30.25
    assert lasts(PacedLimit(30.0, 240), [(1.0, 1)] * 100) == 30.25
    assert lasts(PacedLimit(30.0, 240), [(1.0, 120)] * 100) == 59.0


def test_what_was_fast_may_pause_as_long_as_anybody() -> None:
    """But no longer, however much it has sent."""
    assert lasts(PacedLimit(30.0, 240), [(1.0, 10**9), (29.0, 10**9)]) == 60.0


@given(MOVES)
def test_nobody_lasts_longer_than_their_bytes_are_worth(moves: list[tuple[float, int]]) -> None:
    """Nor longer than by the silence alone."""
    paced = lasts(PacedLimit(30.0, 240), moves)
    assert paced <= 30.0 + sum(size for _, size in moves) / 240 + TICK
    assert paced <= lasts(TimeLimit(30.0), moves)


@given(st.lists(PAUSES.filter(lambda pause: pause < 30.0), max_size=30))
def test_nobody_at_the_lowest_rate_is_cut(pauses: list[float]) -> None:
    """However unevenly it moves, as long as it is never silent for too long."""
    moves = [(pause, int(pause * 240)) for pause in pauses]
    assert lasts(PacedLimit(30.0, 240), moves) == sum(pauses) + 30.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2000), PAUSES), max_size=40))
def test_one_peer_does_not_hide_another(moves: list[tuple[int, int, float]]) -> None:
    """Each is told in time, whoever has moved since."""
    limit, peers, now = PacedLimit(30.0, 240), [Peer() for _ in range(5)], 0.0
    deadlines = [30.0] * 5
    for peer in peers:
        limit.start(peer, now)
    for index, size, pause in moves:
        now += pause
        limit.expire(now)
        assert [peer.over for peer in peers] == [deadline <= now for deadline in deadlines]
        if not peers[index].over:
            limit.moved(peers[index], size, now)
            deadlines[index] = min(deadlines[index] + size / 240, now + 30.0)


def test_one_that_ends_another() -> None:
    """Whoever is told may end others, who are not told then."""
    limit = TimeLimit(1.0)

    class Ending(Peer):
        def timed_out(self, _limit: TimeLimit) -> None:
            limit.stop(other)

    other = Peer()
    limit.start(Ending(), 0.0)
    limit.start(other, 0.0)
    limit.expire(2.0)
    assert not other.over
