"""How many HSMs and workers: the arithmetic, and the search over a system of which the answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.generate.records import COMPLETED, Record
from loadtest.generate.schedule import Phase, length
from loadtest.plan import words
from loadtest.plan.profile import HsmProfile
from loadtest.plan.search import Plan, Planner
from loadtest.plan.settings import PlanSettings
from loadtest.plan.site import Loss, Site
from loadtest.plan.sizing import hsms_lost, utilisation, workers_for

PROFILE = HsmProfile(
    name="an HSM", source="us", signatures_per_second={"p256": {1: 100.0}}, latency={"p50": 0.005},
    latency_source="us", most=60,
)  # fmt: skip


def question(**fields: Any) -> PlanSettings:
    """300 full handshakes a second, if nothing else is said."""
    return PlanSettings.model_validate({"hsm": "an HSM", "load": {"connections": 300}, **fields})


def queue(site: Site, phases: Sequence[Phase], resumed: float, loss: Loss | None) -> list[Record]:
    """A system whose latency grows like a queue's: 10 ms at rest, 50 ms at 80 % use; at 100 % all fails.

    After a loss the first second is worse.
    """
    full = phases[0].rate * (1 - resumed)

    def record(at: float) -> Record:
        lost = loss is not None and at >= loss.at
        left, rate = site.hsms, site.rate_each
        if lost and loss is not None:
            left -= hsms_lost(site.hsms, site.zones, "zone" if loss.whole_zone else "hsm")
            rate = loss.rate_each
        use = full / (left * rate) if left else math.inf
        if use >= 1:
            return Record(at, 0.0, -1, 1.0, "overloaded", resumed=False)
        seconds = 0.01 / (1 - use) + (0.2 if lost and loss is not None and at < loss.at + 1 else 0.0)
        return Record(at, 0.0, seconds, seconds, COMPLETED, resumed=False)

    return [record(number / 10) for number in range(int(length(phases) * 10))]


def planned(**fields: Any) -> Plan:
    """A plan over that system."""
    return Planner(question(**fields), PROFILE, "p256", queue).plan()


def needed(full: float) -> int:
    """HSMs of 100 a second that are used 80 % at most."""
    return max(1, math.ceil(full / 80 - 1e-9))


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 3500), st.sampled_from(["nothing", "hsm"]))
def test_the_fewest_hsms_are_found(full: float, survive: str) -> None:
    """So many that the objective is held when one is lost; with one fewer it is not."""
    plan = planned(load={"connections": full}, survive=survive)
    spare = 1 if survive == "hsm" else 0
    assert plan.hsms == needed(full) + spare
    assert plan.row is not None
    assert plan.row.met
    assert [row.met for row in plan.rows if row.hsms < plan.hsms] in ([], [False], [False, False])


@settings(max_examples=20, deadline=None)
@given(st.floats(10, 1500), st.integers(2, 4))
def test_a_zone_may_be_lost(full: float, zones: int) -> None:
    """Then those of the others are enough, also where one zone has one more."""
    plan = planned(load={"connections": full}, zones=zones, survive="zone")
    assert plan.hsms is not None
    assert plan.hsms - math.ceil(plan.hsms / zones) >= needed(full)
    before = plan.hsms - 1
    assert before < zones or before - math.ceil(before / zones) < needed(full)


@settings(max_examples=8, deadline=None)
@given(st.floats(10, 1000), st.floats(0, 0.85))
def test_more_never_holds_less(connections: float, resumed: float) -> None:
    """Another HSM, or more clients with tickets, hold at least as many connections a second; none with any, fewer."""
    plan = planned(load={"connections": connections, "resumed": resumed})
    rates = {gain.change: gain.connections for gain in plan.gains}
    assert rates["as planned"] >= connections
    assert rates["one more HSM"] >= rates["as planned"]
    more = [rate for change, rate in rates.items() if change.endswith("% resumed")]
    assert all(rate > rates["as planned"] for rate in more)
    none = [gain for gain in plan.gains if gain.none_resumed]
    assert len(none) == (resumed > 0)
    assert all(gain.connections <= rates["as planned"] for gain in none)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.floats(0, 0.5))
def test_the_highest_rate_is_what_the_hsms_can_do(hsms: int, resumed: float) -> None:
    """Here that is 80 % of it, found to within the precision."""
    found = Planner(question(survive="nothing"), PROFILE, "p256", queue).highest_rate(hsms, resumed)
    assert 80 * hsms / (1 - resumed) / 1.02 <= found * 1.001 <= 80 * hsms / (1 - resumed) * 1.002


def test_nothing_is_simulated_twice() -> None:
    """Each number of HSMs once: that is what takes long."""
    seen: list[tuple[int, float, Loss | None]] = []

    def live(site: Site, phases: Sequence[Phase], resumed: float, loss: Loss | None) -> list[Record]:
        if loss is not None:
            seen.append((site.hsms, phases[0].rate, loss))
        return queue(site, phases, resumed, loss)

    plan = Planner(question(load={"connections": 1990}), PROFILE, "p256", live).plan()
    assert plan.hsms == 26
    assert len(seen) == len(set(seen))


def test_what_a_loss_does() -> None:
    """The seconds after it are told one by one, and when the objective is held again."""
    plan = planned()
    assert plan.row is not None
    lost = plan.row.lost
    assert lost is not None
    assert (plan.hsms, lost.hsms, lost.recovery) == (5, 1, 1)
    assert lost.worst_p99 > 0.2 > lost.after.handshake.p99
    assert [second.handshake.p99 > 0.05 for second in lost.seconds] == [True] + [False] * 7
    assert lost.utilisation == pytest.approx(300 / 400)
    assert planned(survive="nothing").rows[0].lost is None


def test_no_number_of_hsms_is_enough() -> None:
    """More than a cluster takes, or an objective that even idle ones miss: the answer says which."""
    many = planned(load={"connections": 9000})
    assert (many.hsms, many.rows) == (None, ())
    assert "at most 60 in a cluster" in many.why
    quick = planned(objective={"p99": "9ms"})
    assert quick.hsms is None
    assert "their own latency" in quick.why
    assert words.answer(quick, question(objective={"p99": "9ms"}), PROFILE, "p256").startswith(
        "No number of HSMs"
    )


@given(
    st.floats(1, 10_000), st.floats(0, 0.99), st.integers(2, 6), st.sampled_from(["nothing", "hsm", "zone"]),
)  # fmt: skip
def test_no_worker_is_busier_than_it_may_be(
    connections: float, resumed: float, zones: int, survive: str
) -> None:
    """Also when a zone is lost; and with one fewer in each zone they would be."""
    asked = question(load={"connections": connections, "resumed": resumed}, zones=zones, survive=survive)
    found = workers_for(asked)
    costs = asked.worker
    expected = connections * ((1 - resumed) * costs.full + resumed * costs.resumed)
    assert found.cores == pytest.approx(expected)
    assert found.use <= found.use_left <= costs.busy * 1.000001
    assert found.count % zones == 0
    fewer = found.left - (zones - 1 if survive == "zone" else zones)
    assert fewer == 0 or found.cores / fewer > costs.busy
    assert found.machines * costs.cores >= found.count


@given(st.floats(0.1, 1e5), st.floats(0.1, 1e5), st.floats(1.01, 10))
def test_use_is_what_is_asked_of_what_can_be_done(full: float, rate: float, more: float) -> None:
    """It falls with each HSM, and is 1 where both are equal."""
    assert utilisation(full, rate * more) < utilisation(full, rate)
    assert utilisation(rate, rate) == 1
    assert utilisation(full, 0.0) == math.inf


def test_the_answer_in_words() -> None:
    """With what it rests on, what a loss does, and what to look at twice."""
    asked = question(load={"connections": 300, "resumed": "50%", "growth": 2})
    plan = Planner(asked, PROFILE, "p256", queue).plan()
    answer = words.answer(plan, asked, PROFILE, "p256")
    assert answer.startswith("5 HSMs (an HSM, p256) and 1 worker on 1 machine hold 600 connections a second")
    assert "(the peak of 300 × 2, 50% of them resumed): p99 25.0 ms, and 40.0 ms with one HSM lost" in answer
    assert "300 full handshakes at 485 µs and 300 resumed ones at 296 µs take 0.23 cores" in words.workers(
        plan, asked
    )
    assert words.loss(plan, asked).startswith(
        "With one HSM lost, in the 8 s after it: the worst second's p99 is"
    )
    inferred, tickets = words.warnings(plan, asked, PROFILE, "p256")
    assert inferred == "Nothing is known of the rate of 5 HSMs: it is inferred from that of 1."
    assert "When ticket keys are lost" in tickets
