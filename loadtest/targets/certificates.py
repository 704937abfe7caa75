"""Keys and self-signed certificates for benches, valid for a day."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its key, both PEM; the key is alone in the directory `keys`."""

    kind: str
    chain: Path
    key: Path


def make_credentials(
    directory: Path, kind: str, name: str = "localhost", chains: Path | None = None
) -> Credentials:
    """A new key (`p256` or `rsa2048`; ValueError for others) and a certificate for `name`.

    One for `localhost` is for KIND.localhost too, which chooses it among several. The certificate
    goes into the directory `chains`, if it is not to lie beside `keys`.
    """
    key: PrivateKey
    if kind == "p256":
        key = ec.generate_private_key(ec.SECP256R1())
    elif kind == "rsa2048":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        raise ValueError(f"unknown kind of key: {kind}")
    stem = kind if name == "localhost" else f"{kind}-{name}"
    chain_file, key_file = (chains or directory) / f"{stem}.crt", directory / "keys" / f"{stem}.pem"
    key_file.parent.mkdir(mode=0o700, exist_ok=True)
    chain_file.write_bytes(_self_signed(key, _names(kind, name)).public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Credentials(kind, chain_file, key_file)


def _names(kind: str, name: str) -> list[str]:
    return [name, f"{kind}.localhost"] if name == "localhost" else [name]


def _self_signed(key: PrivateKey, hosts: Sequence[str]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )


def renew(credentials: Credentials) -> None:
    """A new certificate for `localhost` and the same key, in place of the one before."""
    key = serialization.load_pem_private_key(credentials.key.read_bytes(), None)
    assert isinstance(key, PrivateKey)
    new = credentials.chain.with_suffix(".new")
    new.write_bytes(
        _self_signed(key, _names(credentials.kind, "localhost")).public_bytes(serialization.Encoding.PEM)
    )
    new.replace(credentials.chain)
