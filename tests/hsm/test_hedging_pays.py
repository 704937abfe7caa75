"""What second requests cost and save, where clients come at random: simulated with and without them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsm.client import ClusterOptions
from loadtest.generate.records import Record, summarise
from loadtest.generate.schedule import Phase
from loadtest.plan.quantiles import Quantiles
from loadtest.plan.site import Loss, Site, simulate

ALWAYS_5_MS = Quantiles({0.5: 0.005})
UNEVEN = Quantiles({0.5: 0.005, 0.99: 0.012})
SETTLED = 3.0


def with_and_without(
    site: Site, rate: float, seconds: float, loss: Loss | None = None
) -> tuple[list[Record], list[Record]]:
    """What becomes of the same arrivals when requests are hedged, and when none is."""
    hedged, plain = (
        simulate(
            replace(site, options=ClusterOptions(hedge_budget=budget)), [Phase(seconds, rate)], loss=loss
        )
        for budget in (0.05, 0.0)
    )
    return hedged, plain


@pytest.mark.parametrize(
    ("site", "rate"),
    [
        (Site(hsms=2, rate_each=100.0, latency=ALWAYS_5_MS), 125.0),
        (Site(hsms=2, rate_each=100.0, latency=ALWAYS_5_MS), 170.0),
        (Site(hsms=3, rate_each=0.0, parallel=4, latency=Quantiles({0.5: 0.04})), 250.0),
        (Site(hsms=3, rate_each=0.0, parallel=1, latency=UNEVEN, workers=2), 300.0),
    ],
    ids=["100/s each", "100/s each, busy", "four at a time", "one at a time, two workers"],
)
def test_hedges_make_no_well_cluster_slower(site: Site, rate: float) -> None:
    """The slowest hundredth takes at most a tenth longer: a second request is work that others wait for."""
    seconds = SETTLED + 4000 / rate
    hedged, plain = (
        summarise(records, SETTLED, seconds) for records in with_and_without(site, rate, seconds)
    )
    assert hedged.failed == plain.failed == 0
    assert hedged.handshake.p99 <= 1.1 * plain.handshake.p99


@pytest.mark.parametrize(
    ("site", "rate"),
    [
        (Site(hsms=3, rate_each=200.0, latency=ALWAYS_5_MS), 200.0),
        (Site(hsms=3, rate_each=0.0, parallel=16, latency=Quantiles({0.5: 0.016})), 600.0),
    ],
    ids=["200/s each", "sixteen at a time"],
)
def test_hedges_halve_what_a_silent_node_costs(site: Site, rate: float) -> None:
    """Its clients wait less than half as long until another node signs for them."""
    hedged, plain = (
        max(record.handshake for record in records if 5.5 < record.intended < 7.0)
        for records in with_and_without(site, rate, 8.0, Loss(6.0, site.rate_each))
    )
    assert hedged < plain / 2
