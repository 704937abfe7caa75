"""Mistakes of the operator of a node: one `error:` line each, exit code 2, never a traceback."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from hsm import __version__
from hsm.signing import PrivateKey
from tests.support.hsm_support import LIMIT, Authority, child_environment, hsm_command, run_hsm, write_key

CASES = [
    ("--listen unix:a.sock --keys none",
     "{0}/none: cannot read the key directory: No such file or directory"),
    ("--listen unix:a.sock --keys file", "{0}/file: cannot read the key directory: Not a directory"),
    ("--listen unix:a.sock --keys empty",
     "{0}/empty: holds no private keys; put PEM files (*.pem, *.key) there"),
    ("--listen unix:a.sock --keys bad",
     "{0}/bad/a.pem: everybody may read or write this key; chmod 600 {0}/bad/a.pem"),
    ("--listen 127.0.0.1:2407 --keys keys",
     "--listen: '127.0.0.1:2407' is not a node's address; write unix:/path or tls://host:port"),
    ("--listen unix: --keys keys",
     "--listen: socket path '{0}' is not 1 to 107 bytes long; use a shorter one"),
    ("--listen tls://localhost --keys keys",
     "--listen: 'localhost' is not an address; write host:port, or [v6]:port"),
    ("--listen tls://127.0.0.1:1 --keys keys",
     "--tls-ca, --tls-certificate, --tls-key: a tls:// address needs it: ca, certificate and key"),
    ("--listen tls://127.0.0.1:1 --keys keys --tls-ca none --tls-certificate file --tls-key file",
     "{0}/none: cannot read it: No such file or directory"),
    ("--listen tls://127.0.0.1:1 --keys keys --tls-ca file --tls-certificate file --tls-key file",
     "{0}/file: holds no PEM certificates"),
    ("--listen unix:none/a.sock --keys keys",
     "unix:{0}/none/a.sock: cannot listen there: No such file or directory; create its directory"),
    ("--listen unix:file --keys keys",
     "unix:{0}/file: a file that is no socket is there; choose another path"),
    ("--listen unix:a.sock --keys keys --admin 9500",
     "--admin: '9500' is not an address; write host:port, or [v6]:port"),
    ("--listen unix:a.sock --keys keys --admin [fe80::1%none]:9500",
     "admin: cannot resolve fe80::1%none: "),
    ("--listen unix:a.sock --token pkcs11",
     "--token-uri: a pkcs11 token needs it (or module); write pkcs11:token=NAME?module-path=/path.so"),
    ("--listen unix:a.sock --token pkcs11 --token-uri x", "--token-uri: not a PKCS#11 URI; write one like pkcs11:"),
    ("--listen unix:a.sock --keys keys --sessions 4",
     "--sessions: not for this kind of token; leave it out, or choose the other kind"),
    ("--listen unix:a.sock --keys keys --emulate latency",
     "--emulate: 'latency' is not key=value; write e.g. latency=5ms"),
    ("--listen unix:a.sock --keys keys --emulate latency=5",
     "--emulate: latency: '5' is not a duration; write one like 250ms, 5s, 10m, 1h, 1d or 1y"),
    ("--listen unix:a.sock --keys keys --emulate latancy=5ms",
     "--emulate: latancy: unknown key; did you mean 'latency'?"),
    ("--listen unix:a.sock --keys keys --emulate parallel=-1",
     "--emulate: parallel: expected a number of at least 0, not"),
    ("--listen unix:a.sock --keys keys --emulate-file none",
     "{0}/none: cannot read it: No such file or directory"),
    ("--listen unix:a.sock --keys keys --allow-user no-such-user",
     "allow_users: there is no user 'no-such-user' on this machine"),
    ("--config file --name x --keys keys", "--config stands alone; put keys, name into file"),
    ("--config none.yaml", "none.yaml: cannot read it: No such file or directory"),
    ("--config file", "file: expected keys and values at the top level"),
]  # fmt: skip
"""Command lines, and how the line begins that they are refused with; {0} is the directory."""


def refusals(*arguments: str, directory: Path) -> list[str]:
    """The lines that `hsm node` ends with, without `error: `."""
    done = run_hsm("node", *arguments, directory=directory)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), done.stderr
    return [line.removeprefix("error: ") for line in lines]


def refusal(*arguments: str, directory: Path) -> str:
    """The one line that `hsm node` ends with."""
    (line,) = refusals(*arguments, directory=directory)
    return line


@pytest.fixture(scope="module")
def key_files(shared_directory: Path, keys: dict[str, PrivateKey]) -> Path:
    """A directory with `keys/`, an empty `empty/` and a few files, where `hsm` is started."""
    for name in ("keys", "empty", "bad"):
        (shared_directory / name).mkdir()
    write_key(shared_directory / "keys", "a.pem", keys["p256"])
    write_key(shared_directory / "bad", "a.pem", keys["p256"], mode=0o644)
    (shared_directory / "file").write_text("no certificate\n")
    return shared_directory


def test_the_version_is_printed() -> None:
    """`hsm --version` names the version."""
    assert run_hsm("--version").stdout == f"hsm {__version__}\n"


@pytest.mark.parametrize(("arguments", "line"), CASES, ids=[arguments for arguments, _ in CASES])
def test_a_mistake_is_one_line(key_files: Path, arguments: str, line: str) -> None:
    """The line names what is wrong and where, and nothing is left behind."""
    assert refusal(*arguments.split(), directory=key_files).startswith(line.format(key_files))
    assert not (key_files / "a.sock").exists()


def test_commands_that_tests_fork_are_those_that_start(
    key_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter of its own, which imports only what a command asks for, says and does the same."""
    monkeypatch.setenv("HSM_STATE_DIRECTORY", str(tmp_path))
    for line in (
        ["keys", "list", "--keys", "keys"],
        ["pin", "reset-guard", "--token", "tls"],
        ["doctor", "--token-uri", "pkcs11:?module-path=/none.so"],
        ["cluster", "status", "--config", "none.yaml"],
    ):
        started = subprocess.run(
            hsm_command(*line), env=child_environment(), cwd=key_files,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        forked = run_hsm(*line, directory=key_files)
        assert (forked.returncode, forked.stdout, forked.stderr) == (
            started.returncode, started.stdout, started.stderr,
        )  # fmt: skip
        assert started.stdout + started.stderr


def test_an_unknown_token_is_refused(key_files: Path) -> None:
    """The message names the option and what it may be."""
    told = refusal("--listen", "unix:a.sock", "--token", "abacus", "--keys", "keys", directory=key_files)
    assert told.startswith("--token: ")
    assert "software" in told


def test_what_is_missing_is_told_at_once(key_files: Path) -> None:
    """Without options every required one is named, a line each."""
    assert sorted(refusals("--name", "a", directory=key_files)) == [
        "--keys: required, but missing",
        "--listen: required, but missing",
    ]


def test_an_occupied_admin_port_is_refused(key_files: Path) -> None:
    """Another program listens there: one line, and the node's own socket is not left behind."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = ["--listen", "unix:a.sock", "--keys", "keys", "--admin", f"127.0.0.1:{port}"]
        told = refusal(*options, directory=key_files)
    assert told == (
        f"admin: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "stop what listens there, or choose another port"
    )
    assert not (key_files / "a.sock").exists()


def test_a_certificate_without_its_key_is_refused(key_files: Path) -> None:
    """A key that belongs to another certificate is told with both names."""
    authority = Authority(key_files, "ca")
    one, two = authority.issue("one"), authority.issue("two")
    tls = ["--tls-ca", str(one.ca), "--tls-certificate", str(one.certificate), "--tls-key", str(two.key)]
    told = refusal("--listen", "tls://127.0.0.1:1", "--keys", "keys", *tls, directory=key_files)
    assert told == f"{one.certificate}: no PEM certificate, or {two.key} is not its unencrypted PEM key"


def test_several_mistakes_in_a_file_are_several_lines(key_files: Path) -> None:
    """A file with three mistakes is refused once, with a line for each."""
    (key_files / "node.yaml").write_text("listen: nowhere\nkeyz: keys\nemulate: {latency: 5}\n")
    lines = refusals("--config", "node.yaml", directory=key_files)
    assert [line.split(": ")[:2] for line in lines] == [
        ["node.yaml", "keys"],
        ["node.yaml", "emulate.latency"],
        ["node.yaml", "listen"],
        ["node.yaml", "keyz"],
    ]
