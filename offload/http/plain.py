"""Clients without TLS, for listeners that redirect to https: the small interface of TlsConnection over a socket."""

from __future__ import annotations

import errno
import socket
from time import monotonic
from typing import Any, cast

from offload.connection import Connection
from offload.poller import RawSocket
from offload.tls import WOULD_BLOCK, TlsConnection, TLSError, memory_at

NOT_TLS = -1
"""In the place of s2n's error type: neither a bad record nor an end without close_notify."""


class PlainTransport:
    """What a session needs of a TlsConnection; the facts about TLS are empty."""

    __slots__ = ("_sock",)

    buffered = resumed = False
    half_close = True
    version = cipher = group = server_name = application_protocol = signature_scheme = ""
    client_certificate = None
    client_chain: tuple[bytes, ...] = ()
    blinding_delay = 0.0

    def __init__(self, sock: RawSocket) -> None:
        """The socket is the caller's."""
        self._sock = sock

    def recv_into(self, pointer: Any, size: int) -> int:
        """Bytes read into a C buffer, 0 when the peer closed, or WOULD_BLOCK. Raises TLSError."""
        try:
            return self._sock.recv_into(memory_at(pointer, size))
        except OSError as error:
            return _would_block(error, "recv")

    def send(self, data: Any, size: int) -> int:
        """Bytes taken from a C buffer or bytes, or WOULD_BLOCK. Raises TLSError."""
        try:
            return self._sock.send(data if isinstance(data, bytes) else memory_at(data, size))
        except OSError as error:
            return _would_block(error, "send")

    def shutdown_send(self) -> bool:
        """Send a FIN. Raises TLSError."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _broken(error, "shutdown") from error
        return True

    def close(self) -> None:
        """Nothing is held."""


def _would_block(error: OSError, call: str) -> int:
    if error.errno in (errno.EAGAIN, errno.EINTR):
        return WOULD_BLOCK
    raise _broken(error, call) from error


def _broken(error: OSError, call: str) -> TLSError:
    return TLSError(call, "", error.strerror or str(error), NOT_TLS, "")


class PlainConnection(Connection):
    """A client without TLS: its first byte belongs to a request."""

    __slots__ = ()

    def _on_first_byte(self, _events: int) -> None:
        try:
            first = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            first = b""
        if not first:
            self.end("probe")
            return
        listener = self.listener
        listener.handshaking.pop(self, None)
        self._uncork()
        self.tls = cast("TlsConnection", PlainTransport(self.sock))
        self.session = session = listener.make_session(self)
        session.begin(monotonic())

    def handshake_timed_out(self) -> None:
        """The listener: no byte has come in the time for a handshake."""
        self.end("idle_timeout")
