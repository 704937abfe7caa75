"""What a client thinks of its nodes, as it is logged, counted and shown, in virtual time."""

from __future__ import annotations

import asyncio

from hsm import metrics as m
from hsm.client.health import EJECTION_FIRST, SILENT_EJECT
from hsm.signing import PrivateKey, ski_of
from tests.hsm.scripted import DIGEST, SCHEME
from tests.hsm.simulation import Device, Simulation, failed


def test_a_silent_node_is_suspected_ejected_and_taken_back(simulation: Simulation, key: PrivateKey) -> None:
    """Each state is told once, with its cause; the requests it owes are rescued; it is well when it answers."""
    a, b = Device("a"), Device("b")

    async def main() -> None:
        async with simulation.cluster(a, b, hedge_budget=0.0) as group:
            await group.load(key, 100.0, 1.0)
            a.stop()
            outcomes = await group.load(key, 100.0, SILENT_EJECT + 1.0)
            assert failed(outcomes) == []
            assert {outcome.node for outcome in outcomes} == {"b"}
            assert group.story("a") == ["ready", "suspect silent", "ejected silent"]
            assert group.client.nodes[0].outstanding > 0
            a.go_on()
            await asyncio.sleep(EJECTION_FIRST + 2.0)
            assert group.story("a")[3:5] == ["probing silent", "healthy"]
            await asyncio.sleep(60.0)  # its late answers made it an outlier for a while
            assert group.story("a")[5:] == ["suspect slow", "healthy"]
            assert group.story("b") == ["ready"]
            assert {outcome.node for outcome in await group.load(key, 100.0, 1.0)} == {"a", "b"}
            assert group.count(m.CLIENT_EJECTIONS.name) == {("a", "silent"): 1}

    simulation.run(main())


def test_a_node_that_hangs_for_long_is_hardly_asked(simulation: Simulation, key: PrivateKey) -> None:
    """While it is ejected nothing, then a few tests, at ever longer intervals: they do not pile up there."""
    a, b = Device("a"), Device("b")

    async def main() -> None:
        async with simulation.cluster(a, b) as group:
            await group.load(key, 100.0, 1.0)
            a.stop()
            await group.load(key, 20.0, 60.0)
            asked = a.asked
            await group.load(key, 5.0, 600.0)
            assert a.asked - asked < 150
            ejections = group.count(m.CLIENT_EJECTIONS.name)[("a", "silent")]
            assert 5 <= ejections <= 20
            assert group.story("b") == ["ready"]

    simulation.run(main())


def test_a_wrong_signature_is_made_good_within_the_request(simulation: Simulation, key: PrivateKey) -> None:
    """The first wrong one ejects the node, is counted and logged with its key, and the caller has a right one."""
    a, b = Device("a", zone="here"), Device("b")
    a.signs_wrongly = True

    async def main() -> None:
        async with simulation.cluster(a, b, zone="here") as group:
            ski = ski_of(key.public_key())
            request = await group.client.sign_async(ski, SCHEME, DIGEST, 1.0)
            assert (request.node, request.asked, request.signature) == ("b", 2, DIGEST)
            assert group.story("a") == ["ready", "signed_wrongly", "ejected bad_signature"]
            assert group.log[-2]["ski"] == ski.hex()
            assert group.bad_signatures("a") == 1
            assert group.count(m.CLIENT_EJECTIONS.name) == {("a", "bad_signature"): 1}
            assert {outcome.node for outcome in await group.load(key, 100.0, 0.5)} == {"b"}

    simulation.run(main())


def test_a_node_that_lies_for_hours_is_rarely_tested(simulation: Simulation, key: PrivateKey) -> None:
    """Each bad test ejects it again, for longer: not five alarms a second."""
    a, b = Device("a"), Device("b")
    a.signs_wrongly = True

    async def main() -> None:
        async with simulation.cluster(a, b) as group:
            outcomes = await group.load(key, 5.0, 600.0)
            assert failed(outcomes) == []
            assert {outcome.node for outcome in outcomes} == {"b"}
            assert group.bad_signatures("a") < 20
            a.signs_wrongly = False
            await asyncio.sleep(62.0)
            assert group.story("a")[-1] == "healthy"

    simulation.run(main())


def test_an_outlier_is_suspect_and_gets_requests_back(simulation: Simulation, key: PrivateKey) -> None:
    """A node much slower than the others is asked when they have no room, until it is as quick again."""
    devices = [Device(name) for name in "abc"]

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            await group.load(key, 100.0, 1.0)
            devices[0].seconds = 0.045
            await group.load(key, 100.0, 40.0)
            assert group.story("a") == ["ready", "suspect slow"]
            devices[0].seconds = 0.005
            await group.load(key, 50.0, 60.0)
            assert group.story("a") == ["ready", "suspect slow", "healthy"]
            shares = [outcome.node for outcome in await group.load(key, 100.0, 10.0)]
            assert shares.count("a") > 200

    simulation.run(main())


def test_a_lone_node_is_asked_whatever_is_thought_of_it(simulation: Simulation, key: PrivateKey) -> None:
    """It can't be ejected, and an error more or less does not take the site down."""
    a = Device("a")

    async def main() -> None:
        async with simulation.cluster(a) as group:
            a.errors = 0.5
            outcomes = await group.load(key, 100.0, 5.0)
            assert 150 < len(failed(outcomes)) < 350
            assert group.count(m.CLIENT_EJECTIONS.name) == {}

    simulation.run(main())


def test_what_is_thought_is_shown(simulation: Simulation, key: PrivateKey) -> None:
    """Status and gauges tell state, cause and age; a node that is gone has none of them left."""
    a, b = Device("a"), Device("b")
    a.signs_wrongly = True

    async def main() -> None:
        async with simulation.cluster(a, b) as group:
            await group.load(key, 100.0, 0.5)
            shown = {node["name"]: node for node in group.client.status()}
            assert (shown["a"]["state"], shown["a"]["cause"]) == ("ejected", "bad_signature")
            assert 0 < shown["a"]["since"] <= 0.5
            assert (shown["b"]["state"], shown["b"].get("cause")) == ("healthy", None)
            assert shown["b"]["latency_ms"] == 5.0
            group.client.update_gauges()
            assert group.count(m.CLIENT_STATE.name) == {("a", "ejected"): 1, ("b", "healthy"): 1}
            assert group.count(m.CLIENT_LIMIT.name) == {("a",): 32, ("b",): shown["b"]["limit"]}
            group.client.set_nodes([b.options])
            group.client.update_gauges()
            assert group.count(m.CLIENT_STATE.name) == {("b", "healthy"): 1}

    simulation.run(main())
