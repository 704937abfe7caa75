"""Requests that wait for a node with room, and those that are refused instead, in virtual time."""

from __future__ import annotations

import asyncio

from hsm import metrics as m
from hsm.client import SignRequest
from hsm.signing import PrivateKey, ski_of
from hsm.verification import VerificationKey
from loadtest.simulation import SimulatedKey
from tests.hsm.scripted import DIGEST, SCHEME
from tests.hsm.simulation import Device, SimulatedCluster, Simulation, failed


def ask(group: SimulatedCluster, key: PrivateKey, timeout: float, done: list[SignRequest]) -> SignRequest:
    """A request now, written down when it is done."""
    deadline = asyncio.get_running_loop().time() + timeout
    return group.client.sign(ski_of(key.public_key()), SCHEME, DIGEST, deadline, done.append)


def test_the_earliest_deadline_is_served_first(simulation: Simulation, key: PrivateKey) -> None:
    """Among those who wait; of equal ones the first who came."""
    device = Device("a", seconds=0.1, servers=1, capacity=1)

    async def main() -> None:
        async with simulation.cluster(device, max_queue_wait=9.0, hedge_budget=0.0) as group:
            done: list[SignRequest] = []
            requests = [ask(group, key, timeout, done) for timeout in (9.0, 7.0, 5.0, 8.0, 5.0, 6.0)]
            await asyncio.sleep(1.0)
            assert done == [requests[index] for index in (0, 2, 4, 5, 1, 3)]
            assert [round(request.queued, 1) for request in done] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]

    simulation.run(main())


def test_who_would_wait_too_long_is_refused_at_once(simulation: Simulation, key: PrivateKey) -> None:
    """Ten a second, and a wait of a second at most: the twelfth and later ones need not even wait."""
    device = Device("a", seconds=0.1, servers=1, capacity=1)

    async def main() -> None:
        async with simulation.cluster(device, max_queue_wait=1.0) as group:
            assert not group.client.would_refuse(5.0)
            await group.load(key, 5.0, 2.0)
            done: list[SignRequest] = []
            for _ in range(20):
                ask(group, key, 5.0, done)
            await asyncio.sleep(0.01)
            reasons = [request.error.reason for request in done if request.error]
            assert set(reasons) == {"overloaded"}
            assert 8 <= len(reasons) <= 10
            assert group.client.would_refuse(5.0)
            assert group.count(m.CLIENT_REFUSED.name) == {("overloaded",): len(reasons)}
            await asyncio.sleep(2.0)
            assert len(done) == 20
            assert not group.client.would_refuse(5.0)

    simulation.run(main())


def test_a_short_deadline_is_refused_sooner(simulation: Simulation, key: PrivateKey) -> None:
    """What can't be signed before its deadline is told so at once, while others may wait."""
    device = Device("a", seconds=0.1, servers=1, capacity=1)

    async def main() -> None:
        async with simulation.cluster(device, max_queue_wait=1.0) as group:
            await group.load(key, 5.0, 2.0)
            done: list[SignRequest] = []
            for _ in range(4):
                ask(group, key, 5.0, done)
            hopeless = ask(group, key, 0.15, done)
            assert group.client.would_refuse(0.15)
            assert not group.client.would_refuse(5.0)
            await asyncio.sleep(0.01)
            assert done == [hopeless]
            assert hopeless.error is not None
            assert hopeless.error.reason == "overloaded"

    simulation.run(main())


def test_nobody_is_refused_on_account_of_a_node_that_just_came_back(
    simulation: Simulation, key: PrivateKey
) -> None:
    """After an outage many wait, one node of three is back, cold: what it does then says nothing of the rest."""
    devices = [Device(name, servers=32) for name in "abc"]

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            loop = asyncio.get_running_loop()
            await group.load(key, 200.0, 1.0)
            refusing: list[float] = []

            def look() -> None:
                if group.client.would_refuse(5.0):
                    refusing.append(loop.time())

            for device in devices:
                device.kill()
                device.seconds = 0.2
            for number, device in enumerate(devices):
                loop.call_later(3.0 + 0.3 * number, device.start)
                loop.call_later(3.2 + 0.3 * number, setattr, device, "seconds", 0.005)
            for moment in range(100):
                loop.call_later(2.0 + moment / 50, look)
            assert failed(await group.load(key, 200.0, 5.0)) == []
            assert refusing == []

    simulation.run(main())


