"""`offload upgrade`, in the process that is replaced: start another one, let it take over, drain.

The new process (`succession`) gets the listening sockets and the session-ticket keys, and accepts
beside this one. Only when it says that it is ready does anything change here; until then it may
fail, or be ended, and this one goes on as before. The keys go through a socket pair and nowhere
else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hsm import systemd
from hsm.errors import ConfigurationError
from offload import descriptors, heritage
from offload.children import STOP_TIMEOUT
from offload.control import answer_questions

if TYPE_CHECKING:
    from offload.supervisor import Supervisor

VARIABLE = "OFFLOAD_HANDOVER"
"""Environment: numbers of the descriptors of the control channel and of the one for sockets."""
TAKING_TIMEOUT = 10.0
"""Longest wait, in seconds, until a new process that is ready has the control socket."""
_UNDER_WAY = "an upgrade is under way; ask again when it is over"


class Upgrade:
    """Replaces this process by another one, when asked to."""

    def __init__(self, supervisor: Supervisor, path: Path) -> None:
        """`path` is the configuration's file."""
        self.places: list[str] = []
        """Places whose sockets another process has taken over."""
        self.is_done = False
        """Another process serves: this one may end."""
        self._supervisor = supervisor
        self._path = path

    async def run(self, program: str | None, timeout: float) -> str:
        """Have `program`, or what this process runs from, take over within `timeout` seconds; what was done.

        Raises ConfigurationError saying why it did not; then this process goes on.
        """
        supervisor = self._supervisor
        if os.getpid() == 1:
            raise ConfigurationError(
                "the proxy is process 1: its container ends with it; start a new container instead"
            )
        if self.is_done or supervisor.stopping.is_set():
            raise ConfigurationError("the proxy is ending")
        command = [program] if program else [sys.executable, "-m", "offload.cli"]
        command += ["serve", "--config", str(self._path)]
        with supervisor.reloader.suspended(_UNDER_WAY):
            supervisor.log.info("upgrading", command=command)
            try:
                said = await self._replace(command, timeout)
            except ConfigurationError as error:
                supervisor.log.error("upgrade_failed", errors=str(error).splitlines())
                raise
        supervisor.request_drain()
        return said

    async def _replace(self, command: Sequence[str], timeout: float) -> str:
        supervisor = self._supervisor
        await supervisor.pool.tell_heir(True)
        try:
            return await self._hand_over(command, timeout)
        finally:
            if not self.is_done:
                await supervisor.pool.tell_heir(False)

    async def _hand_over(self, command: Sequence[str], timeout: float) -> str:
        supervisor = self._supervisor
        async with _Successor(command, supervisor, timeout) as successor:
            stopped = asyncio.create_task(supervisor.stopping.wait())
            ends: set[asyncio.Future[Any]] = {successor.conversation, successor.has_taken, stopped}
            try:
                await asyncio.wait(
                    ends,
                    timeout=timeout, return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
            finally:
                stopped.cancel()
            if not successor.has_taken.done():
                raise ConfigurationError(await self._why(successor, command, timeout))
            self.is_done = True
            self.places = successor.places
            await asyncio.wait({successor.conversation}, timeout=TAKING_TIMEOUT)
        supervisor.log.info("handed_over", to=successor.pid)
        return (
            f"process {successor.pid} ({successor.version}) serves now; process {os.getpid()} ends when its open "
            "connections have"
        )

    async def _why(self, successor: _Successor, command: Sequence[str], timeout: float) -> str:
        if self._supervisor.stopping.is_set():
            return "the proxy was told to end"
        if not successor.conversation.done():
            return f"the new process was not ready within {timeout:g} s and was ended; its lines in the log tell more"
        if successor.faults:
            return "\n".join(f"the new process: {fault}" for fault in successor.faults)
        code = await successor.end()
        if not successor.has_asked:
            return (
                f"{command[0]} ended with code {code} and took nothing over; "
                "see what it wrote to this process's stderr, or name an `offload` by --exec"
            )
        return f"the new process ended before it was ready, with code {code}; its lines in the log tell why"


class _Successor:
    """The new process as this one sees it. Leaving the context ends it, unless it is ready."""

    def __init__(self, command: Sequence[str], supervisor: Supervisor, timeout: float) -> None:
        """Starts it. Raises ConfigurationError if that is not possible."""
        self.faults: list[str] = []
        """Why it can't take over, as far as it has told."""
        self.places: list[str] = []
        self.version = ""
        self.has_asked = False
        """It is an `offload`: it has asked for what it is to take over."""
        self.has_taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = supervisor
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._given_up = False
        self._control, control = socket.socketpair()
        self._sockets, sockets = descriptors.pair()
        try:
            self._process = _start(command, (control.fileno(), sockets.fileno()))
        except BaseException:
            self._control.close()
            self._sockets.close()
            raise
        finally:
            control.close()
            sockets.close()
        self.pid = self._process.pid

    async def __aenter__(self) -> Self:
        self._control.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=self._control)
        self.conversation = asyncio.create_task(answer_questions(reader, writer, self._answer))
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._given_up = True
        try:
            if not self.has_taken.done():
                self._process.terminate()
                await self.end()
        finally:
            self.conversation.cancel()
            self._sockets.close()

    async def end(self) -> int:
        """Its exit code; it is killed if it does not end."""
        try:
            return await asyncio.to_thread(self._process.wait, STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    async def _answer(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What it asks or tells."""
        match operation:
            case "inherit":
                self.has_asked = True
                left = self._deadline - asyncio.get_running_loop().time()
                return heritage.give(self._supervisor, self._sockets, left)
            case "ready" | "taken" if self._given_up or self._supervisor.stopping.is_set():
                return {"error": "the process before is ending"}
            case "ready":
                return {}
            case "taken":
                return await self._on_taken(arguments)
            case "failed":
                self.faults = [str(line) for line in arguments["lines"]]
                return {}
        return {"error": f"unknown operation {operation!r}"}

    async def _on_taken(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """From this moment on it is the one that serves."""
        self.places = [str(place) for place in arguments["places"]]
        self.version = str(arguments["version"])
        self.has_taken.set_result(None)
        systemd.notify(MAINPID=self.pid)
        await self._supervisor.entrances.leave_admin()
        return {}


def _start(command: Sequence[str], given: tuple[int, int]) -> subprocess.Popen[bytes]:
    """A process that outlives this one: so none of asyncio's, which are killed with the loop."""
    environment = {**os.environ, VARIABLE: ",".join(map(str, given))}
    with contextlib.suppress(KeyError):
        del environment["WATCHDOG_PID"]  # the service manager's watchdog is the new one's business then
    try:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, pass_fds=given)
    except OSError as error:
        raise ConfigurationError(f"{command[0]}: cannot run it: {error.strerror}") from error
