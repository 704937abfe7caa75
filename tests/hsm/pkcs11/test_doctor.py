"""`hsm doctor` on real tokens, healthy and ill, and on running nodes."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hsm.findings import Level
from hsm.node.examination import clock_finding
from hsm.signing import PrivateKey
from tests.hsm.pkcs11.conftest import IDS
from tests.support.hsm_support import NodeProcess
from tests.support.pkcs11 import Faults, SoftToken, run_hsm_with

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def small_token(keys: dict[str, PrivateKey], tmp_path: Path) -> SoftToken:
    """A token with a P-256 key: less to sign."""
    (tmp_path / "small").mkdir()
    token = SoftToken(tmp_path / "small")
    token.initialise()
    token.import_key("web", keys["p256"], "01")
    return token


def doctor(token: SoftToken, faults: Faults, *options: str) -> subprocess.CompletedProcess[str]:
    """Examine a token through the module with faults."""
    environment = token.environment | faults.environment
    arguments = ["doctor", "--token-uri", token.uri(faults.module), *options]
    return run_hsm_with(environment, *arguments, directory=token.directory)


def lines(done: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """The findings of a level."""
    return [line.removeprefix(level).strip() for line in done.stdout.splitlines() if line.startswith(level)]


def test_a_healthy_token(token: SoftToken, faults: Faults) -> None:
    """Each key signs by each scheme and tells its time, several sessions do at once; exit code 0."""
    done = doctor(token, faults, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    findings = json.loads(done.stdout)
    signed = [f for f in findings if "signs and verifies" in f["text"]]
    assert {f["subject"].split("'")[1] for f in signed} == set(IDS)
    assert len(signed) == 6 + 3 * 3
    assert all(f["text"].endswith(" ms a signature") for f in signed)
    assert [f["level"] for f in findings].count("broken") == 0
    assert any("made in 4 sessions at once verify" in f["text"] for f in findings)
    assert token.pin not in done.stdout


def test_what_works_and_should_be_known(token: SoftToken, faults: Faults) -> None:
    """Warnings name what it is; they alone are no failure."""
    for name, content in {
        "sessions": "5", "hide": "d", "clock": "2001010100000000", "read_only": "b4", "lie": "162",
    }.items():  # fmt: skip
        faults.set(name, content)
    token.remove_public_half(IDS["p384"])
    done = doctor(token, faults)
    assert done.returncode == 0, done.stdout
    warned = lines(done, "warning")
    for told in (
        "token: allows 5 read-write sessions",
        "behind this machine's",
        "token: refuses read-only sessions (CKR_SESSION_PARALLEL_NOT_SUPPORTED)",
        "token: not offered: key 'p384' (CKA_ID 02)",
        "key 'p256' (P-256): it can be extracted (CKA_EXTRACTABLE, or a key file)",
        "key 'rsa2048' (RSA-2048): it can't do RSA-PSS, which TLS 1.3 needs",
    ):
        assert any(told.replace("02)", "03)") in line for line in warned), (told, warned)


@pytest.mark.parametrize(
    ("fault", "content", "told"),
    [
        ("race", "", "it is not safe to be used by several threads"),
        ("wrong", "", "ecdsa_secp256r1_sha256 signs wrongly: the signature does not verify"),
        ("C_Sign", "30", "ecdsa_secp256r1_sha256 does not sign: C_Sign: CKR_DEVICE_ERROR"),
        ("segfault", "", "module: ended its process by SIGSEGV while signing by ecdsa_secp256r1_sha256"),
        ("exit", "", "module: ended its process with code 3 while signing"),
        ("C_OpenSession", "b1", "C_OpenSession: CKR_SESSION_COUNT; is the token there?"),
        ("C_Login", "a4", "was refused (CKR_PIN_LOCKED)"),
        ("hide", "1041", "token: no key to sign with"),
    ],
)
def test_what_is_broken(small_token: SoftToken, faults: Faults, fault: str, content: str, told: str) -> None:
    """Whatever the module does, the doctor survives it, names it, and ends with exit code 1."""
    faults.set(fault, content)
    done = doctor(small_token, faults)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(told in line for line in lines(done, "broken")), done.stdout
    assert "Traceback" not in done.stderr


def test_a_module_that_hangs(small_token: SoftToken, faults: Faults) -> None:
    """The doctor waits as long as it was told for what the module is about to do, and names that."""
    faults.set("stall")
    done = doctor(small_token, faults, "--timeout", "3s")
    assert done.returncode == 1, done.stdout + done.stderr
    (told,) = lines(done, "broken")
    assert told.startswith("module: no answer for 3 s while signing by ecdsa_secp256r1_sha256")


def test_a_nodes_configuration(small_token: SoftToken, faults: Faults, keys: dict[str, PrivateKey]) -> None:
    """The module's environment and what the file says of keys count, as for the node."""
    settings = {
        "listen": "unix:n.sock",
        "token": "pkcs11",
        "uri": small_token.uri(faults.module),
        "env": small_token.environment | faults.environment,
    }
    path = small_token.directory / "node.yaml"
    path.write_text(yaml.safe_dump(settings))
    done = run_hsm_with({}, "doctor", "--config", str(path), directory=small_token.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "key 'web' (P-256): ecdsa_secp256r1_sha256 signs and verifies" in done.stdout
    path.write_text(yaml.safe_dump({"listen": "unix:n.sock", "keys": "keys"}))
    done = run_hsm_with({}, "doctor", "--config", str(path), directory=small_token.directory)
    assert done.returncode == 2
    assert "a software token has no module to examine" in done.stderr


def test_a_running_node(shared_node: NodeProcess, tmp_path: Path) -> None:
    """Over its address: each key signs by each scheme, verified with the public key that the node tells."""
    done = run_hsm_with({}, "doctor", "--node", shared_node.listen, directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len([line for line in lines(done, "ok") if "signs and verifies" in line]) == 6 + 3 * 3


def test_a_running_node_that_signs_wrongly(key_directory: Path, run_directory: Path) -> None:
    """Found by verification, told for each key; that key files can be copied is a warning."""
    address = f"unix:{run_directory}/n.sock"
    with NodeProcess(address, "--keys", str(key_directory), "--emulate", "wrong_rate=1").ready():
        done = run_hsm_with({}, "doctor", "--node", address, directory=run_directory)
    assert done.returncode == 1
    assert any(
        "key 'p256.pem' (P-256): ecdsa_secp256r1_sha256 does not sign" in s for s in lines(done, "broken")
    )
    assert any("key 'p256.pem' (P-256): it can be extracted" in s for s in lines(done, "warning"))


@given(st.text(max_size=16))
def test_any_clock_is_a_finding(utc_time: str) -> None:
    """Whatever a token shows as its time."""
    assert clock_finding(utc_time, NOW).level in Level


@pytest.mark.parametrize(
    ("utc_time", "level"),
    [
        ("2026030112000000", Level.OK),
        ("2026030112003000", Level.OK),
        ("2026030112003100", Level.WARNING),
        ("2026030111592900", Level.WARNING),
        ("2026133112003100", Level.WARNING),
        ("", Level.WARNING),
    ],
)
def test_a_clock_may_be_half_a_minute_off(utc_time: str, level: Level) -> None:
    """More is a warning, and so is what is no time."""
    assert clock_finding(utc_time, NOW).level is level
