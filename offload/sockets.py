"""Listening sockets, bound by the supervisor and inherited by every worker.

Each worker slot has its own SO_REUSEPORT socket for each listener: the kernel spreads
connections over them, and replacing a worker loses none that is queued, because the
supervisor and the siblings hold the socket too.
"""

from __future__ import annotations

import socket

from hsm.config import Address
from hsm.errors import ConfigurationError
from hsm.transport import keep_alive

BACKLOG = 4096


def resolve(address: Address, key: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and numeric target of host:port. Raises ConfigurationError naming `key`."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigurationError(f"{key}: cannot resolve {address.host!r}: {error}") from error
    family, _, _, _, target = found[0]
    return family, (str(target[0]), int(target[1]))


def bind_listener(address: Address, count: int, key: str) -> list[socket.socket]:
    """`count` listening sockets on one address. Raises ConfigurationError naming `key`.

    Port 0 takes a free port, the same for all.
    """
    family, target = resolve(address, key)
    _check_free(family, target, address, key)
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sockets.append(sock)
            _set_up(sock, family)
            sock.bind(target)
            target = sock.getsockname()
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigurationError(_explain(address, error, key)) from error
    return sockets


def _check_free(family: int, target: tuple[str, int], address: Address, key: str) -> None:
    """SO_REUSEPORT would let two servers of one user share a port unnoticed: look first."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(target)
        except OSError as error:
            raise ConfigurationError(_explain(address, error, key)) from error


def _set_up(sock: socket.socket, family: int) -> None:
    """Options that accepted sockets inherit, so that accepting costs no further system call.

    TCP_CORK too: s2n writes a flight as several small records, and the connection uncorks
    once when the flight is complete. TCP_NODELAY takes over from then on.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    keep_alive(sock)


def _explain(address: Address, error: OSError, key: str) -> str:
    if isinstance(error, PermissionError):
        remedy = "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one or grant it"
    elif error.errno == 98:  # EADDRINUSE
        remedy = "stop what listens there, or choose another port"
    else:
        remedy = "choose an address of this machine"
    return f"{key}: cannot listen on {address}: {error.strerror}; {remedy}"
