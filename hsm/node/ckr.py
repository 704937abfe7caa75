"""What a PKCS#11 return code means for a node: one table, no I/O.

Numbers and names are those of PKCS#11 2.40 (pkcs11t.h). The class says who can help; the step says
what the node does before anybody tries again. Codes that are not in the table are a vendor's own:
they are treated as a fault of the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Class(StrEnum):
    """Who can help."""

    RETRY_HERE = "retry_here"
    """The session's or the login's state: put right, the same node can sign."""
    RETRY_ELSEWHERE = "retry_elsewhere"
    """The device or the module: the client should ask another node."""
    KEY = "key"
    """This key can't do this, here or on a replica of the token."""
    OPERATOR = "operator"
    """Somebody has to act: a PIN, a right, a setting."""


class Step(StrEnum):
    """What to do about it, from the bottom of the ladder to its top."""

    NONE = "none"
    REFIND = "refind"
    """Look the key's handle up again in this session."""
    REOPEN = "reopen"
    """Close the session and open another."""
    LOGIN = "login"
    """Log in again, then open another session."""
    RESTART = "restart"
    """Only a fresh process gets the module out of this."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of the table."""

    name: str
    kind: Class
    step: Step = Step.NONE


CKR_OK = 0x000
CKR_ATTRIBUTE_SENSITIVE = 0x011
CKR_ATTRIBUTE_TYPE_INVALID = 0x012
CKR_PIN_INCORRECT = 0x0A0
CKR_PIN_INVALID = 0x0A1
CKR_PIN_LEN_RANGE = 0x0A2
CKR_PIN_LOCKED = 0x0A4
CKR_USER_ALREADY_LOGGED_IN = 0x100
CKR_BUFFER_TOO_SMALL = 0x150
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191

_HERE, _ELSEWHERE, _KEY, _OPERATOR = Class.RETRY_HERE, Class.RETRY_ELSEWHERE, Class.KEY, Class.OPERATOR

