"""Second nodes that are asked because the first is slow, and retries: who wins, what it costs, what forbids it."""

from __future__ import annotations

import asyncio

from hsm import metrics as m
from hsm.client import SignRequest
from hsm.signing import PrivateKey, ski_of
from tests.hsm.scripted import DIGEST, SCHEME
from tests.hsm.simulation import Device, SimulatedCluster, Simulation, failed, percentile


async def one(group: SimulatedCluster, key: PrivateKey, timeout: float = 5.0) -> SignRequest:
    """A request at the first device, which a second one is asked for when it is slow."""
    return await group.client.sign_async(ski_of(key.public_key()), SCHEME, DIGEST, timeout)


def test_the_first_answer_wins(simulation: Simulation, key: PrivateKey) -> None:
    """A node that hangs costs the time until a second one is asked, and is not waited for."""
    a, b = Device("a", zone="here"), Device("b")

    async def main() -> None:
        async with simulation.cluster(a, b, zone="here") as group:
            await group.load(key, 100.0, 1.0)
            a.stop()
            begun = asyncio.get_running_loop().time()
            request = await one(group, key)
            assert (request.node, request.asked) == ("b", 2)
            assert asyncio.get_running_loop().time() - begun < 0.03
            assert group.count(m.CLIENT_HEDGES.name) == {("won",): 1}
            a.go_on()
            await asyncio.sleep(0.1)
            assert group.is_idle()

    simulation.run(main())


def test_a_hedge_that_was_not_needed_is_wasted(simulation: Simulation, key: PrivateKey) -> None:
    """The first node answers after all, and the second one's answer is ignored when it comes."""
    a, b = Device("a", zone="here"), Device("b", seconds=0.05)

    async def main() -> None:
        async with simulation.cluster(a, b, zone="here") as group:
            await group.load(key, 100.0, 1.0)
            a.seconds = 0.04
            request = await one(group, key)
            assert (request.node, request.asked) == ("a", 2)
            assert group.count(m.CLIENT_HEDGES.name) == {("wasted",): 1}
            assert [node.outstanding for node in group.client.nodes] == [0, 1]
            await asyncio.sleep(0.1)
            assert group.is_idle()
            assert b.asked == 1

    simulation.run(main())


def test_a_queue_is_no_reason_to_ask_another(simulation: Simulation, key: PrivateKey) -> None:
    """Ten at once at a node that signs one at a time: each is answered in its turn, and none is asked for twice."""
    a, b = Device("a", zone="here", servers=1, seconds=0.01), Device("b", seconds=0.01)

    async def main() -> None:
        async with simulation.cluster(a, b, zone="here") as group:
            await group.load(key, 20.0, 5.0)
            crowd = await asyncio.gather(*(one(group, key) for _ in range(10)))
            assert {(request.node, request.asked) for request in crowd} == {("a", 1)}

    simulation.run(main())


def test_a_request_that_is_overtaken_is_asked_elsewhere(simulation: Simulation, key: PrivateKey) -> None:
    """A session of a busy node hangs: the others' answers tell that it is not the queue."""
    a, b = Device("a", zone="here"), Device("b")

    async def main() -> None:
        async with simulation.cluster(a, b, zone="here") as group:
            await group.load(key, 500.0, 1.0)
            a.seconds = 0.4
            stuck = asyncio.create_task(one(group, key))
            await asyncio.sleep(0)
            a.seconds = 0.005
            begun = asyncio.get_running_loop().time()
            busy = asyncio.create_task(group.load(key, 500.0, 0.04))
            assert (await stuck).node == "b"
            assert asyncio.get_running_loop().time() - begun < 0.04
            assert {outcome.node for outcome in await busy} == {"a"}

    simulation.run(main())


def test_a_node_that_is_no_quicker_is_not_asked(simulation: Simulation, key: PrivateKey) -> None:
    """The second node answers later than the request has waited: it would only be more work there."""
    a, b = Device("a", zone="here"), Device("b", seconds=0.1)

    async def main() -> None:
        async with simulation.cluster(a, b, zone="here", max_ejected=0.0) as group:
            await group.load(key, 500.0, 1.0)
            a.kill()
            await group.load(key, 100.0, 0.1)
            a.start()
            a.seconds = 0.05
            request = await one(group, key)
            assert (request.node, request.asked) == ("a", 1)

    simulation.run(main())


