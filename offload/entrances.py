"""Where operators come in: the control socket, and the admin address.

A process that takes over from another one binds its unix sockets beside the other's and renames
them over when it is ready, and gets an admin address of TCP as an open socket: so nobody who
comes is turned away, and the other one goes on undisturbed if the new one fails.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hsm.config import Address
from hsm.errors import ConfigurationError
from hsm.transport import listen_tcp, listen_unix
from offload.commands import serve_commands
from offload.heritage import Heritage
from offload.runtime import CONTROL_SOCKET

if TYPE_CHECKING:
    from offload.supervisor import Supervisor


class UnixEntrance:
    """A listening unix socket for this user; with `beside`, another process still has the path."""

    def __init__(self, path: Path, *, beside: bool) -> None:
        """Raises ConfigurationError."""
        self._path = path
        self._at = path.with_name(f"{path.name}~") if beside else path
        self.sock = listen_unix(str(self._at), 0o600)
        self._identity = _identity(self._at)

    def take(self) -> None:
        """From now on the path leads here."""
        self._at = self._at.rename(self._path)

    def close(self) -> None:
        """Close it, and remove the path, unless it leads to somebody else by now."""
        self.sock.close()
        if _identity(self._at) == self._identity:
            self._at.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Entrances:
    """Both, from binding to the end. Nobody is answered before `open`."""

    def __init__(self, supervisor: Supervisor, directory: Path, heritage: Heritage) -> None:
        """The control socket is in `directory`. Entering the context binds both."""
        self.admin: socket.socket | None = None
        """The listening socket of an admin address of TCP."""
        self._supervisor = supervisor
        self._directory = directory
        self._heritage = heritage
        self._control: UnixEntrance
        self._unix_admin: UnixEntrance | None = None
        self._admin_open = contextlib.AsyncExitStack()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigurationError if an address can't be had, or a proxy with this configuration runs."""
        try:
            self._control = _control(self._directory, beside=self._heritage.directory == str(self._directory))
            self._stack.callback(self._control.close)
            if (admin := self._supervisor.config.admin) is not None:
                self._bind_admin(admin.address)
        except ConfigurationError:
            await self._stack.aclose()
            raise
        if self._heritage.admin is not None and self._heritage.admin is not self.admin:
            self._heritage.admin.close()
        return self

    def _bind_admin(self, address: Address) -> None:
        heritage = self._heritage
        same = heritage.admin_address == str(address)
        if address.path:
            self._unix_admin = UnixEntrance(Path(address.path), beside=same)
            self._stack.callback(self._unix_admin.close)
        else:
            given = heritage.admin if same else None
            self.admin = given or listen_tcp(address, "admin.address")
            self._stack.callback(self.admin.close)

    async def open(self) -> None:
        """Take the paths, and answer from now on."""
        await self._stack.enter_async_context(serve_commands(self._supervisor, self._control.sock))
        sock = self._unix_admin.sock if self._unix_admin else self.admin
        if sock is not None:
            from offload.admin import serve_admin  # aiohttp takes a third of a second to import

            await self._admin_open.enter_async_context(serve_admin(self._supervisor, sock))
        self._control.take()
        if self._unix_admin is not None:
            self._unix_admin.take()

    async def leave_admin(self) -> None:
        """Leave the admin address to the process that takes over."""
        await self._admin_open.aclose()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._admin_open.aclose()
        await self._stack.aclose()


def _control(directory: Path, *, beside: bool) -> UnixEntrance:
    try:
        return UnixEntrance(directory / CONTROL_SOCKET, beside=beside)
    except ConfigurationError as error:
        if "another process" in str(error):
            raise ConfigurationError(
                "a proxy with this configuration runs already; `offload status` shows it, "
                "`offload drain` ends it, `offload upgrade` replaces it"
            ) from error
        raise
