"""Who is told that the time is over, and when: in simulated time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.http.body import Body
from offload.http.exchange import Exchange
from offload.http.head import parse_request
from offload.http.proxy import HttpSession
from offload.http.requests import Requests
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


BODY = 1000
"""Bytes of a request's."""


def session_at(monkeypatch: pytest.MonkeyPatch, now: float) -> Any:
    """One with a request at hand whose client began to take, and to send, at 0, and has 60 s for either."""
    session: Any = object.__new__(HttpSession)
    head = parse_request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY, 10, None)
    session.exchange = Exchange(head, 0.0, 0)
    session.closing = session.closed = False
    session.route = SimpleNamespace(response=PacedLimit(60.0, 240), body=PacedLimit(60.0, 240))
    session.client = SimpleNamespace(pending=None, rest=b"")
    session.upstream = SimpleNamespace(pending=None, resume=lambda: None)
    session.listener = SimpleNamespace(buffers=SimpleNamespace(up_view=memoryview(bytes(BODY))))
    session.requests = Requests(session)
    session.requests._body = Body(BODY)
    session._limit = None
    for module in ("proxy", "requests"):
        monkeypatch.setattr(f"offload.http.{module}.monotonic", lambda: now)
    return session


def left(session: Any, now: float) -> float:
    """Seconds that whoever is waited for has."""
    return float(session._limit._waiting[session] - now)


def test_a_server_has_all_of_its_time_after_a_slow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client left of its own when it had taken all that there was."""
    session = session_at(monkeypatch, 55.0)
    session.wait(session.route.response, 0.0)
    session.client_took_some(240)
    assert left(session, 55.0) == 6.0
    session.client_took_all()
    assert left(session, 55.0) == 60.0


@pytest.mark.parametrize(("takes_it", "seconds"), [(True, 6.0), (False, 60.0)])
def test_a_server_has_all_of_its_time_for_a_body(
    monkeypatch: pytest.MonkeyPatch, takes_it: bool, seconds: float
) -> None:
    """If it does not take what a slow client sent; if it does, it is the client's turn again."""
    session = session_at(monkeypatch, 55.0)

    def send(data: memoryview) -> bool:
        session.upstream.pending = None if takes_it else data
        return takes_it

    session.upstream.send = send
    session.wait(session.route.body, 0.0)
    session.requests.received(240)
    assert left(session, 55.0) == seconds
