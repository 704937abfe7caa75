"""Schemes, key names and verification."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from hypothesis import given
from hypothesis import strategies as st

from hsm.signing import (
    CURVES,
    SCHEME_BY_OPCODE,
    SCHEMES,
    KeyType,
    Padding,
    PrivateKey,
    SignatureScheme,
    opcodes_for,
    ski_of,
    unsupported_reason,
)
from hsm.verification import VerificationKey
from tests.hsm.conftest import KINDS
from tests.support.hsm_support import Authority, require

TEXT = b"what a handshake signs"
# Keyless opcodes, from the protocol's description; IANA's names of the schemes.
OPCODES = {
    "rsa_pkcs1_sha256": 0x05, "rsa_pkcs1_sha384": 0x06, "rsa_pkcs1_sha512": 0x07,
    "rsa_pss_rsae_sha256": 0x35, "rsa_pss_rsae_sha384": 0x36, "rsa_pss_rsae_sha512": 0x37,
    "ecdsa_secp256r1_sha256": 0x15, "ecdsa_secp384r1_sha384": 0x16, "ecdsa_secp521r1_sha512": 0x17,
    "legacy_ecdsa_sha256": 0x15, "legacy_ecdsa_sha384": 0x16, "legacy_ecdsa_sha512": 0x17,
}  # fmt: skip


def digest_for(scheme: SignatureScheme, text: bytes = TEXT) -> bytes:
    """The digest of `text` that a scheme signs."""
    return hashlib.new(scheme.hash.name, text).digest()


def sign(key: PrivateKey, scheme: SignatureScheme, text: bytes = TEXT) -> bytes:
    """A signature by cryptography over the text itself, independent of hsm's own tables."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(text, ec.ECDSA(scheme.hash))
    if scheme.padding is Padding.PSS:
        pss = padding.PSS(padding.MGF1(scheme.hash), padding.PSS.DIGEST_LENGTH)
        return key.sign(text, pss, scheme.hash)
    return key.sign(text, padding.PKCS1v15(), scheme.hash)


def test_the_table_of_schemes_is_the_protocols() -> None:
    """Each scheme has its opcode of the Keyless protocol and the size of its hash."""
    assert {name: scheme.opcode for name, scheme in SCHEMES.items()} == OPCODES
    assert all(s.digest_size == int(s.name[-3:]) // 8 == s.hash.digest_size for s in SCHEMES.values())
    assert {repr(scheme) for scheme in SCHEME_BY_OPCODE.values()} == {
        name for name in OPCODES if not name.startswith("legacy_")
    }


def test_each_key_type_has_its_opcodes() -> None:
    """RSA keys serve six opcodes, EC keys three, none both."""
    assert opcodes_for(KeyType.RSA) == {0x05, 0x06, 0x07, 0x35, 0x36, 0x37}
    assert opcodes_for(KeyType.EC) == {0x15, 0x16, 0x17}


@pytest.mark.parametrize("kind", KINDS)
def test_the_ski_is_that_of_x509(keys: dict[str, PrivateKey], kind: str) -> None:
    """A key's name is its RFC 5280 subject key identifier."""
    public = keys[kind].public_key()
    assert ski_of(public) == x509.SubjectKeyIdentifier.from_public_key(public).digest
    assert VerificationKey(public).ski == ski_of(public)


def test_the_ski_is_that_of_openssl(tmp_path: Path) -> None:
    """openssl prints the same identifier of the key of a certificate it reads."""
    path = Authority(tmp_path, "ca").issue("node").certificate
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    command = [require("openssl"), "x509", "-in", str(path), "-noout", "-ext", "subjectKeyIdentifier"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert VerificationKey.from_certificate(certificate).ski.hex(":").upper() in printed


@pytest.mark.parametrize("kind", KINDS)
def test_right_signatures_verify(keys: dict[str, PrivateKey], kind: str) -> None:
    """A signature of each scheme that a key can do is right for its digest."""
    verifier = VerificationKey(keys[kind].public_key())
    schemes = [s for s in SCHEMES.values() if s.opcode in verifier.opcodes]
    assert len(schemes) == 6
    for scheme in schemes:
        assert verifier.verify(scheme, digest_for(scheme), sign(keys[kind], scheme))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_signatures_are_refused(keys: dict[str, PrivateKey], kind: str) -> None:
    """Another digest, scheme or key, a changed or cut signature: none of them verifies."""
    verifier = VerificationKey(keys[kind].public_key())
    other = VerificationKey(keys["p384" if kind == "p256" else "p256"].public_key())
    for scheme in [s for s in SCHEMES.values() if s.opcode in verifier.opcodes]:
        digest, good = digest_for(scheme), sign(keys[kind], scheme)
        flipped = good[:-1] + bytes((good[-1] ^ 1,))
        for wrong in (b"", b"\x00", flipped, good[:-1], good + b"\x00", bytes(len(good)), good * 100):
            assert not verifier.verify(scheme, digest, wrong)
        assert not verifier.verify(scheme, digest_for(scheme, b"something else"), good)
        assert not other.verify(scheme, digest, good)


def test_a_signature_is_good_for_its_own_scheme_only(keys: dict[str, PrivateKey]) -> None:
    """An RSA signature of one padding or hash does not pass as that of another."""
    verifier = VerificationKey(keys["rsa2048"].public_key())
    schemes = [s for s in SCHEMES.values() if s.key_type is KeyType.RSA]
    for made in schemes:
        signature = sign(keys["rsa2048"], made)
        good_for = [s.name for s in schemes if verifier.verify(s, digest_for(s), signature)]
        assert good_for == [made.name]


def test_a_key_refuses_the_schemes_of_the_other_type(keys: dict[str, PrivateKey]) -> None:
    """An EC key has no RSA signatures, and the other way round."""
    for kind, name in (("p256", "rsa_pss_rsae_sha256"), ("rsa2048", "ecdsa_secp256r1_sha256")):
        scheme = SCHEMES[name]
        assert not VerificationKey(keys[kind].public_key()).verify(scheme, digest_for(scheme), b"\x30\x00")


def test_pss_with_another_salt_length_is_refused(keys: dict[str, PrivateKey]) -> None:
    """TLS 1.3 wants a salt as long as the hash; a signature with another one is wrong."""
    key, scheme = keys["rsa2048"], SCHEMES["rsa_pss_rsae_sha256"]
    assert isinstance(key, rsa.RSAPrivateKey)
    digest = digest_for(scheme)
    signature = key.sign(digest, padding.PSS(padding.MGF1(scheme.hash), 20), Prehashed(scheme.hash))
    assert not VerificationKey(key.public_key()).verify(scheme, digest, signature)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 20, 31, 33, 65])
