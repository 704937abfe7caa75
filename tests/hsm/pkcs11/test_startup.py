"""What a node says that can't start, and that a wrong PIN costs one attempt, never more."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from hsm.errors import ConfigurationError
from hsm.node.cryptoki import Module
from hsm.signing import PrivateKey
from tests.support import eventually
from tests.support.hsm_support import LIMIT, NodeProcess
from tests.support.pkcs11 import (
    Faults,
    SoftToken,
    TokenClient,
    configured_node,
    node_command,
    run_hsm_with,
    running_node,
    softhsm,
    starting_node,
)


def refusal(directory: Path, token: SoftToken, uri: str, *options: str) -> str:
    """What a node prints that ends with the code of an operator's mistake."""
    with starting_node(directory, token.environment, uri, *options) as node:
        assert node.wait() == 2
        eventually(lambda: "error: " in node.log, "the error")
        return node.log


def test_a_wrong_token_is_named_beside_those_there_are(token: SoftToken, run_directory: Path) -> None:
    """Which token was asked for, and which the module has, with what tells them apart."""
    log = refusal(run_directory, token, token.uri(token="web"))
    assert "pkcs11:token=web" in log
    assert "no such token; the module has: token='tls' serial='" in log


def test_an_absent_module_is_named(tmp_path: Path) -> None:
    """A path without a file, and a file that is no module, are told apart."""
    with pytest.raises(ConfigurationError, match=r"module /nowhere/lib.so: no such file; install the vendor"):
        Module("/nowhere/lib.so")
    (tmp_path / "text").touch()
    with pytest.raises(ConfigurationError, match=r"/text: not a PKCS#11 library that loads here: "):
        Module(str(tmp_path / "text"))


def test_two_tokens_of_one_label_want_a_serial_number(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path
) -> None:
    """Neither is taken by chance; with the serial number that the message shows, the right one is."""
    token.initialise()
    log = refusal(run_directory, token, token.uri())
    assert "several tokens fit; add serial= or slot-id= to choose one of: " in log
    tried = []
    for part in log.partition("one of: ")[2].split("; "):
        serial = part.partition("serial='")[2].partition("'")[0]
        uri = token.uri().replace("token=tls", f"token=tls;serial={serial}")
        with running_node(run_directory, token.environment, uri) as node:
            tried.append(node.wait_event("node_ready")["keys"])
    assert sorted(tried) == [0, 4]


def test_a_token_that_wants_a_pin_and_gets_none(token: SoftToken, run_directory: Path) -> None:
    """The message lists the ways to give one."""
    uri = token.uri().partition("&pin-source")[0]
    assert "token 'tls' wants a PIN; name its source: " in refusal(run_directory, token, uri)


def test_a_wrong_pin_costs_one_attempt_over_processes_and_restarts(
    token: SoftToken, faults: Faults, keys: dict[str, PrivateKey], run_directory: Path
) -> None:
    """Four nodes at once and another later show the token a wrong PIN once; a changed PIN works at once."""
    environment = token.environment | faults.environment
    uri = token.uri(faults.module)
    token.pin_file.write_text("user:wrong-secret")
    nodes = [starting_node(run_directory, environment, uri) for _ in range(4)]
    try:
        assert [node.wait() for node in nodes] == [2] * 4
    finally:
        for node in nodes:
            node.__exit__()
    with starting_node(run_directory, environment, uri) as late:
        assert late.wait() == 2
    for node in [*nodes, late]:
        assert "was refused (CKR_PIN_INCORRECT); no further login is tried with it" in node.log
        assert "hsm pin reset-guard" in node.log
        assert "wrong-secret" not in node.log
    assert faults.count("logins") == 1
    token.pin_file.write_text(token.pin)
    with running_node(run_directory, environment, uri) as node, TokenClient(node, keys) as client:
        client.sign("p256", 0x15)
    assert faults.count("logins") == 2


def test_a_locked_pin_stops_all_logins(token: SoftToken, faults: Faults, run_directory: Path) -> None:
    """CKR_PIN_LOCKED, from an outside attempt: one login finds it out, later ones are not made."""
    environment = token.environment | faults.environment
    faults.set("C_Login", "a4")
    for _ in range(2):
        log = refusal_in(run_directory, environment, token.uri(faults.module))
        assert "was refused (CKR_PIN_LOCKED)" in log
    assert faults.count("logins") == 1


