"""Plaintext between a TLS client and its upstream, both ways, with back-pressure.

Each direction holds at most one buffer that the other side has not taken; until it
has, its source is not read. Interest in readiness is dropped lazily: a socket that must not be
read is unwatched when it next reports data, so the usual exchange costs no epoll_ctl at all.

When one direction ends: TLS 1.3 passes the half-close on; TLS 1.2 can't in s2n, so there the
end of one direction is the end of both. An end without close_notify may be an attacker's
truncation: the upstream side is reset, never closed as if the client were done.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

from offload.poller import ERR, HUP, IN, OUT, RawSocket
from offload.tls import WOULD_BLOCK, TlsConnection, TLSError, buffer_pointer

if TYPE_CHECKING:
    from offload.relay_session import RelaySession

UP_BUFFER_SIZE = 65536
DOWN_BUFFER_SIZE = 7 * 16384
"""Answers are what is large: as many full records as s2n sends in one write."""
CROWDED = 128
"""So many clients of a worker may stand with a large buffer that they don't take; while more do,
64 KiB at a time is read for everybody, so that slow readers can't take all memory."""
DOWN_BUFFER_CROWDED = 65536
READS_PER_TURN = 2
"""Buffers moved per wake-up in one direction, before others get their turn."""
RECORDS_LEAST = 1024
"""A record shorter than this is most likely the last one there is: not worth another read."""
RECORD_MOST = 16384

_RESET = struct.pack("ii", 1, 0)


class RelayBuffers:
    """One pair of buffers for all connections of a worker: nothing stays in them between calls.

    `blocked` counts the relays whose client does not take its answer at the moment.
    """

    def __init__(self) -> None:
        self.blocked = 0
        self.down = bytearray(DOWN_BUFFER_SIZE)
        self.down_view = memoryview(self.down)
        self.down_pointer = buffer_pointer(self.down)
        self.up = bytearray(UP_BUFFER_SIZE)
        self.up_view = memoryview(self.up)
        self.up_pointer = buffer_pointer(self.up)


