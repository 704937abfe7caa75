"""A token of key files: for development, tests and load tests.

cryptography's sign() holds the GIL, so one node uses one core: for more, start more nodes.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from hsm import keyless
from hsm.errors import ConfigurationError
from hsm.inventory import KeyDetails
from hsm.node.token import OnResult, TokenError
from hsm.secret_file import read_secret
from hsm.signing import (
    SCHEME_BY_OPCODE,
    PrivateKey,
    SignatureScheme,
    key_type_of,
    opcodes_for,
    rsa_padding,
    ski_of,
    unsupported_reason,
)

Signer = Callable[[bytes], bytes]
"""Digest to signature."""

_MAX_KEY_FILE = 64 * 1024


class NamedKey(NamedTuple):
    """A key, and its file's name for people."""

    name: str
    key: PrivateKey


def load_keys(directory: Path, passphrase_file: Path | None = None) -> dict[bytes, NamedKey]:
    """All PEM private keys of a directory (`*.pem`, `*.key`) by SKI.

    Raises ConfigurationError naming the file at fault: one that is unreadable, encrypted
    otherwise than with the passphrase, of an unsupported kind, or readable by everybody.
    """
    passphrase = read_secret(passphrase_file, "passphrase") if passphrase_file is not None else None
    try:
        files = sorted(p for p in directory.iterdir() if p.suffix in (".pem", ".key") and p.is_file())
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot read the key directory: {error.strerror}") from error
    keys: dict[bytes, NamedKey] = {}
    for path in files:
        key = _load_key(path, passphrase)
        if key is not None:
            keys[ski_of(key.public_key())] = NamedKey(path.name, key)
    if not keys:
        raise ConfigurationError(f"{directory}: holds no private keys; put PEM files (*.pem, *.key) there")
    return keys


def _load_key(path: Path, passphrase: bytes | None) -> PrivateKey | None:
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            pem = file.read(_MAX_KEY_FILE)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read it: {error.strerror}") from error
    if b"PRIVATE KEY-----" not in pem:
        return None  # a certificate, perhaps: a directory may hold both
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigurationError(f"{path}: everybody may read or write this key; chmod 600 {path}")
    try:
        encrypted = b"ENCRYPTED" in pem
        key = serialization.load_pem_private_key(pem, passphrase if encrypted else None)
    except TypeError as error:
        raise ConfigurationError(
            f"{path}: the key is encrypted; name the file with its passphrase (passphrase_file)"
        ) from error
    except ValueError as error:
        wrong = "the passphrase does not open it, or it is no" if encrypted else "not a"
        raise ConfigurationError(f"{path}: {wrong} PEM private key") from error
    except UnsupportedAlgorithm as error:  # its text has further lines
        what = str(error).partition("\n")[0].rstrip(".")
        raise ConfigurationError(f"{path}: {what}; RSA, P-256, P-384 and P-521 are") from error
    if reason := unsupported_reason(key):
        raise ConfigurationError(f"{path}: {reason}")
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    return key


class SoftwareToken:
    """Signs with keys in this process's memory."""

    kind = "software"

    def __init__(self, keys: Mapping[bytes, NamedKey]) -> None:
        self._signers = {ski: _signers(key) for ski, (_, key) in keys.items()}
        self._details = [
            KeyDetails(ski, frozenset(self._signers[ski]), key.public_key(), name, is_extractable=True)
            for ski, (name, key) in keys.items()
        ]

    def keys(self) -> list[tuple[bytes, frozenset[int]]]:
        """SKI and opcodes of each key."""
        return [(ski, frozenset(signers)) for ski, signers in self._signers.items()]

    def details(self) -> list[KeyDetails]:
        """The same keys with their files' names; all can be extracted, they are files."""
        return self._details

    def update_gauges(self) -> None:
        """It has none."""

    def sign(
        self,
        ski: bytes,
        scheme: SignatureScheme,
        digest: bytes,
        expires: Callable[[], float | None],  # noqa: ARG002  # it never makes a request wait
        on_result: OnResult,
    ) -> None:
        """Signs at once."""
        signers = self._signers.get(ski)
        if signers is None:
            on_result(TokenError(keyless.ERR_KEY_NOT_FOUND, f"no key {ski.hex()}"))
            return
        signer = signers.get(scheme.opcode)
        if signer is None:
            on_result(TokenError(keyless.ERR_CRYPTO, f"key {ski.hex()} cannot do {scheme.name}"))
            return
        on_result(signer(digest))


def _signers(key: PrivateKey) -> dict[int, Signer]:
    return {opcode: _signer(key, SCHEME_BY_OPCODE[opcode]) for opcode in opcodes_for(key_type_of(key))}


def _signer(key: PrivateKey, scheme: SignatureScheme) -> Signer:
    prehashed = Prehashed(scheme.hash)
    if isinstance(key, rsa.RSAPrivateKey):
        rsa_sign, padding = key.sign, rsa_padding(scheme)
        return lambda digest: rsa_sign(digest, padding, prehashed)
    ec_sign, algorithm = key.sign, ec.ECDSA(prehashed)
    return lambda digest: ec_sign(digest, algorithm)
