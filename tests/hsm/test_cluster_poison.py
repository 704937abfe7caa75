"""A request that no node ever answers, though they answer all others: it harms nobody but who made it."""

from __future__ import annotations

import asyncio

import pytest

from hsm import metrics as m
from hsm.client import SignRequest
from hsm.client.link import OnAnswer
from hsm.signing import PrivateKey, ski_of
from loadtest.simulation import Wire
from tests.hsm.scripted import SCHEME
from tests.hsm.simulation import Device, SimulatedCluster, Simulation, failed, percentile

POISON = bytes(range(SCHEME.digest_size))


class Touchy(Device):
    """Says nothing when it is asked to sign this one digest, and goes on with the rest."""

    poisoned = 0

    def work(self, wire: Wire, on_answer: OnAnswer, digest: bytes, patience: float | None) -> None:
        """For Wire."""
        if digest == POISON:
            self.poisoned += 1
        else:
            super().work(wire, on_answer, digest, patience)


def ask_for_poison(group: SimulatedCluster, key: PrivateKey, done: list[SignRequest]) -> None:
    """What a client that knows how would do."""
    deadline = asyncio.get_running_loop().time() + 5.0
    group.client.sign(ski_of(key.public_key()), SCHEME, POISON, deadline, done.append)


@pytest.mark.parametrize("rate", [0.0, 200.0], ids=["idle", "busy"])
def test_a_poison_request_takes_no_node_down(simulation: Simulation, key: PrivateKey, rate: float) -> None:
    """It fails at its deadline, after few nodes; none is ejected for it, and each is healthy at the end."""
    devices = [Touchy(name) for name in "abcdef"]

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            await group.load(key, 200.0, 1.0)
            done: list[SignRequest] = []
            ask_for_poison(group, key, done)
            outcomes = await group.load(key, rate, 6.0) if rate else []
            await asyncio.sleep(8.0)
            assert [str(request.error and request.error.reason) for request in done] == ["deadline"]
            assert failed(outcomes) == []
            assert 2 <= sum(device.poisoned for device in devices) <= 3
            assert group.count(m.CLIENT_EJECTIONS.name) == {}
            assert all(node.is_healthy for node in group.client.nodes)

    simulation.run(main())


def test_poison_again_and_again_makes_no_node_silent(simulation: Simulation, key: PrivateKey) -> None:
    """Two a second for ten seconds beside ordinary clients, who are all served as before."""
    devices = [Touchy(name) for name in "abc"]

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            loop = asyncio.get_running_loop()
            before = await group.load(key, 200.0, 3.0)
            done: list[SignRequest] = []
            for number in range(20):
                loop.call_later(number / 2, ask_for_poison, group, key, done)
            during = await group.load(key, 200.0, 16.0)
            assert failed(before + during) == []
            assert percentile(during, 0.99) <= percentile(before, 0.99) + 0.01
            assert {str(request.error and request.error.reason) for request in done} == {"deadline"}
            assert "silent" not in {cause for _, cause in group.count(m.CLIENT_EJECTIONS.name)}

    simulation.run(main())


class Forgetful(Device):
    """Loses one request in fifty."""

    turn = 0

    def work(self, wire: Wire, on_answer: OnAnswer, digest: bytes, patience: float | None) -> None:
        """For Wire."""
        self.turn += 1
        if self.turn % 50:
            super().work(wire, on_answer, digest, patience)


def test_a_node_that_loses_what_others_sign_is_found_out(simulation: Simulation, key: PrivateKey) -> None:
    """That another node signed the same clears the request of suspicion, and not its node."""
    devices = [Forgetful("a"), Device("b"), Device("c")]

    async def main() -> None:
        async with simulation.cluster(*devices) as group:
            outcomes = await group.load(key, 200.0, 10.0)
            assert failed(outcomes) == []
            assert set(group.count(m.CLIENT_EJECTIONS.name)) == {("a", "silent")}

    simulation.run(main())
