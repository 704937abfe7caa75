"""A cluster client in virtual time: its own code throughout, but the clock is ours and nodes need no socket.

An hour passes in the time that its events take to work through, and the same seed gives the same story.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from heapq import heappop, heappush
from types import ModuleType
from typing import Any, TypeVar, cast

import pytest

from hsm import errors, keyless
from hsm.client import (
    ClusterOptions,
    NodeOptions,
    SignRequest,
    cluster,
    dispatch,
    node,
    probing,
    roster,
    upkeep,
)
from hsm.client.link import Answer, Link, OnAnswer
from hsm.client.node import NodeClient
from hsm.config import Address
from hsm.errors import HSMError, Source
from hsm.keyless import Message
from hsm.signing import PrivateKey, SignatureScheme, VerificationKey
from tests.hsm.scripted import DIGEST, SCHEME, Cluster

T = TypeVar("T")
CLOCK_USERS: tuple[ModuleType, ...] = (cluster, dispatch, node, probing, roster)
START = 1000.0
"""What the virtual clock shows at the beginning."""


class _NoWait(selectors.DefaultSelector):
    """Instead of waiting for I/O, time goes on."""

    now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As a selector's, at once."""
        if timeout is None:
            pytest.fail("nothing will ever happen any more in this simulation")
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that skips all waiting."""

    def __init__(self) -> None:
        self._clock = _NoWait()
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds."""
        return self._clock.now


class SimulatedKey(VerificationKey):
    """A key whose right signature is the digest itself: 100 µs of arithmetic less for each request."""

    def verify(self, scheme: SignatureScheme, digest: bytes, signature: bytes) -> bool:
        """Whether a simulated device signed it."""
        return signature == digest


class Device:
    """A node of the simulation: `servers` requests at a time for `seconds` each, the others wait in it."""

    def __init__(self, name: str, *, seconds: float = 0.005, servers: int = 8, **options: Any) -> None:
        """`options` are those of NodeOptions."""
        self.options = NodeOptions(name, Address(path=f"/simulated/{name}"), **options)
        self.seconds = seconds
        self.errors = 0.0
        """The share of requests that it answers with an internal error."""
        self.signs_wrongly = False
        self.keys: list[PrivateKey] = []
        self.asked = 0
        """Requests and tests that arrived."""
        self._free = [0.0] * servers
        self._chance = random.Random(name)
        self._clients: list[tuple[NodeClient, _Wire]] = []
        self._held: list[Callable[[], None]] | None = None

    def stop(self) -> None:
        """Hang (SIGSTOP): nothing is answered until it goes on."""
        self._held = []

    def go_on(self) -> None:
        """Answer what was asked for meanwhile (SIGCONT)."""
        held, self._held = self._held or [], None
        for answer in held:
            answer()

    def kill(self) -> None:
        """Lose all links (SIGKILL)."""
        for client, wire in self._clients:
            wire.lose(client)

    def start(self) -> None:
        """Come back after a kill."""
        clients, self._clients = self._clients, []
        for client, _ in clients:
            self.connect(client)

    def connect(self, client: NodeClient) -> None:
        """For the simulation: a client has a link now, and knows the keys."""
        keys = [VerificationKey(key.public_key()) for key in self.keys]
        client.listed({key.ski: frozenset(key.opcodes) for key in keys})
        wire = _Wire(self)
        self._clients.append((client, wire))
        client.linked(cast("Link", wire))

    def work(self, digest: bytes, deliver: Callable[[Answer], None]) -> None:
        """For _Wire: a request came."""
        self.asked += 1
        loop = asyncio.get_running_loop()
        done = max(loop.time(), heappop(self._free)) + self.seconds
        heappush(self._free, done)
        loop.call_at(done, self._finish, lambda: deliver(self._answer(digest)))

    def _finish(self, answer: Callable[[], None]) -> None:
        if self._held is not None:
            self._held.append(answer)
        else:
            answer()

    def _answer(self, digest: bytes) -> Answer:
        if self._chance.random() < self.errors:
            return HSMError("internal_error", "a simulated fault", source=Source.NODE, retryable=True)
        return Message(0, keyless.OP_RESPONSE, payload=b"wrong" if self.signs_wrongly else digest)


class _Wire:
    """A link without a connection."""

    is_open = True

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pending: dict[OnAnswer, None] = {}

    @property
    def outstanding(self) -> int:
        """As a link's."""
        return len(self._pending)

    def request_signature(
        self, opcode: int, ski: bytes, digest: bytes, remaining_ms: int, on_answer: OnAnswer
    ) -> None:
        """As a link's."""
        self._pending[on_answer] = None
        self._device.work(digest, lambda answer: self._deliver(on_answer, answer))

    def ping(self, on_answer: OnAnswer) -> None:
        """As a link's; takes as long as a signature."""
        self.request_signature(keyless.OP_PING, b"", b"", 0, on_answer)

    def lose(self, client: NodeClient) -> None:
        """The connection breaks."""
        self.is_open = False
        client.unlinked(cast("Link", self), "connection lost")
        pending, self._pending = self._pending, {}
        for on_answer in pending:
            on_answer(errors.link_lost("connection lost"))

    def _deliver(self, on_answer: OnAnswer, answer: Answer) -> None:
        if on_answer in self._pending:
            del self._pending[on_answer]
            on_answer(answer)


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    seconds: float
    node: str
    reason: str
    """Why it failed; empty for a signature."""


class SimulatedCluster(Cluster):
    """A client of simulated devices, its metrics and its log, and the requests made of it."""

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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, key: PrivateKey) -> None:
        self._patch = monkeypatch
        self._key = key

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a story to its end; fail if it leaves a task or a complaint behind."""
        loop = VirtualLoop()
        for module in CLOCK_USERS:
            self._patch.setattr(module, "monotonic", loop.time)
        self._patch.setattr(dispatch, "random", random.Random(1))
        complaints: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: complaints.append(context))
        with contextlib.closing(loop):
            result = loop.run_until_complete(main)
            assert asyncio.all_tasks(loop) == set(), "tasks are left"
            assert complaints == [], complaints
        return result

    @contextlib.asynccontextmanager
    async def cluster(self, *devices: Device, **options: Any) -> AsyncIterator[SimulatedCluster]:
        """A client of devices that hold the key; `options` are those of ClusterOptions."""
        by_name = {device.options.name: device for device in devices}

        async def keep(client: NodeClient) -> None:
            by_name[client.name].connect(client)

        self._patch.setattr(upkeep, "keep", keep)
        for device in devices:
            device.keys = device.keys or [self._key]
        group = SimulatedCluster([device.options for device in devices], [], ClusterOptions(**options))
        group.client.add_key(SimulatedKey(self._key.public_key()))
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
