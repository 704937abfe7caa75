"""`offload check`: each mistake is one line that names the place and the remedy."""

from __future__ import annotations

import copy
import datetime as dt
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hsm import config
from offload import check
from offload.certificates import load_chain, parse_chain
from offload.config import Config
from tests.offload.identities import EXPIRED, TOMORROW, Identities
from tests.operator.conftest import write
from tests.support.hsm_support import child_environment
from tests.support.proxy import run_offload

DAY = dt.timedelta(days=1)


def problems(settings: dict[str, Any], directory: Path) -> list[str]:
    """What `check` finds in settings that are valid by themselves."""
    path = write(directory, settings)
    found, _ = check.find_problems(config.load(path, Config), path)
    return found.lines


def test_a_good_configuration_is_good(good: dict[str, Any], tmp_path: Path) -> None:
    """Exit code 0 and one line that says what was found."""
    done = run_offload("check", "--config", str(write(tmp_path, good)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "ok: 1 listener, 1 certificate, 1 node"


def test_hosts_without_a_certificate_are_warned_of(good: dict[str, Any], tmp_path: Path) -> None:
    """It works, but no client would trust it; what is covered by a certificate is no news."""
    web = good["listeners"][0]
    routes = [{"hosts": ["localhost", "a.test"], "answer": {"status": 403}}]
    listeners = [{**web, "mode": "http", "http": {"routes": routes}}]
    done = run_offload("check", "--config", str(write(tmp_path, {**good, "listeners": listeners})))
    assert done.returncode == 0
    (warning,) = (line for line in done.stdout.splitlines() if "routes" in line)
    assert warning.startswith(
        "warning: listeners[0].http.routes[0]: no certificate of the listener is good for a.test;"
    )


def test_connect_makes_real_signatures(good: dict[str, Any], identities: Identities, tmp_path: Path) -> None:
    """With --connect each certificate's key signs on a node that is started for it."""
    good["listeners"][0]["certificates"].append({"chain": str(identities["rsa2048"].chain_path)})
    done = run_offload("check", "--connect", "--config", str(write(tmp_path, good)))
    assert done.returncode == 0, done.stderr
    assert "ecdsa_secp256r1_sha256" in done.stdout
    assert "rsa_pss_rsae_sha256" in done.stdout
    assert " ms" in done.stdout


def test_connect_tells_of_a_key_that_no_node_has(
    good: dict[str, Any], identities: Identities, tmp_path: Path
) -> None:
    """The line names certificate, key and remedy; exit code 2."""
    (tmp_path / "elsewhere").mkdir()
    stranger = identities.issue("p256", "stranger.test", tmp_path / "elsewhere")
    stranger.chain_path.write_bytes(stranger.pem + identities.ca.read_bytes())
    good["listeners"][0]["certificates"] = [{"chain": str(stranger.chain_path)}]
    done = run_offload("check", "--connect", "--config", str(write(tmp_path, good)))
    assert done.returncode == 2
    assert f"no node signs with its key {stranger.ski.hex()}" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_all_mistakes_are_told_at_once(good: dict[str, Any], tmp_path: Path) -> None:
    """One line for each, not only for the first."""
    good["listeners"][0]["certificates"] = [{"chain": "nowhere.pem"}, {"chain": "neither.pem"}]
    good["hsm"]["nodes"][0]["run"]["keys"] = "no-keys"
    done = run_offload("check", "--config", str(write(tmp_path, good)))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3
    assert all(
        part in done.stderr for part in ("nowhere.pem", "neither.pem", "no-keys", "No such file or directory")
    )


_WATCHED = """
import os, sys
def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith(sys.argv[1]):
        os.write(2, b"opened " + os.fsencode(arguments[0]))
sys.addaudithook(note)
from pathlib import Path
from offload.check import check_file
sys.exit(check_file(Path(sys.argv[2]), connect=False))
"""


def test_keys_are_checked_and_never_read(
    good: dict[str, Any], identities: Identities, tmp_path: Path
) -> None:
    """A process of its own reads them: what checks a configuration opens no file of the key directory."""
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    good["hsm"]["nodes"][0]["run"]["keys"] = str(keys)
    command = [sys.executable, "-c", _WATCHED, str(keys), str(write(tmp_path, good))]

    def check_it() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=60, check=False
        )

    shutil.copy(identities["p256"].key_path, keys / "good.key")
    done = check_it()
    assert (done.returncode, done.stderr) == (0, "")
    (keys / "bad.key").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (keys / "bad.key").chmod(0o600)
    done = check_it()
    assert (done.returncode, done.stderr) == (2, f"error: {keys}/bad.key: not a PEM private key\n")


@pytest.mark.parametrize(
    ("key", "wrong", "told"),
    [
        (("listeners", 0, "certificats"), [], "listeners[0].certificats: unknown key; did you mean 'certificates'?"),
        (("hsm", "sign_timeout"), "5 seconds", "hsm.sign_timeout: '5 seconds' is not a duration"),
        (("listeners", 0, "address"), "8443", "listeners[0].address: '8443' is not an address"),
        (("workers",), "many", "workers"),
        (("hsm", "nodes", 0, "address"), "tcp://a:1", "is not a node's address; write unix:/path or tls://host:port"),
        (("listeners", 0, "tls"), {"policy": "best"}, "listeners[0].tls.policy: s2n-tls has no policy 'best'"),
        (("listeners", 0, "upstream"), {"servers": ["no.such.host.invalid:1"]}, "cannot resolve"),
        (("limits", "max_connections"), 10**9, "need 2000000000 open files"),
        (("runtime_directory",), "x" * 100, "not 1 to 107 bytes long"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_with_its_place(
    good: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: tuple[str | int, ...],
    wrong: object,
    told: str,
) -> None:
    """Exit code 2 and a line with the key's path."""
    spoilt = copy.deepcopy(good)
    part: Any = spoilt
    for step in key[:-1]:
        part = part[step]
    part[key[-1]] = wrong
    assert check.check_file(write(tmp_path, spoilt), connect=False) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert any(told in line for line in lines)


def test_faults_of_chains_are_told_with_their_place(
    good: dict[str, Any], identities: Identities, tmp_path: Path
) -> None:
    """Unreadable, out of date, incomplete, or one of a directory: each line begins with the key that names the file."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    expired = identities.issue("p256", "a.test", elsewhere, valid=EXPIRED)
    tomorrow = identities.issue("p256", "b.test", elsewhere, valid=TOMORROW)
    for identity in (expired, tomorrow):
        identity.chain_path.write_bytes(identity.pem + identities.ca.read_bytes())
    incomplete = tmp_path / "directory"
    incomplete.mkdir()
    leaf_only = incomplete / "leaf.pem"
    leaf_only.write_bytes(identities.issue("p256", "c.test", elsewhere).pem)
    good["listeners"][0]["certificates"] += [
        {"chain": str(tmp_path / "none.pem")},
        {"chain": str(expired.chain_path)},
        {"chain": str(tomorrow.chain_path)},
        {"directory": str(incomplete)},
    ]
    place = "listeners[0].certificates"
    found = problems(good, tmp_path)
    for start in (
        f"{place}[1].chain: {tmp_path}/none.pem: cannot read the certificate chain: No such file",
        f"{place}[2].chain: {expired.chain_path}: expired on ",
        f"{place}[3].chain: {tomorrow.chain_path}: not valid before ",
        f"{place}[4].directory: {leaf_only}: the chain is incomplete: ",
    ):
        assert [line.startswith(start) for line in found].count(True) == 1, found
    assert len(found) == 4


def test_an_occupied_port(good: dict[str, Any], tmp_path: Path) -> None:
    """The line names the listener, the address and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        good["listeners"][0]["address"] = f"127.0.0.1:{port}"
        (line,) = problems(good, tmp_path)
    assert line.startswith(
        f"listeners[0].address: cannot listen on 127.0.0.1:{port}: Address already in use;"
    )
    assert line.endswith("stop what listens there, or choose another port")


def test_two_certificates_for_one_name(good: dict[str, Any], identities: Identities, tmp_path: Path) -> None:
    """Of one key type that is a mistake; RSA beside ECDSA is not."""
    certificates = good["listeners"][0]["certificates"]
    certificates.append({"chain": str(identities["rsa2048"].chain_path)})
    assert problems(good, tmp_path) == []
    other = tmp_path / "twin.pem"
    other.write_bytes(identities["p256"].pem)
    certificates.append({"chain": str(other)})
    (line,) = problems(good, tmp_path)
    assert "are both EC certificates for localhost; keep one" in line


def test_validity_in_time(identities: Identities) -> None:
    """Expired and not yet valid certificates are told apart."""
    chain = load_chain(identities["p256"].chain_path)
    assert check.chain_problems(chain, chain.not_before) == []
    (early,) = check.chain_problems(chain, chain.not_before - DAY)
    assert "not valid before" in early
    (late,) = check.chain_problems(chain, chain.not_after)
    assert "expired on" in late


def test_what_only_some_clients_refuse(
    good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No subjectAltName, and an issuer whose own certificate has expired: warnings, for somebody may know better."""
    now = dt.datetime.now(dt.UTC)
    key, issuer_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, leaf = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("old", "bare"))
    chain = [
        x509.CertificateBuilder(issuer, subject, public.public_key(), number, now - 30 * DAY, until).sign(
            issuer_key, hashes.SHA256()
        )
        for subject, public, number, until in (
            (leaf, key, 1, now + 30 * DAY),
            (issuer, issuer_key, 2, now - DAY),
        )
    ]
    path = tmp_path / "bare.pem"
    path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    good["listeners"][0]["certificates"] = [{"chain": str(path)}]
    assert check.check_file(write(tmp_path, good), connect=False) == 0
    told = capsys.readouterr().out
    assert f"warning: {path}: has no subjectAltName, without which browsers refuse it" in told
    assert f"warning: {path}: the certificate of CN=old in it expired on " in told


def test_a_control_socket_whose_path_is_too_long(good: dict[str, Any], tmp_path: Path) -> None:
    """Found by the check, whether or not a node is run."""
    good["runtime_directory"] = str(tmp_path / ("d" * 100))
    lines = problems(good, tmp_path)
    assert any(
        line.startswith("runtime_directory: socket path ") and "control.sock" in line for line in lines
    )


def test_an_incomplete_chain(identities: Identities) -> None:
    """A leaf alone, whose issuer no system trusts: clients would refuse it."""
    whole = load_chain(identities["p256"].chain_path)
    leaf = parse_chain([whole.certificates[0]], Path("leaf.pem"))
    (line,) = check.chain_problems(leaf, whole.not_before)
    assert line.startswith("leaf.pem: the chain is incomplete")
    assert "CN=test intermediate" in line


def test_an_issuer_of_the_right_name_and_the_wrong_key(identities: Identities, tmp_path: Path) -> None:
    """The order is right, yet no client will accept it."""
    (tmp_path / "other").mkdir()
    other = Identities(tmp_path / "other")
    mixed = tmp_path / "mixed.pem"
    leaf = load_chain(identities["p256"].chain_path).certificates[0]
    others = load_chain(other["p256"].chain_path).certificates
    chain = parse_chain([leaf, others[1]], mixed)
    lines = check.chain_problems(chain, chain.not_before)
    assert any("did not sign the certificate before it" in line for line in lines)


def test_a_link_certificate_of_another_authority(
    good: dict[str, Any], identities: Identities, tmp_path: Path
) -> None:
    """A node would refuse it: found before it is tried."""
    (tmp_path / "other").mkdir()
    other = Identities(tmp_path / "other")
    ours, theirs = identities.link("proxy"), other.link("proxy")
    tls = {"ca": str(ours.ca), "certificate": str(theirs.certificate), "key": str(theirs.key)}
    good["hsm"]["nodes"].append({"name": "far", "address": "tls://127.0.0.1:1", "tls": tls})
    (line,) = problems(good, tmp_path)
    assert line.startswith("hsm.nodes[1].tls:")
    assert "did not sign" in line


def test_many_certificates(good: dict[str, Any], identities: Identities, tmp_path: Path) -> None:
    """Two hundred are read and understood in one go."""
    certificates = good["listeners"][0]["certificates"] = []
    keys = tmp_path / "keys"
    keys.mkdir()
    for number in range(200):
        identity = identities.issue("p256", f"site{number}.test", keys)
        identity.chain_path.write_bytes(identity.pem + identities.ca.read_bytes())
        certificates.append({"chain": str(identity.chain_path)})
    done = run_offload("check", "--config", str(write(tmp_path, good)))
    assert done.returncode == 0, done.stderr
    assert "200 certificates" in done.stdout
