"""From a TLS signature scheme to a PKCS#11 mechanism and back to what TLS wants; pure.

PKCS#11 2.40 mechanisms: CKM_RSA_PKCS (§2.1.4) pads what it is given, so DigestInfo is put before the
digest here; CKM_RSA_PKCS_PSS (§2.1.8) takes hash, MGF and salt length as parameters; CKM_ECDSA (§2.3.6)
answers r and s of the order's length each, where TLS wants DER.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hsm.signing import SCHEME_BY_OPCODE, KeyType, Padding, opcodes_for

CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA = 0x1, 0xD, 0x1041
CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_EC_KEY_PAIR_GEN = 0x0, 0x1040
CKF_SIGN = 0x800


class MechanismInfo(NamedTuple):
    """C_GetMechanismInfo; key sizes in the mechanism's own unit."""

    smallest: int
    largest: int
    flags: int


@dataclass(frozen=True, slots=True, eq=False)
class Mechanism:
    """What to hand to C_SignInit; `pss` is (CKM of the hash, CKG of the MGF, salt length in bytes).

    Compared by identity, which makes it a cheap key of a dict.
    """

    type: int
    pss: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How to make one kind of signature: `prefix` goes before the digest, EC answers become DER."""

    mechanism: Mechanism
    prefix: bytes
    is_ec: bool

    def data(self, digest: bytes, digest_most: int) -> bytes:
        """What to hand to C_Sign; EC: at most `digest_most` bytes of the digest."""
        return digest[:digest_most] if self.is_ec else self.prefix + digest

    def signature(self, raw: bytes) -> bytes:
        """What C_Sign answered, as TLS wants it. Raises ValueError for an EC answer that is not r and s."""
        return ecdsa_der(raw) if self.is_ec else raw


_DIGEST_INFO = {
    # RFC 8017 §9.2, note 1
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_PSS = {"sha256": (0x250, 2, 32), "sha384": (0x260, 3, 48), "sha512": (0x270, 4, 64)}
"""CKM_SHAxxx, CKG_MGF1_SHAxxx and the salt length, which TLS ties to the hash (RFC 8446 §4.2.3)."""


def _recipe(opcode: int) -> Recipe:
    scheme = SCHEME_BY_OPCODE[opcode]
    if scheme.padding is Padding.PSS:
        return Recipe(Mechanism(CKM_RSA_PKCS_PSS, _PSS[scheme.hash.name]), b"", is_ec=False)
    if scheme.padding is Padding.PKCS1:
        return Recipe(_RSA_PKCS, _DIGEST_INFO[scheme.hash.name], is_ec=False)
    return Recipe(_ECDSA, b"", is_ec=True)


_RSA_PKCS, _ECDSA = Mechanism(CKM_RSA_PKCS), Mechanism(CKM_ECDSA)

RECIPES = {opcode: _recipe(opcode) for opcode in SCHEME_BY_OPCODE}
"""How to serve each Keyless opcode."""


def served_opcodes(
    key_type: KeyType, bits: int, offered: Mapping[int, MechanismInfo], allowed: frozenset[int] | None
) -> frozenset[int]:
    """The opcodes that a key of `bits` can serve on a token that offers these mechanisms.

    `allowed` is the key's own CKA_ALLOWED_MECHANISMS, None where it names none. Mechanisms that do not
    say CKF_SIGN are not used, nor those whose range of sizes leaves the key out; a range of zeros says
    nothing (seen with modules that fill in no sizes).
    """
    return frozenset(
        opcode
        for opcode in opcodes_for(key_type)
        if (info := offered.get(kind := RECIPES[opcode].mechanism.type)) is not None
        and info.flags & CKF_SIGN
        and (info.largest == 0 or info.smallest <= bits <= info.largest)
        and (allowed is None or kind in allowed)
    )


def ecdsa_der(raw: bytes) -> bytes:
    """r and s, each half of `raw`, as DER (RFC 3279 §2.2.3). Raises ValueError if they are not halves."""
    half = len(raw) >> 1
    if not half or len(raw) & 1:
        raise ValueError(f"an ECDSA signature of {len(raw)} bytes is not r and s")
    r, s = _der_integer(raw[:half]), _der_integer(raw[half:])
    size = len(r) + len(s)
    if size < 0x80:
        return b"\x30%c%b%b" % (size, r, s)
    return b"\x30\x81%c%b%b" % (size, r, s)  # at most 2 * (66 + 3) bytes


def _der_integer(value: bytes) -> bytes:
    value = value.lstrip(b"\0") or b"\0"
    if value[0] & 0x80:
        return b"\x02%c\0%b" % (len(value) + 1, value)
    return b"\x02%c%b" % (len(value), value)
