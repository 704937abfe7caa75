"""Keys in files, for nodes with the software token, demos and tests; certificates and requests for any key."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hsm.errors import ConfigurationError
from hsm.signing import PrivateKey

PUBLIC_EXPONENT = 65537
KINDS = ("p256", "p384", "p521", "rsa2048", "rsa3072", "rsa4096")
_DNS_NAME = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
)
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)
CURVES: dict[str, Callable[[], ec.EllipticCurve]] = {
    "p256": ec.SECP256R1,
    "p384": ec.SECP384R1,
    "p521": ec.SECP521R1,
}


def make_key(kind: str) -> PrivateKey:
    """A new key of one of `KINDS`. Raises ConfigurationError for another."""
    check_kind(kind)
    if kind in CURVES:
        return ec.generate_private_key(CURVES[kind]())
    return rsa.generate_private_key(PUBLIC_EXPONENT, rsa_bits(kind))


def check_kind(kind: str) -> None:
    """Raises ConfigurationError for a kind that is not one of `KINDS`."""
    if kind not in KINDS:
        raise ConfigurationError(f"--type: there is no key type {kind!r}; there are {', '.join(KINDS)}")


def rsa_bits(kind: str) -> int:
    """The size of an RSA kind."""
    return int(kind.removeprefix("rsa"))


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigurationError for a name that is neither a DNS name nor an address."""
    _alternative_names(names)


def write_key(path: Path, key: PrivateKey, passphrase: bytes | None = None) -> None:
    """Write PKCS#8 PEM, mode 0600, encrypted if there is a passphrase. Never overwrites.

    Raises ConfigurationError.
    """
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    write_new(path, pem, 0o600)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not be there yet. Raises ConfigurationError; leaves no half file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path}: is there already; nothing is overwritten: choose another"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot write it: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigurationError(f"{path}: cannot write it: {error.strerror}") from error


def self_signed(key: PrivateKey, names: Sequence[str], days: int, *, pss: bool = False) -> x509.Certificate:
    """A certificate for these DNS names and addresses, signed by its own key; `pss`: an RSA key that can't else.

    Raises ConfigurationError for a name that is neither.
    """
    subject = _subject(names)
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(_alternative_names(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256(), rsa_padding=_PSS if pss else None)
    )


def signing_request(
    key: PrivateKey, names: Sequence[str], *, pss: bool = False
) -> x509.CertificateSigningRequest:
    """A CSR (PKCS#10) for these DNS names and addresses; otherwise as `self_signed`."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(names))
        .add_extension(_alternative_names(names), critical=False)
        .sign(key, hashes.SHA256(), rsa_padding=_PSS if pss else None)
    )


def _subject(names: Sequence[str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])


def _alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError as error:
            if not _DNS_NAME.fullmatch(name):
                raise ConfigurationError(
                    f"--name: {name!r} is neither a DNS name (ASCII; xn--… for others) nor an IP address"
                ) from error
            general.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(general)
