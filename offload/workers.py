"""A worker process as the supervisor sees it: configured, kept under watch, replaced."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import structlog

from hsm.metrics import Snapshot
from offload.children import Child, spawn
from offload.control import Channel
from offload.errors import WorkerLost
from offload.settings import WorkerSettings

START_TIMEOUT = 30.0
HEARTBEATS_PER_TIMEOUT = 3


class WorkerChild(Child):
    """One worker slot: the process that serves it now, and its control channel."""

    kind = "worker"

    def __init__(
        self,
        slot: int,
        settings: Callable[[int], WorkerSettings],
        log: structlog.typing.FilteringBoundLogger,
        on_change: Callable[[WorkerChild], None],
    ) -> None:
        """`settings(slot)` is asked at each start; `on_change(worker)` is called when it begins
        or ceases to accept."""
        super().__init__(f"worker-{slot}", log)
        self.slot = slot
        self.accepting = False
        self.snapshot: dict[str, Any] = {}
        self.adopted: set[int] = set()
        """Slots of absent siblings that this worker serves too."""
        self._make_settings = settings
        self._settings = settings(slot)
        self._on_change = on_change
        self._channel: Channel | None = None
        self._heartbeat_timeout = self._settings.limits.heartbeat_timeout
        self._ours: socket.socket | None = None

    @property
    def metrics(self) -> Snapshot:
        """What it counted, as of its last answer."""
        metrics: Snapshot = self.snapshot.get("metrics", {})
        return metrics

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._settings = self._make_settings(self.slot)
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        fds = [fd for listener in self._settings.listeners for fd in listener.sockets]
        try:
            return await spawn("offload.worker", [str(theirs.fileno())], [theirs.fileno(), *fds])
        finally:
            theirs.close()

    async def _attend(self, process: asyncio.subprocess.Process) -> None:
        assert self._ours is not None
        self._channel = await Channel.over(self._ours)
        ended = asyncio.ensure_future(process.wait())
        try:
            await self.ask("configure", START_TIMEOUT, settings=self._settings.model_dump(mode="json"))
            await self.refresh()
            self.accepting = True
            self._on_change(self)
            interval = self._heartbeat_timeout / HEARTBEATS_PER_TIMEOUT
            while not ended.done():
                await asyncio.wait({ended}, timeout=interval)
                if not ended.done():
                    await self.refresh()
        except WorkerLost as error:
            if not self._stopping and not ended.done():
                self._log.error("worker_lost", name=self.name, pid=process.pid, error=str(error))
                self.kill()
        finally:
            ended.cancel()

    async def _cleaned_up(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
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

    async def drain(self, timeout: float) -> None:
        """Have it finish what is open, and wait for its end; then make it end."""
        self._stopping = True
        try:
            await self.ask("drain", self._heartbeat_timeout, timeout=timeout)
        except WorkerLost:
            self.kill()
        await self.wait_stopped(timeout + 2)