def test_a_digest_of_another_size_is_refused(keys: dict[str, PrivateKey], kind: str, size: int) -> None:
    """Nothing is right for a digest that has not the size of the scheme's hash."""
    verifier = VerificationKey(keys[kind].public_key())
    for scheme in [s for s in SCHEMES.values() if s.opcode in verifier.opcodes]:
        assert not verifier.verify(scheme, bytes(size), sign(keys[kind], scheme))


def test_a_signature_over_a_short_digest_is_refused(keys: dict[str, PrivateKey]) -> None:
    """Also a signature that ECDSA itself would find right for it: SHA-1 is not on offer."""
    key, digest = keys["p256"], hashlib.sha1(TEXT).digest()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA1())))
    assert not VerificationKey(key.public_key()).verify(SCHEMES["legacy_ecdsa_sha256"], digest, signature)


@given(st.binary(max_size=200))
def test_random_signatures_are_refused(keys: dict[str, PrivateKey], signature: bytes) -> None:
    """Random bytes are a wrong signature, never an exception."""
    for kind, name in (("p256", "ecdsa_secp256r1_sha256"), ("rsa2048", "rsa_pkcs1_sha256")):
        scheme = SCHEMES[name]
        assert not VerificationKey(keys[kind].public_key()).verify(scheme, digest_for(scheme), signature)


def test_unsupported_keys_are_named() -> None:
    """The reason names what the key is and what would do instead."""
    small = rsa.generate_private_key(65537, 1024)
    reasons = {
        "RSA of 1024 bits; 2048 to 4096 are supported": small,
        f"curve secp256k1; supported: {', '.join(CURVES)}": ec.generate_private_key(ec.SECP256K1()),
        "Ed25519PrivateKey; RSA and EC keys are supported": ed25519.Ed25519PrivateKey.generate(),
        "DSAPrivateKey; RSA and EC keys are supported": dsa.generate_private_key(1024),
    }
    assert {reason: unsupported_reason(key) for reason, key in reasons.items()} == {
        reason: reason for reason in reasons
    }
    with pytest.raises(ValueError, match="RSA of 1024 bits"):
        VerificationKey(small.public_key())


@pytest.mark.parametrize("kind", KINDS)
def test_supported_keys_have_no_reason(keys: dict[str, PrivateKey], kind: str) -> None:
    """Both halves of a usable key pass."""
    assert unsupported_reason(keys[kind]) is None
    assert unsupported_reason(keys[kind].public_key()) is None
