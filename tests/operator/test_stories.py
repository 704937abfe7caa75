"""Failure stories: what an operator reads when something is wrong, and that it mends itself."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.offload.identities import EXPIRED, TOMORROW, Identities
from tests.operator.conftest import write
from tests.support import eventually
from tests.support.hsm_support import NodeProcess, child_environment
from tests.support.proxy import (
    START_TIMEOUT,
    STOP_TIMEOUT,
    Program,
    Proxy,
    offload_command,
    running_proxy,
)

FULL_DISK = Path("/dev/full")


def without_admin(good: dict[str, Any]) -> dict[str, Any]:
    """`running_proxy` adds its own admin address."""
    return {key: value for key, value in good.items() if key != "admin"}


def test_a_node_that_is_not_started_yet(good: dict[str, Any], identities: Identities, tmp_path: Path) -> None:
    """The proxy starts, says which key is missing, and is ready once the node comes; and again after."""
    address = f"unix:{tmp_path}/late.sock"
    good["hsm"]["nodes"] = [{"name": "late", "address": address}]
    with running_proxy(tmp_path / "proxy", without_admin(good)) as proxy:
        entry = proxy.wait_event("ready")
        assert entry["keys_missing"] == [identities["p256"].ski.hex()]
        assert proxy.get("/readyz").status == 503
        assert any("late" in fault for fault in proxy.status()["degraded"])
        with NodeProcess(address, "--name", "late", "--keys", str(identities.keys)).ready():
            proxy.wait_event("node_ready", node="late")
            eventually(lambda: proxy.get("/readyz").status == 200, "ready")
        proxy.wait_event("node_lost", node="late")
        eventually(lambda: proxy.get("/readyz?strict=1").status == 503, "degraded")
        assert proxy.get("/readyz").status == 200
        with NodeProcess(address, "--name", "late", "--keys", str(identities.keys)).ready():
            proxy.wait_event("node_ready", node="late", count=2)
            eventually(lambda: proxy.get("/readyz?strict=1").status == 200, "ready again")


def test_a_link_with_the_wrong_authority(
    good: dict[str, Any], identities: Identities, tmp_path: Path
) -> None:
    """The node's certificate is refused, and /status says why."""
    (tmp_path / "other").mkdir()
    other = Identities(tmp_path / "other")
    theirs, ours = other.link("node.test"), identities.link("proxy.test")
    options = ["--name", "far", "--keys", str(identities.keys), "--tls-ca", str(theirs.ca)]
    options += ["--tls-certificate", str(theirs.certificate), "--tls-key", str(theirs.key)]
    from tests.support.hsm_support import free_port

    with free_port() as port, NodeProcess(f"tls://127.0.0.1:{port}", *options).ready():
        tls = ours.settings(server_name="node.test")
        good["hsm"]["nodes"] = [{"name": "far", "address": f"tls://127.0.0.1:{port}", "tls": tls}]
        with running_proxy(tmp_path / "proxy", without_admin(good)) as proxy:
            refused = "node far: its certificate is refused:"
            eventually(lambda: proxy.status()["degraded"][0].startswith(refused), "why it is refused")
            assert len(proxy.status()["degraded"]) == 2, "and the key that is missing"


def test_certificates_out_of_their_time(good: dict[str, Any], identities: Identities, tmp_path: Path) -> None:
    """Expired, or not valid yet: told in the log and as degraded; the proxy serves all the same."""
    import socket
    import ssl

    expired = identities.issue("p256", "old.test", valid=EXPIRED)
    tomorrow = identities.issue("p256", "new.test", valid=TOMORROW)
    good["listeners"][0]["certificates"] = [
        {"chain": str(identity.chain_path)} for identity in (expired, tomorrow)
    ]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with running_proxy(tmp_path / "proxy", without_admin(good)) as proxy:
        told = {entry["ski"] for entry in proxy.events("certificate_not_valid_now")}
        assert told == {expired.ski.hex(), tomorrow.ski.hex()}
        first, second = proxy.status()["degraded"]
        assert first.startswith(f"{expired.chain_path}: expired on ")
        assert second.startswith(f"{tomorrow.chain_path}: not valid before ")
        assert proxy.metrics().value("offload_degraded") == 1
        assert proxy.get("/readyz").status == 200
        assert proxy.get("/readyz?strict=1").status == 503
        for name, identity in (("old.test", expired), ("new.test", tomorrow)):
            with (
                socket.create_connection(("127.0.0.1", proxy.ports["web"]), timeout=10) as raw,
                context.wrap_socket(raw, server_hostname=name) as tls,
            ):
                leaf = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
                assert leaf.public_key() == identity.key.public_key()


