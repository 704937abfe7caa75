"""When a server is left out, and when it comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.upstream_health import (
    FAIL_WINDOW,
    FIRST_SHARE,
    OUT_FIRST,
    OUT_MOST,
    CheckHealth,
    ConnectHealth,
    slow_start_share,
)


def put_out(health: ConnectHealth, now: float) -> None:
    """As many failures as it takes."""
    while not health.failed("refused", now):
        assert not health.out


def test_failures_in_a_row_put_it_out() -> None:
    """Not the second, but the third; a success in between starts the count anew."""
    health = ConnectHealth(3, 0.0)
    assert [health.failed("refused", now) for now in (1.0, 2.0)] == [False, False]
    assert not health.succeeded(3.0)
    assert [health.failed("refused", now) for now in (4.0, 5.0, 6.0)] == [False, False, True]
    assert health.out
    assert (health.since, health.why) == (6.0, "refused")


def test_failures_far_apart_do_not_belong_together() -> None:
    """Three in a day are no outage."""
    health = ConnectHealth(3, 0.0)
    assert not any(health.failed("timeout", n * (FAIL_WINDOW / 2 + 1)) for n in range(20))


def test_without_a_limit_it_is_never_out() -> None:
    """`max_fails: 0`."""
    health = ConnectHealth(0, 0.0)
    assert not any(health.failed("refused", 1.0) for _ in range(50))
    assert health.takes(1.0)


def test_one_attempt_decides_whether_it_is_back() -> None:
    """When its time is over, one connection tries it and no other, until that one knows."""
    health = ConnectHealth(1, 0.0)
    put_out(health, 0.0)
    assert not health.takes(OUT_FIRST - 0.01)
    assert health.takes(OUT_FIRST)
    health.started()
    assert not health.takes(OUT_FIRST + 5)
    assert health.succeeded(OUT_FIRST + 5)
    assert health.takes(OUT_FIRST + 5)
    assert health.since == OUT_FIRST + 5


def test_an_attempt_that_was_given_up_leaves_it_to_another() -> None:
    """The client left while its attempt was under way: the next client may try."""
    health = ConnectHealth(1, 0.0)
    put_out(health, 0.0)
    health.started()
    health.abandoned()
    assert health.takes(OUT_FIRST)


def test_it_is_out_for_longer_each_time() -> None:
    """Doubled up to a minute; after a success it is short again."""
    health = ConnectHealth(1, 0.0)
    put_out(health, 0.0)
    now, lengths = 0.0, []
    for _ in range(9):
        lengths.append(health.out_until - now)
        now = health.out_until
        assert not health.failed("refused", now), "told once only"
    assert lengths == [1, 2, 4, 8, 16, 32, OUT_MOST, OUT_MOST, OUT_MOST]
    health.succeeded(now)
    put_out(health, now)
    assert health.out_until == now + OUT_FIRST


def test_failures_that_began_earlier_do_not_lengthen_it() -> None:
    """A hundred connections that hang at the same time are one failure, not a hundred."""
    health = ConnectHealth(1, 0.0)
    put_out(health, 0.0)
    for _ in range(100):
        health.failed("timeout", 0.5)
    assert health.out_until == OUT_FIRST


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "fail", "succeed", "abandon"]), st.floats(0, 100)), max_size=40
    )
)
def test_it_always_gets_another_chance(steps: list[tuple[str, float]]) -> None:
    """Whatever happened, once nothing is under way it takes an attempt within a minute; success brings it in."""
    health, now = ConnectHealth(2, 0.0), 0.0
    for step, wait in steps:
        now += wait
        match step:
            case "start":
                health.started()
            case "fail":
                health.failed("refused", now)
            case "succeed":
                health.succeeded(now)
            case _:
                health.abandoned()
        assert health.out_until <= now + OUT_MOST
    health.abandoned()
    assert health.takes(now + OUT_MOST)
    health.succeeded(now)
    assert not health.out
    assert health.takes(now)


def test_checks_need_a_row_of_results() -> None:
    """Three bad ones and it is down, two good ones and it is up; one in between counts for nothing."""
    health = CheckHealth(rise=2, fall=3, now=0.0)
    assert not health.observe("", 1.0)
    faults = ["no", "no", "", "no", "no", "no", "", "no", "", ""]
    changes = [number for number, fault in enumerate(faults, 2) if health.observe(fault, float(number))]
    assert changes == [7, 11]
    assert (health.up, health.since) == (True, 11.0)


@pytest.mark.parametrize("fault", ["", "refused"])
def test_the_first_check_decides_alone(fault: str) -> None:
    """A server that is down at start gets no connections for the sake of a count."""
    health = CheckHealth(rise=9, fall=9, now=0.0)
    assert health.observe(fault, 1.0) is bool(fault)
    assert health.up is not bool(fault)
    assert health.why == fault


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_checks_change_only_by_enough_equal_results(rise: int, fall: int, results: list[bool]) -> None:
    """Each change is preceded by `rise` good or `fall` bad ones; and so many always bring the change."""
    health = CheckHealth(rise, fall, 0.0)
    health.observe("", 0.0)
    for number, good in enumerate(results):
        changed = health.observe("" if good else "bad", float(number))
        needed = rise if good else fall
        row = results[max(0, number + 1 - needed) : number + 1]
        enough = len(row) == needed and all(result is good for result in row)
        if changed:
            assert enough
            assert health.up is good
        if enough:
            assert health.up is good


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 60))
def test_a_slow_start_grows_to_the_whole_share(elapsed: float, more: float, slow_start: float) -> None:
    """Never less than at first, never shrinking, never above 1, and 1 when the time is over."""
    share = slow_start_share(elapsed, slow_start)
    assert FIRST_SHARE <= share <= slow_start_share(elapsed + more, slow_start) <= 1
    assert slow_start_share(slow_start, slow_start) == 1
