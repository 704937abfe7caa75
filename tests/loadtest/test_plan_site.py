"""The simulated proxy: beside queueing theory, and what a loss does to the real client's requests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from loadtest import documents, scenario
from loadtest.capacity import Capacity
from loadtest.generate.records import Summary, summarise
from loadtest.generate.schedule import Phase
from loadtest.plan import search
from loadtest.plan.profile import HsmProfile
from loadtest.plan.quantiles import Quantiles
from loadtest.plan.search import Planner
from loadtest.plan.settings import PlanSettings
from loadtest.plan.site import LOST_WITH_PROXY, Loss, Site, simulate

RECORDED = Path(__file__).parent / "recorded"


def exponential(mean: float) -> Quantiles:
    """Service times without a memory, cut at 99.9 %."""
    shares = [number / 1000 for number in range(1000)]
    return Quantiles({share: -mean * math.log(1 - share) for share in shares})


def erlang_c(servers: int, load: float) -> float:
    """The share that waits, of those who come to `servers` with so much work a second (A. K. Erlang, 1917)."""
    blocked = 1.0  # Erlang B, by its recursion
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def run(site: Site, rate: float, seconds: float, **more: Any) -> Summary:
    """What becomes of arrivals at this rate, once things have settled."""
    return summarise(simulate(site, [Phase(seconds, rate)], **more), 3.0, seconds)


@pytest.mark.parametrize(("servers", "use"), [(1, 0.5), (4, 0.7), (16, 0.9)])
def test_one_hsm_is_a_queue_of_erlangs(servers: int, use: float) -> None:
    """Poisson arrivals at an HSM with so many sessions: the mean time is that of M/M/c, wherever requests wait."""
    latency = exponential(0.01)
    rate = use * servers / latency.mean
    site = Site(hsms=1, rate_each=0.0, latency=latency, parallel=servers)
    waits = erlang_c(servers, use * servers) * latency.mean / (servers * (1 - use))
    found = run(site, rate, 3 + 10_000 / rate)
    assert found.failed == 0
    assert found.handshake.mean == pytest.approx(latency.mean + waits, rel=0.15)


def test_an_idle_hsm_takes_its_latency_and_the_way_there() -> None:
    """And the worker's CPU; a resumed handshake takes nothing but that."""
    site = Site(
        hsms=2,
        rate_each=1000.0,
        latency=Quantiles({0.5: 0.005}),
        round_trips=(0.001, 0.5),
        costs=(0.002, 0.001),
    )
    found = run(site, 5.0, 60.0)
    assert found.handshake.p50 == pytest.approx(0.008, abs=1e-6)
    resumed = run(site, 5.0, 60.0, resumed=1.0)
    assert resumed.handshake.p50 == pytest.approx(0.001, abs=1e-6)
    assert resumed.resumed == resumed.completed > 0


def test_the_same_seed_gives_the_same() -> None:
    site = Site(hsms=2, rate_each=100.0, latency=Quantiles({0.5: 0.005}))
    once, again, other = (run(site, 120.0, 10.0, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_own_zone_first() -> None:
    """Workers ask the HSMs of their own zone, unless those have no room."""
    site = Site(
        hsms=4, rate_each=500.0, latency=Quantiles({0.5: 0.005}), zones=2, workers=2, round_trips=(0.0, 0.1)
    )
    assert run(site, 300.0, 10.0).handshake.p50 < 0.01


def test_a_lost_hsm_is_made_good_by_the_others() -> None:
    """Requests that it owes are asked for elsewhere within their deadline: none fails."""
    site = Site(hsms=3, rate_each=200.0, latency=Quantiles({0.5: 0.005}))
    records = simulate(site, [Phase(16.0, 200.0)], loss=Loss(6.0, 200.0))
    before, after = summarise(records, 3.0, 5.5), summarise(records, 12.0, 16.0)
    assert [record.outcome for record in records if record.failed] == []
    assert after.handshake.p99 < 0.1
    assert after.handshake.mean > before.handshake.mean


def test_too_much_is_refused_when_too_much_is_lost() -> None:
    """Half of what is needed is left: about half is refused, and the others wait no longer than they may."""
    site = Site(hsms=2, rate_each=200.0, latency=Quantiles({0.5: 0.005}))
    records = simulate(site, [Phase(30.0, 400.0)], loss=Loss(6.0, 200.0))
    after = summarise(records, 18.0, 30.0)
    assert 0.4 < after.failed / after.arrivals < 0.6
    assert after.handshake.p99 < 2.0


def test_a_zone_is_lost_with_its_workers() -> None:
    """Handshakes that these were at fail; new clients come to the others."""
    site = Site(hsms=4, rate_each=400.0, latency=Quantiles({0.5: 0.02}), zones=2, workers=2)
    records = simulate(site, [Phase(14.0, 400.0)], loss=Loss(5.0, 400.0, whole_zone=True))
    lost = [record for record in records if record.failed]
    assert {record.outcome for record in lost} == {LOST_WITH_PROXY}
    assert 0 < len(lost) < 20
    assert summarise(records, 10.0, 14.0).failed == 0
    assert len({(record.intended, record.resumed) for record in records}) == len(records)


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.json")), ids=lambda path: path.stem)
def test_plans_agree_with_measured_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The highest rate that real proxies and nodes held, to within 20 %, where the nodes are the limit."""
    monkeypatch.setattr(search, "ARRIVALS", 3000)
    document = documents.read(path)
    measured = document.result
    assert isinstance(measured, Capacity)
    cluster = scenario.load(str(path.with_suffix(".yaml"))).cluster
    nodes, emulation = cluster.nodes, cluster.emulate
    best = measured.best
    assert best is not None
    assert best.use.worker is not None
    assert best.use.worker < 0.4
    assert measured.rate > 0.7 * nodes * emulation.signatures_per_second
    profile = HsmProfile(
        name="emulated", source=document.origin.command,
        signatures_per_second={"p256": {1: emulation.signatures_per_second}},
        latency={"p50": emulation.latency}, latency_source="emulated",
    )  # fmt: skip
    question = PlanSettings.model_validate(
        {
            "hsm": "x",
            "load": {"connections": measured.rate},
            "objective": {"p99": "200ms"},
            "survive": "nothing",
        }
    )
    planned = Planner(question, profile, "p256", simulate).highest_rate(nodes, 0.0)
    assert planned == pytest.approx(measured.rate, rel=0.2)
