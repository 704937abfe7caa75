"""`hsm keygen --token-uri`: key pairs made inside a real token, seen by other PKCS#11 clients and by openssl."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsm.node import cryptoki as ck
from hsm.node.generate import templates
from hsm.verification import VerificationKey
from tests.support.hsm_support import LIMIT, require
from tests.support.pkcs11 import Faults, SoftToken, TokenClient, read_pair, run_hsm_with, running_node

SIZES = {"p256": 256, "p384": 384, "p521": 521, "rsa2048": 2048, "rsa3072": 3072}


@pytest.fixture(scope="module")
def empty_token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """A token `tls` that tests put keys into, each under a label of its own."""
    token = SoftToken(tmp_path_factory.mktemp("empty"))
    token.initialise()
    return token


@pytest.fixture
def fresh_token(tmp_path: Path) -> SoftToken:
    """A token `tls` without a key."""
    (tmp_path / "token").mkdir()
    token = SoftToken(tmp_path / "token")
    token.initialise()
    return token


def keygen(
    token: SoftToken, directory: Path, *arguments: str, faults: Faults | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `hsm keygen` on the token."""
    environment = token.environment | (faults.environment if faults else {})
    uri = token.uri(faults.module if faults else None)
    return run_hsm_with(environment, "keygen", "--token-uri", uri, *arguments, directory=directory)


