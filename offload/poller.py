"""Readiness of many sockets through one epoll of their own, nested in the event loop.

asyncio's add_reader makes a handle object for each socket and closes it later: with uvloop
about 4 µs for each change, several changes a connection. Here a change is one epoll_ctl, and
closing a socket costs nothing more; the loop watches the epoll's own descriptor.
Level-triggered: what a handler leaves unread is reported again in the next turn.
"""

from __future__ import annotations

import asyncio
import select
from _socket import socket as RawSocket
from collections.abc import Callable

IN, OUT, ERR, HUP, RDHUP = (
    select.EPOLLIN,
    select.EPOLLOUT,
    select.EPOLLERR,
    select.EPOLLHUP,
    select.EPOLLRDHUP,
)

__all__ = ["ERR", "HUP", "IN", "OUT", "RDHUP", "Handler", "Poller", "RawSocket"]

# RawSocket is the C class beneath socket.socket. The Python layer around it costs about 10 µs a
# connection (accept, construction, close), and nothing of it is needed on the data path.

EVENTS_PER_TURN = 256
Handler = Callable[[int], None]
"""Called with the epoll events of its socket."""


class Poller:
    """Dispatches readiness to one handler per socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_error: Callable[[Handler], None]) -> None:
        """`on_error(handler)` is called inside the except block when a handler raised."""
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._parked: set[int] = set()
        self._on_error = on_error
        self._dispatching = False
        self._events: list[tuple[int, int]] = []
        """Of the last look,"""
        self._ready: dict[int, int] | None = None
        """and the same by socket, once somebody asks."""
        self.looks = 0
        """How often it has looked which sockets are ready."""
        self._closing: list[RawSocket] = []
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def add(self, fd: int, events: int, handler: Handler) -> None:
        """Watch a socket."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def hand_over(self, fd: int, handler: Handler) -> None:
        """The same events go to another handler from now on."""
        self._handlers[fd] = handler

    def watch(self, fd: int, events: int) -> None:
        """Change what is watched. With 0 not even errors and hang-ups are reported.

        (Level-triggered, a hang-up that nobody acts on would keep the loop spinning.)
        """
        if not events:
            self._epoll.unregister(fd)
            self._parked.add(fd)
        elif fd in self._parked:
            self._parked.discard(fd)
            self._epoll.register(fd, events)
        else:
            self._epoll.modify(fd, events)

    def was_quiet(self, fd: int, looks: int) -> bool:
        """Whether it has looked once more since it had so often, and the last time found nothing to tell of a socket.

        Costs no system call; what has come since that look is not known.
        """
        if self.looks == looks or len(self._events) == EVENTS_PER_TURN:
            return False
        if self._ready is None:
            self._ready = dict(self._events)
        return fd not in self._ready

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it in the loop's next turn."""
        self._loop.call_soon(callback)

    def remove(self, fd: int) -> None:
        """Watch no longer; the socket stays open."""
        del self._handlers[fd]
        if fd in self._parked:
            self._parked.discard(fd)
        else:
            self._epoll.unregister(fd)

    def close(self, sock: RawSocket) -> None:
        """Close a socket, watched or not.

        Its number may be reused at once by the next accept, and the events of this turn may
        still name it: so within a turn the close waits for the turn's end.
        """
        fd = sock.fileno()
        self._handlers.pop(fd, None)
        self._parked.discard(fd)
        if self._dispatching:
            self._closing.append(sock)
        else:
            sock.close()

    def _dispatch(self) -> None:
        handlers = self._handlers
        self._dispatching = True
        self.looks += 1
        self._ready = None
        self._events = self._epoll.poll(0, EVENTS_PER_TURN)
        for fd, events in self._events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler(events)
                except Exception:  # one connection's trouble must not end the others
                    self._on_error(handler)
        self._dispatching = False
        if self._closing:
            for sock in self._closing:
                sock.close()
            self._closing.clear()

    def shut_down(self) -> None:
        """Stop watching everything."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()
