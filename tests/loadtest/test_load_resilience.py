"""The resilience tool with real processes: nodes break, come back, and are loaded meanwhile."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace

import pytest
import uvloop

from hsm import bench
from hsm.connect import connect
from hsm.options import Link
from loadtest import client_cost, resilience, verdict
from loadtest.faults import FAULTS, Limit
from loadtest.targets.certificates import make_credentials
from loadtest.targets.cluster import BreakableNode, Cluster
from loadtest.targets.lab import Lab, accepts_unix

DEADLINE = 10.0


@pytest.fixture
def node(lab: Lab) -> BreakableNode:
    """A software node that is well."""
    make_credentials(lab.directory, "p256")
    node = BreakableNode(lab, "a", lab.directory / "keys", {})
    node.wait()
    return node


def refused(node: BreakableNode) -> int:
    """How many of a few signatures the node refuses."""

    async def ask() -> int:
        cluster = await connect(Link().target(node.node.address), "never")
        try:
            result = await bench.run_bench(cluster, *bench.choose(cluster, None, None), 1, 0.01)
            return result.errors.total()
        finally:
            await cluster.close()

    return asyncio.run(ask())


def wait_for(what: bool, node: BreakableNode) -> None:
    """Wait until the node refuses signatures, or no longer does."""
    deadline = time.monotonic() + DEADLINE
    while bool(refused(node)) is not what:
        assert time.monotonic() < deadline, f"the node {'signs' if what else 'refuses'} all the time"


def test_a_node_changes_its_behaviour_and_back(node: BreakableNode) -> None:
    assert refused(node) == 0
    node.emulate(error_rate=1.0)
    wait_for(True, node)
    node.emulate()
    wait_for(False, node)


def test_a_killed_node_can_be_started_again(node: BreakableNode, lab: Lab) -> None:
    """At the same address, though the file of its socket was left behind."""
    path = lab.directory / "a.sock"
    node.kill()
    deadline = time.monotonic() + DEADLINE
    while accepts_unix(path):
        assert time.monotonic() < deadline
    assert path.exists()
    node.launch()
    node.wait()
    assert refused(node) == 0


def test_a_fault_is_struck_and_judged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three nodes is killed under load, and started again: nobody notices."""
    for name, seconds in {"WARM_UP": 0.1, "BEFORE": 0.2, "SLACK": 0.8, "AFTER": 0.2}.items():
        monkeypatch.setattr(verdict, name, seconds)
    fault = replace(FAULTS[0], seconds=0.2, limit=Limit(plus=10.0))
    with Cluster(lab, {}) as cluster:
        finding = resilience.run_fault(cluster, fault, rate=100)
    assert finding.met, finding
    assert finding.figures[0].value == 0
    assert finding.stretches["before"].arrivals == 20
    assert finding.stretches["during"].arrivals >= 20
    assert finding.notes[0].startswith("the fault lasted ")


def test_what_a_signature_costs_is_measured(lab: Lab) -> None:
    """Against a node that answers at once: none fails, and each round gives a figure."""
    path = lab.directory / "instant.sock"
    server = lab.start("instant", [sys.executable, "-m", "loadtest.instant_node", str(path)])
    server.wait_until(lambda: accepts_unix(path))
    found = uvloop.run(client_cost.measure(f"unix:{path}", in_flight=8, rounds=2, seconds=0.05))
    assert len(found) == 2
    assert min(found) > 0
