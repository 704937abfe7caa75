"""The C side of PKCS#11: loads a vendor's module and calls it, by cffi in ABI mode.

What is declared is in `hsm.node._cryptoki_cdef`. All pointers stay in this file. cffi releases the GIL
in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi

from hsm.errors import ConfigurationError
from hsm.node import ckr
from hsm.node._cryptoki_cdef import CDEF
from hsm.node.ckr import CryptokiError
from hsm.node.mechanisms import CKM_ECDSA, CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, Mechanism, MechanismInfo

CKF_RW_SESSION, CKF_SERIAL_SESSION = 0x2, 0x4
CKF_OS_LOCKING_OK = 0x2
CKF_LOGIN_REQUIRED, CKF_PROTECTED_AUTHENTICATION_PATH = 0x4, 0x100
CKF_CLOCK_ON_TOKEN, CKF_TOKEN_INITIALIZED = 0x40, 0x400
CKF_SIGN = 0x800
CKU_USER = 1

CKO_CERTIFICATE, CKO_PUBLIC_KEY, CKO_PRIVATE_KEY = 1, 2, 3
CKK_RSA, CKK_EC = 0, 3
CKA_CLASS, CKA_TOKEN, CKA_PRIVATE, CKA_LABEL, CKA_VALUE = 0x0, 0x1, 0x2, 0x3, 0x11
CKA_KEY_TYPE, CKA_ID, CKA_SENSITIVE = 0x100, 0x102, 0x103
CKA_ENCRYPT, CKA_DECRYPT, CKA_WRAP, CKA_UNWRAP = 0x104, 0x105, 0x106, 0x107
CKA_SIGN, CKA_SIGN_RECOVER, CKA_VERIFY, CKA_DERIVE = 0x108, 0x109, 0x10A, 0x10C
CKA_MODULUS, CKA_MODULUS_BITS, CKA_PUBLIC_EXPONENT = 0x120, 0x121, 0x122
CKA_EXTRACTABLE, CKA_EC_PARAMS, CKA_EC_POINT = 0x162, 0x180, 0x181
CKA_ALWAYS_AUTHENTICATE, CKA_ALLOWED_MECHANISMS = 0x202, 0x40000600

UNAVAILABLE = (1 << (8 * cffi.FFI().sizeof("unsigned long"))) - 1
"""CK_UNAVAILABLE_INFORMATION: the token does not tell."""

_SIGNATURE_MOST = 1024
"""Bytes of the buffer of C_Sign: an RSA-4096 signature has 512."""
_ATTRIBUTE_MOST = 1 << 20
_FIND_AT_ONCE = 64

ffi: Any = cffi.FFI()
ffi.cdef(CDEF)

Attributes = Mapping[int, bytes | bool | int]
"""A template: CKA number to bytes, CK_BBOOL or CK_ULONG."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """C_GetTokenInfo and C_GetSlotInfo; texts without their padding. Session counts: None is no limit known."""

    slot_id: int
    slot_description: str
    label: str
    manufacturer: str
    model: str
    serial: str
    flags: int
    max_rw_sessions: int | None
    utc_time: str = ""
    """The token's clock, `YYYYMMDDhhmmss00` in UTC; empty if it has none."""

    @property
    def needs_login(self) -> bool:
        """CKF_LOGIN_REQUIRED."""
        return bool(self.flags & CKF_LOGIN_REQUIRED)

    @property
    def has_pin_pad(self) -> bool:
        """CKF_PROTECTED_AUTHENTICATION_PATH: the PIN is not entered through us."""
        return bool(self.flags & CKF_PROTECTED_AUTHENTICATION_PATH)

    def __str__(self) -> str:
        return f"token={self.label!r} serial={self.serial!r} slot-id={self.slot_id}"


def _text(field: Any) -> str:
    # Padded with blanks, though some modules end it with a NUL.
    return bytes(field).partition(b"\0")[0].decode(errors="replace").rstrip(" ")


