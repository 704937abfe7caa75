"""What the settings of a PKCS#11 token say, read without the module and without the PIN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsm.config import KeyMapping, Pkcs11Settings
from hsm.errors import ConfigurationError
from hsm.node.uri import Pkcs11Uri, parse
from hsm.signing import PublicKey


def check_settings(settings: Pkcs11Settings) -> None:
    """Find what is wrong with settings before the module is loaded. Raises ConfigurationError."""
    path = module_path(uri_of(settings))
    if not Path(path).is_file():
        raise ConfigurationError(f"module {path}: no such file; install the vendor's PKCS#11 library")
    mapped_keys(settings.keys)


def uri_of(settings: Pkcs11Settings) -> Pkcs11Uri:
    """The URI, or what the single keys say."""
    if settings.uri is not None:
        return parse(settings.uri.get_secret_value())
    return Pkcs11Uri(
        token=settings.label,
        serial=settings.serial,
        slot_id=settings.slot_id,
        module_path=str(settings.module),
    )


def module_path(uri: Pkcs11Uri) -> str:
    """Where the module is. Raises ConfigurationError if the URI does not say."""
    if uri.module_path is None:
        raise ConfigurationError("uri: it names no module; add ?module-path=/path/of/the/module.so")
    return uri.module_path


def mapped_keys(mappings: list[KeyMapping]) -> Mapping[str, PublicKey]:
    """Public keys that are not on the token, by the label of their private half. Raises ConfigurationError."""
    return {mapping.object: _public_key(mapping.certificate) for mapping in mappings}


def _public_key(path: Path) -> PublicKey:
    try:
        key = x509.load_pem_x509_certificate(path.read_bytes()).public_key()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not a PEM certificate") from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise ConfigurationError(f"{path}: {type(key).__name__}; RSA and EC keys are supported")
    return key
