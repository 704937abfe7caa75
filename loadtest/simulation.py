"""Cluster clients in virtual time: their own code throughout, but the clock is ours and nodes need no socket.

An hour passes in the time that its events take to work through, and the same seed gives the same story.
The tests of the client and `offload-load plan` share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar, cast

from hsm import errors, keyless
from hsm.client import NodeOptions
from hsm.client.link import Answer, Link, OnAnswer
from hsm.client.node import NodeClient
from hsm.config import Address
from hsm.errors import HSMError, Source
from hsm.keyless import Message
from hsm.node.emulation import Schedule
from hsm.signing import SignatureScheme
from hsm.verification import VerificationKey

T = TypeVar("T")
START = 1000.0
"""What the virtual clock shows at the beginning."""


class SimulationError(Exception):
    """A simulation can't go on, or went wrong: a fault of whoever wrote it."""


class _NoWait(selectors.DefaultSelector):
    """Instead of waiting for I/O, of which there is none, time goes on."""

    now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As a selector's, at once."""
        if timeout is None:
            raise SimulationError("nothing will ever happen any more in this simulation")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that skips all waiting."""

    def __init__(self) -> None:
        self._clock = _NoWait()
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds."""
        return self._clock.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a story to its end in virtual time.

    Raises SimulationError if it leaves a task or an unhandled exception behind.
    """
    loop = VirtualLoop()
    complaints: list[Mapping[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    with contextlib.closing(loop):
        result = loop.run_until_complete(main)
        if left := asyncio.all_tasks(loop):
            raise SimulationError(f"tasks are left: {left}")
        if complaints:
            raise SimulationError(f"unhandled: {complaints}")
    return result


class SimulatedKey(VerificationKey):
    """A key whose right signature is the digest itself: 100 µs of arithmetic less for each request."""

    def verify(self, _scheme: SignatureScheme, digest: bytes, signature: bytes) -> bool:
        """Whether a simulated device signed it."""
        return signature == digest


class Device:
    """A node of the simulation: `servers` requests at a time for `seconds` each, the others wait in it."""

    def __init__(
        self, name: str, *, seconds: float = 0.005, servers: int = 8, rate: float = 0.0, **options: Any
    ) -> None:
        """It begins at most `rate` signatures a second; 0 is unlimited, as with `servers`.

        `options` are those of NodeOptions.
        """
        self.options = NodeOptions(name, Address(path=f"/simulated/{name}"), **options)
        self.seconds = seconds
        self.errors = 0.0
        """The share of requests that it answers with an internal error."""
        self.signs_wrongly = False
        self.keys: list[VerificationKey] = []
        self.asked = 0
        """Requests and tests that arrived."""
        self.schedule = Schedule(rate, servers)
        self._chance = random.Random(name)
        self._wires: list[Wire] = []
        self._held: list[tuple[Wire, OnAnswer, bytes | None]] | None = None

    def service_time(self) -> float:
        """How long the next signature takes once it is begun."""
        return self.seconds

    def stop(self) -> None:
        """Hang (SIGSTOP, or its power is gone): nothing is answered until it goes on."""
        self._held = []

    def go_on(self) -> None:
        """Answer what was asked for meanwhile (SIGCONT)."""
        held, self._held = self._held or [], None
        for asked in held:
            self._finish(*asked)

    def kill(self) -> None:
        """Lose all links (SIGKILL)."""
        for wire in self._wires:
            wire.lose()

    def start(self) -> None:
        """Come back after a kill."""
        wires, self._wires = self._wires, []
        for wire in wires:
            self.connect(wire.client, wire.round_trip)

    def connect(self, client: NodeClient, round_trip: float = 0.0) -> None:
        """A client has a link now, and knows the keys; frames there and back take `round_trip` seconds."""
        client.listed({key.ski: frozenset(key.opcodes) for key in self.keys})
        wire = Wire(self, client, round_trip)
        self._wires.append(wire)
        client.linked(cast("Link", wire))

    def work(self, wire: Wire, on_answer: OnAnswer, digest: bytes, patience: float | None) -> None:
        """For Wire: a request came, which nobody waits for after `patience` seconds."""
        self.asked += 1
        loop = asyncio.get_running_loop()
        arrived = loop.time() + wire.round_trip / 2
        expires = None if patience is None else arrived + patience
        done = self.schedule.admit(arrived, self.service_time(), expires)
        if done is None:
            loop.call_at(arrived + wire.round_trip / 2, self._finish, wire, on_answer, None)
        else:
            loop.call_at(done + wire.round_trip / 2, self._finish, wire, on_answer, digest)

    def _finish(self, wire: Wire, on_answer: OnAnswer, digest: bytes | None) -> None:
        if self._held is not None:
            self._held.append((wire, on_answer, digest))
        else:
            wire.deliver(on_answer, self._answer(digest))

    def _answer(self, digest: bytes | None) -> Answer:
        if digest is None:
            return _failure("expired", "nobody waits for it any more")
        if self.errors and self._chance.random() < self.errors:
            return _failure("internal_error", "a simulated fault")
        return Message(0, keyless.OP_RESPONSE, payload=b"wrong" if self.signs_wrongly else digest)


def _failure(reason: str, text: str) -> HSMError:
    return HSMError(reason, text, source=Source.NODE, retryable=True)


class Wire:
    """A link without a connection."""

    is_open = True

    def __init__(self, device: Device, client: NodeClient, round_trip: float) -> None:
        self._device = device
        self.client = client
        self.round_trip = round_trip
        self._pending: dict[OnAnswer, None] = {}

    @property
    def outstanding(self) -> int:
        """As a link's."""
        return len(self._pending)

    def request_signature(
        self, _opcode: int, _ski: bytes, digest: bytes, remaining_ms: int, on_answer: OnAnswer
    ) -> None:
        """As a link's."""
        self._pending[on_answer] = None
        self._device.work(self, on_answer, digest, remaining_ms / 1000)

    def ping(self, on_answer: OnAnswer) -> None:
        """As a link's; takes as long as a signature."""
        self._pending[on_answer] = None
        self._device.work(self, on_answer, b"", None)

    def lose(self) -> None:
        """The connection breaks."""
        self.is_open = False
        self.client.unlinked(cast("Link", self), "connection lost")
        pending, self._pending = self._pending, {}
        for on_answer in pending:
            on_answer(errors.link_lost("connection lost"))

    def deliver(self, on_answer: OnAnswer, answer: Answer) -> None:
        """For Device: the answer is here, unless the connection broke before."""
        if on_answer in self._pending:
            del self._pending[on_answer]
            on_answer(answer)