def test_too_much_is_refused_soon_after_an_outage(simulation: Simulation, key: PrivateKey) -> None:
    """Once the nodes have been back for as long as anybody may wait, their rate counts again."""
    device = Device("a", seconds=0.1, servers=1, capacity=1)

    async def main() -> None:
        async with simulation.cluster(device, max_queue_wait=1.0) as group:
            await group.load(key, 5.0, 2.0)
            device.kill()
            asyncio.get_running_loop().call_later(1.0, device.start)
            outcomes = await group.load(key, 50.0, 4.0)
            assert set(failed(outcomes)) == {"overloaded", "queue_timeout"}

    simulation.run(main())


def test_a_wait_ends_after_the_longest(simulation: Simulation, key: PrivateKey) -> None:
    """A node that stops leaves those who wait for it `max_queue_wait`, not their whole deadline."""
    device = Device("a", seconds=0.1, servers=1, capacity=1)

    async def main() -> None:
        async with simulation.cluster(device, max_queue_wait=1.0) as group:
            await group.load(key, 5.0, 2.0)
            device.stop()
            outcomes = await group.load(key, 100.0, 0.05, timeout=5.0)
            assert failed(outcomes) == ["queue_timeout"] * 4 + ["deadline"]
            assert all(1.0 <= outcome.seconds <= 1.02 for outcome in outcomes[:4])
            assert group.count(m.CLIENT_REFUSED.name) == {("queue_timeout",): 4}

    simulation.run(main())


def test_one_keys_dead_nodes_hold_up_no_other_key(
    simulation: Simulation, key: PrivateKey, keys: dict[str, PrivateKey]
) -> None:
    """A hundred requests that only a hanging node could serve wait; those of another key pass them."""
    rare = keys["p384"]
    hanging, well = Device("hanging", capacity=1), Device("well", capacity=1)
    hanging.keys, well.keys = [SimulatedKey(rare.public_key())], [SimulatedKey(key.public_key())]

    async def main() -> None:
        async with simulation.cluster(hanging, well, max_queue_wait=30.0) as group:
            scheme = VerificationKey(rare.public_key()).usual_schemes()[0]
            digest, done = bytes(scheme.digest_size), list[SignRequest]()
            hanging.stop()
            deadline = asyncio.get_running_loop().time() + 20.0
            for _ in range(100):
                group.client.sign(ski_of(rare.public_key()), scheme, digest, deadline, done.append)
            assert failed(await group.load(key, 300.0, 2.0, timeout=25.0)) == []
            assert done == []

    simulation.run(main())


def test_those_who_cannot_be_served_hold_up_no_other_key(
    simulation: Simulation, key: PrivateKey, keys: dict[str, PrivateKey]
) -> None:
    """Nor do those whose node has room but failed them, and who wait for one that is away."""
    rare = keys["p384"]
    failing, away, well = Device("failing"), Device("away"), Device("well", capacity=1)
    failing.keys = away.keys = [SimulatedKey(rare.public_key())]
    well.keys = [SimulatedKey(key.public_key())]
    failing.errors = 1.0

    async def main() -> None:
        async with simulation.cluster(failing, away, well, max_queue_wait=30.0, max_ejected=0.0) as group:
            scheme = VerificationKey(rare.public_key()).usual_schemes()[0]
            digest, done = bytes(scheme.digest_size), list[SignRequest]()
            away.kill()
            deadline = asyncio.get_running_loop().time() + 20.0
            for _ in range(20):
                group.client.sign(ski_of(rare.public_key()), scheme, digest, deadline, done.append)
            await asyncio.sleep(0.1)
            assert done == []
            passing: list[SignRequest] = []
            for _ in range(20):
                ask(group, key, 25.0, passing)
            await asyncio.sleep(1.0)
            assert [request.node for request in passing] == ["well"] * 20
            assert done == []

    simulation.run(main())


def test_a_request_whose_other_nodes_failed_is_asked_of_the_ejected(
    simulation: Simulation, key: PrivateKey
) -> None:
    """It does not wait in vain for a node with room: for it there is no other."""
    ejected, failing = Device("ejected"), Device("failing")

    async def main() -> None:
        async with simulation.cluster(ejected, failing) as group:
            ejected.signs_wrongly = True
            await group.load(key, 100.0, 0.5)
            ejected.signs_wrongly = False
            failing.errors = 1.0
            outcomes = await group.load(key, 100.0, 0.2)
            assert failed(outcomes) == []
            assert {outcome.node for outcome in outcomes} == {"ejected"}
            assert max(outcome.seconds for outcome in outcomes) < 0.05

    simulation.run(main())
