"""Listening sockets, bound by the supervisor and handed to every worker.

Each worker slot has its own SO_REUSEPORT socket for each listener: the kernel spreads
connections over them, and replacing a worker loses none that is queued, because the
supervisor and the siblings hold the socket too.

A socket is kept as long as its address is configured, also when fewer workers run: closing
one resets what is on its way to its queue. `steer` keeps new connections away from it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from _socket import socket as RawSocket
from collections.abc import Collection, Sequence

from hsm.config import Address
from hsm.errors import ConfigurationError
from hsm.transport import keep_alive, not_listening

BACKLOG = 4096
_BYTES_RECEIVED = 128
"""Where the field is in struct tcp_info (linux/tcp.h)."""

_SO_ATTACH_REUSEPORT_CBPF, _SO_DETACH_REUSEPORT_BPF = 51, 68  # asm-generic/socket.h
_BPF_LOAD_WORD, _BPF_MODULO, _BPF_RETURN = 0x20, 0x94, 0x16  # ld [k] · A %= k · ret A
_BPF_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM: a random number


def resolve(address: Address, key: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and numeric target of host:port. Raises ConfigurationError naming `key`."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigurationError(
            f"{key}: cannot resolve {address.host!r}: {getattr(error, 'strerror', error)}"
        ) from error
    family, _, _, _, target = found[0]
    return family, (str(target[0]), int(target[1]))


def bind_listener(
    address: Address, count: int, key: str, held: Sequence[socket.socket] = (), ours: Collection[int] = ()
) -> list[socket.socket]:
    """At least `count` sockets bound to one address: those `held` already, and new ones for the rest.

    New ones don't listen yet: see `listen`. Port 0 takes a free port, the same for all; `ours`
    are ports that this process itself has bound. Raises ConfigurationError naming `key`.
    """
    if held and not _may_share(held[0]):  # from a service manager: one socket serves all slots
        return [held[slot % len(held)] for slot in range(max(count, len(held)))]
    family, target = (held[0].family, held[0].getsockname()) if held else resolve(address, key)
    if target[1] not in ours:
        _check_free(family, target, address, key)
    sockets = list(held)
    try:
        while len(sockets) < count:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sockets.append(sock)
            _set_up_unbound(sock)
            set_up_accepted(sock)
            sock.bind(target)
            target = sock.getsockname()
    except OSError as error:
        for sock in sockets[len(held) :]:
            sock.close()
        raise ConfigurationError(not_listening(address, error, key)) from error
    return sockets


def listen(sockets: Sequence[socket.socket], address: Address, key: str) -> None:
    """Have them accept; those that do already go on. Raises ConfigurationError naming `key`."""
    try:
        for sock in sockets:
            sock.listen(BACKLOG)
    except OSError as error:
        raise ConfigurationError(not_listening(address, error, key)) from error


def steer(sockets: Sequence[socket.socket], count: int) -> None:
    """Have the kernel give new connections to the first `count` of an address's sockets only.

    Which of a SO_REUSEPORT group gets one is decided by a classic BPF program (socket(7),
    SO_ATTACH_REUSEPORT_CBPF) that draws an index; sockets are numbered in the order in which
    they began to listen. Where the kernel refuses, all go on getting their share.
    """
    if len(set(sockets)) < 2:
        return
    program = ctypes.create_string_buffer(
        struct.pack("=HBBI", _BPF_LOAD_WORD, 0, 0, _BPF_RANDOM)
        + struct.pack("=HBBI", _BPF_MODULO, 0, 0, count)
        + struct.pack("=HBBI", _BPF_RETURN, 0, 0, 0)
    )
    descriptor = struct.pack("@HP", 3, ctypes.addressof(program))  # struct sock_fprog
    try:
        if count < len(sockets):
            sockets[0].setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, descriptor)
        else:
            sockets[0].setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
    except OSError:  # not allowed here; or nothing was attached
        pass


def _may_share(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def _check_free(family: int, target: tuple[str, int], address: Address, key: str) -> None:
    """SO_REUSEPORT would let two servers of one user share a port unnoticed: look first."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(target)
        except OSError as error:
            raise ConfigurationError(not_listening(address, error, key)) from error


def _set_up_unbound(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def set_up_accepted(sock: socket.socket) -> None:
    """Options that accepted sockets inherit, so that accepting costs no further system call.

    TCP_CORK too: s2n writes a flight as several small records, and the connection uncorks
    once when the flight is complete. TCP_NODELAY takes over from then on.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    keep_alive(sock)


def bytes_received(sock: RawSocket) -> int:
    """All that the peer has sent so far (tcpi_bytes_received of TCP_INFO, tcp(7))."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    return int.from_bytes(info[_BYTES_RECEIVED:], sys.byteorder)
