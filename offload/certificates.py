"""Certificate chains: read, understood, and handed to workers as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hsm.bounded_file import read_bounded
from hsm.errors import ConfigurationError
from hsm.signing import PublicKey
from hsm.verification import VerificationKey
from offload.ocsp import Staple

_MAX_CHAIN_FILE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chain:
    """A certificate chain: PEM (leaf first, nothing else), and what the leaf says."""

    path: Path
    pem: bytes
    key: VerificationKey
    subject: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    certificates: tuple[x509.Certificate, ...]
    staple: Staple | None = None
    place: str = ""
    """Where the configuration names it: `listeners[0].certificates[1].chain`."""

    @property
    def ski(self) -> bytes:
        """The name of the private key that belongs to it."""
        return self.key.ski

    @property
    def algorithms(self) -> tuple[str, str]:
        """Those of the leaf's key and signature, such as `EC256` and `SHA384`; the latter empty if it has no hash.

        PROXY protocol, section 2.2.6, and for elliptic curves as HAProxy does it (ssl_sock_get_pkey_algo).
        """
        leaf = self.certificates[0]
        key_size = cast("PublicKey", leaf.public_key()).key_size
        try:
            hashed = leaf.signature_hash_algorithm
        except UnsupportedAlgorithm:
            hashed = None
        return f"{self.key.key_type.name}{key_size}", hashed.name.upper() if hashed is not None else ""

    def validity_problem(self, now: datetime) -> str | None:
        """Why clients refuse it now for its dates; None if they don't."""
        if now >= self.not_after:
            return f"{self.path}: expired on {self.not_after:%Y-%m-%d}; renew it"
        if now < self.not_before:
            return (
                f"{self.path}: not valid before {self.not_before:%Y-%m-%d %H:%M} UTC; wait, or set the clock"
            )
        return None


def load_chain(path: Path) -> Chain:
    """Read a chain file. Raises ConfigurationError naming the file, the fault and the remedy."""
    too_large = "larger than 1 MiB; that is no certificate chain"
    remedy = "; name a PEM file with the certificate and those of its issuers, or a directory: of such files"
    data = read_bounded(path, _MAX_CHAIN_FILE, "the certificate chain", too_large, remedy=remedy)
    if b"PRIVATE KEY-----" in data:
        raise ConfigurationError(
            f"{path}: holds a private key; the proxy must not see it: put the key into a node, "
            "and only the certificates here"
        )
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigurationError(
            f"{path}: holds no valid PEM certificates; openssl x509 -inform der makes PEM of DER"
        ) from error
    if b"-----" in data.rpartition(b"-----END CERTIFICATE-----")[2]:
        raise ConfigurationError(f"{path}: cut off after a certificate, or holds something else besides")
    return parse_chain(certificates, path)


def chain_files(directory: Path) -> list[Path]:
    """The chains in a directory: *.pem and *.crt, by name. Raises ConfigurationError if there are none."""
    try:
        found = sorted(path for path in directory.iterdir() if path.suffix in (".pem", ".crt"))
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot read the directory: {error.strerror}") from error
    if not found:
        raise ConfigurationError(f"{directory}: holds no certificate chains; put *.pem or *.crt files there")
    return found


def parse_chain(certificates: list[x509.Certificate], path: Path) -> Chain:
    """A chain from certificates in file order. Raises ConfigurationError."""
    leaf = certificates[0]
    try:
        key = VerificationKey.from_certificate(leaf)
    except ValueError as error:
        raise ConfigurationError(f"{path}: the certificate's key can't be used: {error}") from error
    for position, (lower, upper) in enumerate(pairwise(certificates), start=2):
        if lower.issuer != upper.subject:
            raise ConfigurationError(
                f"{path}: certificate {position} does not issue the one before it; "
                "order them leaf first, each followed by its issuer"
            )
    return Chain(
        path=path,
        pem=b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates),
        key=key,
        subject=common_name(leaf),
        names=_dns_names(leaf),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        certificates=tuple(certificates),
    )


def key_of(pem: bytes) -> VerificationKey:
    """The public key of a chain that was checked before."""
    return VerificationKey.from_certificate(x509.load_pem_x509_certificates(pem)[0])


def common_name(certificate: x509.Certificate) -> str:
    """The subject's CN; the whole subject where it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    value = extension.value
    addresses = (str(address) for address in value.get_values_for_type(x509.IPAddress))
    return (*value.get_values_for_type(x509.DNSName), *addresses)