class Module:
    """A loaded and initialised module: one a process, never forked (PKCS#11 2.40 base §5.4, C_Initialize)."""

    def __init__(self, path: str) -> None:
        """Load and initialise. Raises ConfigurationError if it is no module, CryptokiError if it refuses."""
        self.path = path
        self._lib = _dlopen(path)  # kept: unloading it would pull the code away under its threads
        functions = ffi.new("CK_FUNCTION_LIST **")
        _check("C_GetFunctionList", self._lib.C_GetFunctionList(functions))
        self._f = functions[0]
        arguments = ffi.new("CK_C_INITIALIZE_ARGS *", {"flags": CKF_OS_LOCKING_OK})
        code = self._f.C_Initialize(arguments)
        if code != ckr.CKR_CRYPTOKI_ALREADY_INITIALIZED:
            _check("C_Initialize", code)

    def describe(self) -> dict[str, str]:
        """What the module says of itself (C_GetInfo)."""
        info = ffi.new("CK_INFO *")
        _check("C_GetInfo", self._f.C_GetInfo(info))
        version = info.libraryVersion
        return {
            "manufacturer": _text(info.manufacturerID),
            "description": _text(info.libraryDescription),
            "version": f"{version.major}.{version.minor}",
            "cryptoki": f"{info.cryptokiVersion.major}.{info.cryptokiVersion.minor}",
        }

    def tokens(self) -> list[TokenInfo]:
        """The initialised tokens that are present (C_GetSlotList, C_GetTokenInfo)."""
        slots = self._ulongs("C_GetSlotList", lambda out, count: self._f.C_GetSlotList(1, out, count))
        tokens: list[TokenInfo] = []
        for slot in slots:
            try:
                token = self._token(slot)
            except CryptokiError as error:
                if error.kind is ckr.Class.RETRY_ELSEWHERE:
                    continue  # pulled out since, or of a kind that the module does not know
                raise
            if token.flags & CKF_TOKEN_INITIALIZED or token.label:
                tokens.append(token)
        return tokens

    def _token(self, slot: int) -> TokenInfo:
        info, about = ffi.new("CK_TOKEN_INFO *"), ffi.new("CK_SLOT_INFO *")
        _check("C_GetTokenInfo", self._f.C_GetTokenInfo(slot, info))
        _check("C_GetSlotInfo", self._f.C_GetSlotInfo(slot, about))
        most = info.ulMaxRwSessionCount
        return TokenInfo(
            slot_id=slot,
            slot_description=_text(about.slotDescription),
            label=_text(info.label),
            manufacturer=_text(info.manufacturerID),
            model=_text(info.model),
            serial=_text(info.serialNumber),
            flags=info.flags,
            max_rw_sessions=None if most in (0, UNAVAILABLE) else most,  # 0: CK_EFFECTIVELY_INFINITE
            utc_time=_text(info.utcTime) if info.flags & CKF_CLOCK_ON_TOKEN else "",
        )

    def mechanisms(self, slot: int) -> dict[int, MechanismInfo]:
        """What the token can do, by CKM number (C_GetMechanismList, C_GetMechanismInfo)."""
        types = self._ulongs(
            "C_GetMechanismList", lambda out, count: self._f.C_GetMechanismList(slot, out, count)
        )
        info = ffi.new("CK_MECHANISM_INFO *")
        found: dict[int, MechanismInfo] = {}
        for kind in types:
            if kind in (CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA):
                _check("C_GetMechanismInfo", self._f.C_GetMechanismInfo(slot, kind, info))
                found[kind] = MechanismInfo(info.ulMinKeySize, info.ulMaxKeySize, info.flags)
        return found

    def open_session(self, slot: int, *, read_only: bool = False) -> Session:
        """A serial session, read-write unless a tool wants to know: CloudHSM refuses others (C_OpenSession)."""
        handle = ffi.new("CK_ULONG *")
        flags = CKF_SERIAL_SESSION | (0 if read_only else CKF_RW_SESSION)
        _check("C_OpenSession", self._f.C_OpenSession(slot, flags, ffi.NULL, ffi.NULL, handle))
        return Session(self._f, handle[0])

    def finalize(self) -> None:
        """Close all sessions and end the module's use (C_Finalize). No thread may be in a call."""
        _check("C_Finalize", self._f.C_Finalize(ffi.NULL))

    def _ulongs(self, function: str, call: Callable[[Any, Any], int]) -> list[int]:
        count = ffi.new("CK_ULONG *")
        while True:  # the list may grow between the two calls
            _check(function, call(ffi.NULL, count))
            if count[0] == 0:
                return []
            out = ffi.new("CK_ULONG[]", count[0])
            code = call(out, count)
            if code != ckr.CKR_BUFFER_TOO_SMALL:
                _check(function, code)
                return list(out[0 : count[0]])


