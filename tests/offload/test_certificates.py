"""Chain files: what is read from them, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from hsm import keygen
from hsm.errors import ConfigurationError
from offload.certificates import chain_files, key_of, load_chain
from offload.config_tls import CertificateSettings
from tests.offload.identities import KINDS, Identities, key_pem


def refused(path: Path) -> str:
    """What the operator is told of a chain file; it is one line that names it."""
    with pytest.raises(ConfigurationError) as caught:
        load_chain(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    assert "\n" not in told
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_good_chain(identities: Identities, kind: str) -> None:
    """Names, validity and the key's SKI come from the leaf, which stands first."""
    chain = load_chain(identities[kind].chain_path)
    assert chain.ski == identities[kind].ski
    assert chain.names == ("localhost",)
    assert chain.subject == "localhost"
    assert chain.not_before < chain.not_after
    assert chain.pem.count(b"BEGIN CERTIFICATE") == 2
    assert key_of(chain.pem).ski == chain.ski


def test_order_matters(identities: Identities, tmp_path: Path) -> None:
    """A chain that does not begin with the leaf is told, with the right order."""
    path = tmp_path / "chain.pem"
    path.write_bytes(identities.intermediate.read_bytes() + identities["p256"].pem)
    assert "order them leaf first" in refused(path)


def test_certificates_of_another_chain(identities: Identities, tmp_path: Path) -> None:
    """A certificate that did not issue the one before it has no place there."""
    path = tmp_path / "chain.pem"
    path.write_bytes(identities["p256"].pem + identities["p384"].pem)
    assert "certificate 3 does not issue the one before it" in refused(path)


@pytest.mark.parametrize("order", ["before", "after"])
def test_key_in_the_chain_file_is_refused(identities: Identities, tmp_path: Path, order: str) -> None:
    """Wherever it stands: the proxy must not see it."""
    identity = identities["p256"]
    parts = [identity.pem, key_pem(identity.key)]
    path = tmp_path / "both.pem"
    path.write_bytes(b"".join(parts if order == "after" else reversed(parts)))
    assert "holds a private key; the proxy must not see it" in refused(path)


@pytest.mark.parametrize(
    "header", [b"RSA PRIVATE KEY", b"EC PRIVATE KEY", b"ENCRYPTED PRIVATE KEY", b"OPENSSH PRIVATE KEY"]
)
def test_any_form_of_private_key_is_refused(identities: Identities, tmp_path: Path, header: bytes) -> None:
    """Old and encrypted forms are keys too."""
    path = tmp_path / "both.pem"
    path.write_bytes(identities["p256"].pem + b"-----BEGIN " + header + b"-----\nAAAA\n")
    assert "private key" in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n",
        b"\x30\x82\x01\x00",
        bytes(range(256)),
    ],
)
def test_what_is_no_chain(tmp_path: Path, content: bytes) -> None:
    """Text, DER and damaged PEM are told as what they are not."""
    path = tmp_path / "chain.pem"
    path.write_bytes(content)
    assert "no valid PEM certificates" in refused(path)


def test_damaged_certificate(identities: Identities, tmp_path: Path) -> None:
    """A certificate cut in half is refused, and not half used."""
    path = tmp_path / "chain.pem"
    pem = identities["p256"].pem
    path.write_bytes(pem[: pem.index(b"-----END")] + b"\n")
    assert "no valid PEM certificates" in refused(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a directory are told by name and reason."""
    assert "No such file" in refused(tmp_path / "none.pem")
    assert "directory" in refused(tmp_path)


def test_large_file_is_not_read(tmp_path: Path) -> None:
    """A log or a disk image named by mistake does not fill the memory."""
    path = tmp_path / "large.pem"
    path.write_bytes(b"x" * (1024 * 1024 + 1))
    assert "no certificate chain" in refused(path)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 1024), "RSA of 1024 bits"),
        (ec.generate_private_key(ec.SECP256K1()), "curve secp256k1"),
        (dsa.generate_private_key(1024), "DSA"),
    ],
    ids=["ed25519", "rsa1024", "secp256k1", "dsa"],
)
def test_keys_that_cannot_serve(tmp_path: Path, key: object, reason: str) -> None:
    """Kinds of keys that TLS here can't use are told with what is supported."""
    path = tmp_path / "chain.pem"
    path.write_bytes(_self_signed(key))
    told = refused(path)
    assert reason in told
    assert "supported" in told


def _self_signed(key: object) -> bytes:
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key())  # type: ignore[attr-defined]  # any private key
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM)  # type: ignore[arg-type]  # any private key


def test_self_signed_certificate_is_a_chain_of_one(tmp_path: Path) -> None:
    """What `hsm keygen` makes can be used as it is."""
    path = tmp_path / "self.pem"
    certificate = keygen.self_signed(keygen.make_key("p256"), ["a.example", "127.0.0.1"], 3)
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    assert stat.S_ISREG(os.stat(path).st_mode)
    chain = load_chain(path)
    assert set(chain.names) == {"a.example", "127.0.0.1"}


def test_directory_of_chains(tmp_path: Path) -> None:
    """By name, whatever else is there; one without chains, or none at all, is a mistake."""
    for name in ("b.pem", "a.crt", "key.key", "README", "c.pem"):
        (tmp_path / name).touch()
    assert [path.name for path in chain_files(tmp_path)] == ["a.crt", "b.pem", "c.pem"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"empty: holds no certificate chains; put \*.pem or \*.crt"):
        chain_files(tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="nowhere: cannot read the directory: No such file"):
        chain_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give either chain or directory"),
        ({"chain": "/a", "directory": "/b"}, "give either chain or directory"),
        ({"directory": "/b", "ocsp": "/c"}, "ocsp goes with a chain"),
    ],
)
def test_chain_or_directory(settings: dict[str, str], said: str) -> None:
    """One entry is one or the other."""
    with pytest.raises(ValidationError, match=said):
        CertificateSettings.model_validate(settings)
