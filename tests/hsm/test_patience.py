"""When a second node is asked: only the first one's silence, or being overtaken there, is a reason."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hsm.client.patience import GIVE_UP_LEAST, LEAST, STRAGGLER_FACTOR, UNKNOWN, Patience, hedge_at

TIMES = st.floats(0, 100)
USUAL = st.floats(LEAST, 5)


@given(sent=TIMES, answered_at=TIMES, newest=TIMES, usual=USUAL)
def test_never_before_it_takes_longer_than_usual(
    sent: float, answered_at: float, newest: float, usual: float
) -> None:
    """Whatever else its node did: a usual signature is asked for once."""
    assert hedge_at(sent, answered_at, newest, usual) >= sent + usual


@given(answers=st.lists(st.floats(0, 0.9), min_size=1, max_size=50), usual=USUAL)
def test_a_node_that_works_off_a_queue_is_left_alone(answers: list[float], usual: float) -> None:
    """A request behind others waits as long as those are answered, one within each usual time."""
    now = 0.0
    for share in answers:
        now += share * usual
        assert hedge_at(0.0, now, -1.0, usual) > now


@given(overtaken_at=st.floats(0.1, 10), usual=USUAL)
def test_a_request_that_is_overtaken_is_stuck_after_twice_the_time(overtaken_at: float, usual: float) -> None:
    """However busy its node is with others; before that it is only a little slower than they."""
    due = hedge_at(0.0, overtaken_at, 0.05, usual)
    assert due == min(overtaken_at + usual, STRAGGLER_FACTOR * usual)


def test_each_scheme_has_its_own_usual_time() -> None:
    """An RSA signature that takes longer than those of another key is not slow for that."""
    patience = Patience()
    assert patience.usual(1) == UNKNOWN
    for _ in range(200):
        patience.observe(1, 0.002)
        patience.observe(2, 0.2)
    assert patience.usual(1) == LEAST
    assert 0.2 <= patience.usual(2) <= 0.22
    assert patience.most(1) == GIVE_UP_LEAST
    assert 1.0 <= patience.most(2) <= 1.1
