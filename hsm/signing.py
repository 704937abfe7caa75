"""Signature schemes, and the name of a key (SKI).

A scheme is what TLS negotiates; the digest it signs is made by the TLS engine. Nodes and
clients meet here: the table below maps each scheme to the Keyless opcode that asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

SKI_SIZE = 20


class KeyType(StrEnum):
    """What a key is, as far as choosing a scheme goes."""

    RSA = "rsa"
    EC = "ec"


class Padding(StrEnum):
    """How an RSA signature is padded; ECDSA has none."""

    PKCS1 = "pkcs1"
    PSS = "pss"
    NONE = "none"


@dataclass(frozen=True, slots=True, eq=False)
class SignatureScheme:
    """One way to sign a digest. Compared by identity: each exists once, in `SCHEMES`.

    `name` is IANA's (TLS SignatureScheme registry), `opcode` the Keyless request that
    asks for it, `digest_size` in bytes. TLS 1.3 ties an ECDSA scheme to one curve,
    TLS 1.2 does not: hence the `legacy_` names, which share an opcode with their twin.
    """

    name: str
    opcode: int
    key_type: KeyType
    padding: Padding
    hash: hashes.HashAlgorithm
    digest_size: int

    def __repr__(self) -> str:
        return self.name


def _schemes() -> dict[str, SignatureScheme]:
    table: dict[str, SignatureScheme] = {}

    def add(name: str, opcode: int, key_type: KeyType, pad: Padding, digest: hashes.HashAlgorithm) -> None:
        table[name] = SignatureScheme(name, opcode, key_type, pad, digest, digest.digest_size)

    digests = ((256, hashes.SHA256()), (384, hashes.SHA384()), (512, hashes.SHA512()))
    curves = {256: "secp256r1", 384: "secp384r1", 512: "secp521r1"}
    for index, (bits, digest) in enumerate(digests):
        add(f"rsa_pkcs1_sha{bits}", 0x05 + index, KeyType.RSA, Padding.PKCS1, digest)
        add(f"rsa_pss_rsae_sha{bits}", 0x35 + index, KeyType.RSA, Padding.PSS, digest)
        add(f"ecdsa_{curves[bits]}_sha{bits}", 0x15 + index, KeyType.EC, Padding.NONE, digest)
        add(f"legacy_ecdsa_sha{bits}", 0x15 + index, KeyType.EC, Padding.NONE, digest)
    return table


SCHEMES = _schemes()
"""Every supported scheme by name. SHA-1 and RSA key exchange are left out on purpose."""

SCHEME_BY_OPCODE = {
    scheme.opcode: scheme for name, scheme in SCHEMES.items() if not name.startswith("legacy_")
}
"""The scheme that a Keyless opcode asks for."""


def scheme_list(opcodes: Iterable[int]) -> list[str]:
    """Names of the schemes that these opcodes ask for; unknown opcodes are left out."""
    return [SCHEME_BY_OPCODE[o].name for o in sorted(opcodes) if o in SCHEME_BY_OPCODE]


def scheme_names(opcodes: Iterable[int]) -> str:
    """The same for people."""
    return ", ".join(scheme_list(opcodes))


def opcodes_for(key_type: KeyType) -> frozenset[int]:
    """The opcodes that a key of this type can serve when nothing restricts it."""
    return frozenset(s.opcode for s in SCHEMES.values() if s.key_type is key_type)


PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def key_type_of(key: PublicKey | PrivateKey) -> KeyType:
    """RSA or EC."""
    return KeyType.RSA if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey) else KeyType.EC


RSA_BITS = range(2048, 4096 + 1)
CURVES = ("secp256r1", "secp384r1", "secp521r1")


def unsupported_reason(key: object) -> str | None:
    """Why a key (public or private) can't be used for TLS here, or None if it can."""
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        if key.key_size not in RSA_BITS:
            return f"RSA of {key.key_size} bits; 2048 to 4096 are supported"
        return None
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        if key.curve.name not in CURVES:
            return f"curve {key.curve.name}; supported: {', '.join(CURVES)}"
        return None
    return f"{type(key).__name__.lstrip('_')}; RSA and EC keys are supported"


def ski_of(public_key: PublicKey) -> bytes:
    """The key's name everywhere: SHA-1 over the subjectPublicKey bits, 20 bytes.

    RFC 5280 §4.2.1.2 method 1; what the Keyless protocol looks keys up by.
    """
    if isinstance(public_key, rsa.RSAPublicKey):
        bits = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    else:
        bits = public_key.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
    return hashlib.sha1(bits, usedforsecurity=False).digest()


def rsa_padding(scheme: SignatureScheme) -> padding.AsymmetricPadding:
    """PKCS#1 v1.5, or PSS with MGF1 and a salt as long as the hash (RFC 8446 §4.2.3)."""
    if scheme.padding is Padding.PSS:
        return padding.PSS(padding.MGF1(scheme.hash), scheme.digest_size)
    return padding.PKCS1v15()
