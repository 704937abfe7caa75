"""Open sockets sent from process to process (SCM_RIGHTS, unix(7)), over a socket pair of their own.

They travel beside a control channel: first the sockets, then the message that tells how many.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

PER_MESSAGE = 250
"""The kernel takes at most 253 in one message (SCM_MAX_FD)."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends; neither blocks."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def send(channel: socket.socket, sockets: Sequence[socket.socket]) -> None:
    """Send copies of these. Raises OSError when the other end is gone, or has stopped reading."""
    for start in range(0, len(sockets), PER_MESSAGE):
        part = [sock.fileno() for sock in sockets[start : start + PER_MESSAGE]]
        socket.send_fds(channel, [b"."], part)


def receive(channel: socket.socket, count: int) -> list[socket.socket]:
    """The next `count` sockets, which were sent before. Raises OSError when there are fewer."""
    received: list[socket.socket] = []
    try:
        while len(received) < count:
            _, numbers, _, _ = socket.recv_fds(channel, 1, PER_MESSAGE, socket.MSG_CMSG_CLOEXEC)
            if not numbers:
                raise ConnectionError(f"{len(received)} sockets came instead of {count}")
            received += [socket.socket(fileno=number) for number in numbers]
    except OSError:
        for sock in received:
            with contextlib.suppress(OSError):
                sock.close()
        raise
    return received
