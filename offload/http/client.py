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
        "_buffers", "_fd", "_from_client", "_poller", "_reading", "_tls", "_to_client", "_unread", "_watch",
        "over", "owner", "pending", "rest",
    )  # fmt: skip

    def __init__(self, owner: HttpSession) -> None:
        connection = owner.owner
        assert connection.tls is not None
        self.owner = owner
        self._tls = connection.tls
        self._fd = connection.fd
        self._poller = owner.listener.poller
        self._buffers = owner.listener.buffers
        self._from_client = owner.service.metrics.from_client
        self._to_client = owner.service.metrics.to_client
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
            if self._unread and not self._reading:
                self.read()

    def read(self) -> None:
        """Take what there is, while the owner wants more."""
        self._reading = True  # what comes of it may ask for more
        self._unread = False
        try:
            for _ in range(READS_PER_TURN):
                if not self._take():
                    break
            else:
                if self._tls.buffered:  # no event will tell of it
                    self._poller.soon(self._read_again)
        except TLSError as error:
            self.owner.client_broke(error)
        self._reading = False

    def _take(self) -> bool:
        """One buffer, of several records if they are there; whether there may be more, and it is wanted."""
        tls, session, pointer = self._tls, self.owner, self._buffers.up_pointer
        recv_into = tls.recv_into
        filled = size = 0
        more = True
        while filled <= UP_BUFFER_SIZE - RECORD_MOST:
            size = recv_into(pointer + filled, UP_BUFFER_SIZE - filled)
            if size <= 0:
                more = False
                break
            filled += size
            if size < RECORDS_LEAST and not tls.buffered:
                more = False
                break
        if filled:
            session.bytes_up += filled
            self._from_client.value += filled
            if not session.requests.received(filled):
                self._unread = True
                return False
        if size == 0:
            self.over = True
            self.watch(self._watch & ~IN)
            session.client_ended()
        return more

    def _read_again(self) -> None:
        if not self.owner.closed and self.owner.requests.wanted and not self.over:
            self.read()

    def send(self, data: bytes) -> bool:
        """Offer it all; False when some has to wait, or the connection broke."""
        return self._send(data, len(data), data)

    def send_received(self, size: int) -> bool:
        """The same with the beginning of the shared buffer for what comes from servers."""
        buffers = self._buffers
        return self._send(buffers.down_pointer, size, buffers.down_view)

    def _send(self, pointer: Any, size: int, data: bytes | memoryview) -> bool:
        """The first `size` bytes of `data`, where `pointer` points."""
        self.owner.bytes_down += size
        self._to_client.value += size
        sent = 0
        try:
            if self.pending is None and (sent := self._tls.send(pointer, size)) == size:
                return True
            view = memoryview(data)[:size]
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
        self._owe(view[max(sent, 0) :])
        return False

    def _owe(self, rest: memoryview) -> None:
        """The client gets this as soon as it takes it, after what is pending already."""
        if self.pending is not None:
            self.pending = memoryview(b"".join((self.pending, rest)))
            return
        self.pending = memoryview(bytes(rest))
        self._buffers.blocked += 1
        self.watch(self._watch | OUT)

    def _flush(self) -> bool:
        pending: Any = self.pending
        try:
            while len(pending):
                sent = self._tls.send(buffer_pointer(pending), len(pending))
                if sent == WOULD_BLOCK:
                    self.pending = pending
                    return False
                pending = pending[sent:]
                self.owner.client_took_some(sent)
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
