"""Child processes that are kept running: started again, with backoff, when they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from hsm.cluster_config import LocalNode
from hsm.config import Address, Pkcs11Settings, SoftwareSettings
from offload.account import Account

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 10.0
"""Seconds before a child is started again: doubled from the first to the most."""
GOOD_RUN = 10.0
"""A child that ran for this long starts again without delay."""
STOP_TIMEOUT = 8.0


class Child:
    """One child process and its successors."""

    kind = "child"

    def __init__(self, name: str, log: structlog.typing.FilteringBoundLogger) -> None:
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
        """End it for good: SIGTERM, and SIGKILL when that does not help in time."""
        self._stopping = True
        self.signal(signal.SIGTERM)
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
    """`python -m module arguments…` in a session of its own: a terminal's Ctrl-C is the parent's."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=asyncio.subprocess.DEVNULL, pass_fds=tuple(pass_fds), start_new_session=True,
    )  # fmt: skip


class LocalNodeChild(Child):
    """A node that `offload serve` runs itself, on a unix socket."""

    kind = "node"

    def __init__(
        self,
        name: str,
        settings: LocalNode,
        path: Path,
        log: structlog.typing.FilteringBoundLogger,
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
        settings = self._settings
        arguments = ["--parent", str(os.getpid()), "--log-level", self._log_level]
        if isinstance(settings, SoftwareSettings):
            return await spawn("hsm.cli", ["node", *arguments, *self._software_arguments(settings)])
        assert isinstance(settings, Pkcs11Settings)
        file = self._pkcs11_file(settings)
        try:
            inherited = [file, *settings.inherited_descriptors()]
            return await spawn(
                "hsm.cli", ["node", *arguments, "--config", f"/proc/self/fd/{file}"], inherited
            )
        finally:
            os.close(file)

    def _pkcs11_file(self, settings: Pkcs11Settings) -> int:
        """The node's settings in a file that exists in memory only: they may hold a PIN."""
        node: dict[str, Any] = {"name": self.name, "listen": str(self.address), "admin": str(self.admin)}
        if self.account is not None:
            node |= {"allow_users": [str(self.account.uid)], "socket_group": str(self.account.gid)}
        descriptor = os.memfd_create(f"node-{self.name}")
        os.write(descriptor, json.dumps({**settings.revealed(), **node}).encode())
        return descriptor

    def _software_arguments(self, settings: SoftwareSettings) -> list[str]:
        arguments = [
            "--name", self.name, "--listen", str(self.address), "--admin", str(self.admin),
            "--token", settings.token, "--keys", str(settings.keys),
        ]  # fmt: skip
        if self.account is not None:
            arguments += ["--allow-user", str(self.account.uid), "--socket-group", str(self.account.gid)]
        if settings.passphrase_file is not None:
            arguments += ["--passphrase-file", str(settings.passphrase_file)]
        if settings.emulate_file is not None:
            arguments += ["--emulate-file", str(settings.emulate_file)]
        emulate = settings.emulate.model_dump(exclude_defaults=True)
        if emulate:
            pairs = (f"{key}={_option(key, value)}" for key, value in emulate.items())
            arguments += ["--emulate", ",".join(pairs)]
        return arguments


def _option(key: str, value: Any) -> str:
    return f"{round(value * 1e6)}us" if key in ("latency", "jitter") else str(value)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "not started"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"code {code}"
