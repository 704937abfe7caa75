"""Loads s2n-tls and turns its return codes into exceptions.

The library is the one inside the awscrt wheel (s2n-tls linked with AWS-LC, its public C API
exported), or the one that OFFLOAD_S2N_LIBRARY names. cffi in ABI mode: no compiler needed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from dataclasses import dataclass
from typing import Any

import cffi

from offload.errors import TLS_LIBRARY
from offload.tls import _s2n_cdef as c

MINIMUM_AWSCRT = (0, 38, 1)
"""Before this one, a TLS 1.3 ticket of a listener without client authentication was accepted
by one that requires it, when both shared a ticket key."""

TESTED_AWSCRT = "0.38.1"

ffi: Any = cffi.FFI()
ffi.cdef(c.CDEF)


class TLSError(Exception):
    """An s2n call failed. `kind` is an s2n error type (`ERR_T_…` in `_s2n_cdef`)."""

    def __init__(self, call: str, name: str, message: str, kind: int, debug: str) -> None:
        super().__init__(f"{call}: {message}")
        self.name = name
        self.kind = kind
        self.debug = debug

    @property
    def caused_by_peer(self) -> bool:
        """Whether the peer's bytes caused it (then s2n wants the close delayed: blinding)."""
        # A message that is too short for what it claims is an internal error to s2n.
        return self.kind == c.ERR_T_PROTO or self.name == "S2N_ERR_STUFFER_OUT_OF_DATA"

    @property
    def truncated(self) -> bool:
        """Whether the peer's stream ended without a close_notify."""
        return self.kind == c.ERR_T_CLOSED


class LibraryError(ImportError):
    """The TLS library can't be used; the message says which and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, name=TLS_LIBRARY)


@dataclass(frozen=True, slots=True)
class LibraryInfo:
    """Which s2n-tls is loaded."""

    path: str
    version: str
    crypto: str
    fips: bool

    def __str__(self) -> str:
        return f"s2n-tls from {self.version}, libcrypto {self.crypto}, FIPS {'on' if self.fips else 'off'}"


def _load() -> tuple[Any, str, str]:
    if path := os.environ.get("OFFLOAD_S2N_LIBRARY"):
        library = _open(path)
        if library.s2n_disable_atexit() != c.OK or library.s2n_init() != c.OK:
            raise LibraryError(f"{path}: s2n_init failed")
        return library, path, "OFFLOAD_S2N_LIBRARY"
    # Importing awscrt runs s2n_init; it must not be called again.
    import _awscrt
    import awscrt  # noqa: F401

    version = importlib.metadata.version("awscrt")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < MINIMUM_AWSCRT:
        raise LibraryError(
            f"awscrt {version} has a client-authentication bypass by session tickets; "
            f"install {TESTED_AWSCRT} or newer"
        )
    return _open(_awscrt.__file__), _awscrt.__file__, f"awscrt {version}"


def _open(path: str) -> Any:
    try:
        library = ffi.dlopen(path)
    except OSError as error:
        why = str(error).partition("\n")[0]  # cffi adds what it tried besides
        raise LibraryError(f"{path}: cannot load it as s2n-tls: {why}; check OFFLOAD_S2N_LIBRARY") from error
    missing = []
    for name in dir(library):
        try:
            getattr(library, name)
        except AttributeError:
            missing.append(name)
    if missing:
        raise LibraryError(
            f"{path}: lacks {', '.join(missing)}; known to work: awscrt {TESTED_AWSCRT}, s2n-tls of August 2026"
        )
    return library


lib, _path, _version = _load()
_errno = lib.s2n_errno_location


def library_info() -> LibraryInfo:
    """The loaded library: where from, which version, FIPS or not."""
    fips = ffi.new("int *")
    check(lib.s2n_get_fips_mode(fips), "s2n_get_fips_mode")
    crypto = f"{lib.s2n_get_openssl_version():#x}"
    return LibraryInfo(_path, _version, crypto, fips[0] != 0)


def last_error(call: str) -> TLSError:
    """The exception for the failure that the last s2n call left in its errno."""
    code = _errno()[0]
    return TLSError(
        call,
        text(lib.s2n_strerror_name(code)),
        text(lib.s2n_strerror(code, ffi.NULL)),
        lib.s2n_error_get_type(code),
        text(lib.s2n_strerror_debug(code, ffi.NULL)),
    )


_kinds: dict[int, int] = {}


def error_kind(code: int) -> int:
    """The type of an s2n_errno (`ERR_T_…`); remembered, for the path of every read."""
    kind = _kinds.get(code)
    if kind is None:
        kind = _kinds[code] = lib.s2n_error_get_type(code)
    return kind


def check(result: int, call: str) -> int:
    """`result`, unless it says failure: then raises TLSError."""
    if result < 0:
        raise last_error(call)
    return result


def check_pointer(pointer: Any, call: str) -> Any:
    """`pointer`, unless it is NULL: then raises TLSError."""
    if pointer == ffi.NULL:
        raise last_error(call)
    return pointer


def text(pointer: Any) -> str:
    """A C string; empty for NULL. What is not UTF-8 is escaped: some come from the peer."""
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode(errors="backslashreplace")