class Session:
    """One session; used by one thread at a time."""

    def __init__(self, functions: Any, handle: int) -> None:
        self._f = functions
        self._handle = handle
        self._sign_init, self._sign = functions.C_SignInit, functions.C_Sign
        self._out = ffi.new("CK_BYTE[]", _SIGNATURE_MOST)
        self._buffer = ffi.buffer(self._out)
        self._length = ffi.new("CK_ULONG *")
        self._mechanisms: dict[Mechanism, tuple[Any, Any]] = {}

    def sign(self, mechanism: Mechanism, key: int, data: bytes) -> bytes:
        """One signature, in the mechanism's own form: C_SignInit and one C_Sign, no query of the length."""
        prepared = self._mechanisms.get(mechanism) or self._prepare(mechanism)
        handle, length = self._handle, self._length
        code = self._sign_init(handle, prepared[0], key)
        if code:
            raise CryptokiError("C_SignInit", code)
        length[0] = _SIGNATURE_MOST
        code = self._sign(handle, data, len(data), self._out, length)
        if code:
            raise CryptokiError("C_Sign", code)
        signature: bytes = self._buffer[: length[0]]
        return signature

    def _prepare(self, mechanism: Mechanism) -> tuple[Any, Any]:
        parameter = ffi.NULL if mechanism.pss is None else ffi.new("CK_RSA_PKCS_PSS_PARAMS *", mechanism.pss)
        size = 0 if mechanism.pss is None else ffi.sizeof("CK_RSA_PKCS_PSS_PARAMS")
        prepared = ffi.new("CK_MECHANISM *", (mechanism.type, parameter, size))
        self._mechanisms[mechanism] = (prepared, parameter)  # the struct does not keep its parameter alive
        return self._mechanisms[mechanism]

    def login(self, pin: bytes | None) -> None:
        """Log the user in, for all sessions of the process (C_Login). None: by the token's own PIN pad."""
        if pin is None:
            code = self._f.C_Login(self._handle, CKU_USER, ffi.NULL, 0)
        else:
            code = self._f.C_Login(self._handle, CKU_USER, pin, len(pin))
        if code != ckr.CKR_USER_ALREADY_LOGGED_IN:
            _check("C_Login", code)

    def probe(self) -> None:
        """Show the device that this session is in use: its state, then a byte of randomness.

        C_GetSessionInfo alone is answered by the library; C_GenerateRandom by the device.
        """
        info = ffi.new("CK_SESSION_INFO *")
        _check("C_GetSessionInfo", self._f.C_GetSessionInfo(self._handle, info))
        code = self._f.C_GenerateRandom(self._handle, self._out, 1)
        if code and ckr.meaning(code).kind is not ckr.Class.KEY:  # a token need not have an RNG
            raise CryptokiError("C_GenerateRandom", code)

    def find(self, template: Attributes) -> list[int]:
        """Handles of the objects that match (C_FindObjectsInit, C_FindObjects, C_FindObjectsFinal)."""
        array, _values = _template(template)
        _check("C_FindObjectsInit", self._f.C_FindObjectsInit(self._handle, array, len(template)))
        found: list[int] = []
        try:
            out, count = ffi.new("CK_ULONG[]", _FIND_AT_ONCE), ffi.new("CK_ULONG *")
            while True:
                code = self._f.C_FindObjects(self._handle, out, _FIND_AT_ONCE, count)
                _check("C_FindObjects", code)
                if count[0] == 0:
                    return found
                found.extend(out[0 : count[0]])
        finally:
            self._f.C_FindObjectsFinal(self._handle)

    def attributes(self, handle: int, wanted: Iterable[int]) -> dict[int, bytes]:
        """The values of an object's attributes; those it does not have, or won't tell, are left out."""
        values: dict[int, bytes] = {}
        for kind in wanted:  # one by one: some modules give up at the first that they don't know
            attribute = ffi.new("CK_ATTRIBUTE *", {"type": kind})
            code = self._f.C_GetAttributeValue(self._handle, handle, attribute, 1)
            size = attribute.ulValueLen
            if code in (ckr.CKR_ATTRIBUTE_TYPE_INVALID, ckr.CKR_ATTRIBUTE_SENSITIVE):
                continue
            _check("C_GetAttributeValue", code)
            if size > _ATTRIBUTE_MOST:  # CK_UNAVAILABLE_INFORMATION too
                continue
            out = ffi.new("CK_BYTE[]", max(size, 1))
            attribute.pValue = out
            _check("C_GetAttributeValue", self._f.C_GetAttributeValue(self._handle, handle, attribute, 1))
            values[kind] = bytes(ffi.buffer(out, attribute.ulValueLen))
        return values

    def generate_pair(self, mechanism: int, public: Attributes, private: Attributes) -> tuple[int, int]:
        """Handles of a new public and private key, made in the token (C_GenerateKeyPair)."""
        how = ffi.new("CK_MECHANISM *", (mechanism, ffi.NULL, 0))
        public_array, _public_values = _template(public)
        private_array, _private_values = _template(private)
        made = ffi.new("CK_ULONG[2]")
        code = self._f.C_GenerateKeyPair(
            self._handle, how, public_array, len(public), private_array, len(private), made, made + 1
        )
        _check("C_GenerateKeyPair", code)
        return made[0], made[1]

    def destroy(self, handle: int) -> None:
        """Delete an object from the token, for good (C_DestroyObject)."""
        _check("C_DestroyObject", self._f.C_DestroyObject(self._handle, handle))

    def close(self) -> None:
        """Close it; what the module says to that is of no use (C_CloseSession)."""
        self._f.C_CloseSession(self._handle)


