"""Listening sockets that a service manager passes (socket activation, sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from hsm.errors import ConfigurationError
from offload.heritage import Heritage
from offload.plan import ListenerPlan
from offload.sockets import resolve, set_up_accepted

FIRST = 3
"""SD_LISTEN_FDS_START."""


@dataclass(frozen=True)
class _Passed:
    """One socket, and how the service manager calls it."""

    name: str
    sock: socket.socket

    @property
    def bound(self) -> str:
        """The address, for people."""
        found = self.sock.getsockname()
        return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else f"unix:{found}"

    @property
    def fault(self) -> str:
        """Why no listener can use it, apart from its address."""
        if self.sock.family not in (socket.AF_INET, socket.AF_INET6) or self.sock.type != socket.SOCK_STREAM:
            return "is no TCP socket"
        if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "does not listen (it needs Accept=no)"
        return ""


def inherit(listeners: Sequence[ListenerPlan], first: int = FIRST) -> Heritage:
    """The sockets for these listeners; the environment is emptied of them, and no child inherits them.

    Raises ConfigurationError for one that belongs to no listener.
    """
    found = Heritage()
    for passed in _passed(first):
        if passed.fault:
            raise ConfigurationError(
                f"LISTEN_FDS: socket {passed.name!r} {passed.fault}; change its .socket unit"
            )
        place = _place(passed.sock, listeners)
        if place is None:
            raise ConfigurationError(
                f"LISTEN_FDS: socket {passed.name!r} on {passed.bound} belongs to no listener; "
                "give a listener that address, or take it out of the .socket unit"
            )
        set_up_accepted(passed.sock)
        found.held.setdefault(place, []).append(passed.sock)
    found.lent = frozenset(found.held)
    return found


def _passed(first: int) -> list[_Passed]:
    process, count, names = (os.environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if process != str(os.getpid()) or not count.isdigit():
        return []
    numbers = range(first, first + int(count))
    known = names.split(":")
    passed = []
    for index, number in enumerate(numbers):
        os.set_inheritable(number, False)
        os.set_blocking(number, False)
        name = known[index] if index < len(known) and known[index] else f"number {number}"
        passed.append(_Passed(name, socket.socket(fileno=number)))
    return passed


def _place(sock: socket.socket, listeners: Sequence[ListenerPlan]) -> str | None:
    """Where it belongs: to the listener whose address it is bound to."""
    for index, listener in enumerate(listeners):
        family, target = resolve(listener.settings.address, f"listeners[{index}].address")
        if family == sock.family and target == sock.getsockname()[:2]:
            return listener.place
    return None
