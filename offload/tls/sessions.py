"""What a client can resume: the sessions that servers gave it. For load generators and tests only.

In TLS 1.3 a session comes after the handshake, before the first data that is received.
"""

from __future__ import annotations

import ctypes
from threading import get_ident
from typing import Any

from offload.tls import _s2n_cdef as c
from offload.tls.context import Context
from offload.tls.s2n import check, ffi, lib

_received: dict[int, bytes] = {}
_size: Any = ffi.new("size_t *")
_TicketType = ffi.typeof("struct s2n_session_ticket *")


def keep_sessions(context: Context) -> None:
    """Let a client's context ask for sessions: see `take_session`. Raises TLSError."""
    config = context.config
    check(
        lib.s2n_config_set_session_tickets_onoff(config, 1),
        "s2n_config_set_session_tickets_onoff",
    )
    check(
        lib.s2n_config_set_session_ticket_cb(config, _SESSION_TICKET, ffi.NULL),
        "s2n_config_set_session_ticket_cb",
    )


def take_session() -> bytes | None:
    """The session that this thread's last `negotiate` or `recv_into` brought, for `set_session`; or None.

    It is good for one connection: a server may accept it again, but an onlooker could then
    tell that it is the same client (RFC 8446, appendix C.4).
    """
    return _received.pop(get_ident(), None)


def _on_session_ticket(_connection: int, _data: int, ticket: int) -> int:
    session = ffi.cast(_TicketType, ticket)
    if lib.s2n_session_ticket_get_data_len(session, _size) < 0:
        return c.FAILURE
    data = ffi.new("uint8_t[]", _size[0])
    if lib.s2n_session_ticket_get_data(session, _size[0], data) < 0:
        return c.FAILURE
    _received[get_ident()] = bytes(ffi.buffer(data))
    return c.OK


# ctypes for the reason that `callbacks` gives.
_thunk = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(_on_session_ticket)
_SESSION_TICKET = ffi.cast("void *", ctypes.cast(_thunk, ctypes.c_void_p).value)
