"""Private keys that `cryptography` takes for its own, and that sign in a token.

Its X.509 builders ask a key for `public_key` and `sign` only; what would need the key itself raises
UnsupportedAlgorithm. Each signature is verified before it is given away: one faulty RSA-CRT signature
that gets out reveals the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NoReturn, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from hsm.errors import ConfigurationError
from hsm.signing import (
    SCHEME_BY_OPCODE,
    KeyType,
    Padding,
    PublicKey,
    SignatureScheme,
    key_type_of,
)
from hsm.verification import VerificationKey

SignDigest = Callable[[SignatureScheme, bytes], bytes]
"""Scheme and digest to a signature, made by the token."""


class _Signing:
    """What both kinds share."""

    def __init__(self, key: Any, opcodes: frozenset[int], sign_digest: SignDigest) -> None:
        self._key = key
        self._opcodes = opcodes
        self._sign_digest = sign_digest

    @property
    def key_size(self) -> int:
        """In bits."""
        size: int = self._key.key_size
        return size

    def _sign(self, data: bytes, pad: Padding, algorithm: object) -> bytes:
        """Raises ConfigurationError if the token can't, or signs wrongly."""
        verifier = VerificationKey(self._key)
        if not isinstance(algorithm, hashes.HashAlgorithm):
            raise UnsupportedAlgorithm("data already hashed")
        for scheme in map(SCHEME_BY_OPCODE.__getitem__, self._opcodes):
            if scheme.padding is pad and scheme.hash.name == algorithm.name:
                digest = hashlib.new(algorithm.name, data).digest()
                signature = self._sign_digest(scheme, digest)
                if not verifier.verify(scheme, digest, signature):
                    raise ConfigurationError("the token signed wrongly: its signature does not verify")
                return signature
        raise ConfigurationError(f"the token can't sign {algorithm.name} digests with this key")

    def _stays(self) -> NoReturn:
        raise UnsupportedAlgorithm("the private key does not leave its token")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


class TokenECKey(_Signing, ec.EllipticCurvePrivateKey):
    """An EC key in a token."""

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve of its public half."""
        curve: ec.EllipticCurve = self._key.curve
        return curve

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Its public half."""
        key: ec.EllipticCurvePublicKey = self._key
        return key

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """A DER signature of `data`."""
        return self._sign(bytes(data), Padding.NONE, signature_algorithm.algorithm)

    def exchange(self, *_arguments: object) -> NoReturn:
        """Not with a key for signatures."""
        self._stays()

    def private_numbers(self) -> NoReturn:
        """Nobody has them."""
        self._stays()

    def private_bytes(self, *_arguments: object) -> NoReturn:
        """Nobody has them."""
        self._stays()


class TokenRSAKey(_Signing, rsa.RSAPrivateKey):
    """An RSA key in a token."""

    def public_key(self) -> rsa.RSAPublicKey:
        """Its public half."""
        key: rsa.RSAPublicKey = self._key
        return key

    def sign(self, data: Any, pad: padding.AsymmetricPadding, algorithm: object) -> bytes:
        """A signature of `data`; PSS with a salt as long as the hash."""
        kind = Padding.PSS if isinstance(pad, padding.PSS) else Padding.PKCS1
        return self._sign(bytes(data), kind, algorithm)

    def decrypt(self, *_arguments: object) -> NoReturn:
        """Not with a key for signatures."""
        self._stays()

    def private_numbers(self) -> NoReturn:
        """Nobody has them."""
        self._stays()

    def private_bytes(self, *_arguments: object) -> NoReturn:
        """Nobody has them."""
        self._stays()


def private_key(
    public: PublicKey, opcodes: frozenset[int], sign_digest: SignDigest
) -> TokenECKey | TokenRSAKey:
    """A key object for a public half, the opcodes that its token serves, and the way to sign there."""
    made = TokenRSAKey if key_type_of(public) is KeyType.RSA else TokenECKey
    return made(public, opcodes, sign_digest)
