"""A process that replaces a running one, which started it for `offload upgrade` (`handover`).

It accepts on the same listening sockets before it is ready, so until then it must not shut them:
they count as lent. It lets no client in before its nodes hold the keys that are needed.

A predecessor that changes its mind ends this process by SIGTERM. One that is killed can't, and this
process goes on: nobody else would serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hsm.errors import ConfigurationError
from offload import __version__, heritage
from offload.control import Channel
from offload.errors import WorkerLost
from offload.handover import TAKING_TIMEOUT, VARIABLE
from offload.heritage import Heritage
from offload.nodes import Placement
from offload.sockets import steer

if TYPE_CHECKING:
    from offload.supervisor import Supervisor

CHECK = 0.05
PATIENCE = 0.8
"""Share of the time it is given after which it says itself what is missing."""


class Predecessor:
    """The process that serves until this one is ready."""

    def __init__(self, channel: Channel, sockets: socket.socket) -> None:
        self._channel = channel
        self._sockets = sockets
        self._heritage = Heritage()

    async def inherit(self) -> Heritage:
        """What it gives. Every place counts as lent for now. Raises ConfigurationError."""
        try:
            answer = await self._channel.ask("inherit", TAKING_TIMEOUT, {})
        except WorkerLost as error:
            raise ConfigurationError(f"the process before gives nothing: {error}") from error
        self._heritage = heritage.receive(answer, self._sockets)
        return replace(self._heritage, lent=frozenset(self._heritage.held))

    async def take_over(self, supervisor: Supervisor) -> None:
        """All is ready: be the one that serves. Raises ConfigurationError if it does not let go."""
        places = [each.place for each in supervisor.state.listeners if each.place in self._heritage.held]
        if not supervisor.ready:
            raise ConfigurationError("\n".join(supervisor.degraded) or "not every worker accepts")
        # Asked before: the answer shows that both are alive and of one mind.
        await self._agree("ready")
        if supervisor.stopping.is_set():  # the one before shall not let go for one that ends
            raise ConfigurationError("it was told to end")
        await self._agree("taken", places=places, version=f"offload {__version__}")
        if self._channel.is_closed:
            supervisor.log.warning("predecessor_lost", hint="its open connections end as it had set")
        await supervisor.entrances.open()
        await self._own_sockets(supervisor)
        await self._channel.close()

    async def _agree(self, operation: str, **told: Any) -> None:
        """Raises ConfigurationError if it does not; one that is dead can't object."""
        try:
            answer = await self._channel.ask(operation, TAKING_TIMEOUT, told)
        except WorkerLost as error:
            if self._channel.is_closed:
                return
            raise ConfigurationError(f"the process before does not let go: {error}") from error
        if "error" in answer:
            raise ConfigurationError(f"the process before does not let go: {answer['error']}")

    async def _own_sockets(self, supervisor: Supervisor) -> None:
        """Those that the service manager does not have are shut when they are no longer needed."""
        async with supervisor.reloader.lock:
            old = supervisor.state
            new = replace(old, lent=old.lent & self._heritage.lent, generation=old.generation + 1)
            try:
                await supervisor.pool.switch(new, lambda: None)
            except ConfigurationError as error:
                supervisor.log.error("sockets_stay_lent", error=str(error))
        for listener in supervisor.state.listeners:
            steer(listener.sockets, supervisor.state.config.worker_count)

    async def tell_failure(self, error: Exception) -> None:
        """Say why this process ends."""
        known = isinstance(error, ConfigurationError)
        lines = str(error).splitlines() if known else [f"internal error: {error!r}"]
        with contextlib.suppress(WorkerLost):
            await self._channel.ask("failed", TAKING_TIMEOUT, {"lines": lines})

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()
        self._sockets.close()


@contextlib.asynccontextmanager
async def predecessor() -> AsyncIterator[Predecessor | None]:
    """The process that started this one to be replaced by it, if so; it is told of errors."""
    numbers = os.environ.pop(VARIABLE, "")
    if not numbers:
        yield None
        return
    control, sockets = (socket.socket(fileno=int(number)) for number in numbers.split(","))
    for end in (control, sockets):
        end.set_inheritable(False)
        end.setblocking(False)
    found = Predecessor(await Channel.over(control), sockets)
    try:
        yield found
    except Exception as error:
        await found.tell_failure(error)
        raise
    finally:
        await found.close()


async def until_served(supervisor: Supervisor, placement: Placement, seconds: float) -> None:
    """Wait until own nodes are ready and all keys are found. Raises ConfigurationError if they are not."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds * PATIENCE
    while faults := _unserved(supervisor, placement):
        if supervisor.stopping.is_set():
            raise ConfigurationError("it was told to end")
        if loop.time() > deadline or _is_settled(supervisor, placement):
            raise ConfigurationError("\n".join(faults))
        await asyncio.sleep(CHECK)


def _is_settled(supervisor: Supervisor, placement: Placement) -> bool:
    """Whether waiting any longer makes no difference; own nodes may find keys only after a while."""
    all_told = all(node.ready and node.keys is not None for node in supervisor.cluster.nodes)
    return (all_told and not placement.fresh) or any(each.is_final for each in supervisor.keys.shortfalls())


def _unserved(supervisor: Supervisor, placement: Placement) -> list[str]:
    own = {child.name for child in placement.fresh}
    nodes = [
        node for node in supervisor.cluster.nodes if node.name in own and node.enabled and not node.ready
    ]
    faults = [f"node {node.name}: {node.why_not_ready}" for node in nodes]
    missing = [ski.hex() for ski in supervisor.keys.missing()]
    faults += [f"no ready node holds key {ski}; put the key into a node, then upgrade" for ski in missing]
    return faults + [str(shortfall) for shortfall in supervisor.keys.shortfalls()]