def ulong(value: bytes) -> int:
    """An attribute of type CK_ULONG."""
    return int.from_bytes(value, "little" if ffi.cast("CK_BYTE *", ffi.new("CK_ULONG *", 1))[0] else "big")


def ulongs(value: bytes) -> list[int]:
    """An attribute that is an array of CK_ULONG."""
    size = ffi.sizeof("CK_ULONG")
    return [ulong(value[start : start + size]) for start in range(0, len(value), size)]


def _template(attributes: Attributes) -> tuple[Any, list[Any]]:
    values = [_value(value) for value in attributes.values()]
    array = ffi.new("CK_ATTRIBUTE[]", len(values))
    for entry, kind, value in zip(array, attributes, values, strict=True):
        entry.type, entry.pValue, entry.ulValueLen = kind, value, ffi.sizeof(value)
    return array, values


def _value(value: bytes | bool | int) -> Any:
    if isinstance(value, bytes):
        return ffi.new("CK_BYTE[]", list(value))  # from bytes it would get a NUL at its end
    if isinstance(value, bool):
        return ffi.new("CK_BYTE[1]", [value])
    return ffi.new("CK_ULONG[1]", [value])


def _check(function: str, code: int) -> None:
    if code != ckr.CKR_OK:
        raise CryptokiError(function, code)


def _dlopen(path: str) -> Any:
    if not Path(path).is_file():
        raise ConfigurationError(f"module {path}: no such file; install the vendor's PKCS#11 library")
    try:
        library = ffi.dlopen(path)
        library.C_GetFunctionList  # noqa: B018  # looked up now, for the error
    except (OSError, AttributeError) as error:
        reason = str(error).removeprefix(f"cannot load library '{path}': ")
        raise ConfigurationError(f"module {path}: not a PKCS#11 library that loads here: {reason}") from error
    return library
