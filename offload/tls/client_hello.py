"""What a ClientHello says (RFC 8446 §4.1.2), read by s2n's parser before a connection is made of it."""

from __future__ import annotations

from typing import Self

from offload.tls import _s2n_cdef as c
from offload.tls.s2n import TLSError, check, check_pointer, ffi, lib

RECORD_HEADER = 5
"""Bytes of a record before its content; the last two are the content's length (RFC 8446 §5.1)."""
RECORD_MOST = RECORD_HEADER + 0x4000


class ClientHello:
    """A parsed handshake message; a context manager that frees it."""

    def __init__(self, message: bytes) -> None:
        """Raises TLSError if it is no ClientHello. (s2n_client_hello_parse_message)"""
        self._hello = check_pointer(
            lib.s2n_client_hello_parse_message(message, len(message)), "s2n_client_hello_parse_message"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        lib.s2n_client_hello_free(ffi.new("struct s2n_client_hello **", self._hello))

    def extension(self, kind: int) -> bytes:
        """The content of an extension; empty if it is empty or absent."""
        size = self._size(kind)
        data = bytearray(size)
        if size:
            check(
                lib.s2n_client_hello_get_extension_by_id(self._hello, kind, ffi.from_buffer(data), size),
                "s2n_client_hello_get_extension_by_id",
            )
        return bytes(data)

    @property
    def has_ticket(self) -> bool:
        """Whether the client asks to resume a session: a ticket of TLS 1.2, or a PSK of 1.3.

        Whether it will be accepted is not known yet.
        """
        return self._size(c.EXTENSION_SESSION_TICKET) > 0 or self._size(c.EXTENSION_PRE_SHARED_KEY) > 0

    def _size(self, kind: int) -> int:
        size: int = check(
            lib.s2n_client_hello_get_extension_length(self._hello, kind),
            "s2n_client_hello_get_extension_length",
        )
        return size


def asks_full_handshake(data: bytes) -> bool:
    """Whether these first bytes of a client are a whole ClientHello without a ticket.

    False also for what is cut short, or can't be parsed: then the handshake will tell.
    """
    end = RECORD_HEADER + int.from_bytes(data[3:RECORD_HEADER], "big")
    if len(data) < max(end, RECORD_HEADER + 1):
        return False
    try:
        with ClientHello(data[RECORD_HEADER:end]) as hello:
            return not hello.has_ticket
    except TLSError:
        return False