class Uneven(Device):
    """Each thirtieth signature takes it 0.3 s."""

    def service_time(self) -> float:
        """Of the next one."""
        return 0.3 if self.asked % 30 == 0 else self.seconds


def test_hedges_keep_to_their_budget(simulation: Simulation, key: PrivateKey) -> None:
    """However many would be quicker elsewhere, at most 1 % and a burst of 20 are asked for twice."""
    devices = [Uneven(name, servers=64) for name in "abc"]

    async def main() -> None:
        async with simulation.cluster(*devices, hedge_budget=0.01) as group:
            assert failed(await group.load(key, 200.0, 20.0)) == []
            hedges = sum(group.count(m.CLIENT_HEDGES.name).values())
            assert 40 < hedges <= 0.01 * 4000 + 20

    simulation.run(main())


def test_without_a_budget_nothing_is_hedged(simulation: Simulation, key: PrivateKey) -> None:
    """`hedge_budget: 0` means none, not even the first few."""
    devices = [Uneven(name, servers=64) for name in "ab"]

    async def main() -> None:
        async with simulation.cluster(*devices, hedge_budget=0.0) as group:
            await group.load(key, 200.0, 5.0)
            assert group.count(m.CLIENT_HEDGES.name) == {}

    simulation.run(main())


def test_a_usual_latency_is_not_hedged(simulation: Simulation, key: PrivateKey) -> None:
    """A cluster that always takes 300 ms is slow, not faulty: after the first requests none is asked twice."""
    devices = [Device(name, seconds=0.3, servers=64) for name in "ab"]

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            await group.load(key, 100.0, 2.0)
            before = group.count(m.CLIENT_HEDGES.name)
            await group.load(key, 100.0, 5.0)
            assert group.count(m.CLIENT_HEDGES.name) == before

    simulation.run(main())


def test_retries_keep_to_their_budget(simulation: Simulation, key: PrivateKey) -> None:
    """When every answer is an error, at most a fifth is asked again, 10 a second and a burst of 100."""
    devices = [Device(name) for name in "abc"]

    async def main() -> None:
        async with simulation.cluster(*devices, retry_budget=0.2) as group:
            for device in devices:
                device.errors = 1.0
            outcomes = await group.load(key, 200.0, 10.0)
            assert set(failed(outcomes)) == {"internal_error"}
            assert len(failed(outcomes)) == len(outcomes)
            retries = sum(group.count(m.CLIENT_RETRIES.name).values())
            assert 100 < retries <= 0.2 * 2000 + 10 * 11 + 100

    simulation.run(main())


def test_a_spent_retry_budget_tells_the_nodes_error(simulation: Simulation, key: PrivateKey) -> None:
    """What can't be asked again fails at once with what the node said; who has no need of it is served."""
    good, bad = Device("good"), Device("bad")

    async def main() -> None:
        async with simulation.cluster(good, bad, retry_budget=0.0, max_ejected=0.0) as group:
            bad.errors = 1.0
            outcomes = await group.load(key, 400.0, 2.0)
            assert failed(outcomes) == []  # the burst is enough: a suspect gets next to nothing
            good.errors = 0.9
            outcomes = await group.load(key, 400.0, 5.0)
            assert set(failed(outcomes)) == {"internal_error"}
            assert percentile(outcomes, 1.0) < 0.1
            assert sum(group.count(m.CLIENT_RETRIES.name).values()) <= 10 * 8 + 100

    simulation.run(main())


def test_retries_are_told_by_reason(simulation: Simulation, key: PrivateKey) -> None:
    """An error, a wrong signature, a lost link and silence each have their own label."""
    a, b = Device("a", zone="here"), Device("b")

    async def main() -> None:
        async with simulation.cluster(a, b, zone="here", max_ejected=0.0, hedge_budget=0.0) as group:
            a.errors = 1.0
            await one(group, key)
            a.errors = 0.0
            a.signs_wrongly = True
            await one(group, key)
            a.signs_wrongly = False
            await asyncio.sleep(2.0)
            asyncio.get_running_loop().call_later(0.001, a.kill)
            assert (await one(group, key)).node == "b"
            assert group.count(m.CLIENT_RETRIES.name) == {
                ("internal_error",): 1,
                ("bad_signature",): 1,
                ("link_lost",): 1,
            }

    simulation.run(main())
