"""Stories of a cluster client in virtual time: what tests ask of `loadtest.simulation`, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hsm.client import ClusterOptions, SignRequest
from hsm.client.node import NodeClient
from hsm.signing import PrivateKey
from hsm.verification import VerificationKey
from loadtest import simulation
from loadtest.simulation import Device, SimulatedKey
from tests.hsm.scripted import DIGEST, SCHEME, Cluster

__all__ = ["Device", "Outcome", "SimulatedCluster", "Simulation", "failed", "percentile"]

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    seconds: float
    node: str
    reason: str
    """Why it failed; empty for a signature."""


class SimulatedCluster(Cluster):
    """A client of simulated devices, its metrics and its log, and the requests made of it."""

    def __init__(self, devices: Sequence[Device], options: ClusterOptions) -> None:
        by_name = {device.options.name: device for device in devices}

        async def keep(client: NodeClient) -> None:
            by_name[client.name].connect(client)

        clock, draw = asyncio.get_running_loop().time, random.Random(1).random
        nodes = [device.options for device in devices]
        super().__init__(nodes, [], options, clock=clock, draw=draw, keep=keep)

    async def load(
        self, key: PrivateKey, rate: float, seconds: float, *, timeout: float = 5.0
    ) -> list[Outcome]:
        """Ask for signatures at a steady rate, whatever comes of them; returns when all are told."""
        loop = asyncio.get_running_loop()
        outcomes: list[Outcome] = []
        begun, count = loop.time(), int(rate * seconds)
        all_told = asyncio.Event()

        def done(request: SignRequest) -> None:
            reason = request.error.reason if request.error is not None else ""
            outcomes.append(Outcome(loop.time() - request.started, request.node, reason))
            if len(outcomes) == count:
                all_told.set()

        ski = VerificationKey(key.public_key()).ski
        for number in range(count):
            await asyncio.sleep(begun + number / rate - loop.time())
            self.client.sign(ski, SCHEME, DIGEST, loop.time() + timeout, done)
        await all_told.wait()
        return outcomes

    def count(self, name: str) -> dict[tuple[str, ...], float]:
        """A counter's values by labels."""
        return {tuple(labels): value for labels, value in self.store.snapshot().get(name, []) if value}

    def story(self, node: str) -> list[str]:
        """What was logged of a node, in order: events, with causes."""
        return [
            " ".join(filter(None, (entry["event"].removeprefix("node_"), entry.get("cause", ""))))
            for entry in self.log
            if entry.get("node") == node
        ]


class Simulation:
    """Virtual time for the tests of one function, from the fixture `simulation`."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = SimulatedKey(key.public_key())

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a story to its end; fail if it leaves a task or a complaint behind."""
        return simulation.run(main)

    @contextlib.asynccontextmanager
    async def cluster(self, *devices: Device, **options: Any) -> AsyncIterator[SimulatedCluster]:
        """A client of devices that hold the key; `options` are those of ClusterOptions."""
        for device in devices:
            device.keys = device.keys or [self._key]
        group = SimulatedCluster(devices, ClusterOptions(**options))
        group.client.add_key(self._key)
        group.client.start()
        await asyncio.sleep(0)
        try:
            yield group
        finally:
            await group.client.close()


def percentile(outcomes: list[Outcome], share: float) -> float:
    """The seconds that this share of them did not exceed."""
    ordered = sorted(outcome.seconds for outcome in outcomes)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def failed(outcomes: list[Outcome]) -> list[str]:
    """Why some failed."""
    return [outcome.reason for outcome in outcomes if outcome.reason]
