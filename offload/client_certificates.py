"""Which clients may connect, by their certificates: the bundle of authorities, and the allow list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from hsm.bounded_file import read_bounded
from hsm.errors import ConfigurationError
from offload.config_tls import AllowedClients

_MAX_BUNDLE = 4 * 1024 * 1024


def load_authorities(path: Path) -> bytes:
    """The CA certificates of a bundle, as PEM. Raises ConfigurationError."""
    too_large = "larger than 4 MiB; that is no bundle of CA certificates"
    data = read_bounded(path, _MAX_BUNDLE, "the CA certificates", too_large)
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigurationError(f"{path}: holds no valid PEM certificates") from error
    for number, certificate in enumerate(certificates, start=1):
        if not _is_authority(certificate):
            raise ConfigurationError(
                f"{path}: certificate {number} ({certificate.subject.rfc4514_string()}) is no CA certificate; "
                "name the file of the authority that issues the clients' certificates"
            )
    return data


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except Exception:  # cryptography has many, without a base of their own
        return False


def judge_of(allowed: AllowedClients | None) -> Callable[[bytes], bool]:
    """Says of a client's certificate (DER, chain verified) whether it is welcome."""
    if allowed is None:
        return lambda _leaf: True
    return lambda leaf: is_allowed(leaf, allowed)


def is_allowed(leaf: bytes, allowed: AllowedClients) -> bool:
    """Whether some name of the certificate is on the list. One that can't be read is not."""
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        if certificate.subject.rfc4514_string() in allowed.subject:
            return True
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = names.get_values_for_type(x509.DNSName)
    except Exception:  # ExtensionNotFound, and others without a base of their own
        return False
    return any(uri in allowed.uri for uri in uris) or any(_matches(h.lower(), allowed.dns) for h in hosts)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Exactly, or by a pattern whose `*` stands for the first label."""
    label, _, rest = name.partition(".")
    return label != "*" and (name in patterns or (label != "" and f"*.{rest}" in patterns))
