"""Child processes that are kept running: started again, with backoff, when they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hsm import start
from hsm.cluster_config import LocalNode
from hsm.config import Address
from hsm.logs import Logger
from hsm.process import PARENT_STOPS
from offload.account import Account

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 10.0
"""Seconds before a child is started again: doubled from the first to the most."""
GOOD_RUN = 10.0
"""A child that ran for this long starts again without delay."""
STOP_TIMEOUT = 8.0


class Child:
    """One child process and its successors."""

    kind = "child"
    stop_signal = signal.SIGTERM

    def __init__(self, name: str, log: Logger) -> None:
        self.name = name
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._log = log
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.on_restart: Callable[[Child], None] = lambda _child: None

    @property
    def pid(self) -> int | None:
        """The running process's id."""
        process = self.process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Begin to keep it running."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        delay = BACKOFF_FIRST
        loop = asyncio.get_running_loop()
        while not self._stopping:
            started = loop.time()
            try:
                code = await self._run_once()
            except OSError as error:
                code = None
                self._log.error("child_not_started", kind=self.kind, name=self.name, error=str(error))
            if self._stopping:
                return
            ran = loop.time() - started
            delay = BACKOFF_FIRST if ran > GOOD_RUN else min(delay * 2, BACKOFF_MOST)
            self._log.error(
                "child_ended", kind=self.kind, name=self.name, exit=_describe_exit(code), again_in=delay
            )
            self.restarts += 1
            self.on_restart(self)
            await asyncio.sleep(delay)

    async def _run_once(self) -> int:
        self.process = await self._spawn()
        try:
            await self._attend(self.process)
            return await self.process.wait()
        finally:
            self.kill()
            await self._cleaned_up()

    async def _spawn(self) -> asyncio.subprocess.Process:
        raise NotImplementedError

    async def _attend(self, process: asyncio.subprocess.Process) -> None:
        """While it runs; returning means: wait for its end."""

    async def _cleaned_up(self) -> None:
        """It has ended."""

    def signal(self, number: int) -> None:
        """Send a signal if it runs."""
        if self.pid is not None and self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)

    async def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """End it for good: `stop_signal`, and SIGKILL when that does not help in time."""
        self._stopping = True
        self.signal(self.stop_signal)
        await self.wait_stopped(timeout)

    async def wait_stopped(self, timeout: float) -> None:
        """Wait for the end; after `timeout` seconds, make it."""
        self._stopping = True
        if self._task is None:
            return
        done, _ = await asyncio.wait({self._task}, timeout=timeout)
        if not done:
            self.kill()
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_TIMEOUT)


async def spawn(
    module: str, arguments: Sequence[str], pass_fds: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """A module's `main`, in a session of its own: a terminal's Ctrl-C is the parent's."""
    return await asyncio.create_subprocess_exec(
        *start.command(module, *arguments),
        stdin=asyncio.subprocess.DEVNULL, pass_fds=tuple(pass_fds), start_new_session=True,
    )  # fmt: skip


class LocalNodeChild(Child):
    """A node that `offload serve` runs itself, on a unix socket."""

    kind = "node"
    stop_signal = PARENT_STOPS

    def __init__(
        self,
        name: str,
        settings: LocalNode,
        path: Path,
        log: Logger,
        log_level: str = "info",
        made_from: object = None,
    ) -> None:
        """It listens on the unix socket `path`; another with an equal `made_from` would be the same."""
        super().__init__(name, log)
        self.made_from = made_from
        self.account: Account | None = None
        """Who may connect besides the node's own user."""
        self.address = Address(path=str(path))
        self.admin = Address(path=str(path.with_name(f"{path.stem}-admin.sock")))
        self._log_level = log_level
        self._settings = settings

    async def _spawn(self) -> asyncio.subprocess.Process:
        file = self._settings_file()
        arguments = [f"/proc/self/fd/{file}", self._log_level, str(os.getpid())]
        try:
            return await spawn("hsm.node.main", arguments, [file, *self._settings.inherited_descriptors()])
        finally:
            os.close(file)

    def _settings_file(self) -> int:
        """The node's settings in a file that exists in memory only: they may hold a PIN."""
        node: dict[str, Any] = {"name": self.name, "listen": str(self.address), "admin": str(self.admin)}
        if self.account is not None:
            node |= {"allow_users": [str(self.account.uid)], "socket_group": str(self.account.gid)}
        descriptor = os.memfd_create(f"node-{self.name}")
        os.write(descriptor, json.dumps({**self._settings.revealed(), **node}).encode())
        return descriptor


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "not started"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"code {code}"
