"""Starts servers on loopback in a temporary directory, and stops just what it started.

A `Lab` owns the directory and every process of a bench; it cleans up after exceptions and
Ctrl-C too, and its processes get SIGTERM should it die itself.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.targets.agreement import HOST

PROJECT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0
_POLL = 0.02


class LoadTestError(Exception):
    """A bench can't go on; the message is one line for the user."""


class MissingToolError(LoadTestError):
    """A program that a bench needs is not installed; the message names the remedy."""


def require(program: str, remedy: str) -> str:
    """The path of `program`. Raises MissingToolError with the remedy when it is not installed."""
    # Debian keeps servers out of an ordinary user's PATH.
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise MissingToolError(f"{program} is missing: {remedy}")
    return path


def free_port() -> int:
    """A TCP port that nothing on loopback uses now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def raise_file_limit(wanted: int = 65536) -> int:
    """Allow this process and its children more open files, as far as allowed; the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in ((wanted, max(hard, wanted)), (hard, hard)):
        if soft < limit[0]:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
                break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _die_with_parent() -> list[str]:
    """A prefix for a command, so that the kernel ends it should this process be killed."""
    return [require("setpriv", "apt-get install util-linux"), "--pdeathsig", "TERM", "--"]


@dataclass(eq=False)
class Server:
    """A process that a lab started, and where its output went."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id; its process group has the same."""
        return self.process.pid

    def tail(self, lines: int = 5) -> str:
        """The last lines of its output, on one line."""
        text = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(text[-lines:]) or "(no output)"

    def ended(self) -> int | None:
        """Its exit code (minus the signal's number), or None while it runs.

        The process is not reaped: its pid, which is its group's too, stays its own until `stop`.
        """
        if self.process.returncode is not None:
            return self.process.returncode
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def wait_until(self, ready: Callable[[], bool], timeout: float = START_TIMEOUT) -> None:
        """Wait until it is ready. Raises LoadTestError if it ends before, or takes too long."""
        deadline = time.monotonic() + timeout
        while not ready():
            if (code := self.ended()) is not None:
                raise LoadTestError(f"{self.name} ended with code {code}: {self.tail()}")
            if time.monotonic() > deadline:
                raise LoadTestError(f"{self.name} was not ready after {timeout:.0f} s: {self.tail()}")
            time.sleep(_POLL)

    def stop(self) -> None:
        """End it and what it started: SIGTERM, then SIGKILL to its process group. Idempotent."""
        if self.process.returncode is not None:
            return
        if self.ended() is None:
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self.ended() is None and time.monotonic() < deadline:
            time.sleep(_POLL)
        # The group is its own (start_new_session): this reaches children it left behind, nobody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT)


class Lab:
    """A temporary directory and the servers in it; leaving the context ends and removes all."""

    def __init__(self) -> None:
        self.directory = Path()
        self.servers: list[Server] = []

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="offload-loadtest-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _uninterrupted():
            for server in reversed(self.servers):
                server.stop()
            self.servers.clear()
            shutil.rmtree(self.directory, ignore_errors=True)

    def obituary(self) -> str:
        """The last words of servers that have ended by themselves, for an error message."""
        ended = [server for server in self.servers if server.ended() is not None]
        return "; ".join(f"{server.name}: {server.tail(2)}" for server in ended) or "no server has ended"

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Server:
        """Start a server; its output goes to `<name>.log` in the directory."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_die_with_parent(), *command],
                cwd=self.directory,
                env={**child_environment(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is the lab's to handle: it stops servers in order.
                start_new_session=True,
            )
        server = Server(name, process, log)
        self.servers.append(server)
        return server

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
        """Run a tool to its end (at most 60 s); its output. Raises LoadTestError if it fails."""
        try:
            done = subprocess.run(
                command,
                cwd=self.directory,
                env={**child_environment(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadTestError(f"{command[0]} did not end within 60 s") from error
        output = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            lines = " | ".join(output.strip().splitlines()[-3:])
            raise LoadTestError(f"{Path(command[0]).name} failed with code {done.returncode}: {lines}")
        return output


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C: a second one must not leave servers behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def child_environment() -> dict[str, str]:
    """What processes of a bench get: this environment, and the project on the module path.

    They may keep what they compiled: else each of them would take twice as long to start.
    """
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def accepts(port: int) -> bool:
    """Whether something accepts TCP connections on this loopback port."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex((HOST, port)) == 0


def accepts_unix(path: Path) -> bool:
    """Whether something accepts connections on a unix socket; a file may be left of what is gone."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0