TABLE: dict[int, Meaning] = {
    0x001: Meaning("CKR_CANCEL", _ELSEWHERE),
    0x002: Meaning("CKR_HOST_MEMORY", _ELSEWHERE, Step.RESTART),
    0x003: Meaning("CKR_SLOT_ID_INVALID", _ELSEWHERE, Step.RESTART),
    0x005: Meaning("CKR_GENERAL_ERROR", _ELSEWHERE, Step.REOPEN),
    # CloudHSM answers this when it is throttled (its code 187) too: a new session would not help.
    0x006: Meaning("CKR_FUNCTION_FAILED", _ELSEWHERE),
    0x007: Meaning("CKR_ARGUMENTS_BAD", _ELSEWHERE),
    0x009: Meaning("CKR_NEED_TO_CREATE_THREADS", _OPERATOR),
    0x00A: Meaning("CKR_CANT_LOCK", _OPERATOR),
    0x010: Meaning("CKR_ATTRIBUTE_READ_ONLY", _KEY),
    0x011: Meaning("CKR_ATTRIBUTE_SENSITIVE", _KEY),
    0x012: Meaning("CKR_ATTRIBUTE_TYPE_INVALID", _KEY),
    0x013: Meaning("CKR_ATTRIBUTE_VALUE_INVALID", _KEY),
    0x01B: Meaning("CKR_ACTION_PROHIBITED", _KEY),
    0x020: Meaning("CKR_DATA_INVALID", _KEY),
    0x021: Meaning("CKR_DATA_LEN_RANGE", _KEY),
    0x030: Meaning("CKR_DEVICE_ERROR", _ELSEWHERE, Step.REOPEN),
    0x031: Meaning("CKR_DEVICE_MEMORY", _ELSEWHERE, Step.REOPEN),
    0x032: Meaning("CKR_DEVICE_REMOVED", _ELSEWHERE, Step.REOPEN),
    0x050: Meaning("CKR_FUNCTION_CANCELED", _ELSEWHERE),
    0x051: Meaning("CKR_FUNCTION_NOT_PARALLEL", _ELSEWHERE),
    0x054: Meaning("CKR_FUNCTION_NOT_SUPPORTED", _KEY),
    0x060: Meaning("CKR_KEY_HANDLE_INVALID", _HERE, Step.REFIND),
    0x062: Meaning("CKR_KEY_SIZE_RANGE", _KEY),
    0x063: Meaning("CKR_KEY_TYPE_INCONSISTENT", _KEY),
    0x065: Meaning("CKR_KEY_CHANGED", _HERE, Step.REFIND),
    0x068: Meaning("CKR_KEY_FUNCTION_NOT_PERMITTED", _KEY),
    0x070: Meaning("CKR_MECHANISM_INVALID", _KEY),
    0x071: Meaning("CKR_MECHANISM_PARAM_INVALID", _KEY),
    0x082: Meaning("CKR_OBJECT_HANDLE_INVALID", _HERE, Step.REFIND),
    # The session still holds an operation of ours that went wrong; CloudHSM's older throttle code too.
    0x090: Meaning("CKR_OPERATION_ACTIVE", _HERE, Step.REOPEN),
    0x091: Meaning("CKR_OPERATION_NOT_INITIALIZED", _HERE, Step.REOPEN),
    0x0A0: Meaning("CKR_PIN_INCORRECT", _OPERATOR),
    0x0A1: Meaning("CKR_PIN_INVALID", _OPERATOR),
    0x0A2: Meaning("CKR_PIN_LEN_RANGE", _OPERATOR),
    0x0A3: Meaning("CKR_PIN_EXPIRED", _OPERATOR),
    0x0A4: Meaning("CKR_PIN_LOCKED", _OPERATOR),
    0x0B0: Meaning("CKR_SESSION_CLOSED", _HERE, Step.REOPEN),
    0x0B1: Meaning("CKR_SESSION_COUNT", _ELSEWHERE),
    0x0B3: Meaning("CKR_SESSION_HANDLE_INVALID", _HERE, Step.REOPEN),
    0x0B4: Meaning("CKR_SESSION_PARALLEL_NOT_SUPPORTED", _OPERATOR),
    0x0B5: Meaning("CKR_SESSION_READ_ONLY", _OPERATOR),
    0x0B7: Meaning("CKR_SESSION_READ_ONLY_EXISTS", _OPERATOR),
    0x0B8: Meaning("CKR_SESSION_READ_WRITE_SO_EXISTS", _OPERATOR),
    0x0D0: Meaning("CKR_TEMPLATE_INCOMPLETE", _KEY),
    0x0D1: Meaning("CKR_TEMPLATE_INCONSISTENT", _KEY),
    0x0E0: Meaning("CKR_TOKEN_NOT_PRESENT", _ELSEWHERE, Step.REOPEN),
    0x0E1: Meaning("CKR_TOKEN_NOT_RECOGNIZED", _ELSEWHERE, Step.REOPEN),
    0x0E2: Meaning("CKR_TOKEN_WRITE_PROTECTED", _OPERATOR),
    0x100: Meaning("CKR_USER_ALREADY_LOGGED_IN", _HERE),
    0x101: Meaning("CKR_USER_NOT_LOGGED_IN", _HERE, Step.LOGIN),
    0x102: Meaning("CKR_USER_PIN_NOT_INITIALIZED", _OPERATOR),
    0x103: Meaning("CKR_USER_TYPE_INVALID", _OPERATOR),
    0x104: Meaning("CKR_USER_ANOTHER_ALREADY_LOGGED_IN", _OPERATOR),
    0x105: Meaning("CKR_USER_TOO_MANY_TYPES", _OPERATOR),
    0x120: Meaning("CKR_RANDOM_SEED_NOT_SUPPORTED", _KEY),
    0x121: Meaning("CKR_RANDOM_NO_RNG", _KEY),
    0x130: Meaning("CKR_DOMAIN_PARAMS_INVALID", _KEY),
    0x140: Meaning("CKR_CURVE_NOT_SUPPORTED", _KEY),
    0x150: Meaning("CKR_BUFFER_TOO_SMALL", _KEY),
    0x190: Meaning("CKR_CRYPTOKI_NOT_INITIALIZED", _ELSEWHERE, Step.RESTART),
    0x191: Meaning("CKR_CRYPTOKI_ALREADY_INITIALIZED", _ELSEWHERE),
    0x1A0: Meaning("CKR_MUTEX_BAD", _ELSEWHERE, Step.RESTART),
    0x1A1: Meaning("CKR_MUTEX_NOT_LOCKED", _ELSEWHERE, Step.RESTART),
    0x200: Meaning("CKR_FUNCTION_REJECTED", _OPERATOR),
}
"""Every return code that a node's calls can give, by number."""

VENDOR_DEFINED = 0x80000000


def meaning(code: int) -> Meaning:
    """The row of a code; for one that is not in the table, that of a faulty device."""
    found = TABLE.get(code)
    if found is not None:
        return found
    name = f"CKR_VENDOR_DEFINED+0x{code - VENDOR_DEFINED:X}" if code >= VENDOR_DEFINED else f"CKR 0x{code:X}"
    return Meaning(name, Class.RETRY_ELSEWHERE, Step.REOPEN)


class CryptokiError(Exception):
    """A call of the module failed: `function` is its C name, `code` the CKR number."""

    def __init__(self, function: str, code: int) -> None:
        row = meaning(code)
        super().__init__(f"{function}: {row.name}")
        self.function = function
        self.code = code
        self.kind = row.kind
        self.step = row.step

    @property
    def name(self) -> str:
        """The code's name, `CKR_…`."""
        return meaning(self.code).name
