"""The client's side of an HTTP session: its socket, what it sent too early, and what it has not taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offload.poller import ERR, HUP, IN, OUT
from offload.relay import READS_PER_TURN, RECORD_MOST, RECORDS_LEAST, UP_BUFFER_SIZE
from offload.tls import WOULD_BLOCK, TLSError, buffer_pointer

if TYPE_CHECKING:
    from offload.http.proxy import HttpSession


class ClientSide:
    """Reads when its owner wants more, and writes at most one buffer ahead of the client."""

    __slots__ = (
        "_buffers",
        "_fd",
        "_poller",
        "_reading",
        "_tls",
        "_unread",
        "_watch",
        "over",
        "owner",
        "pending",
        "rest",
    )

    def __init__(self, owner: HttpSession) -> None:
        connection = owner.owner
        assert connection.tls is not None
        self.owner = owner
        self._tls = connection.tls
        self._fd = connection.fd
        self._poller = owner.listener.poller
        self._buffers = owner.listener.buffers
        self._watch = IN
        self._reading = False
        self._unread = False
        """Whether reading stopped before there was nothing more."""
        self.rest = b""
        """Received, and not used yet: at most a head or a buffer."""
        self.pending: memoryview | None = None
        """What the client has not taken."""
        self.over = False
        """The client has sent close_notify."""
        self._poller.hand_over(self._fd, self.on_event)

    def on_event(self, events: int) -> None:
        """The socket is ready."""
        if self.pending is not None and events != IN and not self._flush():
            return
        if events != OUT:
            if self.owner.requests.wanted and not self.over:
                self.read()
            elif events & ERR:  # told also while it is not read
                self.owner.client_broke(None)
            elif events & HUP:
                self._watch = 0
                self._poller.watch(self._fd, 0)
            else:
                self.watch(self._watch & ~IN)

    def resume(self) -> None:
        """More is wanted again."""
        if not self.over:
            self.watch(self._watch | IN)
            if not self._reading and (self._unread or self._tls.buffered):
                self.read()

    def read(self) -> None:
        """Take what there is, while the owner wants more."""
        self._reading = True  # what comes of it may ask for more
        self._read()
        self._reading = False

    def _read(self) -> None:
        tls, session = self._tls, self.owner
        self._unread = False
        try:
            for _ in range(READS_PER_TURN):
                filled, size = self._fill()
                if filled:
                    session.bytes_up += filled
                    session.service.metrics.from_client.value += filled
                    if not session.requests.received(filled):
                        self._unread = True
                        return
                if size == 0:
                    self.over = True
                    self.watch(self._watch & ~IN)
                    session.client_ended()
                    return
                if size == WOULD_BLOCK or (size < RECORDS_LEAST and not tls.buffered):
                    return
            if tls.buffered:  # no event will tell of it
                self._poller.soon(self._read_again)
        except TLSError as error:
            session.client_broke(error)

    def _fill(self) -> tuple[int, int]:
        """Bytes that are in the shared buffer now, and what the last call of `recv_into` said."""
        tls, pointer = self._tls, self._buffers.up_pointer
        recv_into = tls.recv_into
        filled = size = 0
        while filled <= UP_BUFFER_SIZE - RECORD_MOST:
            size = recv_into(pointer + filled, UP_BUFFER_SIZE - filled)
            if size <= 0:
                break
            filled += size
            if size < RECORDS_LEAST and not tls.buffered:
                break
        return filled, size

    def _read_again(self) -> None:
        if not self.owner.closed and self.owner.requests.wanted and not self.over:
            self.read()

    def send(self, data: bytes) -> bool:
        """Offer it all; False when some has to wait, or the connection broke."""
        return self._send(data, len(data), memoryview(data))

    def send_received(self, size: int) -> bool:
        """The same with the beginning of the shared buffer for what comes from servers."""
        buffers = self._buffers
        return self._send(buffers.down_pointer, size, buffers.down_view[:size])

    def _send(self, data: Any, size: int, view: memoryview) -> bool:
        self.owner.bytes_down += size
        self.owner.service.metrics.to_client.value += size
        if self.pending is not None:
            self.pending = memoryview(b"".join((self.pending, view)))
            return False
        try:
            sent = self._tls.send(data, size)
            while 0 < sent < size:
                more = self._tls.send(buffer_pointer(view[sent:]), size - sent)
                if more == WOULD_BLOCK:
                    break
                sent += more
        except TLSError as error:
            self.owner.client_broke(error)
            return False
        if sent == size:
            return True
        self.pending = memoryview(bytes(view[max(sent, 0) :]))
        self._buffers.blocked += 1
        self.watch(self._watch | OUT)
        return False

    def _flush(self) -> bool:
        pending: Any = self.pending
        try:
            while len(pending):
                sent = self._tls.send(buffer_pointer(pending), len(pending))
                if sent == WOULD_BLOCK:
                    self.pending = pending
                    return False
                pending = pending[sent:]
                self.owner.client_took_some()
        except TLSError as error:
            self.owner.client_broke(error)
            return False
        self.forget_pending()
        self.watch(self._watch & ~OUT)
        self.owner.client_took_all()
        return not self.owner.closed

    def release(self) -> memoryview | None:
        """Leave the socket, watched for IN, to another owner, and what the client has not taken."""
        pending = self.pending
        self.forget_pending()
        self.watch(IN)
        return pending

    def forget_pending(self) -> None:
        """What the client has not taken is sent, or will never be."""
        if self.pending is not None:
            self.pending = None
            self._buffers.blocked -= 1

    def watch(self, events: int) -> None:
        """Which readiness to be told of; a break always is."""
        if events != self._watch:
            self._watch = events
            self._poller.watch(self._fd, events or ERR)
