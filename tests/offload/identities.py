"""Keys and certificates for tests: one authority, one intermediate, a leaf of each kind."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hsm.signing import PrivateKey, ski_of

KINDS = ("p256", "p384", "p521", "rsa2048")
_CURVES: dict[str, ec.EllipticCurve] = {
    "p256": ec.SECP256R1(),
    "p384": ec.SECP384R1(),
    "p521": ec.SECP521R1(),
}


Validity = tuple[dt.timedelta, dt.timedelta]
"""Begin and end of a certificate's time, from now."""
TODAY: Validity = (dt.timedelta(hours=-1), dt.timedelta(days=1))
EXPIRED: Validity = (dt.timedelta(hours=-1), dt.timedelta(minutes=-1))
TOMORROW: Validity = (dt.timedelta(days=1), dt.timedelta(days=2))


@dataclass(frozen=True)
class Identity:
    """A certificate chain (leaf, intermediate) and its key, both as PEM files."""

    kind: str
    key: PrivateKey
    chain_path: Path
    key_path: Path

    @property
    def ski(self) -> bytes:
        """The key's name in the cluster."""
        return ski_of(self.key.public_key())

    @property
    def pem(self) -> bytes:
        """The chain file's content."""
        return self.chain_path.read_bytes()


@dataclass(frozen=True)
class LinkCredentials:
    """One side of mutual TLS between proxy and node."""

    ca: Path
    certificate: Path
    key: Path

    def settings(self, **more: str) -> dict[str, str]:
        """As a `tls` section of a configuration."""
        return {"ca": str(self.ca), "certificate": str(self.certificate), "key": str(self.key), **more}


def generate_key(kind: str) -> PrivateKey:
    """A new private key of one of `KINDS`."""
    if kind == "rsa2048":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(_CURVES[kind])


class Identities:
    """An authority and what it issued, as files below one directory.

    `keys` holds the private keys of the leaves and nothing else: a node's key directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = directory / "keys"
        self.keys.mkdir(mode=0o700, parents=True)
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._root = _certificate("test root", self._root_key, None, [], ca=True)
        self._middle_key = ec.generate_private_key(ec.SECP256R1())
        self._middle = _certificate(
            "test intermediate", self._middle_key, (self._root, self._root_key), [], ca=True
        )
        self.ca = self._write("ca.pem", _pem(self._root))
        self.intermediate = self._write("intermediate.pem", _pem(self._middle))
        self._made: dict[str, Identity] = {}
        self._clients = self._responses = 0

    def __getitem__(self, kind: str) -> Identity:
        """The identity of one of `KINDS`, made when it is first asked for."""
        if kind not in self._made:
            self._made[kind] = self.issue(kind)
        return self._made[kind]

    def issue(
        self,
        kind: str,
        name: str = "localhost",
        keys: Path | None = None,
        valid: Validity = TODAY,
        more: Sequence[str] = (),
    ) -> Identity:
        """A new leaf for a DNS name, and for `more`; its key goes into the directory `keys`."""
        key = generate_key(kind)
        leaf = _certificate(name, key, (self._middle, self._middle_key), [name, *more], valid=valid)
        stem = kind if name == "localhost" and keys is None else f"{kind}-{name}-{len(self._made)}"
        chain = self._write(f"{stem}.pem", _pem(leaf) + _pem(self._middle))
        return Identity(kind, key, chain, _write_private((keys or self.keys) / f"{stem}.key", key))

    def renewed(self, identity: Identity, name: str = "localhost") -> bytes:
        """A new chain (PEM) for the same key."""
        leaf = _certificate(name, identity.key, (self._middle, self._middle_key), [name])
        return _pem(leaf) + _pem(self._middle)

    def long_chain(self, kind: str, depth: int) -> Path:
        """A chain for the key of one of `KINDS` with so many intermediates that it fills many records."""
        issuer: tuple[x509.Certificate, PrivateKey] = (self._root, self._root_key)
        chain: list[x509.Certificate] = []
        for level in range(depth):
            key = generate_key("p256")
            name = f"{level:03d} " + "x" * 60
            chain.insert(0, _certificate(name, key, issuer, [f"{level}.{'y' * 63}.test"] * 8, ca=True))
            issuer = (chain[0], key)
        leaf = _certificate("localhost", self[kind].key, issuer, ["localhost"])
        return self._write(f"{kind}-long.pem", b"".join(_pem(each) for each in (leaf, *chain)))

    def ocsp(
        self, identity: Identity, *, ends_in: dt.timedelta = dt.timedelta(hours=1), revoked: bool = False
    ) -> Path:
        """An OCSP response of the intermediate for a leaf, good since an hour ago, as a DER file."""
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        leaf = x509.load_pem_x509_certificates(identity.pem)[0]
        builder = ocsp.OCSPResponseBuilder().add_response(
            leaf,
            self._middle,
            hashes.SHA1(),  # what CertID has by custom, and s2n expects
            ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            now - dt.timedelta(hours=1),
            now + ends_in,
            now - dt.timedelta(days=1) if revoked else None,
            x509.ReasonFlags.key_compromise if revoked else None,
        )
        response = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, self._middle).sign(
            self._middle_key, hashes.SHA256()
        )
        self._responses += 1
        return self._write(f"ocsp-{self._responses}.der", response.public_bytes(serialization.Encoding.DER))

    def link(self, name: str) -> LinkCredentials:
        """Credentials of one end of a tls:// link."""
        key = generate_key("p256")
        certificate = _certificate(name, key, (self._root, self._root_key), [name])
        return LinkCredentials(
            self.ca,
            self._write(f"link-{name}.pem", _pem(certificate)),
            _write_private(self.directory / f"link-{name}.key", key),
        )

    def client(
        self,
        name: str,
        dns: Sequence[str] = (),
        uris: Sequence[str] = (),
        *,
        expired: bool = False,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        shown: Sequence[bytes] = (),
    ) -> LinkCredentials:
        """A client's certificate, issued by the root, and its key.

        With `shown` by the intermediate: that is shown too, and then these other certificates (PEM).
        """
        key = generate_key("p256")
        issuer = (self._middle, self._middle_key) if shown else (self._root, self._root_key)
        certificate = _certificate(
            name, key, issuer, dns, uris=uris, valid=EXPIRED if expired else TODAY, purpose=purpose
        )
        more = b"".join([_pem(self._middle), *shown]) if shown else b""
        self._clients += 1
        return LinkCredentials(
            self.ca,
            self._write(f"client-{self._clients}.pem", _pem(certificate) + more),
            _write_private(self.directory / f"client-{self._clients}.key", key),
        )

    def _write(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        return path


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: PrivateKey) -> bytes:
    """A private key as unencrypted PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, key: PrivateKey) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(key_pem(key))
    return path


def _certificate(
    name: str,
    key: PrivateKey,
    issuer: tuple[x509.Certificate, PrivateKey] | None,
    dns_names: Sequence[str],
    *,
    ca: bool = False,
    uris: Sequence[str] = (),
    valid: Validity = TODAY,
    purpose: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signing_key = issuer[1] if issuer else key
    usage = x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=ca, crl_sign=ca,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + valid[0])
        .not_valid_after(now + valid[1])
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
        )
    )
    names = [*map(x509.DNSName, dns_names), *map(x509.UniformResourceIdentifier, uris)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if purpose:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(signing_key, hashes.SHA256())