class Relay:
    """One client connection and its upstream connection; `owner` is told of the end."""

    __slots__ = (
        "_buffers", "_client", "_client_fd", "_client_over", "_client_watch", "_half_close",
        "_looked_at", "_poller", "_tls", "_to_client", "_to_upstream", "_upstream", "_upstream_fd",
        "_upstream_over", "_upstream_watch",
        "bytes_down", "bytes_up", "owner",
    )  # fmt: skip

    def __init__(
        self, owner: RelaySession, client: RawSocket, tls: TlsConnection, upstream: RawSocket
    ) -> None:
        listener = owner.listener
        self.owner = owner
        self._poller = poller = listener.poller
        self._buffers = listener.buffers
        self._client, self._upstream = client, upstream
        self._client_fd, self._upstream_fd = client.fileno(), upstream.fileno()
        self._tls = tls
        self._half_close = tls.half_close
        self._to_upstream: memoryview | None = None
        """Read from the client, not taken by the upstream yet."""
        self._to_client: memoryview | None = None
        self._client_over = False
        """The client sent close_notify."""
        self._upstream_over = False
        self._client_watch = self._upstream_watch = IN
        self.bytes_up = self.bytes_down = 0
        """Plaintext that the upstream and the client have taken."""
        self._looked_at = -1
        poller.hand_over(self._client_fd, self.on_client)
        poller.hand_over(self._upstream_fd, self.on_upstream)

    def owe(self, to_upstream: memoryview | None, to_client: memoryview | None) -> None:
        """Begin with what was received before there was a relay, if anything was."""
        if to_upstream is not None:
            self._to_upstream = to_upstream
            self._watch_upstream(self._upstream_watch | OUT)
        if to_client is not None:
            self._to_client = to_client
            self._buffers.blocked += 1
            self._watch_client(self._client_watch | OUT)

    def moved(self) -> bool:
        """Whether a byte has moved since this was asked before."""
        total = self.bytes_up + self.bytes_down
        moved, self._looked_at = total != self._looked_at, total
        return moved

    def on_client(self, events: int) -> None:
        """The client's socket is ready."""
        if self._to_client is not None and events != IN and not self._flush_to_client():
            return
        if events != OUT:
            if self._to_upstream is None and not self._client_over:
                self.read_client()
            elif events & ERR:  # told also while it is not read
                self.owner.relay_aborted("client_reset")
            elif events & HUP:  # told again and again: then not even that, until it is read again
                self._client_watch = 0
                self._poller.watch(self._client_fd, 0)
            else:
                self._watch_client(self._client_watch & ~IN)

    def on_upstream(self, events: int) -> None:
        """The upstream's socket is ready."""
        if self._to_upstream is not None and events != IN and not self._flush_to_upstream():
            return
        if events != OUT:
            if self._to_client is None and not self._upstream_over:
                self._read_upstream()
            else:
                self._watch_upstream(self._upstream_watch & ~IN)

    def read_client(self) -> None:
        """Client to upstream, while there is something and it is taken."""
        tls, buffers = self._tls, self._buffers
        recv_into = tls.recv_into
        try:
            for _ in range(READS_PER_TURN):
                filled = size = 0
                all_read = False
                pointer = buffers.up_pointer
                while filled <= UP_BUFFER_SIZE - RECORD_MOST:
                    size = recv_into(pointer, UP_BUFFER_SIZE - filled)
                    if size <= 0:
                        break
                    filled += size
                    if size < RECORDS_LEAST and not tls.buffered:
                        all_read = True
                        break
                    pointer = buffers.up_pointer + filled
                if filled and not self._send_upstream(filled):
                    # What s2n holds already is read when this has been taken.
                    return
                if size == 0:
                    self._client_ended()
                    return
                if all_read or size == WOULD_BLOCK:
                    return
            if tls.buffered:  # no event will tell of it
                self._poller.soon(self._read_client_again)
        except TLSError as error:
            self.owner.relay_tls_failed(error)

    def _read_client_again(self) -> None:
        if not self.owner.closed and self._to_upstream is None and not self._client_over:
            self.read_client()

    def _send_upstream(self, size: int) -> bool:
        """Offer the first `size` bytes of the buffer; False when it has to wait or broke."""
        view = self._buffers.up_view
        self.owner.listener.metrics.to_upstream.value += size
        try:
            sent = self._upstream.send(view[:size])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._upstream_broke()
            return False
        self.bytes_up += sent
        if sent == size:
            return True
        self._to_upstream = memoryview(bytes(view[sent:size]))
        self._watch_upstream(self._upstream_watch | OUT)
        return False

    def _flush_to_upstream(self) -> bool:
        assert self._to_upstream is not None
        try:
            sent = self._upstream.send(self._to_upstream)
        except BlockingIOError:
            return False
        except OSError:
            self._upstream_broke()
            return False
        self.bytes_up += sent
        if sent < len(self._to_upstream):
            self._to_upstream = self._to_upstream[sent:]
            return False
        self._to_upstream = None
        self._watch_upstream(self._upstream_watch & ~OUT)
        if self._client_over:
            self._end_upstream()
        else:
            self._watch_client(self._client_watch | IN)
            self.read_client()
        return not self.owner.closed

    def _read_upstream(self) -> None:
        """Upstream to client, while there is something and it is taken."""
        buffers = self._buffers
        most = DOWN_BUFFER_SIZE if buffers.blocked < CROWDED else DOWN_BUFFER_CROWDED
        try:
            for _ in range(READS_PER_TURN):
                size = self._upstream.recv_into(buffers.down, most)
                if size == 0:
                    self._upstream_ended()
                    return
                if not self._send_client(size) or size < most:
                    return
        except BlockingIOError:
            return
        except OSError:
            self.owner.relay_aborted("upstream_reset")

    def _send_client(self, size: int) -> bool:
        """Offer the first `size` bytes of the buffer; False when they have to wait or it broke."""
        buffers = self._buffers
        self.owner.listener.metrics.to_client.value += size
        try:
            sent = self._tls.send(buffers.down_pointer, size)
            while 0 < sent < size:
                more = self._tls.send(buffers.down_pointer + sent, size - sent)
                if more == WOULD_BLOCK:
                    break
                sent += more
        except TLSError as error:
            self.owner.relay_tls_failed(error)
            return False
        if sent == size:
            self.bytes_down += size
            return True
        sent = max(sent, 0)
        self.bytes_down += sent
        self._to_client = memoryview(bytes(buffers.down_view[sent:size]))
        buffers.blocked += 1
        self._watch_client(self._client_watch | OUT)
        return False

    def _flush_to_client(self) -> bool:
        assert self._to_client is not None
        pending: Any = self._to_client
        try:
            while len(pending):
                sent = self._tls.send(buffer_pointer(pending), len(pending))
                if sent == WOULD_BLOCK:
                    self._to_client = pending
                    return False
                self.bytes_down += sent
                pending = pending[sent:]
        except TLSError as error:
            self.owner.relay_tls_failed(error)
            return False
        self.forget_pending()
        self._watch_client(self._client_watch & ~OUT)
        if self._upstream_over:
            self._end_client()
        else:
            self._watch_upstream(self._upstream_watch | IN)
        return not self.owner.closed

    def forget_pending(self) -> None:
        """What the client has not taken is sent, or will never be."""
        if self._to_client is not None:
            self._to_client = None
            self._buffers.blocked -= 1

    def _client_ended(self) -> None:
        """close_notify from the client: its direction is complete."""
        self._client_over = True
        if self._to_upstream is None:
            self._end_upstream()

    def _end_upstream(self) -> None:
        if self._upstream_over or not self._half_close:
            self.owner.relay_finished()
            return
        try:
            self._upstream.shutdown(socket.SHUT_WR)
        except OSError:
            self.owner.relay_aborted("upstream_reset")
            return
        self._watch_client(self._client_watch & ~IN)
        self.owner.relay_half_closed()

    def _upstream_ended(self) -> None:
        self._upstream_over = True
        if self._to_client is None:
            self._end_client()

    def _end_client(self) -> None:
        """All of the upstream's answer is sent: say so."""
        try:
            said = self._tls.shutdown_send()
        except TLSError as error:
            self.owner.relay_tls_failed(error)
            return
        if not said:
            self._to_client = memoryview(b"")  # comes back here when writable
            self._buffers.blocked += 1
            self._watch_client(self._client_watch | OUT)
            return
        if not self._half_close:
            self.owner.relay_drained()
        elif self._client_over:
            self.owner.relay_finished()
        else:
            try:
                self._client.shutdown(socket.SHUT_WR)
            except OSError:
                self.owner.relay_aborted("client_reset")
                return
            self._watch_upstream(self._upstream_watch & ~IN)
            self.owner.relay_half_closed()

    def _upstream_broke(self) -> None:
        """It takes no more. What it has answered already is still passed on, then both end."""
        self._to_upstream = None
        if self._upstream_over:
            self.owner.relay_drained()
            return
        self._client_over, self._half_close = True, False
        self._watch_client(self._client_watch & ~IN)
        self._watch_upstream(IN)
        if self._to_client is None:
            self._read_upstream()

    def _watch_client(self, events: int) -> None:
        if events != self._client_watch:
            self._client_watch = events
            self._poller.watch(self._client_fd, events or ERR)  # a break is always told

    def _watch_upstream(self, events: int) -> None:
        if events != self._upstream_watch:
            self._upstream_watch = events
            self._poller.watch(self._upstream_fd, events)


def set_reset_on_close(sock: RawSocket) -> None:
    """Closing this socket sends a reset instead of a FIN (SO_LINGER, socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