def test_the_operator_sets_a_refused_pin_free(token: SoftToken, faults: Faults, run_directory: Path) -> None:
    """`hsm pin guards` shows it, `hsm pin reset-guard` lets the same PIN be tried once more."""
    environment = token.environment | faults.environment
    faults.set("C_Login", "a0 once")
    refusal_in(run_directory, environment, token.uri(faults.module))
    assert "tls SoftHSM project" in hsm_pin(token, "guards")
    assert ": 1 held back" in hsm_pin(token, "guards")
    assert "nothing was held back" in hsm_pin(token, "reset-guard", "--token", "another")
    assert ": 1 set free" in hsm_pin(token, "reset-guard", "--token", "tls")
    with running_node(run_directory, environment, token.uri(faults.module)):
        assert faults.count("logins") == 2


def hsm_pin(token: SoftToken, *arguments: str) -> str:
    """`hsm pin …` as the nodes' user."""
    done = run_hsm_with(token.environment, "pin", *arguments, directory=token.directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal_in(directory: Path, environment: dict[str, str], uri: str) -> str:
    """The log of a node that can't start."""
    with starting_node(directory, environment, uri) as node:
        assert node.wait() == 2
        eventually(lambda: "error: " in node.log, "the error")
        return node.log


def test_the_pin_is_nowhere_to_be_seen(token: SoftToken, run_directory: Path) -> None:
    """A PIN in the URI works, with a warning; it is in no log, no file of the guard and no command line."""
    uri = token.uri().partition("pin-source")[0] + "pin-value=" + token.pin.replace(":", "%3A")
    secret = token.pin.partition(":")[2]
    with running_node(run_directory, token.environment, uri) as node:
        assert "use pin-source=file:/path" in node.wait_event("pin_in_command_line")["remedy"]
        assert secret not in Path(f"/proc/{node.pid}/cmdline").read_text()
        assert secret not in node.log
    for file in (token.directory / "state").rglob("*"):
        assert not file.is_file() or secret not in file.read_text()


def test_the_pin_can_come_from_the_environment_or_a_descriptor(token: SoftToken, run_directory: Path) -> None:
    """`env:NAME` and `fd:N` are read by the node itself."""
    base = token.uri().partition("pin-source")[0]
    environment = {**token.environment, "TOKEN_PIN": token.pin}
    with running_node(run_directory, environment, base + "pin-source=env:TOKEN_PIN"):
        pass
    listen = f"unix:{run_directory}/fd.sock"
    arguments = ("--listen", listen, "--token", "pkcs11", "--token-uri", base + "pin-source=fd:7")
    command = [
        "sh",
        "-c",
        'exec "$@" 7<"$0"',
        str(token.pin_file),
        *node_command(token.environment, *arguments),
    ]
    with NodeProcess(listen, command=command) as node:
        node.ready()


def test_settings_give_the_module_its_environment_and_directory(
    token: SoftToken, keys: dict[str, PrivateKey], run_directory: Path, tmp_path: Path
) -> None:
    """`env` and `directory` count before the module is loaded; single keys say what a URI says."""
    settings = {
        "module": str(softhsm()),
        "label": "tls",
        "pin_source": f"file:{token.pin_file}",
        "env": {"SOFTHSM2_CONF": "softhsm2.conf", "LD_LIBRARY_PATH": str(tmp_path)},
        "directory": str(token.directory),
        "sessions": 2,
    }
    environment = {"HSM_STATE_DIRECTORY": str(tmp_path / "state")}
    with configured_node(run_directory, tmp_path, environment, settings) as node:
        with TokenClient(node, keys) as client:
            client.sign("p256", 0x15)
        assert Path(f"/proc/{node.pid}/cwd").resolve() == token.directory.resolve()
        if os.geteuid() == 0:  # the process is not dumpable: nobody else may look
            assert f"LD_LIBRARY_PATH={tmp_path}" in Path(f"/proc/{node.pid}/environ").read_text()


def test_a_node_is_stopped_while_it_logs_in(token: SoftToken, faults: Faults, run_directory: Path) -> None:
    """SIGTERM ends it although another process holds the login."""
    environment = token.environment | faults.environment
    with running_node(run_directory, environment, token.uri(faults.module)):
        (guard,) = (token.directory / "state" / "pin-guard").glob("*.json")
    with guard.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with starting_node(run_directory, environment, token.uri(faults.module)) as node:
            eventually(lambda: _waits_for_lock(node.pid), "the node at the lock", LIMIT)
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
    assert faults.count("logins") == 1


def _waits_for_lock(pid: int) -> bool:
    return any(f" {pid} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())
