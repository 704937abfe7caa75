"""Nodes that break and come back, and what happens to a cluster while it is loaded."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from cryptography import x509
from pydantic import TypeAdapter

from hsm import bench
from hsm.config import Emulation
from hsm.connect import connect
from hsm.options import Link
from loadtest.run import RunResult, run, started
from loadtest.scenario import Scenario
from loadtest.targets.certificates import make_credentials, renew
from loadtest.targets.cluster import BreakableNode
from loadtest.targets.lab import Lab, accepts_unix
from tests.loadtest.conftest import real_components

DEADLINE = 30.0


@pytest.fixture
def node(lab: Lab) -> BreakableNode:
    """A software node that is well."""
    make_credentials(lab.directory, "p256")
    node = BreakableNode(lab, "a", lab.directory / "keys", Emulation())
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
    node.emulate(Emulation(error_rate=1.0))
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


def test_renewed_certificates_have_the_same_key(tmp_path: Path) -> None:
    """Another serial number, the same public key and names."""
    credentials = make_credentials(tmp_path, "p256")
    old = x509.load_pem_x509_certificate(credentials.chain.read_bytes())
    renew(credentials)
    new = x509.load_pem_x509_certificate(credentials.chain.read_bytes())
    assert new.serial_number != old.serial_number
    assert new.public_key() == old.public_key()
    assert new.extensions.get_extension_for_class(x509.SubjectAlternativeName) == (
        old.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    )


EVENTFUL = Scenario.model_validate(
    {
        "arrivals": "even",
        "cluster": {"nodes": 2, "emulate": {}, "keys": ["p256", "rsa2048"]},
        "phases": [{"name": "warm-up", "duration": 0.2, "rate": 50}, {"name": "steady", "duration": 2.3, "rate": 60}],
        "clients": [{"name": "returning", "resumed": 1.0}, {"name": "RSA", "server_name": "rsa2048.localhost"}],
        "events": [
            {"at": 0.5, "do": "kill", "nodes": ["a"]},
            {"at": 0.7, "do": "start", "nodes": ["a"]},
            {"at": 0.8, "do": "emulate", "nodes": ["b"], "emulate": {"wrong_rate": 1.0}},
            {"at": 0.9, "do": "freeze", "nodes": ["b"]},
            {"at": 1.0, "do": "thaw", "nodes": ["b"]},
            {"at": 1.1, "do": "heal", "nodes": ["b"]},
            {"at": 1.2, "do": "reload"},
            {"at": 1.3, "do": "rotate_tickets"},
        ],
        "expect": {"failed": 0, "event_within": 20.0, "p99_plus": 10.0},
    }
)  # fmt: skip


def test_events_happen_under_load_and_are_judged() -> None:
    """A node is killed and started again, another returns wrong signatures, certificates change: none fails."""
    with real_components(), started(EVENTFUL) as (server, cluster):
        result = run(EVENTFUL, server, cluster)
    assert result.met, [str(figure) for figure in result.figures]
    assert [event.what for event in result.happened][:3] == ["kill a", "start a", "emulate b wrong_rate=1"]
    assert all(0.5 <= event.begun <= event.ended for event in result.happened)
    assert result.stretches[0].name == "before"
    first = result.happened[0].begun  # 0.5 s, or when the machine came round to it
    assert result.stretches[0].summary.arrivals == round(60 * (first - 0.2))
    returning, rsa = result.clients
    assert returning.summary.arrivals + rsa.summary.arrivals == result.total.arrivals == 148
    assert returning.summary.resumed > 0
    assert result.observed is not None
    read = TypeAdapter(RunResult).validate_python(json.loads(json.dumps(result.to_json())))
    assert (read.happened, read.figures, read.stretches) == (
        result.happened,
        result.figures,
        result.stretches,
    )


def test_a_new_process_takes_over_under_load() -> None:
    scenario = Scenario.model_validate(
        {
            "cluster": {"nodes": 1, "emulate": {}},
            "phases": [{"name": "steady", "duration": 1.0, "rate": 40}],
            "events": [{"at": 0.2, "do": "upgrade"}],
            "expect": {"failed": 0},
        }
    )
    with real_components(), started(scenario) as (server, cluster):
        result = run(scenario, server, cluster)
    assert result.met, result.total.failures
    assert [event.what for event in result.happened] == ["upgrade"]
