"""`hsm keygen`, `hsm keys` and `hsm bench` with real files and a real node."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hsm.verification import VerificationKey
from tests.support.hsm_support import Authority, NodeProcess, child_environment, free_port, run_hsm


def hsm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `hsm …` to its end, in an interpreter of its own as an operator does."""
    return subprocess.run(
        [sys.executable, "-m", "hsm.cli", *arguments],
        cwd=cwd, env=child_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_key_certificate_and_request(tmp_path: Path) -> None:
    """All three belong together, the names are in, and the key is for its owner only."""
    names = ["--name", "www.example.org", "--name", "127.0.0.1"]
    done = hsm("keygen", "--out", "k.pem", "--certificate", "c.pem", "--csr", "r.pem", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate((tmp_path / "c.pem").read_bytes())
    request = x509.load_pem_x509_csr((tmp_path / "r.pem").read_bytes())
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["www.example.org"]
    assert [str(a) for a in san.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert request.is_signature_valid
    assert request.public_key() == certificate.public_key()
    assert VerificationKey.from_certificate(certificate).ski.hex() in done.stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Neither a key nor, before the key is made, a certificate."""
    (tmp_path / "k.pem").write_text("mine")
    done = run_hsm("keygen", "--out", "k.pem", directory=tmp_path)
    assert done.returncode == 2
    assert "nothing is overwritten" in done.stderr
    done = run_hsm("keygen", "--out", "new.pem", "--certificate", "k.pem", "--name", "a", directory=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "k.pem").read_text() == "mine"
    assert not (tmp_path / "new.pem").exists()


def test_an_encrypted_key_serves_with_its_passphrase(tmp_path: Path) -> None:
    """Encrypted at rest; a node with the passphrase file holds it."""
    (tmp_path / "phrase").write_text("correct horse\n")
    exposed = run_hsm("keygen", "--out", "x.pem", "--passphrase-file", "phrase", directory=tmp_path)
    assert "everybody may read" in exposed.stderr
    (tmp_path / "phrase").chmod(0o600)
    (tmp_path / "keys").mkdir()
    done = run_hsm("keygen", "--out", "keys/k.pem", "--passphrase-file", "phrase", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    pem = (tmp_path / "keys" / "k.pem").read_bytes()
    assert b"ENCRYPTED PRIVATE KEY" in pem
    serialization.load_pem_private_key(pem, b"correct horse")
    address = f"unix:{tmp_path}/s"
    options = ["--keys", str(tmp_path / "keys"), "--passphrase-file", str(tmp_path / "phrase")]
    with NodeProcess(address, "--name", "n", *options).ready():
        held = run_hsm("keys", "--node", address, directory=tmp_path)
        assert held.stdout.split()[0] in done.stdout
    (tmp_path / "phrase").write_text("wrong")
    refused = run_hsm("node", "--listen", address, *options, directory=tmp_path)
    assert refused.returncode == 2
    assert "passphrase" in refused.stderr
    assert "wrong" not in refused.stderr


MISTAKES: list[tuple[list[str], str]] = [
    (["keygen", "--out", "k", "--type", "dsa"], "there are p256, p384"),
    (["keygen", "--out", "k", "--certificate", "c"], "needs --name"),
    (["keygen"], "--out FILE, or --token-uri"),
    (["keygen", "--out", "k", "--token-uri", "pkcs11:"], "--out FILE, or --token-uri"),
    (["keygen", "--out", "k", "--label", "l"], "--label is for keys in a token"),
    (["keygen", "--token-uri", "pkcs11:?module-path=/m.so"], "--label: name the new key"),
    (["keygen", "--token-uri", "pkcs11:?module-path=/m.so", "--label", "l"], "/m.so: no such file"),
    (["keygen", "--token-uri", "pkcs11:?module-path=/m.so", "--type", "dsa"], "there are p256, p384"),
    (["keys", "list"], "name one of --node, --token-uri, --keys"),
    (["keys", "list", "--node", "a", "--keys", "b"], "not several"),
    (["keygen", "--out", "no/such/dir/k"], "cannot write it"),
    (["keygen", "--out", "k", "--passphrase-file", "none"], "cannot read the passphrase"),
    (["keygen", "--out", "k" * 300], "cannot write it: File name too long"),
    (["keys", "--node", "nonsense"], "is not a node's address"),
    (["keys", "--node", "unix:none.sock"], "is it running"),
    (["keys", "--node", "tls://127.0.0.1:1"], "--tls-ca"),
    (["bench", "--node", "unix:none.sock", "--duration", "soon"], "is not a duration"),
]
"""Command lines, and what is said about them."""


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[" ".join(each) for each, _ in MISTAKES])
def test_mistakes(tmp_path: Path, arguments: list[str], told: str) -> None:
    """One line that names the remedy, exit code 2."""
    done = run_hsm(*arguments, directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert told in line


def test_bench_and_keys_of_a_node(tmp_path: Path) -> None:
    """Both work on a node as it runs, and mistakes name what there is."""
    (tmp_path / "keys").mkdir()
    run_hsm("keygen", "--out", "keys/k.pem", directory=tmp_path)
    address = f"unix:{tmp_path}/s"
    with NodeProcess(address, "--name", "n", "--keys", str(tmp_path / "keys")).ready():
        held = hsm("keys", "--node", address, cwd=tmp_path)
        ski, kind, extractable, label, schemes = held.stdout.strip().split("  ")
        assert (kind, extractable, label) == ("P-256", "extractable", "k.pem")
        assert "ecdsa_secp256r1_sha256" in schemes
        assert run_hsm("keys", "list", "--keys", "keys", directory=tmp_path).stdout == held.stdout
        ran = hsm("bench", "--node", address, "--ski", ski, "--duration", "200ms", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert "signatures/s; p50" in ran.stdout
        told = json.loads(
            run_hsm("bench", "--node", address, "--duration", "200ms", "--json", directory=tmp_path).stdout
        )
        assert (told["key"], told["scheme"], told["errors"]) == (ski, "ecdsa_secp256r1_sha256", {})
        assert told["rate"] == pytest.approx(told["signatures"] / told["seconds"])
        assert 0 < told["latency"]["p0"] <= told["latency"]["p50"] <= told["latency"]["p100"] < 40
        wrong = run_hsm("bench", "--node", address, "--scheme", "rsa_pkcs1_sha256", directory=tmp_path)
        assert "it can do ecdsa_secp256r1_sha256" in wrong.stderr
        other = run_hsm("bench", "--node", address, "--ski", "00" * 20, directory=tmp_path)
        assert "the node has no key" in other.stderr


def test_a_node_by_another_name_than_its_address(tmp_path: Path) -> None:
    """`keys` and `bench` check the name that --tls-server-name says, and no other."""
    (tmp_path / "keys").mkdir()
    run_hsm("keygen", "--out", "keys/k.pem", directory=tmp_path)
    authority = Authority(tmp_path, "ca")
    node, own = authority.issue("hsm.internal"), authority.issue("operator")
    theirs = [
        "--tls-ca",
        str(node.ca),
        "--tls-certificate",
        str(node.certificate),
        "--tls-key",
        str(node.key),
    ]
    ours = ["--tls-ca", str(own.ca), "--tls-certificate", str(own.certificate), "--tls-key", str(own.key)]
    with free_port() as port:
        address = f"tls://127.0.0.1:{port}"
        with NodeProcess(address, "--keys", str(tmp_path / "keys"), *theirs).ready():
            ours += ["--node", address, "--tls-server-name"]
            for command in (["keys"], ["bench", "--duration", "100ms"]):
                assert run_hsm(*command, *ours, "hsm.internal", directory=tmp_path).returncode == 0
            other = run_hsm("keys", *ours, "other.internal", directory=tmp_path)
    assert other.returncode == 2
    assert "its certificate is refused" in other.stderr
