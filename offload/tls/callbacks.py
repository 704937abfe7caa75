"""What s2n calls back from within `s2n_negotiate`: to see the name that a client asks for, for a signature,
and to judge a client's certificate.

ctypes, not ffi.callback: cffi's needs writable-executable memory, which systemd's
MemoryDenyWriteExecute (PR_SET_MDWE) denies. No exception passes through C: it is kept, and
raised by who called s2n.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

from offload.tls import _s2n_cdef as c
from offload.tls.s2n import ffi, lib, text

Judge = Callable[[bytes], bool]
"""Whether a client may connect: told its certificate (the leaf, DER), whose chain is verified by then."""

_operations: dict[int, Any] = {}
_faults: dict[int, BaseException] = {}
_judges: dict[int, Judge] = {}
_names: dict[int, frozenset[str]] = {}
"""Both by the number of their context, which s2n passes back."""

_OperationType = ffi.typeof("struct s2n_async_pkey_op *")
_ConnectionType = ffi.typeof("struct s2n_connection *")
_ValidationType = ffi.typeof("struct s2n_cert_validation_info *")
_length: Any = ffi.new("uint32_t *")
_bytes: Any = ffi.new("uint8_t **")


def take_operation() -> Any:
    """The s2n_async_pkey_op that this thread's last `s2n_negotiate` asked for, or None.

    s2n calls back from within that call, so the thread says whose operation it is.
    """
    return _operations.pop(get_ident(), None)


def take_fault() -> BaseException | None:
    """The exception that ended a callback of this thread's last `s2n_negotiate`: a bug."""
    return _faults.pop(get_ident(), None)


def client_certificate(connection: Any) -> bytes | None:
    """The leaf (DER) that the client of an s2n_connection has shown; None if it has not.

    s2n_connection_get_client_cert_chain: each certificate after its length of three bytes.
    """
    if lib.s2n_connection_get_client_cert_chain(connection, _bytes, _length) < 0:
        return None
    chain = bytes(ffi.buffer(_bytes[0], _length[0]))
    return chain[3 : 3 + int.from_bytes(chain[:3])] or None


def set_judge(number: int, judge: Judge) -> None:
    """Have CLIENT_CERTIFICATE decide so in the context with this number; undone by `forget`."""
    _judges[number] = judge


def set_names(number: int, names: Iterable[str]) -> None:
    """Have KNOWN_NAME let in who asks for one of these (lower case, `*.` for any first label)."""
    _names[number] = frozenset(names)


def forget(number: int) -> None:
    """No connection of that context is left."""
    _judges.pop(number, None)
    _names.pop(number, None)


def _on_client_hello(connection: int, number: int) -> int:
    try:
        name = text(lib.s2n_get_server_name(ffi.cast(_ConnectionType, connection))).lower()
        names = _names[number]
        is_known = name in names or f"*.{name.partition('.')[2]}" in names
    except BaseException as error:  # raised by the caller of s2n_negotiate
        _faults[get_ident()] = error
        is_known = False
    return c.OK if is_known else c.FAILURE


def _on_private_key_operation(_connection: int, operation: int) -> int:
    _operations[get_ident()] = ffi.cast(_OperationType, operation)
    return c.OK


def _on_client_certificate(connection: int, validation: int, number: int) -> int:
    try:
        leaf = client_certificate(ffi.cast(_ConnectionType, connection))
        is_welcome = leaf is not None and _judges[number](leaf)
    except BaseException as error:  # raised by the caller of s2n_negotiate
        _faults[get_ident()] = error
        is_welcome = False
    decide = lib.s2n_cert_validation_accept if is_welcome else lib.s2n_cert_validation_reject
    result: int = decide(ffi.cast(_ValidationType, validation))
    return result


def _on_name(_name: int, _size: int, _data: int) -> int:
    """s2n's own question about each name of a certificate, asked before the chain is verified."""
    return 1


def _pointer(thunk: Any) -> Any:
    return ffi.cast("void *", ctypes.cast(thunk, ctypes.c_void_p).value)


_thunks = (
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_on_private_key_operation),
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(_on_client_certificate),
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_on_client_hello),
    ctypes.CFUNCTYPE(ctypes.c_uint8, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)(_on_name),
)
PRIVATE_KEY_OPERATION, CLIENT_CERTIFICATE, KNOWN_NAME, ANY_NAME = (_pointer(thunk) for thunk in _thunks)
"""s2n_async_pkey_fn, s2n_cert_validation_callback, s2n_client_hello_fn, s2n_verify_host_fn: C pointers."""
