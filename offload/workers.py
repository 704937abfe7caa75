"""A worker process as the supervisor sees it: configured, kept under watch, replaced."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from hsm.logs import Logger
from hsm.metrics import Snapshot
from offload import descriptors
from offload.children import Child, spawn
from offload.control import Channel
from offload.errors import WorkerLost
from offload.settings import WorkerSettings

START_TIMEOUT = 30.0
HEARTBEATS_PER_TIMEOUT = 3


Told = Callable[[int], tuple[WorkerSettings, Sequence[socket.socket]]]
"""What the worker of a slot is told now: settings, and the listening sockets that belong to them."""


class WorkerChild(Child):
    """One worker slot: the process that serves it now, and its control channel."""

    kind = "worker"

    def __init__(
        self,
        slot: int,
        told: Told,
        log: Logger,
        on_change: Callable[[WorkerChild], None],
    ) -> None:
        """`told(slot)` is asked at each start; `on_change(worker)` is called when it begins
        or ceases to accept."""
        super().__init__(f"worker-{slot}", log)
        self.slot = slot
        self.accepting = False
        self.generation = 0
        """Of the settings that it works with."""
        self.snapshot: dict[str, Any] = {}
        self.adopted: set[int] = set()
        """Slots of absent siblings that this worker serves too."""
        self._told = told
        self._on_change = on_change
        self._channel: Channel | None = None
        self._heartbeat_timeout = 0.0
        self._ends: tuple[socket.socket, socket.socket] | None = None

    @property
    def metrics(self) -> Snapshot:
        """What it counted, as of its last answer."""
        metrics: Snapshot = self.snapshot.get("metrics", {})
        return metrics

    async def _spawn(self) -> asyncio.subprocess.Process:
        control, its_control = socket.socketpair()
        sockets, its_sockets = descriptors.pair()
        control.setblocking(False)
        self._ends = control, sockets
        given = [its_control.fileno(), its_sockets.fileno()]
        try:
            return await spawn("offload.worker", [str(number) for number in given], given)
        finally:
            its_control.close()
            its_sockets.close()

    async def _attend(self, process: asyncio.subprocess.Process) -> None:
        assert self._ends is not None
        self._channel = await Channel.over(self._ends[0])
        ended = asyncio.ensure_future(process.wait())
        try:
            await self._begin()
            self.accepting = True
            self._on_change(self)
            while not ended.done():
                await asyncio.wait({ended}, timeout=self._heartbeat_timeout / HEARTBEATS_PER_TIMEOUT)
                if not ended.done():
                    await self.refresh()
        except WorkerLost as error:
            if not self._stopping and not ended.done():
                self._log.error("worker_lost", name=self.name, pid=process.pid, error=str(error))
                self.kill()
        finally:
            ended.cancel()

    async def _begin(self) -> None:
        """Configure it, again if that changed meanwhile. What was told last is current on return."""
        settings = None
        while settings is None or settings.generation != self._told(self.slot)[0].generation:
            settings = await self.prepare(*self._told(self.slot), START_TIMEOUT)
            await self.commit(settings)
            await self.refresh()

    async def prepare(
        self, settings: WorkerSettings, sockets: Sequence[socket.socket], within: float
    ) -> WorkerSettings:
        """Have it make ready for these settings. Raises WorkerLost if it can't."""
        if self._ends is None:
            raise WorkerLost("it is not running")
        try:
            descriptors.send(self._ends[1], sockets)
        except OSError as error:
            raise WorkerLost(f"it takes no sockets: {error.strerror}") from error
        await self.ask("prepare", within, settings=settings.model_dump(mode="json"))
        return settings

    async def commit(self, settings: WorkerSettings) -> None:
        """Have it work with what it prepared. Raises WorkerLost."""
        self._heartbeat_timeout = settings.limits.heartbeat_timeout
        await self.ask("commit", self._heartbeat_timeout)
        self.generation = settings.generation

    async def _cleaned_up(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        if self._ends is not None:
            self._ends[1].close()
            self._ends = None
        self.accepting = False
        self.adopted.clear()
        self._on_change(self)
        self.snapshot = {}

    async def ask(self, operation: str, within: float, **arguments: Any) -> dict[str, Any]:
        """Ask the worker. Raises WorkerLost if it does not answer, or answers with an error."""
        if self._channel is None:
            raise WorkerLost("it is not running")
        answer = await self._channel.ask(operation, within, arguments)
        if "error" in answer:
            raise WorkerLost(answer["error"])
        return answer

    async def refresh(self, timeout: float | None = None) -> None:
        """Fetch a new snapshot; this is the heartbeat too."""
        self.snapshot = await self.ask("snapshot", timeout or self._heartbeat_timeout)

    async def drain(self, timeout: float, keep: Sequence[str] | None = None) -> None:
        """Have it finish what is open, and wait for its end; then make it end.

        Sockets of places to `keep` (None: all) stay open: others accept there.
        """
        self._stopping = True
        try:
            await self.ask(
                "drain", self._heartbeat_timeout, timeout=timeout, keep=None if keep is None else list(keep)
            )
        except WorkerLost:
            self.kill()
        await self.wait_stopped(timeout + 2)