@pytest.mark.skipif(not FULL_DISK.exists(), reason="needs /dev/full, which only Linux has")
def test_a_full_disk_in_the_logs_place(good: dict[str, Any], tmp_path: Path) -> None:
    """Log lines are lost; the proxy serves, and ends as it should."""
    from tests.support.hsm_support import free_port

    with free_port() as port, FULL_DISK.open("wb") as full:
        good["admin"] = {"address": f"127.0.0.1:{port}"}
        path = write(tmp_path, good)
        process = subprocess.Popen(
            [sys.executable, "-m", "offload.cli", "serve", "--config", str(path)],
            env=child_environment(), stdin=subprocess.DEVNULL, stdout=full, stderr=full,
        )  # fmt: skip
        try:
            proxy = Proxy.__new__(Proxy)
            proxy._admin_port = port

            def is_ready() -> bool:
                with contextlib.suppress(OSError):
                    return proxy.get("/readyz").status == 200
                return False

            eventually(is_ready, "ready", START_TIMEOUT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("event", ["", "worker_accepting", "ready"])
def test_ctrl_c_at_any_stage(good: dict[str, Any], tmp_path: Path, event: str) -> None:
    """While starting, while workers come up, and when ready: it ends quickly, without a traceback."""
    path = write(tmp_path, good)
    program = Program(tmp_path, "serve", "--config", str(path))
    try:
        if event:
            program.wait_event(event)
        program.signal(signal.SIGINT)
        assert program.wait() in ((0,) if event else (0, 130, -signal.SIGINT))
    finally:
        program.kill()
    program.assert_clean()


def test_a_flood_of_failures_is_summarised(
    good: dict[str, Any], identities: Identities, tmp_path: Path
) -> None:
    """Fifty handshakes without a key make few lines, not fifty."""
    import socket
    import ssl

    (tmp_path / "elsewhere").mkdir()
    stranger = identities.issue("p256", "flood.test", tmp_path / "elsewhere")
    good["listeners"][0]["certificates"] = [{"chain": str(stranger.chain_path)}]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with running_proxy(tmp_path / "proxy", without_admin(good)) as proxy:
        for _ in range(50):
            with (
                socket.create_connection(("127.0.0.1", proxy.ports["web"]), timeout=10) as raw,
                contextlib.suppress(OSError),
            ):
                context.wrap_socket(raw, server_hostname="flood.test").close()
        proxy.wait_metric("offload_handshake_failures_total", 50, reason="signature_no_node")
        assert 0 < len(proxy.events("signature_failed")) <= 10
        told = proxy.events("signature_failed")[0]
        assert told["ski"] == stranger.ski.hex()
        assert json.dumps(told)


def test_it_starts_without_a_terminal_or_home(good: dict[str, Any], tmp_path: Path) -> None:
    """As a service manager starts it: hardly any environment."""
    path = write(tmp_path, good)
    keep = {key: value for key, value in child_environment().items() if key in ("PATH", "PYTHONPATH")}
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "offload.cli", "serve", "--config", str(path)],
            env=keep, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    try:
        eventually(lambda: '"event": "ready"' in log.read_text(), "ready", START_TIMEOUT)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>/dev/full"])
def test_standard_streams_that_are_none(tmp_path: Path, closed: str) -> None:
    """What is opened later is not taken for one, and a mistake still ends with its exit code."""
    check = shlex.join([*offload_command("check"), "--config", str(tmp_path / "none.yaml")])
    done = subprocess.run(["sh", "-c", f"{check} {closed}"], env=child_environment(), timeout=30, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("command", [["schema"], ["check"], ["--version"]])
def test_output_that_can_not_be_written(good: dict[str, Any], tmp_path: Path, command: list[str]) -> None:
    """A full disk is one line and exit code 1; a reader that left (`| head -1`) is no line at all."""
    config = ["--config", str(write(tmp_path, good))] if command == ["check"] else []
    with FULL_DISK.open("w") as full:
        done = subprocess.run(
            offload_command(*command, *config),
            env=child_environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: cannot write the output: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            offload_command(*command, *config),
            env=child_environment(), stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("library", "told"), [("nowhere.so", "cannot load it as s2n-tls"), ("libc.so.6", "lacks ")]
)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_tls_library_that_is_none(
    good: dict[str, Any], tmp_path: Path, command: str, library: str, told: str
) -> None:
    """One line that names the file, and exit code 2."""
    done = subprocess.run(
        offload_command(command, "--config", str(write(tmp_path, good))),
        env=child_environment() | {"OFFLOAD_S2N_LIBRARY": library},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {library}: ")
    assert told in line
