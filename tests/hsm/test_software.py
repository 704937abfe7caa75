"""The token of key files: which files it takes, and what it signs."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from hsm import keyless
from hsm.errors import ConfigurationError
from hsm.node.software import SoftwareToken, load_keys
from hsm.node.token import Result, TokenError
from hsm.signing import SCHEME_BY_OPCODE, PrivateKey, opcodes_for, ski_of
from hsm.verification import VerificationKey
from tests.hsm.conftest import KINDS
from tests.support.hsm_support import Authority, new_key, require, write_key

FORMS = [serialization.PrivateFormat.TraditionalOpenSSL, serialization.PrivateFormat.PKCS8]


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(text)


def refusal(directory: Path, passphrase_file: Path | None = None) -> str:
    """The one line that `load_keys` refuses a directory with."""
    with pytest.raises(ConfigurationError) as caught:
        load_keys(directory, passphrase_file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sign(token: SoftwareToken, ski: bytes, opcode: int, digest: bytes) -> Result:
    """What the token calls back with."""
    results: list[Result] = []
    token.sign(ski, SCHEME_BY_OPCODE[opcode], digest, lambda: None, results.append)
    (result,) = results
    return result


def test_keys_are_found_by_their_ski(keys: dict[str, PrivateKey], key_directory: Path) -> None:
    """Every key of the directory is there under its SKI."""
    assert set(load_keys(key_directory)) == {ski_of(key.public_key()) for key in keys.values()}


@pytest.mark.parametrize("kind", ["rsa3072", "rsa4096"])
def test_large_rsa_keys_are_taken(tmp_path: Path, kind: str) -> None:
    """RSA keys of up to 4096 bits are loaded and sign."""
    key = new_key(kind)
    write_key(tmp_path, "large.pem", key)
    token, digest = SoftwareToken(load_keys(tmp_path)), bytes(32)
    signature = sign(token, ski_of(key.public_key()), 0x35, digest)
    assert isinstance(signature, bytes)
    assert VerificationKey(key.public_key()).verify(SCHEME_BY_OPCODE[0x35], digest, signature)


@pytest.mark.parametrize("kind", KINDS)
def test_every_scheme_of_a_key_signs(keys: dict[str, PrivateKey], key_directory: Path, kind: str) -> None:
    """What the token offers for a key it can do, and the signatures are right."""
    token, verifier = SoftwareToken(load_keys(key_directory)), VerificationKey(keys[kind].public_key())
    offered = dict(token.keys())[verifier.ski]
    assert offered == opcodes_for(verifier.key_type)
    for opcode in offered:
        scheme = SCHEME_BY_OPCODE[opcode]
        signature = sign(token, verifier.ski, opcode, bytes(scheme.digest_size))
        assert isinstance(signature, bytes)
        assert verifier.verify(scheme, bytes(scheme.digest_size), signature)


def test_what_the_token_cannot_do_is_told(keys: dict[str, PrivateKey], key_directory: Path) -> None:
    """An unknown key and a scheme of another key type are errors with their Keyless code."""
    token = SoftwareToken(load_keys(key_directory))
    unknown = sign(token, bytes(20), 0x15, bytes(32))
    mismatched = sign(token, ski_of(keys["p256"].public_key()), 0x35, bytes(32))
    assert isinstance(unknown, TokenError)
    assert isinstance(mismatched, TokenError)
    assert (unknown.code, mismatched.code) == (keyless.ERR_KEY_NOT_FOUND, keyless.ERR_CRYPTO)


@pytest.mark.parametrize("form", FORMS, ids=["traditional", "pkcs8"])
@pytest.mark.parametrize("kind", ["rsa2048", "p256"])
def test_both_pem_forms_are_read(
    keys: dict[str, PrivateKey], tmp_path: Path, kind: str, form: serialization.PrivateFormat
) -> None:
    """`RSA PRIVATE KEY`, `EC PRIVATE KEY` and `PRIVATE KEY` files are all keys."""
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path / "web.key"
    path.touch(0o600)
    path.write_bytes(keys[kind].private_bytes(encoding, form, plain))
    assert set(load_keys(tmp_path)) == {ski_of(keys[kind].public_key())}


def test_a_key_made_by_openssl_is_read(tmp_path: Path) -> None:
    """`openssl ecparam -genkey` writes its parameters before the key; that is no obstacle."""
    path = tmp_path / "web.pem"
    subprocess.run(
        [require("openssl"), "ecparam", "-name", "prime256v1", "-genkey", "-out", str(path)], check=True
    )
    path.chmod(0o600)
    assert b"EC PARAMETERS" in path.read_bytes()
    assert len(load_keys(tmp_path)) == 1


def test_certificates_beside_keys_are_skipped(tmp_path: Path) -> None:
    """A directory may hold certificates and other files; only private keys are loaded."""
    link = Authority(tmp_path, "ca").issue("node")
    link.certificate.rename(tmp_path / "node.crt.pem")
    (tmp_path / "README").write_text("-----BEGIN PRIVATE KEY-----\nin prose\n")
    (tmp_path / "notes.pem").write_text("nothing\n")
    (tmp_path / "old.pem").mkdir()
    key = serialization.load_pem_private_key(link.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert list(load_keys(tmp_path)) == [ski_of(key.public_key())]


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666, 0o644])
def test_a_key_that_everybody_may_read_is_refused(
    keys: dict[str, PrivateKey], tmp_path: Path, mode: int
) -> None:
    """A key file open to all is refused, with the command that mends it."""
    path = write_key(tmp_path, "web.pem", keys["p256"], mode=mode)
    assert refusal(tmp_path) == f"{path}: everybody may read or write this key; chmod 600 {path}"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_a_group_may_read_a_key(keys: dict[str, PrivateKey], tmp_path: Path, mode: int) -> None:
    """Rights for the owner and a group are the operator's choice."""
    write_key(tmp_path, "web.pem", keys["p256"], mode=mode)
    assert len(load_keys(tmp_path)) == 1


