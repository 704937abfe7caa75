"""Budgets for retries and hedges: never more than was earned, and all of that."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hsm.client.budget import Budget

EVENTS = st.lists(st.one_of(st.just("request"), st.just("spend"), st.floats(0, 100)), max_size=400)
"""A request, an attempt to spend, or so many seconds."""


@given(share=st.floats(0, 1), per_second=st.floats(0, 10), burst=st.floats(0, 50), events=EVENTS)
def test_a_budget_is_never_exceeded(
    share: float, per_second: float, burst: float, events: list[str | float]
) -> None:
    """At any time at most share × requests + per_second × seconds + burst has been spent."""
    budget, now, requests, spent = Budget(share, per_second, burst, 0.0, 0), 0.0, 0, 0
    for event in events:
        if isinstance(event, float):
            now += event
        elif event == "request":
            requests += 1
        elif budget.spend(now, requests):
            spent += 1
        assert spent <= share * requests + per_second * now + burst + 1e-6


@given(seconds=st.integers(1, 600))
def test_what_was_earned_can_be_spent(seconds: int) -> None:
    """Over virtual minutes a steady load gets its whole share, not only a part of it."""
    budget, spent = Budget(0.1, 0.0, 5.0, 0.0, 0), 0
    for request in range(seconds * 10):
        spent += budget.spend(request / 10, request + 1)
    assert spent >= seconds - 1


def test_an_idle_client_can_spend_something() -> None:
    """Time alone fills it, up to the burst."""
    budget = Budget(0.0, 2.0, 10.0, 0.0, 0)
    assert [budget.spend(0.0, 0) for _ in range(11)] == [True] * 10 + [False]
    assert not budget.spend(0.4, 0)
    assert budget.spend(0.6, 0)
    assert [budget.spend(1000.0, 0) for _ in range(11)] == [True] * 10 + [False]


def test_requests_before_it_fill_nothing() -> None:
    """One that starts anew amid the work, as after a reload, has its burst and no more."""
    budget = Budget(1.0, 0.0, 2.0, 0.0, 1000)
    assert [budget.spend(0.0, 1000) for _ in range(3)] == [True, True, False]
    assert [budget.spend(0.0, 1001) for _ in range(2)] == [True, False]


def test_a_budget_of_nothing_is_none() -> None:
    """`hedge_budget: 0` means no hedge at all."""
    budget = Budget(0.0, 0.0, 0.0, 0.0, 0)
    assert not budget.spend(1e6, 1)


def test_a_clock_that_stands_still_earns_nothing() -> None:
    """Many attempts at the same moment share one second's income."""
    budget = Budget(0.0, 1.0, 1.0, 0.0, 0)
    assert [budget.spend(0.5, 0) for _ in range(3)] == [True, False, False]
    assert [budget.spend(1.5, 0) for _ in range(3)] == [True, False, False]