def openssl(*arguments: str, directory: Path) -> str:
    """What openssl says, standard error included."""
    command = [require("openssl"), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=LIMIT, check=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", SIZES)
def test_a_pair_made_in_the_token(empty_token: SoftToken, tmp_path: Path, kind: str) -> None:
    """The private half can't leave it and signs only; openssl accepts request and certificate of that key."""
    papers = ["--csr", "r.pem", "--certificate", "c.pem", "--name", "www.example.org"]
    done = keygen(empty_token, tmp_path, "--label", kind, "--type", kind, *papers)
    assert (done.returncode, done.stderr) == (0, "")
    private, public = read_pair(empty_token, kind)
    granted = {name for name, value in private.items() if value is True}
    assert granted == {
        "TOKEN", "PRIVATE", "SENSITIVE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL", "SIGN",
    }  # fmt: skip
    assert {name for name, value in public.items() if value is True} - {"EXTRACTABLE"} <= {
        "TOKEN", "VERIFY", "LOCAL", "DERIVE", "NEVER_EXTRACTABLE", "ALWAYS_SENSITIVE",
    }  # fmt: skip
    assert private["ID"] == public["ID"]
    assert private["ID"] in done.stdout
    assert "verify OK" in openssl("req", "-in", "r.pem", "-verify", "-noout", directory=tmp_path)
    assert "c.pem: OK" in openssl("verify", "-CAfile", "c.pem", "c.pem", directory=tmp_path)
    certificate = x509.load_pem_x509_certificate((tmp_path / "c.pem").read_bytes())
    request = x509.load_pem_x509_csr((tmp_path / "r.pem").read_bytes())
    key = certificate.public_key()
    assert request.public_key() == key
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    assert key.key_size == SIZES[kind]
    assert VerificationKey.from_certificate(certificate).ski.hex() in done.stdout
    assert f"Private Key Object; {'RSA' if kind.startswith('rsa') else 'EC'}" in empty_token.tool(
        "--list-objects", "--type", "privkey", "--label", kind
    )


def test_a_label_names_one_key(fresh_token: SoftToken, tmp_path: Path) -> None:
    """A second key of that name is refused, also when only a public half has it, and nothing is written."""
    assert keygen(fresh_token, tmp_path, "--label", "web").returncode == 0
    again = keygen(fresh_token, tmp_path, "--label", "web", "--csr", "r.pem", "--name", "a")
    assert again.returncode == 2
    assert again.stderr == "error: token 'tls': a key 'web' is there already; choose another --label\n"
    fresh_token.tool("--delete-object", "--type", "privkey", "--label", "web")
    assert keygen(fresh_token, tmp_path, "--label", "web").returncode == 2
    assert not (tmp_path / "r.pem").exists()


def test_a_running_node_offers_the_new_key(
    fresh_token: SoftToken, tmp_path: Path, shared_directory: Path
) -> None:
    """The key needs no restart of the node, which signs with it; `hsm keys list` shows it there as in the token."""
    environment, uri = fresh_token.environment, fresh_token.uri()
    with running_node(shared_directory, environment, uri) as node:
        papers = ["--certificate", "c.pem", "--name", "a"]
        assert keygen(fresh_token, tmp_path, "--label", "web", *papers).returncode == 0
        certificate = x509.load_pem_x509_certificate((tmp_path / "c.pem").read_bytes())
        public = certificate.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        with TokenClient(node, {"web": public}) as client:
            client.sign("web", 0x15)
        lists = [
            run_hsm_with(environment, "keys", "list", *source, "--json", directory=tmp_path)
            for source in (("--node", node.listen), ("--token-uri", uri))
        ]
    ski = VerificationKey.from_certificate(certificate).ski.hex()
    for listed in lists:
        (key,) = json.loads(listed.stdout)
        assert {name: key[name] for name in ("ski", "type", "label", "extractable")} == {
            "ski": ski, "type": "P-256", "label": "web", "extractable": False,
        }  # fmt: skip
        assert "ecdsa_secp256r1_sha256" in key["schemes"]


def test_a_module_that_knows_fewer_attributes(fresh_token: SoftToken, faults: Faults, tmp_path: Path) -> None:
    """Refused once, the template is cut to what must be; what the token grants beyond it is told."""
    faults.set("C_GenerateKeyPair", "12 once")
    done = keygen(fresh_token, tmp_path, "--label", "web", faults=faults)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: the token lets the key do more than sign")
    private, _ = read_pair(fresh_token, "web")
    assert (private["SENSITIVE"], private["EXTRACTABLE"], private["SIGN"]) == (True, False, True)


@pytest.mark.parametrize(
    ("fault", "content", "told"),
    [
        ("lie", "162", "made a key whose CKA_EXTRACTABLE is True, though told otherwise"),
        ("lie", "103", "made a key whose CKA_SENSITIVE is False, though told otherwise"),
        ("wrong", "", "the token signed wrongly: its signature does not verify"),
        ("C_Sign", "30", "the new key does not sign: C_Sign: CKR_DEVICE_ERROR"),
        ("hide", "1041", "the token offers no mechanism to sign with it"),
        ("C_GenerateKeyPair", "e2", "can't make a p256 key: C_GenerateKeyPair: CKR_TOKEN_WRITE_PROTECTED"),
    ],
)
def test_a_pair_that_is_no_good_is_not_kept(
    fresh_token: SoftToken, faults: Faults, tmp_path: Path, fault: str, content: str, told: str
) -> None:
    """Whatever is wrong with it, one line says so, and neither the token nor the directory has anything new."""
    faults.set(fault, content)
    papers = ["--csr", "r.pem", "--name", "a"]
    done = keygen(fresh_token, tmp_path, "--label", "web", *papers, faults=faults)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert fresh_token.tool("--list-objects") == ""
    assert not (tmp_path / "r.pem").exists()


def test_a_pair_that_can_not_be_deleted_is_named(
    fresh_token: SoftToken, faults: Faults, tmp_path: Path
) -> None:
    """The operator is told both what went wrong and what is left behind."""
    faults.set("wrong")
    faults.set("C_DestroyObject", "1b")
    done = keygen(fresh_token, tmp_path, "--label", "web", "--csr", "r", "--name", "a", faults=faults)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert "does not verify" in first
    assert "key 'web' is of no use and could not be deleted again" in second


def test_a_certificate_of_an_rsa_key_that_can_pss_only(
    fresh_token: SoftToken, faults: Faults, tmp_path: Path
) -> None:
    """The signature in the certificate is PSS then, and openssl verifies it."""
    faults.set("hide", "1")
    options = ["--type", "rsa2048", "--certificate", "c.pem", "--name", "a"]
    done = keygen(fresh_token, tmp_path, "--label", "web", *options, faults=faults)
    assert done.returncode == 0, done.stderr
    assert "rsassaPss" in openssl("x509", "-in", "c.pem", "-noout", "-text", directory=tmp_path)
    assert "c.pem: OK" in openssl("verify", "-CAfile", "c.pem", "c.pem", directory=tmp_path)


def test_a_wrong_pin_costs_one_login(fresh_token: SoftToken, faults: Faults, tmp_path: Path) -> None:
    """The guard holds it back for tools as for nodes, and the PIN shows nowhere."""
    fresh_token.pin_file.write_text("user:wrong-pin\n")
    for _ in range(2):
        done = keygen(fresh_token, tmp_path, "--label", "web", faults=faults)
        assert done.returncode == 2
        assert "was refused (CKR_PIN_INCORRECT)" in done.stderr
        assert "wrong-pin" not in done.stderr + done.stdout
    assert faults.count("logins") == 1


def test_a_pin_in_the_command_line_is_taken_out_with_a_warning(
    fresh_token: SoftToken, tmp_path: Path
) -> None:
    """The key is made, and the warning names the remedy and not the PIN."""
    uri = fresh_token.uri().replace(f"pin-source=file:{fresh_token.pin_file}", f"pin-value={fresh_token.pin}")
    arguments = ["keygen", "--token-uri", uri, "--label", "web"]
    done = run_hsm_with(fresh_token.environment, *arguments, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "use pin-source=file:/path" in done.stderr
    assert fresh_token.pin not in done.stderr + done.stdout


def test_templates_keep_to_what_cloudhsm_takes() -> None:
    """It allows no CKA_PRIVATE but its own on public keys, and knows no CKA_DERIVE of RSA keys."""
    for kind in ("p256", "rsa2048"):
        _, public, private = templates(kind, "web", b"id", strict=True)
        assert ck.CKA_PRIVATE not in public
        assert private[ck.CKA_EXTRACTABLE] is False
        assert (ck.CKA_DERIVE in private) is (kind == "p256")
        assert public[ck.CKA_ID] == private[ck.CKA_ID] == b"id"
