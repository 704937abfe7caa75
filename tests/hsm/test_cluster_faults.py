"""A cluster of three whose nodes die, hang, lie or are slow, in virtual time: nobody's request fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hsm import metrics as m
from hsm.signing import PrivateKey
from tests.hsm.simulation import Device, Simulation, failed, percentile

RATE = 200.0


def three() -> list[Device]:
    """Nodes that sign in 5 ms, each of them able to do all the work."""
    return [Device(name, seconds=0.005, servers=8) for name in "abc"]


def killed(device: Device) -> None:
    """It is gone, and comes back after two seconds."""
    device.kill()
    asyncio.get_running_loop().call_later(2.0, device.start)


def stopped(device: Device) -> None:
    """It hangs for five seconds."""
    device.stop()
    asyncio.get_running_loop().call_later(5.0, device.go_on)


def slow(device: Device) -> None:
    """It takes twenty times as long."""
    device.seconds *= 20


def failing(device: Device) -> None:
    """Three of ten answers are errors."""
    device.errors = 0.3


def lying(device: Device) -> None:
    """No signature of it is right."""
    device.signs_wrongly = True


@pytest.mark.parametrize(
    ("fault", "state"),
    [(killed, "lost"), (stopped, "ejected silent"), (slow, "suspect slow"),
     (failing, "ejected internal_error"), (lying, "ejected bad_signature")],
)  # fmt: skip
def test_one_bad_node_harms_nobody(
    simulation: Simulation, key: PrivateKey, fault: Callable[[Device], None], state: str
) -> None:
    """No request fails, the slowest hundredth takes at most 100 ms more, and the node's state is told."""
    devices = three()

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            before = await group.load(key, RATE, 3.0)
            fault(devices[0])
            during = await group.load(key, RATE, 8.0)
            assert failed(before + during) == []
            assert percentile(during, 0.99) <= percentile(before, 0.99) + 0.1
            assert state in group.story("a")
            assert group.story("b") == group.story("c") == ["ready"]

    simulation.run(main())


def test_two_of_three_killed(simulation: Simulation, key: PrivateKey) -> None:
    """What is left does the work of all."""
    devices = three()

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            before = await group.load(key, RATE, 3.0)
            devices[0].kill()
            devices[1].kill()
            during = await group.load(key, RATE, 8.0)
            assert failed(before + during) == []
            assert percentile(during, 0.99) <= 3 * percentile(before, 0.99)

    simulation.run(main())


def test_all_gone_for_three_seconds(simulation: Simulation, key: PrivateKey) -> None:
    """Who can wait that long is served when they are back; nobody else is told anything but the deadline."""
    devices = three()

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            for device in devices:
                device.kill()
                asyncio.get_running_loop().call_later(3.0, device.start)
            patient = asyncio.create_task(group.load(key, 50.0, 1.0, timeout=5.0))
            assert set(failed(await group.load(key, 50.0, 1.0, timeout=1.0))) == {"deadline"}
            assert failed(await patient) == []

    simulation.run(main())


def test_nodes_replaced_one_by_one(simulation: Simulation, key: PrivateKey) -> None:
    """A rolling restart is not noticed."""
    devices = three()

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            loop = asyncio.get_running_loop()
            for number, device in enumerate(devices):
                loop.call_later(1.0 + 2 * number, device.kill)
                loop.call_later(2.0 + 2 * number, device.start)
            outcomes = await group.load(key, RATE, 8.0)
            assert failed(outcomes) == []
            assert percentile(outcomes, 0.99) < 0.02
            assert group.story("c") == ["ready", "lost", "ready"]

    simulation.run(main())


def test_a_fault_of_all_nodes_empties_no_cluster(simulation: Simulation, key: PrivateKey) -> None:
    """All of them answer errors for a while: at most half are ejected, and when they are well all serve again."""
    devices = three()

    async def main() -> None:
        async with simulation.cluster(*devices, max_ejected=0.5) as group:
            for device in devices:
                device.errors = 1.0
            assert set(failed(await group.load(key, RATE, 3.0))) == {"internal_error"}
            assert sum(node.is_ejected for node in group.client.nodes) == 1
            for device in devices:
                device.errors = 0.0
            await asyncio.sleep(5.0)
            served = await group.load(key, RATE, 2.0)
            assert failed(served) == []
            assert {outcome.node for outcome in served} == {"a", "b", "c"}

    simulation.run(main())


def test_three_times_too_much(simulation: Simulation, key: PrivateKey) -> None:
    """Overload: the devices stay busy, who is served is served soon, the others are refused; then all is well."""
    devices = [Device(name, seconds=0.02, servers=2) for name in "abc"]
    capacity = 3 * 2 / 0.02

    async def main() -> None:
        async with simulation.cluster(*devices, hedge_budget=0.05) as group:
            await group.load(key, capacity / 3, 2.0)
            outcomes = await group.load(key, 3 * capacity, 8.0)
            served = [outcome for outcome in outcomes if not outcome.reason]
            assert len(served) >= 0.9 * capacity * 8
            assert percentile(served, 0.99) < 1.5
            assert set(failed(outcomes)) <= {"overloaded", "queue_timeout"}
            refused = group.count(m.CLIENT_REFUSED.name)
            assert sum(refused.values()) == len(outcomes) - len(served)
            await asyncio.sleep(1.0)
            after = await group.load(key, capacity / 3, 2.0)
            assert failed(after) == []
            assert percentile(after, 0.99) < 0.1

    simulation.run(main())