def write_encrypted(directory: Path, key: PrivateKey, form: serialization.PrivateFormat) -> Path:
    """A key file encrypted with the passphrase `secret`."""
    path = directory / "web.pem"
    path.touch(0o600)
    encryption = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    return path


@pytest.mark.parametrize("form", FORMS, ids=["traditional", "pkcs8"])
def test_an_encrypted_key_needs_its_passphrase(
    keys: dict[str, PrivateKey], tmp_path: Path, form: serialization.PrivateFormat
) -> None:
    """With the passphrase from its file a key is read; with another one, or none, it is named."""
    path = write_encrypted(tmp_path, keys["p256"], form)
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    write_secret(right, " secret\n")
    write_secret(wrong, "Secret")
    assert set(load_keys(tmp_path, right)) == {ski_of(keys["p256"].public_key())}
    assert refusal(tmp_path).startswith(f"{path}: the key is encrypted; name the file with its passphrase")
    assert refusal(tmp_path, wrong).startswith(f"{path}: the passphrase does not open it")


def test_a_passphrase_is_for_encrypted_keys_only(keys: dict[str, PrivateKey], tmp_path: Path) -> None:
    """A directory may hold encrypted keys and plain ones."""
    write_encrypted(tmp_path, keys["p256"], serialization.PrivateFormat.PKCS8)
    write_key(tmp_path, "plain.pem", keys["p384"])
    write_secret(tmp_path / "passphrase", "secret")
    assert len(load_keys(tmp_path, tmp_path / "passphrase")) == 2


def test_a_passphrase_file_must_hold_one(keys: dict[str, PrivateKey], tmp_path: Path) -> None:
    """A file that is empty or not there is named."""
    write_key(tmp_path, "web.pem", keys["p256"])
    file = tmp_path / "passphrase"
    assert refusal(tmp_path, file) == f"{file}: cannot read the passphrase: No such file or directory"
    write_secret(file, "\n")
    assert refusal(tmp_path, file) == f"{file}: holds no passphrase"


def test_unsupported_keys_are_refused(tmp_path: Path) -> None:
    """DSA, Ed25519, RSA-1024 and odd curves are named, and so is what is supported."""
    for key, reason in (
        (dsa.generate_private_key(1024), "DSAPrivateKey; RSA and EC keys are supported"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519PrivateKey; RSA and EC keys are supported"),
        (rsa.generate_private_key(65537, 1024), "RSA of 1024 bits; 2048 to 4096 are supported"),
        (
            ec.generate_private_key(ec.SECP256K1()),
            "curve secp256k1; supported: secp256r1, secp384r1, secp521r1",
        ),
    ):
        path = write_key(tmp_path, "web.pem", key)
        assert refusal(tmp_path) == f"{path}: {reason}"


def test_a_curve_that_cryptography_does_not_know_is_refused(tmp_path: Path) -> None:
    """A key of an exotic curve is one line that names the file, like any other unsupported key."""
    path = tmp_path / "web.pem"
    subprocess.run(
        [require("openssl"), "ecparam", "-name", "secp112r1", "-genkey", "-out", str(path)], check=True
    )
    path.chmod(0o600)
    assert refusal(tmp_path).startswith(f"{path}: Curve 1.3.132.0.6 is not supported")


@pytest.mark.parametrize(
    "content",
    [
        "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\n" + "A" * 100_000,
    ],
)
def test_a_damaged_key_is_refused(tmp_path: Path, content: str) -> None:
    """A file that claims to hold a key and does not is named, not skipped."""
    path = tmp_path / "web.pem"
    path.touch(0o600)
    path.write_text(content)
    assert refusal(tmp_path) == f"{path}: not a PEM private key"


def test_one_bad_key_spoils_the_directory(keys: dict[str, PrivateKey], tmp_path: Path) -> None:
    """A node does not start with some of its keys only."""
    write_key(tmp_path, "a.pem", keys["p256"])
    bad = write_key(tmp_path, "b.pem", keys["p384"], mode=0o644)
    assert refusal(tmp_path).startswith(f"{bad}: ")


def test_a_directory_without_keys_is_refused(tmp_path: Path) -> None:
    """No directory, a file, or no key in it: the message says which and what to put there."""
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    assert refusal(empty) == f"{empty}: holds no private keys; put PEM files (*.pem, *.key) there"
    assert refusal(file) == f"{file}: cannot read the key directory: Not a directory"
    assert refusal(tmp_path / "none").endswith("cannot read the key directory: No such file or directory")


def test_signatures_are_over_the_digest_itself(keys: dict[str, PrivateKey], key_directory: Path) -> None:
    """The node adds DigestInfo and padding; it does not hash again."""
    key, digest = keys["rsa2048"], hashlib.sha256(b"text").digest()
    assert isinstance(key, rsa.RSAPrivateKey)
    token = SoftwareToken(load_keys(key_directory))
    signature = sign(token, ski_of(key.public_key()), 0x05, digest)
    assert isinstance(signature, bytes)
    numbers = key.public_key().public_numbers()
    padded = pow(int.from_bytes(signature, "big"), numbers.e, numbers.n).to_bytes(256, "big")
    digest_info = bytes.fromhex("3031300d060960864801650304020105000420")
    assert padded == b"\x00\x01" + b"\xff" * (256 - 3 - 51) + b"\x00" + digest_info + digest
